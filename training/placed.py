"""Where the weights of a graph lie on its mesh."""

import collections
import re

from mesh.compat import mtf
from training import layout_picture


class Placed:
    """A weight on the mesh.

    Args:
      variable: an mtf.Variable. impl: an mtf mesh implementation.
      layers: how many layers have one of its shape; `name` then has h* in place of the layer.

    Attributes:
      name, layers; dims: [(dimension, size, axis or None)].
      shape: of one core's slice. bytes: of that.
      parts: {the slice's begin, a tuple: the cores that hold it, a list}.
    """

    def __init__(self, variable, impl, layers=1):
        shape = variable.shape
        axes = impl.tensor_layout(shape).tensor_axis_to_mesh_axis
        names = [None if axis is None else impl.shape.dims[axis].name for axis in axes]
        self.name, self.layers = variable.name, layers
        self.dims = [(d.name, d.size, a) for d, a in zip(shape.dims, names, strict=True)]
        self.shape = impl.slice_shape(shape)
        size = 1
        for length in self.shape:
            size *= length
        self.bytes = size * variable.slice_dtype.size
        self.parts = {}
        for core in range(impl.size):
            self.parts.setdefault(tuple(impl.slice_begin(shape, core)), []).append(core)

    def row(self):
        """Texts: name, dimensions, axes, slice, MB of a core, how many cores hold each slice."""
        return [self.name + (f" ×{self.layers}" if self.layers > 1 else ""),
                ", ".join(f"{name} {size}" for name, size, _ in self.dims) or "a number",
                ", ".join(f"{name}:{axis}" for name, _, axis in self.dims if axis) or "whole",
                "×".join(map(str, self.shape)) or "1", f"{self.bytes / 1e6:.3f}",
                str(len(next(iter(self.parts.values()))))]

    def places(self):
        """Lines: what of the tensor lies on which cores."""
        for begin, cores in self.parts.items():
            ranges = [f"{name} {start}…{start + length - 1}" for (name, _, axis), start, length
                      in zip(self.dims, begin, self.shape, strict=True) if axis]
            yield f"{', '.join(ranges) or 'all of it'}: {layout_picture.numbers(cores)}"


def weights(graph, impl):
    """The Placed of all weights of a mtf graph; those of like layers are one."""
    same, found = collections.Counter(), {}
    for operation in graph.operations:
        if isinstance(operation, mtf.Variable):
            name = re.sub(r"(^|/)h\d+/", r"\1h*/", operation.name)
            key = name, str(operation.shape)
            same[key] += 1
            found.setdefault(key, operation)
    ordered = []
    for key, variable in found.items():
        ordered.append(Placed(variable, impl, same[key]))
        if same[key] > 1:
            ordered[-1].name = key[0]
    return ordered
