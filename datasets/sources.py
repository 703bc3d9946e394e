"""Raw inputs: finds files and streams the documents that they hold.

A name is read from its right end: a compression (.gz .xz .zst .bz2, or none), then a format (.txt,
.jsonl, .json, .dat, .tar). Every combination works, so `.jsonl.zst`, `.txt.xz`, `.tar.gz` and
lm_dataformat's archives need no code of their own, and members of a tar are named the same way.
Nothing is extracted to disk; only one document (and for .json one file) is in memory at a time, and
its size has a limit, which what unpacks without end meets.
"""

import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tensorflow as tf  # noqa: E402
from streams import BROKEN, RemoteFile  # noqa: E402
from unpacking import (  # noqa: E402
    TooLargeError,
    decompressed,
    first,
    lines,
    one_line,
    refuse_tar,
    split_name,
    tar_members,
    whole,
)

from configs.errors import UserError  # noqa: E402
from encoders.base import join_surrogates  # noqa: E402
from records import retrying  # noqa: E402

TFDS = "tfds:"
LARGEST = 1 << 30  # bytes of a document, unless more are stored
_SCAN = json.JSONDecoder().scan_once
_BLANK = object()
GLOB = re.compile(r"[*?\[{]")


def natural_key(path):
    """A sort key under which shard_2 comes before shard_10."""
    return [(int(part), part) if part.isdigit() else (0, part)
            for part in re.split(r"([0-9]+)", path)]


def kinds(forms):
    """The endings of names that can be read, for a message; `forms` are the formats' own."""
    return (f"{' '.join(forms)} .index, each but .index also with .gz .xz .zst or .bz2; .tgz, .gz, "
            ".xz, .zst, .bz2")


def list_files(paths, ignored=None, forms=None):
    """Lists input files.

    Args:
        paths: one path or several: a file, a directory (walked, hidden names skipped), a glob, or
            an index: a file whose name ends in `.index` and which lists such paths, one a line.
        ignored: a list that receives the files of unknown kind found in directories and globs.
        forms: the formats' endings; without it those of READERS.

    Returns:
        The files' paths, each once, in natural order (2 before 10).

    Raises:
        UserError: a path matches nothing, or a file that was named is of no known kind.
    """
    found = {}
    for path in [paths] if isinstance(paths, str) else paths:
        for file in _expand(path, ignored if ignored is not None else [], forms or READERS):
            found[file] = None
    return sorted(found, key=natural_key)


def _expand(path, ignored, forms):
    """Yields the files that one path given by the user stands for."""
    if tf.io.gfile.isdir(path):
        candidates = list(_walk(path))
    elif tf.io.gfile.exists(path):
        if path.endswith(".index"):
            yield from _index(path, ignored, forms)
        elif split_name(path, forms) is None:
            raise UserError(f"{path}: of no known kind; the name must end in {kinds(forms)}")
        else:
            yield path
        return
    elif GLOB.search(path):
        candidates = []
        for match in tf.io.gfile.glob(path):
            candidates += list(_walk(match)) if tf.io.gfile.isdir(match) else [match]
    else:
        raise UserError(f"{path}: no such file or directory")
    known = [file for file in candidates if split_name(file, forms) is not None]
    ignored.extend(file for file in candidates if split_name(file, forms) is None)
    if not known:
        raise UserError(f"{path}: no input files there; names must end in {kinds(forms)}")
    yield from known


def _walk(directory):
    """Yields the files under a directory whose path below it has no hidden part."""
    for folder, folders, files in tf.io.gfile.walk(directory):
        # gfile.walk lists folders with a trailing slash on some file systems
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(part.startswith(".") for part in folder[len(directory):].split("/")):
            continue
        for name in files:
            if not name.startswith("."):
                yield os.path.join(folder, name)


def _index(path, ignored, forms):
    """Yields the files that an index file lists."""
    with tf.io.gfile.GFile(path) as file:
        lines = [line.strip() for line in file.read().splitlines()]
    for line in lines:
        if line and not line.startswith("#"):
            yield from _expand(line, ignored, forms)


def size_of(path):
    """The size of an input in bytes as stored (for TFDS: of the split); 0 if it has none."""
    if path.startswith(TFDS):
        from tfds_source import split_bytes
        return split_bytes(path[len(TFDS):])
    try:
        return tf.io.gfile.stat(path).length
    except retrying.TRANSIENT:
        raise
    except tf.errors.OpError:
        return 0  # a link to nowhere; reading it will say what is wrong


class _Report:
    """Where problems go: raised at once, or given to a callback so that reading can go on.

    Attributes:
        largest: bytes of a document, or of a .json file, beyond which it is a problem.
    """

    def __init__(self, on_bad, largest):
        self._on_bad, self.largest = on_bad, largest

    def bad(self, where, why):
        """Reports that what `where` names cannot be used."""
        message = one_line(f"{where}: {why}")
        if self._on_bad is None:
            raise UserError(f"{message}; mend or remove it, or skip such inputs (--on_error skip)")
        self._on_bad(message)


def documents(path, text_key="text", on_bad=None, on_read=None, largest=LARGEST):
    """Streams the documents of one input.

    Args:
        path: a file that `list_files` gave, or `tfds:NAME[:split]`.
        text_key: the JSON key (TFDS feature) that holds the text.
        on_bad: called with one line for each file, archive member or JSON line that is unreadable
            or empty; reading then goes on behind it. None: such an input raises UserError.
        on_read: called with the number of stored bytes after each read, for progress bars.
        largest: bytes of a document, and of a .json file, beyond which it is not read; more are
            read of an input that holds more as it is stored.

    Yields:
        str, each document as stored (line ends untouched, a byte order mark removed). Lone
        surrogates in JSON, which no UTF-8 can hold, become U+FFFD.

    Raises:
        UserError: names the file, the member and the line.
    """
    report = _Report(on_bad, max(largest, size_of(path)))
    if path.startswith(TFDS):
        from tfds_source import read_tfds
        yield from read_tfds(path[len(TFDS):], text_key, on_read)
        return
    try:
        with RemoteFile(path, on_read) as file:
            yield from _read(path, file, text_key, report)
    except retrying.TRANSIENT:
        raise
    except BROKEN as error:
        report.bad(path, f"unreadable: {error or type(error).__name__}")


def _read(name, stream, text_key, report):
    """Yields the documents of one stream, read as its name says; reports it if it has none."""
    form, compression = split_name(name, READERS)
    count = 0
    for text in READERS[form](name, decompressed(stream, compression), text_key, report):
        count += 1
        yield text
    if not count:
        report.bad(name, "empty: it holds no documents")


def _read_text(name, stream, text_key, report):
    """A text file is one document."""
    data = whole(stream, report.largest)
    if data:
        refuse_tar(data)
        yield data.decode("utf-8-sig")


def _text_of(record, text_key):
    """The text of a JSON record: lm_dataformat allows bare strings and lists of paragraphs."""
    text = record if isinstance(record, str) else record[text_key]
    if isinstance(text, list):
        text = "\n\n".join(text)
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} where a string belongs")
    if text.isascii():
        return text
    return join_surrogates(text)


def _records(where, records, parse, text_key, report):
    """Yields the texts of (number, record) pairs, reporting those that have none.

    Args:
        where: what stands before a record's number in messages.
        parse: a function from a record to its JSON value, or to _BLANK if it is none.
    """
    for number, record in records:
        try:
            value = parse(record)
            if value is _BLANK:
                continue
            text = _text_of(value, text_key)
        except KeyError:
            report.bad(f"{where} {number}",
                       f"no key {text_key!r}; name the text's key with --text_key")
        except (ValueError, TypeError, RecursionError) as error:
            report.bad(f"{where} {number}", f"not a JSON record with text: {error}")
        else:
            yield text


def _read_jsonl(name, stream, text_key, report):
    """One JSON record a line: {"text": …, …} or a bare string."""
    yield from _records(f"{name} line", enumerate(lines(stream, report.largest), 1), _parsed,
                        text_key, report)


def _parsed(line):
    """json.loads of a line, which of short lines takes three times as long."""
    try:
        text = line.decode()
        value, end = _SCAN(text, 0)
        if text[end:] in ("\n", "\r\n", ""):
            return value
    except (ValueError, StopIteration):
        pass
    if line.isspace():
        return _BLANK
    return json.loads(line)  # blanks around it, another encoding, or an error that says where


def _read_json(name, stream, text_key, report):
    """One JSON list of records (lm_dataformat's .json.zst), or a single record."""
    try:
        content = json.loads(whole(stream, report.largest))
    except (ValueError, RecursionError) as error:
        report.bad(name, f"not JSON: {error}")
        return
    content = content if isinstance(content, list) else [content]
    yield from _records(f"{name} record", enumerate(content), lambda record: record, text_key,
                        report)


def _read_dat(name, stream, text_key, report):
    """lm_dataformat's old archive: 16 decimal digits give a length, then come that many bytes."""
    while True:
        head = stream.read(16)
        if not head:
            return
        if len(head) < 16 or not head.isdigit():
            raise EOFError(f"16 digits expected where {head!r} stands")
        size = int(head)
        if size > report.largest:
            raise TooLargeError(report.largest)
        data = first(stream, size)
        if len(data) < size:
            raise EOFError(f"document of {size} bytes cut off after {len(data)}")
        yield data.decode("utf-8")


def _read_tar(name, stream, text_key, report):
    """The members of a tar, in their order, each read as its own name says."""
    for member, file in tar_members(stream):
        where = f"{name}:{member.name}"
        if split_name(member.name, READERS) is None:
            report.bad(where, f"of no known kind; the name must end in {kinds(READERS)}")
            continue
        try:
            if split_name(member.name, READERS) in WHOLE and member.size > report.largest:
                raise TooLargeError(report.largest)
            yield from _read(where, file, text_key, report)
        except retrying.TRANSIENT:
            raise
        except BROKEN as error:
            # If it is the archive that is cut off, the way to the next member will say so too.
            report.bad(where, f"unreadable: {error or type(error).__name__}")


# What is read whole, and says before how large it is.
WHOLE = ((".txt", ""), (".json", ""))
READERS = {".txt": _read_text, ".jsonl": _read_jsonl, ".json": _read_json, ".dat": _read_dat,
           ".tar": _read_tar}
