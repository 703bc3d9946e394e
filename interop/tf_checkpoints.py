"""Tensors of TensorFlow checkpoints that other programs have written."""

import faulthandler
import functools
import math
import os
import resource

import numpy as np

from configs.errors import UserError
from interop.tensor_files import Stored
from mesh.compat import tf


def find(path: str) -> str | None:
    """The checkpoint at a path, without its endings, or None.

    Args:
      path: a directory, whose file `checkpoint` may name one of several; or a checkpoint, with or
        without ".index".

    Raises:
      UserError: a directory holds several, and nothing says which one is meant.
    """
    if not tf.io.gfile.isdir(path):
        prefix = path.removesuffix(".index")
        return prefix if tf.io.gfile.exists(f"{prefix}.index") else None
    found = [name.removesuffix(".index") for name in
             tf.io.gfile.glob(os.path.join(path, "*.ckpt*.index"))]
    try:
        state = tf.train.get_checkpoint_state(path)
    except ValueError:
        state = None
    # The directory it names is where it was written, and not where it is now.
    named = state and os.path.join(path, os.path.basename(state.model_checkpoint_path))
    if named in found or len(found) < 2:
        return named if named in found else next(iter(found), None)
    raise UserError(f"{path}: holds several checkpoints; give one of them, such as {max(found)}")


def read(checkpoint: str) -> dict[str, Stored]:
    """{variable's name: Stored} of a checkpoint; values are read when they are asked for.

    Raises:
      UserError: it is damaged or incomplete.
    """
    if not _opens(checkpoint):
        raise UserError(f"{checkpoint}: damaged: TensorFlow cannot read its index")
    with _Damage(checkpoint):
        reader = tf.train.NewCheckpointReader(checkpoint)
        size = sum(tf.io.gfile.stat(name).length for name in
                   tf.io.gfile.glob(f"{checkpoint}.data-*"))
        types = reader.get_variable_to_dtype_map()
        return {name: Stored(tuple(shape), functools.partial(
                    _values, checkpoint, reader, name, types[name], math.prod(shape), size))
                for name, shape in reader.get_variable_to_shape_map().items()}


def _opens(checkpoint):
    """Whether opening a checkpoint ends well: there are indices at which TensorFlow aborts."""
    if "://" in checkpoint:  # clients of storage do not outlive a fork
        return True
    child = os.fork()
    if not child:
        try:  # in silence, and with no core file
            faulthandler.disable()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.close(2)
            tf.train.NewCheckpointReader(checkpoint)
        finally:
            os._exit(0)
    return os.WIFEXITED(os.waitpid(child, 0)[1])


def _values(checkpoint, reader, name, kind, number, size):
    """A variable's values: `number` of type `kind`, where all files have `size` bytes."""
    if not kind.is_floating:
        raise UserError(f"{checkpoint}: {name}: {kind.name} instead of floating point")
    if number * kind.size > size:  # nothing is made room for that cannot be there
        raise UserError(f"{checkpoint}: damaged: {name} is larger than its files")
    with _Damage(checkpoint):
        values = reader.get_tensor(name)
    return values.astype(np.float32) if kind == tf.bfloat16 else values


class _Damage:
    """A context that turns what damaged checkpoints raise into the user's error."""

    # An index with a wild size makes TensorFlow ask for that much memory.
    _KINDS = (tf.errors.OpError, ValueError, TypeError, RuntimeError, IndexError, MemoryError)

    def __init__(self, checkpoint):
        self._checkpoint = checkpoint

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, self._KINDS):
            text = str(getattr(error, "message", error)).partition("\n")[0]
            raise UserError(f"{self._checkpoint}: damaged or incomplete: {text}") from None
