"""Byte streams over any file system that TensorFlow knows, and their decompression."""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib

import tensorflow as tf
import zstandard

# What reading a damaged, missing or forbidden input may raise.
BROKEN = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error, zstandard.ZstdError,
          tarfile.TarError, tf.errors.OpError)
BLOCK = 1 << 20


def one_line(message):
    """A message with all white space, line breaks included, as single spaces."""
    return " ".join(str(message).split())


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


class ZstdFile(io.RawIOBase):
    """Decompressed bytes of a zstd stream of any number of frames.

    zstandard's own stream_reader ends without a word where a file is cut off, so the frames' ends
    are watched here.

    Args:
        source: a binary stream with read(size).

    Raises:
        EOFError: (on reading) the stream ends inside a frame.
    """

    def __init__(self, source):
        self._source = source
        self._frame = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self):
        """True: io.BufferedReader asks."""
        return True

    def readinto(self, buffer):
        """Fills part of the buffer; returns the number of bytes, 0 at the end."""
        while not self._output:
            data = self._input or self._source.read(BLOCK)
            self._input = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the zstd stream is cut off")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._output = memoryview(self._frame.decompress(data))
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


def _gzip(source):
    return gzip.GzipFile(fileobj=source)


COMPRESSIONS = {".gz": _gzip, ".xz": lzma.LZMAFile, ".bz2": bz2.BZ2File, ".zst": ZstdFile}
