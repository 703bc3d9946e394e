"""Activations that have weights of their own, or chance in training: GPT-Neo's parametric ones.

All is float32 whatever the type of the activations, so that the gradients of the weights, sums over
the whole tensor, are too.
"""

import math

from mesh import random
from mesh.compat import tf
from models import layers


def _positive(weight, least):
    return tf.nn.softplus(weight) + least


def _aria(x, low, high, offset, scale, growth, root):
    # A Richards curve, as a gate (Patwardhan et al. 2018); e^60 is all that the fraction needs.
    exponent = tf.minimum(growth * x / _positive(root, 1.0), 60.0)
    return x * (low + high / (_positive(offset, 0.0) + scale * tf.exp(exponent)))


def _proottanh(x, power, offset, root):
    # GPT-Neo's takes powers of x itself, which negative numbers do not have.
    inside = tf.pow(tf.abs(x), _positive(power, 2.0)) + _positive(offset, 1.0)
    return tf.pow(inside, 1.0 / _positive(root, 3.0)) * tf.tanh(x)


# Of x and of one scalar weight for each initial value.
TRAINED = {
    "prelu": (lambda x, slope: tf.maximum(x, 0.0) + slope * tf.minimum(x, 0.0), (0.2,)),
    "aria": (_aria, (0.0, 1.0, 0.0, 1.0, -1.0, 0.0)),
    "parcsinh": (lambda x, scale, inner: scale * tf.asinh(x * _positive(inner, 1.0)), (1.0, 0.0)),
    "psoftplus": (lambda x, scale, inner, offset: scale * tf.nn.softplus(x * inner) + offset,
                  (1.0, 1.0, 0.0)),
    "proottanh": (_proottanh, (0.0, 0.0, 0.0)),
}

# The mean slope of rrelu below 0: ∫ (1 − s) / (1 + s) over 0 ≤ s < 1.
MEAN_SLOPE = 2.0 * math.log(2.0) - 1.0


def _rrelu(x, *chance):
    """GPT-Neo's (s|x| + x) / (1 + s): x above 0, less of it below (Xu et al. 2015)."""
    slope = (1.0 - chance[0]) / (1.0 + chance[0]) if chance else MEAN_SLOPE
    return tf.maximum(x, 0.0) + slope * tf.minimum(x, 0.0)


NAMES = (*TRAINED, "rrelu")


def prepared(ctx, name, shape, site):
    """A function of x and of further mtf tensors, and those tensors.

    Args:
      ctx: a models.layers.Context.
      name: one of NAMES.
      shape: of x.
      site: a name that is unique in the model: rrelu draws a slope for each element there, anew in
        each step, and takes their mean outside of training.

    Returns:
      (function of tf slices, list of float32 mtf tensors: scalars, which are variables `a`, `b`, …
      in the scope `activation`, or one like x).
    """
    if name == "rrelu":
        if not ctx.train:
            return _rrelu, []
        return _rrelu, [random.uniform(shape, ctx.dropout_key, layers.site_number(site))]
    function, initial = TRAINED[name]
    with tf.variable_scope("activation"):
        return function, [ctx.variable(chr(ord("a") + i), [], layers.constant(value),
                                       dtype=tf.float32) for i, value in enumerate(initial)]
