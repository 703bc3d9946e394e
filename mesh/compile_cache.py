"""What the TPU compiler has answered, kept by program, so that none is compiled twice."""

import gzip
import hashlib
import importlib.metadata
import logging
import os
import zlib

from mesh import hlo
from mesh.compat import tf


def directory():
    """Where answers are kept: $GPTC_COMPILE_CACHE, or a place in the user's cache.

    Nothing is kept if the variable is empty.
    """
    own = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", ""), ".cache")
    return os.environ.get("GPTC_COMPILE_CACHE", os.path.join(own, "gptc", "compiled"))


def key(module, topology, cores):
    """The hash of a program, the slice that it is for, and the compiler's version.

    Args:
      module: a serialised HloModuleProto. topology: libtpu's name of it. cores: how many run it.
    """
    parsed = hlo.parse(module)
    # TensorFlow numbers the functions of a process; what is computed does not depend on that.
    for named in (parsed, *(c for c in parsed.computations if c.id == parsed.entry_computation_id)):
        named.name = "step"
    parsed.entry_computation_name, parsed.id = "step", 0
    found = hashlib.sha256(parsed.SerializeToString(deterministic=True))
    found.update(f"{topology} {cores} {importlib.metadata.version('libtpu')}".encode())
    return found.hexdigest()


def get(name):
    """The answer that is kept under a key; None if there is none, or it is damaged."""
    path = _path(name)
    try:
        if not path or not tf.io.gfile.exists(path):
            return None
        with tf.io.gfile.GFile(path, "rb") as file:
            return gzip.decompress(file.read())
    except (OSError, EOFError, zlib.error, tf.errors.OpError) as error:
        logging.warning("%s is left out: %s", path, error)
        return None


def put(name, answer):
    """Keeps an answer, bytes, under a key; where that cannot be, a warning says so."""
    path = _path(name)
    if not path:
        return
    part = f"{path}.{os.getpid()}.tmp"
    try:
        tf.io.gfile.makedirs(directory())
        with tf.io.gfile.GFile(part, "wb") as file:
            file.write(gzip.compress(answer, 3))
        tf.io.gfile.rename(part, path, overwrite=True)
    except tf.errors.OpError as error:
        logging.warning("what the compiler said is not kept: %s", error)


def _path(name):
    return directory() and os.path.join(directory(), name + ".gz")
