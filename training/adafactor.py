"""Adafactor: second moments that take little memory."""

from mesh.compat import mtf, tf
from training import updates
from training.slices import SumOfSquares, slicewise


class Adafactor(updates.Optimizer):
    """Adam's second moment from row and column means, updates clipped; the rate is given.

    https://arxiv.org/abs/1804.04235, algorithms 4 and 5. Second moments are factored over the two
    largest dimensions of a variable of rank ≥ 2, and kept whole under that. With each step they
    move towards the new squares by a share that `decay_type` gives:

        pow:   t^-decay_exponent          (section 7.2)
        adam:  (1-β₂) / (1-β₂ᵗ)           (section 7.1: Adam's moment with its bias corrected)

    Args:
      learning_rate: float32 tf tensor []; the schedule is obeyed, no relative step size.
      step: integer tf tensor [], t: 1 at the first update.
      beta1: float, momentum of the update; 0 or None keeps none, and no slot.
      epsilon1: float, added to squared gradients.
      epsilon2: float; > 0 multiplies the rate by max(epsilon2, RMS of the variable), 0 or None
        takes the rate as it is.
      clipping: float, the largest RMS of an update before the rate.
      weight_decay: float, times the learning rate as in AdamW.
      decay_type: "pow" or "adam".
      decay_exponent: float, of "pow".
      beta2: float, of "adam".
      factored: whether second moments are factored; without it they take a variable's memory.
    """

    def __init__(self, learning_rate, step, beta1=0.0, epsilon1=1e-30, epsilon2=0.0, clipping=1.0,
                 weight_decay=0.0, decay_type="pow", decay_exponent=0.8, beta2=0.999,
                 factored=True):
        super().__init__(learning_rate, weight_decay)
        self._beta1, self._epsilon1, self._epsilon2 = beta1, epsilon1, epsilon2
        self._clipping, self._factors = clipping, factored
        if decay_type == "adam":
            self._mixing = (1.0 - beta2) / updates.bias_correction(beta2, step)
        else:
            self._mixing = tf.pow(tf.cast(step, tf.float32), -decay_exponent)

    def apply_grad(self, grad, variable):
        """Moments and the direction as mtf operations, then one update of the slices."""
        square = slicewise(lambda g: tf.square(tf.cast(g, tf.float32)) + self._epsilon1, [grad])
        divided = self._factored if self._factors and len(variable.shape) >= 2 else self._whole
        direction, operations = divided(grad, square, variable)
        inputs = [direction, SumOfSquares([direction]).outputs[0]]
        if self._epsilon2:
            # The model's tensor may be bfloat16: good enough for the size of the whole.
            inputs.append(SumOfSquares([variable.value]).outputs[0])
        slots = [updates.slot(variable, "ada_m")] if self._beta1 else []
        decay = self.decay_factor(variable)
        count = float(variable.shape.size)

        def update(slices, values):
            change = values[0] * self._rate(count, *values[1:])
            weight, done = slices[0], []
            if self._beta1:
                momentum = tf.convert_to_tensor(slices[1])
                change = self._beta1 * momentum + (1.0 - self._beta1) * change
                done.append(tf.assign(slices[1], change))
            kept = weight if decay is None else weight * decay
            return tf.group(tf.assign(weight, kept - change), *done)

        return [*operations, self.slice_update([variable, *slots], inputs, update, "adafactor")]

    def _rate(self, count, direction_squares, variable_squares=None):
        """Learning rate over the clipping divisor, times the variable's RMS where asked."""
        rms = tf.sqrt(direction_squares / count)
        rate = self._lr / tf.maximum(1.0, rms / self._clipping)
        if variable_squares is None:
            return rate
        return rate * tf.maximum(self._epsilon2, tf.sqrt(variable_squares / count))

    def _moment(self, variable, name, value):
        """A slot's moving average of `value`: (mtf.Tensor, the operation that stores it)."""
        slot = updates.slot(variable, name, value.shape)
        new = slicewise(lambda old, x: old + (x - old) * self._mixing, [slot.value, value])
        if self.finite is None:
            return new, mtf.assign(slot, new)
        kept = slicewise(lambda old, x, finite: tf.where(finite > 0, x, old),
                         [slot.value, new, self.finite])
        return new, mtf.assign(slot, kept)

    def _whole(self, grad, square, variable):
        """Gradient over √v, v unfactored: (mtf.Tensor, operations)."""
        v, store = self._moment(variable, "ada_v", square)
        return slicewise(lambda g, v: tf.cast(g, tf.float32) * tf.rsqrt(v), [grad, v]), [store]

    def _factored(self, grad, square, variable):
        """Gradient over √(row ⊗ column / mean of row): (mtf.Tensor, operations)."""
        dims = variable.shape.dims
        largest = sorted(range(len(dims)), key=lambda i: -dims[i].size)[:2]
        i, j = sorted(largest)
        row, store_row = self._moment(
            variable, "ada_row", mtf.reduce_mean(square, reduced_dim=dims[j]))
        column, store_column = self._moment(
            variable, "ada_col", mtf.reduce_mean(square, reduced_dim=dims[i]))
        mean = mtf.reduce_mean(row, reduced_dim=dims[i])

        def direction(g, row, column, mean):
            row = row / tf.expand_dims(mean, i)
            return (tf.cast(g, tf.float32) * tf.expand_dims(tf.rsqrt(row), j)
                    * tf.expand_dims(tf.rsqrt(column), i))

        return slicewise(direction, [grad, row, column, mean]), [store_row, store_column]
