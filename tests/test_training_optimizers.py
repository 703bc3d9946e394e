"""Optimizers against torch's and transformers', on one device and on a mesh of two."""

import types

import graphs
import numpy as np
import pytest

from configs.errors import UserError
from mesh.compat import mtf, tf
from models import gpt, layers
from training import optimizers, updates

MESHES = [("x:1", ""), ("x:2", "rows:x"), ("x:2,y:2", "rows:x;columns:y")]
ROWS, COLUMNS, HEADS = (mtf.Dimension(n, s) for n, s in
                        (("rows", 6), ("columns", 10), ("heads", 2)))
SHAPES = {"kernel": [ROWS, COLUMNS], "heads": [HEADS, ROWS, COLUMNS], "bias": [COLUMNS],
          "gain": [ROWS]}
STEPS = 20


def values(seed, scale=1.0):
    """Random float32 arrays, one for each of SHAPES."""
    random = np.random.RandomState(seed)
    return {name: (scale * random.randn(*[d.size for d in dims])).astype(np.float32)
            for name, dims in SHAPES.items()}


# Sizes over four orders of magnitude, and gradients that vanish for a while, as an embedding's do.
GRADS = [values(100 + t, 10.0 ** (t % 5 - 3) * (t % 7 != 3)) for t in range(STEPS)]
RATES = [1e-3 * (t + 1) for t in range(STEPS)]


class Run:
    """Variables with given gradients on a mesh, in a session."""

    def __init__(self, mesh_shape, layout, build, activation_dtype=tf.float32, autostack=False):
        """`build(grads, variables, rate, step)` returns (mtf operations, {name: mtf.Tensor})."""
        mesh_shape = mtf.convert_to_shape(mesh_shape)
        self.names = list(SHAPES)
        with tf.Graph().as_default():
            graph = mtf.Graph()
            mesh = mtf.Mesh(graph, "mesh")
            dtype = mtf.VariableDType(tf.float32, tf.float32, activation_dtype)
            self.feeds = {n: tf.placeholder(tf.float32, [d.size for d in dims])
                          for n, dims in SHAPES.items()}
            self.rate = tf.placeholder(tf.float32, [])
            self.step = tf.placeholder(tf.int64, [])
            grads = [mtf.import_tf_tensor(mesh, self.feeds[n], mtf.Shape(SHAPES[n]))
                     for n in self.names]
            grads = [mtf.cast(g, activation_dtype) for g in grads]
            start = values(1)
            variables = [
                mtf.get_variable(mesh, n, mtf.Shape(SHAPES[n]), dtype=dtype,
                                 initializer=tf.constant_initializer(start[n])).operation
                for n in self.names]
            operations, fetches = build(grads, variables, self.rate, self.step)
            impl = mtf.placement_mesh_impl.PlacementMeshImpl(
                mesh_shape, mtf.convert_to_layout_rules(layout),
                [f"cpu:{i}" for i in range(mesh_shape.size)] if mesh_shape.size > 1 else [""])
            self.lowering = lowering = mtf.Lowering(graph, {mesh: impl}, autostack=autostack)
            self.slice_shapes = {
                v.name: lowering.variables[v].laid_out_tensor.all_slices[0].shape.as_list()
                for v in graph.all_variables}
            self.update = tf.group([lowering.lowered_operation(op) for op in operations])
            self.fetches = {n: lowering.export_to_tf_tensor(t) for n, t in fetches.items()}
            self.to_masters = lowering.copy_slices_to_masters()
            self.masters = {v.name: v.get_master() for v in graph.all_variables}
            self.session = tf.Session(config=tf.ConfigProto(device_count={"CPU": 8}))
            self.session.run(tf.global_variables_initializer())
            self.session.run(lowering.copy_masters_to_slices())

    def train(self, grads=GRADS, rates=RATES):
        """Steps with the given gradients and rates; returns all variables."""
        for t, (grad, rate) in enumerate(zip(grads, rates, strict=True)):
            self.session.run(self.update, self.feed(grad, rate, t + 1))
        self.session.run(self.to_masters)
        return self.session.run(self.masters)

    def feed(self, grad, rate=1.0, step=1):
        """The feed dict of one step."""
        return {**{self.feeds[n]: grad[n] for n in self.names}, self.rate: rate, self.step: step}


def adamw(**settings):
    """A build function for Run."""
    def build(grads, variables, rate, step):
        return optimizers.AdamW(rate, step, **settings).apply_grads(grads, variables), {}
    return build


def adafactor(**settings):
    """A build function for Run."""
    def build(grads, variables, rate, step):
        return optimizers.Adafactor(rate, step, **settings).apply_grads(grads, variables), {}
    return build


def sgd(**settings):
    """A build function for Run."""
    def build(grads, variables, rate, step):
        return optimizers.Sgd(rate, **settings).apply_grads(grads, variables), {}
    return build


def lion(**settings):
    """A build function for Run."""
    def build(grads, variables, rate, step):
        return optimizers.Lion(rate, **settings).apply_grads(grads, variables), {}
    return build


def reference(make, weight_decay, grads=GRADS, rates=RATES):
    """The weights after torch's steps; decay for rank ≥ 2 only.

    Args:
      make: function (torch parameter groups) → torch optimizer.
    """
    torch = pytest.importorskip("torch", reason="the reference optimizers are torch's")
    weights = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in values(1).items()}
    steps = make([
        {"params": [w for w in weights.values() if w.dim() >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights.values() if w.dim() < 2], "weight_decay": 0.0}])
    for grad, rate in zip(grads, rates, strict=True):
        for group in steps.param_groups:
            group["lr"] = rate
        for name, weight in weights.items():
            weight.grad = torch.tensor(grad[name])
        steps.step()
    return {n: w.detach().numpy() for n, w in weights.items()}


def assert_close(ours, theirs, tolerance):
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_torchs(mesh_shape, layout, weight_decay):
    torch = pytest.importorskip("torch", reason="the reference is torch.optim.AdamW")
    settings = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": weight_decay}
    ours = Run(mesh_shape, layout, adamw(**settings)).train()
    theirs = reference(
        lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8), weight_decay)
    assert_close(ours, theirs, 1e-6)
    assert np.abs(theirs["bias"] - values(1)["bias"]).max() > 0.01


def test_adamw_with_a_long_memory_and_a_large_epsilon_is_torchs():
    # 1 - 0.999 in float32 is off by 5e-5 of itself: the correction must be off likewise.
    torch = pytest.importorskip("torch", reason="the reference is torch.optim.AdamW")
    ours = Run(*MESHES[0], adamw(beta1=0.9, beta2=0.999, epsilon=1e-2)).train()
    theirs = reference(
        lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-2), 0.0)
    assert_close(ours, theirs, 1e-6)


def test_adams_first_step_is_the_rate():
    # w=1 and lr=.1 give 0.9 (not 0.955, as without bias correction), whatever the gradient's size.
    run = Run(*MESHES[0], adamw(epsilon=0.0))
    grad = {n: np.full_like(v, 1e-3) for n, v in values(1).items()}
    after = run.train([grad], [0.1])
    np.testing.assert_allclose(after["bias"], values(1)["bias"] - 0.1, atol=1e-6)


def test_slots_are_float32_and_split_as_their_variables():
    for build, slots in ((sgd(), ["sgd_m"]), (lion(), ["lion_m"]), (adamw(), ["adam_m", "adam_v"]),
                         (adafactor(factored=False), ["ada_v"]), (adafactor(beta1=0.9), ["ada_m"])):
        run = Run("x:2,y:2", "rows:x;columns:y", build, tf.bfloat16)
        assert run.slice_shapes["heads"] == [2, 3, 5]
        for slot in slots:
            assert run.slice_shapes[f"heads/{slot}"] == [2, 3, 5]
            assert run.slice_shapes[f"bias/{slot}"] == [5]
        assert {v.dtype for v in run.masters.values()} == {tf.float32}
    assert run.slice_shapes["heads/ada_row"] == [2, 3]
    assert run.slice_shapes["heads/ada_col"] == [2, 5]


@pytest.mark.parametrize("build", [adamw(), adafactor(), sgd(momentum=0.0), lion()])
def test_bfloat16_activations_leave_master_weights_unrounded(build):
    # Steps of 1e-4 on weights near 1 vanish where w is read as bfloat16 (spacing 2^-8). Ten float32
    # roundings of weights under 4 add up to 2.4e-6 at most.
    run = Run(*MESHES[1], build, tf.bfloat16)
    grad = {n: np.ones_like(v) for n, v in values(1).items()}
    after = run.train([grad] * 10, [1e-4] * 10)
    np.testing.assert_allclose(after["kernel"] - values(1)["kernel"], -1e-3, atol=2.4e-6)


def test_biases_of_a_gpt_do_not_decay():
    """Nor those that are packed: of queries, keys and values, and of gates."""
    config = graphs.config(mlp_glu=True)

    def build(mesh):
        dims = graphs.dim("batch", 2), graphs.dim("sequence", 4)
        gpt.GPT(config, 61).hidden(layers.Context(mesh, config),
                                   graphs.give(mesh, np.zeros([2, 4], np.int32), *dims))
        optimizer = updates.Optimizer(tf.constant(0.1), 0.5)
        decays.update({v.name: optimizer.decay_factor(v) is not None
                       for v in mesh.graph.trainable_variables})
        return {"x": mtf.zeros(mesh, mtf.Shape([]))}

    decays = {}
    graphs.run(build)
    kept = {name for name, decayed in decays.items() if not decayed}
    assert {"gpt/h0/attn/qkv/bias", "gpt/h0/mlp/in/bias"} <= kept
    assert kept == {name for name in decays if name.endswith(("/bias", "/gain"))}


@pytest.mark.parametrize("build", [
    make(weight_decay=0.5) for make in (adamw, adafactor, sgd, lion)])
def test_decay_is_for_rank_two_and_more(build):
    zeros = {n: np.zeros_like(v) for n, v in values(1).items()}
    after = Run(*MESHES[1], build).train([zeros], [0.1])
    for name, before in values(1).items():
        factor = 0.95 if before.ndim >= 2 else 1.0
        np.testing.assert_allclose(after[name], before * factor, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
@pytest.mark.parametrize(("beta1", "weight_decay", "scaled"),
                         [(0.0, 0.0, False), (0.9, 0.1, False), (0.0, 0.0, True)])
def test_adafactor_is_transformers(mesh_shape, layout, beta1, weight_decay, scaled):
    transformers = pytest.importorskip("transformers", reason="the reference is its Adafactor")
    ours = Run(mesh_shape, layout, adafactor(
        beta1=beta1, weight_decay=weight_decay, epsilon2=1e-3 if scaled else 0.0)).train()
    theirs = reference(
        lambda groups: transformers.optimization.Adafactor(
            groups, lr=1.0, beta1=beta1 or None, relative_step=False, scale_parameter=scaled),
        weight_decay)
    assert_close(ours, theirs, 1e-5)
    assert np.abs(theirs["heads"] - values(1)["heads"]).max() > 0.01


def adafactors_moments(decay, factored):
    """Adafactor without clipping as in the paper's algorithms, by numpy in float64.

    Args:
      decay: from the step, 1 at first, to the share of the old moment.
      factored: whether matrices are.
    """
    weights, moments = {n: v.astype(np.float64) for n, v in values(1).items()}, {}
    for t, (grad, rate) in enumerate(zip(GRADS, RATES, strict=True)):
        for name, weight in weights.items():
            square = grad[name].astype(np.float64) ** 2 + 1e-30
            axes = (-1, -2) if factored and weight.ndim >= 2 else ()
            new = [square.mean(axis, keepdims=True) for axis in axes] or [square]
            old = moments.get(name, [0.0] * len(new))
            share = decay(t + 1)
            kept = moments[name] = [share * o + (1 - share) * n
                                    for o, n in zip(old, new, strict=True)]
            v = kept[0] * kept[1] / kept[0].mean(-2, keepdims=True) if axes else kept[0]
            change = grad[name] / np.sqrt(v)
            weight -= rate * change / max(1.0, np.sqrt(np.mean(change ** 2)))
    return weights


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES[::2])
@pytest.mark.parametrize(("settings", "decay"), [
    # T5's and ConnorJL's formula for "adam": β(1 - β^(t-1)) / (1 - β^t).
    ({"decay_type": "adam", "beta2": 0.9}, lambda t: 0.9 * (1 - 0.9 ** (t - 1)) / (1 - 0.9 ** t)),
    ({"decay_exponent": 0.5}, lambda t: 1 - t ** -0.5),
    ({"factored": False}, lambda t: 1 - t ** -0.8)])
def test_adafactors_decays(mesh_shape, layout, settings, decay):
    ours = Run(mesh_shape, layout, adafactor(**settings)).train()
    theirs = adafactors_moments(decay, settings.get("factored", True))
    assert_close(ours, theirs, 1e-5)
    assert ("kernel/ada_row" in ours) == settings.get("factored", True)


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs(mesh_shape, layout, momentum, nesterov):
    torch = pytest.importorskip("torch", reason="the reference is torch.optim.SGD")
    ours = Run(mesh_shape, layout, sgd(momentum=momentum, nesterov=nesterov)).train()
    theirs = reference(lambda groups: torch.optim.SGD(
        groups, lr=1.0, momentum=momentum, nesterov=nesterov), 0.0)
    assert_close(ours, theirs, 1e-5)
    assert ("bias/sgd_m" in ours) == bool(momentum)
    assert np.abs(theirs["bias"] - values(1)["bias"]).max() > 0.01


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES[::2])
def test_lion_is_the_papers(mesh_shape, layout):
    ours = Run(mesh_shape, layout, lion(beta1=0.9, beta2=0.98, weight_decay=0.1)).train()
    theirs = {n: v.astype(np.float64) for n, v in values(1).items()}
    means = dict.fromkeys(theirs, 0.0)
    for grad, rate in zip(GRADS, RATES, strict=True):
        for name, weight in theirs.items():
            update = np.sign(0.9 * means[name] + 0.1 * grad[name])
            if weight.ndim >= 2:
                update = update + 0.1 * weight
            weight -= rate * update
            means[name] = 0.98 * means[name] + 0.02 * grad[name]
    assert_close(ours, theirs, 1e-5)


def test_adafactor_obeys_the_schedule():
    runs = [Run(*MESHES[0], adafactor()).train(GRADS[:1], [rate]) for rate in (0.0, 1e-5, 1e-2)]
    moved = [np.abs(run["kernel"] - values(1)["kernel"]).max() for run in runs]
    assert moved[0] == 0.0
    assert 0.0 < moved[1] < 1e-4 < moved[2]


def clipped(max_norm):
    """A build function for Run that fetches clipped gradients and their former norm."""
    def build(grads, variables, rate, step):
        scaled, norm = optimizers.clip_by_global_norm(grads, max_norm)
        names = [f"{v.name}" for v in variables]
        return [], {"norm": norm, **dict(zip(names, scaled, strict=True))}
    return build


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_clipping_is_torchs(mesh_shape, layout, scale):
    torch = pytest.importorskip("torch", reason="the reference is torch.nn.utils.clip_grad_norm_")
    grad = values(7, scale)
    run = Run(mesh_shape, layout, clipped(1.0))
    ours = run.session.run(run.fetches, run.feed(grad))
    weights = {n: torch.nn.Parameter(torch.zeros(v.shape)) for n, v in grad.items()}
    for name, weight in weights.items():
        weight.grad = torch.tensor(grad[name])
    norm = torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
    np.testing.assert_allclose(ours["norm"], norm.item(), rtol=1e-6)
    assert_close(ours, {n: w.grad.numpy() for n, w in weights.items()}, 1e-6)


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_no_clipping_still_measures(off):
    grad = values(7)
    run = Run(*MESHES[1], clipped(off))
    ours = run.session.run(run.fetches, run.feed(grad))
    expected = np.sqrt(sum(np.square(v, dtype=np.float64).sum() for v in grad.values()))
    np.testing.assert_allclose(ours.pop("norm"), expected, rtol=1e-6)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, grad[name])


def config(**settings):
    """Optimizer settings as a run config has them."""
    return types.SimpleNamespace(**{
        "opt_name": "adamw", "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1,
        "ada_epsilon1": 1e-30, "ada_epsilon2": 0.0, "decay_type": "pow", "decay_exponent": 0.8,
        "factored": True, "momentum": 0.9, "nesterov": False, **settings})


def configured(**settings):
    """A build function for Run: the optimizer that a run config names."""
    def build(grads, variables, rate, step):
        made = optimizers.optimizer(config(**settings), rate, step)
        return made.apply_grads(grads, variables), {}
    return build


@pytest.mark.parametrize(("settings", "direct"), [
    ({"opt_name": "adamw"}, adamw(beta2=0.95, weight_decay=0.1)),
    ({"opt_name": "adam"}, adamw(beta2=0.95, weight_decay=0.1)),
    ({"opt_name": "adafactor"}, adafactor(beta1=0.9, weight_decay=0.1)),
    ({"opt_name": "adafactor", "decay_type": "adam", "factored": False},
     adafactor(beta1=0.9, beta2=0.95, weight_decay=0.1, decay_type="adam", factored=False)),
    ({"opt_name": "sgd", "momentum": 0.5, "nesterov": True},
     sgd(momentum=0.5, nesterov=True, weight_decay=0.1)),
    ({"opt_name": "lion"}, lion(beta2=0.95, weight_decay=0.1))])
def test_a_run_config_sets_the_optimizer(settings, direct):
    ours = Run(*MESHES[0], configured(**settings)).train()
    expected = Run(*MESHES[0], direct).train()
    assert set(ours) == set(expected)
    assert_close(ours, expected, 0.0)


def test_an_unknown_optimizer_is_an_error():
    with pytest.raises(UserError, match=r"opt_name: 'adafctor'.*did you mean 'adafactor'"):
        optimizers.optimizer(config(opt_name="adafctor"), 0.1, 1)


def test_a_variable_without_a_gradient_is_named():
    def build(grads, variables, rate, step):
        return optimizers.AdamW(rate, step).apply_grads([None, *grads[1:]], variables), {}
    with pytest.raises(ValueError, match="kernel: the loss does not depend on it"):
        Run(*MESHES[0], build)


def test_stacked_variables_are_refused():
    with pytest.raises(ValueError, match="kernel/adam_m.*autostack=False"):
        Run(*MESHES[1], adamw(), autostack=True)


def test_an_update_is_a_few_operations():
    # The reason for SliceUpdate: on a CPU each TensorFlow operation costs some microseconds.
    run = Run(*MESHES[0], adamw(weight_decay=0.1))
    with run.session.graph.as_default():
        names = [op.type for op in run.session.graph.get_operations() if "adamw" in op.name]
    assert names.count("ResourceApplyAdam") == len(SHAPES)
    assert len([n for n in names if n not in ("Const", "NoOp")]) <= 4 * len(SHAPES)


def test_initial_values_are_no_constants():
    """Constants stay in memory for as long as the session, beside the variables."""
    big = [mtf.Dimension("big", 64), mtf.Dimension("wide", 128)]
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    with tf.Graph().as_default(), tf.Session() as session:
        ctx = layers.Context(mesh, graphs.config())
        for name in ("one", "other"):
            variable = ctx.variable(name, big, layers.normal(0.02)).operation
            updates.slot(variable, "adam_m"), updates.slot(variable, "adam_v")
        nodes = graphs.executed(session, tf.global_variables_initializer())
        constants = [n.attr["value"].tensor for n in nodes if n.op == "Const"]
        assert constants and all(np.prod([d.size for d in t.tensor_shape.dim] or [1]) < 64
                                 for t in constants)
        one, *slots = session.run([v for v in tf.global_variables() if "one" in v.name])
    assert abs(one.std() - 0.02) < 1e-3 and not np.any(slots) and len(slots) == 2
