"""Tensors out of PyTorch's and safetensors' files, without PyTorch and without running code.

A PyTorch file is a zip archive with a pickle, which could call any function. Here it may name
nothing but what a tensor is made of; the modules of a TorchScript archive become plain trees.
"""

import collections
import dataclasses
import io
import json
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import safetensors

from configs.errors import UserError
from mesh.compat import tf

# Bytes of an element and numpy's type. bfloat16 is the upper half of float32.
_TORCH_TYPES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16",
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
    "ByteStorage": "u1", "BoolStorage": "?",
}
_SAFETENSORS_TYPES = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4",
    "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?",
}
_LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@dataclasses.dataclass
class Stored:
    """A tensor in a file.

    Attributes:
      shape: a tuple of ints.
      read: gives its values as a numpy array, bfloat16 and float16 as float32.
    """

    shape: tuple
    read: Callable


@dataclasses.dataclass
class TensorFile:
    """What is in a file.

    Attributes:
      tensors: {name: Stored}.
      kind: "torchscript", "torch" or "safetensors".
      nested: whether they were under a key "state_dict" or "model", as training scripts save them.
      beside: what else a training script has saved, by its key.
    """

    tensors: dict
    kind: str
    nested: bool = False
    beside: dict = dataclasses.field(default_factory=dict)


def read(path: str) -> TensorFile:
    """The tensors of a file; values are read when they are asked for.

    Args:
      path: a PyTorch zip file (a state dict, or a TorchScript archive) or a safetensors file.

    Raises:
      UserError: it cannot be read, is damaged, or holds more than tensors.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            head = file.read(len(_LEGACY_TORCH))
        if head.startswith(b"PK"):
            return _read_torch(path)
        if head == _LEGACY_TORCH:
            raise UserError(f"{path}: written by PyTorch before 1.6; load it there and save it "
                            "again with torch.save")
        with tf.io.gfile.GFile(path, "rb") as file:
            # At once, gfile would hold all of it twice.
            return _read_safetensors(path, b"".join(iter(lambda: file.read(1 << 26), b"")))
    except (tf.errors.OpError, OSError) as error:
        reason = "no such file" if isinstance(error, tf.errors.NotFoundError) else (
            str(getattr(error, "message", error)).splitlines() or ["unreadable"])[0]
        raise UserError(f"{path}: {reason}") from None


def _read_safetensors(path, data):
    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: neither a PyTorch zip file nor safetensors, or damaged: "
                        f"{str(error).splitlines()[0]}") from None

    def stored(name, entry):
        shape, kind = tuple(entry["shape"]), entry["dtype"]

        def values():
            if kind not in _SAFETENSORS_TYPES:
                raise UserError(f"{path}: {name}: type {kind} is not supported")
            return _numbers(entry["data"], _SAFETENSORS_TYPES[kind]).reshape(shape)

        return Stored(shape, values)

    return TensorFile({name: stored(name, entry) for name, entry in entries}, "safetensors")


def _read_torch(path):
    members = _Members(path)
    tree = _unpickle(path, members)
    if isinstance(tree, _Module):
        return TensorFile(dict(_flatten(tree)), "torchscript")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no state dict but a {type(tree).__name__}")
    nested = next((k for k in ("state_dict", "model") if isinstance(tree.get(k), dict)), None)
    beside = {k: v for k, v in tree.items() if k != nested} if nested else {}
    tree = tree[nested] if nested else tree
    tensors = {str(name): value for name, value in tree.items() if isinstance(value, Stored)}
    return TensorFile(tensors, "torch", bool(nested), beside)


class _Members:
    """The members of a zip archive, by their names without its top directory."""

    def __init__(self, path):
        self._path = path
        with _Damage(path):
            self._archive = zipfile.ZipFile(tf.io.gfile.GFile(path, "rb"))
        self._infos = {i.filename.partition("/")[2]: i for i in self._archive.infolist()}

    def __contains__(self, name):
        return name in self._infos

    def read(self, name):
        info = self._infos.get(name)
        if info is None:
            raise UserError(f"{self._path}: damaged: {name} is missing in the archive")
        if info.compress_type != zipfile.ZIP_STORED:  # it could be a bomb
            raise UserError(f"{self._path}: {name} is compressed, which PyTorch never does")
        with _Damage(self._path):
            return self._archive.read(info)


class _Damage:
    """A context that turns what damaged archives and pickles raise into the user's error."""

    _KINDS = (zipfile.BadZipFile, pickle.UnpicklingError, zlib.error, EOFError, ValueError,
              TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError,
              RecursionError, NotImplementedError, RuntimeError, struct.error)

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, self._KINDS):
            text = (str(error).splitlines() or [kind.__name__])[0]
            raise UserError(f"{self._path}: damaged: {text}") from None


class _Module:
    """A TorchScript module, of whatever class: its attributes."""

    def __setstate__(self, state):
        self.attributes = dict(state)


def _flatten(module, prefix=""):
    """The tensors of a module and of those inside of it, as (name, Stored)."""
    for name, value in module.attributes.items():
        if isinstance(value, Stored):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _flatten(value, f"{prefix}{name}.")


def _unpickle(path, members):
    """The object of an archive's data.pkl, its tensors as Stored."""
    big = "byteorder" in members and members.read("byteorder").startswith(b"big")
    order = ">" if big else "<"

    def rebuild_tensor(source, offset, shape, stride, *_):
        kind, key, size = source
        shape, stride = tuple(map(int, shape)), tuple(map(int, stride))
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        if min((offset, *shape, *stride)) < 0 or (
                math.prod(shape) and max(last + 1, math.prod(shape)) > size):
            raise ValueError(f"a tensor of shape {shape} reaches outside of its storage")

        def values():
            flat = _numbers(members.read(f"data/{key}"), kind, order)
            if flat.size < size:
                raise UserError(f"{path}: damaged: data/{key} is too short")
            strides = [s * flat.itemsize for s in stride]
            return np.lib.stride_tricks.as_strided(flat[offset:], shape, strides, writeable=False)

        return Stored(shape, values)

    allowed = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        # Lists among the attributes of TorchScript modules.
        **{("torch.jit._pickle", f"build_{kind}list"): list
           for kind in ("int", "double", "bool", "tensor")},
    }

    class Restricted(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) in allowed:
                return allowed[module, name]
            if module == "torch" and name in _TORCH_TYPES:
                return name
            if module.split(".")[0] == "__torch__":
                return _Module
            raise UserError(f"{path}: refused: it asks to load {module}.{name}, which is no weight")

        def persistent_load(self, pid):
            tag, kind, key, _, size = pid
            if tag != "storage" or kind not in _TORCH_TYPES:
                raise ValueError(f"storage {str(pid)[:60]}")
            return _TORCH_TYPES[kind], str(key), int(size)

    with _Damage(path):
        return Restricted(io.BytesIO(members.read("data.pkl"))).load()


def _numbers(data, kind, order="<"):
    """A flat numpy array of bytes; halves as float32."""
    if kind == "bfloat16":
        upper = np.frombuffer(data, f"{order}u2").astype(np.uint32)
        return (upper << 16).view(np.float32)
    flat = np.frombuffer(data, np.dtype(kind).newbyteorder(order))
    return flat.astype("f4" if kind == "f2" else kind, copy=False)


def read_json(path: str) -> dict:
    """The JSON object in a file, or {} if there is none.

    Raises:
      UserError: it is not a JSON object.
    """
    if not tf.io.gfile.exists(path):
        return {}
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            value = json.loads(file.read())
    except (tf.errors.OpError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value
