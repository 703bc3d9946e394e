"""Finds the inputs of a command line and reads their documents in batches."""

import collections
import random
import sys

import sources
from encoding import Document

from configs.errors import UserError

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 4096

Batch = collections.namedtuple("Batch", "documents end read problems")
Batch.__doc__ = """Documents, and what was met on the way to them.

`end` is the place behind them, [number of the file in reading order, documents of it that are
done]; `read` the stored bytes read, `problems` lines on inputs left out, both since the batch
before.
"""


def find_inputs(args):
    """The inputs in natural order, and the size in bytes of each.

    Raises:
        UserError: an input is missing, or empty and not to be skipped.
    """
    ignored = []
    paths = sources.list_files(args.input_dir, ignored) if args.input_dir else []
    if args.tfds:
        paths.append(sources.TFDS + args.tfds)
    if ignored:
        print(f"ignored {len(ignored)} files of other kinds: {_some(ignored)}",
              file=sys.stderr)
    sizes = [sources.size_of(path) for path in paths]
    empty = [path for path, size in zip(paths, sizes, strict=True) if not size]
    if empty and args.on_error == "refuse":
        raise UserError(f"empty or unreadable: {_some(empty)}; remove them, or skip such inputs "
                        "(--on_error skip)")
    return paths, sizes


def _some(paths):
    """The first few of many paths, for a message."""
    return ", ".join([*sorted(paths)[:5], *(["…"] if len(paths) > 5 else [])])


def reading_order(count, seed):
    """The numbers 0 … count-1 as the seed shuffles them."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def read_batches(args, paths, begin):
    """Reads documents in batches of bounded size.

    Args:
        args: the command line.
        paths: all inputs in natural order.
        begin: the place to begin at, as in Batch.end.

    Yields:
        Batch; the last one ends behind the last file.
    """
    held, characters, read, problems = [], 0, [0], []

    def add_read(count):
        read[0] += count

    def take(end):
        nonlocal held, characters, problems
        batch = Batch(held, end, read[0], problems)
        held, characters, problems, read[0] = [], 0, [], 0
        return batch

    order = reading_order(len(paths), args.seed)
    for place in range(begin[0], len(paths)):
        path = paths[order[place]]
        on_bad = None if args.on_error == "refuse" else lambda line: problems.append(line)
        stream = sources.documents(path, args.text_key, on_bad, add_read, args.maximum_size)
        for number, text in enumerate(stream):
            if place == begin[0] and number < begin[1]:
                continue
            held.append(Document(path, order[place], number, text))
            characters += len(text)
            if characters >= BATCH_CHARACTERS or len(held) >= BATCH_DOCUMENTS:
                yield take([place, number + 1])
    yield take([len(paths), 0])
