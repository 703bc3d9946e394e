"""What the tests of pictures share: pictures, encode_captions, a run's config and its rows."""

import io
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from configs import schema
from configs.dataset import Manifest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import encode_captions  # noqa: E402

SIZE = 8


def picture(number, size=SIZE, kind="PNG", mode="RGB"):
    """A picture of noise, another one for each number, as bytes of a file."""
    shape = (size, size) if np.isscalar(size) else size
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.RandomState(number).randint(0, 256, (*shape, *channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, kind)
    return file.getvalue()


def captions(number):
    """One to three captions that name the picture's number."""
    return [f"{number}" + "x" * place for place in range(1 + number % 3)]


def write_input(path, entries):
    """Writes (image bytes, captions) as datasets/scenes.py does; returns the records' offsets."""
    offsets, offset = [], 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image, texts in entries:
            example = tf.train.Example()
            example.features.feature["image"].bytes_list.value.extend([image] if image else [])
            example.features.feature["caption"].bytes_list.value.extend(
                text if isinstance(text, bytes) else text.encode() for text in texts)
            data = example.SerializeToString()
            writer.write(data)
            offsets.append(offset)
            offset += 16 + len(data)
    return offsets


def inputs_of(tmp_path, counts, split="train", first=0):
    """Files of so many pictures each, numbered on; returns their glob."""
    for file, count in enumerate(counts):
        write_input(tmp_path / f"{split}_{file}.tfrecords", [
            (picture(first + i), captions(first + i)) for i in range(count)])
        first += count
    return str(tmp_path / f"{split}_*.tfrecords")


def encode(tmp_path, *flags, status=0):
    """Runs encode_captions; returns the manifest."""
    argv = ["--name", "p", "--output_dir", str(tmp_path / "out"), "--encoder", "byte",
            "--write_dataset_config", str(tmp_path / "p.json"), *map(str, flags)]
    assert encode_captions.main(argv) == status
    if status:
        return None
    path = tmp_path / "out" / "p_manifest.json"
    return Manifest.from_json(path.read_text(), str(path))


def stored(path):
    """The records of a shard: (image bytes, ids, lengths) each."""
    for record in tf.io.tf_record_iterator(str(path)):
        features = tf.train.Example.FromString(record).features.feature
        (image,) = features["image"].bytes_list.value
        yield (image, list(features["text"].int64_list.value),
               list(features["lengths"].int64_list.value))


def config(tmp_path, **keys):
    """A run's config over what `encode` made."""
    keys = {"clip": {"image_size": SIZE}, "n_ctx": 8, "train_batch_size": 4, **keys}
    return schema.RunConfig.model_validate({
        "model": "clip", "n_layer": 1, "n_head": 1, "n_embd": 8, "activation_function":
        "quick_gelu", "train_steps": 10, "lr": 0.1, "model_path": str(tmp_path / "model"),
        "datasets": [str(tmp_path / "p.json")], **keys})


def take(input_fn, count=None, params=None):
    """The first batches of an input function, or all: a dict of arrays [rows, …]."""
    found = []
    with tf.Graph().as_default():
        following = tf.data.make_one_shot_iterator(input_fn(params or {})).get_next()
        assert all(value.shape.is_fully_defined() for value in following.values())
        with tf.Session() as session:
            while count is None or len(found) < count:
                try:
                    found.append(session.run(following))
                except tf.errors.OutOfRangeError:
                    break
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def rows(run, start, count, batch_size=1):
    """Rows `start` … of training."""
    import inputs
    assert count % batch_size == 0
    return take(inputs.train_input_fn(run, start), count // batch_size, {"batch_size": batch_size})


def numbers(found):
    """The numbers of the pictures of rows, read from their captions."""
    return [int(bytes(row[1:end].tolist()).decode().rstrip("x"))
            for row, end in zip(found["tokens"], found["ends"], strict=True)]
