"""What optimizers are made of: a base class, slots beside variables, bias correction.

Slots are float32 variables `<variable>/<slot>` with the variable's own dimensions, so a layout
splits them as it splits the variable. Updates read and write the float32 slices themselves, never
the tensors the model computes with, which are bfloat16 where `precision` says so.
"""

import math

import numpy as np

from mesh import ops
from mesh.compat import mtf, tf
from training.slices import SliceUpdate

# The names of all optimizers' slots.
SLOTS = ("adam_m", "adam_v", "sgd_m", "lion_m", "ada_m", "ada_v", "ada_row", "ada_col")


class Optimizer:
    """What all optimizers share: one update for each variable, and which of them decay.

    Args:
      learning_rate: float32 tf tensor [].
      weight_decay: float, taken times the learning rate (decoupled,
        https://arxiv.org/abs/1711.05101) from variables of rank ≥ 2; norms' gains and biases, also
        where they are packed to more dimensions, keep their size.

    Attributes:
      finite: an mtf float32 scalar, 0 where a step's update is to be left out, or None.
    """

    def __init__(self, learning_rate, weight_decay):
        self._lr = learning_rate
        self._weight_decay = weight_decay
        self.finite = None

    def apply_grads(self, grads, variables, finite=None):
        """The operations that make one step.

        Args:
          grads: list of mtf.Tensor, shaped as the variables, any float dtype.
          variables: list of mtf.Variable.
          finite: see the attribute.

        Returns:
          list of mtf.Operation, each for `lowering.lowered_operation`.

        Raises:
          ValueError: a gradient is None or has other dimensions than its variable.
        """
        self.finite = finite
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

    def slice_update(self, variables, inputs, update, name):
        """The SliceUpdate of these arguments, of which a step that is not finite makes nothing.

        The choice is made on the device, slice by slice.
        """
        if self.finite is None:
            return SliceUpdate(variables, inputs, update, name)

        def guarded(slices, values):
            *values, finite = values
            return tf.cond(finite > 0, lambda: _done(update(slices, values)),
                           lambda: tf.constant(False)).op

        return SliceUpdate(variables, [*inputs, self.finite], guarded, name)

    def decay_factor(self, variable):
        """What the update leaves of the variable: a float32 tf tensor [], or None for all of it."""
        kept = len(variable.shape) < 2 or variable.name.endswith("/bias")
        if kept or not self._weight_decay:
            return None
        return 1.0 - self._lr * self._weight_decay


def _done(operation):
    """A value for a branch of tf.cond that is there once the operation has run."""
    with tf.control_dependencies([operation]):
        return tf.constant(True)


def slot(variable, name, shape=None):
    """A float32 variable of zeros beside `variable`, with its dimensions unless told otherwise."""
    shape = variable.shape if shape is None else shape
    return mtf.get_variable(variable.mesh, f"{variable.name}/{name}", shape, dtype=tf.float32,
                            initializer=ops.fresh_zeros, trainable=False).operation


def bias_correction(beta, step):
    """1 - βᵗ without cancellation, for β as float32 holds it, as the moments decay by that one."""
    log_beta = math.log(np.float32(beta)) if beta else -math.inf
    return -tf.math.expm1(tf.cast(step, tf.float32) * log_beta)
