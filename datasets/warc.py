"""WARC records and the HTTP responses in them (ISO 28500; RFC 9112, sections 5 to 7).

Nothing here imports TensorFlow: worker processes import this module.
"""

import re
import typing
import zlib

from unpacking import BLOCK

LONGEST_LINE = 1 << 16
HEADER_LINES = 1000
CHUNK_SIZE = re.compile(rb"\s*([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
END_OF_HEAD = re.compile(rb"\r?\n\r?\n")


class Record(typing.NamedTuple):
    """A record of a WARC file: `head` with names in lower case; `block` is None if too large."""

    number: int
    kind: str
    head: dict
    size: int
    block: bytes | None


def records(stream, largest, wanted):
    """Streams the records of an uncompressed WARC file.

    Args:
        stream: a buffered binary stream.
        largest: bytes of a record's block beyond which it is passed over and not held.
        wanted: the types of records whose blocks are of use.

    Yields:
        Record, of the types wanted.

    Raises:
        EOFError: the file is cut off, or something else stands where a record has to begin.
    """
    number = 0
    while line := _line(stream):
        if not line.strip():
            continue
        if not re.fullmatch(rb"WARC/\d+\.\d+", line.strip()):
            raise EOFError(f"record {number}: WARC/1.0 expected where {line[:40]!r} stands")
        head = _fields(stream, number)
        kind, size = head.get("warc-type", "").lower(), head.get("content-length", "")
        if not re.fullmatch(r"\d{1,18}", size):
            raise EOFError(f"record {number}: Content-Length {size[:40]!r}")
        size = int(size)
        block = _block(stream, size, hold=kind in wanted and size <= largest, number=number)
        if kind in wanted:
            yield Record(number, kind, head, size, block)
        number += 1


def _line(stream):
    """The next line; a longer one than any header's is cut, which is then refused as damage."""
    return stream.readline(LONGEST_LINE)


def _fields(stream, number):
    """Reads named fields up to the empty line; lines that begin with white space go on."""
    lines = []
    while (line := _line(stream)).strip():
        if line[:1] in b" \t" and lines:
            lines[-1] += b" " + line.strip()
        else:
            lines.append(line)
        if len(lines) > HEADER_LINES:
            raise EOFError(f"record {number}: a header of more than {HEADER_LINES} lines")
    if not line:
        raise EOFError(f"record {number}: cut off in its header")
    return _parse(lines)


def _parse(lines):
    """{name in lower case: value} of header lines, the first of each name."""
    fields = {}
    for line in lines:
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _block(stream, size, hold, number):
    """Reads a record's block, or reads past it; a few MB are held at a time in the second case."""
    parts, left = [], size
    while left:
        data = stream.read(min(left, BLOCK))
        if not data:
            raise EOFError(f"record {number}: cut off, {left} of {size} bytes are missing")
        left -= len(data)
        if hold:
            parts.append(data)
    return b"".join(parts) if hold else None


def http_response(block):
    """Takes an HTTP response apart.

    Returns:
        (status, {header's name in lower case: value}, body as sent).

    Raises:
        ValueError: it does not begin as a response does.
    """
    end = END_OF_HEAD.search(block)
    head, body = (block[:end.start()], block[end.end():]) if end else (block, b"")
    lines = head.splitlines()
    status = re.match(rb"HTTP/[\d.]+\s+(\d{3})\b", lines[0] if lines else b"")
    if not status:
        raise ValueError(f"no HTTP response: {block[:40]!r}")
    return int(status[1]), _parse(lines[1:]), body


def decoded_body(fields, body, largest):
    """Undoes an HTTP body's chunks and compression.

    Crawlers that store decoded bodies often leave the headers as they were; what does not look
    encoded is taken as it is.

    Args:
        fields: the response's headers.
        body: the body as sent.
        largest: bytes at which decompression stops.

    Returns:
        the body; one of more than `largest` bytes is cut somewhere behind them.

    Raises:
        ValueError, EOFError, zlib.error: it cannot be decoded.
    """
    if "chunked" in fields.get("transfer-encoding", "").lower() and CHUNK_SIZE.match(body):
        body = _joined_chunks(body)
    for coding in reversed(fields.get("content-encoding", "").lower().split(",")):
        coding = coding.strip()
        if coding in ("gzip", "x-gzip"):
            if body.startswith(b"\x1f\x8b"):
                body = _inflated(body, largest, 31)
        elif coding == "deflate":
            # By the standard a zlib stream; some servers send the bare one.
            zlib_stream = len(body) > 1 and not int.from_bytes(body[:2], "big") % 31
            body = _inflated(body, largest, 15 if zlib_stream else -15)
        elif coding == "br":
            body = _unbrotlied(body, largest)
        elif coding not in ("", "identity"):
            raise ValueError(f"Content-Encoding {coding[:40]}")
    return body


def _joined_chunks(body):
    """The chunks of a chunked body, joined."""
    parts, at = [], 0
    while size := CHUNK_SIZE.match(body, at):
        count = int(size[1], 16)
        if not count:
            return b"".join(parts)
        at = size.end() + count
        if at > len(body):
            break
        parts.append(body[size.end():at])
        at += len(re.match(rb"\r?\n|", body[at:at + 2])[0])
    raise EOFError("a chunked body is cut off")


def _inflated(body, largest, wbits):
    """Decompressed zlib data, no more than one byte over `largest`."""
    decoder = zlib.decompressobj(wbits)
    data = decoder.decompress(body, largest + 1)
    if not decoder.eof and len(data) <= largest:
        raise EOFError("a compressed body is cut off")
    return data


def _unbrotlied(body, largest):
    """Decompressed brotli data, little more than `largest`."""
    import brotli
    decoder, parts, size = brotli.Decompressor(), [], 0
    try:
        while size <= largest and not decoder.is_finished():
            data = decoder.process(b"" if parts else body, output_buffer_limit=BLOCK)
            if not data and not decoder.is_finished():
                raise EOFError("a compressed body is cut off")
            parts.append(data)
            size += len(data)
    except brotli.error as error:
        raise ValueError(f"a body is no brotli stream: {error}") from error
    return b"".join(parts)
