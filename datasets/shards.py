"""TFRecord shards of one split, written so that a killed run can go on at the last checkpoint.

A shard in the making consists of parts, `<name>_<i>.part<k>.tmp`: a checkpoint closes the current
part, and what follows goes to the next. TFRecord files are plain sequences of records, so the
finished shard is the parts joined, the same bytes wherever checkpoints fell.
"""

import collections
import itertools
import os

import numpy as np
import tensorflow as tf

from configs.dataset import RECORDS_PER_INDEX_ENTRY
from configs.errors import UserError
from records import retrying

FRAMING = 16  # bytes that TFRecord adds to a record: length 8, its checksum 4, the data's 4
COPY_BLOCK = 1 << 24
INFIX = {"train": "", "validation": "_val"}


def write_atomically(path, text):
    """Writes a text file under a temporary name and renames it, so that no half file is seen.

    Raises:
        UserError: the file system refuses.
    """
    try:
        with tf.io.gfile.GFile(path + ".tmp", "w") as file:
            file.write(text)
        tf.io.gfile.rename(path + ".tmp", path, overwrite=True)
    except retrying.TRANSIENT:
        raise
    except tf.errors.OpError as error:
        raise UserError(f"{path}: cannot be written: {error.message}; see to its permissions and "
                        "to free space") from error


def serialise(tokens):
    """A record: tf.train.Example with the int64 list "text", from a numpy array [tokens]."""
    example = tf.train.Example()
    # protobuf takes Python ints twice as fast as numpy's, and a list sooner at once than extending
    example.features.feature["text"].int64_list.value[:] = tokens.tolist()
    return example.SerializeToString()


class SplitWriter:
    """Packs the documents of a split into records and the records into shards.

    In chunks mode all documents form one stream, cut into records of chunk_size tokens; only the
    last record may be shorter. In documents mode each document is a record. A document counts for
    the shard in which it begins.

    Args:
        directory: where the shards go.
        name: the dataset's name.
        split: "train" or "validation".
        chunk_size: tokens a record, 0 in documents mode.
        files_per: records a shard.
        encoder_hash: noted in each shard's facts.
        state: what `checkpoint` returned in an earlier run, to go on from there.
    """

    def __init__(self, directory, name, split, chunk_size, files_per, encoder_hash, state=None):
        self._directory = directory
        self._stem = name + INFIX[split]
        self._chunk_size = chunk_size
        self._files_per = files_per
        self._encoder_hash = encoder_hash
        self._writer = None
        self._garbage = []
        state = state or {"shards": [], "parts": [], "facts": None, "offset": 0, "start": 0,
                          "leftover": [], "beginnings": []}
        self._shards = state["shards"]
        self._parts = state["parts"]  # closed parts, all of which a checkpoint knows
        self._facts = state["facts"] or self._no_facts()
        self._offset = state["offset"]  # bytes in the shard so far
        self._start = state["start"]  # tokens of the split in records so far
        self._leftover = np.array(state["leftover"], np.int64)
        # Of each document not yet counted its first token's place in the split, its bytes and
        # its decoded bytes, one behind the other: a tuple a document is work for the collector.
        self._beginnings = collections.deque(itertools.chain.from_iterable(state["beginnings"]))

    @property
    def shards(self):
        """The finished shards' facts, dicts with the fields of configs.dataset.Shard."""
        return self._shards

    @property
    def tokens_held(self):
        """Tokens that came in and are in no record yet."""
        return len(self._leftover)

    def add(self, encoded):
        """Adds documents (encoding.Encoded)."""
        places = self._start + len(self._leftover) + np.cumsum([0, *encoded.lengths])
        self._beginnings.extend(itertools.chain.from_iterable(zip(
            places[:-1].tolist(), encoded.text_bytes, encoded.decoded_bytes, strict=True)))
        if not self._chunk_size:
            for begin, end in zip(places[:-1] - places[0], places[1:] - places[0], strict=True):
                self._write(serialise(encoded.tokens[begin:end]), int(end - begin))
            return
        tokens = np.concatenate([self._leftover, encoded.tokens])
        whole = len(tokens) // self._chunk_size * self._chunk_size
        for record in tokens[:whole].reshape(-1, self._chunk_size):
            self._write(serialise(record), len(record))
        self._leftover = tokens[whole:]

    def add_record(self, record, tokens, text_bytes, decoded_bytes):
        """Adds a record of documents mode that is serialised already, with its facts."""
        self._beginnings += self._start, text_bytes, decoded_bytes
        self._write(record, tokens)

    def finish(self):
        """Writes what is left, the split's last record, and finishes its last shard."""
        if len(self._leftover):
            self._write(serialise(self._leftover), len(self._leftover))
            self._leftover = self._leftover[:0]
        if self._facts["records"]:
            self._finish_shard()

    def checkpoint(self):
        """Closes the current part and returns the state, which JSON can hold."""
        if self._writer:
            self._parts.append(self._close_part())
        return {"shards": self._shards, "parts": self._parts, "facts": self._facts,
                "offset": self._offset, "start": self._start,
                "leftover": self._leftover.tolist(),
                "beginnings": np.reshape(self._beginnings, [-1, 3]).tolist()}

    def sweep(self):
        """Deletes parts of finished shards; call it once a checkpoint without them is stored."""
        for part in self._garbage:
            tf.io.gfile.remove(os.path.join(self._directory, part))
        self._garbage = []

    def _no_facts(self):
        """The facts of a shard without records."""
        return {"records": 0, "documents": 0, "tokens": 0, "bytes": 0, "decoded_bytes": 0,
                "shortest": 0, "longest": 0, "encoder_hash": self._encoder_hash, "index": []}

    def _part(self):
        """The file name of the part that is being written."""
        return f"{self._stem}_{len(self._shards)}.part{len(self._parts)}.tmp"

    def _close_part(self):
        """Closes the current part and returns its file name."""
        self._writer.close()
        self._writer = None
        return self._part()

    def _write(self, record, tokens):
        """Writes a serialised record of so many tokens, finishing the shard if it is full."""
        if self._writer is None:
            self._writer = tf.io.TFRecordWriter(
                os.path.join(self._directory, self._part()))
        self._writer.write(record)
        facts = self._facts
        if facts["records"] % RECORDS_PER_INDEX_ENTRY == 0:
            facts["index"].append([self._offset, facts["tokens"]])
        facts["shortest"] = min(facts["shortest"] or tokens, tokens)
        facts["longest"] = max(facts["longest"], tokens)
        facts["records"] += 1
        facts["tokens"] += tokens
        self._offset += FRAMING + len(record)
        self._start += tokens
        waiting = self._beginnings
        while waiting and waiting[0] < self._start:
            waiting.popleft()
            facts["documents"] += 1
            facts["bytes"] += waiting.popleft()
            facts["decoded_bytes"] += waiting.popleft()
        if facts["records"] == self._files_per:
            self._finish_shard()

    def _finish_shard(self):
        """Joins the parts under the shard's final name, which carries its count of records."""
        file = f"{self._stem}_{len(self._shards)}_{self._facts['records']}.tfrecords"
        path = os.path.join(self._directory, file)
        last = self._close_part() if self._writer else None
        if last and not self._parts:
            tf.io.gfile.rename(os.path.join(self._directory, last), path, overwrite=True)
        else:
            # a stored checkpoint counts on these parts, so they are copied and kept until the next
            parts = [*self._parts, last] if last else self._parts
            _join([os.path.join(self._directory, part) for part in parts], path)
            self._garbage += parts
        self._shards.append({"file": file, **self._facts})
        self._parts, self._facts, self._offset = [], self._no_facts(), 0


def _join(parts, path):
    """Copies files one behind the other into a new one, which appears whole."""
    with tf.io.gfile.GFile(path + ".tmp", "wb") as target:
        for part in parts:
            with tf.io.gfile.GFile(part, "rb") as source:
                while block := source.read(COPY_BLOCK):
                    target.write(block)
    tf.io.gfile.rename(path + ".tmp", path, overwrite=True)
