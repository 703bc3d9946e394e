"""A web server on loopback that can be told to fail."""

import contextlib
import http.server
import re
import threading


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path, ranges of them too.

    Attributes:
      files: {path: bytes}.
      tags: {path: its ETag}; those that are missing are `"1"`.
      cuts: after how many bytes of a file the next answers end, one after the other.
      refusals: the statuses of the next answers, in place of a file.
      ranges: whether ranges are understood.
      asked: (path, Range or None) of each request.
    """

    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.tags, self.cuts, self.refusals = files, {}, [], []
        self.ranges, self.asked = True, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, path = self.server, self.path.partition("?")[0]
        begin = self.headers.get("Range")
        server.asked.append((path, begin))
        if server.refusals:
            self.send_error(server.refusals.pop(0))
        elif path not in server.files:
            self.send_error(404)
        else:
            start = int(re.fullmatch(r"bytes=(\d+)-", begin)[1]) if begin and server.ranges else 0
            self._send(server.files[path], start, server.tags.get(path, '"1"'))

    def _send(self, content, start, tag):
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(content[start:end])
        self.close_connection = True

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(files):
    """A Server of some files, which ends with the block."""
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def closed_port():
    """An address where nobody answers."""
    with Server({}) as server:
        return server.url
