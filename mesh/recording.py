"""A mesh that notes every collective that a graph's lowering makes, and where it comes from."""

import math
from typing import NamedTuple

from mesh import estimate
from mesh.ahead import AheadMesh
from mesh.compat import mtf, tf


class Noted(NamedTuple):
    """A collective as the program is written, before the compiler joins or drops any.

    Attributes:
      kind: as in mesh.optimized.Collective. axes: the mesh axes, joined by "+".
      place: the mtf operation that it belongs to. bytes: that one core puts in.
      looped: whether it is in the loop over microbatches.
    """

    kind: str
    axes: str
    place: str
    bytes: int
    looped: bool


class RecordingMesh(AheadMesh):
    """An AheadMesh that fills `noted`, a list of Noted; see AheadMesh for the arguments."""

    def __init__(self, shape, layout):
        self.noted, self._outside = [], tf.get_default_graph()
        self._mesh = [(dim.name, dim.size) for dim in shape.dims]
        super().__init__(shape, layout)

    def reduce(self, x, groups, reduction):
        self._note("all-reduce", x, groups)
        return super().reduce(x, groups, reduction)

    def send(self, x, pairs):
        self._note("collective-permute", x, pairs)
        return super().send(x, pairs)

    def exchange(self, x, groups, split_axis, concat_axis):
        self._note("all-to-all", x, groups)
        return super().exchange(x, groups, split_axis, concat_axis)

    def _note(self, kind, x, groups):
        if max(map(len, groups), default=1) > 1:
            # A loop's body is a graph of its own, but within compat.tpu_loops.
            graph = tf.get_default_graph()
            looped = (graph is not self._outside
                      or graph._get_control_flow_context() is not None)
            self.noted.append(Noted(kind, estimate.axes_of(groups, self._mesh),
                                    graph.get_name_scope(),
                                    math.prod(x.shape.as_list()) * x.dtype.size, looped))


def mesh_of(config):
    """The RecordingMesh of a config."""
    shape = mtf.Shape([mtf.Dimension(name, size) for name, size in config.mesh])
    return RecordingMesh(shape, mtf.LayoutRules(set(config.layout_rules)))
