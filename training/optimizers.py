"""AdamW, Adafactor and gradient clipping on a mesh.

Slots are float32 variables `<variable>/<slot>` with the variable's own dimensions, so a layout
splits them as it splits the variable. Updates read and write the float32 slices themselves, never
the tensors the model computes with, which are bfloat16 where `precision` says so.
"""

import difflib
import math

import numpy as np

from configs.errors import UserError
from mesh.compat import mtf, tf
from training.slices import SliceUpdate, SumOfSquares, slicewise


def global_norm(tensors):
    """√ of the sum of the squares of all elements: an mtf float32 scalar.

    Args:
      tensors: list of mtf.Tensor, any shapes.
    """
    return mtf.sqrt(SumOfSquares(tensors).outputs[0])


def clip_by_global_norm(grads, max_norm):
    """Scales gradients down together so that their global norm is at most `max_norm`.

    Pascanu et al., https://arxiv.org/abs/1211.5063.

    Args:
      grads: list of mtf.Tensor.
      max_norm: float; None or 0 clips nothing.

    Returns:
      (list of mtf.Tensor, the norm before clipping as an mtf float32 scalar).
    """
    norm = global_norm(grads)
    if not max_norm:
        return grads, norm

    def scale(grad, norm):
        return grad * tf.cast(max_norm / tf.maximum(norm, max_norm), grad.dtype)

    return [slicewise(scale, [grad, norm], grad.dtype) for grad in grads], norm


class Optimizer:
    """What AdamW and Adafactor share: one update for each variable, and which of them decay.

    Args:
      learning_rate: float32 tf tensor [].
      weight_decay: float, taken times the learning rate (decoupled,
        https://arxiv.org/abs/1711.05101) from variables of rank ≥ 2; biases and layer-norm gains
        keep their size.
    """

    def __init__(self, learning_rate, weight_decay):
        self._lr = learning_rate
        self._weight_decay = weight_decay

    def apply_grads(self, grads, variables):
        """The operations that make one step.

        Args:
          grads: list of mtf.Tensor, shaped as the variables, any float dtype.
          variables: list of mtf.Variable.

        Returns:
          list of mtf.Operation, each for `lowering.lowered_operation`.

        Raises:
          ValueError: a gradient is None or has other dimensions than its variable.
        """
        operations = []
        for grad, variable in zip(grads, variables, strict=True):
            if grad is None:
                raise ValueError(f"{variable.name}: the loss does not depend on it")
            if grad.shape != variable.shape:
                raise ValueError(f"{variable.name}: gradient {grad.shape} for {variable.shape}")
            operations += self.apply_grad(grad, variable)
        return operations

    def apply_grad(self, grad, variable):
        """The operations that update one variable."""
        raise NotImplementedError

    def _decay(self, variable):
        """What the update leaves of the variable: a float32 tf tensor [], or None for all of it."""
        if len(variable.shape) < 2 or not self._weight_decay:
            return None
        return 1.0 - self._lr * self._weight_decay


def _slot(variable, name, shape=None):
    """A float32 variable of zeros beside `variable`, with its dimensions unless told otherwise."""
    shape = variable.shape if shape is None else shape
    return mtf.get_variable(variable.mesh, f"{variable.name}/{name}", shape, dtype=tf.float32,
                            initializer=tf.zeros_initializer(), trainable=False).operation


class AdamW(Optimizer):
    """Adam with bias correction and decoupled weight decay.

    https://arxiv.org/abs/1412.6980 and https://arxiv.org/abs/1711.05101. With g the gradient:

        m ← β₁m + (1-β₁)g          v ← β₂v + (1-β₂)g²
        w ← w·(1 - lr·decay) - lr · m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + ε)

    Args:
      learning_rate: float32 tf tensor [].
      step: integer tf tensor [], t: 1 at the first update.
      beta1, beta2, epsilon: floats.
      weight_decay: float.
    """

    def __init__(self, learning_rate, step, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0):
        super().__init__(learning_rate, weight_decay)
        self._betas = (beta1, beta2)
        # The fused kernel computes w -= rate·m/(√v + ε'). Multiplying the fraction above by
        # √(1-β₂ᵗ) gives the rate and ε' which make it the same.
        root = tf.sqrt(_bias_correction(beta2, step))
        self._rate = learning_rate * root / _bias_correction(beta1, step)
        self._epsilon = epsilon * root

    def apply_grad(self, grad, variable):
        """Two to five TensorFlow operations for each slice, all in one mtf operation."""
        decay = self._decay(variable)
        slots = [_slot(variable, "adam_m"), _slot(variable, "adam_v")]

        def update(slices, inputs):
            weight, m, v = slices
            before = [] if decay is None else [tf.assign(weight, weight * decay)]
            with tf.control_dependencies(before):
                return tf.raw_ops.ResourceApplyAdam(
                    var=weight.handle, m=m.handle, v=v.handle, beta1_power=0.0, beta2_power=0.0,
                    lr=self._rate, beta1=self._betas[0], beta2=self._betas[1],
                    epsilon=self._epsilon, grad=tf.cast(inputs[0], tf.float32))

        return [SliceUpdate([variable, *slots], [grad], update, "adamw")]


def _bias_correction(beta, step):
    """1 - βᵗ without cancellation, for β as float32 holds it, as the moments decay by that one."""
    log_beta = math.log(np.float32(beta)) if beta else -math.inf
    return -tf.math.expm1(tf.cast(step, tf.float32) * log_beta)


class Adafactor(Optimizer):
    """Adam's second moment from row and column means, updates clipped; the rate is given.

    https://arxiv.org/abs/1804.04235, algorithms 4 and 5, with β₂ₜ = 1 - t^-0.8. Second moments are
    factored over the two largest dimensions of a variable of rank ≥ 2, and kept whole under that.

    Args:
      learning_rate: float32 tf tensor []; the schedule is obeyed, no relative step size.
      step: integer tf tensor [], t: 1 at the first update.
      beta1: float, momentum of the update; 0 or None keeps none, and no slot.
      epsilon1: float, added to squared gradients.
      epsilon2: float; > 0 multiplies the rate by max(epsilon2, RMS of the variable), 0 or None
        takes the rate as it is.
      clipping: float, the largest RMS of an update before the rate.
      weight_decay: float, times the learning rate as in AdamW.
    """

    def __init__(self, learning_rate, step, beta1=0.0, epsilon1=1e-30, epsilon2=0.0, clipping=1.0,
                 weight_decay=0.0):
        super().__init__(learning_rate, weight_decay)
        self._beta1, self._epsilon1, self._epsilon2 = beta1, epsilon1, epsilon2
        self._clipping = clipping
        self._mixing = tf.pow(tf.cast(step, tf.float32), -0.8)

    def apply_grad(self, grad, variable):
        """Moments and the direction as mtf operations, then one update of the slices."""
        square = slicewise(lambda g: tf.square(tf.cast(g, tf.float32)) + self._epsilon1, [grad])
        factored = self._factored if len(variable.shape) >= 2 else self._whole
        direction, operations = factored(grad, square, variable)
        inputs = [direction, SumOfSquares([direction]).outputs[0]]
        if self._epsilon2:
            # The model's tensor may be bfloat16: good enough for the size of the whole.
            inputs.append(SumOfSquares([variable.value]).outputs[0])
        slots = [_slot(variable, "ada_m")] if self._beta1 else []
        decay = self._decay(variable)
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

        return [*operations, SliceUpdate([variable, *slots], inputs, update, "adafactor")]

    def _rate(self, count, direction_squares, variable_squares=None):
        """Learning rate over the clipping divisor, times the variable's RMS where asked."""
        rms = tf.sqrt(direction_squares / count)
        rate = self._lr / tf.maximum(1.0, rms / self._clipping)
        if variable_squares is None:
            return rate
        return rate * tf.maximum(self._epsilon2, tf.sqrt(variable_squares / count))

    def _moment(self, variable, name, value):
        """A slot's moving average of `value`: (mtf.Tensor, the operation that stores it)."""
        slot = _slot(variable, name, value.shape)
        new = slicewise(lambda old, x: old + (x - old) * self._mixing, [slot.value, value])
        return new, mtf.assign(slot, new)

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


def optimizer(config, learning_rate, step):
    """The optimizer that a run config names.

    Args:
      config: a RunConfig: opt_name, beta1, beta2, epsilon, weight_decay, ada_epsilon1,
        ada_epsilon2.
      learning_rate: float32 tf tensor [].
      step: integer tf tensor [], 1 at the first update (the global step + 1).

    Returns:
      an Optimizer.

    Raises:
      UserError: `opt_name` is none of adamw, adam, adafactor.
    """
    if config.opt_name in ("adamw", "adam"):
        return AdamW(learning_rate, step, config.beta1, config.beta2, config.epsilon,
                     config.weight_decay)
    if config.opt_name == "adafactor":
        return Adafactor(learning_rate, step, config.beta1, config.ada_epsilon1,
                         config.ada_epsilon2, weight_decay=config.weight_decay)
    known = ["adamw", "adam", "adafactor"]
    near = difflib.get_close_matches(str(config.opt_name).lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"opt_name: {config.opt_name!r} is not known; {hint}use one of "
                    f"{', '.join(known)}")
