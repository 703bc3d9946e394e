"""JSONL shards, written so that a killed run can go on at the last checkpoint.

A shard in the making consists of parts, `<name>_<i>.part<k>.tmp`, of plain JSONL: a checkpoint
closes the current part, and what follows goes to the next. The finished shard is the parts joined
and then compressed as one frame (many readers stop behind a file's first), so it has the same bytes
wherever checkpoints fell.
"""

import json
import os

import tensorflow as tf
import zstandard
from unpacking import BLOCK

LEVEL = 6  # of zstd: about a tenth smaller than its default, and still faster than the extraction


class JsonlWriter:
    """Writes documents to shards of a given number.

    Args:
        directory: where the shards go.
        name: what their names begin with.
        compressed: whether they become .jsonl.zst.
        files_per: documents a shard.
        state: what `checkpoint` returned in an earlier run, to go on from there.
    """

    def __init__(self, directory, name, compressed, files_per, state=None):
        self._directory = directory
        self._name = name
        self._compressed = compressed
        self._files_per = files_per
        self._file = None
        self._garbage = []
        state = state or {"shards": [], "parts": [], "documents": 0}
        self.shards = state["shards"]  # [{"file", "documents", "bytes"}] of the finished ones
        self._parts = state["parts"]  # [[file, bytes]] of closed parts
        self._documents = state["documents"]  # in the present shard
        self._size = 0  # bytes in the present part

    def add(self, text, url):
        """Adds a document; `url` may be None."""
        if self._file is None:
            self._file = tf.io.gfile.GFile(self._path(self._part()), "wb")
            self._size = 0
        record = {"text": text} if url is None else {"text": text, "url": url}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"
        self._file.write(line)
        self._size += len(line)
        self._documents += 1
        if self._documents == self._files_per:
            self._finish_shard()

    def finish(self):
        """Finishes the last shard."""
        if self._documents:
            self._finish_shard()

    def checkpoint(self):
        """Closes the current part and returns the state, which JSON can hold."""
        self._close_part()
        return {"shards": self.shards, "parts": self._parts, "documents": self._documents}

    def sweep(self):
        """Deletes parts of finished shards; call it once a checkpoint without them is stored."""
        for part in self._garbage:
            tf.io.gfile.remove(self._path(part))
        self._garbage = []

    def _path(self, file):
        return os.path.join(self._directory, file)

    def _part(self):
        """The file name of the part that is being written."""
        return f"{self._name}_{len(self.shards)}.part{len(self._parts)}.tmp"

    def _close_part(self):
        """Closes the current part, if there is one."""
        if self._file:
            self._file.close()
            self._file = None
            self._parts.append([self._part(), self._size])

    def _finish_shard(self):
        """Joins the parts under the shard's name."""
        self._close_part()
        file = f"{self._name}_{len(self.shards)}.jsonl" + ".zst" * self._compressed
        size = 0
        with tf.io.gfile.GFile(self._path(file) + ".tmp", "wb") as target:
            for data in self._blocks():
                target.write(data)
                size += len(data)
        tf.io.gfile.rename(self._path(file) + ".tmp", self._path(file), overwrite=True)
        self.shards.append({"file": file, "documents": self._documents, "bytes": size})
        # a stored checkpoint may count on these parts, so they are kept until the next
        self._garbage += [part for part, _ in self._parts]
        self._parts, self._documents = [], 0

    def _blocks(self):
        """Yields the shard's stored bytes."""
        blocks = joined([self._path(part) for part, _ in self._parts])
        if not self._compressed:
            yield from blocks
            return
        whole = sum(size for _, size in self._parts)
        compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=whole)
        for block in blocks:
            yield compressor.compress(block)
        yield compressor.flush()


def joined(paths):
    """Yields the bytes of files one behind the other, in blocks that their ends do not shift."""
    held = b""
    for path in paths:
        with tf.io.gfile.GFile(path, "rb") as file:
            while data := file.read(BLOCK - len(held)):
                held += data
                if len(held) == BLOCK:
                    yield held
                    held = b""
    if held:
        yield held
