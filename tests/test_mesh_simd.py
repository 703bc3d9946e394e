"""mesh/simd.py and mesh/ahead.py: the training step as a program for all cores, run on virtual
CPU devices, against the same step on a mesh of CPU devices (mesh/devices.py).
"""

import importlib.util

import clip_runs
import graphs
import numpy as np
import pytest
import virtual_cores

import inputs
from benchmarks import gpt_neo_shape
from mesh import ahead, hlo
from mesh.compat import mtf, tf
from mesh.simd import SimdMesh
from training import ahead as training_ahead
from training import distillation, frozen, language, model_fn, supervision

STEPS, VOCAB = 2, 257
FACTS = inputs.Facts(tokens=1000, bytes=None, decoded_bytes=None, windows=100, encoder=None,
                     encoder_hash=None, n_vocab=VOCAB, eos_id=VOCAB - 1, datasets=())


@pytest.fixture(scope="module")
def cores():
    if importlib.util.find_spec("jaxlib") is None:
        pytest.skip("jaxlib runs the programs: requirements-compare.txt")
    running = virtual_cores.VirtualCores()
    yield running
    running.close()


def on_placed_devices(config, objective, features):
    """Two steps on a CPU mesh: (initial values, scalars of each step, last values)."""
    with tf.Graph().as_default() as graph:
        given = {name: tf.constant(x) for name, x in features.items()}
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        step = model_fn.train_step(config, objective, mesh, given, model_fn.lower)
        masters = {v.name: v.get_master() for v in mesh.graph.all_variables}
        masters["global_step"] = tf.train.get_global_step()
        with tf.Session(graph=graph, config=tf.ConfigProto(device_count={"CPU": 8})) as session:
            session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
            first = session.run(masters)
            session.run(step.lowering.copy_masters_to_slices())
            curve = [session.run([step.scalars, step.update])[0] for _ in range(STEPS)]
            session.run(step.lowering.copy_slices_to_masters())
            return first, curve, session.run(masters)


def on_virtual_cores(cores, config, objective, features, first):
    """The same as one program: (scalars of each step, {name: (whole value, each core's slice)})."""
    specs = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in features.items()}
    program, impl = training_ahead.program(config, objective, specs)

    def slices(name, value):
        if name not in impl.variables:
            return [value] * program.cores
        variable, part = impl.variables[name]
        return [ahead.slice_of(impl, variable, value, core).astype(part.dtype.as_numpy_dtype)
                for core in range(program.cores)]

    arguments = {name: slices(name, first[name])
                 for name in program.arguments if name in first}
    arguments |= {name: [x] * program.cores for name, x in features.items()}
    curve, last = cores.run(program, arguments, STEPS)
    return program, curve, last, slices


def compare(cores, config, objective, features, tolerance=1e-4):
    """Checks that both give the same scalars and weights.

    Weights may differ by `tolerance` of what the steps have changed, losses by a hundredth at most.
    Returns the Program.
    """
    first, wanted_curve, wanted = on_placed_devices(config, objective, features)
    program, curve, last, slices = on_virtual_cores(cores, config, objective, features, first)
    for found, scalars in zip(curve, wanted_curve, strict=True):
        assert "loss" in found
        for name, values in found.items():
            np.testing.assert_allclose(
                values, [scalars[name]] * program.cores, err_msg=name,
                rtol=min(tolerance, 0.01) if name.startswith("loss") else tolerance)
    assert last["global_step"] == [STEPS] * program.cores
    # Compared as cores hold them: a frozen weight may come back rounded to bfloat16.
    trained = {name for name in wanted if any(
        not np.array_equal(a, b)
        for a, b in zip(slices(name, wanted[name]), slices(name, first[name]), strict=True))}
    assert trained == set(last)
    for name in trained - {"global_step"}:
        parts = [slices(name, value) for value in (first[name], wanted[name])]
        for value, before, after in zip(last[name], *parts, strict=True):
            error, change = np.linalg.norm(value - after), np.linalg.norm(after - before)
            assert error <= tolerance * change + 1e-9, (name, error, change)
    return program


def test_collectives_on_cores_in_another_order(cores):
    """Rows over x, columns and others over y, on a mesh whose cores are numbered in disorder."""
    rows, columns, others, wide = (graphs.dim(*d) for d in (
        ("rows", 8), ("columns", 4), ("others", 8), ("wide", 4)))
    array = np.random.RandomState(0).randn(8, 4).astype(np.float32)
    array[1, 2] = np.inf
    numbers = np.arange(32, dtype=np.int32).reshape(8, 4) + 2 ** 24
    with tf.Graph().as_default() as graph:
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        given = {name: tf.placeholder(a.dtype, a.shape, name)
                 for name, a in (("array", array), ("numbers", numbers))}
        x, n = (mtf.import_tf_tensor(mesh, y, mtf.Shape([rows, columns])) for y in given.values())
        upright = mtf.import_tf_tensor(mesh, tf.transpose(given["array"]),
                                       mtf.Shape([columns, graphs.dim("whole", 8)]))
        outputs = {
            "sum": mtf.reduce_sum(x, reduced_dim=columns), "total": mtf.reduce_sum(n),
            "most": mtf.reduce_max(x, reduced_dim=rows), "least": mtf.reduce_min(x),
            "joined": mtf.rename_dimension(x, "rows", "whole"), "exported": n,
            "exchanged": mtf.reshape(upright, mtf.Shape([wide, others])),
            "shifted": mtf.shift(x, 3, rows, wrap=False), "turned": mtf.shift(x, -2, rows, True),
            "repeated": mtf.broadcast(x, mtf.Shape([columns, graphs.dim("many", 3), rows]))}
        impl = ahead.AheadMesh(mtf.convert_to_shape("x:4,y:2"),
                               mtf.convert_to_layout_rules("rows:x,columns:y,others:y"),
                               [3, 1, 4, 0, 5, 7, 2, 6])
        lowering = mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)
        fetches = {name: lowering.export_to_tf_tensor(y) for name, y in outputs.items()}
        nothing = tf.no_op()
    program = ahead.program(graph, impl, given, fetches, nothing)
    [found], _ = cores.run(program, {"array": [array] * 8, "numbers": [numbers] * 8}, 1)
    down, up = np.zeros([3, 4], np.float32), array
    wanted = {"sum": array.sum(1), "total": numbers.sum(dtype=np.int32), "most": array.max(0),
              "least": array.min(), "joined": array, "exported": numbers, "exchanged": array.T,
              "shifted": np.concatenate([down, up[:-3]]), "turned": np.roll(array, -2, 0),
              "repeated": np.repeat(array.T[:, None], 3, 1)}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        for core in found[name]:
            np.testing.assert_allclose(core, value, rtol=1e-6, err_msg=name)
            assert name == "sum" or np.array_equal(core, value), name
    instructions = [i for c in hlo.parse(program.module).computations for i in c.instructions]
    assert {"all-reduce", "all-to-all", "collective-permute"} <= {i.opcode for i in instructions}


@pytest.mark.parametrize("updates", [False, True])
def test_a_program_with_one_result(cores, updates):
    """A scalar alone, or a variable alone that takes over its argument's memory."""
    rows, array = graphs.dim("rows", 4), np.arange(4, dtype=np.float32)
    with tf.Graph().as_default() as graph:
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        given = {"array": tf.placeholder(tf.float32, [4], "array")}
        x = mtf.import_tf_tensor(mesh, given["array"], mtf.Shape([rows]))
        outputs = {} if updates else {"sum": mtf.reduce_sum(x)}
        if updates:
            variable = mtf.get_variable(mesh, "held", x.shape,
                                        initializer=tf.zeros_initializer())
            update = mtf.assign(variable, variable + x)
        impl = ahead.AheadMesh(mtf.convert_to_shape("x:2"), mtf.convert_to_layout_rules("rows:x"))
        lowering = mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)
        fetches = {name: lowering.export_to_tf_tensor(y) for name, y in outputs.items()}
        operation = lowering.lowered_operation(update) if updates else tf.no_op()
    program = ahead.program(graph, impl, given, fetches, operation)
    held = {"held": [array[:2], array[2:]]} if updates else {}
    curve, last = cores.run(program, {"array": [array] * 2, **held}, 2)
    if updates:
        assert program.results == ["held"] and curve == [{}, {}]
        np.testing.assert_array_equal(np.concatenate(last["held"]), 3 * array)
    else:
        assert program.results == ["sum"] and curve == [{"sum": [6.0, 6.0]}] * 2


def text(rows=8, length=16):
    """A batch of rows, some of which are not full."""
    tokens = np.random.RandomState(0).randint(0, VOCAB, [rows, length + 1])
    return {"tokens": tokens.astype(np.int32),
            "valid": np.resize([length, length, 5, length, 0, length, 11], rows).astype(np.int32)}


# The keys' bias changes nothing but by rounding, which Adam would magnify with a small epsilon.
SMALL = dict(n_vocab=VOCAB, n_embd=16, n_layer=1, n_head=4, lr=1e-2, weight_decay=0.1,
             warmup_steps=1, gradient_clipping=1.0, initializer_range=0.1, epsilon=1e-3,
             embed_dropout=0.1, res_dropout=0.2, attn_dropout=0.3)


@pytest.mark.parametrize(("mesh_shape", "layout", "keys"), [
    ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y", dict(n_layer=2)),
    ("x:2,y:2", "batch:x,embd:y", dict(tokens_per_mb_per_replica=32, recompute_grad=True)),
    ("x:2,y:2", "sequence:x,embed_sequence:x,memory_length:y", {}),
    ("x:2", "features_per_head:x,vocab:x", dict(position="rotary", opt_name="adafactor")),
    ("x:2,y:2,z:2", "batch:x,memory_length:y,heads:z", {}),
], ids=lambda value: value if isinstance(value, str) and ":" in value else None)
def test_gpt(cores, mesh_shape, layout, keys):
    config = graphs.config(mesh_shape=mesh_shape, layout=layout, **{**SMALL, **keys})
    compare(cores, config, language.Language(config, FACTS), text())


@pytest.mark.parametrize("layout", ["batch:x,heads:y,vocab:y", "batch:x,embd:y"])
def test_gpt_neos_shape_gives_the_same_step(cores, layout):
    """What benchmarks/gpt_neo_shape.py builds is a slower way to the same losses and weights."""
    config = graphs.config(mesh_shape="x:2,y:2", layout=layout, position="rotary", rotary_dims=2,
                           **{**SMALL, "attn_dropout": 0.0})
    objective, features = language.Language(config, FACTS), text()
    first, wanted, _ = on_placed_devices(config, objective, features)
    ours, *_ = on_virtual_cores(cores, config, objective, features, first)
    with gpt_neo_shape.applied():
        theirs, curve, *_ = on_virtual_cores(cores, config, objective, features, first)
    assert theirs.module != ours.module
    for found, scalars in zip(curve, wanted, strict=True):
        for name, values in found.items():
            np.testing.assert_allclose(values, [scalars[name]] * theirs.cores, rtol=1e-4,
                                       err_msg=name)


def test_bfloat16(cores):
    config = graphs.config(mesh_shape="x:2,y:2", layout="batch:x,heads:y,vocab:y",
                           precision="bfloat16", **SMALL)
    compare(cores, config, language.Language(config, FACTS), text(), 0.1)


EXPERTS = dict(moe_layers=[0], moe_params={"num_experts": 4, "hidden_size": 12,
                                           "min_expert_capacity": 1})


@pytest.mark.parametrize(("mesh_shape", "layout", "keys"), [
    ("x:2", "batch:x,experts:x", {}),
    ("x:2,y:2", "batch:x,experts:y,heads:y,vocab:y,intermediate_expanded:y",
     dict(tokens_per_mb_per_replica=32, recompute_grad=True)),
    ("x:2,y:2", "batch:x,experts:x,embd:y", {}),
], ids=lambda value: value if isinstance(value, str) and ":" in value else None)
def test_experts(cores, mesh_shape, layout, keys):
    config = graphs.config(mesh_shape=mesh_shape, layout=layout, **{**SMALL, **EXPERTS, **keys})
    program = compare(cores, config, language.Language(config, FACTS), text())
    if "experts:x" in layout:  # rows go to their experts, and come back
        opcodes = {i.opcode for c in hlo.parse(program.module).computations
                   for i in c.instructions}
        assert "all-to-all" in opcodes


@pytest.mark.parametrize("opt_name", ["adamw", "adafactor"])
def test_a_step_that_is_not_finite_is_left_out(cores, bad_steps, opt_name):
    bad_steps[1] = np.nan, ("gradient",)
    config = graphs.config(mesh_shape="x:2,y:2", layout="batch:x,vocab:y", on_nan="skip",
                           position="rotary",
                           **{**SMALL, "opt_name": opt_name})
    compare(cores, config, language.Language(config, FACTS), text())
    first, curve, last = on_placed_devices(config, language.Language(config, FACTS), text())
    assert np.isnan(curve[0]["gradient_norm"]) and np.isfinite(curve[1]["gradient_norm"])
    assert all(np.isfinite(value).all() for value in last.values())


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The path of a student's run."""
    return clip_runs.student(tmp_path_factory.mktemp("student"))[0]


SPLIT_BATCH = dict(tokens_per_mb_per_replica=32, recompute_grad=True)


@pytest.mark.parametrize(("mesh_shape", "layout", "clip", "keys", "tolerance"), [
    ("x:2,y:2", "batch:x,heads:y,vocab:y,clip_heads:y,clip_vocab:y,clip_out:y", {}, {}, 1e-4),
    ("x:2,y:2", "batch:x,vocab:y,intermediate_expanded:y", {}, SPLIT_BATCH, 1e-4),
    ("x:2", "memory_length:x", dict(loss="contrastive", samples=16), {}, 1e-4),
    ("x:2", "batch:x", {}, dict(precision="bfloat16"), 0.1),
    ("x:2", "embd:x,clip_embd:x", dict(loss="contrastive", samples=16), {}, 1e-4),
    ("x:2", "embd:x,clip_intermediate:x", dict(mode="input"), {}, 1e-4)])
def test_gpt_c(cores, student, mesh_shape, layout, clip, keys, tolerance):
    config = graphs.config(model="gpt_c", mesh_shape=mesh_shape, layout=layout,
                           clip={"student": student, **clip}, **{**SMALL, **keys})
    kind = language.Language if clip.get("mode") else supervision.Supervision
    objective = kind(config, FACTS, frozen.of_run(config))
    program = compare(cores, config, objective, text(), tolerance)
    assert "clip_student/wte" in program.arguments


@pytest.mark.parametrize(("mesh_shape", "layout", "keys", "tolerance"), [
    ("x:2,y:2", "batch:x,clip_heads:y,clip_intermediate:y,clip_vocab:y", SPLIT_BATCH, 1e-4),
    ("x:2", "clip_embd:x", {}, 1e-4),
    ("x:2", "batch:x", dict(precision="bfloat16"), 0.1)])
def test_clip_student(cores, tmp_path, mesh_shape, layout, keys, tolerance):
    config = clip_runs.student_config(
        tmp_path / "student", n_layer=1, lr=1e-2, warmup_steps=1, epsilon=1e-3, eval_steps=0,
        mesh_shape=mesh_shape, layout=layout, **keys,
        clip={"teacher": clip_runs.teacher(tmp_path, VOCAB + 2), "windows": 2, "positions": 2})
    objective = distillation.Distillation(config, FACTS, frozen.of_run(config))
    compare(cores, config, objective, text(), tolerance)


class Assignment:
    """What a TPUEstimator's device assignment says of four cores."""

    def tpu_device(self, replica):
        return f"/device:TPU:{replica}"


def test_the_step_of_tpu_replicas_is_built_of_tpu_operations():
    """As TPUEstimator has it built; nothing of it can run here."""
    config = graphs.config(mesh_shape="x:2,y:2", layout="batch:x,memory_length:y,vocab:y",
                           position="rotary", **SMALL)
    features, order = text(), [2, 0, 3, 1]

    def replica(tokens, valid):
        def lower(config, mesh):
            impl = SimdMesh(mtf.convert_to_shape("x:2,y:2"), mtf.convert_to_layout_rules(
                config.layout), Assignment(), order)
            return mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)

        step = model_fn.train_step(config, language.Language(config, FACTS),
                                   mtf.Mesh(mtf.Graph(), "mesh"),
                                   {"tokens": tokens, "valid": valid}, lower)
        with tf.control_dependencies([step.update]):
            return tf.identity(step.scalars["loss"])

    with tf.Graph().as_default() as graph:
        tf.train.create_global_step()
        given = [tf.constant(features[name]) for name in ("tokens", "valid")]
        [loss] = tf.tpu.replicate(replica, [given] * 4)[0]
    assert loss.shape == []
    operations = graph.get_operations()
    inside = [op for op in operations if "_tpu_replicate" in op.node_def.attr]
    kinds = {op.type for op in inside}
    assert {"CrossReplicaSum", "XlaAllReduce", "ResourceApplyAdam"} <= kinds
    assert not kinds & {"OneHot", "XlaCustomCallV2", "Variable", "VariableV2"}
    slices = {op.name: op.device for op in operations
              if op.type == "VarHandleOp" and "gpt/wte_slice_" in op.name}
    assert sorted(slices.values()) == [f"/device:TPU:{core}" for core in range(4)]
    # Each core is told its position in the mesh.
    told = [[tf.get_static_value(x) for x in op.inputs] for op in operations
            if op.type == "TPUReplicatedInput" and op.outputs[0].shape == []]
    assert [order.index(core) for core in range(4)] in told
