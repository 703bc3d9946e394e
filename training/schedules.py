"""The learning rate as a function of the step."""

import math

from configs.errors import UserError
from mesh.compat import tf


def _cosine(progress):
    return 0.5 * (1.0 + tf.cos(math.pi * progress))


def _linear(progress):
    return 1.0 - progress


_FALLS = {"cosine": _cosine, "linear": _linear}
_DECAYS = ("cosine", "linear", "constant", "inverse_sqrt")


def learning_rate(step, config):
    """The learning rate of the update that follows `step` updates.

    With w = `warmup_steps` and e = `lr_decay_end` (`train_steps` where it is None):

    * step < w: `lr`·(step+1)/w, so the first update moves and the w-th one has the full rate;
    * then from `lr` at step w to the floor `lr`·`lr_min_ratio` at step e along half a cosine
      (SGDR, https://arxiv.org/abs/1608.03983, one cycle) or a line; or `lr`·√(w/step), never under
      the floor; or `lr` for ever;
    * after e: the value at e.

    Args:
      step: integer tf tensor [], updates made so far (the global step), 0 at the first update.
      config: a RunConfig: lr, lr_decay, lr_decay_end, lr_min_ratio, warmup_steps, train_steps.

    Returns:
      float32 tf tensor [].

    Raises:
      UserError: `lr_decay` is none of cosine, linear, constant, inverse_sqrt.
    """
    if config.lr_decay not in _DECAYS:
        raise UserError(f"lr_decay: {config.lr_decay!r} is not known; use one of "
                        f"{', '.join(_DECAYS)}")
    warmup = config.warmup_steps
    end = config.train_steps if config.lr_decay_end is None else config.lr_decay_end
    step = tf.cast(step, tf.int64)
    factor = _after_warmup(step, config.lr_decay, warmup, end, config.lr_min_ratio)
    if warmup:
        factor = tf.where(step < warmup, _ratio(step + 1, warmup), factor)
    return tf.constant(config.lr, tf.float32) * factor


def _after_warmup(step, decay, warmup, end, floor):
    """The multiple of `lr` at a step ≥ `warmup`, float32 []."""
    if decay == "constant":
        return tf.constant(1.0, tf.float32)
    if decay == "inverse_sqrt":
        knee = max(warmup, 1)
        held = tf.clip_by_value(step, knee, max(end, knee))
        return tf.maximum(tf.rsqrt(_ratio(held, knee)), floor)
    span = max(end - warmup, 1)
    progress = _ratio(tf.clip_by_value(step - warmup, 0, span), span)
    return floor + (1.0 - floor) * _FALLS[decay](progress)


def _ratio(part, whole):
    """part/whole in float32; the integers are subtracted and clipped before, where it is exact."""
    return tf.cast(part, tf.float32) / tf.constant(float(whole), tf.float32)
