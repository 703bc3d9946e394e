"""Documents from TensorFlow Datasets; imported only where `--tfds` is given."""

import re

import tensorflow as tf
from unpacking import one_line

from configs.errors import UserError

VERSION = re.compile(r"[0-9*]+\.[0-9*]+\.[0-9*]+$")


def split_spec(spec):
    """Splits NAME[:split] into (name, split); `name:1.0.0` is a name with a version.

    The split is "train" where none is given, and may be a slice: `imdb_reviews:train[:10%]`.
    """
    name, colon, split = spec.rpartition(":") if "[" not in spec else _before_slice(spec)
    if not colon or VERSION.match(split) or "/" in split:
        return spec, "train"
    return name, split


def _before_slice(spec):
    """Cuts at the colon before a split that has a slice in brackets, which may hold colons."""
    head, bracket, tail = spec.partition("[")
    name, colon, split = head.rpartition(":")
    return name, colon, split + bracket + tail


def _builder(spec):
    """The prepared TFDS builder and the split's name.

    Raises:
        UserError: the dataset or the split is unknown, or cannot be prepared.
    """
    import tensorflow_datasets as tfds
    name, split = split_spec(spec)
    try:
        if tf.io.gfile.isdir(name):
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name)
            builder.download_and_prepare()
        builder.info.splits[split]
    except Exception as error:  # tfds raises dozens of kinds, from its own to requests'
        raise UserError(one_line(
            f"--tfds {spec}: {type(error).__name__}: {str(error)[:300]}; give NAME[:split], where "
            "NAME is a directory or a dataset prepared under $TFDS_DATA_DIR")) from error
    return builder, split


def split_bytes(spec):
    """The number of bytes of a split."""
    builder, split = _builder(spec)
    return builder.info.splits[split].num_bytes


def _text_feature(spec, features, text_key):
    """The feature that holds the text: `text_key` where it exists, else the only string."""
    strings = [name for name, feature in features.items()
               if tf.as_dtype(feature.dtype) == tf.string and feature.shape == ()] \
        if hasattr(features, "items") else []
    if text_key in strings:
        return text_key
    if len(strings) == 1 and text_key == "text":
        return strings[0]
    raise UserError(f"--tfds {spec}: no feature {text_key!r}; choose one with --text_key: "
                    f"{', '.join(sorted(strings)) or 'it has no string feature'}")


def read_tfds(spec, text_key, on_read=None):
    """Yields the texts of a split in its fixed order.

    Args:
        spec: NAME[:split], or DIRECTORY[:split] of a prepared dataset.
        text_key: the feature; where it is "text" and absent, the only string feature is taken.
        on_read: called with the bytes of each text.
    """
    builder, split = _builder(spec)
    key = _text_feature(spec, builder.info.features, text_key)
    for example in builder.as_dataset(split=split, shuffle_files=False):
        data = example[key].numpy()
        if on_read:
            on_read(len(data))
        try:
            yield data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--tfds {spec}: feature {key!r} is no UTF-8: {error}") from error
