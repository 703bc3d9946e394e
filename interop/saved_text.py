"""Text in a SavedModel's graph, by plain TensorFlow operations on strings of UTF-8."""

import numpy as np

from encoders.base import Encoder
from mesh.compat import tf

# What has a meaning in RE2's regular expressions.
_SPECIAL = r"([\\.+*?()|\[\]{}^$])"


def cut_at_stops(table: list[bytes], tokens: tf.Tensor,
                 stop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The texts of rows of new ids, and both cut as --predict cuts them.

    A row ends with the first id after which a stop is in its text, and its text before the stop
    that begins first.

    Args:
      table: the bytes of each id.
      tokens: int32 [rows, new], -1 past a row's end.
      stop: string [stops], none empty.

    Returns:
      (int32 [rows, new], string [rows]).
    """
    pieces = tf.where_v2(tokens >= 0, tf.gather(tf.constant(table), tf.maximum(tokens, 0)), "")
    sizes = tf.strings.length(pieces)
    ends = tf.cumsum(sizes, axis=1)
    whole = tf.strings.reduce_join(pieces, axis=1)
    some = tf.size(stop) > 0
    # A stop whose last byte an id brings is in the id's bytes and those just before them.
    longest = tf.reduce_max(tf.concat([tf.strings.length(stop), [0]], 0))
    begins = tf.maximum(ends - sizes - longest + 1, 0)
    near = tf.strings.substr(tf.broadcast_to(whole[:, None], tf.shape(tokens)), begins,
                             ends - begins)
    either = tf.strings.reduce_join(tf.strings.regex_replace(stop, _SPECIAL, r"\\\1"),
                                    separator="|")
    # \C is any byte: a text that ends within a character is no UTF-8.
    found = some & tf.strings.regex_full_match(near, tf.strings.join([r"\C*(?:", either, r")\C*"]))
    stopped = tf.cumsum(tf.cast(found, tf.int32), axis=1, exclusive=True) > 0
    kept = tf.reduce_sum(tf.where_v2(stopped, 0, sizes), axis=1)
    text = tf.strings.substr(whole, tf.zeros_like(kept), kept)
    before = tf.strings.regex_replace(text, tf.strings.join(["(?:", either, r")\C*"]), "",
                                      replace_global=False)
    return tf.where_v2(stopped, -1, tokens), tf.where_v2(some, before, text)


def ids(encoder: Encoder, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The ids of texts and their number, (int32 [rows, length], int32 [rows]).

    Args:
      encoder: one that `reads`.
      text: string [rows].
    """
    if encoder.name == "byte":
        letters = tf.strings.bytes_split(text)
        found = tf.cast(tf.decode_raw(letters.flat_values, tf.uint8)[:, 0], tf.int32)
    else:
        known = {ord(piece.decode("utf-8")): number
                 for number, piece in enumerate(encoder.token_bytes() or []) if piece}
        codes = np.array(sorted(known), np.int32)
        letters = tf.strings.unicode_decode(text, "UTF-8")
        at = tf.minimum(tf.searchsorted(codes, letters.flat_values), len(codes) - 1)
        right = tf.reduce_all(tf.equal(tf.gather(codes, at), letters.flat_values))
        with tf.control_dependencies([tf.debugging.Assert(
                right, ["text: has a character that the encoder does not know"])]):
            found = tf.gather(np.array([known[code] for code in codes], np.int32), at)
    rows = letters.with_flat_values(found)
    return rows.to_tensor(), tf.cast(rows.row_lengths(), tf.int32)


def reads(encoder: Encoder) -> bool:
    """Whether `ids` can do what the encoder does: a BPE needs more than plain TensorFlow has."""
    return encoder.name in ("byte", "char")
