"""Where the rows of training come from: files, records and byte offsets, found again by position.

What comes at a position is a function of (config, position), so nothing has to be noted while a run
reads.
"""

import numpy as np
import tensorflow.compat.v1 as tf

from records.mixing import mixing_table
from records.shard import token_ids, walk


def of_rows(seed, entries, readers, start, count):
    """The records that rows begin in.

    Args:
        seed: the run's seed.
        entries: the configs.values.DatasetEntry of each dataset.
        readers: the records.windows.Windows of each.
        start: the first row since the run's start. count: how many.

    Returns:
        for each row a list of (dataset id, file, number of the record in it, byte offset): the
        record in which a window of a stream begins, or each document that is stitched.
    """
    positions = np.arange(start, start + count)
    owners, own = _owners(seed, entries, positions)
    found = [None] * count
    for number, (entry, reader) in enumerate(zip(entries, readers, strict=True)):
        rows = np.flatnonzero(owners == number)
        for row, items in zip(rows, reader.origins(own[rows]), strict=True):
            found[row] = [(entry.id, *_place(reader, int(item))) for item in items]
    return found


def _owners(seed, entries, positions):
    """The dataset of each position of a mix, and the position in that dataset."""
    if len(entries) == 1:
        return np.zeros_like(positions), positions
    table = mixing_table(seed, entries)
    rank = np.zeros_like(table)
    for number in range(len(entries)):
        mine = table == number
        rank[mine] = np.arange(mine.sum())
    periods, rest = np.divmod(positions, len(table))
    owners = table[rest]
    return owners, periods * np.bincount(table, minlength=len(entries))[owners] + rank[rest]


def _place(windows, item):
    """(file, record in it, byte offset) of a token or a record of a split."""
    reader = windows.reader
    marks = reader.mark_token if windows.of_tokens else reader.mark_record[:-1]
    mark = int(np.searchsorted(marks, item, side="right")) - 1
    shard = int(np.searchsorted(reader.record_start, reader.mark_record[mark], side="right")) - 1
    path, ahead = reader.paths[shard], item - int(marks[mark])
    record = int(reader.mark_record[mark] - reader.record_start[shard])
    with tf.io.gfile.GFile(path, "rb") as file:
        for offset, length, _ in walk(path, int(reader.mark_offset[mark])):
            held = 1
            if windows.of_tokens:
                held = len(token_ids(file, offset, length) or ()) + (reader.separator is not None)
            if ahead < held:
                return path, record, offset
            ahead, record = int(ahead - held), record + 1
    return path, record, None  # it has been cut since
