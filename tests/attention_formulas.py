"""Attention written out with whole [sequence, sequence] tensors, to compare with."""

import numpy as np
import tensorflow

from mesh import random
from models import layers


def rotate(x, rotary_dims):
    """x [b, h, s, d] rotated as complex numbers: feature i is paired with i + rotary_dims / 2."""
    half = rotary_dims // 2
    angles = (np.arange(x.shape[2])[:, None]
              * 10000.0 ** (-np.arange(half) / half)).astype(np.float32)
    turned = tensorflow.complex(x[..., :half], x[..., half:rotary_dims]) * np.exp(1j * angles)
    return tensorflow.concat([tensorflow.math.real(turned), tensorflow.math.imag(turned),
                              x[..., rotary_dims:]], -1)


def parts(x, rotary_dims):
    """[b, s, 3, h, d] -> queries, keys and values [b, h, s, d], rotated."""
    q, k, v = tensorflow.unstack(tensorflow.transpose(x, [2, 0, 3, 1, 4]))
    if rotary_dims:
        q, k = rotate(q, rotary_dims), rotate(k, rotary_dims)
    return q, k, v


def softmax_attention(x, learned=(), rotary_dims=0, causal=True, window=None, slopes=None,
                      keep=None):
    """softmax(q·kᵀ/√d − slope·distance, masked)·v, [b, s, h, d].

    `learned` are two of [number, h, d]; `keep` is dropout's factor for [b, h, s, number + s].
    """
    q, k, v = parts(x, rotary_dims)
    number = 0
    if learned:
        number = learned[0].shape[0]
        k, v = (tensorflow.concat([tensorflow.broadcast_to(
            tensorflow.transpose(m, [1, 0, 2]), [t.shape[0], t.shape[1], number, t.shape[3]]), t],
            2) for m, t in zip(learned, (k, v), strict=True))
    scores = tensorflow.einsum("bhid,bhjd->bhij", q, k) / np.float32(np.sqrt(x.shape[-1]))
    distance = np.subtract.outer(np.arange(x.shape[1]), np.arange(x.shape[1]))
    if slopes is not None:
        falls = np.multiply.outer(slopes, np.abs(distance)).astype(np.float32)
        scores -= np.pad(falls, [(0, 0), (0, 0), (number, 0)])
    visible = (distance >= 0) | (not causal)
    if window is not None:
        visible &= (distance < window) & (distance >= -window)
    visible = np.pad(visible, [(0, 0), (number, 0)], constant_values=True)
    p = tensorflow.nn.softmax(tensorflow.where(visible, scores, -np.inf))
    if keep is not None:
        p *= keep
    return tensorflow.einsum("bhij,bhjd->bihd", p, v)


def keep_factors(shape, rate, key, site):
    """Dropout's factors of a whole tensor: 0 or 1/(1 − rate)."""
    mixed = random.mix(tensorflow.constant(key), layers.site_number(site))
    mask = random.keep_mask(random.global_index(shape, [0] * len(shape), shape), mixed, rate)
    return tensorflow.cast(mask, tensorflow.float32) / np.float32(1 - rate)


def linear_attention(x, rotary_dims=0, causal=True):
    """Attention with weights Σ_f softmax(q/√d)_f · exp(k)_f, [b, s, h, d]: every pair of tokens.

    Causal, a query's weights are divided by their sum and 1e-6. Both ways, each feature of the keys
    is a softmax over the sequence.
    """
    q, k, v = parts(x, rotary_dims)
    q = tensorflow.nn.softmax(q / np.float32(np.sqrt(x.shape[-1])))
    k = tensorflow.exp(k) if causal else tensorflow.nn.softmax(k, 2)
    weights = tensorflow.einsum("bhif,bhjf->bhij", q, k)
    if causal:
        weights *= np.tril(np.ones([x.shape[1]] * 2, np.float32))
        weights /= tensorflow.reduce_sum(weights, -1, keepdims=True) + np.float32(1e-6)
    return tensorflow.einsum("bhij,bhjd->bihd", weights, v)
