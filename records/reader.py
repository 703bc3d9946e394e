"""Ranges of a split's tokens or records, read by TensorFlow graph operations alone.

On TPUs the input pipeline runs on the TPU's host, so nothing here calls back into Python. A range
may cross shards; each shard is entered at the nearest indexed record before the range.
"""

import numpy as np
import tensorflow.compat.v1 as tf

from configs.dataset import RECORDS_PER_INDEX_ENTRY
from records.shard import FEATURE

READ_BYTES = 1 << 20


class Reader:
    """Reads ranges of one split.

    Positions count from the split's first token or record, over all its shards.

    Args:
        split: a records.splits.Split.
        n_vocab: ids have to be below it.
    """

    def __init__(self, split, n_vocab):
        shards = [shard for shard in split.shards if shard.tokens]
        self.dataset = split.dataset
        self.n_vocab = n_vocab
        self.separator = split.separator
        self.paths = [shard.path for shard in shards]
        self.shortest = _int64([max(shard.shortest, 1) for shard in shards])
        self.token_start = _starts([shard.tokens for shard in shards])
        self.record_start = _starts([shard.records for shard in shards])
        marks = [(offset, tokens + self.token_start[number])
                 for number, shard in enumerate(shards) for offset, tokens in shard.index]
        self.mark_offset, self.mark_token = _int64(marks).T
        self.mark_record = np.concatenate(
            [self.record_start[number] + _marked_records(shard)
             for number, shard in enumerate(shards)] + [self.record_start[-1:]])

    def tokens(self, begin, end):
        """Tokens begin … end - 1 of the stream: int32 [end - begin]; at least one."""
        return self._pieces(self.token_start, begin, end, self._tokens_of_shard, (tf.int32,))[0]

    def documents(self, begin, end):
        """Records begin … end - 1: their tokens, int32 [tokens], and lengths, int64 [records]."""
        return self._pieces(self.record_start, begin, end, self._documents_of_shard,
                            (tf.int32, tf.int64))

    def examples(self, begin, end):
        """Records begin … end - 1 as they are stored: string [end - begin]."""
        return self._pieces(self.record_start, begin, end,
                            lambda *shard_range: (self._examples_of_shard(*shard_range),),
                            (tf.string,))[0]

    def place_of(self, record):
        """Where a record is: its number in its shard, int64, and the shard's path, a string."""
        shard = tf.searchsorted(self.record_start, [record], side="right")[0] - 1
        return record - tf.constant(self.record_start)[shard], tf.constant(self.paths)[shard]

    def _pieces(self, starts, begin, end, read, dtypes):
        """What `read` gives of each shard that the range touches, concatenated."""
        first = tf.searchsorted(starts, [begin], side="right")[0] - 1
        last = tf.searchsorted(starts, [end - 1], side="right")[0] - 1
        starts = tf.constant(starts)

        def join(shard, *parts):
            low = tf.maximum(begin, starts[shard])
            piece = read(shard, low, tf.minimum(end, starts[shard + 1]))
            return shard + 1, *(tf.concat(pair, 0) for pair in zip(parts, piece, strict=True))

        # A loop rather than Dataset.reduce: that takes 35 ms to set its function up at every call.
        return tf.while_loop(
            lambda shard, *parts: shard <= last, join,
            (first, *(tf.zeros([0], dtype) for dtype in dtypes)), parallel_iterations=1,
            shape_invariants=(first.shape, *(tf.TensorShape([None]) for _ in dtypes)))[1:]

    def _tokens_of_shard(self, shard, begin, end):
        """The tokens of a range that lies within one shard."""
        mark = tf.searchsorted(self.mark_token, [begin], side="right")[0] - 1
        stop = tf.searchsorted(self.mark_token, [end], side="left")[0]
        before = tf.constant(self.mark_token)[mark]
        records = tf.constant(self.mark_record)
        # Enough records: up to the next indexed one, or what the shortest record allows.
        enough = -(-(end - before) // tf.constant(self.shortest)[shard])
        count = tf.minimum(records[stop] - records[mark], enough)
        texts = self._parsed(self._records(shard, mark, 0, count))
        return (self._checked(texts.values[begin - before:end - before], end - begin, shard),)

    def _documents_of_shard(self, shard, begin, end):
        """The tokens and lengths of a range of records that lies within one shard."""
        texts = self._parsed(self._examples_of_shard(shard, begin, end))
        lengths = tf.cast(texts.row_lengths(), tf.int64)
        return self._checked(texts.values, tf.reduce_sum(lengths), shard), lengths

    def _examples_of_shard(self, shard, begin, end):
        """The stored records of a range that lies within one shard."""
        mark = tf.searchsorted(self.mark_record[:-1], [begin], side="right")[0] - 1
        skipped = begin - tf.constant(self.mark_record)[mark]
        records = self._records(shard, mark, skipped, end - begin)
        with tf.control_dependencies([self._assert_count(tf.size(records), end - begin, shard)]):
            return tf.identity(records)

    def _records(self, shard, mark, skipped, count):
        """`count` records, `skipped` after an indexed one, as they are stored: string [count]."""
        offset = tf.constant(self.mark_offset)[mark]
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=[tf.constant(self.paths)[shard]], compression_type="",
            buffer_size=READ_BYTES, byte_offsets=[offset])
        found = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
        return found.skip(skipped).take(count).batch(count).get_single_element()

    def _parsed(self, records):
        """The ids of stored records, each with its separator: ragged int64 [records, tokens]."""
        texts = tf.io.parse_example(records, FEATURE)["text"]
        if self.separator is None:
            return texts
        ends = tf.fill([texts.nrows(), 1], tf.constant(self.separator, tf.int64))
        return tf.concat([texts, ends], axis=1)

    def _checked(self, ids, expected, shard):
        """The ids as int32, once their number and range are known to be right."""
        in_range = tf.reduce_all((ids >= 0) & (ids < self.n_vocab))
        message = (f"dataset {self.dataset}: token ids have to be below {self.n_vocab}, and these "
                   "(lowest, highest) are not:")
        asserts = [self._assert_count(tf.size(ids), expected, shard),
                   tf.debugging.Assert(in_range, [message, tf.constant(self.paths)[shard],
                                                  tf.reduce_min(ids), tf.reduce_max(ids)])]
        with tf.control_dependencies(asserts):
            return tf.cast(ids, tf.int32)

    def _assert_count(self, found, expected, shard):
        """Fails where a shard holds less than its manifest or scan says."""
        found = tf.cast(found, tf.int64)
        message = f"dataset {self.dataset}: a shard holds less than it held (found, expected):"
        return tf.debugging.Assert(tf.equal(found, expected),
                                   [message, tf.constant(self.paths)[shard], found, expected])


def _int64(values):
    """The values as a numpy array that TensorFlow takes as int64."""
    return np.asarray(values, np.int64)


def _starts(counts):
    """Where each shard starts, and the total at the end: [shards + 1]."""
    return np.concatenate([_int64([0]), np.cumsum(_int64(counts))])


def _marked_records(shard):
    """Numbers of the indexed records of a shard."""
    return np.arange(len(shard.index), dtype=np.int64) * RECORDS_PER_INDEX_ENTRY
