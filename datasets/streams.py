"""Byte streams over any file system that TensorFlow knows."""

import io

import tensorflow as tf
from unpacking import DAMAGED

# What reading a damaged, missing or forbidden input may raise.
BROKEN = (*DAMAGED, tf.errors.OpError)


class RemoteFile(io.RawIOBase):
    """A readable raw stream over tf.io.gfile, so that gs:// reads like a local file.

    Args:
        path: any path that tf.io.gfile opens.
        on_read: called with the number of bytes after each read.
    """

    def __init__(self, path, on_read=None):
        self._file = tf.io.gfile.GFile(path, "rb")
        self._on_read = on_read

    def readable(self):
        """True: io.BufferedReader asks."""
        return True

    def readinto(self, buffer):
        """Fills the buffer as far as the file goes; returns the number of bytes."""
        data = self._file.read(len(buffer))
        buffer[:len(data)] = data
        if self._on_read:
            self._on_read(len(data))
        return len(data)

    def close(self):
        """Closes the file."""
        self._file.close()
        super().close()
