"""Layer normalisation, whole on each slice or split over several."""

from mesh.compat import mtf, tf
from mesh.ops import sum_like
from mesh.slices import SliceOperation


def layer_norm(x, gain, bias, dim, epsilon, name="layer_norm"):
    """Layer normalisation over `dim`, the last dimension of `x`, which may be split.

    Statistics are float32 whatever the type of `x`. Ba, Kiros & Hinton 2016, section 3.

    Args:
      x: [..., dim]. gain, bias: [dim].
      dim: the normalised dimension.
      epsilon: added to the variance.
      name: a name for the TensorFlow scope.

    Returns:
      a tensor like `x`.
    """
    def mean(slices, total):
        return slices.map(lambda t: t / dim.size, slices.sum(total, dim))

    def forward(slices, x_slice, g, b):
        if not slices.is_split(dim):
            return slices.map_elementwise(_norm, x_slice, g, b, dim.size, epsilon)
        mu = mean(slices, slices.map(_total, x_slice))
        var = mean(slices, slices.map(_total_square, x_slice, mu))
        rstd = slices.map(lambda v: tf.rsqrt(v + epsilon), var)
        return slices.map(_normalised, x_slice, g, b, mu, rstd), mu, rstd

    def backward(slices, ins, outs, grads):
        x_slice, g, b = ins
        known = [x_slice, g, *outs[1:], grads[0]]
        if slices.is_split(dim):
            means = (mean(slices, total) for total in slices.map(_norm_totals, *known))
            dx, product = slices.map(_norm_gradient, *known, *means)
        else:
            dx, product = slices.map_elementwise(_whole_norm_gradient, *known, dim.size)
        return [dx, slices.map(sum_like, g, product), slices.map(sum_like, b, grads[0])]

    column = x.shape.dims[:-1] + [mtf.Dimension("statistic", 1)]
    return SliceOperation(forward, backward, [x, gain, bias],
                          [(x.shape, x.dtype), (column, tf.float32), (column, tf.float32)],
                          name).outputs[0]


def _norm(x, g, b, size, epsilon):
    """(norm, mean, 1/deviation) of a slice that holds the norm's dimension whole."""
    mu = _total(x) / size
    rstd = tf.rsqrt(_total_square(x, mu) / size + epsilon)
    return _normalised(x, g, b, mu, rstd), mu, rstd


def _total(x):
    return tf.reduce_sum(tf.cast(x, tf.float32), -1, keepdims=True)


def _total_square(x, mu):
    return tf.reduce_sum(tf.square(tf.cast(x, tf.float32) - mu), -1, keepdims=True)


def _normalised(x, g, b, mu, rstd):
    y = (tf.cast(x, tf.float32) - mu) * (rstd * tf.cast(g, tf.float32)) + tf.cast(b, tf.float32)
    return tf.cast(y, x.dtype)


def _whole_norm_gradient(x, g, mu, rstd, dy, size):
    totals = _norm_totals(x, g, mu, rstd, dy)
    return _norm_gradient(x, g, mu, rstd, dy, *(t / size for t in totals))


def _norm_totals(x, g, mu, rstd, dy):
    """Sums of the gradient of (x − mean)/deviation, and of its product with that."""
    g = tf.cast(g, tf.float32)
    return _total(tf.cast(dy, tf.float32) * g), _total(_gain_gradient(x, mu, rstd, dy) * g)


def _norm_gradient(x, g, mu, rstd, dy, mean, mean_product):
    """The gradient of `x`; and of the gain, element by element."""
    centred = tf.cast(x, tf.float32) - mu
    d = tf.cast(dy, tf.float32) * tf.cast(g, tf.float32)
    dx = rstd * (d - mean - centred * (rstd * mean_product))
    return tf.cast(dx, x.dtype), _gain_gradient(x, mu, rstd, dy)


def _gain_gradient(x, mu, rstd, dy):
    # Written like this, compilers find it three times over in the gradient, and compute it once.
    return tf.cast(dy, tf.float32) * ((tf.cast(x, tf.float32) - mu) * rstd)
