"""models/clip_student.py against transformers' GPT-NeoX, its window, and on meshes."""

import graphs
import numpy as np
import pytest

from models import clip_student, layers

SIZES = clip_student.StudentSizes(width=32, layers=2, heads=4, vocab=64, out=12, window=5,
                                  rotary_dims=4)
TOKENS = np.random.RandomState(0).randint(0, 64, [4, 23]).astype(np.int32)


def outputs(tokens=TOKENS, sizes=SIZES, weights=None, mesh_shape="", layout=""):
    """The student's outputs, [batch, clip_sequence, clip_out], in a graphs.Result."""
    def build(mesh):
        ctx = layers.Context(mesh, graphs.config())
        batch = graphs.dim("batch", tokens.shape[0])
        sequence = graphs.dim("clip_sequence", tokens.shape[1])
        student = clip_student.Student(sizes)
        return {"y": student.outputs(ctx, graphs.give(mesh, tokens, batch, sequence))}

    return graphs.run(build, mesh_shape, layout, weights)


def shaken(shapes):
    """Random weights of a size that makes every one of them matter."""
    random = np.random.RandomState(1)
    return {name: (random.randn(*shape) * 0.2 + name.endswith("gain")).astype(np.float32)
            for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def weights():
    return shaken({name: value.shape for name, value in outputs().weights.items()})


def test_the_projection_begins_as_in_clip():
    """A standard deviation of 1/√width; gpt-c's was width^¼."""
    kernel = outputs().weights["clip_student/projection/kernel"]
    assert abs(kernel.std() / kernel.shape[0] ** -0.5 - 1) < 4 / (2 * kernel.size) ** 0.5


def test_within_the_window_it_is_a_neox_with_quick_gelu(weights):
    torch = pytest.importorskip("torch", reason="compares with transformers")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    neox = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, hidden_act="quick_gelu", max_position_embeddings=16,
        use_parallel_residual=False, tie_word_embeddings=False, layer_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                         "partial_rotary_factor": 0.5})).eval()
    state = {"gpt_neox.embed_in.weight": weights["clip_student/wte"],
             "gpt_neox.final_layer_norm.weight": weights["clip_student/norm_f/gain"],
             "gpt_neox.final_layer_norm.bias": weights["clip_student/norm_f/bias"]}
    for i in range(2):
        ours, theirs = f"clip_student/h{i}", f"gpt_neox.layers.{i}"
        for norm, name in [("norm_1", "input_layernorm"), ("norm_2", "post_attention_layernorm")]:
            state[f"{theirs}.{name}.weight"] = weights[f"{ours}/{norm}/gain"]
            state[f"{theirs}.{name}.bias"] = weights[f"{ours}/{norm}/bias"]
        qkv = weights[f"{ours}/attn/qkv/kernel"].transpose(2, 1, 3, 0).reshape(96, 32)
        state[f"{theirs}.attention.query_key_value.weight"] = qkv
        state[f"{theirs}.attention.query_key_value.bias"] = (
            weights[f"{ours}/attn/qkv/bias"].transpose(1, 0, 2).reshape(96))
        for layer, name in [("attn/out", "attention.dense"), ("mlp/in", "mlp.dense_h_to_4h"),
                            ("mlp/out", "mlp.dense_4h_to_h")]:
            kernel, bias = (weights[f"{ours}/{layer}/{part}"] for part in ("kernel", "bias"))
            state[f"{theirs}.{name}.weight"] = kernel.reshape(-1, bias.size).T
            state[f"{theirs}.{name}.bias"] = bias
    missing, unexpected = neox.load_state_dict(
        {name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()},
        strict=False)
    assert not unexpected and all("embed_out" in m or "lm_head" in m for m in missing)
    hidden = neox.gpt_neox(torch.tensor(TOKENS[:, :5].astype(np.int64))).last_hidden_state
    kernel, bias = (weights[f"clip_student/projection/{part}"] for part in ("kernel", "bias"))
    expected = hidden.detach().numpy() @ kernel + bias
    assert abs(expected).max() > 1, "the comparison would prove little"
    np.testing.assert_allclose(outputs(TOKENS[:, :5], weights=weights)["y"], expected, atol=1e-4)


def test_each_layer_reaches_a_window_back(weights):
    base = outputs(weights=weights)["y"]
    changed = TOKENS.copy()
    changed[:, 9] = (changed[:, 9] + 1) % 64
    moved = np.any(abs(outputs(changed, weights=weights)["y"] - base) > 1e-6, axis=(0, 2))
    # Two layers of a window of 5: 4 tokens further with each.
    assert np.flatnonzero(moved).tolist() == list(range(9, 9 + 2 * 4 + 1))


@pytest.mark.parametrize(("mesh_shape", "layout"), [
    ("x:2,y:2", "batch:x,clip_heads:y,clip_intermediate:y,clip_vocab:y,clip_out:y"),
    ("x:2", "clip_embd:x"), ("x:4", "batch:x")])
def test_layouts_equal_one_device(weights, mesh_shape, layout):
    result = outputs(weights=weights, mesh_shape=mesh_shape, layout=layout)
    np.testing.assert_allclose(result["y"], outputs(weights=weights)["y"], atol=1e-5)
    dims = [graphs.dim("clip_vocab", 64), graphs.dim("clip_embd", 32)]
    assert result.weight_slices["clip_student/wte"] == graphs.slice_shape(dims, mesh_shape, layout)
