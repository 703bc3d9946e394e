"""Attention types. Each is a function in full form, to train, and in incremental form, to decode.

Names of dimensions in comments: b batch, s sequence, m memory_length, h heads, d features_per_head.
"""

import numpy as np
import tensorflow.compat.v1 as tf

from mesh import random
from mesh.slices import SliceOperation, local
from models import positions
from models.layers import site_number

# Queries are taken in this many blocks, each of which skips the keys above the causal diagonal:
# little more than half of the products and an eighth of the scores' memory at a time.
_BLOCKS = 8
_SMALLEST_BLOCK = 128


def causal(ctx, qkv, rotary_dims, rate, site):
    """Causal softmax attention in full form (Vaswani et al. 2017, section 3.2).

    Scores are scaled by 1/√d, softmax is float32. The backward pass computes the probabilities
    again, so that no [sequence, sequence] tensor is kept (Dao et al. 2022, section 3.1).

    Args:
      ctx: the models.layers.Context.
      qkv: queries, keys and values, [batch, sequence, qkv, heads, features_per_head].
      rotary_dims: features of a head to rotate; 0 for none.
      rate: dropout of the probabilities.
      site: a name that is unique in the model, for the dropout.

    Returns:
      [batch, sequence, heads, features_per_head].
    """
    batch, sequence, _, heads, features = qkv.shape.dims
    drops = ctx.train and rate > 0
    whole = [batch.size, heads.size, sequence.size, sequence.size]

    def keep_scale(key, begin, b, h, rows, columns):
        """Dropout's factors for scores [b, h, rows, columns], by index in the whole tensor."""
        index = random.global_index([b, h, rows[1] - rows[0], columns],
                                    [begin[0], begin[1], rows[0], 0], whole)
        mask = random.keep_mask(index, random.mix(key, site_number(site)), rate)
        return tf.cast(mask, tf.float32) / (1.0 - rate)

    def split(x):
        """[b, s, qkv, h, d] -> three [b, h, s, d], rotated, the queries scaled."""
        q, k, v = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))
        if rotary_dims:
            cos, sin = positions.rotary_angles(tf.range(sequence.size), rotary_dims)
            q, k = (positions.rotate(t, cos, sin, rotary_dims) for t in (q, k))
        return q * tf.cast(features.size ** -0.5, q.dtype), k, v

    def probabilities(q, k, rows):
        s = tf.matmul(q[:, :, rows[0]:rows[1]], k[:, :, :rows[1]], transpose_b=True)
        visible = np.arange(rows[1])[None, :] <= np.arange(*rows)[:, None]
        return tf.nn.softmax(tf.where_v2(visible, tf.cast(s, tf.float32), -1e9))

    def forward_slice(x, *rest):
        q, k, v = split(x)
        outs = []
        for rows in _query_blocks(sequence.size):
            p = probabilities(q, k, rows)
            if drops:
                p *= keep_scale(rest[0], rest[1:], *q.shape[:2].as_list(), rows, rows[1])
            outs.append(tf.matmul(tf.cast(p, v.dtype), v[:, :, :rows[1]]))
        return tf.transpose(tf.concat(outs, 2), [0, 2, 1, 3])

    def backward_slice(x, out, d_out, *rest):
        x = tf.identity(x)
        q, k, v = split(x)
        d_out = tf.transpose(d_out, [0, 2, 1, 3])
        # Σ_k p·dp = d_out·out, dropout included (Dao et al. 2022, appendix B.2).
        inner = tf.reduce_sum(tf.cast(d_out, tf.float32)
                              * tf.cast(tf.transpose(out, [0, 2, 1, 3]), tf.float32), -1)
        dqs, dks, dvs = [], [], []
        for rows in _query_blocks(sequence.size):
            block = slice(*rows)
            p = probabilities(q, k, rows)
            dp = tf.cast(tf.matmul(d_out[:, :, block], v[:, :, :rows[1]], transpose_b=True),
                         tf.float32)
            dropped = p
            if drops:
                factor = keep_scale(rest[0], rest[1:], *q.shape[:2].as_list(), rows, rows[1])
                dropped, dp = p * factor, dp * factor
            ds = tf.cast(p * (dp - inner[:, :, block, None]), q.dtype)
            after = [[0, 0], [0, 0], [0, sequence.size - rows[1]], [0, 0]]
            dqs.append(tf.matmul(ds, k[:, :, :rows[1]]))
            dks.append(tf.pad(tf.matmul(ds, q[:, :, block], transpose_a=True), after))
            dvs.append(tf.pad(tf.matmul(tf.cast(dropped, v.dtype), d_out[:, :, block],
                                        transpose_a=True), after))
        # TensorFlow's own gradient of `split`: transposes, rotations and a factor only.
        return tf.gradients([q, k, v], x, [tf.concat(dqs, 2), tf.add_n(dks), tf.add_n(dvs)])[0]

    def extra(slices, laid_out):
        return [*laid_out, slices.start(batch), slices.start(heads)] if drops else []

    def forward(slices, x, *key):
        return slices.map(forward_slice, x, *extra(slices, key))

    def backward(slices, ins, outs, grads):
        dx = slices.map(backward_slice, ins[0], *outs, grads[0], *extra(slices, ins[1:]))
        return [dx] + [None] * len(ins[1:])

    return SliceOperation(
        forward, backward, [qkv] + ([ctx.dropout_key] if drops else []),
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


def _query_blocks(length):
    """[(first, last + 1)] of the blocks of queries."""
    n = max(1, min(_BLOCKS, length // _SMALLEST_BLOCK))
    bounds = [length * i // n for i in range(n + 1)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def causal_incremental(qkv, cache, index, rotary_dims):
    """Causal attention of new tokens over a cache of earlier ones.

    Args:
      qkv: of the new tokens, [batch, sequence, qkv, heads, features_per_head].
      cache: (keys, values), each [batch, heads, memory_length, features_per_head]; keys rotated.
      index: int32 [batch]: how many tokens of each row the cache holds; the new ones follow.
      rotary_dims: features of a head to rotate; 0 for none.

    Returns:
      ([batch, sequence, heads, features_per_head], the cache with the new tokens written).
    """
    batch, sequence, _, heads, features = qkv.shape.dims

    def one_slice(x, keys, values, at):
        q, k, v = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))
        position = at[:, None] + tf.range(sequence.size)
        if rotary_dims:
            cos, sin = (t[:, None] for t in positions.rotary_angles(position, rotary_dims))
            q, k = (positions.rotate(t, cos, sin, rotary_dims) for t in (q, k))
        b, h, m, _ = keys.shape.as_list()
        shape = [b, h, sequence.size]
        where = tf.stack([tf.broadcast_to(tf.reshape(tf.range(b), [b, 1, 1]), shape),
                          tf.broadcast_to(tf.reshape(tf.range(h), [1, h, 1]), shape),
                          tf.broadcast_to(position[:, None], shape)], -1)
        keys = tf.tensor_scatter_nd_update(keys, where, k)
        values = tf.tensor_scatter_nd_update(values, where, v)
        s = tf.cast(tf.matmul(q, keys, transpose_b=True), tf.float32) * features.size ** -0.5
        visible = tf.range(m) <= position[:, None, :, None]
        s = tf.where_v2(visible, s, -1e9)
        out = tf.matmul(tf.cast(tf.nn.softmax(s), v.dtype), values)
        return tf.transpose(out, [0, 2, 1, 3]), keys, values

    out, keys, values = local(
        one_slice, [qkv, *cache, index],
        [([batch, sequence, heads, features], qkv.dtype)] + [(c.shape, c.dtype) for c in cache],
        name="causal_incremental")
    return out, (keys, values)
