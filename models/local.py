"""Attention to neighbours alone, in full form: block-local, O(sequence · window)."""

import numpy as np

from mesh import random
from mesh.compat import mtf, tf
from mesh.slices import local
from models import attention, positions
from models.layers import site_number
from models.scores import slopes_of


def windowed(ctx, qkv, window, rotary_dims, rate, site, causal=True, learned=(), slopes=None):
    """Softmax attention in which a token sees itself and the window − 1 before it.

    Blocks of `window` queries see their own block and the one before it (Beltagy et al. 2020,
    section 3.1). Positions `i − window + 1` … `i`: the same as GPT-Neo's `local_attention_radius`
    and Hugging Face's `window_size`.

    Every layout may split every dimension; along `sequence` and `features_per_head` queries, keys
    and values are gathered, and all slices do the same.

    Args:
      ctx, qkv, rotary_dims, rate, site, learned, slopes: see models.attention.full.
      window: how many tokens a query sees.
      causal: without it, a token sees the `window` after it too, as in GPT-Neo.

    Returns:
      [batch, sequence, heads, features_per_head].
    """
    batch, sequence, packed, heads, features = qkv.shape.dims
    if window >= sequence.size:
        return attention.full(ctx, qkv, rotary_dims, rate, site, causal, learned, slopes)
    whole = [mtf.Dimension(f"whole_{dim.name}", dim.size) for dim in (sequence, features)]
    inputs = [mtf.reshape(qkv, [batch, whole[0], packed, heads, whole[1]])]
    inputs += [mtf.reshape(t, [t.shape.dims[0], heads, whole[1]]) for t in learned]
    if ctx.train and rate > 0:
        inputs.append(ctx.dropout_key)
    form = _Windowed(qkv.shape, window, rotary_dims, rate, site, causal, len(learned), slopes)
    out = local(form, inputs, ([batch, whole[0], heads, whole[1]], qkv.dtype),
                starts=[batch, heads], name="windowed_attention")
    return mtf.reshape(out, [batch, sequence, heads, features])


class _Windowed:
    """Block-local attention on slices that hold whole sequences and heads.

    Called with packed queries, keys and values [b, n, 3, h, d]; `n_learned` (0 or 2) learned keys
    and values [learned, h, d]; a key for dropout, or not; and the slice's first row and head.
    """

    def __init__(self, shape, window, rotary_dims, rate, site, causal, n_learned, slopes):
        self._rows, self._length, _, self._heads, self._features = shape.to_integer_list
        self._window, self._blocks = window, -(-self._length // window)
        self._rotary_dims, self._slopes = rotary_dims, slopes
        self._rate, self._site = rate, site_number(site)
        self._causal, self._n_learned = causal, n_learned
        # Positions of a block's keys, counted from its first query: the block before, its own and,
        # where queries look ahead, the one after.
        self._span = np.arange(-window, window if causal else 2 * window)
        self._distance = np.arange(window)[:, None] - self._span

    def __call__(self, x, *others):
        """-> [b, n, h, d]."""
        learned, (*key, row, head) = others[:self._n_learned], others[self._n_learned:]
        q, k, v = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))
        if self._rotary_dims:
            cos, sin = positions.rotary_angles(tf.range(self._length), self._rotary_dims)
            q, k = (positions.rotate(t, cos, sin, self._rotary_dims) for t in (q, k))
        q, k, v = self._in_blocks(q), *map(self._with_neighbours, map(self._in_blocks, (k, v)))
        # [h, 1, learned, d], to go with [b, h, blocks, ., d].
        learned = [tf.transpose(t, [1, 0, 2])[:, None] for t in learned]
        p = self._probabilities(q, k, head, learned[:1])
        if key:
            p *= self._keep_scale(p, key[0], row, head)
        seen = p.shape[-1] - len(self._span)
        out = tf.matmul(tf.cast(p[..., seen:], v.dtype), v)
        for values in learned[1:]:
            out += tf.matmul(tf.cast(p[..., :seen], v.dtype), values)
        b, h = out.shape[:2].as_list()
        out = tf.reshape(out, [b, h, self._blocks * self._window, self._features])
        return tf.transpose(out[:, :, :self._length], [0, 2, 1, 3])

    def _in_blocks(self, t):
        """[b, h, n, d] -> [b, h, blocks, window, d], with zeros after the end."""
        b, h, length, features = t.shape.as_list()
        t = tf.pad(t, [[0, 0], [0, 0], [0, self._blocks * self._window - length], [0, 0]])
        return tf.reshape(t, [b, h, self._blocks, self._window, features])

    def _with_neighbours(self, t):
        """[b, h, blocks, window, d] -> [b, h, blocks, span, d]: the block before, it, and after."""
        around = [tf.pad(t[:, :, :-1], [[0, 0], [0, 0], [1, 0], [0, 0], [0, 0]]), t]
        if not self._causal:
            around.append(tf.pad(t[:, :, 1:], [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0]]))
        return tf.concat(around, 3)

    def _probabilities(self, q, k, head, learned):
        """float32 [b, h, blocks, window, learned + span]."""
        def scores(keys):
            s = tf.cast(tf.matmul(q, keys, transpose_b=True), tf.float32)
            return s * self._features ** -0.5

        s = scores(k)
        if self._slopes is not None:
            slopes = slopes_of(self._slopes, head, s.shape[1])[:, None, None, None]
            s -= slopes * np.abs(self._distance).astype(np.float32)
        near = (self._distance < self._window) & (
            self._distance >= (0 if self._causal else -self._window))
        place = np.arange(self._blocks)[:, None] * self._window + self._span
        exists = (place >= 0) & (place < self._length)
        # Put together on the device: as a constant it would be as large as the scores of a head.
        s = tf.where_v2(tf.logical_and(near, exists[:, None]), s, -1e9)
        return tf.nn.softmax(tf.concat([*map(scores, learned), s], -1))

    def _keep_scale(self, p, key, row, head):
        """Dropout's factors, by index in the whole [batch, heads, n, learned + n] of `full`."""
        b, h, _, _, size = p.shape.as_list()
        n_learned = size - len(self._span)
        query = np.arange(self._blocks * self._window).reshape(self._blocks, self._window, 1)
        column = np.arange(self._blocks)[:, None] * self._window + self._span + n_learned
        learned = np.broadcast_to(np.arange(n_learned), [self._blocks, n_learned])
        column = np.concatenate([learned, column], 1)[:, None]
        index = ((row + tf.range(b))[:, None] * self._heads + head + tf.range(h))
        index = tf.cast(index, tf.uint32)[..., None, None, None]
        for size, place in ((self._length, query), (n_learned + self._length, column)):
            # What lies before the beginning wraps around; nothing comes of it.
            index = index * tf.constant(size, tf.uint32) + place.astype(np.uint32)
        mask = random.keep_mask(index, random.mix(key, self._site), self._rate)
        return tf.cast(mask, tf.float32) / (1.0 - self._rate)
