"""The parts that every model is made of: variables, dense layers, norms, dropout."""

import dataclasses
import zlib

from mesh import norms, ops, random
from mesh.compat import mtf, tf
from mesh.slices import local


@dataclasses.dataclass(frozen=True)
class Term:
    """A loss term that a layer adds: see Context.add_term."""

    total: mtf.Tensor
    count: str
    weight: float


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
      start: None, or a function of a variable's full name that returns the initialiser of one that
        starts from elsewhere, and None for one that starts as usual.
      fixed: whether nothing updates the variables, so that slices hold them as they are read.
      dropless: whether experts take every token, as in sampling and in scoring texts, where what
        stands beside a token must not matter.
      terms: the loss terms that layers have added, by name.
    """

    mesh: mtf.Mesh
    config: object
    dropout_key: object = None
    stored: object = None
    start: object = None
    fixed: bool = False
    dropless: bool = False
    terms: dict = dataclasses.field(default_factory=dict, compare=False)

    def add_term(self, name, total, count, weight):
        """Adds a loss term beside the objective's own, or to one of the same name.

        Args:
          name: TensorBoard shows it as `loss/<name>`.
          total: a float32 mtf scalar: a sum over positions.
          count: what the sum is divided by: "tokens" for all of the batch's positions, or the
            name of a count that the objective gives.
          weight: a number, the term's weight in the total loss.
        """
        if name in self.terms:
            total += self.terms[name].total
        self.terms[name] = Term(total, count, weight)

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
        read_as = dtype or self.dtype
        dtypes = mtf.VariableDType(tf.float32, read_as if self.fixed else tf.float32, read_as)
        begun = self.start(full_name) if self.start else None
        return mtf.get_variable(self.mesh, name, mtf.Shape(shape), dtype=dtypes,
                                initializer=begun or initializer(self.config.seed, full_name),
                                trainable=trainable)


def recomputed(ctx, fn, x):
    """fn(x), computed again in the backward pass; loss terms that it adds to `ctx` are kept."""
    outside = dict(ctx.terms)
    added = {}

    def with_terms(x):
        ctx.terms.clear()
        y = fn(x)
        added.update(ctx.terms)
        return (y, *(term.total for term in added.values()))

    # What is computed again has to be a result, or nothing may use it outside.
    y, *totals = mtf.recompute_grad(with_terms, [x])
    ctx.terms.clear()
    ctx.terms.update(outside)
    for (name, term), total in zip(added.items(), totals, strict=True):
        ctx.add_term(name, total, term.count, term.weight)
    return y


def normal(stddev):
    """Initialiser: normal with the given standard deviation, seeded by (seed, variable name)."""
    def seeded(seed, name):
        key = [seed % 2**31, zlib.crc32(name.encode()) % 2**31]

        def initialise(shape, dtype=tf.float32, partition_info=None):
            # Of a constant key TensorFlow would make the weights constants, beside the variables.
            fresh = tf.constant(key, tf.int64) + ops.fresh_zeros([2], tf.int64)
            return tf.random.stateless_normal(shape, fresh, stddev=stddev, dtype=dtype)

        return initialise
    return seeded


def constant(value):
    """Initialiser: the same value everywhere."""
    return lambda seed, name: tf.constant_initializer(value)


def dense(ctx, x, in_dims, out_dims, name, stddev):
    """A dense layer with bias. x: [..., in_dims...] -> [..., out_dims...]."""
    kernel, bias = dense_weights(ctx, in_dims, out_dims, name, stddev)
    return ops.dense(x, kernel, bias, in_dims, name=name)


def dense_weights(ctx, in_dims, out_dims, name, stddev):
    """The kernel, [in_dims..., out_dims...], and bias, [out_dims...], of a dense layer."""
    with tf.variable_scope(name):
        return (ctx.variable("kernel", in_dims + out_dims, normal(stddev)),
                ctx.variable("bias", out_dims, constant(0.0)))


def layer_norm(ctx, x, dim, name, epsilon=None):
    """Layer normalisation over `dim`: `norm` of the kind "layer"."""
    return norm(ctx, x, dim, name, "layer", epsilon)


def norm(ctx, x, dim, name, kind, epsilon=None):
    """Normalisation over `dim`. x: [..., dim] -> the same shape.

    Args:
      ctx: a Context.
      x: [..., dim].
      dim: the normalised dimension.
      name: the scope of its variables.
      kind: "layer" (Ba et al. 2016); "rms" (Zhang & Sennrich 2019); "scale" (Nguyen & Salazar 2019,
        equation 5: x over its length with one gain, which is their g/√dim); or "centred_scale",
        GPT-Neo's scalenorm: a layer norm with one gain and no bias.
      epsilon: added to the variance or mean square; by default it is the config's.

    Returns:
      a tensor like `x`.
    """
    epsilon = ctx.config.layer_norm_epsilon if epsilon is None else epsilon
    with tf.variable_scope(name):
        gain = ctx.variable("gain", [] if kind.endswith("scale") else [dim], constant(1.0))
        bias = ctx.variable("bias", [dim], constant(0.0)) if kind == "layer" else None
    if kind in ("layer", "centred_scale"):
        return norms.layer_norm(x, gain, bias, dim, epsilon, name=name)
    return norms.rms_norm(x, gain, dim, epsilon, name=name)


def rezero(ctx, x):
    """x times a trained scalar that starts at 0. Bachlechner et al. 2020, equation 1."""
    def one_slice(x, scale):
        return tf.cast(tf.cast(x, tf.float32) * scale, x.dtype)

    # Float32, so that its gradient is summed in it.
    scale = ctx.variable("rezero", [], constant(0.0), dtype=tf.float32)
    return local(one_slice, [x, scale], (x.shape, x.dtype), name="rezero")


def dropout(ctx, x, rate, site):
    """Dropout in training; `site` is a name that is unique in the model."""
    if not ctx.train or not rate:
        return x
    return random.dropout(x, rate, ctx.dropout_key, site_number(site), name="dropout")


def site_number(site):
    """A 31-bit number for the name of a place in the model."""
    return zlib.crc32(site.encode()) % 2**31
