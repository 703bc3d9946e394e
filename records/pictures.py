"""Rows of CLIP's training: a picture and one of its captions.

The order of pictures follows from the seed and a position, as that of windows of text does
(records.windows). Pictures that belong together (`group` consecutive records) stay together: what
is shuffled are the groups, so a batch of a multiple of `group` rows holds whole ones. The caption
follows from the seed, the epoch and the picture; evaluation takes the first one.

Rows are dicts: "images" uint8 [image_size, image_size, 3]; "tokens" int32 [n_ctx]: start, caption,
end, then zeros (of a long caption the last tokens are cut off); "ends" int32 [], the position of
the end token; "valid" int32 [], 1.
"""

import tensorflow.compat.v1 as tf

from records.windows import Windows

FEATURES = {"image": tf.io.FixedLenFeature([], tf.string), "text": tf.io.RaggedFeature(tf.int64),
            "lengths": tf.io.RaggedFeature(tf.int64)}
# Both are part of the order: another value changes which picture comes when.
BLOCK_PICTURES = 256
GROUP_BYTES = 1 << 27


class Pictures(Windows):
    """The pictures of a split.

    Args:
        reader: a records.reader.Reader of the split's records.
        split: the records.splits.Split, of pictures. For training its shards hold whole groups.
        n_ctx: tokens of a row, start and end included.
        n_vocab: ids of the text tower; the last two are start and end.
        seed: text that the order follows from.
    """

    left_out = ""

    def __init__(self, reader, split, n_ctx, n_vocab, seed):
        self.reader = reader
        self.size = split.image_size
        self.run = split.group
        self.n_ctx = n_ctx
        self.n_vocab = n_vocab
        pictures = split.total("records")
        self.per_block = -(-BLOCK_PICTURES // self.run) * self.run
        block_bytes = self.per_block * split.total("size") / pictures
        super().__init__(seed, pictures, -(-pictures // self.per_block), self.per_block,
                         pictures // self.per_block, max(1, int(GROUP_BYTES // block_bytes)))

    def targets(self, windows):
        """Every picture is one target: its caption among the batch's."""
        return windows

    @tf.autograph.experimental.do_not_convert
    def in_order(self):
        """Every picture once, in the order of the records, with its first caption."""
        blocks = tf.data.Dataset.range(self.blocks).map(lambda block: self._read_blocks([block]))
        records = blocks.prefetch(1).flat_map(
            lambda *group: tf.data.Dataset.from_tensor_slices(group))
        return _mapped(records, lambda record, number: self._row(record, number, None))

    def _load(self, blocks, epoch, group):
        """Records [pictures] and their numbers in the split, of some blocks, shuffled by groups."""
        records, numbers = self._read_blocks(blocks)
        order = self._order(numbers, epoch, group)
        return tf.gather(records, order), tf.gather(numbers, order)

    def _order(self, numbers, epoch, group):
        """The shuffled order of some pictures."""
        runs = tf.size(numbers, out_type=tf.int64) // self.run
        order = self.permuted(tf.range(runs), runs, "groups", epoch, group)
        return tf.reshape(order[:, None] * self.run + tf.range(self.run, dtype=tf.int64), [-1])

    def _origins(self, turn, chosen):
        """The records of some rows of a group of blocks: int64 [rows, 1]."""
        blocks, epoch, group = self._blocks(turn)
        numbers = self._numbers(blocks)
        return tf.gather(numbers, tf.gather(self._order(numbers, epoch, group), chosen))[:, None]

    def _rows(self, turn, group, skipped):
        """The rows of a group of blocks but for the first ones."""
        epoch = turn // self.groups
        rows = tf.data.Dataset.from_tensor_slices(tuple(values[skipped:] for values in group))
        return _mapped(rows, lambda record, number: self._row(record, number, epoch))

    def _read_blocks(self, blocks):
        """Records and their numbers of some blocks, of which only the last may be short."""
        blocks = tf.convert_to_tensor(blocks)
        numbers = self._numbers(blocks)
        read = tf.data.Dataset.from_tensor_slices(blocks).map(
            self._read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        records = read.padded_batch(tf.size(blocks, out_type=tf.int64),
                                    padded_shapes=[self.per_block]).get_single_element()
        return tf.reshape(records, [-1])[:tf.size(numbers)], numbers

    def _numbers(self, blocks):
        """The pictures of some blocks, of which only the last may be short."""
        numbers = blocks[:, None] * self.per_block + tf.range(self.per_block, dtype=tf.int64)
        numbers = tf.reshape(numbers, [-1])
        return tf.boolean_mask(numbers, numbers < self.windows)

    def _read(self, block):
        """The records of a block: string [at most per_block]."""
        begin = block * self.per_block
        return self.reader.examples(begin, tf.minimum(begin + self.per_block, self.windows))

    def _row(self, record, number, epoch):
        """The row of a record; `epoch` None takes the first caption."""
        found = tf.io.parse_single_example(record, FEATURES)
        caption = self._caption(found["text"], found["lengths"], number, epoch)
        kept = caption[:self.n_ctx - 2]
        end = tf.size(kept) + 1
        tokens = tf.concat([[self.n_vocab - 2], kept, [self.n_vocab - 1],
                            tf.zeros([self.n_ctx - 1 - end], tf.int32)], 0)
        return {"images": self._picture(found["image"], number),
                "tokens": tf.ensure_shape(tokens, [self.n_ctx]), "ends": end,
                "valid": tf.constant(1, tf.int32)}

    def _picture(self, data, number):
        """A stored picture as uint8 [image_size, image_size, 3]."""
        picture = tf.io.decode_image(data, channels=3, expand_animations=False)
        shape = tf.shape(picture)
        fits = self._assert(tf.reduce_all(tf.equal(shape, [self.size, self.size, 3])), number,
                            f"pictures have {self.size} × {self.size} pixels, and this one (number,"
                            " then height and width) has not:", [shape[:2]])
        with tf.control_dependencies([fits]):
            return tf.ensure_shape(tf.identity(picture), [self.size, self.size, 3])

    def _caption(self, ids, lengths, number, epoch):
        """One caption's ids, int32, once they are known to be right."""
        total = tf.size(ids, out_type=tf.int64)
        counted = self._assert(
            (tf.size(lengths) > 0) & tf.equal(tf.reduce_sum(lengths), total), number,
            "the captions of a picture (number, then lengths) are not those of its ids:", [lengths])
        in_range = self._assert(
            tf.reduce_all((ids >= 0) & (ids < self.n_vocab - 2)), number,
            f"ids of captions have to be below n_vocab - 2 = {self.n_vocab - 2}, and these (number,"
            " then lowest and highest) are not:", [tf.reduce_min(ids), tf.reduce_max(ids)])
        with tf.control_dependencies([counted, in_range]):
            lengths = tf.identity(lengths)
        chosen = tf.constant(0, tf.int64)
        if epoch is not None:
            chosen = tf.random.stateless_uniform(
                [], [self.number("captions") + epoch, number], minval=0,
                maxval=tf.size(lengths, out_type=tf.int64), dtype=tf.int64, alg="philox")
        begin = tf.reduce_sum(lengths[:chosen])
        return tf.cast(ids[begin:begin + lengths[chosen]], tf.int32)

    def _assert(self, holds, number, message, values):
        """Fails with the dataset, a message, the picture's file and number in it, and values."""
        place, path = self.reader.place_of(number)
        return tf.debugging.Assert(
            holds, [f"dataset {self.reader.dataset}: {message}", path, place, *values])


def _mapped(rows, function):
    """Rows mapped in parallel, in order."""
    return rows.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
