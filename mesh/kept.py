"""Tensors on the mesh that outlive a run of the session, such as attention's caches."""

import math

from mesh.compat import mtf, tf


class Kept:
    """A tensor kept in variables, one for each of its slices, on that slice's device.

    The variables are in no collection: neither savers nor initialisers see them. Their rows are the
    positions of the growing dimension, since TensorFlow writes single rows of a variable several
    times as fast as a part of a tensor.

    Args:
      impl: the mtf mesh implementation that the graph will be lowered with.
      shape: an mtf.Shape.
      dtype: a tf.DType.
      name: unique in the graph.
      growing: names of dimensions of which a run may read and write the beginning alone, at most
        one of which the shape has.

    Attributes:
      grows: whether it has one of these, and no layout splits it.
    """

    def __init__(self, impl, shape, dtype, name, growing=()):
        self._impl, self._shape, self._slice_shape = impl, shape, impl.slice_shape(shape)
        self._axis = next((axis for axis, dim in enumerate(shape.dims) if dim.name in growing
                           and impl.tensor_dimension_to_mesh_axis(dim) is None), None)
        self.grows = self._axis is not None
        rows = math.prod(self._slice_shape[:self._axis + 1]) if self.grows else 1
        self._variables = []
        for number, device in enumerate(impl.devices):
            with tf.device(device):
                self._variables.append(tf.get_variable(
                    f"{name}/slice_{number}", [rows, math.prod(self._slice_shape) // rows], dtype,
                    tf.zeros_initializer(), trainable=False, collections=[]))

    def read(self, mesh, size=None):
        """Its value at the beginning of a run, as an mtf tensor.

        Args:
          mesh: the mtf.Mesh.
          size: int32 scalar: how much of the growing dimension is read. The slices are so short
            then, whatever the mtf tensor's shape says; None is all.
        """
        values = [tf.reshape(v.read_value(), self._slice_shape) for v in self._variables]
        if size is not None and self.grows:
            beginning = (*[slice(None)] * self._axis, slice(0, size))
            values = [value[beginning] for value in values]
        return mtf.import_laid_out_tensor(mesh, self._impl.LaidOutTensor(values), self._shape)

    def write(self, lowering, tensor):
        """An operation that sets it, or its beginning, to the value of a lowered mtf tensor."""
        slices = lowering.tensors[tensor].to_laid_out_tensor().all_slices
        return tf.group(*map(self._set, self._variables, slices))

    def _set(self, variable, value):
        rows = tf.reshape(value, [-1, variable.shape[1]])
        if value.shape.is_fully_defined():
            return variable.assign(rows)
        *before, length = self._slice_shape[:self._axis + 1]
        numbers = (tf.range(math.prod(before))[:, None] * length
                   + tf.range(tf.shape(value)[self._axis]))
        return variable.scatter_update(tf.IndexedSlices(rows, tf.reshape(numbers, [-1])))

    def clear(self):
        """An operation that sets it to zeros."""
        return tf.group(*(variable.initializer for variable in self._variables))


class Lowering(mtf.Lowering):
    """A lowering in whose graph slices may be as short as `Kept.read` gives them."""

    def verify_slice_shapes(self, tensor, laid_out_tensor):
        shape = tf.TensorShape(laid_out_tensor.slice_shape)
        shape.assert_is_compatible_with(self.mesh_impl(tensor).slice_shape(tensor.shape))
