"""models/clip.py: the text tower against transformers, two-stream targets, contrastive loss."""

import graphs
import numpy as np
import pytest

from configs.errors import UserError
from interop import clip_weights
from mesh.compat import mtf, tf
from models import attention, clip, layers

torch = pytest.importorskip("torch", reason="compares with torch")
clip_models = pytest.importorskip("clip_models", reason="compares with transformers")

BATCH, CONTEXT, N = 4, 12, 10
OUT = graphs.dim("clip_out", 16)
# (mesh_shape, layout): data, model and both kinds of splits of the towers.
MESHES = [
    ("x:2", "batch:x"),
    ("x:2,y:2", "batch:x,clip_heads:y,clip_intermediate:y,clip_vocab:y,clip_out:y"),
    ("x:2,y:2", "batch:x,clip_embd:y"),
]


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """{activation: (transformers' model, ClipSizes, our weights)}."""
    found = {}
    for activation in ("quick_gelu", "gelu"):
        model = clip_models.text_model(activation=activation)
        path = tmp_path_factory.mktemp("clip")
        model.save_pretrained(path)
        found[activation] = (model, *clip_weights.read(str(path)))
    return found


def context(mesh):
    return layers.Context(mesh, graphs.config())


def give_texts(mesh, tokens, ends):
    batch = graphs.dim("batch", len(tokens))
    return (graphs.give(mesh, tokens, batch, graphs.dim("clip_sequence", tokens.shape[1])),
            graphs.give(mesh, ends, batch))


def run_embed(tower, tokens, ends, *where):
    """Embeddings, and the gradients of Σ embeddings · cotangents."""
    model, sizes, weights = tower
    dy = np.random.RandomState(5).randn(len(tokens), sizes.out).astype(np.float32)

    def build(mesh):
        y = clip.TextTower(sizes).embed(context(mesh), *give_texts(mesh, tokens, ends))
        variables = {v.name: v.outputs[0] for v in mesh.graph.trainable_variables}
        return graphs.with_gradients(
            {"y": y}, variables,
            {"y": graphs.give(mesh, dy, y.shape.dims[0], graphs.dim("clip_out", sizes.out))})

    return graphs.run(build, *where, weights=weights), dy


def separate_passes(tokens):
    """Each prefix of tokens [batch, n] as a text of its own: (texts, ends)."""
    rows, ends = [], []
    for row in tokens:
        for k in range(1, len(row) + 1):
            rows.append([48, *row[:k], 49] + [0] * (len(row) - k))
            ends.append(k + 1)
    return np.array(rows, np.int32), np.array(ends, np.int32)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_and_gradients_equal_transformers(towers, activation, tmp_path):
    model, sizes, weights = towers[activation]
    tokens, ends = clip_models.texts(1)
    result, dy = run_embed(towers[activation], tokens, ends)
    expected = model(input_ids=torch.tensor(tokens, dtype=torch.long)).text_embeds
    np.testing.assert_allclose(result["y"], expected.detach(), atol=1e-5)

    # The gradient of torch's parameters, renamed as a weights file is.
    model.zero_grad()
    expected.backward(torch.tensor(dy))
    with torch.no_grad():
        gradient = clip_models.text_model(activation=activation)
        for theirs, p in zip(gradient.parameters(), model.parameters(), strict=True):
            theirs.copy_(p.grad)
    gradient.save_pretrained(tmp_path)
    for name, value in clip_weights.read(str(tmp_path))[1].items():
        np.testing.assert_allclose(result[f"d_{name}"], value, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("mesh_shape, layout", MESHES)
def test_layouts_give_what_one_device_gives(towers, mesh_shape, layout):
    tower = towers["quick_gelu"]
    tokens, ends = clip_models.texts(2)
    one, _ = run_embed(tower, tokens, ends)
    many, _ = run_embed(tower, tokens, ends, mesh_shape, layout)
    assert set(one.values) == set(many.values)
    for name in one.values:
        np.testing.assert_allclose(many[name], one[name], atol=2e-5, err_msg=name)
    dims = dict(clip_embd=32, clip_heads=2, clip_intermediate=128, clip_vocab=50, clip_out=16)
    for name, of in {"clip_text/wte": "clip_vocab clip_embd",
                     "clip_text/h1/mlp/in/kernel": "clip_embd clip_intermediate",
                     "clip_text/h1/mlp/out/bias": "clip_embd",
                     "clip_text/h0/attn/out/kernel": "clip_heads clip_features_per_head clip_embd",
                     "clip_text/projection": "clip_embd clip_out"}.items():
        shape = [graphs.dim(d, dims.get(d, 16)) for d in of.split()]
        assert many.weight_slices[name] == graphs.slice_shape(shape, mesh_shape, layout), name
    assert many.slice_shapes["y"] == graphs.slice_shape(
        [graphs.dim("batch", 4), OUT], mesh_shape, layout)


def test_an_end_token_inside_a_text_is_a_token_like_any_other(towers):
    tower = towers["quick_gelu"]
    tokens, _ = clip_models.texts(3)
    ends = np.array([11, 7, 5, 9], np.int32)
    tokens[np.arange(4), ends] = 49
    tokens[:, 3] = 49
    result, _ = run_embed(tower, tokens, ends)
    expected = clip_models.embeddings(tower[0], tokens, ends).detach().numpy()
    np.testing.assert_allclose(result["y"], expected, atol=1e-5)
    first = clip_models.embeddings(tower[0], tokens, [3] * 4).detach().numpy()
    assert abs(expected - first).max() > 0.1


def test_tokens_after_the_end_change_nothing(towers):
    tokens, ends = clip_models.texts(4)
    other = tokens.copy()
    for row, end in zip(other, ends, strict=True):
        row[end + 1:] = 49
    first, second = (run_embed(towers["gelu"], t, ends)[0]["y"] for t in (tokens, other))
    np.testing.assert_array_equal(first, second)


def wrong_patterns():
    """{mistake: what prefix_pattern would give with it}."""
    k = np.arange(1, N + 1)

    def change(mistake):
        positions, visible = clip.prefix_pattern(N)
        if mistake == "position off by one":
            positions[N + 1:] -= 1
        elif mistake == "all ends at the last position":
            positions[N + 1:] = CONTEXT - 1
        elif mistake == "branch blind to itself":
            visible[N + k, N + k] = False
        elif mistake == "stem one short":
            visible[N + k, k] = False
        elif mistake == "stem one long":
            visible[(N + k)[:-1], k[1:]] = True
        return positions, visible

    return {name: change(name) for name in [
        "position off by one", "all ends at the last position", "branch blind to itself",
        "stem one short", "stem one long"]}


def test_two_stream_targets_equal_separate_passes(towers, monkeypatch):
    """And each way to get them wrong is far outside of the tolerance."""
    model, sizes, weights = towers["quick_gelu"]
    tokens = np.random.RandomState(6).randint(0, 48, [BATCH, N]).astype(np.int32)
    tokens[0, 4] = tokens[1, 0] = 49  # end tokens inside of texts
    tokens[2, 3] = 0
    rows, ends = separate_passes(tokens)
    patterns = wrong_patterns()
    norm = layers.layer_norm

    def without_last_norm(ctx, x, dim, name, *rest):
        y = norm(ctx, x, dim, name, *rest)
        return x if name == "norm_f" else y

    def build(mesh):
        ctx, tower = context(mesh), clip.TextTower(sizes)
        batch, sequence = graphs.dim("batch", BATCH), graphs.dim("clip_sequence", N)
        text = graphs.give(mesh, tokens, batch, sequence)
        outputs = {"right": tower.prefix_targets(ctx, text)}
        assert outputs["right"].shape == mtf.Shape([batch, sequence, OUT])
        outputs["separate"] = tower.embed(ctx, *give_texts(mesh, rows, ends))
        for name, pattern in patterns.items():
            with monkeypatch.context() as patch:
                patch.setattr(clip, "prefix_pattern", lambda n, pattern=pattern: pattern)
                outputs[name] = tower.prefix_targets(ctx, text)
        with monkeypatch.context() as patch:
            patch.setattr(layers, "layer_norm", without_last_norm)
            outputs["no last norm"] = tower.prefix_targets(ctx, text)
        return outputs

    result = graphs.run(build, weights=weights)
    separate = result["separate"].reshape([BATCH, N, 16])
    np.testing.assert_allclose(result["right"], separate, atol=1e-5)
    expected = clip_models.embeddings(model, rows, ends).detach().numpy()
    np.testing.assert_allclose(result["right"].reshape([-1, 16]), expected, atol=1e-5)
    errors = {name: np.linalg.norm(value - separate) / np.linalg.norm(separate)
              for name, value in result.values.items() if name not in ("right", "separate")}
    assert len(errors) == 6 and min(errors.values()) > 0.02, errors


@pytest.mark.parametrize("mesh_shape, layout", MESHES[1:])
def test_two_stream_targets_on_meshes(towers, mesh_shape, layout):
    model, sizes, weights = towers["gelu"]
    tokens = np.random.RandomState(7).randint(0, 48, [BATCH, 7]).astype(np.int32)

    def build(mesh):
        text = graphs.give(mesh, tokens, graphs.dim("batch", BATCH), graphs.dim("clip_sequence", 7))
        return {"y": clip.TextTower(sizes).prefix_targets(context(mesh), text)}

    result = graphs.run(build, mesh_shape, layout, weights)
    expected = clip_models.embeddings(model, *separate_passes(tokens)).detach().numpy()
    np.testing.assert_allclose(result["y"].reshape([-1, 16]), expected, atol=1e-5)
    assert result.slice_shapes["y"][0] == 2


def test_texts_longer_than_the_context_are_refused():
    tower = clip.TextTower(clip.ClipSizes(width=8, heads=2, layers=1, vocab=9, out=4, context=6))
    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        with pytest.raises(UserError, match="5 tokens is longer than the teacher's 4"):
            tower.prefix_targets(context(mesh), give_texts(mesh, np.ones([1, 5], np.int32), [1])[0])
        with pytest.raises(UserError, match="7 tokens is longer than the context of 6"):
            tower.embed(context(mesh), *give_texts(mesh, np.ones([1, 7], np.int32), [1]))


def test_sizes_fill_in_what_follows_and_refuse_what_cannot_be():
    sizes = clip.ClipSizes()
    assert (sizes.intermediate, sizes.start_id, sizes.end_id, sizes.longest_text) == (
        2048, 49406, 49407, 75)
    with pytest.raises(UserError, match="7 heads do not divide the width 512"):
        clip.ClipSizes(heads=7)
    with pytest.raises(UserError, match="'gleu' is not one of quick_gelu, gelu"):
        clip.ClipSizes(activation="gleu")


def test_initial_values_are_openais():
    sizes = clip.ClipSizes(width=256, heads=4, layers=3, vocab=600, out=200, context=77)

    def build(mesh):
        return {"y": clip.TextTower(sizes).embed(
            context(mesh), *give_texts(mesh, np.ones([1, 4], np.int32), np.array([3], np.int32)))}

    weights = graphs.run(build).weights
    added = 256 ** -0.5 * 6 ** -0.5
    for name, deviation in {"wte": 0.02, "wpe": 0.01, "projection": 1 / 16,
                            "h1/attn/qkv/kernel": 1 / 16, "h1/attn/out/kernel": added,
                            "h1/mlp/in/kernel": 512 ** -0.5, "h1/mlp/out/kernel": added}.items():
        assert abs(weights[f"clip_text/{name}"].std() / deviation - 1) < 0.03, name


def test_masked_attention_with_a_causal_pattern_is_causal_attention():
    x = np.random.RandomState(8).randn(2, 6, 3, 2, 4).astype(np.float32)
    dims = [graphs.dim(*d) for d in [("batch", 2), ("clip_sequence", 6), ("qkv", 3),
                                     ("clip_heads", 2), ("clip_features_per_head", 4)]]
    dy = np.random.RandomState(9).randn(2, 6, 2, 4).astype(np.float32)

    def build(mesh):
        outputs = {}
        for name in ("causal", "masked"):
            qkv = graphs.give(mesh, x, *dims)
            y = (attention.full(context(mesh), qkv, 0, 0.0, "") if name == "causal" else
                 attention.masked(qkv, np.tril(np.ones([6, 6], bool))))
            found = graphs.with_gradients({"y": y}, {"qkv": qkv},
                                          {"y": graphs.give(mesh, dy, *y.shape.dims)})
            outputs.update({f"{name} {key}": value for key, value in found.items()})
        return outputs

    result = graphs.run(build, "x:2", "clip_heads:x")
    for key in ("y", "d_qkv"):
        np.testing.assert_allclose(result[f"masked {key}"], result[f"causal {key}"], atol=1e-5)


def contrast(images, texts, log_scale, *where):
    """The loss and its gradients on a mesh."""
    dims = graphs.dim("batch", len(images)), graphs.dim("clip_out", images.shape[1])

    def build(mesh):
        inputs = {"images": graphs.give(mesh, images, *dims),
                  "texts": graphs.give(mesh, texts, *dims),
                  "log_scale": graphs.give(mesh, np.float32(log_scale))}
        loss = clip.contrastive_loss(*inputs.values())
        return graphs.with_gradients({"loss": loss}, inputs,
                                     {"loss": mtf.ones(mesh, loss.shape)})

    return graphs.run(build, *where)


@pytest.mark.parametrize("where", [(), ("x:2", "batch:x"), ("x:4", "batch:x"),
                                   ("x:2,y:2", "batch:x,clip_out:y")])
def test_contrastive_loss_is_info_nce_over_the_whole_batch(where):
    random = np.random.RandomState(10)
    images, texts = random.randn(2, 8, 6).astype(np.float32)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    expected = 0.0
    for p, q in ((a, b), (b, a)):
        for i in range(8):
            scores = [np.exp(np.exp(2.0) * p[i] @ q[j]) for j in range(8)]
            expected -= np.log(scores[i] / np.sum(scores)) / 2
    result = contrast(images, texts, 2.0, *where)
    np.testing.assert_allclose(result["loss"], expected, rtol=1e-5)

    inputs = [torch.tensor(x, requires_grad=True) for x in (images, texts, np.float32(2.0))]
    unit = [torch.nn.functional.normalize(x) for x in inputs[:2]]
    logits = inputs[2].exp() * unit[0] @ unit[1].T
    own = torch.arange(8)
    entropy = torch.nn.functional.cross_entropy
    (4 * (entropy(logits, own) + entropy(logits.T, own))).backward()
    for name, x in zip(["images", "texts", "log_scale"], inputs, strict=True):
        np.testing.assert_allclose(result[f"d_{name}"], x.grad, atol=2e-5, err_msg=name)


def test_the_scale_is_at_most_100_and_can_come_back():
    images = np.eye(4, dtype=np.float32)
    near = images + 0.1
    at, above = contrast(images, near, np.log(100.0)), contrast(images, near, 9.0)
    np.testing.assert_allclose(above["loss"], at["loss"], rtol=1e-4, atol=1e-6)
    # All pairs right: a higher scale would lower the loss, and is refused.
    assert above["d_log_scale"] == 0.0
    # All pairs wrong: the gradient that lowers the scale passes.
    assert contrast(images, np.roll(near, 1, axis=0), 9.0)["d_log_scale"] > 1.0


def test_the_temperature_begins_at_openais():
    result = graphs.run(lambda mesh: {"scale": clip.logit_scale(context(mesh))})
    np.testing.assert_allclose(result["scale"], np.log(1 / 0.07), rtol=1e-6)
    assert list(result.weights) == ["clip/logit_scale"]
