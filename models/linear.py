"""Linear attention: work and memory grow with the sequence, and a decoded token costs the same.

A query is softmax(q/√d) over the features of its head; the weight of a key j for a query i is
Σ_f q_if · exp(k_jf). That is GPT-Neo's linear attention (its models/layers.py, `linear_attention`
and `causal_linear_attention`, after Shen et al. 2018, "Efficient attention", and Katharopoulos et
al. 2020, "Transformers are RNNs", section 3.3), with the 1/√d that every attention here has.
All of it is float32 whatever the type of the activations. There is no dropout, as in GPT-Neo.

Names of dimensions in comments: b batch, n tokens, h heads, d features_per_head, c chunks.
"""

import numpy as np

from mesh.compat import mtf, tf
from mesh.slices import local
from models import positions

# Tokens that see each other by their products; those of chunks before are seen by their sum.
_CHUNK = 128

# Added to the sum of each feature of the keys, as in GPT-Neo.
_EPSILON = 1e-6

# Keys above it count like it: their exponentials, and sums of them, stay finite.
_LARGEST_KEY = 60.0


def full(qkv, rotary_dims, causal=True):
    """Linear attention in full form.

    Causal: Σ_j≤i weight_ij · v_j / Σ_j≤i weight_ij. Both ways, the exponentials of each feature of
    the keys are divided by their own sum over the sequence, a softmax.

    Every layout may split every dimension; along `sequence` and `features_per_head` queries, keys
    and values are gathered, and all slices do the same.

    Args:
      qkv: queries, keys and values, [batch, sequence, qkv, heads, features_per_head].
      rotary_dims: features of a head to rotate; 0 for none.
      causal: whether a token sees itself and what came before, or everything.

    Returns:
      [batch, sequence, heads, features_per_head].
    """
    batch, sequence, packed, heads, features = qkv.shape.dims
    whole = [mtf.Dimension(f"whole_{dim.name}", dim.size) for dim in (sequence, features)]

    def one_slice(x):
        places = tf.range(sequence.size)
        angles = positions.rotary_angles(places, rotary_dims) if rotary_dims else ()
        q, k, v = _parts(x, rotary_dims, *angles)
        if causal:
            out, _ = _causal(q, k, v, 0.0)
        else:
            out = tf.matmul(q, tf.matmul(tf.nn.softmax(k, 2), v, transpose_a=True))
        return tf.cast(tf.transpose(out, [0, 2, 1, 3]), x.dtype)

    out = local(one_slice, [mtf.reshape(qkv, [batch, whole[0], packed, heads, whole[1]])],
                ([batch, whole[0], heads, whole[1]], qkv.dtype), name="linear_attention")
    return mtf.reshape(out, [batch, sequence, heads, features])


def empty_cache(ctx, batch, heads, features):
    """The cache of `incremental` before any token: a tuple of one tensor of zeros.

    It holds, of all tokens so far, Σ exp(k)·v and in the last column Σ exp(k): float32 [batch,
    heads, key_features, value_features].
    """
    sums = [mtf.Dimension("key_features", features.size),
            mtf.Dimension("value_features", features.size + 1)]
    return (mtf.zeros(ctx.mesh, [batch, heads, *sums], tf.float32),)


def incremental(qkv, cache, count, rotary_dims, angles):
    """Causal linear attention of new tokens, given the sums over earlier ones.

    Args:
      qkv: of the new tokens, [batch, new_tokens, qkv, heads, features_per_head]; no layout splits
        the second dimension.
      cache: see `empty_cache`. Each token has to come once.
      count: int32 [batch]: how many of the new tokens belong to the row; those that follow, and
        their outputs, count for nothing. None is all.
      rotary_dims: features of a head to rotate; 0 for none.
      angles: models.positions.angles_of the new tokens.

    Returns:
      ([batch, new_tokens, heads, features_per_head], the new cache).
    """
    batch, new_tokens, packed, heads, features = qkv.shape.dims
    whole = mtf.Dimension(f"whole_{features.name}", features.size)
    state, = cache

    def one_slice(x, state, *others):
        turned, count = others[:len(angles)], others[len(angles):]
        q, k, v = _parts(x, rotary_dims, *(t[:, None] for t in turned))
        belongs = tf.range(new_tokens.size) < count[0][:, None] if count else None
        out, state = _causal(q, k, v, state, belongs)
        return tf.cast(tf.transpose(out, [0, 2, 1, 3]), x.dtype), state

    inputs = [mtf.reshape(qkv, [batch, new_tokens, packed, heads, whole]), state, *angles]
    out, state = local(one_slice, inputs + ([] if count is None else [count]),
                       [([batch, new_tokens, heads, whole], qkv.dtype), (state.shape, state.dtype)],
                       name="linear_incremental")
    return mtf.reshape(out, [batch, new_tokens, heads, features]), (state,)


def _parts(x, rotary_dims, *angles):
    """[b, n, 3, h, d] -> queries' softmax, keys as they are and values: float32 [b, h, n, d].

    `angles` are the positions' cosines and sines, broadcast against [b, h, n, rotated / 2].
    """
    q, k, v = tf.unstack(tf.transpose(tf.cast(x, tf.float32), [2, 0, 3, 1, 4]))
    if rotary_dims:
        q, k = (positions.rotate(t, *angles, rotary_dims) for t in (q, k))
    return tf.nn.softmax(q * q.shape[-1] ** -0.5), k, v


def _causal(q, k, v, state, belongs=None):
    """Outputs [b, h, n, d] and the sums after the last token, [b, h, d, d + 1].

    Args:
      q, k, v: as `_parts` returns them.
      state: the sums before the first token, or 0.0.
      belongs: bool [b, n]: which tokens are added to the sums, or None.
    """
    b, h, length, features = q.shape.as_list()
    k = tf.exp(tf.minimum(k, _LARGEST_KEY))
    if belongs is not None:
        k = tf.where_v2(belongs[:, None, :, None], k, 0.0)
    size = min(_CHUNK, length)
    chunks = -(-length // size)

    def in_chunks(t):
        t = tf.pad(t, [[0, 0], [0, 0], [0, chunks * size - length], [0, 0]])
        return tf.reshape(t, [b, h, chunks, size, t.shape[-1]])

    # A column of ones: the denominator is one more feature of the values.
    q, k, v = map(in_chunks, (q, k, tf.concat([v, tf.ones_like(v[..., :1])], -1)))
    own = tf.matmul(k, v, transpose_a=True)
    before = tf.cumsum(own, 2, exclusive=True) + (state if isinstance(state, float)
                                                  else state[:, :, None])
    weights = tf.matmul(q, k, transpose_b=True) * np.tri(size, dtype=np.float32)
    sums = tf.matmul(weights, v) + tf.matmul(q, before)
    sums = tf.reshape(sums, [b, h, chunks * size, features + 1])[:, :, :length]
    return sums[..., :-1] / (sums[..., -1:] + _EPSILON), state + tf.reduce_sum(own, 2)
