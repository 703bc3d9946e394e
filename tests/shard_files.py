"""Small TFRecord shards and configs for the tests of the input functions."""

import json
import os
import types

import numpy as np
import tensorflow.compat.v1 as tf

from configs.dataset import DatasetConfig


def example(ids, **more):
    """A serialised tf.train.Example as GPT-Neo writes it."""
    features = {"text": tf.train.Feature(int64_list=tf.train.Int64List(value=ids)), **more}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path, records, **more):
    """Writes records of ids to a file; returns the byte offset of each record."""
    offsets, offset = [], 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for ids in records:
            data = example(ids, **more)
            writer.write(data)
            offsets.append(offset)
            offset += 16 + len(data)
    return offsets


def cut(tokens, size):
    """A stream cut into records of a size; the last may be shorter."""
    return [tokens[i:i + size] for i in range(0, len(tokens), size)]


def facts(path, records, offsets):
    """A manifest's entry for a shard."""
    before = np.concatenate([[0], np.cumsum([len(ids) for ids in records])])
    return {"file": os.path.basename(str(path)), "records": len(records), "documents": len(records),
            "tokens": int(before[-1]), "bytes": 3 * int(before[-1]),
            "decoded_bytes": 2 * int(before[-1]),
            "shortest": min(map(len, records), default=0),
            "longest": max(map(len, records), default=0), "encoder_hash": "0123456789abcdef",
            "index": [[offsets[i], int(before[i])] for i in range(0, len(records), 256)]}


def manifest(directory, name, mode, splits, **encoder):
    """Writes a manifest of shards given as {split: [facts, …]}."""
    encoder = {"spec": "byte", "hash": "0123456789abcdef", "n_vocab": 257, "eos_id": 256,
               "lossless": True, **encoder}
    content = {"format": 1, "name": name, "mode": mode, "chunk_size": 0, "separator": [256],
               "seed": 1, "encoder": encoder, "dropped": {}, "splits": splits}
    (directory / f"{name}_manifest.json").write_text(json.dumps(content))


def config(tmp_path, datasets, **keys):
    """A run's config: `datasets` maps an id to (stitch, mode, weight, keys of its JSON)."""
    entries = [[name, *rest[:3]] for name, rest in datasets.items()]
    jsons = {name: DatasetConfig.from_json(json.dumps({"n_vocab": 257, **rest[3]}), name)
             for name, rest in datasets.items()}
    values = {"model": "GPT", "n_ctx": 8, "n_vocab": 257, "train_batch_size": 4,
              "eval_batch_size": 4, "eval_steps": None, "seed": 1, "input_fn": "datasets",
              "skip_corrupt": False,
              "datasets": entries, "dataset_configs": jsons,
              "model_path": str(tmp_path / "model"), **keys}
    return _Config(**values)


class _Config(types.SimpleNamespace):
    window_size = property(lambda self: self.n_ctx)


def take(input_fn, count=None, params=None):
    """The first batches of an input function: (tokens [batches, …], valid), or all of them."""
    tokens, valid = [], []
    with tf.Graph().as_default():
        following = tf.data.make_one_shot_iterator(input_fn(params or {})).get_next()
        assert following["tokens"].shape.is_fully_defined()
        with tf.Session() as session:
            while count is None or len(tokens) < count:
                try:
                    row = session.run(following)
                except tf.errors.OutOfRangeError:
                    break
                tokens.append(row["tokens"])
                valid.append(row["valid"])
    return np.array(tokens), np.array(valid)


def rows(config, start, count, batch_size=1):
    """Rows `start` … of training: [count, n_ctx + 1]."""
    import inputs
    assert count % batch_size == 0
    tokens, valid = take(inputs.train_input_fn(config, start), count // batch_size,
                         {"batch_size": batch_size})
    assert (valid == config.n_ctx).all()
    return tokens.reshape(count, -1)
