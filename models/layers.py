"""The parts that every model is made of: variables, dense layers, norms, dropout, activations."""

import dataclasses
import zlib

from tensorflow import nn

from configs.errors import UserError
from mesh import norms, ops, random, slices
from mesh.compat import mtf, tf


@dataclasses.dataclass(frozen=True)
class Context:
    """What a model is built with, beside its inputs.

    Attributes:
      mesh: the mtf.Mesh.
      config: the run's configuration.
      dropout_key: an int32 scalar mtf tensor, different for each (seed, step, microbatch); None
        outside of training.
      stored: None, or a function of a variable's full name that returns its initialiser: then the
        variables are constants that come from elsewhere, neither trained nor in a checkpoint.
    """

    mesh: mtf.Mesh
    config: object
    dropout_key: object = None
    stored: object = None

    @property
    def train(self):
        """Whether the model is being trained: dropout is on."""
        return self.dropout_key is not None

    @property
    def dtype(self):
        """The type of activations and of matrix products."""
        return tf.bfloat16 if self.config.precision == "bfloat16" else tf.float32

    def variable(self, name, shape, initializer, trainable=True, dtype=None):
        """A float32 variable, read in the activations' type or in `dtype`."""
        scope = tf.get_variable_scope().name
        full_name = f"{scope}/{name}" if scope else name
        if self.stored:
            # Nothing updates it, so slices need no more precision than what reads them.
            return mtf.get_variable(
                self.mesh, name, mtf.Shape(shape),
                dtype=mtf.VariableDType(tf.float32, *[dtype or self.dtype] * 2),
                initializer=self.stored(full_name), trainable=False,
                collections=[tf.GraphKeys.LOCAL_VARIABLES])
        dtypes = mtf.VariableDType(tf.float32, tf.float32, dtype or self.dtype)
        return mtf.get_variable(self.mesh, name, mtf.Shape(shape), dtype=dtypes,
                                initializer=initializer(self.config.seed, full_name),
                                trainable=trainable)


def normal(stddev):
    """Initialiser: normal with the given standard deviation, seeded by (seed, variable name)."""
    def seeded(seed, name):
        key = [seed % 2**31, zlib.crc32(name.encode()) % 2**31]

        def initialise(shape, dtype=tf.float32, partition_info=None):
            return tf.random.stateless_normal(shape, key, stddev=stddev, dtype=dtype)

        return initialise
    return seeded


def constant(value):
    """Initialiser: the same value everywhere."""
    return lambda seed, name: tf.constant_initializer(value)


def dense(ctx, x, in_dims, out_dims, name, stddev):
    """A dense layer with bias. x: [..., in_dims...] -> [..., out_dims...]."""
    with tf.variable_scope(name):
        kernel = ctx.variable("kernel", in_dims + out_dims, normal(stddev))
        bias = ctx.variable("bias", out_dims, constant(0.0))
    return ops.dense(x, kernel, bias, in_dims, name=name)


def layer_norm(ctx, x, dim, name, epsilon=None):
    """Layer normalisation over `dim`. x: [..., dim] -> the same shape.

    `epsilon` is added to the variance; by default it is the config's.
    """
    epsilon = ctx.config.layer_norm_epsilon if epsilon is None else epsilon
    with tf.variable_scope(name):
        gain = ctx.variable("gain", [dim], constant(1.0))
        bias = ctx.variable("bias", [dim], constant(0.0))
    return norms.layer_norm(x, gain, bias, dim, epsilon, name=name)


def dropout(ctx, x, rate, site):
    """Dropout in training; `site` is a name that is unique in the model."""
    if not ctx.train or not rate:
        return x
    return random.dropout(x, rate, ctx.dropout_key, site_number(site), name="dropout")


def site_number(site):
    """A 31-bit number for the name of a place in the model."""
    return zlib.crc32(site.encode()) % 2**31


def _mish(x):
    return x * tf.tanh(tf.nn.softplus(x))


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
    "mish": _mish,
    "tanh": tf.tanh,
    "sigmoid": tf.sigmoid,
    "softplus": tf.nn.softplus,
    "softsign": tf.nn.softsign,
    "linear": tf.identity,
}


def activation(x, name):
    """Applies the activation called `name`, element by element."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation_function: {name!r} is not one of {', '.join(ACTIVATIONS)}")
    return slices.local(ACTIVATIONS[name], [x], (x.shape, x.dtype), elementwise=True, name=name)
