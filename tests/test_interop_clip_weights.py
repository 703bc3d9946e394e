"""interop/clip_weights.py: CLIP's text towers from elsewhere."""

import json
import os

import graphs
import numpy as np
import pytest

from configs.errors import UserError
from interop import clip_weights
from models import clip, layers

torch = pytest.importorskip("torch", reason="writes PyTorch's files")
clip_models = pytest.importorskip("clip_models", reason="compares with transformers")
safetensors = pytest.importorskip("safetensors.torch", reason="writes safetensors files")


class Part(torch.nn.Module):
    """A module with given parameters and submodules, which TorchScript can save."""

    def __init__(self, tensors, buffers=()):
        super().__init__()
        groups = {}
        for name, tensor in tensors.items():
            head, dot, rest = name.partition(".")
            if dot:
                groups.setdefault(head, {})[rest] = tensor
            else:
                self.register_parameter(head, torch.nn.Parameter(tensor))
        for name, inside in groups.items():
            self.add_module(name, Part(inside))
        for name in buffers:
            self.register_buffer(name, torch.tensor(77))

    def forward(self, x: torch.Tensor):
        return x


@pytest.fixture(scope="module")
def model():
    return clip_models.text_model()


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    """(ClipSizes, weights) of the model as Hugging Face saves it, which are compared with its own
    embeddings below."""
    path = tmp_path_factory.mktemp("hf")
    model.save_pretrained(path)
    return clip_weights.read(str(path))


def write_config(directory, heads=2, **keys):
    """The config that OpenCLIP writes."""
    config = {"model_cfg": {"embed_dim": 16, "text_cfg": {"heads": heads}, **keys}}
    (directory / "open_clip_config.json").write_text(json.dumps(config))


def assert_same(found, reference, **changes):
    sizes, weights = found
    expected = {**vars(reference[0]), **changes}
    assert vars(sizes) == expected
    assert set(weights) == set(reference[1])
    for name, value in weights.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, reference[1][name], err_msg=name)


@pytest.mark.parametrize("keys", [
    dict(activation="quick_gelu"),
    dict(activation="gelu", width=48, layers=3, heads=4, out=20, vocab=70, context=9,
         intermediate=96),
], ids=["quick_gelu", "gelu"])
def test_embeddings_equal_transformers(keys, tmp_path):
    model = clip_models.text_model(seed=3, **keys)
    model.save_pretrained(tmp_path)
    sizes, weights = clip_weights.read(str(tmp_path))
    tokens, ends = clip_models.texts(1, context=sizes.context, vocab=sizes.vocab)

    def build(mesh):
        batch, sequence = graphs.dim("batch", 4), graphs.dim("clip_sequence", sizes.context)
        return {"y": clip.TextTower(sizes).embed(
            layers.Context(mesh, graphs.config()), graphs.give(mesh, tokens, batch, sequence),
            graphs.give(mesh, ends, batch))}

    result = graphs.run(build, weights=weights)
    assert set(result.weights) == set(weights)
    expected = model(input_ids=torch.tensor(tokens, dtype=torch.long)).text_embeds.detach()
    np.testing.assert_allclose(result["y"], expected, atol=1e-4)
    for ours, theirs in dict(width="hidden_size", layers="num_hidden_layers",
                             heads="num_attention_heads", out="projection_dim",
                             context="max_position_embeddings", activation="hidden_act",
                             intermediate="intermediate_size", start_id="bos_token_id",
                             end_id="eos_token_id", vocab="vocab_size").items():
        assert getattr(sizes, ours) == getattr(model.config, theirs), ours


def test_a_whole_hugging_face_clip(model, reference, tmp_path):
    """With an image tower, a nested config that leaves out defaults, and ids as of old."""
    state = {**model.state_dict(), "logit_scale": torch.tensor(1.0),
             "vision_model.post_layernorm.weight": torch.ones(3),
             "text_model.embeddings.position_ids": torch.arange(12)[None]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = {"text_config": {"num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 2},
              "projection_dim": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(clip_weights.read(str(tmp_path)), reference)
    assert_same(clip_weights.read(str(tmp_path / "pytorch_model.bin")), reference)
    config["text_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(clip_weights.read(str(tmp_path)), reference, activation="gelu")


def test_shards_that_an_index_names(model, reference, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert_same(clip_weights.read(str(tmp_path)), reference)


def test_openais_state_dict(model, reference, tmp_path):
    torch.save(clip_models.openai_names(model), tmp_path / "tower.pt")
    assert_same(clip_weights.read(str(tmp_path / "tower.pt"), heads=2), reference)


def test_openais_archive_in_half_precision(model, reference, tmp_path):
    halves = {name: t.half() for name, t in clip_models.openai_names(model).items()}
    module = Part({**halves, "visual.proj": torch.ones(2, 2)},
                  ["input_resolution", "context_length", "vocab_size"]).eval()
    torch.jit.save(torch.jit.script(module), str(tmp_path / "archive.pt"))
    sizes, weights = clip_weights.read(str(tmp_path / "archive.pt"), heads=2)
    assert sizes == reference[0]
    for name, value in weights.items():
        expected = reference[1][name].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_heads_are_64_wide_where_nothing_tells(tmp_path):
    model = clip_models.text_model(width=128, heads=2, layers=1, out=8)
    torch.save(clip_models.openai_names(model), tmp_path / "tower.pt")
    assert clip_weights.read(str(tmp_path / "tower.pt"))[0].heads == 2


@pytest.mark.parametrize("kind", ["safetensors", "bin", "training", "custom"])
def test_openclips_files(model, reference, tmp_path, kind):
    state = clip_models.openai_names(model)
    name = "open_clip_model.safetensors" if kind == "safetensors" else "open_clip_pytorch_model.bin"
    if kind == "safetensors":
        safetensors.save_file(state, tmp_path / name)
    elif kind == "bin":
        torch.save(state, tmp_path / name)
    elif kind == "training":
        torch.save({"epoch": 3, "name": "run", "optimizer": {"state": {0: torch.ones(2)}},
                    "state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / name)
    else:
        torch.save({n if n == "logit_scale" else f"text.{n}": t for n, t in state.items()},
                   tmp_path / name)
    write_config(tmp_path)
    assert_same(clip_weights.read(str(tmp_path)), reference, activation="gelu")
    os.remove(tmp_path / "open_clip_config.json")
    assert_same(clip_weights.read(str(tmp_path), heads=2), reference, activation="gelu")
    assert_same(clip_weights.read(str(tmp_path), activation="quick_gelu", heads=2), reference)
    write_config(tmp_path, quick_gelu=True)
    assert_same(clip_weights.read(str(tmp_path)), reference)


def test_bfloat16_and_tensors_that_are_views(model, reference, tmp_path):
    state = {n: t.bfloat16() for n, t in clip_models.openai_names(model).items()}
    safetensors.save_file(state, tmp_path / "tower.safetensors")
    # A transposed view, a slice inside of a larger storage and a parameter.
    state["text_projection"] = state["text_projection"].T.contiguous().T
    state["ln_final.bias"] = torch.cat([torch.ones(5).bfloat16(), state["ln_final.bias"]])[5:]
    state["ln_final.weight"] = torch.nn.Parameter(state["ln_final.weight"])
    torch.save(state, tmp_path / "tower.bin")
    for file in ("tower.safetensors", "tower.bin"):
        _, weights = clip_weights.read(str(tmp_path / file), heads=2)
        for name, value in weights.items():
            expected = torch.tensor(reference[1][name]).bfloat16().float()
            np.testing.assert_array_equal(value, expected, err_msg=name)


def change(state, name, value):
    state = dict(state)
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize("name, value, message", [
    ("text_projection", None, "text_projection is missing"),
    ("token_embedding.weight", None, "no CLIP text tower"),
    ("transformer.resblocks.1.ln_2.bias", None, r"resblocks.1.ln_2.bias is missing"),
    ("transformer.resblocks.0.attn.in_proj_weight", torch.ones(95, 32),
     r"resblocks.0.attn.in_proj_weight: shape \(95, 32\) instead of \(96, 32\)"),
    ("positional_embedding", torch.ones(12), r"positional_embedding: shape \(12,\)"),
    ("positional_embedding", torch.ones(12, 31), r"shape \(12, 31\) instead of \(12, 32\)"),
    ("ln_final.bias", torch.full([32], torch.nan), "ln_final.bias: holds values .* not finite"),
    ("ln_final.bias", torch.ones(32, dtype=torch.int32), "ln_final.bias: int32 instead of"),
    ("transformer.resblocks.0.ls_1.gamma", torch.ones(32), "ls_1.gamma: CLIP's text tower has no"),
    ("transformer.resblocks.7.ln_1.bias", torch.ones(32), "resblocks.2.* is missing"),
])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_wrong_tensors_are_named(model, tmp_path, kind, name, value, message):
    state = change(clip_models.openai_names(model), name, value)
    path = tmp_path / f"tower.{kind}"
    if kind == "bin":
        torch.save(state, path)
    else:
        safetensors.save_file(state, path)
    with pytest.raises(UserError, match=message) as caught:
        clip_weights.read(str(path), heads=2)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_mistakes(model, tmp_path):
    state = clip_models.openai_names(model)
    torch.save(state, tmp_path / "tower.pt")
    with pytest.raises(UserError, match="0 heads do not divide the width 32; a open_clip_config"):
        clip_weights.read(str(tmp_path / "tower.pt"))
    with pytest.raises(UserError, match="absent.pt: no such file"):
        clip_weights.read(str(tmp_path / "absent.pt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds none of model.safetensors, "):
        clip_weights.read(str(tmp_path / "empty"))


@pytest.mark.parametrize("naming, config, message", [
    ("openai", {"model_cfg": {"text_cfg": {"pool_type": "last"}}}, "pool_type 'last'"),
    ("openai", {"model_cfg": {"text_cfg": {"no_causal_mask": True}}}, "no_causal_mask is set"),
    ("openai", {"model_cfg": 3}, "model_cfg is not an object"),
    ("hf", {"text_config": {"hidden_act": "gelu_new"}}, "activation 'gelu_new' is not one of"),
    ("hf", {"text_config": {"num_attention_heads": "2"}}, "config.json: the heads"),
    ("hf", {"text_config": [1]}, "text_config is not an object"),
    ("hf", None, "config.json: "),
])
def test_configs_that_cannot_be_are_refused(model, tmp_path, naming, config, message):
    state = clip_models.openai_names(model) if naming == "openai" else model.state_dict()
    torch.save(state, tmp_path / "model.bin")
    name = "config.json" if naming == "hf" else "open_clip_config.json"
    (tmp_path / name).write_text("{" if config is None else json.dumps(config))

    with pytest.raises(UserError, match=message):
        clip_weights.read(str(tmp_path / "model.bin"))
