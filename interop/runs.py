"""Weights from elsewhere written as a run at step 0."""

import os
from collections.abc import Sequence

import numpy as np

from configs.errors import UserError
from configs.progress import tqdm
from configs.schema import RunConfig
from mesh.compat import tf
from training import checkpoints, run


def make_room(model_path: str, new: bool, yes: bool) -> None:
    """Refuses a directory that holds a run; deletes it if `new`, which asks, unless `yes`.

    Raises:
      UserError: it holds a run, and `new` is not given.
    """
    if new:
        run.delete_run(model_path, yes)
    elif checkpoints.is_run(model_path):
        raise UserError(f"{model_path}: holds a run; give --new to replace it, or another "
                        "--model_path")


def write(config: RunConfig, record: checkpoints.RunRecord, weights: dict[str, np.ndarray],
          copies: Sequence[tuple[str, str]] = ()) -> None:
    """Writes the run's files. run.json is the last: without it and a checkpoint it is no run.

    Args:
      config: the run's config.
      record: its checkpoints.RunRecord.
      weights: {variable's name: float32 numpy array}, which is empty afterwards.
      copies: [(a file, its copy in the run's directory)].

    Raises:
      UserError: the directory cannot be written.
    """
    try:
        _write(config, record, weights, copies)
    except tf.errors.OpError as error:
        raise UserError(f"{config.model_path}: cannot be written ({error.message}); give another "
                        "--model_path, or see to its permissions and space") from error


def _write(config, record, weights, copies):
    tf.io.gfile.makedirs(config.model_path)
    for original, copy in copies:
        tf.io.gfile.makedirs(os.path.dirname(copy))
        tf.io.gfile.copy(original, copy, overwrite=True)
    checkpoints.write_text(os.path.join(config.model_path, "config.json"), config.to_json())
    with tf.Graph().as_default(), tf.Session() as session:
        for name in tqdm(list(weights), desc="writing", unit="tensor", leave=False):
            values = weights.pop(name)  # each is in memory once
            assign = tf.get_variable(name, values.shape, tf.float32,
                                     tf.zeros_initializer()).initializer
            # Fed in place of the zeros, since a graph holds no more than 2 GiB.
            session.run(assign, {assign.inputs[1]: values})
        session.run(tf.train.get_or_create_global_step().initializer)
        tf.train.Saver(save_relative_paths=True).save(
            session, os.path.join(config.model_path, "model.ckpt"), global_step=0,
            write_meta_graph=False)
    checkpoints.write_record(config.model_path, record)
