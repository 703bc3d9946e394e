"""A headless Chromium, driven over WebDriver (https://www.w3.org/TR/webdriver/)."""

import base64
import shutil
import socket
import subprocess
import time

import requests

PROGRAMS = [shutil.which("chromium"), shutil.which("chromedriver")]
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
          "--disable-background-networking", "--disable-component-update", "--disable-sync",
          "--hide-scrollbars", "--disable-dev-shm-usage", "--use-angle=swiftshader",
          "--enable-unsafe-swiftshader"]
# The page's text, that within shadow roots, frames and of labels in pictures included.
_TEXT = """
function texts(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data;
  if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return '';
  if (node.nodeName === 'IFRAME') return texts(node.contentDocument.body);
  const below = [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes];
  return below.map(texts).join('') + '\\n';
}
return texts(document.body);
"""


class Browser:
    """One window.

    Args:
      directory: a new one, for what the browser remembers.
    """

    def __init__(self, directory):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen([PROGRAMS[1], f"--port={port}"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._session = requests.Session()
        self._session.trust_env = False
        self._address = f"http://127.0.0.1:{port}"
        self._until(lambda: self._ask("get", "/status")["ready"])
        options = {"binary": PROGRAMS[0], "args": [*_FLAGS, f"--user-data-dir={directory}"]}
        made = self._ask("post", "/session", capabilities={
            "alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}})
        self._address += f"/session/{made['sessionId']}"

    def _ask(self, verb, path, **values):
        answer = getattr(self._session, verb)(self._address + path, timeout=120,
                                              **({"json": values} if verb == "post" else {}))
        found = answer.json()["value"]
        assert answer.ok, found
        return found

    def _until(self, ready, patience=120.0):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            try:
                if ready():
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.5)
        raise TimeoutError("the browser's driver does not answer")

    def show(self, address, size, wanted):
        """Opens a page and waits until it shows some texts: (its text, a PNG of the window)."""
        self._ask("post", "/window/rect", width=size[0], height=size[1], x=0, y=0)
        self._ask("post", "/url", url="about:blank")
        self._ask("post", "/url", url=address)
        text, until = "", time.monotonic() + 120.0
        while not all(part in text for part in wanted) and time.monotonic() < until:
            time.sleep(0.5)
            text = self.run(_TEXT)
        missing = [part for part in wanted if part not in text]
        assert not missing, f"{address} does not show {missing}, but:\n{text[:5000]}"
        time.sleep(2.0)  # curves are drawn after the texts are there
        return text, base64.b64decode(self._ask("get", "/screenshot"))

    def run(self, script):
        """What a script returns in the page."""
        return self._ask("post", "/execute/sync", script=script, args=[])

    def close(self):
        """Ends the browser and its driver."""
        try:
            self._ask("delete", "")
        finally:
            self._driver.terminate()
            self._driver.wait()
