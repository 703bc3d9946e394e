"""What the tests of create_tfrecords share: running it, and reading what it wrote."""

import json
import os
import sys

import numpy as np
import tensorflow as tf

import encoders
from configs.dataset import Manifest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, "datasets", "create_tfrecords.py")
sys.path.insert(0, os.path.join(ROOT, "datasets"))
import create_tfrecords  # noqa: E402
import shards  # noqa: E402

BYTE = encoders.load("byte")


def corpus(seed=0, count=300):
    """Texts of 0 to 400 characters, some not ASCII."""
    rng = np.random.RandomState(seed)
    letters = np.array(list("abcdefgh \n.,é漢🎈"))
    return ["".join(rng.choice(letters, rng.randint(0, 400) if i % 7 else i % 3))
            for i in range(count)]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def run(tmp_path, *flags, out="out", status=0):
    """Runs in this process; returns the output directory and the manifest."""
    argv = ["--name", "d", "--output_dir", str(tmp_path / out), "--encoder", "byte",
            "--processes", "1", *map(str, flags)]
    if "--input_dir" not in argv and "--tfds" not in argv:
        argv += ["--input_dir", *sorted(map(str, tmp_path.glob("*.jsonl"))),
                 *map(str, tmp_path.glob("*.txt"))]
    assert create_tfrecords.main(argv) == status
    if status:
        return None, None
    return tmp_path / out, read_manifest(tmp_path / out)


def read_manifest(directory, name="d"):
    path = directory / f"{name}_manifest.json"
    return Manifest.from_json(path.read_text(), str(path))


def records(path):
    """The token arrays of a shard, read as GPT-Neo reads them."""
    spec = {"text": tf.io.VarLenFeature(tf.int64)}
    return [tf.sparse.to_dense(tf.io.parse_single_example(record, spec)["text"]).numpy()
            for record in tf.data.TFRecordDataset(str(path))]


def split_records(directory, manifest, split):
    return [record for shard in manifest.splits[split]
            for record in records(directory / shard.file)]


def split_documents(directory, manifest, split):
    """The texts of a split, cut apart at the separator."""
    tokens = np.concatenate([*split_records(directory, manifest, split), np.zeros(0, np.int64)])
    ends = np.flatnonzero(tokens == BYTE.eos_id)
    assert not len(tokens) or ends[-1] == len(tokens) - 1
    return [BYTE.decode(part[:-1].tolist()) for part in np.split(tokens, ends + 1)[:-1]]


def contents(directory):
    """Every file of a directory with its bytes; index files hold paths, so by base names."""
    found = {}
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        if path.suffix == ".index":
            data = b"\n".join(map(os.path.basename, data.split(b"\n")))
        found[path.name] = data
    return found


def command(tmp_path, out, *flags):
    return [sys.executable, SCRIPT, "--name", "d", "--output_dir", str(tmp_path / out),
            "--encoder", "byte", *map(str, flags)]


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_at(monkeypatch, count, error=Killed, times=None):
    """Ends the run before its count-th operation on a file, or has that and later ones fail.

    If `times` says so, that many of all operations fail, also of those that read. Returns [how many
    are left before that].
    """
    left = [count]

    def deadly(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0 and (times is None or left[0] >= -times):
                raise error
            return function(*args, **kwargs)
        return call
    reads = ((tf.io.gfile, "stat"), (tf.io.gfile.GFile, "read")) if times else ()
    for owner, name in ((tf.io.gfile, "rename"), (tf.io.gfile, "remove"),
                        (tf.io.TFRecordWriter, "close"), (shards, "_join"), *reads):
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name)))
    monkeypatch.setattr(shards, "serialise", deadly(shards.serialise))
    return left
