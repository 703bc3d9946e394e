"""Reads the files that encoders are made of."""

import gzip
import importlib.util
import io
import json
import os
import zlib

from configs.errors import UserError

LONGEST_MERGES = 1 << 26  # CLIP's, the longest known, unpack to 3 MB


def read_bytes(path: str) -> bytes:
    """The content of a file of the user's: local, or on any file system TensorFlow knows.

    Raises:
        UserError: the file cannot be read.
    """
    import tensorflow.compat.v1 as tf  # here, because most encoders need no file of the user's

    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except (tf.errors.OpError, OSError) as error:
        reason = "no such file" if isinstance(error, tf.errors.NotFoundError) else (
            str(getattr(error, "message", error)).splitlines() or ["unreadable"])[0]
        raise UserError(f"encoder file {path}: {reason}") from None


def exists(path: str) -> bool:
    """Whether a path of the user's exists."""
    import tensorflow.compat.v1 as tf

    return tf.io.gfile.exists(path)


def package_bytes(package: str, *names: str) -> bytes | None:
    """The content of a data file inside an installed package, which is not imported.

    Returns:
        None if the package is not installed or holds no such file.
    """
    spec = importlib.util.find_spec(package)
    get_data = getattr(spec and spec.loader, "get_data", None)
    # A mere directory of that name on the path has no such loader.
    if spec is None or get_data is None:
        return None
    for directory in spec.submodule_search_locations or ():
        try:
            return get_data(os.path.join(directory, *names))
        except OSError:
            continue
    return None


def parse_json(data: bytes, path: str) -> dict:
    """The JSON object in a file's bytes.

    Raises:
        UserError: the bytes are no JSON object.
    """
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"encoder file {path} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise UserError(f"encoder file {path} is not a JSON object")
    return parsed


def parse_merges(data: bytes, path: str) -> list[tuple[str, str]]:
    """The merges of a BPE, best first, from text or gzipped text with one pair a line.

    A first line that is not a pair of symbols but a note of the version is left out.

    Raises:
        UserError: a line is not a pair, or the bytes are not text.
    """
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(LONGEST_MERGES + 1)
            if len(data) > LONGEST_MERGES:
                raise UserError(f"merges file {path} unpacks to more than {LONGEST_MERGES} bytes; "
                                "it is no merges file")
        lines = data.decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"merges file {path} is damaged: {error}") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if number == 1 and "#version" in line:
            continue
        pair = line.split()
        if len(pair) == 2:
            merges.append((pair[0], pair[1]))
        elif pair:
            raise UserError(f"merges file {path}, line {number}: not a pair of symbols: "
                            f"{line[:40]!r}")
    return merges
