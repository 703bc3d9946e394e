"""What `skip_corrupt` makes of damaged files: the runs of whole records between the damages.

Each run is a Shard of its own whose index has offsets in the file, so all else reads it as it reads
any other; which rows come when follows from these Shards, in a resumed run as well.
"""

import logging
import os

import tensorflow.compat.v1 as tf

from configs.dataset import RECORDS_PER_INDEX_ENTRY
from configs.errors import UserError
from records.shard import Shard, token_ids, walk

MOST_NAMED = 5


def whole_parts(path):
    """The whole records of a file.

    Returns:
        None if nothing is wrong with it, else (a list of Shards, the byte offsets of the damages).
        Behind a length that cannot be trusted nothing is found again.

    Raises:
        UserError: a whole record is no tf.train.Example.
    """
    runs, damages = [[]], []
    for offset, length, problem in walk(path):
        if problem:
            damages.append(offset)
            runs.append([])
        else:
            runs[-1].append((offset, length))
    if not damages:
        return None
    size = tf.io.gfile.stat(path).length
    with tf.io.gfile.GFile(path, "rb") as file:
        return [_shard(path, size, file, run) for run in runs if run], damages


def _shard(path, size, file, run):
    """The Shard of records at (offset, length) that follow each other."""
    index, tokens, counts, ids = [], 0, [], []
    for number, (offset, length) in enumerate(run):
        if number % RECORDS_PER_INDEX_ENTRY == 0:
            index.append((offset, tokens))
        values = token_ids(file, offset, length)
        if values is None:
            raise UserError(f"{path}: the record at byte {offset} is whole, but no "
                            "tf.train.Example; only such shards can be read")
        counts.append(len(values))
        tokens += len(values)
        ids += [min(values), max(values)] if values else []
    return Shard(path, size, len(run), tokens, min(counts), max(counts), tuple(index),
                 lowest=min(ids, default=None), highest=max(ids, default=None))


def report(dataset, split, found, listed):
    """Says in a line for each damaged file, and one for all, what is left out.

    Args:
        dataset, split: their names.
        found: {path: what whole_parts returned} of the damaged files.
        listed: {path: the records that a manifest says}, where there is one.

    Returns:
        How many records are left out.
    """
    left_out = 0
    for path, (shards, damages) in found.items():
        whole = sum(shard.records for shard in shards)
        lost = listed[path] - whole if path in listed else len(damages)
        left_out += lost
        places = ", ".join(map(str, damages[:MOST_NAMED])) + ", …" * (len(damages) > MOST_NAMED)
        logging.warning("warning: %s: damaged at byte %s; %d records of it are read and %d are "
                        "left out (skip_corrupt)", path, places, whole, lost)
    if found:
        names = ", ".join(map(os.path.basename, found))
        logging.warning("warning: dataset %s, %s: %d records of %s left out (skip_corrupt)",
                        dataset, split, left_out, names)
    return left_out
