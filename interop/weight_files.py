"""Files of weights from elsewhere, whole or in shards, whose tensors are checked when taken."""

import os
import re

import numpy as np

from configs.errors import UserError
from interop import tensor_files
from mesh.compat import tf

# What a directory is searched for, the first first. An index names the shards of a large model.
_FILES = ["model.safetensors", "open_clip_model.safetensors", "model.safetensors.index.json",
          "pytorch_model.bin", "open_clip_pytorch_model.bin", "pytorch_model.bin.index.json"]


def find(path: str) -> str:
    """The file of weights at a path: itself, or the first known name in a directory.

    Raises:
      UserError: the directory holds none.
    """
    if not tf.io.gfile.isdir(path):
        return path
    for name in _FILES:
        if tf.io.gfile.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    raise UserError(f"{path}: holds none of {', '.join(_FILES)}; give the file itself")


def read(path: str) -> tensor_files.TensorFile:
    """The tensor_files.TensorFile at a path; shards that an index names are put together.

    Raises:
      UserError: a file is missing, damaged or unsafe.
    """
    if not path.endswith(".index.json"):
        return tensor_files.read(path)
    shards = tensor_files.read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
        raise UserError(f"{path}: no weight_map of names to files")
    # Of a name only its last part counts: an index cannot lead elsewhere.
    files = [tensor_files.read(os.path.join(os.path.dirname(path), os.path.basename(name)))
             for name in sorted(set(shards.values()))]
    if not files:
        raise UserError(f"{path}: names no files")
    return tensor_files.TensorFile({n: t for f in files for n, t in f.tensors.items()},
                                   files[0].kind)


class Checked:
    """The tensors of a file, checked as they are taken.

    Args:
      path: the file's, for messages.
      tensors: {name: tensor_files.Stored}.
      ignored: a pattern for tensors that nobody takes.
    """

    def __init__(self, path, tensors, ignored):
        self._path, self._tensors = path, tensors
        self._left = {n for n in tensors if not re.match(ignored, n)}

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """A tensor's shape, which has `rank` dimensions.

        Raises:
          UserError: there is no such tensor, or it has another rank.
        """
        if name not in self._tensors:
            raise UserError(f"{self._path}: {name} is missing")
        shape = self._tensors[name].shape
        if len(shape) != rank or 0 in shape:
            raise UserError(f"{self._path}: {name}: shape {shape}, where {rank} dimensions belong")
        return shape

    def take(self, name: str, *shape: int) -> np.ndarray:
        """A tensor's values, float32, of the given shape.

        Raises:
          UserError: it is missing, of another shape or type, or not finite.
        """
        found = self.shape(name, len(shape))
        if tuple(found) != shape:
            raise UserError(f"{self._path}: {name}: shape {tuple(found)} instead of {shape}")
        self._left.discard(name)
        values = self._tensors[name].read()
        if values.dtype.kind != "f":
            raise UserError(f"{self._path}: {name}: {values.dtype} instead of floating point")
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{self._path}: {name}: holds values that are not finite")
        return values

    def end(self, what: str) -> None:
        """Refuses tensors that were not taken.

        Raises:
          UserError: names the first of them; `what` has no such tensor.
        """
        if self._left:
            name = repr(min(self._left))[1:-1]  # one line, whatever is in it
            raise UserError(f"{self._path}: {name}: {what} has no such tensor; this is another "
                            "architecture")
