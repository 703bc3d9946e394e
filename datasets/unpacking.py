"""Decompression, and archives as streams: nothing goes to disk, and what is damaged is noticed.

Nothing here imports TensorFlow: worker processes import this module.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import zlib

import zstandard

# What damaged bytes may raise.
DAMAGED = (OSError, EOFError, ValueError, RecursionError, lzma.LZMAError, zlib.error,
           zstandard.ZstdError, tarfile.TarError)
BLOCK = 1 << 20
# What zstandard unpacks at once: at most 128 MiB come of it, 128 KiB of four bytes.
ZSTD_PIECE = 1 << 12
# Tar headers that tarfile reads into memory, long names and pax records, and how many bytes of one.
READ_WHOLE = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
              tarfile.SOLARIS_XHDTYPE)
LONGEST_HEADER = 1 << 20


class TooLargeError(OSError):
    """Something unpacks to more bytes than are allowed."""

    def __init__(self, largest):
        super().__init__(f"more than {largest:,} bytes; raise --maximum_size to read it")


def first(stream, size):
    """The first bytes of a stream, read by blocks: a size that lies must not fill memory."""
    blocks, left = [], size
    while left and (block := stream.read(min(BLOCK, left))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def whole(stream, largest):
    """All bytes of a stream.

    Raises:
        TooLargeError: they are more than `largest`.
    """
    data = first(stream, largest + 1)
    if len(data) > largest:
        raise TooLargeError(largest)
    return data


def lines(stream, largest):
    """The lines of a stream, with their ends.

    Raises:
        TooLargeError: one is longer than `largest` bytes.
    """
    while line := stream.readline(largest + 1):
        if len(line) > largest:
            raise TooLargeError(largest)
        yield line


def one_line(message):
    """A message with all white space, line breaks included, as single spaces."""
    return " ".join(str(message).split())


def split_name(name, forms):
    """Splits a file name into (format, compression) such as (".jsonl", ".zst").

    A compressed file of no known format is text, save for OpenWebText's `*_data.xz`, which is a tar
    as is `.tgz`, and for the `RS_2017-04-1_meta.xz` that its scraper puts beside: there is no text
    in it.

    Args:
        name: a path.
        forms: the known formats' endings, in lower case.

    Returns:
        the pair, or None if the format is unknown.
    """
    base = os.path.basename(name).lower()
    if base.endswith(".tgz"):
        return ".tar", ".gz"
    stem, compression = os.path.splitext(base)
    if compression not in COMPRESSIONS:
        stem, compression = base, ""
    form = os.path.splitext(stem)[1]
    if form in forms:
        return form, compression
    if not compression or re.search(r"-\d+_meta$", stem):
        return None
    return (".tar" if stem.endswith("_data") else ".txt"), compression


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
        self._input = memoryview(b"")
        self._output = memoryview(b"")

    def readable(self):
        """True: io.BufferedReader asks."""
        return True

    def readinto(self, buffer):
        """Fills part of the buffer; returns the number of bytes, 0 at the end."""
        while not self._output:
            data = self._input or memoryview(self._source.read(BLOCK))
            if not data:
                if self._frame is not None:
                    raise EOFError("the zstd stream is cut off")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            taken = min(len(data), ZSTD_PIECE)
            self._output = memoryview(self._frame.decompress(data[:taken]))
            if self._frame.eof:
                taken -= len(self._frame.unused_data)
                self._frame = None
            self._input = data[taken:]
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count


def _gzip(source):
    return gzip.GzipFile(fileobj=source)


COMPRESSIONS = {".gz": _gzip, ".xz": lzma.LZMAFile, ".bz2": bz2.BZ2File, ".zst": ZstdFile}


class _Pieces(io.RawIOBase):
    """Gives what a buffered stream has ready, so that damage takes nothing with it from before."""

    def __init__(self, stream):
        self._stream = stream

    def readable(self):
        """True: io.BufferedReader asks."""
        return True

    def readinto(self, buffer):
        """Fills part of the buffer; returns the number of bytes, 0 at the end."""
        data = self._stream.read1(len(buffer))
        buffer[:len(data)] = data
        return len(data)


def decompressed(stream, compression):
    """A buffered stream of what a stream holds.

    Args:
        stream: a binary stream.
        compression: a key of COMPRESSIONS, or "".
    """
    if compression:
        stream = COMPRESSIONS[compression](stream)
    return io.BufferedReader(_Pieces(stream) if hasattr(stream, "read1") else stream, BLOCK)


_SPARSE = "a file with holes (GNU sparse) is not read; pack it without --sparse"


class _Member(tarfile.TarInfo):
    """A tar's header; where tarfile takes a damaged one for the archive's end, this one raises."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        """Reads a header of 512 bytes.

        Raises:
            tarfile.EOFHeaderError: it is the mark of the archive's end.
            tarfile.ReadError: it is damaged, cut off, or announces a name or a list of holes that
                may fill memory.
        """
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            cut = len(buf) < tarfile.BLOCKSIZE
            raise tarfile.ReadError("the tar is cut off" if cut
                                    else f"a tar header is damaged: {error}") from error
        if member.size < 0 or member.type in READ_WHOLE and member.size > LONGEST_HEADER:
            raise tarfile.ReadError(f"a tar header of {member.size} bytes")
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(_SPARSE)
        return member

    def _proc_gnusparse_10(self, *_):
        # Its list of holes, which tarfile holds in memory, may be of any length.
        raise tarfile.ReadError(_SPARSE)


def refuse_tar(data):
    """Refuses a tar where a document has to be.

    Raises:
        ValueError: the bytes begin as a tar's do.
    """
    if data[257:262] == b"ustar":
        raise ValueError("a tar, which its name does not say; let it end in .tar, .tar.xz or the "
                         "like")


def tar_members(stream):
    """Streams the files of a tar; members of other kinds and hidden files are left out.

    Args:
        stream: a binary stream, read forwards only.

    Yields:
        (tarfile.TarInfo, binary stream that is good until the next one).

    Raises:
        DAMAGED: the archive is damaged or ends without its mark.
    """
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # tarfile keeps all it has seen, which a large archive fills
            if member.isfile() and not os.path.basename(member.name).startswith("."):
                yield member, archive.extractfile(member)
