"""A step on a mesh gives the same bits in every run, and on every device that computes the same."""

import collections
import contextlib

import graphs
import numpy as np
import pytest

from mesh import devices
from mesh.compat import mtf, tf
from mesh.slices import SliceOperation
from training import optimizers, slices

RUNS = 200


def as_on_gpus(config):
    """mtf's own implementation, which keeps a copy on each device, on the mesh's CPU devices."""
    ours = devices.mesh_impl(config)
    return mtf.placement_mesh_impl.PlacementMeshImpl(ours.shape, ours.layout_rules, ours.devices)


both_meshes = pytest.mark.parametrize("mesh_impl", [devices.mesh_impl, as_on_gpus])


@contextlib.contextmanager
def lowered(build, config, mesh_impl):
    """Lowers the mtf operations or tensors that `build` makes on an mtf.Mesh.

    Args:
      build: from an mtf.Mesh to mtf operations or tensors.
      config: the run's config.
      mesh_impl: from the config to the mtf mesh implementation.

    Yields:
      a session as a run of the config has it, and (mtf.Lowering, what `build` returned).
    """
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        built = build(mesh)
        lowering = mtf.Lowering(graph, {mesh: mesh_impl(config)}, autostack=False)
        with tf.Session(config=devices.session_config(config)) as session:
            yield session, lowering, built


def bits(values):
    """The bytes of each numpy array of a list."""
    return [value.tobytes() for value in values]


@both_meshes
def test_a_norm_is_the_same_on_every_device(mesh_impl):
    """One of its parts is summed over the devices, the other is not: their order shows in it."""
    config = graphs.config(mesh_shape="x:2", layout="heads:x")
    arrays = np.random.default_rng(0).normal(size=(RUNS, 2, 8)).astype(np.float32)

    def build(mesh):
        given = tf.placeholder(tf.float32, [2, 8])
        split, whole = (mtf.import_tf_tensor(mesh, given[i], mtf.Shape([graphs.dim(name, 8)]))
                        for i, name in enumerate(("heads", "embd")))
        return given, optimizers.global_norm([split, whole])

    with lowered(build, config, mesh_impl) as (session, lowering, (given, norm)):
        on_devices = lowering.tensors[norm].to_laid_out_tensor().all_slices
        for array in arrays:
            first, second = session.run(on_devices, {given: array})
            assert first.tobytes() == second.tobytes(), "the devices' copies differ"
            assert first == pytest.approx(np.linalg.norm(array.astype(np.float64)), rel=1e-6)


@both_meshes
@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_over_devices_keep_their_order(size, mesh_impl):
    """TensorFlow makes no AddN of them: it adds first what lies in memory that it may reuse."""
    config = graphs.config(mesh_shape=f"x:{size}", layout="heads:x", n_head=size, n_embd=8 * size)
    heads, embd = graphs.dim("heads", size), graphs.dim("embd", 8)

    def build(mesh):
        x = mtf.import_tf_tensor(mesh, tf.placeholder_with_default(
            tf.ones([size, 8]), [size, 8]), mtf.Shape([heads, embd]))

        def over_heads(parts, x):
            return parts.sum(parts.map(lambda v: tf.reduce_sum(v, 0), x), heads)

        total = SliceOperation(over_heads, None, [x], [([embd], tf.float32)], "sum").outputs[0]
        other = mtf.import_tf_tensor(mesh, tf.placeholder_with_default(
            tf.ones([8]), [8]), mtf.Shape([embd]))
        return mtf.exp(total + other), slices.SumOfSquares([total, x]).outputs[0]

    with lowered(build, config, mesh_impl) as (session, lowering, built):
        fetches = [lowering.tensors[y].to_laid_out_tensor().all_slices for y in built]
        metadata = tf.RunMetadata()
        session.run(fetches, options=tf.RunOptions(output_partition_graphs=True),
                    run_metadata=metadata)
    counts = collections.Counter(node.op for graph in metadata.partition_graphs
                                 for node in graph.node)
    copies = 1 if mesh_impl is devices.mesh_impl else size
    assert counts["AddV2"] >= size and counts["Exp"] == copies, "not the graph that was meant"
    assert not counts["AddN"], counts


@both_meshes
def test_the_same_step_gives_the_same_bits_on_every_run_and_device(mesh_impl):
    """Weights that are split and whole, clipped together and updated from the same state."""
    config = graphs.config(mesh_shape="x:2", layout="heads:x")
    heads, embd = graphs.dim("heads", 8), graphs.dim("embd", 24)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(8, 24)).astype(np.float32), rng.normal(size=24).astype(np.float32)]

    def build(mesh):
        grads = [mtf.import_tf_tensor(mesh, tf.constant(array), mtf.Shape(dims))
                 for array, dims in zip(arrays, ([heads, embd], [embd]), strict=True)]
        for name, g in zip(("split", "whole"), grads, strict=True):
            mtf.get_variable(mesh, name, g.shape, initializer=tf.ones_initializer())
        # The scale of the gradients changes from step to step, as in training.
        scale = mtf.import_tf_tensor(mesh, tf.placeholder_with_default(1.0, [], "scale"),
                                     mtf.Shape([]))
        clipped, _ = optimizers.clip_by_global_norm([g * scale for g in grads], 1.0)
        return optimizers.AdamW(tf.constant(0.1), tf.constant(1), weight_decay=0.1).apply_grads(
            clipped, mesh.graph.trainable_variables)

    with lowered(build, config, mesh_impl) as (session, lowering, updates):
        step = tf.group(*(lowering.lowered_operation(update) for update in updates))
        weights = {v.name: lowering.variables[v].laid_out_tensor.all_slices
                   for v in updates[0].graph.all_variables}
        restore = lowering.copy_masters_to_slices()
        start = tf.global_variables_initializer()
        first = None
        for _ in range(RUNS // 4):
            session.run(start)
            session.run(restore)
            for number in range(8):
                session.run(step, {"scale:0": 1.0 + 0.1 * number})
            values = session.run(weights)
            first = first or values
            for name, parts in values.items():
                assert bits(parts) == bits(first[name]), f"{name}: another run gave other bits"
            for name in ("whole", "whole/adam_m", "whole/adam_v"):
                assert len(set(bits(values[name]))) == 1, f"{name}: the devices' copies differ"
