"""Softmax attention: a function in full form, to train, and one in incremental form, to decode.

Where a token sees its neighbours alone, the full form is that of models/local.py.

Names of dimensions in comments: b batch, s sequence, m memory_length, h heads, d features_per_head.
"""

import numpy as np

from mesh.compat import mtf, tf
from mesh.slices import SliceOperation, local
from models.full import Full
from models.heads import Heads, swapped, weighted
from models.layers import site_number
from models.scores import Rules


def full(ctx, qkv, rotary_dims, rate, site, causal=True, learned=(), slopes=None):
    """Softmax attention in full form (Vaswani et al. 2017, section 3.2).

    Scores are scaled by 1/√d, softmax is float32. The backward pass computes the probabilities
    again, so that no [sequence, sequence] tensor is kept (Dao et al. 2022, section 3.1).

    Args:
      ctx: the models.layers.Context.
      qkv: queries, keys and values, [batch, sequence, qkv, heads, features_per_head]; any of them
        but `qkv` may be split, and so may `memory_length`, the keys' positions.
      rotary_dims: features of a head to rotate; 0 for none.
      rate: dropout of the probabilities.
      site: a name that is unique in the model, for the dropout.
      causal: whether a token sees itself and what came before, or everything.
      learned: keys and values without a position, which every token sees, or none of them: two of
        [any dimension, heads, features_per_head] (Sukhbaatar et al. 2019, section 3).
      slopes: ALiBi's, one for each head; see models.scores.alibi_slopes.

    Returns:
      [batch, sequence, heads, features_per_head].
    """
    batch, sequence, _, heads, features = qkv.shape.dims
    memory = mtf.Dimension(sequence.name.replace("sequence", "memory_length"), sequence.size)
    drops = ctx.train and rate > 0
    rules = Rules(causal, learned=_number(learned), slopes=slopes)
    attention = Full(Heads(qkv, memory, rotary_dims), rules, rate, site_number(site))
    return SliceOperation(
        attention.forward, attention.backward,
        [qkv, *learned] + ([ctx.dropout_key] if drops else []),
        [([batch, sequence, heads, features], qkv.dtype)], "full_attention").outputs[0]


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


def empty_caches(ctx, shape, n_layers):
    """Caches of `causal_incremental`: (keys, values) of zeros of a shape, for each layer."""
    shape = mtf.Shape(shape)
    return [(mtf.zeros(ctx.mesh, shape, ctx.dtype), mtf.zeros(ctx.mesh, shape, ctx.dtype))
            for _ in range(n_layers)]


def causal_incremental(qkv, cache, index, rotary_dims, angles, window=None, learned=(),
                       slopes=None):
    """Causal attention of new tokens over a cache of earlier ones.

    It is the incremental form of `full`, and with a window of models.local.windowed.

    Args:
      qkv: of the new tokens, [batch, new_tokens, qkv, heads, features_per_head]; no layout splits
        the second dimension.
      cache: (keys, values), each [batch, heads, memory_length, features_per_head]; keys rotated.
        Slices may have less of memory_length, at least index + new_tokens, where no layout splits
        it and nothing is compiled.
      index: int32 [batch]: how many tokens of each row the cache holds; the new ones follow.
      rotary_dims: features of a head to rotate; 0 for none.
      angles: models.positions.angles_of the new tokens.
      window: how many tokens a query sees; None is all.
      learned, slopes: see `full`.

    Returns:
      ([batch, new_tokens, heads, features_per_head], the cache with the new tokens written).
    """
    batch, new_tokens, _, heads, features = qkv.shape.dims
    memory = cache[0].shape.dims[2]
    parts = Heads(qkv, memory, rotary_dims)
    rules = Rules(window=window, learned=_number(learned), slopes=slopes)

    def forward(slices, x, keys, values, at, *others):
        turned, learned = others[:len(angles)], others[len(angles):]
        position = slices.map(lambda at: at[:, None, None] + tf.range(new_tokens.size), at)
        start = slices.start(memory) if slices.is_split(memory) else None
        q, k, v = parts.split(slices, x, turned)
        keys, values = (slices.map(_written, old, new, position, start)
                        for old, new in ((keys, k), (values, v)))
        learned = [slices.map(lambda t: tf.transpose(t, [1, 0, 2])[None], t) for t in learned]
        scores = [slices.sum(slices.map(_scores, q, k), features) for k in [*learned[:1], keys]]

        def placed(position, start, head, *scores):
            return rules.apply(tf.concat(scores, -1), position[..., None], start, head)

        head = slices.start(heads) if slices.is_split(heads) else 0
        p = parts.softmax(slices, slices.map(placed, position, start, head, *scores), _softmax)

        def outputs(p, *values):
            shares = tf.split(p, [*(v.shape[2] for v in values[:-1]), -1], -1)
            return sum(map(_weighted, shares[1:], values[1:]), _weighted(shares[0], values[0]))

        out = slices.sum(slices.map(outputs, p, *learned[1:], values), memory)
        return slices.map(swapped, out), keys, values

    out, *cache = SliceOperation(
        forward, None, [qkv, *cache, index, *angles, *learned],
        [([batch, new_tokens, heads, features], qkv.dtype)] + [(c.shape, c.dtype) for c in cache],
        "causal_incremental").outputs
    return out, tuple(cache)


# For one new token oneDNN's kernels, which TensorFlow takes on CPUs for products of batches of
# matrices and for the softmax, take several times as long as these.

def _scores(q, k):
    """q · kᵀ: [b, h, n, d] and [b or 1, h, m, d] -> float32 [b, h, n, m]."""
    if _is_small(q, k):
        return tf.raw_ops.Einsum(inputs=[q, k], equation="bhnd,bhmd->bhnm")
    return tf.cast(tf.matmul(q, k, transpose_b=True), tf.float32)


def _weighted(p, v):
    """[b, h, n, m] · [b or 1, h, m, d], in the type of `v`."""
    if _is_small(p, v):
        return tf.raw_ops.Einsum(inputs=[p, v], equation="bhnm,bhmd->bhnd")
    return weighted(p, v)


def _is_small(x, y):
    """Whether it is one token of each row, in the type that TensorFlow's own kernels are for."""
    return x.shape[2] == 1 and y.dtype == tf.float32 and x.shape[0] == y.shape[0]


def _softmax(scores):
    e = tf.exp(scores - tf.reduce_max(scores, -1, keepdims=True))
    return e / tf.reduce_sum(e, -1, keepdims=True)


def _number(learned):
    """How many learned keys there are."""
    return learned[0].shape.dims[0].size if learned else 0


def _written(cache, new, position, start):
    """A slice of a cache with what falls into it of the new tokens.

    Args:
      cache: [b, h, m, d]. new: [b, h, n, d]. position: int32 [b, 1, n], consecutive in each row.
      start: the position at which the slice begins, if others hold other positions, or None.

    Returns:
      a tensor like `cache`.
    """
    b, h, size, d = cache.shape.as_list()
    number = new.shape[2]
    whole = tf.shape(cache)[2] if size is None else size  # None: it has room for all of them
    if start is not None:
        position -= start
    rows = np.arange(b * h, dtype=np.int32).reshape(b, h, 1) * whole
    flat = tf.reshape(cache, [-1, d])
    # Up to `size` consecutive positions differ modulo `size`: each has a place of its own, where
    # those that belong to other slices write what is there.
    for first in range(0, number, size or number):
        end = min(first + (size or number), number)
        at, values = position[:, :, first:end], tf.reshape(new[:, :, first:end], [-1, d])
        where = tf.reshape(rows + at % whole, [-1, 1])
        if start is not None:
            held = tf.broadcast_to(tf.logical_and(at >= 0, at < size), [b, h, end - first])
            values = tf.where_v2(tf.reshape(held, [-1, 1]), values, tf.gather_nd(flat, where))
        flat = tf.tensor_scatter_nd_update(flat, where, values)
    return tf.reshape(flat, [b, h, -1 if size is None else size, d])
