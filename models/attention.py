"""Softmax attention: a function in full form, to train, and one in incremental form, to decode.

Where a token sees its neighbours alone, the full form is that of models/local.py.

Names of dimensions in comments: b batch, s sequence, m memory_length, h heads, d features_per_head.
"""

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


def causal_incremental(qkv, cache, index, rotary_dims, window=None, learned=(), slopes=None):
    """Causal attention of new tokens over a cache of earlier ones.

    It is the incremental form of `full`, and with a window of models.local.windowed.

    Args:
      qkv: of the new tokens, [batch, new_tokens, qkv, heads, features_per_head]; no layout splits
        the second dimension.
      cache: (keys, values), each [batch, heads, memory_length, features_per_head]; keys rotated.
      index: int32 [batch]: how many tokens of each row the cache holds; the new ones follow.
      rotary_dims: features of a head to rotate; 0 for none.
      window: how many tokens a query sees; None is all.
      learned, slopes: see `full`.

    Returns:
      ([batch, new_tokens, heads, features_per_head], the cache with the new tokens written).
    """
    batch, new_tokens, _, heads, features = qkv.shape.dims
    memory = cache[0].shape.dims[2]
    parts = Heads(qkv, memory, rotary_dims)
    rules = Rules(window=window, learned=_number(learned), slopes=slopes)

    def forward(slices, x, keys, values, at, *learned):
        position = slices.map(lambda at: at[:, None, None] + tf.range(new_tokens.size), at)
        start = slices.start(memory) if slices.is_split(memory) else None
        q, k, v = parts.split(slices, x, position)
        keys, values = (slices.map(_written, old, new, position, start)
                        for old, new in ((keys, k), (values, v)))
        learned = [slices.map(lambda t: tf.transpose(t, [1, 0, 2])[None], t) for t in learned]
        scores = [parts.products(slices, q, k) for k in [*learned[:1], keys]]

        def placed(position, start, head, *scores):
            return rules.apply(tf.concat(scores, -1), position[..., None], start, head)

        head = slices.start(heads) if slices.is_split(heads) else 0
        p = parts.softmax(slices, slices.map(placed, position, start, head, *scores))

        def outputs(p, *values):
            shares = tf.split(p, [v.shape[2] for v in values], -1)
            return sum(map(weighted, shares[1:], values[1:]), weighted(shares[0], values[0]))

        out = slices.sum(slices.map(outputs, p, *learned[1:], values), memory)
        return slices.map(swapped, out), keys, values

    out, *cache = SliceOperation(
        forward, None, [qkv, *cache, index, *learned],
        [([batch, new_tokens, heads, features], qkv.dtype)] + [(c.shape, c.dtype) for c in cache],
        "causal_incremental").outputs
    return out, tuple(cache)


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
