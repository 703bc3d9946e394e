"""Directories that are written whole or not at all."""

import contextlib
from collections.abc import Iterator

from configs.errors import UserError
from mesh.compat import tf


def check_free(directory: str, flag: str) -> None:
    """Refuses a directory that is there already; `flag` begins the message.

    Raises:
      UserError: it is there.
    """
    if tf.io.gfile.exists(directory):
        raise UserError(f"{flag}: {directory} is there already; name another directory, or delete "
                        "it")


@contextlib.contextmanager
def written(directory: str, flag: str) -> Iterator[str]:
    """A context with the temporary name of a directory, which has its own name in the end.

    Args:
      directory: to write.
      flag: begins the message.

    Raises:
      UserError: it cannot be written.
    """
    partial = directory + ".partial"
    try:
        if tf.io.gfile.exists(partial):
            tf.io.gfile.rmtree(partial)
        yield partial
        _move(partial, directory)
    except BaseException as error:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.rmtree(partial)
        if isinstance(error, tf.errors.OpError):
            raise UserError(f"{flag}: {directory} cannot be written ({error.message})") from error
        raise


def _move(source, target):
    """Renames a directory; its files one by one where the storage renames files alone (ram://).

    Those at its top, by which a reader knows it, come last.
    """
    try:
        tf.io.gfile.rename(source, target)
    except tf.errors.AlreadyExistsError:
        for folder, _, names in tf.io.gfile.walk(source, topdown=False):
            place = target + folder.rstrip("/")[len(source):]
            tf.io.gfile.makedirs(place)
            for name in names:
                tf.io.gfile.rename(f"{folder}/{name}", f"{place}/{name}")
        tf.io.gfile.rmtree(source)
