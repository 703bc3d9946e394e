"""Runs on TPUs: TPUEstimator's own graphs for slices that are not there, as far as they can run.

This process stands for the TPU's host, and runs all that hosts do: variables, copies, checkpoints.
The program of the TPU's cores is built and looked at; tests/test_mesh_simd.py runs it.
"""

import clip_runs
import graphs
import jobs
import numpy as np
import pytest
import tpu_systems
import virtual_cores
from tensorflow.python.tpu import session_support
from test_mesh_simd import SMALL, VOCAB

import inputs
from configs import schema
from mesh import ahead, cloud, devices, torus
from mesh.compat import mtf, tf
from training import (
    estimators,
    frozen,
    hooks,
    language,
    objectives,
    predictor,
    run,
    tpu_predictor,
)

SHAPE = [1, 2, 1, 2]  # four cores of two chips
MESH = dict(mesh_shape="x:2,y:2", layout="batch:x,heads:y,vocab:y")


class Meter:
    """Remembers what it is told."""

    watch = None

    def __init__(self):
        self.told = []

    def built(self, graph, mesh_impl):
        pass

    def start_clock(self, step):
        self.told.append(step)

    def log(self, step, values):
        self.told.append((step, values))


class AtFirstStep(tf.train.SessionRunHook):
    """Calls a function with the session in place of the first step."""

    def __init__(self, look):
        self._look, self.results = look, None

    def begin(self):
        self.slices = tf.get_collection("TPU_VAR")
        self.doubled = [v.assign(2 * v) for v in self.slices]
        self.graph = tf.get_default_graph()

    def before_run(self, run_context):
        self.results = self._look(self, run_context.session)
        raise tpu_systems.Stop


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return jobs.dataset(tmp_path_factory.mktemp("data"))


def estimator_of(config, meter=None, objective=None):
    objective = objective or language.Language(config, inputs.dataset_facts(config, "train"))
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver("local")
    estimator = estimators.make(config, objective, meter, cloud.Tpu("local", resolver, 4))
    # Or this TensorFlow, which knows no TPU, would look for kernels of what is not run.
    estimator._session_config.graph_options.place_pruned_graph = True
    return estimator


def slices_of_wte(slices, values):
    """The token table's slice on each core."""
    by_name = {v.op.name: value for v, value in zip(slices, values, strict=True)}
    return [next(value for name, value in by_name.items()
                 if name.endswith(f"gpt/wte_slice_{core}")) for core in range(4)]


def joined(parts, config):
    """The whole token table, of which `y` splits the rows."""
    order = torus.order(config.mesh, SHAPE)
    return np.concatenate([parts[order[position]] for position in (0, 1)])


def test_training_on_four_cores(tmp_path, dataset, monkeypatch):
    config = schema.load(jobs.config(tmp_path, dataset, **MESH))
    saves = []

    class Save(hooks.SaveAtEnd):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            saves.append(self)

    monkeypatch.setattr(hooks, "SaveAtEnd", Save)
    # It would save masters, which are older than the step that it notes.
    monkeypatch.setattr(session_support, "GracefulShutdownHook", pytest.fail)

    def look(hook, session):
        before = session.run(hook.slices)
        session.run(hook.doubled)
        saves[0].end(session)
        return before

    hook = AtFirstStep(look)
    estimator = estimator_of(config, Meter())
    with tpu_systems.pretended(monkeypatch, SHAPE), pytest.raises(tpu_systems.Stop):
        estimators.run(config, estimator, "train", inputs.train_input_fn(config, 0),
                       max_steps=4, hooks=[hook])
    # The masters were cut onto the cores, and what the cores held was joined and saved.
    saved = jobs.weights(config.model_path)
    assert jobs.steps(config.model_path) == [0] and saved["gpt/wte"].any()
    parts = slices_of_wte(hook.slices, hook.results)
    assert len({part.tobytes() for part in parts}) == 2
    np.testing.assert_array_equal(saved["gpt/wte"], 2 * joined(parts, config))
    places = {v.device for v in hook.slices if "gpt/wte_slice" in v.op.name}
    assert places == {f"/task:0/device:TPU:{core}" for core in range(4)}

    operations = hook.graph.get_operations()
    [metadata] = {op.get_attr("num_replicas") for op in operations
                  if op.type == "TPUReplicateMetadata"}
    assert metadata == 4
    inside = {op.type for op in operations if "_tpu_replicate" in op.node_def.attr}
    assert {"CrossReplicaSum", "InfeedDequeueTuple", "OutfeedEnqueueTuple"} <= inside
    # What the host is sent as the step is read when the step has been made.
    [sent] = {op for op in operations if op.type == "OutfeedEnqueueTuple"}
    step = next(x.op for x in sent.inputs if x.dtype == tf.int32)
    while step.type != "ReadVariableOp":
        step = step.inputs[0].op
    assert "AssignAddVariableOp" in types_before(step)
    # Each core is fed the whole batch, and the hosts do it.
    fed = [op for op in operations if op.type == "InfeedEnqueueTuple"]
    assert not fed or all("CPU" in op.device for op in fed)
    bodies = [node for f in hook.graph.as_graph_def().library.function for node in f.node_def]
    fed_shapes = [[[d.size for d in s.dim] for s in node.attr["shapes"].list.shape]
                  for node in [*bodies, *(op.node_def for op in fed)]
                  if node.op == "InfeedEnqueueTuple"]
    assert len(fed_shapes) == 4
    assert all(sorted(shapes) == [[8], [8, config.n_ctx + 1]] for shapes in fed_shapes)


def test_a_frozen_student_on_four_cores(tmp_path, dataset, monkeypatch):
    """It is read into variables of the host, which no checkpoint has, and cut onto the cores."""
    path, weights = clip_runs.student(tmp_path / "student")
    config = schema.load(jobs.config(tmp_path, dataset, model="gpt_c", clip={"student": path},
                                     **MESH))
    objective = objectives.of_run(config, inputs.dataset_facts(config, "train"),
                                  frozen.of_run(config, True))
    hook = AtFirstStep(lambda hook, session: session.run(hook.slices))
    estimator = estimator_of(config, Meter(), objective)
    with tpu_systems.pretended(monkeypatch, SHAPE), pytest.raises(tpu_systems.Stop):
        estimators.run(config, estimator, "train", inputs.train_input_fn(config, 0),
                       max_steps=4, hooks=[hook])
    found = {v.op.name: value for v, value in zip(hook.slices, hook.results, strict=True)}
    for name in ("wte", "h0/mlp/in/kernel", "projection/kernel"):
        for core in range(4):
            [part] = [value for key, value in found.items()
                      if key.endswith(f"clip_student/{name}_slice_{core}")]
            np.testing.assert_array_equal(part, weights[f"clip_student/{name}"])


def types_before(op):
    """The types of an operation and of all that has to be done before it."""
    found, left = {}, [op]
    while left:
        before = left.pop()
        if before.name not in found:
            found[before.name] = before.type
            left += [*before.control_inputs, *(x.op for x in before.inputs)]
    return set(found.values())


def counting_of(operations):
    """The one operation that counts an evaluation's batches."""
    [counting] = [op for op in operations if op.type == "AssignAddVariableOp"
                  and op.inputs[0].op.name == "evaluated_batches"]
    return counting


def test_evaluation_on_four_cores(tmp_path, dataset, monkeypatch):
    path = jobs.config(tmp_path, dataset, train_steps=1, **MESH)
    config = schema.load(path)
    run.train(config)
    hook = AtFirstStep(lambda hook, session: session.run(hook.slices))
    estimator = estimator_of(config)
    with tpu_systems.pretended(monkeypatch, SHAPE), pytest.raises(tpu_systems.Stop):
        estimators.run(config, estimator, "evaluate", inputs.eval_input_fn(config),
                       steps=inputs.eval_windows(config).batches, hooks=[hook])
    parts = slices_of_wte(hook.slices, hook.results)
    np.testing.assert_array_equal(jobs.weights(config.model_path)["gpt/wte"],
                                  joined(parts, config))
    operations = hook.graph.get_operations()
    assert any(op.type == "OutfeedDequeueTuple" for op in operations)
    # The host counts a batch with what it does for each.
    counting = counting_of(operations)
    assert "_tpu_replicate" not in counting.node_def.attr and "CPU:0" in counting.device
    assert "OutfeedDequeueTuple" in types_before(counting)
    assert any(counting in op.control_inputs for op in operations)


TWO_HOSTS = {f"/job:worker/task:{host}/device:CPU:0" for host in range(2)}


def graph_on_two_hosts(monkeypatch, config, job, *args, **kwargs):
    """(Places of the masters, operations) of a job's graph, for eight cores; nothing runs."""
    class Look(tf.train.SessionRunHook):
        def begin(self):
            self.places = {v.device for v in tf.global_variables() if v.op.name != "global_step"}
            self.operations = tf.get_default_graph().get_operations()
            raise tpu_systems.Stop

    hook, (_server, resolver) = Look(), tpu_systems.resolver()
    objective = language.Language(config, inputs.dataset_facts(config, "train"))
    estimator = estimators.make(config, objective, Meter(), cloud.Tpu("tests", resolver, 8))
    with tpu_systems.pretended(monkeypatch, [2, 2, 1, 2], 2), pytest.raises(tpu_systems.Stop):
        estimators.run(config, estimator, job, *args, hooks=[hook], **kwargs)
    return hook.places, hook.operations


def test_masters_lie_on_all_hosts(tmp_path, dataset, monkeypatch):
    config = schema.load(jobs.config(tmp_path, dataset, mesh_shape="x:4,y:2",
                                     layout="batch:x,heads:y,vocab:y"))
    places, operations = graph_on_two_hosts(monkeypatch, config, "train",
                                            inputs.train_input_fn(config, 0), max_steps=4)
    assert places == TWO_HOSTS
    shards = [op for op in operations if op.type == "MergeV2Checkpoints"]
    assert shards and len({op.device for op in operations if op.type == "SaveV2"}) >= 2


def test_evaluation_on_two_hosts(tmp_path, dataset, monkeypatch):
    """Both hosts feed their cores and hold masters, one counts."""
    config = schema.load(jobs.config(tmp_path, dataset, train_steps=1, **MESH))
    run.train(config)
    config = config.replace(mesh_shape="x:4,y:2")
    places, operations = graph_on_two_hosts(
        monkeypatch, config, "evaluate", inputs.eval_input_fn(config),
        steps=inputs.eval_windows(config).batches)
    assert places == TWO_HOSTS
    assert {op.device for op in operations if op.type == "InfeedEnqueueTuple"} == TWO_HOSTS
    assert counting_of(operations).device in TWO_HOSTS


def test_the_host_hands_on_the_scalars_of_a_loop():
    meter = Meter()
    with tf.Graph().as_default():
        step = tf.train.create_global_step()
        count = tf.assign_add(step, 1)
        with tf.control_dependencies([count]):
            log = hooks.LogFromTpu({"loss": tf.constant(2.5), "rate": tf.constant(1e-3)}, meter)
        function, arguments = log.host_call
        with tf.control_dependencies([count]):
            sent = function(tf.reshape(tf.cast(step.read_value(), tf.int32), [1]), arguments[1])
        with tf.train.SingularMonitoredSession([log]) as session:
            for _ in range(2):
                session.run(sent)
    values = {"loss": 2.5, "rate": pytest.approx(1e-3)}
    assert meter.told == [1, (1, values), (2, values)]



@pytest.mark.parametrize(("mesh", "shape"), [
    ([("x", 8)], [2, 2, 1, 2]), ([("x", 8), ("y", 4)], [4, 4, 1, 2]),
    ([("x", 8), ("y", 8), ("z", 4)], [8, 16, 1, 2]), ([("x", 6), ("y", 2)], [2, 3, 1, 2]),
    ([("x", 4)], [2, 2, 1, 1]), ([("x", 4), ("y", 4)], [2, 2, 2, 2])])
def test_the_order_on_the_torus_is_a_permutation_with_near_neighbours(mesh, shape):
    order = torus.order(mesh, shape)
    cores = int(np.prod(shape))
    assert sorted(order) == list(range(cores))
    x, y, z, on_chip = shape

    def place(core):
        chip = core // on_chip
        return np.array([chip % x, chip // x % y, chip // (x * y)])

    # Along the last dimension a step is never longer than in the cores' own order.
    size = mesh[-1][1]
    groups = np.array(order).reshape(-1, size)
    longest = max(np.abs(np.ptp([place(core) for core in group], 0)).sum() for group in groups)
    plain = max(np.abs(np.ptp([place(core) for core in group], 0)).sum()
                for group in np.arange(cores).reshape(-1, size))
    assert longest <= plain


@pytest.mark.parametrize("shape", [[4, 4, 1, 2], [4, 4, 1, 1], [2, 2, 4, 1]])
def test_positions_lie_on_the_cores_that_the_torus_says(shape):
    """TensorFlow numbers its replicas in rings where chips have one core."""
    cores = int(np.prod(shape))
    config = graphs.config(mesh_shape=f"x:{cores // 4},y:4", layout="")
    assignment = tpu_systems.assignment(shape)
    with tf.Graph().as_default():
        impl = devices.tpu_mesh_impl(config, assignment)
    found = [tuple(assignment.coordinates(impl.l2p(position), 0)) for position in range(cores)]
    assert found == [torus.place(core, shape) for core in torus.order(config.mesh, shape)]


class Encoder:
    """What a predictor asks of an encoder."""

    n_vocab, eos_id = VOCAB, VOCAB - 1


def sampling_values(config, rows):
    rng = np.random.RandomState(0)
    return {"tokens": rng.randint(0, VOCAB - 1, [rows, config.n_ctx]), "lengths": [2, 0, 3, 1],
            "token": [5, 6, 7, 8], "position": [2, 0, 3, 1], "done": [0, 0, 0, 1],
            "number": [0, 1, 0, 0], "steps": 5, "count": 3, "top_k": 40, "seed": 11,
            "temperature": 0.8, "top_p": 0.9}


def test_sampling_as_one_program_equals_sampling_on_cpus():
    config = graphs.config(**MESH, **SMALL)
    with tf.Graph().as_default() as graph:
        given = predictor.feeds(config, 4)
        types = {name: x.dtype.as_numpy_dtype for name, x in given.items()}
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        tokens = tpu_predictor.new_tokens(config, Encoder, mesh, given)
        lowering = mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(config)}, autostack=False)
        out = lowering.export_to_tf_tensor(tokens)
        masters = {v.name: v.get_master() for v in mesh.graph.all_variables}
        values = {name: np.array(x, types[name])
                  for name, x in sampling_values(config, 4).items()}
        with tf.Session(config=devices.session_config(config)) as session:
            session.run(tf.global_variables_initializer())
            session.run(lowering.copy_masters_to_slices())
            wanted, weights = session.run(
                [out, masters], {given[name]: x for name, x in values.items()})
    assert (wanted[:3, 0] >= 0).all() and (wanted[3] == -1).all()

    pytest.importorskip("jaxlib", reason="jaxlib runs the program: requirements-compare.txt")
    with tf.Graph().as_default() as graph:
        given = predictor.feeds(config, 4)
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        tokens = tpu_predictor.new_tokens(config, Encoder, mesh, given)
        impl = devices.ahead_mesh_impl(config, SHAPE)
        lowering = mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)
        out = lowering.export_to_tf_tensor(tokens)
        fetches, nothing = {"new": out, "next": out + 1}, tf.no_op()
    program = ahead.program(graph, impl, given, fetches, nothing)
    arguments = {name: [x] * 4 for name, x in values.items()}
    for name, (variable, _) in impl.variables.items():
        arguments[name] = [ahead.slice_of(impl, variable, weights[name], core)
                           for core in range(4)]
    cores = virtual_cores.VirtualCores()
    try:
        [found], _ = cores.run(program, {name: arguments[name] for name in program.arguments
                                         if name in arguments}, 1)
    finally:
        cores.close()
    for core in found["new"]:
        np.testing.assert_array_equal(core, wanted)


def test_the_sampling_program_of_tpu_replicas_is_built():
    config = graphs.config(**MESH, **SMALL)
    sampler = object.__new__(tpu_predictor.TpuPredictor)
    sampler.config, sampler.encoder, sampler._rows = config, Encoder, 4
    sampler._assignment = tpu_systems.assignment(SHAPE)
    with tf.Graph().as_default() as graph:
        masters = sampler._build()
        slices = tf.get_collection("TPU_VAR")
        # The weights go to the cores' slices, which soft placement leaves on this machine.
        proto = tf.ConfigProto(allow_soft_placement=True)
        proto.graph_options.place_pruned_graph = True
        with tf.Session(config=proto) as session:
            session.run(tf.global_variables_initializer())
            session.run(sampler._start_op)
            whole, values = session.run([{v.op.name: v for v in masters}, slices])
    assert sampler._new_tokens.shape.as_list() == [4, predictor.CHUNK]
    np.testing.assert_array_equal(whole["gpt/wte"],
                                  joined(slices_of_wte(slices, values), config))
    assert "XlaCustomCallV2" not in {op.type for op in graph.get_operations()}


