"""Softmax attention in full form on slices, in blocks of queries: causal or bidirectional."""

import numpy as np

from mesh import random
from mesh.compat import tf
from models.heads import swapped, weighted

# Queries are taken in this many blocks, each of which skips the keys above the causal diagonal:
# little more than half of the products and an eighth of the scores' memory at a time.
_BLOCKS = 8
_SMALLEST_BLOCK = 128


class Causal:
    """Softmax attention to oneself and what came before, in full form: forward and backward.

    Bidirectional, it is attention to all positions.

    Args:
      heads: a Heads.
      rate: of dropout, which is on where the operation is given a key.
      site: an int that is unique in the model.
      bidirectional: whether a query also sees what comes after it.
    """

    def __init__(self, heads, rate, site, bidirectional=False):
        self._heads, self._rate, self._site = heads, rate, site
        self._bidirectional = bidirectional

    def forward(self, slices, x, *key):
        """-> laid-out [b, s, h, d]."""
        q, k, v, _ = self._split(slices, x)
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
        """-> the gradient of the packed queries, keys and values, and none of the key."""
        x, *key = ins
        q, k, v, position = self._split(slices, x)
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
        d_k, d_v = (self._heads.from_memory(slices, slices.map(lambda *parts: tf.add_n(parts), *t))
                    for t in (dks, dvs))
        dx = self._heads.split_gradient(slices, x, position, d_q, d_k, d_v)
        return [dx] + [None] * len(key)

    def _split(self, slices, x):
        """Queries [b, h, s, d], keys and values [b, h, m, d], and positions [s]."""
        length = x.to_laid_out_tensor().slice_shape[1]
        position = slices.map(lambda start: start + tf.range(length),
                              slices.start(self._heads.sequence))
        q, k, v = self._heads.split(slices, x, position)
        return q, *(self._heads.to_memory(slices, t) for t in (k, v)), position

    def _blocks(self, slices, q, k):
        """((first, last + 1), reach) of blocks of a slice's queries; they see keys below reach."""
        # A slice of queries or keys does not know beforehand where the diagonal crosses it.
        anywhere = self._bidirectional or any(
            map(slices.is_split, (self._heads.sequence, self._heads.memory)))
        for rows in _query_blocks(q.slice_shape[2]):
            yield rows, k.slice_shape[2] if anywhere else rows[1]

    def _probabilities(self, slices, q, k, first):
        """float32 [b, h, n, m] of the queries from a slice's `first` on."""
        products = self._heads.products(slices, q, k)
        if self._bidirectional:
            return self._heads.softmax(slices, products)
        starts = [slices.start(d) if slices.is_split(d) else 0
                  for d in (self._heads.sequence, self._heads.memory)]

        def hide(s, row, column):
            rows, columns = (np.arange(n, dtype=np.int32) for n in s.shape[2:].as_list())
            return tf.where_v2(columns[None] + column <= rows[:, None] + (first + row), s, -1e9)

        return self._heads.softmax(slices, slices.map(hide, products, *starts))

    def _keep_scale(self, slices, key, p, first):
        """Dropout's factors for probabilities, by index in the whole [b, h, s, m] tensor."""
        dims = (self._heads.batch, self._heads.heads, self._heads.sequence, self._heads.memory)

        def one_slice(key, p, batch, head, row, column):
            index = random.global_index(p.shape.as_list(), [batch, head, row + first, column],
                                        [d.size for d in dims])
            mask = random.keep_mask(index, random.mix(key, self._site), self._rate)
            return tf.cast(mask, tf.float32) / (1.0 - self._rate)

        return slices.map(one_slice, key, p, *map(slices.start, dims))


def _cut(slices, x, first, end):
    """Positions of a laid-out [b, h, n, …]."""
    return x if (first, end) == (0, x.slice_shape[2]) else slices.map(
        lambda t: t[:, :, first:end], x)


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
