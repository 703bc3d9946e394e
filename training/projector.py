"""TensorBoard's embedding projector: tokens, and CLIP's space of texts and pictures.

All is of a checkpoint, wherever the run trains. TensorBoard reads `projector_config.pbtxt` in the
run's directory and the files of tab-separated values that it names, from any storage.
"""

import io
import logging
import os
from typing import NamedTuple

import numpy as np
from google.protobuf import text_format
from tensorboard.plugins.projector import EmbeddingInfo, ProjectorConfig

import inputs
from mesh.compat import tf
from training import heat_map, keeping

# Neither name begins with the other: some storage then takes the one for a part of the other.
FOLDER, CONFIG = "embeddings", "projector_config.pbtxt"
# A browser works with so many points and numbers; a table's first ids are the most frequent ones of
# a byte-pair encoding.
MOST_POINTS, MOST_VALUES, PAIRS = 3000, 1 << 21, 200
_TILE = 64  # pixels of a picture's side, at most
_TABLES = {"GPT": "gpt/wte", "gpt_c": "gpt/wte", "clip": "clip_text/wte",
           "clip_student": "clip_student/wte"}


class Points(NamedTuple):
    """Some points of a space.

    Attributes:
      labels: by heading, a text for each point.
      vectors: float32 [points, width].
      pictures: uint8 [points, side, side, 3], or None.
    """

    labels: dict
    vectors: np.ndarray
    pictures: np.ndarray | None = None


def write(config, checkpoint, encoder, clip_space=()):
    """Writes what TensorBoard's projector shows of a run, in place of what was there.

    Args:
      config: the run's config.
      checkpoint: the checkpoint's path without its endings.
      encoder: the encoder of its weights, or None: then tokens are called by their ids.
      clip_space: Points of CLIP's space, with the same headings.
    """
    step = keeping.step_of(checkpoint)
    spaces = {"tokens": tokens(config, checkpoint, encoder)}
    if clip_space:
        spaces["clip"] = joined(clip_space)
    listed = ProjectorConfig()
    try:
        tf.io.gfile.makedirs(os.path.join(config.model_path, FOLDER))
        for name, points in spaces.items():
            # TensorBoard keeps values by their name for as long as it lives.
            info = EmbeddingInfo(tensor_name=f"{name}, step {step}",
                                 tensor_shape=points.vectors.shape)
            _write(config.model_path, name, points, info)
            listed.embeddings.append(info)
        # Only now: its files are there.
        keeping.write_text(os.path.join(config.model_path, CONFIG),
                           text_format.MessageToString(listed))
    except tf.errors.OpError as error:
        # It is an extra.
        logging.warning("warning: %s: cannot be written for TensorBoard's projector (%s)",
                        config.model_path, error.message)


def tokens(config, checkpoint, encoder):
    """Points of the first rows of the token table of a checkpoint."""
    table = tf.train.NewCheckpointReader(checkpoint).get_tensor(_TABLES[config.model])
    known = encoder.n_vocab if encoder else config.n_vocab
    number = min(known, len(table), MOST_POINTS, max(500, MOST_VALUES // table.shape[1]))
    ids = range(number)
    return Points({"token": [_name(encoder, i) for i in ids], "id": list(map(str, ids))},
                  table[:number])


def _name(encoder, token):
    """What a token says, in signs that are seen."""
    text = encoder.decode([token]) if encoder else ""
    if encoder and "\ufffd" in text:  # a part of a character
        held = encoder.token_bytes()
        text = held[token].hex(" ") if held else text
    return _visible(text) or (f"end of text ({token})" if encoder and token == encoder.eos_id
                              else f"({token})")


def _visible(text):
    """A text in one line without tabs; what is white at its ends is seen."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text)
    before = len(text) - len(text.lstrip(" "))
    shown = "␣" * before + inner + "␣" * (len(text) - before - len(inner))
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode()
                   for sign in shown)


def named(kind, texts, vectors, pictures=None):
    """Points of CLIP's space: what they are ("text", "picture", …) and of which texts."""
    return Points({"text": list(map(_visible, texts)), "what": [kind] * len(texts)}, vectors,
                  pictures)


class Pairs:
    """The first pictures of the validation split, and their captions.

    Args:
      config: the run's config, of model clip.

    Attributes:
      longest: tokens of the longest caption.
    """

    def __init__(self, config):
        with tf.Graph().as_default(), tf.Session() as session:
            rows = inputs.eval_input_fn(config)({}).unbatch().take(PAIRS).batch(PAIRS)
            rows = session.run(tf.data.make_one_shot_iterator(rows).get_next())
        there = rows["valid"] > 0
        self._pictures = rows["images"][there]
        self._captions = [row[1:end].tolist() for row, end in zip(
            rows["tokens"][there], rows["ends"][there], strict=True)]
        self.longest = max(map(len, self._captions))

    def points(self, embedder):
        """Points of both, as a training.embedder.Embedder has them."""
        texts = list(map(embedder.encoder.decode, self._captions))
        return [named("picture", texts, embedder.pictures(self._pictures), self._pictures),
                named("text", texts, embedder.captions(self._captions))]


def joined(parts):
    """Points of several as one; if some have pictures, the others get one of a page of text."""
    pictures = None
    seen = [part.pictures for part in parts if part.pictures is not None]
    if seen:
        tiles = [_tiles(part.pictures) if part.pictures is not None
                 else _pages(len(part.vectors), _tiles(seen[0]).shape[1]) for part in parts]
        pictures = np.concatenate(tiles)
    return Points({heading: [label for part in parts for label in part.labels[heading]]
                   for heading in parts[0].labels},
                  np.concatenate([part.vectors for part in parts]), pictures)


def _tiles(pictures):
    """Pictures of at most _TILE pixels a side, each pixel a mean: uint8 [n, side, side, 3]."""
    side = pictures.shape[1]
    of = -(-side // _TILE)
    small = side // of
    blocks = pictures[:, :small * of, :small * of].reshape(-1, small, of, small, of, 3)
    return blocks.mean(axis=(2, 4)).astype(np.uint8)


def _pages(number, side):
    """Light squares with dark lines: uint8 [number, side, side, 3]."""
    page = np.full([side, side, 3], 225, np.uint8)
    edge = max(1, side // 8)
    page[edge * 2:-edge:2 * edge, edge:-edge] = 120
    return np.repeat(page[None], number, axis=0)


def _sprite(tiles):
    """The tiles row by row in a square, as the bytes of a PNG."""
    from matplotlib import image

    number, side = tiles.shape[:2]
    across = int(np.ceil(number ** 0.5))
    grid = np.zeros([across * across, side, side, 3], np.uint8)
    grid[:number] = tiles
    grid = grid.reshape(across, across, side, side, 3).swapaxes(1, 2)
    file = io.BytesIO()
    image.imsave(file, grid.reshape(across * side, across * side, 3), format="png")
    return file.getvalue()


def _write(model_path, name, points, info):
    """Writes the files of a space, and their paths into an EmbeddingInfo."""
    info.tensor_path = os.path.join(FOLDER, f"{name}.tsv")
    keeping.write_text(os.path.join(model_path, info.tensor_path), _separated(
        map("{:.5g}".format, row) for row in points.vectors.tolist()))
    info.metadata_path = os.path.join(FOLDER, f"{name}_labels.tsv")
    keeping.write_text(os.path.join(model_path, info.metadata_path), _separated(
        [list(points.labels), *zip(*points.labels.values(), strict=True)]))
    if points.pictures is not None:
        info.sprite.image_path = os.path.join(FOLDER, f"{name}.png")
        info.sprite.single_image_dim.extend(points.pictures.shape[1:3])
        heat_map.write(os.path.join(model_path, info.sprite.image_path), _sprite(points.pictures))


def _separated(rows):
    """Rows of texts, with tabs between them."""
    return "".join("\t".join(row) + "\n" for row in rows)
