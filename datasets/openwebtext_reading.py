"""Reads web archives in batches and has their texts made, here or in several processes."""

import typing

import parallel
from openwebtext_text import maker
from streams import BROKEN, RemoteFile
from web_documents import Item, items, reason

from records import retrying

BATCH_BYTES = 1 << 22
BATCH_ITEMS = 512
ARCHIVE_WEIGHT = 1 << 20  # an archive counts for so many bytes at least, for it will expand


class Batch(typing.NamedTuple):
    """Items; `end` is the place behind them, [number of the file, items of it that are done].

    `read` counts the stored bytes read since the batch before.
    """

    items: list
    end: list
    read: int


def read_batches(paths, sizes, begin, largest):
    """Reads inputs in batches of bounded size.

    Args:
        paths: all inputs, in order.
        sizes: the size in bytes of each.
        begin: the place to begin at, as in Batch.end.
        largest: bytes of a document beyond which it is left out.

    Yields:
        Batch; the last one ends behind the last file.
    """
    held, size, read = [], 0, [0]

    def add_read(count):
        read[0] += count

    for place in range(begin[0], len(paths)):
        for number, item in enumerate(_items(paths[place], sizes[place], largest, add_read)):
            if place == begin[0] and number < begin[1]:
                continue
            held.append(item)
            size += max(len(item.data), ARCHIVE_WEIGHT * (item.kind == "archive"))
            if size >= BATCH_BYTES or len(held) >= BATCH_ITEMS:
                yield Batch(held, [place, number + 1], read[0])
                held, size, read[0] = [], 0, 0
    yield Batch(held, [len(paths), 0], read[0])


def _items(path, size, largest, on_read):
    """The items of one input; damage is the last of them, with the place where it was met."""
    position = 0

    def count(number):
        nonlocal position
        position += number
        on_read(number)

    try:
        with RemoteFile(path, count) as file:
            yield from items(path, file, largest)
    except retrying.TRANSIENT:
        raise
    except BROKEN as error:
        yield Item("unreadable", path, None, f"within its first {position} of {size} bytes: "
                   f"{reason(error)}")


def texts_in_order(job, batches, processes):
    """Makes the texts of batches on so many processes; yields (Batch, Texts) in order."""
    if processes > 1:
        yield from parallel.in_order(maker, job, batches, lambda batch: batch.items, processes)
        return
    texts = maker(job)
    for batch in batches:
        yield batch, texts(batch.items)
