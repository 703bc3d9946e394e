"""Queries, keys and values of attention heads on slices, whichever of their dimensions are split.

Names of dimensions in comments: b batch, s sequence, m memory_length, h heads, d features_per_head.

- `sequence`: a slice has its own queries; keys and values are gathered for all positions.
- `memory_length`: a slice has its own keys and values; the softmax's maximum and sum, and the
  outputs, are reduced over the slices.
- `features_per_head`: scores are summed over the slices; a rotation pairs features of different
  slices, so it is done on gathered features.
"""

from mesh.compat import tf
from models import positions


class Heads:
    """The dimensions of an attention, and what it does with laid-out tensors of them.

    Args:
      qkv: packed queries, keys and values, [batch, sequence, qkv, heads, features_per_head].
      memory: the dimension of the keys' positions.
      rotary_dims: features of a head to rotate; 0 for none.
    """

    def __init__(self, qkv, memory, rotary_dims):
        self.batch, self.sequence, _, self.heads, self.features = qkv.shape.dims
        self.memory, self.rotary_dims = memory, rotary_dims

    def split(self, slices, x, angles):
        """Unpacks queries, keys and values.

        Args:
          slices: a mesh.slices.Slices.
          x: laid-out [b, s, qkv, h, d].
          angles: laid-out cosines and sines of the positions, each [s, rotated features / 2] or
            [b, s, rotated features / 2]; none where nothing is rotated.

        Returns:
          three laid-out [b, h, s, d]: queries, rotated and divided by √d, rotated keys, values.
        """
        return [self._own(slices, t, 3)
                for t in slices.map(self.split_slice, self._gathered(slices, x, 4), *angles)]

    def split_gradient(self, slices, x, angles, d_q, d_k, d_v):
        """The gradient of `split`'s `x`, like it; the arguments are those of `split`'s results."""
        def one_slice(x, d_q, d_k, d_v, *angles):
            # A fresh identity keeps tf.gradients from walking the rest of the graph.
            x = tf.identity(x)
            return tf.gradients(self.split_slice(x, *angles), x, [d_q, d_k, d_v])[0]

        grads = [self._gathered(slices, t, 3) for t in (d_q, d_k, d_v)]
        return self._own(slices, slices.map(one_slice, self._gathered(slices, x, 4), *grads,
                                            *angles), 4)

    def to_memory(self, slices, x):
        """Keys or values, [b, h, s, d] -> [b, h, m, d]."""
        return slices.part(slices.whole(x, self.sequence, 2), self.memory, 2)

    def from_memory(self, slices, x):
        """Gradients of keys or values by each slice's queries, [b, h, m, d] -> [b, h, s, d]."""
        total = slices.sum(x, self.sequence)
        return slices.part(slices.whole(total, self.memory, 2), self.sequence, 2)

    def products(self, slices, x, y):
        """x · yᵀ over the features: [b, h, n, d] and [b, h, m, d] -> float32 [b, h, n, m]."""
        return slices.sum(slices.map(
            lambda x, y: tf.cast(tf.matmul(x, y, transpose_b=True), tf.float32), x, y),
            self.features)

    def softmax(self, slices, scores, whole=tf.nn.softmax):
        """The softmax over the last dimension, memory_length. Like `scores`: [b, h, n, m].

        `whole` is what does it where no layout splits that.
        """
        if not slices.is_split(self.memory):
            return slices.map(whole, scores)
        top = slices.max(slices.map(lambda s: tf.reduce_max(s, -1, keepdims=True), scores),
                         self.memory)
        e = slices.map(lambda s, t: tf.exp(s - t), scores, top)
        total = slices.sum(slices.map(lambda e: tf.reduce_sum(e, -1, keepdims=True), e),
                           self.memory)
        return slices.map(lambda e, t: e / t, e, total)

    def split_slice(self, x, *angles):
        """`split` of one slice that has all features: from tf [b, s, qkv, h, d]."""
        q, k, v = tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))
        if self.rotary_dims:
            cos, sin = (t[..., None, :, :] for t in angles)
            q, k = (positions.rotate(t, cos, sin, self.rotary_dims) for t in (q, k))
        return q * tf.cast(self.features.size ** -0.5, q.dtype), k, v

    def _gathered(self, slices, x, axis):
        """`x` with all features on every slice, where they are to be rotated."""
        return slices.whole(x, self.features, axis) if self.rotary_dims else x

    def _own(self, slices, x, axis):
        """What a slice holds of gathered features."""
        return slices.part(x, self.features, axis) if self.rotary_dims else x


def swapped(x):
    """[b, s, h, d] <-> [b, h, s, d]."""
    return tf.transpose(x, [0, 2, 1, 3])


def weighted(p, v):
    """[b, h, n, m] · [b, h, m, d], in the type of `v`."""
    return tf.matmul(tf.cast(p, v.dtype), v)
