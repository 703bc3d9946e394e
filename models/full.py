"""Softmax attention in full form on slices, in blocks of queries."""

import numpy as np

from mesh import random
from mesh.compat import tf
from models import positions
from models.heads import swapped, weighted

# Queries are taken in this many blocks: an eighth of the scores' memory at a time. Causal ones skip
# the keys above the diagonal: little more than half of the products.
_BLOCKS = 8
_SMALLEST_BLOCK = 128

# Scores of a slice, from which on the backward pass makes them again and none are kept.
_MANY_SCORES = 1 << 22


class Full:
    """Softmax attention in full form: forward and backward.

    Its inputs are the packed queries, keys and values; learned keys and values, if the rules have
    them, each [learned, heads, features]; and a key for dropout, where it is on.

    Args:
      heads: a models.heads.Heads.
      rules: a models.scores.Rules without a window.
      rate: of dropout.
      site: an int that is unique in the model.
    """

    def __init__(self, heads, rules, rate, site):
        self._heads, self._rules, self._rate, self._site = heads, rules, rate, site

    def forward(self, slices, x, *others):
        """-> laid-out [b, s, h, d]."""
        learned, key = self._sorted(others)
        q, k, v, _ = self._split(slices, x, learned)
        outs = []
        for rows, reach in self._blocks(slices, q, k):
            p = self._probabilities(slices, _cut(slices, q, *rows), _cut(slices, k, 0, reach),
                                    rows[0])
            if key:
                p = slices.map(tf.multiply, p, self._keep_scale(slices, *key, p, rows[0]))
            outs.append(slices.map(weighted, p, _cut(slices, v, 0, reach)))
        return slices.sum(slices.map(lambda *parts: swapped(tf.concat(parts, 2)), *outs),
                          self._heads.memory)

    def backward(self, slices, ins, outs, grads):
        """-> the gradients of the inputs, none of the key."""
        x, *others = ins
        learned, key = self._sorted(others)
        x = self._anew(slices, x, grads[0])
        q, k, v, angles = self._split(slices, x, learned)
        d_out = slices.map(swapped, grads[0])
        # Σ_k p·dp = d_out·out, dropout included (Dao et al. 2022, appendix B.2).
        inner = slices.sum(slices.map(_inner, d_out, outs[0]), self._heads.features)
        dqs, dks, dvs = [], [], []
        for rows, reach in self._blocks(slices, q, k):
            q_rows, d_rows, inner_rows = (_cut(slices, t, *rows) for t in (q, d_out, inner))
            seen, seen_v = (_cut(slices, t, 0, reach) for t in (k, v))
            p = self._probabilities(slices, q_rows, seen, rows[0])
            dp = self._heads.products(slices, d_rows, seen_v)
            dropped = p
            if key:
                scale = self._keep_scale(slices, *key, p, rows[0])
                dropped, dp = (slices.map(tf.multiply, t, scale) for t in (p, dp))
            ds = slices.map(lambda p, dp, i, q: tf.cast(p * (dp - i), q.dtype), p, dp, inner_rows,
                            q_rows)
            dqs.append(slices.map(weighted, ds, seen))
            dks.append(slices.map(_spread, ds, q_rows, k))
            dvs.append(slices.map(_spread, dropped, d_rows, k))
        d_q = slices.sum(slices.map(lambda *parts: tf.concat(parts, 2), *dqs), self._heads.memory)
        totals = [slices.map(lambda *parts: tf.add_n(parts), *t) for t in (dks, dvs)]
        d_learned = [slices.sum(slices.map(_without_batch, total, one), self._heads.memory)
                     for total, one in zip(totals, learned, strict=False)]
        n = self._rules.learned
        d_k, d_v = (self._heads.from_memory(slices, slices.map(lambda t: t[:, :, n:], total))
                    for total in totals)
        dx = self._heads.split_gradient(slices, x, angles, d_q, d_k, d_v)
        return [dx, *d_learned] + [None] * len(key)

    def _anew(self, slices, x, gradient):
        """`x`, of which nothing is computed before `gradient` is there.

        TensorFlow on CPUs and GPUs would find the same computation in the forward pass and keep
        what came of it; of few scores that is faster, and welcome.
        """
        batch, length, _, heads, _ = x.to_laid_out_tensor().slice_shape
        keys = self._heads.memory.size // slices.parts(self._heads.memory)
        if not slices.have_devices or batch * heads * length * keys < _MANY_SCORES:
            return x
        return slices.map(_after, x, gradient)

    def _sorted(self, others):
        """(learned keys and values, a key for dropout) of the inputs; any of them may be absent."""
        n = 2 if self._rules.learned else 0
        return others[:n], others[n:]

    def _split(self, slices, x, learned):
        """Queries [b, h, s, d], keys and values [b, h, learned + m, d], and rotary angles."""
        angles, rotary, length = [], self._heads.rotary_dims, x.to_laid_out_tensor().slice_shape[1]
        if rotary:
            angles = slices.map(
                lambda start: positions.rotary_angles(start + tf.range(length), rotary),
                slices.start(self._heads.sequence))
        q, k, v = self._heads.split(slices, x, angles)
        k, v = (self._heads.to_memory(slices, t) for t in (k, v))
        if learned:
            k, v = (slices.map(_joined, t, one) for t, one in zip((k, v), learned, strict=True))
        return q, k, v, angles

    def _blocks(self, slices, q, k):
        """((first, last + 1), reach) of blocks of a slice's queries; they see keys below reach."""
        # A slice of queries or keys does not know beforehand where the diagonal crosses it.
        anywhere = any(map(slices.is_split, (self._heads.sequence, self._heads.memory)))
        for rows in _query_blocks(q.slice_shape[2]):
            skips = self._rules.causal and not anywhere
            yield rows, self._rules.learned + rows[1] if skips else k.slice_shape[2]

    def _probabilities(self, slices, q, k, first):
        """float32 [b, h, n, m] of the queries from a slice's `first` on."""
        row, head, column = (slices.start(d) if slices.is_split(d) else other for d, other in (
            (self._heads.sequence, 0), (self._heads.heads, 0), (self._heads.memory, None)))

        def placed(s, row, head, column):
            rows = np.arange(s.shape[2], dtype=np.int32)[:, None] + (first + row)
            return self._rules.apply(s, rows, column, head)

        return self._heads.softmax(slices, slices.map(placed, self._heads.products(slices, q, k),
                                                      row, head, column))

    def _keep_scale(self, slices, key, p, first):
        """Dropout's factors for probabilities, by index in the whole [b, h, s, m] tensor.

        Learned memories are its first columns.
        """
        dims = (self._heads.batch, self._heads.heads, self._heads.sequence, self._heads.memory)
        sizes = [d.size for d in dims]
        sizes[-1] += self._rules.learned

        def one_slice(key, p, batch, head, row, column):
            index = random.global_index(p.shape.as_list(), [batch, head, row + first, column],
                                        sizes)
            mask = random.keep_mask(index, random.mix(key, self._site), self._rate)
            return tf.cast(mask, tf.float32) / (1.0 - self._rate)

        return slices.map(one_slice, key, p, *map(slices.start, dims))


def _after(x, other):
    """`x`, once `other` is there."""
    with tf.control_dependencies([other]):
        return tf.identity(x)


def _cut(slices, x, first, end):
    """Positions of a laid-out [b, h, n, …]."""
    return x if (first, end) == (0, x.slice_shape[2]) else slices.map(
        lambda t: t[:, :, first:end], x)


def _joined(x, learned):
    """Learned [learned, h, d] before each row of keys or values [b, h, m, d]."""
    learned = tf.transpose(learned, [1, 0, 2])[None]
    return tf.concat([tf.repeat(learned, x.shape[0], 0), x], 2)


def _without_batch(total, learned):
    """The gradient of `learned`, like it, from that of `_joined`'s result."""
    part = tf.cast(total[:, :, :learned.shape[0]], tf.float32)
    return tf.cast(tf.transpose(tf.reduce_sum(part, 0), [1, 0, 2]), learned.dtype)


def _spread(p, x, like):
    """pᵀ · x, [b, h, n, m] and [b, h, n, d] -> [b, h, m, d], zeros from m on as far as `like`."""
    y = tf.matmul(tf.cast(p, x.dtype), x, transpose_a=True)
    return tf.pad(y, [[0, 0], [0, 0], [0, like.shape[2] - y.shape[2]], [0, 0]])


def _inner(d_out, out):
    """Σ_d of a gradient [b, h, s, d] and an output [b, s, h, d], float32 [b, h, s, 1]."""
    return tf.reduce_sum(tf.cast(d_out, tf.float32) * tf.cast(swapped(out), tf.float32), -1,
                         keepdims=True)


def _query_blocks(length):
    """[(first, last + 1)] of the blocks of queries."""
    n = max(1, min(_BLOCKS, length // _SMALLEST_BLOCK))
    bounds = [length * i // n for i in range(n + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))
