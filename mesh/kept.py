"""Tensors on the mesh that outlive a run of the session, such as attention's caches."""

from mesh.compat import mtf, tf


class Kept:
    """A tensor kept in variables, one for each of its slices, on that slice's device.

    The variables are in no collection: neither savers nor initialisers see them.

    Args:
      impl: the mtf mesh implementation that the graph will be lowered with.
      shape: an mtf.Shape.
      dtype: a tf.DType.
      name: unique in the graph.
    """

    def __init__(self, impl, shape, dtype, name):
        self._impl, self._shape = impl, shape
        self._variables = []
        for number, device in enumerate(impl.devices):
            with tf.device(device):
                self._variables.append(tf.get_variable(
                    f"{name}/slice_{number}", impl.slice_shape(shape), dtype,
                    tf.zeros_initializer(), trainable=False, collections=[]))

    def read(self, mesh):
        """Its value at the beginning of a run, as an mtf tensor."""
        values = [variable.read_value() for variable in self._variables]
        return mtf.import_laid_out_tensor(mesh, self._impl.LaidOutTensor(values), self._shape)

    def write(self, lowering, tensor):
        """An operation that sets it to the value of a lowered mtf tensor."""
        slices = lowering.tensors[tensor].to_laid_out_tensor().all_slices
        return tf.group(*(variable.assign(value) for variable, value in
                          zip(self._variables, slices, strict=True)))

    def clear(self):
        """An operation that sets it to zeros."""
        return tf.group(*(variable.initializer for variable in self._variables))
