"""models/moe.py against transformers' Mixtral and Switch, on meshes and in decoding."""

import functools

import graphs
import numpy as np
import pytest

from mesh.compat import mtf, tf
from models import gpt, layers, losses, moe
from training import step

EMBD, HIDDEN, EXPERTS, ROWS, LENGTH = 8, 12, 4, 4, 8
TOKENS = np.random.RandomState(0).randint(0, 61, [ROWS, LENGTH + 1]).astype(np.int32)
X = np.random.RandomState(1).randn(ROWS, LENGTH, EMBD).astype(np.float32)
BATCH, SEQUENCE = graphs.dim("batch", ROWS), graphs.dim("sequence", LENGTH)
# (mesh, layout, the shape of a slice of the weights of the experts' first kernel)
MESHES = [
    ("x:2", "batch:x,experts:x", [2, 8, 12]),
    ("x:2", "batch:x", [4, 8, 12]),
    ("x:2,y:2", "batch:x,experts:y,heads:y,vocab:y,intermediate_expanded:y", [2, 8, 12]),
    ("x:2,y:2", "batch:x,experts:x,expert_hidden:y", [2, 8, 6]),
    ("x:2,y:2", "batch:x,experts:x,embd:y", [2, 4, 12]),
    ("x:2,y:2", "sequence:x,experts:x,expert_hidden:y", [2, 8, 6])]


def config(mesh_shape="", layout="", moe_activation="relu", precision="float32",
           recompute_grad=False, **params):
    """A small GPT whose layer has experts."""
    params = {"num_experts": EXPERTS, "hidden_size": HIDDEN, "min_expert_capacity": 1, **params}
    return graphs.config(n_layer=1, n_embd=EMBD, n_head=2, n_ctx=LENGTH,
                         train_batch_size=ROWS, moe_layers=[0], moe_params=params,
                         mesh_shape=mesh_shape, layout=layout, moe_activation=moe_activation,
                         precision=precision, recompute_grad=recompute_grad)


def block(run, weights):
    """The experts' output for X, the gradient of a weighted sum of it, and the weights'."""
    def build(mesh):
        ctx = layers.Context(mesh, run)
        embd = graphs.dim("embd", EMBD)
        x = graphs.give(mesh, X, BATCH, SEQUENCE, embd)
        y = moe.of(run, embd)(ctx, x, 0)
        assert y.shape == x.shape and not ctx.terms
        variables = {v.name: v.value for v in mesh.graph.trainable_variables}
        return graphs.with_gradients({"y": y}, {"x": x, **variables}, {
            "y": graphs.give(mesh, np.cos(X), BATCH, SEQUENCE, embd)})

    return graphs.run(build, run.mesh_shape, run.layout, weights)


def assert_equals_torch(run, module, names):
    """Compares outputs and gradients: `names` says, by our name, which tensors of the module."""
    torch = pytest.importorskip("torch", reason="compares with transformers")
    x = torch.tensor(X, requires_grad=True)
    y = module(x)
    (y * torch.tensor(np.cos(X))).sum().backward()
    weights = {name: of(lambda p: p.detach().numpy()) for name, of in names.items()}
    result = block(run, weights)
    assert set(result.weights) == set(weights)
    np.testing.assert_allclose(result["y"], y.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(result["d_x"], x.grad.numpy(), atol=1e-5)
    for name, of in names.items():
        gradient = of(lambda p: p.grad.numpy() if p.grad is not None else np.zeros(p.shape))
        np.testing.assert_allclose(result[f"d_{name}"], gradient, atol=1e-5, err_msg=name)
        assert abs(gradient).max() > 1e-4, name


def random_weights(torch, module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module.eval()


@pytest.mark.parametrize(("mesh_shape", "layout"), [("", ""), MESHES[3][:2]])
def test_two_experts_are_mixtrals(mesh_shape, layout):
    torch = pytest.importorskip("torch", reason="compares with transformers")
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    transformers = pytest.importorskip("transformers")
    module = random_weights(torch, mixtral.MixtralSparseMoeBlock(transformers.MixtralConfig(
        hidden_size=EMBD, intermediate_size=HIDDEN, num_local_experts=EXPERTS,
        num_experts_per_tok=2, hidden_act="silu")))
    both = module.experts.gate_up_proj
    names = {"moe/router/kernel": lambda of: of(module.gate.weight).T,
             "moe/in/kernel": lambda of: of(both)[:, :HIDDEN].transpose(0, 2, 1),
             "moe/up/kernel": lambda of: of(both)[:, HIDDEN:].transpose(0, 2, 1),
             "moe/out/kernel": lambda of: of(module.experts.down_proj).transpose(0, 2, 1)}
    assert_equals_torch(config(mesh_shape, layout, "silu", glu=True, capacity_factor_eval=EXPERTS),
                        module, names)


@pytest.mark.parametrize("factor", [EXPERTS, 1.0])
def test_one_expert_is_switchs(factor):
    """With room for all, and where what comes too late goes without an expert."""
    torch = pytest.importorskip("torch", reason="compares with transformers")
    switch = pytest.importorskip(
        "transformers.models.switch_transformers.modeling_switch_transformers")
    transformers = pytest.importorskip("transformers")
    capacity = int(LENGTH * factor / EXPERTS)
    module = random_weights(torch, switch.SwitchTransformersSparseMLP(
        transformers.SwitchTransformersConfig(
            d_model=EMBD, d_ff=HIDDEN, num_experts=EXPERTS, expert_capacity=capacity,
            dense_act_fn="relu")))

    def stacked(part):
        return lambda of: np.stack([
            of(getattr(module.experts[f"expert_{i}"], part).weight).T for i in range(EXPERTS)])

    names = {"moe/router/kernel": lambda of: of(module.router.classifier.weight).T,
             "moe/in/kernel": stacked("wi"), "moe/out/kernel": stacked("wo")}
    assert_equals_torch(config(gating="switch", capacity_factor_eval=factor), module, names)


@functools.cache
def trained(num_microbatches=1, **changes):
    """A step's loss, its terms and the gradients, with dropout, jitter and random choices."""
    run = config(**{**dict(dropout_rate=0.2, switch_jitter=0.3, z_loss=0.1, loss_coef=0.5,
                           capacity_factor_train=1.0, group_size=4), **changes})

    def loss_fn(features, key):
        ctx, model = layers.Context(key.mesh, run, key), gpt.GPT(run, 61)
        hidden = model.hidden(ctx, features["tokens"])
        loss = losses.language_model(model, ctx, hidden, features["targets"], features["mask"])
        terms = {name: term.total for name, term in ctx.terms.items()}
        assert {name: (t.count, t.weight) for name, t in ctx.terms.items()} == {
            "moe_balance": ("tokens", 0.5), "moe_z": ("tokens", 0.1)}
        for term in ctx.terms.values():
            loss += term.total * term.weight
        return {"loss": loss / TOKENS[:, 1:].size, **terms}

    def build(mesh):
        features = {name: graphs.give(mesh, x, BATCH, SEQUENCE) for name, x in (
            ("tokens", TOKENS[:, :-1]), ("targets", TOKENS[:, 1:]),
            ("mask", np.ones([ROWS, LENGTH], np.float32)))}
        values, grads = step.losses_and_gradients(
            features, loss_fn, graphs.give(mesh, np.int32(7)), num_microbatches)
        names = [v.name for v in mesh.graph.trainable_variables]
        return {**values, **{f"d_{n}": g for n, g in zip(names, grads, strict=True)}}

    return graphs.run(build, run.mesh_shape, run.layout, weights())


@functools.cache
def weights():
    """Random weights, larger than initial ones, so that everything matters."""
    def build(mesh):
        run = config()
        model, ctx = gpt.GPT(run, 61), layers.Context(mesh, run)
        return {"x": model.hidden(ctx, graphs.give(mesh, TOKENS[:, :-1], BATCH, SEQUENCE))}

    random = np.random.RandomState(3)
    return {name: (w + 0.4 * random.randn(*w.shape)).astype(np.float32)
            for name, w in sorted(graphs.run(build).weights.items())}


def assert_equal(a, b, tolerance=1e-5):
    assert set(a.values) == set(b.values)
    for name, value in a.values.items():
        np.testing.assert_allclose(b[name], value, atol=tolerance * max(1, abs(value).max()),
                                   err_msg=name)


@pytest.mark.parametrize(("mesh_shape", "layout", "slice_shape", "gating"), [
    (*mesh, "top_2") for mesh in MESHES] + [(*MESHES[3], "top_1")])
def test_meshes_train_as_one_device_does(mesh_shape, layout, slice_shape, gating):
    one = trained(gating=gating)
    many = trained(gating=gating, mesh_shape=mesh_shape, layout=layout)
    assert_equal(one, many)
    assert many.weight_slices["gpt/h0/moe/in/kernel"] == slice_shape
    assert one["moe_balance"] > ROWS * LENGTH and one["moe_z"] > 1
    for name in ("router", "in", "out"):
        assert abs(one[f"d_gpt/h0/moe/{name}/kernel"]).max() > 1e-3


def test_where_batch_and_experts_share_an_axis_tokens_travel():
    # Half of the tokens on each device for half of the experts: all-to-all, and no gathering.
    run = trained(gating="top_2", mesh_shape="x:2", layout="batch:x,experts:x")
    shapes = {tuple(y.shape.as_list()) for op in run.operations if "moe" in op.name
              for y in op.outputs if y.shape.rank == 5}
    assert (EXPERTS // 2, ROWS, 2, 1, EMBD) in shapes
    assert (EXPERTS, ROWS, 2, 1, EMBD) not in shapes


@pytest.mark.parametrize("changes", [
    {"recompute_grad": True}, {"recompute_grad": True, "mesh_shape": "x:2,y:2",
                               "layout": "batch:x,experts:x,expert_hidden:y"}])
def test_recomputed_blocks_keep_their_loss_terms(changes):
    assert_equal(trained(gating="top_2"), trained(gating="top_2", **changes))


def test_terms_of_several_layers_add_up():
    def build(mesh):
        ctx = layers.Context(mesh, config())
        x = graphs.give(mesh, X, BATCH, SEQUENCE, graphs.dim("embd", EMBD))

        def fn(x):
            ctx.add_term("squares", mtf.reduce_sum(x * x), "tokens", 0.5)
            return x

        fn(x)
        y = layers.recomputed(ctx, fn, 2.0 * x)
        assert list(ctx.terms) == ["squares"]
        total = ctx.terms["squares"].total
        return graphs.with_gradients({"y": y, "total": total}, {"x": x}, {
            "total": mtf.constant(mesh, 1.0), "y": mtf.zeros(mesh, y.shape)})

    result = graphs.run(build)
    np.testing.assert_allclose(result["total"], 5 * (X ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(result["d_x"], 10 * X, rtol=1e-5)


# Without randomness, which is another for each microbatch.
CALM = dict(gating="top_2", second_policy_train="all", dropout_rate=0.0, switch_jitter=0.0)


@pytest.mark.parametrize("changes", [
    {}, {"recompute_grad": True}, {"mesh_shape": "x:2", "layout": "batch:x,experts:x"}])
def test_microbatches_add_up(changes):
    assert_equal(trained(**CALM), trained(num_microbatches=2, **CALM, **changes))


def test_jitter_and_random_choices_are_of_training_alone():
    def hidden(train, **params):
        def build(mesh):
            run = config(capacity_factor_train=2.0, capacity_factor_eval=2.0, **params)
            ctx = layers.Context(mesh, run, graphs.give(mesh, np.int32(1)) if train else None)
            return {"x": gpt.GPT(run, 61).hidden(
                ctx, graphs.give(mesh, TOKENS[:, :-1], BATCH, SEQUENCE))}
        return graphs.run(build, weights=weights())["x"]

    for noisy, calm in (({"gating": "top_1", "switch_jitter": 0.5},
                         {"gating": "top_1", "switch_jitter": 0.0}),
                        ({"second_threshold_train": 1.0}, {"second_policy_train": "all"})):
        assert abs(hidden(True, **noisy) - hidden(True, **calm)).max() > 0.01
        np.testing.assert_array_equal(hidden(False, **noisy), hidden(True, **calm))


@pytest.mark.parametrize(("mesh_shape", "layout"), [
    ("", ""), ("x:2", "batch:x,experts:x"), ("x:2,y:2", "batch:x,experts:y,heads:y")])
def test_decoding_drops_nothing(mesh_shape, layout):
    """A block of tokens and then one by one, where evaluation would drop most of them."""
    roomy = config(mesh_shape, layout, capacity_factor_eval=EXPERTS)
    tight = config(mesh_shape, layout, capacity_factor_eval=0.1)

    def build(mesh):
        tokens = graphs.give(mesh, TOKENS[:, :-1], BATCH, SEQUENCE)
        ctx, model = layers.Context(mesh, tight), gpt.GPT(tight, 61)
        outputs = {"full": gpt.GPT(roomy, 61).hidden(layers.Context(mesh, roomy), tokens),
                   "dropped": model.hidden(ctx, tokens),
                   "dropless": model.hidden(layers.Context(mesh, tight, dropless=True), tokens)}
        caches = model.empty_caches(ctx, BATCH, LENGTH)
        for first, end in [(0, 6), (6, 7), (7, 8)]:
            new = graphs.dim("new_tokens", end - first)
            index = graphs.give(mesh, np.full([ROWS], first, np.int32), BATCH)
            outputs[f"from {first}"], caches = model.hidden_incremental(
                ctx, graphs.give(mesh, TOKENS[:, first:end], BATCH, new), index, caches)
        return outputs

    result = graphs.run(build, mesh_shape, layout, weights())
    parts = np.concatenate([result[f"from {first}"] for first in (0, 6, 7)], 1)
    np.testing.assert_allclose(parts, result["full"], atol=1e-5)
    np.testing.assert_allclose(result["dropless"], result["full"], atol=1e-5)
    assert abs(result["dropped"] - result["full"]).max() > 0.1


def test_bfloat16_models_route_in_float32():
    exact, rounded = trained(**CALM), trained(precision="bfloat16", **CALM)
    np.testing.assert_allclose(rounded["moe_z"], exact["moe_z"], rtol=0.02)
    np.testing.assert_allclose(rounded["loss"], exact["loss"], rtol=0.05)
    assert rounded["moe_z"].dtype == np.float32
    assert all(op.outputs[0].dtype == tf.float32 for op in rounded.operations
               if "/route/" in op.name and op.type == "Softmax")


@pytest.mark.parametrize(("length", "most", "expected"), [
    (2048, 1024, 1024), (16, 1024, 16), (12, 8, 6), (7, 3, 1), (1, 1024, 1)])
def test_groups_divide_the_sequence(length, most, expected):
    assert moe._group(length, most) == expected
