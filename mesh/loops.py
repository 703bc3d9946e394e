"""A loop on the mesh that is compiled to one kernel."""

from mesh.compat import mtf, quiet_xla, tf


def while_loop(more, body, inputs, compiled=False):
    """mtf.while_loop, or with `compiled` the same as one kernel of XLA's, on a mesh of one device.

    TensorFlow runs the operations of a loop one by one, and in a small model that takes many times
    as long as what they do.

    Args:
      more: from the loop's tensors to a bool scalar: whether there is another turn.
      body: from the loop's tensors to a list of tensors like them.
      inputs: a list of mtf tensors, on slices of their full shape if `compiled`.
      compiled: whether to compile it.

    Returns:
      a list of mtf tensors.
    """
    return (_CompiledLoop if compiled else mtf.WhileLoopOperation)(more, body, inputs).outputs


class _CompiledLoop(mtf.WhileLoopOperation):
    def __init__(self, more, body, inputs):
        super().__init__(more, body, inputs)
        self._move_out()

    def _move_out(self):
        """Moves what is the same in each turn, such as a table's transposition, before the loop."""
        inside, moved = set(self._body_inputs), []
        for op in self._body_ops:
            if inside.isdisjoint(op.inputs):
                moved.append(op)
            else:
                inside.update(op.outputs)
        self._body_ops = [op for op in self._body_ops if op not in moved]
        self.graph.operations[-1:] = [*moved, self]

    def lower(self, lowering):
        impl, mtf_inputs = lowering.mesh_impl(self), self.inputs
        if impl.size > 1:
            raise ValueError("a loop is compiled for one device")

        def kernel(*inputs):
            outside = {x: lowering.tensors[x] for x in mtf_inputs}
            for x, value in zip(mtf_inputs, inputs, strict=True):
                lowering.tensors[x] = impl.LaidOutTensor([value])
            super(_CompiledLoop, self).lower(lowering)
            lowering.tensors.update(outside)
            return [_only(lowering.tensors[y]) for y in self.outputs]

        quiet_xla()
        results = tf.function(kernel, autograph=False, jit_compile=True)(
            *(_only(lowering.tensors[x]) for x in mtf_inputs))
        for y, value in zip(self.outputs, results, strict=True):
            lowering.set_tensor_lowering(y, impl.LaidOutTensor([value]))


def _only(lowered):
    """The tensor of a mesh's only slice."""
    return lowered.to_laid_out_tensor().tensor_list[0]
