"""Rotary position embeddings (Su et al. 2021, section 3.2.2), as TensorFlow functions of slices."""

import tensorflow.compat.v1 as tf


def rotary_angles(positions, rotary_dims, base=10000.0):
    """Cosines and sines of the rotation of each position.

    Float32 whatever the model's precision: in bfloat16 most positions beyond 256 coincide.

    Args:
      positions: int32 tf tensor of any shape.
      rotary_dims: how many features of a head are rotated; even.
      base: the wavelengths grow from 2π to 2π·base.

    Returns:
      (cos, sin), float32 [positions' shape..., rotary_dims / 2].
    """
    exponent = tf.range(0, rotary_dims, 2, dtype=tf.float32) / rotary_dims
    angles = tf.cast(positions, tf.float32)[..., None] * tf.pow(base, -exponent)
    return tf.cos(angles), tf.sin(angles)


def rotate(x, cos, sin, rotary_dims):
    """Rotates the first `rotary_dims` features; feature i is paired with i + rotary_dims / 2.

    That is GPT-NeoX's pairing; GPT-J's, neighbours, differs by a permutation of the weights.

    Args:
      x: [..., features_per_head]. cos, sin: [..., rotary_dims / 2], broadcast against x.
      rotary_dims: see above.

    Returns:
      a tensor like `x`.
    """
    half = rotary_dims // 2
    first, second = (tf.cast(part, tf.float32)
                     for part in (x[..., :half], x[..., half:rotary_dims]))
    turned = [tf.cast(first * cos - second * sin, x.dtype),
              tf.cast(second * cos + first * sin, x.dtype)]
    return tf.concat(turned + [x[..., rotary_dims:]], -1)
