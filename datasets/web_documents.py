"""Documents of web archives: tars of text, WARC files and pages, found in streams.

What is cheap to find is found by the reading process; whatever takes time (decompressing an inner
archive, taking text out of a page) is left to `openwebtext_text`, which may run elsewhere.

Nothing here imports TensorFlow: worker processes import this module.
"""

import typing

import warc
from unpacking import DAMAGED, decompressed, one_line, split_name, tar_members

FORMS = (".txt", ".html", ".htm", ".warc", ".wet", ".tar")
HELD_ARCHIVE = 1 << 22  # bytes: larger inner archives are streamed and not handed on whole
HTTP_HEAD = 1 << 16  # bytes that an HTTP header may add to a page
WARC_KINDS = ("response", "resource", "conversion")


class Item(typing.NamedTuple):
    """What was found at one place.

    Attributes:
        kind: "text" (a .txt file), "plain" (a record of plain text), "html", "http" (a response
            with a page) or "archive", with the bytes in `data`; or "unreadable" or "too large",
            with the reason in it.
        where: the file, and the member or the record in it.
        url: the page's address, or None.
        data: bytes or str, see `kind`.
    """

    kind: str
    where: str
    url: str | None
    data: bytes | str


def items(where, stream, largest, hold_archives=True):
    """Streams what one input holds.

    Args:
        where: the input's name, by whose end it is read.
        stream: a binary stream of its stored bytes.
        largest: bytes of a document beyond which it is left out.
        hold_archives: whether small inner archives are handed on whole, as items.

    Yields:
        Item.

    Raises:
        DAMAGED: the input cannot be read on.
    """
    form, compression = split_name(where, FORMS)
    stream = decompressed(stream, compression)
    if form == ".tar":
        found = _tar(where, stream, largest, hold_archives)
    elif form in (".warc", ".wet"):
        found = _warc(where, stream, largest)
    else:
        found = _document("text" if form == ".txt" else "html", where, stream, largest)
    empty = True
    for item in found:
        empty = False
        yield item
    if empty:
        yield Item("unreadable", where, None, "empty: it holds no documents")


def _document(kind, where, stream, largest):
    """A file that is one document; nothing if it is empty."""
    data = stream.read(largest + 1)
    if len(data) > largest:
        yield Item("too large", where, None, f"more than {largest} bytes")
    elif data:
        yield Item(kind, where, None, data)


def _tar(name, stream, largest, hold_archives):
    """The members of a tar, each as its own name says."""
    for member, file in tar_members(stream):
        where = f"{name}:{member.name}"
        kind = split_name(member.name, FORMS)
        try:
            if kind is None:
                yield Item("unreadable", where, None, "of no known kind; the name must end in "
                           f"{' '.join(FORMS)}, perhaps with .gz .xz .zst or .bz2")
            elif not any(kind[1:]) and kind[0] in (".txt", ".html", ".htm"):
                yield from _member(where, kind[0], member.size, file, largest)
            elif hold_archives and member.size <= HELD_ARCHIVE:
                yield Item("archive", where, None, file.read())
            else:
                yield from items(where, file, largest, hold_archives)
        except DAMAGED as error:
            # If it is this archive that is cut off, the way to the next member will say so too.
            yield Item("unreadable", where, None, f"at byte {member.offset_data} of the tar: "
                       f"{reason(error)}")


def _member(where, form, size, file, largest):
    """A member that is a document as it is; its size is known before it is read."""
    if size > largest:
        yield Item("too large", where, None, f"{size} bytes")
    else:
        yield Item("text" if form == ".txt" else "html", where, None, file.read())


def _warc(name, stream, largest):
    """The pages and texts of a WARC file; images, redirects, errors and the like are passed by."""
    for record in warc.records(stream, largest + HTTP_HEAD, WARC_KINDS):
        url = record.head.get("warc-target-uri", "").strip("<>") or None
        where = f"{name} record {record.number}"
        media = record.head.get("content-type", "").partition(";")[0].strip().lower()
        kind = {"text/plain": "plain", "text/html": "html",
                "application/xhtml+xml": "html"}.get(media)
        if record.kind == "response":
            kind = "http" if media in ("application/http", "") else None
        if kind is None:
            continue
        if record.block is None:
            yield Item("too large", where, url, f"{record.size} bytes")
        else:
            yield Item(kind, where, url, record.block)


def reason(error):
    """An exception as the reason for which an item is unreadable."""
    return one_line(error) or type(error).__name__
