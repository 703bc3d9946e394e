"""AdamW, SGD, Lion and gradient clipping on a mesh, and which optimizer a config names."""

import difflib

from configs.errors import UserError
from mesh.compat import mtf, tf
from training import updates
from training.adafactor import Adafactor
from training.slices import SumOfSquares, slicewise


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


def finite(values):
    """Whether all of some mtf scalars are finite: an mtf float32 scalar, 1 or 0."""
    def both(*values):
        return tf.cast(tf.reduce_all(tf.math.is_finite(tf.stack(values))), tf.float32)

    return slicewise(both, values)


class AdamW(updates.Optimizer):
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
        root = tf.sqrt(updates.bias_correction(beta2, step))
        self._rate = learning_rate * root / updates.bias_correction(beta1, step)
        self._epsilon = epsilon * root

    def apply_grad(self, grad, variable):
        """Two to five TensorFlow operations for each slice, all in one mtf operation."""
        decay = self.decay_factor(variable)
        slots = [updates.slot(variable, "adam_m"), updates.slot(variable, "adam_v")]

        def update(slices, inputs):
            weight, m, v = slices
            before = []
            if decay is not None:
                # Not before: while the step computes with the old weights, new ones take memory.
                with tf.control_dependencies([inputs[0]]):
                    before.append(tf.assign(weight, weight * decay))
            with tf.control_dependencies(before):
                return tf.raw_ops.ResourceApplyAdam(
                    var=weight.handle, m=m.handle, v=v.handle, beta1_power=0.0, beta2_power=0.0,
                    lr=self._rate, beta1=self._betas[0], beta2=self._betas[1],
                    epsilon=self._epsilon, grad=tf.cast(inputs[0], tf.float32))

        return [self.slice_update([variable, *slots], [grad], update, "adamw")]


class Sgd(updates.Optimizer):
    """Stochastic gradient descent with momentum, and weight decay decoupled as in AdamW.

    With g the gradient (Sutskever et al. 2013, in the form that torch has):

        m ← momentum·m + g        d = g + momentum·m with nesterov, m without
        w ← w·(1 - lr·decay) - lr·d

    Args:
      learning_rate: float32 tf tensor [].
      momentum: float; 0 is plain descent, and needs no slot.
      nesterov: whether to look ahead.
      weight_decay: float.
    """

    def __init__(self, learning_rate, momentum=0.9, nesterov=False, weight_decay=0.0):
        super().__init__(learning_rate, weight_decay)
        self._momentum, self._nesterov = momentum, nesterov

    def apply_grad(self, grad, variable):
        """One mtf operation."""
        decay = self.decay_factor(variable)
        slots = [updates.slot(variable, "sgd_m")] if self._momentum else []

        def update(slices, inputs):
            weight, done = slices[0], []
            change = gradient = tf.cast(inputs[0], tf.float32)
            if self._momentum:
                moment = self._momentum * tf.convert_to_tensor(slices[1]) + gradient
                change = gradient + self._momentum * moment if self._nesterov else moment
                done.append(tf.assign(slices[1], moment))
            kept = weight if decay is None else weight * decay
            return tf.group(tf.assign(weight, kept - self._lr * change), *done)

        return [self.slice_update([variable, *slots], [grad], update, "sgd")]


class Lion(updates.Optimizer):
    """The sign of a mean of gradients (Chen et al. 2023, https://arxiv.org/abs/2302.06675).

    Algorithm 2, with g the gradient:

        c = β₁m + (1-β₁)g         w ← w·(1 - lr·decay) - lr·sign(c)         m ← β₂m + (1-β₂)g

    Args:
      learning_rate: float32 tf tensor []; a third to a tenth of AdamW's.
      beta1, beta2: floats.
      weight_decay: float; three to ten times AdamW's.
    """

    def __init__(self, learning_rate, beta1=0.9, beta2=0.99, weight_decay=0.0):
        super().__init__(learning_rate, weight_decay)
        self._betas = (beta1, beta2)

    def apply_grad(self, grad, variable):
        """One mtf operation."""
        decay = self.decay_factor(variable)
        beta1, beta2 = self._betas

        def update(slices, inputs):
            weight, gradient = slices[0], tf.cast(inputs[0], tf.float32)
            mean = tf.convert_to_tensor(slices[1])
            direction = tf.sign(beta1 * mean + (1.0 - beta1) * gradient)
            kept = weight if decay is None else weight * decay
            return tf.group(tf.assign(weight, kept - self._lr * direction),
                            tf.assign(slices[1], beta2 * mean + (1.0 - beta2) * gradient))

        return [self.slice_update([variable, updates.slot(variable, "lion_m")], [grad], update,
                                  "lion")]


def optimizer(config, learning_rate, step):
    """The optimizer that a run config names.

    Args:
      config: a RunConfig: opt_name, weight_decay, and what configs.optimizers.KEYS lists for it.
      learning_rate: float32 tf tensor [].
      step: integer tf tensor [], 1 at the first update (the global step + 1).

    Returns:
      an updates.Optimizer.

    Raises:
      UserError: `opt_name` is none of adamw, adam, adafactor, sgd, lion.
    """
    name, decay = config.opt_name, config.weight_decay
    if name in ("adamw", "adam"):
        return AdamW(learning_rate, step, config.beta1, config.beta2, config.epsilon, decay)
    if name == "adafactor":
        return Adafactor(learning_rate, step, config.beta1, config.ada_epsilon1,
                         config.ada_epsilon2, weight_decay=decay, decay_type=config.decay_type,
                         decay_exponent=config.decay_exponent, beta2=config.beta2,
                         factored=config.factored)
    if name == "sgd":
        return Sgd(learning_rate, config.momentum, config.nesterov, decay)
    if name == "lion":
        return Lion(learning_rate, config.beta1, config.beta2, decay)
    known = ["adamw", "adam", "adafactor", "sgd", "lion"]
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"opt_name: {name!r} is not known; {hint}use one of {', '.join(known)}")
