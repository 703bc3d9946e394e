"""Finds the inputs of a command line and reads their documents in batches."""

import collections
import itertools
import random
import sys

import sources
from encoding import Documents

from configs.errors import UserError

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 4096

Batch = collections.namedtuple("Batch", "documents end read problems")
Batch.__doc__ = """A list of encoding.Documents, and what was met on the way to them.

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
    held, count, characters, read, problems = [], 0, 0, [0], []

    def add_read(size):
        read[0] += size

    def take(end):
        nonlocal held, count, characters, problems
        batch = Batch([some for some in held if some.texts], end, read[0], problems)
        held, count, characters, problems, read[0] = [], 0, 0, [], 0
        return batch

    order = reading_order(len(paths), args.seed)
    for place in range(begin[0], len(paths)):
        path = paths[order[place]]
        on_bad = None if args.on_error == "refuse" else lambda line: problems.append(line)
        stream = sources.documents(path, args.text_key, on_bad, add_read, args.maximum_size)
        first = begin[1] if place == begin[0] else 0
        texts = []
        held.append(Documents(path, order[place], first, texts))
        for number, text in itertools.islice(enumerate(stream), first, None):
            texts.append(text)
            count += 1
            characters += len(text)
            if characters >= BATCH_CHARACTERS or count >= BATCH_DOCUMENTS:
                yield take([place, number + 1])
                texts = []
                held.append(Documents(path, order[place], number + 1, texts))
    yield take([len(paths), 0])
