"""Small Mesh TensorFlow graphs, built, lowered and run on a CPU mesh."""

import dataclasses

import numpy as np

from configs.schema import RunConfig
from mesh import devices
from mesh.compat import mtf, tf


@dataclasses.dataclass
class Result:
    """What a run of a graph gave.

    Attributes:
      values: {name: the whole tensor, numpy}.
      slice_shapes: {name: the shape of each tensor's first slice}.
      weights: {variable name: numpy}.
      weight_slices: {variable name: the shape of its first slice}.
      operations: the TensorFlow graph's operations.
    """

    values: dict
    slice_shapes: dict
    weights: dict
    weight_slices: dict
    operations: list

    def __getitem__(self, name):
        return self.values[name]


def config(**changes):
    """A small GPT's RunConfig."""
    keys = dict(n_layer=2, n_head=4, n_embd=32, n_ctx=16, n_vocab=61, pad_vocab_multiple=8,
                train_batch_size=8, train_steps=10, lr=1e-3, model_path="unused")
    return RunConfig(**{**keys, **changes})


def dim(name, size):
    """A named dimension."""
    return mtf.Dimension(name, size)


def give(mesh, array, *dims, dtype=None):
    """An mtf tensor with the values of a numpy array; `dtype` converts it on the mesh."""
    array = np.asarray(array)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    tensor = mtf.import_tf_tensor(mesh, tf.constant(array), mtf.Shape(dims))
    return tensor if dtype is None else mtf.cast(tensor, dtype)


def run(build, mesh_shape="", layout="", weights=None):
    """Runs a graph once on as many CPU devices as the mesh needs.

    Args:
      build: from an mtf.Mesh to {name: mtf.Tensor}.
      mesh_shape: such as "x:2,y:2"; "" is one device.
      layout: such as "batch:x,heads:y".
      weights: {variable name: numpy} to start from, in place of the initial values.

    Returns:
      a Result.
    """
    with tf.Graph().as_default() as tf_graph:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        outputs = build(mesh)
        shape = mtf.convert_to_shape(mesh_shape)
        impl = devices.CpuMesh(shape, mtf.convert_to_layout_rules(layout))
        lowering = mtf.Lowering(graph, {mesh: impl}, autostack=False)
        fetches = {name: lowering.export_to_tf_tensor(x) for name, x in outputs.items()}
        slices = {name: lowering.tensors[x].to_laid_out_tensor().all_slices
                  for name, x in outputs.items()}
        assert all(isinstance(s, tf.Tensor) for group in slices.values() for s in group)
        slice_shapes = {name: group[0].shape.as_list() for name, group in slices.items()}
        weight_slices = {v.name: lowering.variables[v].laid_out_tensor.all_slices[0].shape.as_list()
                         for v in graph.all_variables}
        masters = {v.name: v.get_master() for v in graph.all_variables}
        with tf.Session(config=tf.ConfigProto(device_count={"CPU": 4})) as session:
            session.run(tf.global_variables_initializer())
            for name, value in (weights or {}).items():
                masters[name].load(value, session)
            session.run(lowering.copy_masters_to_slices())
            values, weights = session.run([fetches, masters])
        return Result(values, slice_shapes, weights, weight_slices, tf_graph.get_operations())


def with_gradients(outputs, inputs, cotangents):
    """Adds gradients to the outputs of a `build`.

    Args:
      outputs: {name: mtf.Tensor}.
      inputs: {name: mtf.Tensor}, floating point.
      cotangents: {name of an output: mtf.Tensor like it}.

    Returns:
      the outputs, and "d_<name>" for each input.
    """
    grads = mtf.gradients([outputs[name] for name in cotangents], list(inputs.values()),
                          grad_ys=list(cotangents.values()))
    return {**outputs, **{f"d_{name}": g for name, g in zip(inputs, grads, strict=True)}}


def slice_shape(dims, mesh_shape, layout):
    """The shape of one slice of a tensor of these dimensions, by the layout's text alone."""
    sizes = dict(item.split(":") for item in mesh_shape.split(",") if item)
    rules = dict(item.split(":") for item in layout.split(",") if item)
    return [d.size // int(sizes.get(rules.get(d.name), 1)) for d in dims]


def executed(session, fetches, feed=None):
    """The nodes that TensorFlow runs for fetches, after it has rewritten the graph."""
    metadata = tf.RunMetadata()
    session.run(fetches, feed, options=tf.RunOptions(output_partition_graphs=True),
                run_metadata=metadata)
    return [node for part in metadata.partition_graphs for node in part.node]
