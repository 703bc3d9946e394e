"""A training step as one XLA program for all cores, made without a TPU.

TensorFlow's XLA compiler for CPUs knows none of the operations with which cores talk to each other.
In their place stand calls by name, which keep shapes; `mesh/hlo.py` makes collectives of them in
the finished module. Everything else is what TPUEstimator would give to a TPU.
"""

import dataclasses

import tensorflow as tf2
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from mesh import hlo
from mesh.compat import tf
from mesh.simd import SimdMesh


class AheadMesh(SimdMesh):
    """A mesh for a program that is made ahead of time.

    Args:
      shape: an mtf.Shape. layout: mtf.LayoutRules.
      logical_to_physical: see SimdMesh.

    Attributes:
      core: int32 [], the number of the core, which the program gets as an argument.
      variables: {name: (mtf.Variable, the tf variable of one core's slice)}.
    """

    def __init__(self, shape, layout, logical_to_physical=None):
        self.core, self.variables = tf.placeholder(tf.int32, [], "core"), {}
        super().__init__(shape, layout, logical_to_physical=logical_to_physical)

    def position(self, of_core):
        return tf.gather(tf.constant(of_core, tf.int32), self.core)

    def reduce(self, x, groups, reduction):
        return _call("all-reduce", x, f"{reduction};{hlo.numbers_text(groups)}")

    def send(self, x, pairs):
        return _call("collective-permute", x, hlo.numbers_text(pairs))

    def exchange(self, x, groups, split_axis, concat_axis):
        number, size = len(groups[0]), x.shape.as_list()
        x = _call("all-to-all", x, f"{split_axis};{hlo.numbers_text(groups)}")
        # The collective leaves part i at place i of the split axis, as XLA's own builder has it.
        x = tf.reshape(x, [*size[:split_axis], number, size[split_axis] // number,
                           *size[split_axis + 1:]])
        order = [axis for axis in range(len(size) + 1) if axis != split_axis]
        order.insert(concat_axis, split_axis)
        size[split_axis] //= number
        size[concat_axis] *= number
        return tf.reshape(tf.transpose(x, order), size)

    class LaidOutVariable:
        """The one slice of a variable that a core has.

        Args:
          variable: an mtf.Variable.
          mesh_impl: the AheadMesh.
        """

        def __init__(self, variable, mesh_impl):
            self._variable = variable
            part = tf.get_variable(
                f"{variable.name}_slice", mesh_impl.slice_shape(variable.shape),
                variable.slice_dtype, initializer=tf.zeros_initializer(), collections=[])
            mesh_impl.variables[variable.name] = variable, part
            self.laid_out_tensor = mesh_impl.LaidOutTensor([part])
            self.copy_master_to_slices = self.copy_slices_to_master = tf.no_op()

        def assign_to_slices(self, assign_fn, values):
            """An operation that calls `assign_fn(variable, slice, value)`."""
            return assign_fn(self._variable, self.laid_out_tensor.one_slice, values[0])


def _call(kind, x, argument):
    """A call by name of a collective, like `x`, that hlo.with_collectives replaces."""
    return gen_xla_ops.xla_custom_call_v2(
        operands=[x], call_target_name=hlo.MARK + kind, backend_config=argument,
        has_side_effect=False, result_dtypes=[x.dtype], result_shapes=[x.shape])[0]


@dataclasses.dataclass(frozen=True)
class Program:
    """An XLA program of a training step.

    Attributes:
      module: a serialised HloModuleProto, before the compiler's optimisations.
      cores: how many cores run it.
      arguments: their names in order: "core", the features', the variables'.
      results: the names of what it returns, in order: of scalars, then of the variables that it
        updates, whose memory it takes over.
    """

    module: bytes
    cores: int
    arguments: list
    results: list


def program(graph, impl, features, scalars, update):
    """The Program of a training step; to be called outside of all graphs.

    Args:
      graph: the tf.Graph that holds the step.
      impl: the AheadMesh that it was lowered with.
      features: {name: placeholder}, what each core is given whole.
      scalars: {name: tensor} to return; those that are the same at each step are left out.
      update: the operation that updates all variables.
    """
    scalars = {name: x for name, x in scalars.items() if tf.get_static_value(x) is None}
    given = {"core": impl.core, **features}
    names = {part.op.name: name for name, (_, part) in impl.variables.items()}
    nodes, handles = _needed(graph, [update, *(x.op for x in scalars.values())],
                             {x.op.name for x in given.values()})
    empty = _EmptyVariables(graph)
    variables = {names.get(node, node): empty.like(node) for node in handles}

    def step(*arguments):
        inputs = dict(zip((x.name for x in given.values()), arguments, strict=True))
        capture = tf.get_default_graph().capture
        inputs |= {f"{node}:0": capture(variables[names.get(node, node)].handle)
                   for node in handles}
        used = {name if ":" in name else f"{name}:0" for node in nodes.node for name in node.input}
        return tf.import_graph_def(nodes, {name: inputs[name] for name in used & set(inputs)},
                                   [x.name for x in scalars.values()], name="")

    signature = [tf.TensorSpec(x.shape, x.dtype) for x in given.values()]
    compiled = tf2.function(step, signature, autograph=False, jit_compile=True)
    module = hlo.parse(compiled.experimental_get_compiler_ir(*signature)("hlo_serialized"))
    captured = compiled.get_concrete_function().captured_inputs
    hlo.with_collectives(module)
    name_of = {id(variable.handle): name for name, variable in variables.items()}
    arguments = [*given, *(name_of[id(x)] for x in captured)]
    results = hlo.aliased(module, [*scalars], arguments)
    return Program(module.SerializeToString(), impl.size, arguments, results)


def _needed(graph, operations, given):
    """What operations need: (a GraphDef without devices, the names of variables' handles).

    Args:
      graph: a tf.Graph.
      operations: a list of its tf.Operation.
      given: the names of operations whose results are given; they are left out, and so are handles.
    """
    needed, handles, left = {}, {}, list(operations)
    while left:
        operation = left.pop()
        if operation.type == "VarHandleOp":
            handles[operation.name] = True
        elif operation.name not in given and operation.name not in needed:
            needed[operation.name] = True
            left += [*(x.op for x in operation.inputs), *operation.control_inputs]
    nodes = graph.as_graph_def()
    kept = [node for node in nodes.node if node.name in needed]
    for node in kept:
        node.device = ""
        node.attr.pop("_class", None)
    del nodes.node[:]
    nodes.node.extend(kept)
    return nodes, sorted(handles)


class _EmptyVariables:
    """Variables outside of all graphs, of which only types and shapes will be asked for.

    They are never written to, and those of one shape share their memory: a large model's take none.
    """

    def __init__(self, graph):
        self._graph, self._known = graph, {}

    def like(self, node):
        """A variable like the one whose handle is called `node`."""
        attributes = self._graph.get_operation_by_name(node).node_def.attr
        shape = tuple(dim.size for dim in attributes["shape"].shape.dim)
        key = shape, attributes["dtype"].type
        if key not in self._known:
            self._known[key] = tf.raw_ops.Empty(shape=shape, dtype=key[1])
        return tf2.Variable(self._known[key])


def slice_of(impl, variable, value, core):
    """What a core holds of a variable's value, a numpy array."""
    begin = impl.slice_begin(variable.shape, impl.p2l(core))
    size = impl.slice_shape(variable.shape)
    return value[tuple(slice(b, b + n) for b, n in zip(begin, size, strict=True))]
