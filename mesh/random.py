"""Dropout as a pure function of (key, site, element): the same on every mesh and when recomputed.

mtf's own dropout is seeded by Python's random numbers and hashes on CPUs, and not at all on TPUs.
"""

import numpy as np

from mesh.compat import tf
from mesh.slices import SliceOperation


def dropout(x, rate, key, site, name="dropout"):
    """Zeroes elements with probability `rate` and scales the rest by 1/(1 − rate).

    Which ones is a hash of (key, site, the element's index in the whole tensor).

    Args:
      x: floating point, of any shape.
      rate: 0 <= rate < 1.
      key: int32 scalar mtf tensor that differs for each (seed, step, microbatch).
      site: an int, or an int32 scalar tensor, that differs for each place in the model.
      name: a name for the TensorFlow scope.

    Returns:
      a tensor like `x`.
    """
    if rate == 0.0:
        return x

    def keep(slices, x_slice, key_slice):
        starts = [slices.start(d) for d in x.shape.dims]

        def one_slice(v, k, *begin):
            index = global_index(v.shape.as_list(), begin, x.shape.to_integer_list)
            return v * tf.cast(keep_mask(index, mix(k, site), rate), v.dtype) / (1.0 - rate)

        return slices.map(one_slice, x_slice, key_slice, *starts)

    def backward(slices, ins, outs, grads):
        return [keep(slices, grads[0], ins[1]), None]

    return SliceOperation(keep, backward, [x, key], [(x.shape, x.dtype)], name).outputs[0]


def uniform(shape, key, site, name="uniform"):
    """Numbers in [0, 1), a hash of (key, site, the element's index in the whole tensor).

    Args:
      shape: the mtf shape of the result.
      key, site, name: see `dropout`.

    Returns:
      float32.
    """
    def forward(slices, key_slice):
        starts = [slices.start(d) for d in shape.dims]

        def one_slice(k, *begin):
            sizes = [d.size // slices.parts(d) for d in shape.dims]
            bits = _bits(global_index(sizes, begin, shape.to_integer_list), mix(k, site))
            return fraction(bits)

        return slices.map(one_slice, key_slice, *starts)

    return SliceOperation(forward, None, [key], [(shape, tf.float32)], name).outputs[0]


def global_index(sizes, starts, whole):
    """Index of each element of a slice in the whole tensor, row-major, modulo 2^32.

    Args:
      sizes: the slice's shape. starts: where it begins in each dimension (int32 scalars).
      whole: the whole tensor's shape.

    Returns:
      uint32 of shape `sizes`.
    """
    index = tf.zeros([1] * len(sizes), tf.uint32)
    stride = 1
    for axis in reversed(range(len(sizes))):
        shape = [1] * len(sizes)
        shape[axis] = sizes[axis]
        position = tf.reshape(tf.cast(tf.range(sizes[axis]) + starts[axis], tf.uint32), shape)
        index += position * tf.constant(stride % 2**32, tf.uint32)
        stride *= whole[axis]
    return index


def mix(key, value):
    """A new int32 key from a key and a value: one round of a 32-bit integer hash."""
    key = tf.bitcast(key, tf.uint32)
    value = tf.bitcast(tf.convert_to_tensor(value, tf.int32), tf.uint32)
    return tf.bitcast(_hash(key ^ _hash(value + np.uint32(0x9E3779B9))), tf.int32)


def fraction(bits):
    """Numbers in [0, 1), float32, from random bits: uint32, or int32 keys that `mix` made."""
    # Of 32 bits float32 holds 24: more would round up to 1.
    high = tf.bitwise.right_shift(tf.bitcast(bits, tf.uint32), np.uint32(8))
    return tf.cast(high, tf.float32) * 2.0**-24


def keep_mask(index, key, rate):
    """True with probability 1 − rate, by a hash of (key, index): uint32, and an int32 scalar."""
    return _bits(index, key) >= tf.constant(round(rate * 2**32), tf.uint32)


def _bits(index, key):
    """32 random bits for each index: uint32."""
    return _hash(index ^ tf.bitcast(key, tf.uint32))


def _hash(x):
    """A bijection of uint32 with full avalanche (constants: Wellons' hash-prospector)."""
    x ^= tf.bitwise.right_shift(x, np.uint32(16))
    x *= np.uint32(0x21F0AAAD)
    x ^= tf.bitwise.right_shift(x, np.uint32(15))
    x *= np.uint32(0x735A2D97)
    return x ^ tf.bitwise.right_shift(x, np.uint32(15))
