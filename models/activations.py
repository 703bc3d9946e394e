"""Activations, element by element unless they say otherwise, and the gates made of them."""

import functools

from tensorflow import nn

from configs.errors import UserError
from mesh import slices
from mesh.compat import mtf, tf
from models import trained_activations


def _elish(x):
    # Basirat & Roth 2018, equation 5; GPT-Neo's has x·sigmoid(−x) for x > 0.
    return tf.sigmoid(x) * tf.where_v2(x > 0, x, tf.math.expm1(tf.minimum(x, 0)))


def _odd_harmonics(function, x, power):
    """Four terms of a Fourier series: of a triangle wave's or a square wave's."""
    return sum(sign * function(n * x) / n ** power
               for sign, n in [(1, 1), (-1, 3), (1, 5), (-1, 7)])


ACTIVATIONS = {
    # GPT-2's and GPT-Neo's gelu is the tanh approximation; "gelu_exact" is the one with erf.
    "gelu": lambda x: nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "squared_relu": lambda x: tf.square(tf.nn.relu(x)),
    "leaky_relu": tf.nn.leaky_relu,
    "elu": tf.nn.elu,
    "selu": tf.nn.selu,
    "silu": tf.nn.silu,
    "swish": tf.nn.silu,
    "mish": lambda x: x * tf.tanh(tf.nn.softplus(x)),
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "hard_sigmoid": lambda x: tf.clip_by_value(0.2 * x + 0.5, 0.0, 1.0),
    "log_sigmoid": tf.math.log_sigmoid,
    "softplus": tf.nn.softplus,
    "softsign": tf.nn.softsign,
    "exponential": tf.exp,
    "linear": tf.identity,
    # GPT-Neo's further ones, models/activations.py there.
    "id": tf.identity,
    "abs": tf.abs,
    "sign": tf.sign,
    "sin": tf.sin,
    "cos": tf.cos,
    "lrelu001": lambda x: tf.nn.leaky_relu(x, 0.01),
    "lrelu020": lambda x: tf.nn.leaky_relu(x, 0.2),
    "triangle_relax": lambda x: _odd_harmonics(tf.sin, x, 2),
    "square_relax": lambda x: _odd_harmonics(tf.cos, x, 1),
    "spike": lambda x: 1 / (1 + tf.square(x)),
    "spike2": lambda x: tf.exp(-tf.square(x)),
    "tanhshrink": lambda x: x - tf.tanh(x),
    "bipolarsigmoid": lambda x: 2 * tf.sigmoid(x) - 1,
    "elish": _elish,
    "arcsinh": tf.asinh,
    "maxsig": lambda x: tf.maximum(x, tf.sigmoid(x)),
    "maxtanh": lambda x: tf.maximum(x, tf.tanh(x)),
    "minsin": lambda x: tf.minimum(x, tf.sin(x)),
    "cosid": lambda x: tf.cos(x) - x,
    "tanhexp": lambda x: x * tf.tanh(tf.exp(x)),
    "lisht": lambda x: x * tf.tanh(x),
    "seagull": lambda x: tf.math.log1p(tf.square(x)),
    "snake": lambda x: x + tf.square(tf.sin(x)),
    "roottanh": lambda x: tf.pow(tf.square(x) + 1, 1 / 3) * tf.tanh(x),
    "softplusmone": lambda x: tf.nn.softplus(x) - 1,
}


def _over_features(x, function):
    """An mtf function over the last dimension, which may be split, in float32."""
    return mtf.cast(function(mtf.cast(x, tf.float32), x.shape.dims[-1]), x.dtype)


# Not element by element: the hidden features of a token compete.
OVER_FEATURES = {
    "softmax": mtf.softmax, "log_softmax": mtf.log_softmax, "logsoftmax": mtf.log_softmax}


def activation(ctx, x, name, site):
    """Applies an activation.

    Args:
      ctx: a models.layers.Context, for those of trained_activations.
      x: of any shape.
      name: of the activation, any but crelu.
      site: a name that is unique in the model.

    Returns:
      a tensor like `x`.
    """
    if name in OVER_FEATURES:
        return _over_features(x, OVER_FEATURES[name])
    if name in trained_activations.NAMES:
        function, further = trained_activations.prepared(ctx, name, x.shape, site)

        def in_float32(x, *further):
            return tf.cast(function(tf.cast(x, tf.float32), *further), x.dtype)

        return slices.local(in_float32, [x, *further], (x.shape, x.dtype), name=name)
    if name not in ACTIVATIONS:
        known = ", ".join([*ACTIVATIONS, *OVER_FEATURES, *trained_activations.NAMES])
        raise UserError(f"activation_function: {name!r} is not one of {known}")
    return slices.local(ACTIVATIONS[name], [x], (x.shape, x.dtype), elementwise=True, name=name)


def crelu(x, dim):
    """Concatenated relu: what is above 0, and what is below (Shang et al. 2016).

    Args:
      x: [..., features].
      dim: a dimension of size 2, which no layout splits.

    Returns:
      [..., dim, features]: relu(x) and relu(−x).
    """
    shape = [*x.shape.dims[:-1], dim, x.shape.dims[-1]]
    return slices.local(lambda x: tf.stack([tf.nn.relu(x), tf.nn.relu(-x)], -2), [x],
                        (shape, x.dtype), name="crelu")


def gated(ctx, x, dim, name, site):
    """A gated linear unit: value · activation(gate). Shazeer 2020, equation 6.

    Args:
      x: [..., dim, features]; index 0 of `dim` is the value, 1 the gate.
      dim: a dimension of size 2, which no layout splits.
      name: of the gate's activation, which is not one of OVER_FEATURES, nor crelu.
      ctx, site: see `activation`.

    Returns:
      [..., features].
    """
    shape = mtf.Shape([d for d in x.shape.dims if d != dim])
    if name not in trained_activations.NAMES:
        return slices.local(_gate(name), [x], (shape, x.dtype), elementwise=True,
                            name=f"{name}_gate")
    function, further = trained_activations.prepared(ctx, name, shape, site)

    def in_float32(x, *further):
        gate = function(tf.cast(x[..., 1, :], tf.float32), *further)
        return x[..., 0, :] * tf.cast(gate, x.dtype)

    return slices.local(in_float32, [x, *further], (shape, x.dtype), name=f"{name}_gate")


# The same function each time, so that it is compiled once.
@functools.cache
def _gate(name):
    return lambda x: x[..., 0, :] * ACTIVATIONS[name](x[..., 1, :])
