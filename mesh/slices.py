"""How our own Mesh TensorFlow operations are written: as functions over slices.

An operation is a pair of functions over *slices*, `forward` and `backward`. Each gets a `Slices`,
which runs TensorFlow code on every slice and knows the collectives, so that the same code serves
one device, a CPU mesh and a TPU: mtf's MeshImpl decides how a slice is run.

The gradient of an input is summed over exactly those mesh axes that split an output but not that
input: there each slice has seen only its own part of the outputs.
"""

import functools
import math

from mesh.compat import mtf, quiet_xla, tf

# A smaller tensor does not pay for the launch of a compiled kernel.
_LEAST_TO_COMPILE = 1 << 14


class Slices:
    """The slices of a mesh, as an operation's `forward` and `backward` see them."""

    def __init__(self, mesh_impl):
        self._impl = mesh_impl

    @property
    def have_devices(self):
        """Whether each slice is on a device of its own, and not in one program for all cores."""
        return bool(getattr(self._impl, "devices", None))

    def map(self, fn, *laid_out):
        """Applies `fn`, from tf tensors to a tf tensor or a tuple of them, to every slice."""
        return self._impl.slicewise(fn, *laid_out)

    def map_elementwise(self, fn, *laid_out):
        """`map` for a chain of element by element operations that is worth one compiled kernel.

        Sums over the last dimension may be among them, as in a layer norm.

        On CPUs TensorFlow runs each of them by itself, through memory; on TPUs all is compiled.

        Args:
          fn: a function that lives as long as the program, or it would be compiled time and again.
          laid_out: see `map`; the first one's size decides whether it is worth it. Python numbers
            are given to `fn` as they are.
        """
        size = math.prod(laid_out[0].to_laid_out_tensor().slice_shape)
        on_cpus = self.have_devices and all(
            not d or d.lower().startswith("cpu") for d in self._impl.devices)
        return self.map(_compiled(fn) if on_cpus and size >= _LEAST_TO_COMPILE else fn, *laid_out)

    def sum(self, x, dim):
        """Sums `x` over the slices that hold different parts of dimension `dim`."""
        return self._reduce(x, dim, "SUM")

    def max(self, x, dim):
        """The maximum of `x` over the slices that hold different parts of `dim`."""
        return self._reduce(x, dim, "MAX")

    def whole(self, x, dim, axis):
        """`x` with its parts of `dim`, tensor axis `axis`, joined on every slice."""
        mesh_axis = self._axis(dim)
        return x if mesh_axis is None else self._impl.allconcat(x, mesh_axis, axis)

    def part(self, x, dim, axis):
        """The inverse of `whole`: what each slice holds of `dim`."""
        mesh_axis = self._axis(dim)
        return x if mesh_axis is None else self._impl.allsplit(x, mesh_axis, axis)

    def start(self, dim):
        """The index in `dim` at which each slice begins: an int32 scalar a slice."""
        axis = self._axis(dim)
        if axis is None:
            return self.map(lambda: tf.constant(0, tf.int32))
        size = dim.size // self.parts(dim)
        return self.map(lambda coordinate: coordinate * size, self._impl.laid_out_pcoord(axis))

    def parts(self, dim):
        """How many parts of `dim` the slices hold."""
        axis = self._axis(dim)
        return 1 if axis is None else self._impl.shape[axis].size

    def axes(self, tensor):
        """The set of mesh axes over which `tensor` is split."""
        return set(self._impl.tensor_layout(tensor).tensor_axis_to_mesh_axis) - {None}

    def is_split(self, dim):
        """Whether several slices hold different parts of `dim`."""
        return self._axis(dim) is not None

    def _axis(self, dim):
        return self._impl.tensor_dimension_to_mesh_axis(dim)

    def _reduce(self, x, dim, reduction):
        axis = self._axis(dim)
        return x if axis is None else self._impl.allreduce(x, [axis], reduction)


class SliceOperation(mtf.Operation):
    """An operation given as functions over slices.

    Args:
      forward: (slices, *inputs) -> the laid-out output, or a tuple of them.
      backward: (slices, inputs, outputs, gradients of outputs) -> a list with a laid-out gradient,
        or None, for each input; not yet summed over the mesh.
      inputs: mtf tensors.
      outputs: a list of (mtf shape, dtype).
      name: a name for the TensorFlow scope.
    """

    def __init__(self, forward, backward, inputs, outputs, name):
        super().__init__(inputs, name=name)
        self.forward, self.backward = forward, backward
        self._outputs = [mtf.Tensor(self, mtf.Shape(shape), dtype, index=i)
                         for i, (shape, dtype) in enumerate(outputs)]
        self._splittable_dims, self._unsplittable_dims = (
            self._initialize_all_dimensions_as_splittable())

    @property
    def has_gradient(self):
        return bool(self.backward) and super().has_gradient

    def gradient(self, grad_ys):
        return _SliceGradient(self, grad_ys).of_inputs

    def lower(self, lowering):
        slices = Slices(lowering.mesh_impl(self))
        _set_outputs(lowering, self, self.forward(slices, *_laid_out(lowering, self.inputs)))


class _SliceGradient(mtf.Operation):
    """The gradients of a SliceOperation with respect to its floating-point inputs."""

    def __init__(self, op, grad_ys):
        self._op = op
        self._given = [g is not None for g in grad_ys]
        super().__init__(op.inputs + op.outputs + [g for g in grad_ys if g is not None],
                         name=op.name.split("/")[-1] + "_grad")
        self._outputs, self.of_inputs = [], []
        for x in op.inputs:
            gradient = None
            if x.dtype.is_floating:
                gradient = mtf.Tensor(self, x.shape, x.dtype, index=len(self._outputs))
                self._outputs.append(gradient)
            self.of_inputs.append(gradient)

    @property
    def has_gradient(self):
        return False

    def lower(self, lowering):
        op, impl = self._op, lowering.mesh_impl(self)
        slices = Slices(impl)
        laid_out = iter(_laid_out(lowering, self.inputs))
        ins = [next(laid_out) for _ in op.inputs]
        outs = [next(laid_out) for _ in op.outputs]
        grads = [next(laid_out) if given else slices.map(tf.zeros_like, out)
                 for given, out in zip(self._given, outs, strict=True)]
        split = set().union(*(slices.axes(y) for y in op.outputs))
        results = []
        for x, value in zip(op.inputs, op.backward(slices, ins, outs, grads), strict=True):
            if x.dtype.is_floating:
                axes = sorted(split - slices.axes(x))
                if value is None:
                    value = slices.map(tf.zeros_like, ins[op.inputs.index(x)])
                elif axes:
                    value = mtf.LazyAllreduceSum(impl, value, axes)
                results.append(value)
        _set_outputs(lowering, self, tuple(results))


def _laid_out(lowering, tensors):
    return [lowering.tensors[t].to_laid_out_tensor() for t in tensors]


def _set_outputs(lowering, op, values):
    values = values if isinstance(values, tuple) else (values,)
    for output, value in zip(op.outputs, values, strict=True):
        lowering.set_tensor_lowering(output, value)


@functools.cache
def _compiled(fn):
    quiet_xla()
    return tf.function(fn, autograph=False, jit_compile=True)


def _tensorflow_gradient(fn, n_inputs):
    """TensorFlow's own gradient of `fn`: (inputs, outputs, gradients of outputs) -> a tuple."""
    def gradient(*args):
        # Fresh identities keep tf.gradients from walking the rest of the graph.
        xs = [tf.identity(x) for x in args[:n_inputs]]
        ys = fn(*xs)
        n_outputs = len(ys) if isinstance(ys, tuple) else 1
        dxs = tf.gradients(ys, xs, grad_ys=list(args[-n_outputs:]), unconnected_gradients="zero")
        return tuple(tf.convert_to_tensor(dx) for dx, x in zip(dxs, xs, strict=True)
                     if x.dtype.is_floating)

    return gradient


# The same function for the same arguments, so that it is compiled once.
_lasting_gradient = functools.cache(_tensorflow_gradient)


def local(fn, inputs, outputs, grad=None, elementwise=False, starts=(), name="local"):
    """Applies a TensorFlow function to every slice by itself.

    The function must be right whichever dimensions are split: element by element, or reducing only
    dimensions that no layout splits.

    Args:
      fn: from tf slices to a tf slice or a tuple of them.
      inputs: mtf tensors.
      outputs: one (shape, dtype), or a list of them.
      grad: (inputs, outputs, gradients of outputs), lists of tf slices, -> a list of gradients, one
        for each input (None for integers). Without it the gradient is TensorFlow's own, which
        computes `fn` again in the backward pass, so that nothing inside of it is kept.
      elementwise: see Slices.map_elementwise; goes with TensorFlow's own gradient.
      starts: dimensions; `fn` is given after the slices, for each, the index at which the slice
        begins, an int32 scalar. Goes with TensorFlow's own gradient, and not with `elementwise`.
      name: a name for the TensorFlow scope.

    Returns:
      an mtf tensor, or a tuple of them if `outputs` is a list.
    """
    specs = outputs if isinstance(outputs, list) else [outputs]
    floating = [x.dtype.is_floating for x in inputs]

    def forward(slices, *xs):
        if elementwise:
            return slices.map_elementwise(fn, *xs)
        return slices.map(fn, *xs, *map(slices.start, starts))

    def given_gradient(*args):
        n_in, n_out = len(inputs), len(specs)
        dxs = grad(args[:n_in], args[n_in:n_in + n_out], args[n_in + n_out:])
        return tuple(dx for dx, f in zip(dxs, floating, strict=True) if f)

    def backward(slices, ins, outs, grads):
        if elementwise:
            found = slices.map_elementwise(_lasting_gradient(fn, len(ins)), *ins, *outs, *grads)
        else:
            begins = [slices.start(dim) for dim in starts]
            gradient = given_gradient if grad else _tensorflow_gradient(fn, len(ins) + len(begins))
            found = slices.map(gradient, *ins, *begins, *outs, *grads)
        return [found[sum(floating[:i])] if f else None for i, f in enumerate(floating)]

    result = SliceOperation(forward, backward, inputs, specs, name).outputs
    return tuple(result) if isinstance(outputs, list) else result[0]
