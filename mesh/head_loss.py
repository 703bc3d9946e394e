"""The loss of a linear head, a block of tokens at a time: no [batch, sequence, vocab] tensor."""

import functools

from mesh.compat import tf
from mesh.ops import at_target, map_from, minus_at_target
from mesh.slices import SliceOperation

# Float32 logits of a block, and the most blocks: more would save little, as all of them add to one
# gradient of the kernel, and would make smaller matrix products.
_BLOCK_BYTES, _MOST_BLOCKS = 128 << 20, 16

# Of a target; the loss of a smaller one is not taken from it, which may be 0 in float32.
_LEAST_PROBABILITY = 1e-30


def linear_cross_entropy(x, kernel, bias, targets, weights, dim, n_valid, name="head_loss"):
    """Σ weight · −log softmax(x · kernel + bias)[target], for training, with `dim` split or whole.

    What follows can but scale the sum. So each block's gradients are computed with its loss, while
    its logits are there: three matrix products, nothing twice (as in Liger Kernel, Hsu et al. 2024,
    section 3.2). In one program for all cores, whose compiler fuses what follows the products, all
    tokens are one block.

    Args:
      x: [..., embd].
      kernel: [embd, dim], or [dim, embd] as a tied table has it; of the type of `x`.
      bias: [dim] or None.
      targets: int32 [...].
      weights: float32 [...], which get no gradient.
      dim: the classes.
      n_valid: classes at or above it (padding of the table) are left out of the softmax.
      name: a name for the TensorFlow scope.

    Returns:
      a float32 scalar.
    """
    head = _Head(x.shape.dims[-1], dim, n_valid, kernel.shape.dims[0] == dim, targets.shape.dims)
    trained = [x, kernel] + ([] if bias is None else [bias])
    outputs = [([], tf.float32), *((t.shape, t.dtype) for t in trained)]
    return SliceOperation(head.forward, head.backward, [*trained, targets, weights], outputs,
                          name).outputs[0]


class _Head:
    """The operation on slices. Its outputs are the loss, and the gradients where it counts once.

    Args:
      embd, dim: the contracted dimension, and that of the classes.
      n_valid: see linear_cross_entropy.
      tied: whether the kernel is [dim, embd].
      over: the dimensions of the tokens.
    """

    def __init__(self, embd, dim, n_valid, tied, over):
        self._embd, self._dim, self._n_valid = embd, dim, n_valid
        self._tied, self._over = tied, over

    def forward(self, slices, x, w, *others):
        """-> laid-out ([], and gradients like x, w and the bias, if there is one)."""
        *b, t, weight = others
        shape, rows = x.slice_shape, t.to_laid_out_tensor().slice_shape
        x, t, weight = (slices.map(_flat(len(rows)), v) for v in (x, t, weight))
        losses, dxs, sums = [], [], []
        for block in self._blocks(slices, t, w):
            t_rows, weight_rows = (slices.map(lambda v, at=block: v[at], v) for v in (t, weight))
            x_rows = slices.map(_cut(block), x, *sums)
            loss, d = self._errors(slices, self._logits(slices, x_rows, w, b), t_rows)
            losses.append(slices.map(lambda a, v: tf.reduce_sum(a * v), loss, weight_rows))
            dx, *new = slices.map(self._gradients if b else self._two_gradients, d, x_rows, w,
                                  weight_rows)
            dxs.append(dx)
            sums = ([slices.map(tf.add, *pair) for pair in zip(sums, new, strict=True)] if sums
                    else new)
        loss = slices.map(lambda *parts: sum(parts[1:], parts[0]), *losses)
        for d in self._over:
            loss = slices.sum(loss, d)
        dx = slices.map(lambda *parts: tf.reshape(tf.concat(parts, 0), shape), *dxs)
        return (loss, dx, *(slices.map(lambda d, like: tf.cast(d, like.dtype), d, like)
                            for d, like in zip(sums, [w, *b], strict=True)))

    def backward(self, slices, ins, outs, grads):
        """-> the gradients of the inputs, none of targets and weights."""
        def scaled(d, scale):
            return tf.cast(tf.cast(d, tf.float32) * scale, d.dtype)

        dx, dw, *db = (slices.map(scaled, d, grads[0]) for d in outs[1:])
        # Where `embd` is split, every slice has all of it, and they will be summed.
        db = [slices.map(lambda d: d / slices.parts(self._embd), d) for d in db]
        return [dx, dw, *db, None, None]

    def _blocks(self, slices, t, w):
        """Python slices of a slice's tokens."""
        rows, number = t.slice_shape[0], 1
        if slices.have_devices:
            size = 4 * rows * w.to_laid_out_tensor().slice_shape[0 if self._tied else 1]
            number = max(1, min(_MOST_BLOCKS, size // _BLOCK_BYTES, rows))
        bounds = [rows * i // number for i in range(number + 1)]
        return [slice(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)]

    def _logits(self, slices, x, w, b):
        """[rows, dim] in the type of `x`; what pads the table has so low a bias that it is 0."""
        def product(x, w):
            return tf.matmul(x, w, transpose_b=self._tied)

        logits = slices.sum(slices.map(product, x, w), self._embd)
        if self._n_valid < self._dim.size:
            # Not a choice between logits: a bias costs a matrix product nothing.
            start = slices.start(self._dim) if slices.is_split(self._dim) else None
            b = [map_from(slices, self._bias, start, w, *b)]
        return slices.map(tf.nn.bias_add, logits, *b) if b else logits

    def _bias(self, w, *others):
        *b, start = others
        column = tf.range(w.shape[0 if self._tied else 1]) + (0 if start is None else start)
        least = tf.constant(-1e9, w.dtype)
        return tf.where_v2(column < self._n_valid, b[0] if b else tf.zeros_like(least), least)

    def _errors(self, slices, logits, t):
        """float32 losses [rows], and probabilities [rows, dim] less 1 at the target."""
        dim, start, in_program = self._dim, None, not slices.have_devices
        if slices.is_split(dim):
            start = slices.start(dim)
        z = slices.map(lambda v: tf.cast(v, tf.float32), logits)
        if start is None and slices.have_devices:
            p = slices.map(tf.nn.softmax, z)  # one kernel
            losses = slices.map(_losses, z, p, t)
            return losses, slices.map(_minus_in_place, p, t, losses)
        at = functools.partial(at_target, in_program=in_program)
        chosen = slices.sum(map_from(slices, at, start, z, t), dim)
        top = slices.max(slices.map(lambda z: tf.reduce_max(z, -1), z), dim)
        total = slices.sum(slices.map(
            lambda z, top: tf.reduce_sum(tf.exp(z - top[:, None]), -1), z, top), dim)
        log_z = slices.map(lambda total, top: top + tf.log(total), total, top)

        def errors(z, log_z, t, start):
            p = tf.exp(z - log_z[:, None])
            return minus_at_target(p, t, tf.ones_like(log_z), start, in_program)

        return (slices.map(tf.subtract, log_z, chosen),
                map_from(slices, errors, start, z, log_z, t))

    def _gradients(self, d, x, w, weight):
        """Of a block, given d of `_errors`: like x; and float32, like w and like the bias."""
        # A token's weight is put to what is narrow: the rows of x and of its gradient.
        d, rows = tf.cast(d, x.dtype), tf.cast(weight, x.dtype)[:, None]
        dx = tf.matmul(d, w, transpose_b=not self._tied) * rows
        weighted = x * rows
        dw = (tf.matmul(d, weighted, transpose_a=True) if self._tied
              else tf.matmul(weighted, d, transpose_a=True))
        db = tf.matmul(rows, d, transpose_a=True)[0]
        return dx, tf.cast(dw, tf.float32), tf.cast(db, tf.float32)

    def _two_gradients(self, *given):
        return self._gradients(*given)[:2]


def _cut(block):
    """Takes some rows once the blocks before are done, or all would be computed at once.

    A product that itself waited would not be fused with its bias.
    """
    def rows(x, *before):
        with tf.control_dependencies(before):
            return x[block]

    return rows


def _flat(dims):
    """Joins the first dimensions of a tensor, as many as are given, to one."""
    return lambda v: tf.reshape(v, [-1, *v.shape[dims:]])


def _losses(z, p, t):
    """−log p[t] of logits z [rows, dim] and p, their softmax."""
    found = at_target(p, t, None)

    def by_maxima():
        # Two passes over all classes. The greatest probability is 1/Σ exp(z − max z).
        return tf.reduce_max(z, -1) - tf.log(tf.reduce_max(p, -1)) - at_target(z, t, None)

    return tf.cond(tf.reduce_min(found) < _LEAST_PROBABILITY, by_maxima, lambda: -tf.log(found))


def _minus_in_place(p, t, after):
    """p [rows, dim] less 1 at t; `after` is all else that reads p, which is written over."""
    rows, size = p.shape
    with tf.control_dependencies([after]):
        changed = tf.raw_ops.InplaceSub(x=tf.reshape(p, [-1, 1]), i=tf.range(rows) * size + t,
                                        v=tf.ones([rows, 1]))
    return tf.reshape(changed, p.shape)
