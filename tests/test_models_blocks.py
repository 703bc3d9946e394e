"""models/blocks.py in all styles against torch, on meshes, recomputed and one token at a time."""

import functools
import math
import zlib

import graphs
import numpy as np
import pytest

from mesh import ops
from mesh.compat import mtf, tf
from models import gpt, layers

torch = pytest.importorskip("torch", reason="compares with torch")
functional = torch.nn.functional

TOKENS = np.random.RandomState(0).randint(0, 23, [4, 9]).astype(np.int32)
BATCH, SEQUENCE = graphs.dim("batch", 4), graphs.dim("sequence", 8)
CASES = {
    "swiglu": dict(norm="rms", mlp_glu=True, activation_function="silu", intermediate_size=24),
    "scale_geglu": dict(norm="scale", mlp_glu=True, position="none"),
    "scalenorm": dict(norm="centred_scale", activation_function="relu", macaron=True),
    "rezero": dict(rezero=True, macaron=True, position="axial", axial_dims=[2, 4]),
    "one_norm": dict(parallel_residual="one_norm", mlp_glu=True, activation_function="relu",
                     share_parameters=True, n_layer=2),
    "two_norms": dict(parallel_residual="two_norms", macaron=True, position="axial"),
}
# Between them, most of the parts.
MIXED = {
    "gated": dict(norm="rms", mlp_glu=True, macaron=True, parallel_residual="two_norms",
                  position="axial", axial_dims=[4, 2]),
    "shared": dict(norm="centred_scale", share_parameters=True, n_layer=2, position="rotary",
                   parallel_residual="one_norm", rotary_style="interleaved", rotary_base=100.0),
}


def config(**changes):
    keys = dict(n_layer=1, n_embd=16, n_head=2, n_ctx=8, n_vocab=23)
    return graphs.config(**{**keys, **changes})


def losses_and_gradients(cases, train=False, **changes):
    """A build: "<case>/logits", "<case>/loss" and "d_<variable>" of all cases in one graph."""
    def build(mesh):
        outputs, total = {}, 0.0
        for case, keys in cases.items():
            run = config(**{**keys, **changes})
            key = graphs.give(mesh, np.int32(3)) if train else None
            model, ctx = gpt.GPT(run, 23), layers.Context(mesh, run, key)
            tokens, targets = (graphs.give(mesh, t, BATCH, SEQUENCE)
                               for t in (TOKENS[:, :-1], TOKENS[:, 1:]))
            with tf.variable_scope(case):
                logits = model.logits(ctx, model.hidden(ctx, tokens))
            each, _ = ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)
            outputs.update({f"{case}/logits": logits, f"{case}/loss": mtf.reduce_mean(each)})
            total += outputs[f"{case}/loss"]
        variables = {v.name: v.value for v in mesh.graph.trainable_variables}
        return graphs.with_gradients({**outputs, "total": total}, variables, {
            "total": mtf.ones(mesh, [], tf.float32)})
    return build


@functools.cache
def random_weights(build):
    """{variable: numpy} of a size that makes every one of them matter, biases and gains too."""
    with tf.Graph().as_default():
        graph = mtf.Graph()
        build(mtf.Mesh(graph, "mesh"))
        shapes = {v.name: v.shape.to_integer_list for v in graph.all_variables}
    weights = {}
    for name, shape in shapes.items():
        value = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
        gain = name.endswith(("gain", "rezero"))
        weights[name] = np.asarray(0.3 * value + gain, np.float32)
    return weights


class Reference:
    """A GPT in torch, in the words of the papers.

    Args:
      config: a RunConfig.
      weights: {variable without "gpt/": torch tensor}.
    """

    def __init__(self, config, weights):
        self.config, self.weights = config, weights

    def logits(self, tokens):
        c, w = self.config, self.weights
        x = w["wte"][tokens]
        if c.position == "learned":
            x = x + w["wpe"]
        elif c.position == "axial":
            grid = w["axial_wpe_1"][:, None] + w["axial_wpe_2"][None]
            x = x + grid.reshape(-1, c.n_embd) / 2
        for layer in range(c.n_layer):
            x = self.block(x, "h" if c.share_parameters else f"h{layer}")
        final = "layer" if c.norm == "centred_scale" else c.norm
        return self.norm(x, "norm_f", final) @ w["wte"].T

    def block(self, x, scope):
        c = self.config
        half = 0.5 if c.macaron else 1.0
        if c.macaron:
            x = x + half * self.mlp(x, f"{scope}/mlp_macaron")

        def norm(x, name):
            return x if c.rezero else self.norm(x, f"{scope}/{name}", c.norm)

        def alpha(branch):
            return self.weights[f"{scope}/{branch}/rezero"] if c.rezero else 1.0

        attended = alpha("attn") * self.attention(norm(x, "norm_1"), scope)
        read = {"none": lambda: norm(x + attended, "norm_2"), "one_norm": lambda: norm(x, "norm_1"),
                "two_norms": lambda: norm(x, "norm_2")}[c.parallel_residual]()
        return x + attended + alpha("mlp") * half * self.mlp(read, f"{scope}/mlp")

    def norm(self, x, name, kind):
        gain, size, epsilon = self.weights[f"{name}/gain"], [x.shape[-1]], 1e-5
        if kind == "layer":
            return functional.layer_norm(x, size, gain, self.weights[f"{name}/bias"], epsilon)
        if kind == "rms":
            return functional.rms_norm(x, size, gain, epsilon)
        if kind == "centred_scale":
            return functional.layer_norm(x, size, eps=epsilon) * gain
        length = (x.square().sum(-1, keepdim=True) + size[0] * epsilon).sqrt()
        return gain * math.sqrt(size[0]) * x / length

    def attention(self, x, scope):
        w = self.weights
        packed = torch.einsum("bse,eqhd->qbhsd", x, w[f"{scope}/attn/qkv/kernel"])
        packed = packed + w[f"{scope}/attn/qkv/bias"][:, None, :, None]
        y = functional.scaled_dot_product_attention(*packed, is_causal=True)
        return (torch.einsum("bhsd,hde->bse", y, w[f"{scope}/attn/out/kernel"])
                + w[f"{scope}/attn/out/bias"])

    def mlp(self, x, scope):
        c, w = self.config, self.weights
        function = {"gelu": lambda x: functional.gelu(x, approximate="tanh"),
                    "silu": functional.silu, "relu": functional.relu}[c.activation_function]
        kernel, bias = w[f"{scope}/in/kernel"], w[f"{scope}/in/bias"]
        assert kernel.shape[-1] == (c.intermediate_size or 4 * c.n_embd)
        if c.mlp_glu:
            h = (x @ kernel[:, 0] + bias[0]) * function(x @ kernel[:, 1] + bias[1])
        else:
            h = function(x @ kernel + bias)
        return h @ w[f"{scope}/out/kernel"] + w[f"{scope}/out/bias"]


def test_every_style_equals_torch_gradients_too():
    build = losses_and_gradients(CASES)
    weights = random_weights(build)
    result = graphs.run(build, weights=weights)
    for case, keys in CASES.items():
        w = {name.removeprefix(f"{case}/gpt/"): torch.tensor(value, requires_grad=True)
             for name, value in weights.items() if name.startswith(f"{case}/")}
        logits = Reference(config(**keys), w).logits(torch.tensor(TOKENS[:, :-1].astype(np.int64)))
        loss = functional.cross_entropy(logits[..., :23].reshape(-1, 23),
                                        torch.tensor(TOKENS[:, 1:].astype(np.int64)).reshape(-1))
        loss.backward()
        assert logits.abs().max() > 1, "the comparison would prove little"
        np.testing.assert_allclose(result[f"{case}/logits"], logits.detach(), atol=2e-4, rtol=2e-5,
                                   err_msg=case)
        for name, weight in w.items():
            found, wanted = result[f"d_{case}/gpt/{name}"], weight.grad
            scale = max(1.0, wanted.abs().max().item())
            np.testing.assert_allclose(found / scale, wanted / scale, atol=5e-5,
                                       err_msg=f"{case}/{name}")
            assert wanted.abs().max() > 1e-5, f"{case}/{name}"


DROPOUT = dict(res_dropout=0.2, embed_dropout=0.1, attn_dropout=0.1)


@functools.cache
def one_device():
    build = losses_and_gradients(MIXED, train=True, **DROPOUT)
    return graphs.run(build, weights=random_weights(losses_and_gradients(MIXED)))


@pytest.mark.parametrize(("mesh_shape", "layout"), [
    ("x:2", "heads:x,vocab:x,intermediate_expanded:x"), ("x:2,y:2", "sequence:x,embd:y")])
def test_meshes_and_recomputation_change_nothing(mesh_shape, layout):
    build = losses_and_gradients(MIXED, train=True, recompute_grad=True, **DROPOUT)
    result = graphs.run(build, mesh_shape, layout, one_device().weights)
    rules = dict(item.split(":") for item in layout.split(","))
    for name, value in one_device().values.items():
        scale = max(1.0, abs(value).max())
        np.testing.assert_allclose(result[name] / scale, value / scale, atol=3e-5, err_msg=name)
    inner, outer = (2 if name in rules else 1 for name in ("intermediate_expanded", "embd"))
    for scope in ("mlp", "mlp_macaron"):
        assert result.weight_slices[f"gated/gpt/h0/{scope}/in/kernel"] == [
            16 // outer, 2, 64 // inner]
    assert result.weight_slices["gated/gpt/axial_wpe_1"] == [4, 16 // outer]
    assert result.weight_slices["shared/gpt/h/norm_1/gain"] == []


def test_dropout_differs_by_layer_where_weights_do_not():
    run = config(n_layer=2, share_parameters=True, macaron=True, **DROPOUT)
    sites = []

    def build(mesh):
        model, ctx = gpt.GPT(run, 23), layers.Context(mesh, run, graphs.give(mesh, np.int32(3)))
        return {"hidden": model.hidden(ctx, graphs.give(mesh, TOKENS[:, :8], BATCH, SEQUENCE))}

    original, layers.site_number = layers.site_number, lambda site: sites.append(site) or 1
    try:
        graphs.run(build)
    finally:
        layers.site_number = original
    residual = [site for site in sites if site.endswith("residual")]
    assert len(set(residual)) == len(residual) == 2 * 3


@pytest.mark.parametrize(("parallel", "norm"), [
    ("none", "norm_2"), ("one_norm", "norm_1"), ("two_norms", "norm_2")])
def test_a_block_without_attention_is_its_feed_forward_part(parallel, norm):
    run, x = config(parallel_residual=parallel), np.random.RandomState(0).randn(4, 8, 16)

    def build(mesh):
        model, ctx = gpt.GPT(run, 23), layers.Context(mesh, run)
        x_dims = [BATCH, SEQUENCE, model.embd]
        return {"y": model.blocks(ctx, graphs.give(mesh, x, *x_dims), 0, None)}

    weights = random_weights(build)
    assert {name.split("/")[1] for name in weights} == {norm, "mlp"}
    reference = Reference(run, {name: torch.tensor(w) for name, w in weights.items()})
    x = torch.tensor(x, dtype=torch.float32)
    expected = x + reference.mlp(reference.norm(x, f"h0/{norm}", "layer"), "h0/mlp")
    np.testing.assert_allclose(graphs.run(build, weights=weights)["y"], expected, atol=1e-4)


def test_bfloat16_is_near():
    weights = random_weights(losses_and_gradients(MIXED))
    small = {name: (w - 1) * 0.2 + 1 if name.endswith(("gain", "rezero")) else 0.4 * w
             for name, w in weights.items()}
    exact, rounded = (graphs.run(losses_and_gradients(MIXED, precision=precision), weights=small)
                      for precision in ("float32", "bfloat16"))
    for case in MIXED:
        assert rounded[f"{case}/logits"].dtype == tf.bfloat16.as_numpy_dtype
        np.testing.assert_allclose(rounded[f"{case}/loss"], exact[f"{case}/loss"], atol=3e-2)
    for name in ("gated/gpt/h0/mlp/in/kernel", "shared/gpt/h/mlp/in/kernel",
                 "gated/gpt/h0/mlp_macaron/out/kernel", "gated/gpt/axial_wpe_2"):
        a, b = (r[f"d_{name}"].astype(np.float32).ravel() for r in (exact, rounded))
        assert np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.98, name


@pytest.mark.parametrize(("mesh_shape", "layout"), [("x:2", "embd:x")])
def test_incremental_states_equal_full_ones(mesh_shape, layout):
    held = np.array([3, 1, 4, 2], np.int32)

    def build(mesh):
        outputs = {}
        for case, keys in MIXED.items():
            run = config(**keys)
            model, ctx = gpt.GPT(run, 23), layers.Context(mesh, run)
            with tf.variable_scope(case):
                outputs[f"{case}/full"] = model.hidden(
                    ctx, graphs.give(mesh, TOKENS[:, :8], BATCH, SEQUENCE))
            caches = model.empty_caches(ctx, BATCH, 8)
            at, new = np.zeros(4, np.int32), TOKENS[:, :4]
            for step in range(3):
                dims = [BATCH, graphs.dim("new_tokens", new.shape[1])]
                with tf.variable_scope(case, reuse=tf.AUTO_REUSE):
                    outputs[f"{case}/{step}"], caches = model.hidden_incremental(
                        ctx, graphs.give(mesh, new, *dims), graphs.give(mesh, at, BATCH), caches)
                at = held + np.int32(step)
                new = np.take_along_axis(TOKENS, at[:, None], 1)
        return outputs

    result = graphs.run(build, mesh_shape, layout, random_weights(losses_and_gradients(MIXED)))
    for case in MIXED:
        full = result[f"{case}/full"]
        for row, n in enumerate(held):
            np.testing.assert_allclose(result[f"{case}/0"][row, :n], full[row, :n], atol=1e-4)
            for step in range(2):
                np.testing.assert_allclose(result[f"{case}/{step + 1}"][row, 0],
                                           full[row, n + step], atol=1e-4, err_msg=case)


def test_initial_weights():
    """Rezero starts as the identity; what adds to the stream is scaled by depth."""
    changes = dict(n_embd=64, n_head=4, n_layer=4, initializer_range=0.8, scale_by_in=True,
                   scale_by_depth=True, macaron=True, mlp_glu=True, intermediate_size=256)
    cases = {"rezero": dict(rezero=True), "plain": {}}
    result = graphs.run(losses_and_gradients(cases, **changes))
    for layer in range(4):
        for name, wanted in [("mlp_macaron/in", .1), ("mlp_macaron/out", .025), ("mlp/in", .1),
                             ("mlp/out", .025), ("attn/out", .05)]:
            found = result.weights[f"plain/gpt/h{layer}/{name}/kernel"].std()
            assert found == pytest.approx(wanted, rel=0.1), name
        assert result.weights[f"rezero/gpt/h{layer}/mlp/rezero"] == 0
    assert not any("/norm_1" in name or "/norm_2" in name for name in result.weights
                   if name.startswith("rezero"))
