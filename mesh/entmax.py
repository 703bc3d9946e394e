"""α-entmax: probabilities between the softmax (α = 1) and the sparsemax (α = 2), and their loss.

Peters et al. 2019, Sparse Sequence-to-Sequence Models, https://arxiv.org/abs/1905.05702. With
k = 1/(α-1) the probabilities are p = max((α-1)·z - τ, 0)^k, for the τ at which they sum to 1.
"""

from mesh import ops
from mesh.compat import tf
from mesh.slices import SliceOperation

# Newton's method on the k-norm, which is convex, from below: 11 were the most that float32 needed
# for 5 to 50,000 logits of deviations from 0.001 to 50 and α from 1.01 to 2.
_ITERATIONS = 12


def entmax_loss(logits, targets, dim, n_valid, alpha, name="entmax_loss"):
    """The Fenchel-Young loss of α-entmax (section 3.2): finite, and 0 where p is 1 at the target.

        loss = Σ p·z - z[target] + (1 - Σ p^α) / (α·(α-1))

    Args:
      logits: [..., dim], any floating type; computed in float32. `dim` may be split.
      targets: int32 [...].
      dim: the last dimension of `logits`.
      n_valid: ids at or above it (padding of the table) have no probability.
      alpha: a number, 1 < alpha <= 2.
      name: a name for the TensorFlow scope.

    Returns:
      float32 [...].
    """
    entmax = _Entmax(dim, n_valid, alpha)

    def forward(slices, x, t):
        start, top, threshold = entmax.solve(slices, x)

        def part(v, i, top, threshold, s):
            p, z = entmax.probabilities(v, top, threshold, s), tf.cast(v, tf.float32)
            z -= top[..., None]
            # p is 0 where z is the padding's, and p^α = p·p^(α-1).
            above = entmax.above(v, top, threshold, s)
            inner = tf.reduce_sum(p * (z - above / (alpha * (alpha - 1.0))), -1)
            return inner - ops.at_target(z, i, s, not slices.have_devices)

        total = slices.sum(ops.map_from(slices, part, start, x, t, top, threshold), dim)
        loss = slices.map(lambda t: t + 1.0 / (alpha * (alpha - 1.0)), total)
        return loss, top, threshold

    def backward(slices, ins, outs, grads):
        start = slices.start(dim) if slices.is_split(dim) else None

        def one_slice(v, i, top, threshold, d, s):
            p = entmax.probabilities(v, top, threshold, s) * d[..., None]
            return tf.cast(ops.minus_at_target(p, i, d, s, not slices.have_devices), v.dtype)

        return [ops.map_from(slices, one_slice, start, *ins, *outs[1:], grads[0]), None]

    rows = (targets.shape, tf.float32)
    return SliceOperation(forward, backward, [logits, targets], [rows] * 3, name).outputs[0]


def probabilities(logits, dim, n_valid, alpha, name="entmax"):
    """α-entmax of logits, without a gradient; the arguments are those of `entmax_loss`.

    Returns:
      float32 [..., dim], 0 at and above `n_valid`.
    """
    entmax = _Entmax(dim, n_valid, alpha)

    def forward(slices, x):
        start, top, threshold = entmax.solve(slices, x)
        return ops.map_from(slices, entmax.probabilities, start, x, top, threshold)

    return SliceOperation(forward, None, [logits], [(logits.shape, tf.float32)], name).outputs[0]


class _Entmax:
    def __init__(self, dim, n_valid, alpha):
        self._dim, self._n_valid = dim, n_valid
        self._alpha, self._power = alpha, 1.0 / (alpha - 1.0)

    def solve(self, slices, x):
        """(start of the slices or None, the largest logit, the threshold), float32 [...]."""
        dim = self._dim
        start = slices.start(dim) if slices.is_split(dim) else None
        top = slices.max(ops.map_from(
            slices, lambda v, s: tf.reduce_max(self._valid(v, s), -1), start, x), dim)
        # The largest element alone sums to 1 there: the solution is not below.
        threshold = slices.map(lambda t: -tf.ones_like(t), top)
        for _ in range(_ITERATIONS):
            sums = slices.sum(ops.map_from(slices, self._sums, start, x, top, threshold), dim)
            threshold = slices.map(self._step, threshold, sums)
        return start, top, threshold

    def probabilities(self, x, top, threshold, start):
        """A slice's probabilities, float32 like `x`."""
        return self._raised(self.above(x, top, threshold, start))

    def _valid(self, x, start):
        return ops.without_padding(tf.cast(x, tf.float32), start, self._n_valid, self._dim)

    def above(self, x, top, threshold, start):
        """What of a slice's scaled logits is above the threshold, 0 elsewhere: p^(α-1)."""
        z = (self._valid(x, start) - top[..., None]) * (self._alpha - 1.0)
        return tf.nn.relu(z - threshold[..., None])

    def _raised(self, above):
        """The k-th power: many times as fast on CPUs as tf.pow, and 0 of 0 = exp(-∞)."""
        return tf.exp(self._power * tf.log(above))

    def _sums(self, x, top, threshold, start):
        """A slice's Σ u^k and Σ u^(k-1) over elements u above the threshold, [..., 2]."""
        above = self.above(x, top, threshold, start)
        p = self._raised(above)
        return tf.stack([tf.reduce_sum(p, -1), tf.reduce_sum(tf.math.divide_no_nan(p, above), -1)],
                        -1)

    def _step(self, threshold, sums):
        """One step towards the threshold at which (Σ u^k)^(1/k) is 1."""
        total, slope = tf.unstack(sums, axis=-1)
        norm = total ** (self._alpha - 1.0)
        return threshold + (norm - 1.0) * total / (norm * slope)
