"""Operations on the slices of many tensors or variables at once, in few TensorFlow operations.

On a CPU a small model's step is bound by the number of operations, not by their size: an update of
one variable is one mtf operation here, and so is the norm of all gradients.

Graphs which hold updates are lowered by `mtf.Lowering(graph, meshes, autostack=False)`: stacking
variables would add a copy of every weight to each step.
"""

from mesh.compat import mtf, tf


class SliceUpdate(mtf.Operation):
    """Updates slices of variables in place, by one TensorFlow function for each slice.

    The function runs after the step's read of the first variable (see `mesh.compat`), so the model
    computes with the old values whatever order the executor chooses.

    Args:
      variables: list of mtf.Variable, equally laid out; the first one leads.
      inputs: list of mtf.Tensor.
      update: function (list of tf variables, list of tf tensors) → tf.Operation; it gets the slices
        of `variables` and `inputs` on one device.
      name: str.
    """

    def __init__(self, variables, inputs, update, name):
        super().__init__(inputs, mesh=variables[0].mesh, name=name)
        self._variables = variables
        self._update = update

    def lower(self, lowering):
        """Adds the update of each slice to the TensorFlow graph."""
        missing = [v.name for v in self._variables if v not in lowering.variables]
        if missing:
            raise ValueError(f"{', '.join(missing)}: stacked by the lowering; use autostack=False")
        laid_out = [lowering.variables[v] for v in self._variables]
        slices = zip(*(v.laid_out_tensor.all_slices for v in laid_out), strict=True)
        read = lowering.tensors[self._variables[0].value].all_slices
        inputs = [()] * len(read)
        if self.inputs:
            inputs = zip(*(lowering.tensors[x].to_laid_out_tensor().all_slices
                           for x in self.inputs), strict=True)

        def update_slice(_variable, _slice, arguments):
            old, slice_variables, values = arguments
            with tf.control_dependencies([old]):
                return self._update(list(slice_variables), list(values))

        lowering.operations[self] = laid_out[0].assign_to_slices(
            update_slice, list(zip(read, slices, inputs, strict=True)))


class SumOfSquares(mtf.Operation):
    """The sum of the squares of all elements of several tensors: a float32 scalar.

    Slices are summed where they lie, and tensors split over the same mesh axes share one allreduce.
    It has no gradient.

    Args:
      tensors: list of mtf.Tensor.
    """

    def __init__(self, tensors, name="sum_of_squares"):
        super().__init__(tensors, name=name)
        self._outputs = [mtf.Tensor(self, mtf.Shape([]), tf.float32)]

    @property
    def has_gradient(self):
        """False: it measures gradients, and nothing is differentiated through it."""
        return False

    def lower(self, lowering):
        """Sums slices per group of mesh axes, then groups."""
        mesh_impl = lowering.mesh_impl(self)
        groups = {}
        for x in self.inputs:
            axes = mesh_impl.tensor_layout(x).tensor_axis_to_mesh_axis
            groups.setdefault(tuple(sorted(a for a in axes if a is not None)), []).append(
                lowering.tensors[x].to_laid_out_tensor())
        sums = []
        for axes, tensors in groups.items():
            part = mesh_impl.slicewise(_sum_of_squares, *tensors)
            sums.append(mesh_impl.allreduce(part, list(axes), "SUM") if axes else part)
        lowering.set_tensor_lowering(self.outputs[0], mesh_impl.slicewise(_add, *sums))


def _sum_of_squares(*slices):
    # l2_loss is half the sum of squares, in one kernel.
    return 2.0 * _add(*(tf.nn.l2_loss(tf.cast(x, tf.float32)) for x in slices))


def _add(*values):
    # add_n would begin with whichever of its inputs' memory it may reuse: another order, and other
    # last bits, from run to run and from device to device.
    return tf.reduce_sum(tf.stack(values), 0)


def slicewise(function, tensors, dtype=tf.float32):
    """An mtf tensor like the first of `tensors`, computed on each slice by one function."""
    dims = {d.name: d for x in tensors for d in x.shape.dims}
    return mtf.slicewise(function, tensors, output_shape=tensors[0].shape, output_dtype=dtype,
                         splittable_dims=list(dims.values()), grad_function=0)
