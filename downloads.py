"""Files from the web: with progress, gone on with where they were cut off, and checked.

A file lies beside its place as `NAME.<version>.part` until it is whole; the version is of what the
server holds (its ETag), so that parts of two versions never become one file.
"""

import hashlib
import os
import time

import requests
import tensorflow.compat.v1 as tf

from configs.errors import UserError
from configs.progress import tqdm

WAITS = (1.0, 5.0)  # seconds before another try, after tries that brought nothing new
_CHUNK = 1 << 16  # bytes; what is cut off loses less than that
_PATIENCE = (10, 60)  # seconds for a connection, and between two pieces of a file


class Unreachable(UserError):
    """The network, or the server, does not give a file; the reason is the message."""


def fetch(url, path, sha256=None, headers=None):
    """Downloads a file to a path of any file system that TensorFlow knows, unless it is there.

    Args:
      url: where it is.
      path: where it goes; its directory is made.
      sha256: its SHA-256 in hexadecimal digits, if known.
      headers: of the request, such as an authorization.

    Raises:
      Unreachable: it cannot be had; what has come is kept, and the next call goes on from there.
      UserError: it is another file than its checksum says. A new one is removed; one that was
        there is kept.
    """
    # Where there are no directories, what another name begins with is taken for one.
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        found = sha256 and digest(path)
        if found != sha256:
            raise UserError(f"{path}: is another file than {url}: its SHA-256 is {found} and not "
                            f"{sha256}; move it away")
        return
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    part = _with_patience(url, path, headers or {})
    found = sha256 and digest(part)
    if found != sha256:
        tf.io.gfile.remove(part)
        raise UserError(f"{url}: came as another file: its SHA-256 is {found} and not {sha256}; it "
                        "is removed; try again, or fetch the file from elsewhere")
    tf.io.gfile.rename(part, path, overwrite=True)


def digest(path):
    """The SHA-256 of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while piece := file.read(_CHUNK):
            found.update(piece)
    return found.hexdigest()


def _with_patience(url, path, headers):
    """Transfers the file, in several tries; returns the path of the whole part."""
    tries = 0
    while True:
        before = _held(path)
        try:
            return _transfer(url, path, headers)
        except requests.RequestException as error:
            # A connection that brings something each time is slow, and not broken.
            tries = 0 if _held(path) > before else tries + 1
            status = error.response is not None and error.response.status_code
            # A ValueError is about the URL itself.
            lasting = (status and status < 500 and status not in (408, 429)
                       or isinstance(error, ValueError))
            if lasting or tries > len(WAITS):
                raise Unreachable(f"{url} cannot be had ({_reason(error)})") from error
            time.sleep(WAITS[max(tries - 1, 0)])


def _reason(error):
    if error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    names = {requests.Timeout: "no answer in time", requests.ConnectionError: "no connection"}
    return next((text for kind, text in names.items() if isinstance(error, kind)),
                type(error).__name__)


def _part(path):
    """The part of a file that has come so far, or None."""
    found = tf.io.gfile.glob(f"{_literally(path)}.*.part")
    return found[0] if found else None


def _literally(path):
    """A pattern that matches a path and nothing else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def _held(path):
    """How many bytes have come so far."""
    part = _part(path)
    return tf.io.gfile.stat(part).length if part else 0


def _transfer(url, path, headers):
    """Gets what is missing of a file; returns the path of the whole part.

    Raises:
      requests.RequestException: it was cut off, or refused.
    """
    old, start = _part(path), _held(path)
    wanted = {"Accept-Encoding": "identity", **headers}
    if start:
        wanted["Range"] = f"bytes={start}-"
    with requests.get(url, headers=wanted, stream=True, timeout=_PATIENCE) as response:
        part = f"{path}.{_version(response)}.part"
        # 416: there is nothing after what has come. It is the whole file, or more than that.
        if response.headers.get("Content-Range") == f"bytes */{start}":
            return old
        if response.status_code != 416:
            response.raise_for_status()
        usable = response.status_code == 206 and part == old
        if old and not usable:
            tf.io.gfile.remove(old)
            if response.status_code != 200:
                return _transfer(url, path, headers)
        _save(response, part, start if usable else 0)
    return part


def _version(response):
    told = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _save(response, part, start):
    """Adds a response's bytes to a part that has `start` of them.

    Raises:
      requests.ConnectionError: there are fewer than the server told.
    """
    told = response.headers.get("Content-Length")
    total = start + int(told) if told else None
    name = os.path.basename(part).rsplit(".", 2)[0]
    with (tf.io.gfile.GFile(part, "ab" if start else "wb") as file,
          tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name,
               leave=False) as bar):
        for piece in response.iter_content(_CHUNK):
            file.write(piece)
            bar.update(len(piece))
    if total is not None and tf.io.gfile.stat(part).length != total:
        raise requests.ConnectionError(f"{part} is shorter than {total} bytes")
