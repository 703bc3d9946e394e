"""Attention types. Each is a function in full form, to train, and in incremental form, to decode.

Names of dimensions in comments: b batch, s sequence, m memory_length, h heads, d features_per_head.
"""

import numpy as np

from mesh.compat import mtf, tf
from mesh.slices import SliceOperation, local
from models import positions
from models.causal import Causal
from models.heads import Heads, swapped, weighted
from models.layers import site_number


def causal(ctx, qkv, rotary_dims, rate, site, bidirectional=False):
    """Causal softmax attention in full form (Vaswani et al. 2017, section 3.2).

    Scores are scaled by 1/√d, softmax is float32. The backward pass computes the probabilities
    again, so that no [sequence, sequence] tensor is kept (Dao et al. 2022, section 3.1).

    Args:
      ctx: the models.layers.Context.
      qkv: queries, keys and values, [batch, sequence, qkv, heads, features_per_head]; any of them
        but `qkv` may be split, and so may `memory_length`, the keys' positions.
      rotary_dims: features of a head to rotate; 0 for none.
      rate: dropout of the probabilities.
      site: a name that is unique in the model, for the dropout.
      bidirectional: whether tokens also see what comes after them, so that it is not causal.

    Returns:
      [batch, sequence, heads, features_per_head].
    """
    batch, sequence, _, heads, features = qkv.shape.dims
    memory = mtf.Dimension(sequence.name.replace("sequence", "memory_length"), sequence.size)
    drops = ctx.train and rate > 0
    full = Causal(Heads(qkv, memory, rotary_dims), rate, site_number(site), bidirectional)
    return SliceOperation(
        full.forward, full.backward, [qkv] + ([ctx.dropout_key] if drops else []),
        [([batch, sequence, heads, features], qkv.dtype)], "causal_attention").outputs[0]


def masked(qkv, visible):
    """Softmax attention in full form with any pattern of who sees whom.

    Args:
      qkv: queries, keys and values, [batch, sequence, qkv, heads, features_per_head].
      visible: numpy bool [sequence, sequence]: whether a query (row) sees a key (column).

    Returns:
      [batch, sequence, heads, features_per_head].
    """
    batch, sequence, _, heads, features = qkv.shape.dims

    def one_slice(x):
        q, k, v = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))
        s = tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32) * features.size ** -0.5
        s = tf.where_v2(visible, s, -1e9)
        return tf.transpose(tf.matmul(tf.cast(tf.nn.softmax(s), v.dtype), v), [0, 2, 1, 3])

    return local(one_slice, [qkv], ([batch, sequence, heads, features], qkv.dtype),
                 name="masked_attention")


def windowed(qkv, window, rotary_dims):
    """Causal attention in full form in which a token sees itself and the window − 1 before it.

    Block-local, O(sequence · window): blocks of `window` queries see their own block and the one
    before it (Beltagy et al. 2020, section 3.1).

    Args:
      qkv: queries, keys and values, [batch, sequence, qkv, heads, features_per_head].
      window: how many tokens a query sees.
      rotary_dims: features of a head to rotate; 0 for none.

    Returns:
      [batch, sequence, heads, features_per_head].
    """
    batch, sequence, _, heads, features = qkv.shape.dims
    blocks = -(-sequence.size // window)
    padding = blocks * window - sequence.size
    # Distance of a block's queries to the keys of the block before and of its own.
    distance = np.arange(window)[:, None] - np.arange(-window, window)[None]
    near = (distance >= 0) & (distance < window)
    exists = np.arange(blocks)[:, None] * window + np.arange(-window, window) >= 0
    visible = near[None] & exists[:, None]

    def with_previous(x):
        """[b, h, blocks, window, d] -> [b, h, blocks, 2 · window, d]: the block before, and it."""
        before = tf.pad(x[:, :, :-1], [[0, 0], [0, 0], [1, 0], [0, 0], [0, 0]])
        return tf.concat([before, x], 3)

    def one_slice(x):
        q, k, v = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))
        if rotary_dims:
            cos, sin = positions.rotary_angles(tf.range(sequence.size), rotary_dims)
            q, k = (positions.rotate(t, cos, sin, rotary_dims) for t in (q, k))
        b, h = q.shape[:2].as_list()
        q, k, v = (tf.reshape(tf.pad(t, [[0, 0], [0, 0], [0, padding], [0, 0]]),
                              [b, h, blocks, window, features.size]) for t in (q, k, v))
        k, v = with_previous(k), with_previous(v)
        s = tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32) * features.size ** -0.5
        p = tf.nn.softmax(tf.where_v2(visible, s, -1e9))
        out = tf.reshape(tf.matmul(tf.cast(p, v.dtype), v),
                         [b, h, blocks * window, features.size])
        return tf.transpose(out[:, :, :sequence.size], [0, 2, 1, 3])

    return local(one_slice, [qkv], ([batch, sequence, heads, features], qkv.dtype),
                 name="windowed_attention")


def empty_caches(ctx, shape, n_layers):
    """Caches of `causal_incremental`: (keys, values) of zeros of a shape, for each layer."""
    shape = mtf.Shape(shape)
    return [(mtf.zeros(ctx.mesh, shape, ctx.dtype), mtf.zeros(ctx.mesh, shape, ctx.dtype))
            for _ in range(n_layers)]


def causal_incremental(qkv, cache, index, rotary_dims, window=None):
    """Causal attention of new tokens over a cache of earlier ones.

    It is the incremental form of `causal`, and with a window of `windowed`.

    Args:
      qkv: of the new tokens, [batch, new_tokens, qkv, heads, features_per_head]; no layout splits
        the second dimension.
      cache: (keys, values), each [batch, heads, memory_length, features_per_head]; keys rotated.
      index: int32 [batch]: how many tokens of each row the cache holds; the new ones follow.
      rotary_dims: features of a head to rotate; 0 for none.
      window: how many tokens a query sees; None is all.

    Returns:
      ([batch, new_tokens, heads, features_per_head], the cache with the new tokens written).
    """
    batch, new_tokens, _, heads, features = qkv.shape.dims
    memory = cache[0].shape.dims[2]
    parts = Heads(qkv, memory, rotary_dims)

    def forward(slices, x, keys, values, at):
        position = slices.map(lambda at: at[:, None, None] + tf.range(new_tokens.size), at)
        start = slices.start(memory) if slices.is_split(memory) else None
        q, k, v = parts.split(slices, x, position)
        keys, values = (slices.map(_written, old, new, position, start)
                        for old, new in ((keys, k), (values, v)))

        def hide(s, position, start):
            columns = tf.range(s.shape[3]) + (0 if start is None else start)
            distance = position[..., None] - columns
            near = distance >= 0
            if window is not None:
                near = tf.logical_and(near, distance < window)
            return tf.where_v2(near, s, -1e9)

        p = parts.softmax(slices, slices.map(hide, parts.products(slices, q, keys), position,
                                             start))
        out = slices.sum(slices.map(weighted, p, values), memory)
        return slices.map(swapped, out), keys, values

    out, *cache = SliceOperation(
        forward, None, [qkv, *cache, index],
        [([batch, new_tokens, heads, features], qkv.dtype)] + [(c.shape, c.dtype) for c in cache],
        "causal_incremental").outputs
    return out, tuple(cache)


def _written(cache, new, position, start):
    """A slice of a cache with what falls into it of the new tokens.

    Args:
      cache: [b, h, m, d]. new: [b, h, n, d]. position: int32 [b, 1, n], consecutive in each row.
      start: the position at which the slice begins, if others hold other positions, or None.

    Returns:
      a tensor like `cache`.
    """
    b, h, size, _ = cache.shape.as_list()
    if start is not None:
        position -= start
    # Up to `size` consecutive positions differ modulo `size`: each has a place of its own, where
    # those that belong to other slices write what is there.
    for first in range(0, new.shape[2], size):
        at, values = position[:, :, first:first + size], new[:, :, first:first + size]
        shape = [b, h, at.shape[2]]
        where = tf.stack([tf.broadcast_to(tf.reshape(tf.range(b), [b, 1, 1]), shape),
                          tf.broadcast_to(tf.reshape(tf.range(h), [1, h, 1]), shape),
                          tf.broadcast_to(at % size, shape)], -1)
        if start is not None:
            held = tf.logical_and(at >= 0, at < size)[..., None]
            values = tf.where_v2(held, values, tf.gather_nd(cache, where))
        cache = tf.tensor_scatter_nd_update(cache, where, values)
    return cache
