"""A mesh of TPU cores: one program that all of them run, each on its own slices.

In a program for all, a slice is one tensor, and where a slice lies in the whole is a number that is
known when it runs. Our operations (`mesh/slices.py`) are written for that as for a list of slices.
"""

from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from mesh.compat import mtf, tf


class SimdMesh(mtf.simd_mesh_impl.SimdMeshImpl):
    """mtf's SimdMeshImpl, with its weaknesses mended.

    - Joining slices (`allconcat`): each core writes its slice into zeros, and these are summed, in
      any type. mtf multiplies by a one-hot vector, by which one infinity becomes NaN everywhere,
      and casts integers to floats and back.
    - A maximum or minimum over cores is one collective; mtf gathers all slices first.
    - Slices exchanged (`alltoall`) keep their type; mtf rounds float32 to bfloat16.
    - Any tensor can be exported, not only one that no layout splits.
    - A broadcast is one, not a sum with zeros.

    Args:
      shape: an mtf.Shape. layout: mtf.LayoutRules.
      device_assignment: TPUEstimator's, which says on which core each variable's slice lies.
      logical_to_physical: the core, in the order of the assignment, of each position of the mesh;
        by default the same order.
    """

    devices = ()  # a slice has no device of its own; see mesh.slices

    def __init__(self, shape, layout, device_assignment=None, logical_to_physical=None):
        super().__init__(shape, layout, device_assignment=device_assignment,
                         logical_to_physical=logical_to_physical)
        # Before any loop asks for it, inside of which it would be that loop's.
        with tf.control_dependencies(None):
            self._pnum_tensor = self.position([self.p2l(core) for core in range(self.size)])

    def position(self, of_core):
        """The position in the mesh, int32 [], of the core that runs the program.

        Args:
          of_core: a list of the positions of all cores.
        """
        return tf.raw_ops.TPUReplicatedInput(
            inputs=[tf.constant(number, tf.int32) for number in of_core])

    def reduce(self, x, groups, reduction):
        """`x` reduced ("SUM", "MAX" or "MIN") over each of the groups of cores."""
        if reduction == "SUM":
            return tf.raw_ops.CrossReplicaSum(input=x, group_assignment=groups)
        return gen_xla_ops.xla_all_reduce(x, groups, reduction.capitalize(), "CrossReplica")

    def exchange(self, x, groups, split_axis, concat_axis):
        """Core i of a group gets part i along `split_axis` of every other, joined in order."""
        return tf.raw_ops.AllToAll(
            input=x, group_assignment=groups, concat_dimension=concat_axis,
            split_dimension=split_axis, split_count=len(groups[0]))

    def send(self, x, pairs):
        """`x` from core to core, by pairs of (source, target); zeros where nobody sends."""
        return tf.raw_ops.CollectivePermute(input=x, source_target_pairs=pairs)

    def allreduce(self, x, mesh_axes, reduction_fn_string):
        """Reduces over mesh axes; bfloat16 in float32 where many cores add up."""
        x = x.to_laid_out_tensor()
        if not mesh_axes:
            return x
        groups, value = self._create_group_assignment(mesh_axes), x.one_slice
        many = len(groups[0]) > self._allreduce_in_bfloat16_max_group_size
        wide = tf.float32 if many and value.dtype == tf.bfloat16 else value.dtype
        total = self.reduce(tf.cast(value, wide), groups, reduction_fn_string)
        return self.LaidOutTensor([tf.cast(total, value.dtype)])

    def allconcat(self, x, mesh_axis, concat_axis):
        """Joins the slices along a mesh axis, in order, on every one of its cores."""
        value = x.to_laid_out_tensor().one_slice
        size = value.shape.as_list()
        whole = [n * (self.shape[mesh_axis].size if axis == concat_axis else 1)
                 for axis, n in enumerate(size)]
        at = self.laid_out_pcoord(mesh_axis).one_slice * size[concat_axis]
        begin = tf.stack([at if axis == concat_axis else 0 for axis in range(len(size))])
        placed = gen_xla_ops.xla_dynamic_update_slice(tf.zeros(whole, value.dtype), value, begin)
        # All but one of the terms are 0, so the type is wide enough for the sum.
        return self.LaidOutTensor([
            self.reduce(placed, self._create_group_assignment([mesh_axis]), "SUM")])

    def alltoall(self, x, mesh_axis, split_axis, concat_axis):
        """Splits each slice along one tensor axis, and joins what each core gets along another."""
        return self.LaidOutTensor([self.exchange(
            x.to_laid_out_tensor().one_slice, self._create_group_assignment([mesh_axis]),
            split_axis, concat_axis)])

    def receive(self, x, mesh_axis, source_pcoord):
        """Slices from the coordinates `source_pcoord` of a mesh axis; zeros where that is None."""
        value, pairs = x.to_laid_out_tensor().one_slice, []
        for target in range(self.size):
            coordinates = mtf.pnum_to_processor_coordinates(self.shape, target)
            source = source_pcoord[coordinates[mesh_axis]]
            if source is not None:
                coordinates[mesh_axis] = source
                source = mtf.processor_coordinates_to_pnum(self.shape, coordinates)
                pairs.append([self.l2p(source), self.l2p(target)])
        return self.LaidOutTensor([self.send(value, pairs) if pairs else tf.zeros_like(value)])

    def broadcast_impl(self, old_slices, old_shape, new_shape):
        """Repeats slices along new dimensions."""
        size = self.slice_shape(new_shape)
        place = [old_shape.dims.index(d) if d in old_shape.dims else None for d in new_shape.dims]

        def broadcast(x):
            x = tf.transpose(x, [axis for axis in place if axis is not None])
            ones = [1 if axis is None else n for axis, n in zip(place, size, strict=True)]
            return tf.broadcast_to(tf.reshape(x, ones), size)

        return self.slicewise(broadcast, old_slices)

    def export_to_tf_tensor(self, x, laid_out_x):
        """The whole tensor, on every core."""
        for axis, mesh_axis in enumerate(self.tensor_layout(x).tensor_axis_to_mesh_axis):
            if mesh_axis is not None:
                laid_out_x = self.allconcat(laid_out_x, mesh_axis, axis)
        return laid_out_x.to_laid_out_tensor().one_slice
