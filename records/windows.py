"""The order in which a split's windows are visited, and how windows are cut.

Every number here follows from the seed and a position by graph operations: a block's place in an
epoch and a window's place in its group are those of a keyed permutation of indices, so no list of
an epoch's order is ever made, and any position can be entered directly.
"""

import zlib

import numpy as np
import tensorflow.compat.v1 as tf

# Both are part of the order: another value changes which window comes when.
BLOCK_TOKENS = 1 << 18
GROUP_TOKENS = 1 << 23

ENDLESS = 1 << 62

# Windows of about so many tokens are cut from documents at once.
_PIECE_TOKENS = 1 << 16


def _blocks_of_a_group(block_tokens):
    """How many blocks of so many tokens make a group."""
    return max(1, int(GROUP_TOKENS // max(block_tokens, 1)))


class Windows:
    """The windows of a split in groups of blocks.

    Subclasses set `windows` (per epoch), `blocks`, `per_block` (windows of a full block),
    `full_blocks` and `group_blocks` (blocks of a group), and say how a group is loaded and cut. The
    last block may be shorter than others; it stays last, so that the place of every group is known.

    `of_tokens` says whether windows are cut from a stream of tokens rather than from records.

    None of these functions branches on a tensor, so AutoGraph, which would take some two seconds,
    leaves them as they are.
    """

    of_tokens = False

    def __init__(self, seed, windows, blocks, per_block, full_blocks, group_blocks):
        self.seed = seed
        self.windows = windows
        self.blocks = blocks
        self.full_blocks = full_blocks
        self.group_blocks = group_blocks
        self.per_group = self.group_blocks * per_block
        self.groups = -(-windows // self.per_group)

    @tf.autograph.experimental.do_not_convert
    def shuffled(self, start):
        """An endless dataset of rows from the start-th window that is drawn from this split on."""
        epoch, position = divmod(start, self.windows)
        first = epoch * self.groups + position // self.per_group
        skipped = position % self.per_group
        groups = tf.data.Dataset.range(first, ENDLESS).map(lambda turn: (turn, self._group(turn)))
        return groups.prefetch(1).flat_map(lambda turn, group: self._rows(
            turn, group, tf.where(tf.equal(turn, first), tf.constant(skipped, tf.int64), 0)))

    def origins(self, positions):
        """Where some rows of `shuffled(0)` begin.

        Args:
            positions: int64 numpy [rows].

        Returns:
            the number in the split of the token that each begins with, or of each of its records:
            a list of int64 numpy [1 or stitch].
        """
        epochs, within = np.divmod(positions, self.windows)
        turns = epochs * self.groups + within // self.per_group
        found = [None] * len(positions)
        for turn in np.unique(turns):
            rows = np.flatnonzero(turns == turn)
            with tf.Graph().as_default(), tf.Session() as session:
                chosen = tf.constant(within[rows] % self.per_group, tf.int64)
                values = session.run(self._origins(tf.constant(turn, tf.int64), chosen))
            for row, value in zip(rows, values, strict=True):
                found[row] = value
        return found

    def _group(self, turn):
        """The blocks of the turn-th group since the run's start, loaded and shuffled."""
        return self._load(*self._blocks(turn))

    def _blocks(self, turn):
        """The blocks of the turn-th group in their order, its epoch and its number there."""
        epoch, group = turn // self.groups, turn % self.groups
        begin = group * self.group_blocks
        last = tf.equal(group, self.groups - 1)
        places = tf.range(begin, tf.where(last, tf.constant(self.blocks, tf.int64),
                                          begin + self.group_blocks))
        moved = self.permuted(tf.minimum(places, max(self.full_blocks - 1, 0)),
                              max(self.full_blocks, 1), "blocks", epoch, 0)
        return tf.where(places < self.full_blocks, moved, places), epoch, group

    def permuted(self, indices, count, purpose, epoch, group):
        """The places that a shuffle of 0 … count - 1 gives to some indices: int64, same shape."""
        seed = tf.stack([self.number(purpose), tf.cast(epoch, tf.int32), tf.cast(group, tf.int32)])
        return tf.raw_ops.RandomIndexShuffle(index=indices, seed=seed, rounds=4,
                                             max_index=tf.cast(count, tf.int64) - 1)

    def number(self, purpose):
        """A number that differs between seeds, datasets and purposes."""
        return zlib.crc32(f"{self.seed}:{purpose}".encode()) & 0x7FFFFFFF


class Chunks(Windows):
    """Windows of a stream: window k is tokens k·n_ctx … k·n_ctx + n_ctx.

    Args:
        reader: a records.reader.Reader.
        n_ctx: targets of a window.
        tokens: length of the stream.
        seed: text that the order follows from.
        padded: whether the last tokens that fill no window make a padded one (for evaluation).
    """

    of_tokens = True

    def __init__(self, reader, n_ctx, tokens, seed, padded):
        targets = tokens - 1
        windows = -(-targets // n_ctx) if padded else targets // n_ctx
        self.reader = reader
        self.n_ctx = n_ctx
        self.tokens = tokens
        self.end = tokens if padded else windows * n_ctx + 1
        self.per_block = max(1, BLOCK_TOKENS // n_ctx)
        super().__init__(seed, windows, -(-windows // self.per_block), self.per_block,
                         windows // self.per_block, _blocks_of_a_group(self.per_block * n_ctx))
        lost = tokens - self.end
        self.left_out = f"the last {lost} of {tokens} tokens fill no window" if lost else ""

    def targets(self, windows):
        """Targets that count in the first windows of the stream."""
        return min(windows * self.n_ctx, self.tokens - 1)

    @tf.autograph.experimental.do_not_convert
    def in_order(self):
        """Every row once, in the stream's order."""
        blocks = tf.data.Dataset.range(self.blocks).map(lambda block: self._block_rows([block]))
        return blocks.prefetch(1).flat_map(tf.data.Dataset.from_tensor_slices)

    def _load(self, blocks, epoch, group):
        """The rows of a group in their shuffled order."""
        rows = self._block_rows(blocks)
        count = tf.size(rows["valid"], out_type=tf.int64)
        order = self.permuted(tf.range(count), count, "windows", epoch, group)
        return {name: tf.gather(values, order) for name, values in rows.items()}

    def _origins(self, turn, chosen):
        """The first tokens of some rows of a group: int64 [rows, 1]."""
        blocks, epoch, group = self._blocks(turn)
        numbers = self._numbers(blocks)
        count = self._count(numbers)
        order = self.permuted(tf.range(count), count, "windows", epoch, group)
        return (tf.gather(numbers, tf.gather(order, chosen)) * self.n_ctx)[:, None]

    def _numbers(self, blocks):
        """The windows of some blocks; those behind the last one do not exist."""
        numbers = blocks[:, None] * self.per_block + tf.range(self.per_block, dtype=tf.int64)
        return tf.reshape(numbers, [-1])

    def _count(self, numbers):
        """How many windows exist."""
        return tf.reduce_sum(tf.cast(numbers < self.windows, tf.int64))

    def _rows(self, turn, group, skipped):
        """The rows of a group but for the first ones."""
        return tf.data.Dataset.from_tensor_slices(
            {name: values[skipped:] for name, values in group.items()})

    def _block_rows(self, blocks):
        """The rows of some blocks, of which only the last may be short."""
        blocks = tf.convert_to_tensor(blocks)
        read = tf.data.Dataset.from_tensor_slices(blocks).map(
            self._read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        tokens = read.batch(tf.size(blocks, out_type=tf.int64)).get_single_element()
        numbers = self._numbers(blocks)
        count = self._count(numbers)
        valid = tf.clip_by_value(self.end - 1 - numbers * self.n_ctx, 0, self.n_ctx)
        tokens = tf.reshape(tokens, [-1, self.n_ctx + 1])
        return {"tokens": tokens[:count], "valid": tf.cast(valid, tf.int32)[:count]}

    def _read(self, block):
        """The windows of a block, filled up with zeros: int32 [per_block, n_ctx + 1]."""
        span = self.per_block * self.n_ctx
        begin = block * span
        end = tf.minimum(begin + span + 1, self.end)
        tokens = self.reader.tokens(begin, end)
        tokens = tf.pad(tokens, [[0, span + 1 - tf.cast(end - begin, tf.int32)]])
        inputs = tf.reshape(tokens[:-1], [self.per_block, self.n_ctx])
        return tf.concat([inputs, tf.reshape(tokens[self.n_ctx::self.n_ctx], [-1, 1])], axis=1)


class Documents(Windows):
    """Windows cut from `stitch` records at a time.

    Args:
        reader: a records.reader.Reader.
        n_ctx: targets of a window.
        records, tokens: what the split holds; any `stitch` records hold n_ctx + 1 tokens.
        seed: text that the order follows from.
        stitch: records that are concatenated.
        random: whether windows begin at a random token of these rather than at their first.
    """

    def __init__(self, reader, n_ctx, records, tokens, seed, stitch, random):
        windows = records // stitch
        mean = tokens / records
        per_block = max(1, int(BLOCK_TOKENS // mean) // stitch, -(-64 // stitch))
        self.reader = reader
        self.n_ctx = n_ctx
        self.records = records
        self.stitch = stitch
        self.random = random
        self.block_records = per_block * stitch
        super().__init__(seed, windows, -(-records // self.block_records), per_block,
                         records // self.block_records,
                         _blocks_of_a_group(self.block_records * mean))
        lost = records % stitch
        self.left_out = f"{lost} of {records} documents are left over, others each time" if lost \
            else ""

    def _load(self, blocks, epoch, group):
        """The tokens of a group, begin and length of its records in their shuffled order; and for
        each window a random number.
        """
        blocks = tf.convert_to_tensor(blocks)
        count = tf.size(blocks, out_type=tf.int64)
        read = tf.data.Dataset.from_tensor_slices(blocks).map(
            self._read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        tokens, lengths = read.padded_batch(
            count, padded_shapes=([None], [self.block_records])).get_single_element()
        begins = tf.cumsum(lengths, axis=1, exclusive=True)
        begins += tf.range(count)[:, None] * tf.shape(tokens, out_type=tf.int64)[1]
        order = self._order(blocks, epoch, group)
        draws = tf.random.stateless_uniform(
            [tf.size(order) // self.stitch],
            [self.number("offsets") + epoch, group], minval=None, maxval=None,
            dtype=tf.int64, alg="philox")
        return (tf.reshape(tokens, [-1]), tf.gather(tf.reshape(begins, [-1]), order),
                tf.gather(tf.reshape(lengths, [-1]), order), draws)

    def _order(self, blocks, epoch, group):
        """The shuffled order of the records of some blocks, of which only the last is short."""
        records = tf.reduce_sum(tf.minimum(self.records - blocks * self.block_records,
                                           self.block_records))
        return self.permuted(tf.range(records), records, "records", epoch, group)

    def _origins(self, turn, chosen):
        """The records of some rows of a group: int64 [rows, stitch]."""
        blocks, epoch, group = self._blocks(turn)
        places = chosen[:, None] * self.stitch + tf.range(self.stitch, dtype=tf.int64)
        places = tf.gather(self._order(blocks, epoch, group), places)
        return (tf.gather(blocks, places // self.block_records) * self.block_records
                + places % self.block_records)

    def _read(self, block):
        """Tokens [tokens] and lengths [records] of a block."""
        begin = block * self.block_records
        return self.reader.documents(begin, tf.minimum(begin + self.block_records, self.records))

    def _rows(self, turn, group, skipped):
        """The rows of a group but for the first ones."""
        piece = max(1, _PIECE_TOKENS // self.n_ctx)
        count = tf.size(group[-1], out_type=tf.int64)
        return tf.data.Dataset.range(skipped, count, piece).map(
            lambda first: self._some_rows(first, tf.minimum(first + piece, count), *group)
            ).unbatch()

    def _some_rows(self, first, end, tokens, begins, lengths, draws):
        """The rows `first` … `end` - 1 of a group."""
        begins, lengths = (tf.reshape(x[first * self.stitch:end * self.stitch], [-1, self.stitch])
                           for x in (begins, lengths))
        ends = tf.cumsum(lengths, axis=1)
        places = tf.range(self.n_ctx + 1, dtype=tf.int64)[None]
        if self.random:
            # The remainder is no less than 0, and of so large a range hardly uneven.
            places += tf.math.floormod(draws[first:end], ends[:, -1] - self.n_ctx)[:, None]
        else:
            places = tf.repeat(places, end - first, axis=0)
        record = tf.searchsorted(ends, places, side="right")
        places += tf.gather(begins - ends + lengths, record, batch_dims=1)
        return {"tokens": tf.ensure_shape(tf.gather(tokens, places), [None, self.n_ctx + 1]),
                "valid": tf.fill([end - first], self.n_ctx)}
