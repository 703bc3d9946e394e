"""Several datasets mixed by weight, at positions that follow from the position in the mix."""

import zlib

import numpy as np
import tensorflow.compat.v1 as tf

from configs.errors import UserError
from records.windows import ENDLESS

MIX_PERIOD = 10_000


def mixing_table(seed, entries):
    """Which dataset each position of the mix's period belongs to: int64 [MIX_PERIOD].

    Shares are the weights' by largest remainder; the order is shuffled by the seed.

    Raises:
        UserError: a weight is too small to get a place.
    """
    weights = np.array([entry.weight for entry in entries], np.float64)
    exact = weights / weights.sum() * MIX_PERIOD
    counts = np.floor(exact).astype(np.int64)
    remainders = np.argsort(counts - exact, kind="stable")
    counts[remainders[:MIX_PERIOD - counts.sum()]] += 1
    for entry, count in zip(entries, counts, strict=True):
        if not count:
            raise UserError(f"dataset {entry.id}: weight {entry.weight:g} is less than one in "
                            f"{MIX_PERIOD} of all; raise it or take the dataset out")
    table = np.repeat(np.arange(len(entries)), counts)
    return np.random.RandomState(zlib.crc32(f"{seed}:mix".encode())).permutation(table)


def mixed(seed, entries, readers, start):
    """The windows of several datasets from a position on, in the table's order."""
    table = mixing_table(seed, entries)
    periods, rest = divmod(start, MIX_PERIOD)
    before = (periods * np.bincount(table, minlength=len(readers))
              + np.bincount(table[:rest], minlength=len(readers)))
    rows = [reader.shuffled(int(own)) for reader, own in zip(readers, before, strict=True)]
    choice = tf.data.Dataset.range(start, ENDLESS).map(
        lambda position: tf.constant(table)[position % MIX_PERIOD])
    return tf.data.Dataset.choose_from_datasets(rows, choice)
