"""models/clip_image.py: the towers against torch and transformers, on meshes and by themselves."""

import graphs
import numpy as np
import pytest

from configs.errors import UserError
from models import clip_image, layers

torch = pytest.importorskip("torch", reason="compares with torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers")
clip_models = pytest.importorskip("clip_models", reason="compares with transformers")

FLAT = clip_image.ImageSizes(side=12, out=10, channels=[16, 24, 8], pool="flatten")
CONV = clip_image.ImageSizes(side=12, out=10, channels=[16, 24, 8])
VIT = clip_image.ImageSizes(kind="vit", side=8, patch=4, width=16, layers=2, heads=2, out=10)
IMAGES = np.random.RandomState(0).randn(4, 12, 12, 3).astype(np.float32)
PATCHED = IMAGES[:, :8, :8]


def run(sizes, images, weights, *where):
    """Embeddings, and the gradients of Σ embeddings · (numbers from −1 to 1)."""
    def build(mesh):
        ctx = layers.Context(mesh, graphs.config())
        batch = graphs.dim("batch", len(images))
        y = clip_image.tower(sizes).embed(ctx, graphs.give(mesh, images, batch, *sizes.pixels()))
        variables = {v.name: v.outputs[0] for v in mesh.graph.trainable_variables}
        dy = graphs.give(mesh, cotangents(len(images)), *y.shape.dims)
        return graphs.with_gradients({"y": y}, variables, {"y": dy})

    return graphs.run(build, *where, weights=weights)


def cotangents(batch):
    return np.linspace(-1, 1, batch * 10, dtype=np.float32).reshape(batch, 10)


def conv_weights(sizes=CONV):
    random = np.random.RandomState(1)
    weights, before = {}, 3
    for i, channels in enumerate(CONV.channels):
        weights[f"clip_image/conv{i}/kernel"] = random.randn(3, 3, before, channels) / 9
        weights[f"clip_image/conv{i}/gain"] = 1 + 0.2 * random.randn(channels)
        weights[f"clip_image/conv{i}/bias"] = 0.2 * random.randn(channels)
        before = channels
    places = 2 * 2 if sizes.pool == "flatten" else 1  # 12 pixels, halved thrice
    weights["clip_image/projection"] = random.randn(before * places, 10)
    return {name: w.astype(np.float32) for name, w in weights.items()}


def vit_weights():
    """(transformers' CLIPVisionModelWithProjection, its weights under our names)."""
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=10, image_size=8, patch_size=4, hidden_act="quick_gelu")
    model = clip_models.randomise(transformers.CLIPVisionModelWithProjection(config), 2)
    return model, vit_names(model.state_dict())


def vit_names(state):
    state = {name.removeprefix("vision_model."): value.numpy() for name, value in state.items()}
    ours = {"class": state["embeddings.class_embedding"],
            "wpe": state["embeddings.position_embedding.weight"],
            # [width, 3, 4, 4] -> rows, columns, colours of a patch.
            "patch": state["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)
            .reshape(48, 16),
            "projection": state["visual_projection.weight"].T}
    norms = {"norm_0": "pre_layrnorm", "norm_f": "post_layernorm"}
    for i in range(2):
        theirs = f"encoder.layers.{i}."
        norms.update({f"h{i}/norm_{n}": f"{theirs}layer_norm{n}" for n in (1, 2)})
        parts = [[state[f"{theirs}self_attn.{x}_proj.{kind}"] for x in "qkv"]
                 for kind in ("weight", "bias")]
        ours[f"h{i}/attn/qkv/kernel"] = np.stack([w.T for w in parts[0]], 1).reshape(16, 3, 2, 8)
        ours[f"h{i}/attn/qkv/bias"] = np.stack(parts[1]).reshape(3, 2, 8)
        for name, old in [("attn/out", "self_attn.out_proj"), ("mlp/in", "mlp.fc1"),
                          ("mlp/out", "mlp.fc2")]:
            kernel = state[f"{theirs}{old}.weight"].T
            ours[f"h{i}/{name}/kernel"] = (
                kernel.reshape(2, 8, 16) if name == "attn/out" else kernel)
            ours[f"h{i}/{name}/bias"] = state[f"{theirs}{old}.bias"]
    for name, old in norms.items():
        ours[f"{name}/gain"], ours[f"{name}/bias"] = state[f"{old}.weight"], state[f"{old}.bias"]
    return {f"clip_image/{name}": np.ascontiguousarray(value) for name, value in ours.items()}


@pytest.mark.parametrize("sizes", [CONV, FLAT], ids=["mean", "flatten"])
def test_the_convolutional_tower_equals_torch(sizes):
    weights = conv_weights(sizes)
    t = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
    x = torch.tensor(IMAGES).permute(0, 3, 1, 2)
    for i, channels in enumerate(CONV.channels):
        w = {part: t[f"clip_image/conv{i}/{part}"] for part in ("kernel", "gain", "bias")}
        # "SAME" of 3×3 with stride 2 adds to even sides at the far end, to odd ones at both.
        pad = [0, 1, 0, 1] if x.shape[-1] % 2 == 0 else [1, 1, 1, 1]
        x = torch.nn.functional.conv2d(torch.nn.functional.pad(x, pad),
                                       w["kernel"].permute(3, 2, 0, 1), stride=2)
        x = torch.relu(torch.nn.functional.group_norm(x, channels // 8, w["gain"], w["bias"]))
    pooled = x.mean([2, 3]) if sizes is CONV else x.permute(0, 2, 3, 1).flatten(1)
    expected = pooled @ t["clip_image/projection"]
    (expected * torch.tensor(cotangents(4))).sum().backward()
    result = run(sizes, IMAGES, weights)
    np.testing.assert_allclose(result["y"], expected.detach(), atol=1e-5)
    assert {f"d_{name}" for name in weights} | {"y"} == set(result.values)
    for name, w in t.items():
        np.testing.assert_allclose(result[f"d_{name}"], w.grad, atol=1e-4, err_msg=name)


def test_the_vision_transformer_equals_transformers():
    model, weights = vit_weights()
    expected = model(pixel_values=torch.tensor(PATCHED).permute(0, 3, 1, 2)).image_embeds
    (expected * torch.tensor(cotangents(4))).sum().backward()
    result = run(VIT, PATCHED, weights)
    np.testing.assert_allclose(result["y"], expected.detach(), atol=1e-5)
    gradients = vit_names({name: p.grad for name, p in model.named_parameters()})
    assert {f"d_{name}" for name in gradients} | {"y"} == set(result.values)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(result[f"d_{name}"], gradient, atol=5e-5, err_msg=name)


@pytest.mark.parametrize("sizes, images, where", [
    (CONV, IMAGES, ("x:2", "batch:x")),
    (CONV, IMAGES, ("x:2,y:2", "batch:x,clip_out:y")),
    (VIT, PATCHED, ("x:2,y:2", "batch:x,clip_image_heads:y,clip_image_intermediate:y")),
    (VIT, PATCHED, ("x:2,y:2", "batch:x,clip_image_embd:y")),
], ids=["conv data", "conv model", "vit heads", "vit width"])
def test_layouts_give_what_one_device_gives(sizes, images, where):
    weights = conv_weights() if sizes is CONV else vit_weights()[1]
    one, many = run(sizes, images, weights), run(sizes, images, weights, *where)
    assert set(one.values) == set(many.values)
    for name in one.values:
        np.testing.assert_allclose(many[name], one[name], atol=5e-5, err_msg=name)
    assert many.slice_shapes["y"] == [2, 5 if "clip_out" in where[1] else 10]


def test_a_pictures_embedding_is_its_own():
    """No statistics are shared in a batch."""
    weights = conv_weights()
    np.testing.assert_allclose(run(CONV, IMAGES[:2], weights)["y"],
                               run(CONV, IMAGES, weights)["y"][:2], atol=1e-6)


@pytest.mark.parametrize("keys, message", [
    ({"kind": "resnet"}, "'resnet' is not one of conv, vit"),
    ({"channels": (32, 60)}, "multiples of 8"),
    ({"pool": "max"}, "'max' is not one of mean, flatten"),
    ({"kind": "vit", "patch": 7}, "patches of 7 do not divide pictures of 32"),
    ({"kind": "vit", "heads": 5}, "5 heads do not divide"),
    ({"activation": "relu"}, "'relu' is not one of quick_gelu, gelu"),
])
def test_sizes_that_cannot_be_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        clip_image.ImageSizes(**keys)
