"""Our own Mesh TensorFlow operations: what mtf lacks, or does with one-hot products.

Every one of them is right whichever of its dimensions a layout splits, unless it says otherwise.
"""

import functools

from mesh.compat import mtf, tf
from mesh.slices import SliceOperation, local


def gather(table, ids, dim, name="gather"):
    """Rows of `table` along `dim`, the first dimension of `table`, chosen by `ids`.

    Where `dim` is split, each slice gathers the rows that it holds and the slices are summed.

    Args:
      table: [dim, ...] floating point.
      ids: int32 of any shape, 0 <= id < dim.size.
      dim: the first dimension of `table`.
      name: a name for the TensorFlow scope.

    Returns:
      [ids' dimensions..., the rest of table's dimensions].
    """
    rest = table.shape.dims[1:]

    def forward(slices, table_slice, ids_slice):
        def rows(t, i, start):
            i, held = _held(i, start, t.shape[0])
            found = tf.gather(t, i)
            return found if held is None else found * _expand(tf.cast(held, t.dtype), found)

        start = slices.start(dim) if slices.is_split(dim) else None
        return slices.sum(map_from(slices, rows, start, table_slice, ids_slice), dim)

    def backward(slices, ins, outs, grads):
        def scatter(t, i, dy, start):
            i, held = _held(i, start, t.shape[0])
            if held is not None:
                dy *= _expand(tf.cast(held, dy.dtype), dy)
            rows = tf.reshape(dy, [-1] + t.shape[1:].as_list())
            # Sums in float32: a common token may occur thousands of times in a batch.
            total = tf.math.unsorted_segment_sum(tf.cast(rows, tf.float32), tf.reshape(i, [-1]),
                                                 t.shape[0])
            return tf.cast(total, dy.dtype)

        start = slices.start(dim) if slices.is_split(dim) else None
        return [map_from(slices, scatter, start, *ins, grads[0]), None]

    shape = ids.shape.dims + rest
    return SliceOperation(forward, backward, [table, ids], [(shape, table.dtype)], name).outputs[0]


def dense(x, kernel, bias, in_dims, name="dense"):
    """x · kernel + bias, summed over the slices that split a contracted dimension.

    Args:
      x: [..., in_dims...].
      kernel: [in_dims..., out_dims...], of the type of `x`.
      bias: [out_dims...] or None.
      in_dims: the contracted dimensions, last in `x` and first in `kernel`.
      name: a name for the TensorFlow scope.

    Returns:
      [..., out_dims...].
    """
    lead, out_dims = x.shape.dims[:-len(in_dims)], kernel.shape.dims[len(in_dims):]
    n_in, n_lead = len(in_dims), len(lead)

    def matrices(v, w):
        rows, width = v.shape[n_lead:].num_elements(), w.shape[n_in:].num_elements()
        # Outside of a loop that only reads the kernel: XLA takes its fast product on CPUs for what
        # already is a matrix.
        with w.graph.as_default():
            matrix = tf.reshape(w, [rows, width])
        return tf.reshape(v, [-1, rows]), matrix

    def forward(slices, x_slice, w_slice, *b_slice):
        def multiply(v, w, *b):
            y = tf.matmul(*matrices(v, w))
            if b:
                y = tf.nn.bias_add(y, tf.reshape(b[0], [-1]))
            return tf.reshape(y, v.shape[:n_lead].as_list() + w.shape[n_in:].as_list())

        if not any(slices.is_split(d) for d in in_dims):
            return slices.map(multiply, x_slice, w_slice, *b_slice)
        y = slices.map(multiply, x_slice, w_slice)
        for d in in_dims:
            y = slices.sum(y, d)
        return slices.map(tf.add, y, *b_slice) if b_slice else y

    def backward(slices, ins, outs, grads):
        def one_slice(v, w, dy):
            rows, matrix = matrices(v, w)
            dy = tf.reshape(dy, [-1, matrix.shape[1]])
            dx = tf.matmul(dy, matrix, transpose_b=True)
            dw = tf.matmul(rows, dy, transpose_a=True)
            return tf.reshape(dx, v.shape), tf.reshape(dw, w.shape)

        result = list(slices.map(one_slice, *ins[:2], grads[0]))
        return result + [slices.map(sum_like, b, grads[0]) for b in ins[2:]]

    inputs = [x, kernel] + ([] if bias is None else [bias])
    return SliceOperation(forward, backward, inputs, [(lead + out_dims, x.dtype)], name).outputs[0]


def sum_like(like, x):
    """Sums `x` over the dimensions that come before those of `like`, in float32: all tokens."""
    rows = tf.reshape(tf.cast(x, tf.float32), [-1, like.shape.num_elements()])
    return tf.cast(tf.reshape(tf.reduce_sum(rows, 0), like.shape), like.dtype)


def softmax_cross_entropy(logits, targets, dim, n_valid, name="cross_entropy"):
    """−log softmax(logits)[target], without a one-hot tensor, with `dim` split or whole.

    Args:
      logits: [..., dim], any floating type; computed in float32.
      targets: int32 [...].
      dim: the last dimension of `logits`.
      n_valid: ids at or above it (padding of the table) are left out of the softmax.
      name: a name for the TensorFlow scope.

    Returns:
      the loss and the logarithm of the partition function, both float32 [...].
    """
    def masked(x, start):
        return without_padding(tf.cast(x, tf.float32), start, n_valid, dim)

    def forward(slices, x, t):
        start = slices.start(dim) if slices.is_split(dim) else None
        top = slices.max(map_from(
            slices, lambda v, s: tf.reduce_max(masked(v, s), -1), start, x), dim)
        total = slices.sum(map_from(
            slices, lambda v, m, s: tf.reduce_sum(tf.exp(masked(v, s) - m[..., None]), -1), start,
            x, top), dim)
        log_z = slices.map(lambda m, z: m + tf.log(z), top, total)
        at = functools.partial(at_target, in_program=not slices.have_devices)
        chosen = slices.sum(map_from(slices, at, start, x, t), dim)
        return slices.map(lambda z, c: z - c, log_z, chosen), log_z

    def backward(slices, ins, outs, grads):
        start = slices.start(dim) if slices.is_split(dim) else None

        def one_slice(v, i, log_z, d_loss, d_log_z, s):
            d = tf.exp(masked(v, s) - log_z[..., None]) * (d_loss + d_log_z)[..., None]
            return tf.cast(minus_at_target(d, i, d_loss, s, not slices.have_devices), v.dtype)

        return [map_from(slices, one_slice, start, *ins, outs[1], *grads), None]

    shape = targets.shape
    return tuple(SliceOperation(forward, backward, [logits, targets],
                                [(shape, tf.float32), (shape, tf.float32)], name).outputs)


def at_target(x, target, start, in_program=False):
    """A slice's elements at `target` along its last dimension, 0 where it does not hold that.

    Args:
      x: a tf slice [..., n].
      target: int32 [...].
      start: the index at which the slice begins, or None for a whole dimension.
      in_program: whether XLA makes one program of a step for all cores (not slices.have_devices).
        It fuses comparisons into what makes and reads `x`, while a gather would have it write a
        float32 copy of all of `x`, in another order.

    Returns:
      float32 [...].
    """
    if in_program:
        return tf.reduce_sum(tf.where_v2(_is_target(x, target, start), tf.cast(x, tf.float32), 0.0),
                             -1)
    target, held = _held(target, start, x.shape[-1])
    found = tf.gather(tf.cast(x, tf.float32), target, batch_dims=target.shape.ndims)
    return found if held is None else found * tf.cast(held, tf.float32)


def minus_at_target(x, target, value, start, in_program=False):
    """A slice with `value` subtracted at `target`: the arguments of `at_target`, value [...]."""
    if in_program:
        return x - tf.where_v2(_is_target(x, target, start), tf.expand_dims(value, -1), 0.0)
    target, held = _held(target, start, x.shape[-1])
    value = value if held is None else value * tf.cast(held, tf.float32)
    rows = target.shape.num_elements()
    where = tf.stack([tf.range(rows), tf.reshape(target, [-1])], 1)
    flat = tf.tensor_scatter_nd_sub(tf.reshape(x, [rows, x.shape[-1]]), where,
                                    tf.reshape(value, [-1]))
    return tf.reshape(flat, x.shape)


def _is_target(x, target, start):
    """bool like x: whether an element is the one at `target`."""
    place = tf.range(x.shape[-1]) + (0 if start is None else start)
    return tf.equal(place, tf.expand_dims(target, -1))


def argmax(x, dim, n_valid, name="argmax"):
    """The index of the largest element along `dim`, the lowest of several, with `dim` split or not.

    Args:
      x: [..., dim], any floating type.
      dim: the last dimension of `x`.
      n_valid: elements at or above it are left out.
      name: a name for the TensorFlow scope.

    Returns:
      int32 [...].
    """
    def of_slice(v, start):
        v = without_padding(v, start, n_valid, dim)
        index = tf.argmax(v, -1, output_type=tf.int32)
        return tf.reduce_max(v, -1), index + (0 if start is None else start)

    def forward(slices, x_slice):
        start = slices.start(dim) if slices.is_split(dim) else None
        top, index = map_from(slices, of_slice, start, x_slice)
        # The least index among slices that hold the maximum, as the largest of negative ones.
        below = slices.map(lambda t, m, i: tf.where_v2(t < m, -dim.size, -i), top,
                           slices.max(top, dim), index)
        return slices.map(tf.negative, slices.max(below, dim))

    return SliceOperation(forward, None, [x], [(x.shape.dims[:-1], tf.int32)], name).outputs[0]


def select(x, index, dim, name="select"):
    """x at position `index` (int32 scalar tensor) of dimension `dim`, which no layout splits."""
    axis = x.shape.dims.index(dim)
    shape = [d for d in x.shape.dims if d != dim]
    return local(lambda v, i: tf.gather(v, i, axis=axis), [x, index], (shape, x.dtype), name=name)


def fresh_zeros(shape, dtype=tf.float32, partition_info=None):
    """Zeros as a tf tensor that is made when it is asked for: an initialiser of variables.

    TensorFlow makes a constant of tf.zeros, and of what follows from constants alone: the session
    keeps it for ever, and variables of a shape begin in the same memory, so that their first
    updates copy it.
    """
    return tf.raw_ops.Empty(shape=shape, dtype=dtype, init=True)


def to_float32(x):
    """Casts to float32; a sum over slices that is still to be done is then done in float32.

    mtf's own cast would do the sum at once, in the narrow type, and in every microbatch.
    """
    return x if x.dtype == tf.float32 else _ToFloat32([x], name="to_float32").outputs[0]


class _ToFloat32(mtf.Operation):
    def __init__(self, inputs, name):
        super().__init__(inputs, name=name)
        self._outputs = [mtf.Tensor(self, inputs[0].shape, tf.float32)]

    @property
    def has_gradient(self):
        return False

    def lower(self, lowering):
        impl, x = lowering.mesh_impl(self), lowering.tensors[self.inputs[0]]

        def cast(t):
            return impl.slicewise(lambda v: tf.cast(v, tf.float32), t)

        if isinstance(x, mtf.LazyAllreduceSum):
            result = mtf.LazyAllreduceSum(impl, cast(x.laid_out_input), x.mesh_axes)
        else:
            result = cast(x)
        lowering.set_tensor_lowering(self.outputs[0], result)


def without_padding(x, start, n_valid, dim):
    """A slice of `dim`, its last dimension, that begins at `start`, low at and above `n_valid`."""
    if n_valid >= dim.size:
        return x
    column = tf.range(x.shape[-1]) + (0 if start is None else start)
    return tf.where_v2(column < n_valid, x, tf.constant(-1e9, x.dtype))


def map_from(slices, fn, start, *xs):
    """slices.map with the slice's start, or None, as the last argument of `fn`."""
    if start is None:
        return slices.map(lambda *a: fn(*a, None), *xs)
    return slices.map(fn, *xs, start)


def _held(ids, start, size):
    """ids within the slice that begins at `start`, and which of them it holds (None: all)."""
    if start is None:
        return ids, None
    ids -= start
    held = tf.logical_and(ids >= 0, ids < size)
    return tf.where_v2(held, ids, 0), held


def _expand(held, rows):
    return tf.reshape(held, held.shape.as_list() + [1] * (rows.shape.ndims - held.shape.ndims))
