"""What happens to attention's scores before the softmax: masks, and ALiBi's penalty of distance."""

import dataclasses
import math

import numpy as np

from mesh.compat import tf


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which keys a query sees, and what its scores lose with distance.

    Attributes:
      causal: whether keys after the query are hidden.
      window: how many keys a query sees, its own and those before it; None is all.
      learned: how many of the keys, the first ones, are learned memories: they have no position and
        every query sees them.
      slopes: ALiBi's slope of each head, or None.
    """

    causal: bool = True
    window: int | None = None
    learned: int = 0
    slopes: tuple | None = None

    def apply(self, scores, rows, start=None, head=0):
        """The scores as the softmax takes them; hidden ones are finite, -1e9.

        Args:
          scores: a slice, float32 [b, h, n, m], of which the first `learned` columns are memories.
          rows: the queries' positions, int32 of a shape [..., n, 1], tensor or numpy.
          start: position of the slice's first key where others hold other keys, or None.
          head: the slice's first head.

        Returns:
          a tensor like `scores`.
        """
        size = scores.shape[-1]
        places = tf.range(tf.shape(scores)[-1]) if size is None else np.arange(size, dtype=np.int32)
        is_learned, columns = places < self.learned, places - np.int32(self.learned)
        distance = rows - (columns if start is None else columns + start)
        if self.slopes is not None:
            scores -= (slopes_of(self.slopes, head, scores.shape[1])[:, None, None]
                       * tf.cast(tf.abs(tf.where_v2(is_learned, 0, distance)), tf.float32))
        visible = distance >= 0 if self.causal else None
        if self.window is not None:
            visible = visible & (distance < self.window)
        if self.learned and visible is not None:
            visible = visible | is_learned
        if self.learned and start is not None:
            # Each slice has the memories, and the first one counts them.
            counted = ~is_learned | tf.equal(start, 0)
            visible = counted if visible is None else visible & counted
        return scores if visible is None else tf.where_v2(visible, scores, -1e9)


def slopes_of(slopes, head, count):
    """ALiBi's slopes of a slice's heads, float32 [count]; `head` is the first one's number."""
    return tf.slice(tf.constant(slopes, tf.float32), [head], [count])


def alibi_slopes(heads):
    """The slopes of attention with linear biases (Press et al. 2022, section 3), for each head.

    For a power of two a geometric sequence that begins with its ratio and ends with 2⁻⁸. Other
    numbers of heads take the sequence of the power of two below, and then every other slope of that
    of the power of two above, as the paper's code does.

    Returns:
      a tuple of `heads` floats.
    """
    def sequence(n):
        return [2.0 ** (-8.0 * i / n) for i in range(1, n + 1)]

    below = 2 ** int(math.log2(heads))
    return tuple(sequence(below) + sequence(2 * below)[::2][:heads - below])
