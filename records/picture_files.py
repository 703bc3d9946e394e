"""Pictures in TFRecord files one by one: decoding them, and what may be wrong with them."""

import tensorflow.compat.v1 as tf
from google.protobuf.message import DecodeError

from configs.errors import UserError
from records.shard import stored


class Decoder:
    """Decodes pictures as training does, but one by one and outside of its graph."""

    def __init__(self):
        with tf.Graph().as_default() as graph:
            self._data = tf.placeholder(tf.string, [])
            picture = tf.io.decode_image(self._data, channels=3, expand_animations=False)
            self._shape = tf.shape(picture)
        self._session = tf.Session(graph=graph)

    def side(self, data, wanted=None):
        """The pixels of a picture's side.

        Args:
            data: bytes of a PNG, JPEG, GIF or BMP.
            wanted: pixels that a side has to have; None asks for a square only.

        Raises:
            UserError: the picture is another one; the message goes on a sentence about it.
        """
        try:
            height, width, _ = self._session.run(self._shape, {self._data: data}).tolist()
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"cannot be decoded ({error.message.splitlines()[0]})") from error
        if height != width or wanted not in (None, height):
            square = f"{wanted} × {wanted}" if wanted else "as many rows as columns"
            raise UserError(f"has {height} × {width} pixels, not {square}")
        return height


def features_of(record):
    """The features of a stored record: {name: tf.train.Feature}.

    Raises:
        UserError: it is no tf.train.Example; the message goes on a sentence about it.
    """
    try:
        return dict(tf.train.Example.FromString(record).features.feature)
    except DecodeError as error:
        raise UserError("is no tf.train.Example") from error


def image_of(features):
    """The bytes of a record's one image.

    Raises:
        UserError: it has none, or several; the message goes on a sentence about it.
    """
    images = features["image"].bytes_list.value if "image" in features else ()
    if len(images) != 1:
        raise UserError(f"has {len(images)} byte strings under \"image\", not one")
    return images[0]


def problems(path, size):
    """Looks at every record of a shard of pictures.

    Args:
        path: the shard.
        size: pixels of a picture's side.

    Yields:
        a sentence for each record that training would fail at.

    Raises:
        UserError: a damaged record, behind which nothing can be read.
    """
    decoder = Decoder()
    for offset, record in stored(path):
        try:
            features = features_of(record)
            decoder.side(image_of(features), size)
            ids, lengths = (list(features[name].int64_list.value) if name in features else []
                            for name in ("text", "lengths"))
            if not lengths or sum(lengths) != len(ids):
                raise UserError(f"has captions of {lengths} tokens, and {len(ids)} ids")
        except UserError as error:
            yield f"{path}: the picture at byte {offset} {error}"
