"""Attention to the whole sequence, against torch's own, and a GPT that is not causal."""

import graphs
import numpy as np
import pytest

from models import attention, gpt, layers

torch = pytest.importorskip("torch", reason="compares with torch")


@pytest.mark.parametrize(("length", "mesh_shape", "layout"), [
    (7, "", ""), (300, "", ""), (300, "x:2", "sequence:x"), (12, "x:2", "memory_length:x"),
    (12, "x:2,y:2", "batch:x,heads:y")])
def test_attention_equals_torch(length, mesh_shape, layout):
    random = np.random.RandomState(0)
    x = random.randn(2, length, 3, 2, 8).astype(np.float32)
    dy = random.randn(2, length, 2, 8).astype(np.float32)
    dims = [graphs.dim(*d) for d in [("batch", 2), ("sequence", length), ("qkv", 3), ("heads", 2),
                                     ("features_per_head", 8)]]

    def build(mesh):
        qkv = graphs.give(mesh, x, *dims)
        y = attention.full(layers.Context(mesh, graphs.config()), qkv, 0, 0.0, "site", causal=False)
        return graphs.with_gradients({"y": y}, {"x": qkv},
                                     {"y": graphs.give(mesh, dy, *y.shape.dims)})

    result = graphs.run(build, mesh_shape, layout)
    packed = torch.tensor(x, requires_grad=True)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3)
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(result["y"], y.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(result["d_x"], packed.grad.numpy(), atol=2e-5)


@pytest.mark.parametrize(("position", "kind"), [
    ("learned", "global"), ("rotary", "global"), ("alibi", "local"), ("learned", "linear")])
def test_the_first_position_hears_the_last_unless_the_model_is_causal(position, kind):
    config = graphs.config(n_layer=1, n_embd=16, n_ctx=8, position=position,
                           attention_types=[kind])
    tokens = np.random.RandomState(0).randint(0, 61, [2, 8]).astype(np.int32)
    tokens[1] = tokens[0]
    tokens[1, -1] = 60 - tokens[0, -1]
    dims = [graphs.dim("batch", 2), graphs.dim("sequence", 8)]

    def build(mesh):
        given = graphs.give(mesh, tokens, *dims)
        return {name: gpt.GPT(config, 61, causal=name == "causal").hidden(
            layers.Context(mesh, config), given) for name in ("causal", "whole")}

    result = graphs.run(build)
    first, changed = result["causal"]
    np.testing.assert_array_equal(first[:-1], changed[:-1])
    first, changed = result["whole"]
    assert (abs(first - changed).max(-1) > 1e-6).all()
