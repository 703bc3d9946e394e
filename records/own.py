"""Input functions of a user's own, which `INPUT_FUNCTIONS` of inputs.py names.

Such a function takes (config, split, start) and returns a `tf.data.Dataset` of rows: a dict with
"tokens", integers [n_ctx + 1], and, where not all targets count, "valid", their number. For split
"train" it is endless and begins with the row that a run comes to after `start` rows, so that a
resumed run goes on where it stopped; for "validation" it ends, and `start` is 0.
"""

import functools

import numpy as np
import tensorflow.compat.v1 as tf

from configs.errors import UserError

DATASETS = "datasets"


def of_run(config, functions):
    """The run's own input function, or None where its datasets are its input.

    Raises:
        UserError: there is none of that name, or the model does not read text.
    """
    if config.input_fn == DATASETS:
        return None
    if config.input_fn not in functions:
        known = ", ".join([DATASETS, *functions])
        raise UserError(f"input_fn: {config.input_fn} is not known ({known}); add it to "
                        "INPUT_FUNCTIONS of inputs.py")
    if config.model == "clip":
        raise UserError(f"input_fn: {config.input_fn} gives text, and model clip is trained on "
                        "pictures; remove the key")
    return functions[config.input_fn]


def rows(function, config, split, start):
    """The function's rows as the input pipeline has them, their shapes and ids checked."""
    found = function(config, split, start)
    wanted = [config.window_size + 1]
    if not isinstance(found, tf.data.Dataset | tf.compat.v2.data.Dataset) or not (
            isinstance(found.element_spec, dict) and "tokens" in found.element_spec):
        raise UserError(f"input_fn: {config.input_fn} must return a tf.data.Dataset of dicts with "
                        f"\"tokens\", integers {wanted}")
    if not found.element_spec["tokens"].shape.is_compatible_with(wanted):
        raise UserError(f"input_fn: {config.input_fn} gives tokens of shape "
                        f"{found.element_spec['tokens'].shape}, and {wanted[0]} are needed: a "
                        "window and the token after it")
    return found.map(functools.partial(_row, config))


def _row(config, row):
    tokens = tf.ensure_shape(row["tokens"], [config.window_size + 1])
    message = f"dataset {config.input_fn}: token ids have to be below {config.n_vocab}:"
    right = tf.debugging.Assert(tf.reduce_all((tokens >= 0) & (tokens < config.n_vocab)),
                                [message, tf.reduce_min(tokens), tf.reduce_max(tokens)])
    with tf.control_dependencies([right]):
        valid = tf.cast(row.get("valid", config.window_size), tf.int32)
        return {"tokens": tf.cast(tokens, tf.int32), "valid": tf.reshape(valid, [])}


def valid_targets(function, config):
    """The targets that count of each validation row, found by reading them: int64 [rows].

    Raises:
        UserError: there are no rows.
    """
    found = []
    with tf.Graph().as_default(), tf.Session() as session:
        following = tf.data.make_one_shot_iterator(
            rows(function, config, "validation", 0).batch(1024)).get_next()["valid"]
        try:
            while True:
                found.append(session.run(following))
        except tf.errors.OutOfRangeError:
            pass
    if not found:
        raise UserError(f"input_fn: {config.input_fn} gives no validation rows; give some, or "
                        "train without evaluations (--set eval_steps=0)")
    return np.concatenate(found).astype(np.int64)
