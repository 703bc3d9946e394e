"""One TFRecord file: what it holds, its records one by one, and what may be wrong with it."""

import dataclasses
import os
import re
import struct

import google_crc32c
import numpy as np
import tensorflow.compat.v1 as tf

from configs.dataset import RECORDS_PER_INDEX_ENTRY
from configs.errors import UserError

FEATURE = {"text": tf.io.RaggedFeature(tf.int64)}
# GPT-Neo's <name>_<i>_<records>.tfrecords; a single number, as in bundestag_0, is no count.
COUNT_IN_NAME = re.compile(r"_\d+_(\d+)\.tfrecords$")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file: its path, its size in bytes and what it holds.

    `index` has (byte offset, tokens before it) of every 256th record. `bytes` and `decoded_bytes`
    (of the original text) and the range of ids are None where nothing told them.
    """

    path: str
    size: int
    records: int
    tokens: int
    shortest: int
    longest: int
    index: tuple
    bytes: int | None = None
    decoded_bytes: int | None = None
    lowest: int | None = None
    highest: int | None = None

    def damage_near(self, offset):
        """One sentence if the record that an error at a byte offset stems from is damaged here."""
        starts = [start for start, _ in self.index if start <= offset]
        for place, length, problem in walk(self.path, starts[-1]) if starts else ():
            if place > offset:
                break
            if problem and offset <= place + length + 16:
                return _damage(self.path, problem, place)
        return None

    def shortened(self):
        """One sentence if the file's size has changed since its facts were read."""
        size = tf.io.gfile.stat(self.path).length
        if size == self.size:
            return None
        return (f"{self.path} has {size} bytes and had {self.size} when the run began; restore it "
                "and start again")


def check_count(shard):
    """Compares the count in a shard's name with the number of its records.

    Raises:
        UserError: they differ.
    """
    named = COUNT_IN_NAME.search(os.path.basename(shard.path))
    if named and int(named[1]) != shard.records:
        raise UserError(f"{shard.path}: the name says {int(named[1])} records and there are "
                        f"{shard.records}; copy the shard anew, or rename it to end in "
                        f"_{shard.records}.tfrecords if it is whole")


def check_last_index(shard):
    """Reads one record's header: a shard that was cut or replaced rarely has one there.

    Raises:
        UserError: the manifest's last offset is no record of the file.
    """
    if not shard.records:
        return
    offset = shard.index[-1][0]
    _, _, problem = next(walk(shard.path, offset), (0, 0, "no record"))
    if problem:
        raise UserError(f"{shard.path}: {problem} at byte {offset}, where the manifest says that "
                        f"one begins; copy or make the shard anew (see --check_dataset)")


def walk(path, offset=0):
    """Walks over the records of a file, checking lengths and CRCs.

    Yields:
        (byte offset, length of the data in bytes, None or what is wrong). After a record whose
        length cannot be trusted nothing follows.
    """
    size = tf.io.gfile.stat(path).length
    with tf.io.gfile.GFile(path, "rb") as file:
        file.seek(offset)
        while offset < size:
            header = file.read(12)
            if len(header) < 12:
                yield offset, 0, "truncated record"
                return
            length, crc = struct.unpack("<QI", header)
            if _masked_crc(header[:8]) != crc:
                yield offset, 0, "corrupt record (length)"
                return
            if offset + length + 16 > size:
                yield offset, 0, "truncated record"
                return
            data = file.read(length + 4)
            whole = _masked_crc(data[:-4]) == struct.unpack("<I", data[-4:])[0]
            yield offset, length, None if whole else "corrupt record (data)"
            offset += length + 16


def stored(path):
    """Reads the records of a file one by one.

    Yields:
        (byte offset, the record as it is stored).

    Raises:
        UserError: a damaged record.
    """
    offset = 0
    try:
        for record in tf.io.tf_record_iterator(path):
            yield offset, record
            offset += len(record) + 16
    except tf.errors.DataLossError as error:
        raise UserError(describe_damage(path, offset) or f"{path}: {error.message}") from error
    _check_end(path, offset)


def _check_end(path, offset):
    """Refuses bytes behind the last record, fewer than a header: TensorFlow takes them for none."""
    if offset != tf.io.gfile.stat(path).length:
        raise UserError(_damage(path, "truncated record", offset))


def _masked_crc(data):
    """The CRC-32C of TFRecord files: rotated right by 15 bits and shifted by a constant."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(path, limit=-1):
    """Reads a shard from end to end for its facts.

    Args:
        path: the file.
        limit: number of records to read; -1 for all.

    Raises:
        UserError: a damaged record, named by its offset, or one without int64s under "text".
    """
    sizes, tokens, low, high = [], [], [], []
    with tf.Graph().as_default():
        records = tf.data.TFRecordDataset(path, buffer_size=1 << 20).take(limit)
        records = records.batch(RECORDS_PER_INDEX_ENTRY).map(_measure)
        following = tf.data.make_one_shot_iterator(records).get_next()
        with tf.Session() as session:
            try:
                while True:
                    batch = session.run(following)
                    for values, new in zip((sizes, tokens, low, high), batch, strict=True):
                        values.append(new)
            except tf.errors.OutOfRangeError:
                pass
            except tf.errors.DataLossError as error:
                raise UserError(describe_damage(path) or f"{path}: {error.message}") from error
            except tf.errors.InvalidArgumentError as error:
                raise UserError(f"{path}: a record is no tf.train.Example with int64s under "
                                "\"text\"; only such shards can be read") from error
    if limit < 0:
        _check_end(path, sum(int(batch.sum() + 16 * len(batch)) for batch in sizes))
    counts = np.concatenate([np.zeros(0, np.int64), *tokens])
    offsets = np.cumsum(np.concatenate([[0], *sizes]) + 16) - 16
    before = np.cumsum(np.concatenate([[0], counts]))
    marks = range(0, len(counts), RECORDS_PER_INDEX_ENTRY)
    filled = bool(before[-1])
    return Shard(
        path=path, size=tf.io.gfile.stat(path).length, records=len(counts), tokens=int(before[-1]),
        shortest=int(min(counts, default=0)), longest=int(max(counts, default=0)),
        index=tuple((int(offsets[i]), int(before[i])) for i in marks),
        lowest=int(min(low)) if filled else None, highest=int(max(high)) if filled else None)


def _measure(batch):
    """Bytes [records], tokens [records], lowest and highest id of a batch of records."""
    texts = tf.io.parse_example(batch, FEATURE)["text"]
    sizes = tf.cast(tf.strings.length(batch), tf.int64)
    return (sizes, texts.row_lengths(), tf.reduce_min(texts.values), tf.reduce_max(texts.values))


def describe_damage(path, offset=0):
    """One sentence about the first damaged record at or after an offset, None if there is none."""
    for place, _, problem in walk(path, offset):
        if problem:
            return _damage(path, problem, place)
    return None


def _damage(path, problem, offset):
    """The sentence about a damaged record."""
    return (f"{path}: {problem} at byte {offset}; copy or make the shard anew, or take it out of "
            "the dataset")


def token_ids(file, offset, length):
    """The ids of the record of a length at an offset of an open file; None if they are damaged."""
    file.seek(offset + 12)
    try:
        example = tf.train.Example.FromString(file.read(length))
    except Exception:  # DecodeError is of google.protobuf's own, which has several of them
        return None
    return example.features.feature["text"].int64_list.value
