"""interop/import_gpt.py: transformers' language models become runs, by way of main.py."""

import json
import os

import numpy as np
import pytest
import test_import_clip
import test_models_gpt

from configs import schema
from mesh.compat import tf
from training import checkpoints

torch = pytest.importorskip("torch", reason="compares with transformers")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

do_import = test_import_clip.do_import

GPT2 = dict(vocab_size=61, n_positions=16, n_embd=21, n_layer=2, n_head=3, bos_token_id=0,
            eos_token_id=0)
NEO = dict(vocab_size=61, max_position_embeddings=16, hidden_size=20, num_layers=3, num_heads=5,
           window_size=6, bos_token_id=0, eos_token_id=0)
# Heads of 9 features, of which 4 rotate.
GPTJ = dict(vocab_size=61, n_positions=16, n_embd=45, n_layer=2, n_head=5, rotary_dim=4,
            bos_token_id=0, eos_token_id=0)
NEOX = dict(vocab_size=61, max_position_embeddings=16, hidden_size=45, num_hidden_layers=2,
            num_attention_heads=5, intermediate_size=70, bos_token_id=0, eos_token_id=0,
            rotary_pct=0.5, rotary_emb_base=500)


def gpt2(**changes):
    return test_models_gpt.shake(transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{**GPT2, **changes})))


def neo(**changes):
    return test_models_gpt.shake(transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**{
        **NEO, "attention_types": [[["global", "local", "local"], 1]], **changes})))


def gptj(**changes):
    return test_models_gpt.shake(transformers.GPTJForCausalLM(
        transformers.GPTJConfig(**{**GPTJ, **changes})))


def neox(**changes):
    return test_models_gpt.shake(transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**{**NEOX, **changes})))


def logits_of(directory):
    """Of a run for test_models_gpt.TOKENS: config.json and the checkpoint as they are."""
    config = schema.load(f"{directory}/config.json", ["train_batch_size=8"])
    reader = tf.train.load_checkpoint(checkpoints.latest(str(directory)))
    weights = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
               if name != "global_step"}
    return test_models_gpt.run(config, weights)["logits"][..., :61]


@pytest.mark.parametrize(("make", "changes", "how"), [
    (gpt2, {}, {}),
    (gpt2, {"n_inner": 50, "activation_function": "gelu"}, {"max_shard_size": 5000}),
    (gpt2, {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}, {}),
    (gpt2, {"activation_function": "relu"}, "bin"), (gpt2, {}, "bare"),
    (neo, {}, {}), (neo, {"intermediate_size": 30}, {"max_shard_size": 5000}),
    (gptj, {}, {}), (gptj, {"n_inner": 50, "tie_word_embeddings": True}, "bin"),
    (neox, {}, {}), (neox, {"use_parallel_residual": False, "hidden_act": "gelu_fast"}, "bin"),
    (neox, {"tie_word_embeddings": True, "attention_bias": False}, {"max_shard_size": 9000})],
    ids=["gpt2", "shards", "scales", "bin", "bare", "neo", "neo shards", "gptj", "gptj tied",
         "neox", "neox bin", "neox tied"])
def test_logits_equal_transformers(tmp_path, capsys, make, changes, how):
    module, source = make(**changes), tmp_path / "source"
    if how in ("bin", "bare"):
        source.mkdir()
        state = module.state_dict()
        if how == "bare":  # as the published files of GPT-2 have them
            state = {name.removeprefix("transformer."): value for name, value in state.items()
                     if name != "lm_head.weight"}
            state["h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
        torch.save(state, source / "pytorch_model.bin")
        module.config.save_pretrained(source)
    else:
        module.save_pretrained(source, **how)
        assert (source / "model.safetensors.index.json").exists() == bool(how)
    result = do_import(capsys, source, tmp_path / "run")
    assert result.status == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["n_vocab"] == 61 and summary["encoder"] is None
    expected = test_models_gpt.reference(module)[0]
    np.testing.assert_allclose(logits_of(tmp_path / "run"), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.5


def test_pythia_as_it_is_published(tmp_path, capsys):
    """Its config has keys of before transformers 5, its files have masks, and tokenizer.json."""
    from tokenizers import Tokenizer, models

    module, source = neox(), tmp_path / "source"
    module.config.save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    del config["rope_parameters"]
    (source / "config.json").write_text(json.dumps(
        {**config, "rotary_pct": 0.5, "rotary_emb_base": 500}))
    state = {name.replace("lm_head.", "embed_out."): value
             for name, value in module.state_dict().items()}
    for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
        state[f"gpt_neox.layers.1.attention.{name}"] = torch.ones(1, 1, 16, 16)
    torch.save(state, source / "pytorch_model.bin")
    tokenizer = Tokenizer(models.WordLevel({"a": 3, "b": 60}, unk_token="a"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(source / "tokenizer.json"))
    result = do_import(capsys, source, tmp_path / "run")
    assert result.status == 0, result.stderr
    assert json.loads(result.stdout)["encoder"] == f"{tmp_path}/run/encoder/tokenizer.json"
    np.testing.assert_allclose(logits_of(tmp_path / "run"), test_models_gpt.reference(module)[0],
                               atol=1e-4)


@pytest.mark.parametrize(("make", "changes", "words"), [
    (neox, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    (neox, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 9.0}}, "rope_type: 'yarn'"),
    (neox, {"rope_parameters": {"partial_rotary_factor": 0.05}}, "of a head's 9 features"),
    (neox, {"rope_parameters": {"partial_rotary_factor": 0.4}}, "rotary_dims: 3 is odd"),
    (neox, {"rope_parameters": [1]}, "rope_parameters: [1]: a JSON object is needed"),
    (neox, {"attention_bias": False}, "attention.dense.bias: a model that"),
    (gptj, {"rotary_dim": None}, "rotary_dim: None"),
    (gptj, {"rotary_dim": 10}, "rotary_dims: 10 is more than the size of a head"),
    (gptj, {"n_layer": 3}, "h.2.ln_1.weight is missing"),
    (gptj, {"model_type": "bert"}, "model_type 'bert' cannot be imported; of language models, gp")])
def test_a_config_that_does_not_fit_is_one_line(tmp_path, capsys, make, changes, words):
    source = tmp_path / "source"
    make().save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changes}))
    result = do_import(capsys, source, tmp_path / "run")
    assert result.status == 2 and words in result.error and str(source) in result.error
    assert not os.path.exists(tmp_path / "run")


def test_its_tokenizer_comes_along_and_it_samples(tmp_path, capsys):
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256),
                                      *range(256, 324))]
    vocabulary = {letter: number for number, letter in enumerate([*letters, "<|endoftext|>"])}
    source = tmp_path / "source"
    gpt2(vocab_size=len(vocabulary)).save_pretrained(source)
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\n")
    assert do_import(capsys, source, tmp_path / "run").status == 0
    (source / "vocab.json").unlink()  # the run has its own
    (tmp_path / "run").rename(tmp_path / "moved")
    result = test_import_clip.run_main(
        capsys, "--model", tmp_path / "moved" / "config.json", "--model_path", tmp_path / "moved",
        "--predict", "--prompt", "Ab", "--max_new_tokens", "5", "--temperature", "0")
    assert result.status == 0 and result.stdout.startswith("Ab"), result.stderr


def break_it(source, how):
    """Spoils a saved GPT-2; returns a word of the line that says so."""
    from safetensors.torch import load_file, save_file

    file, config = source / "model.safetensors", source / "config.json"
    tensors, keys = load_file(file), json.loads(config.read_text())
    name = "transformer.h.1.mlp.c_fc.weight"
    if how == "missing":
        del tensors[name]
    elif how == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif how == "extra":
        tensors["transformer.h.2.ln_1.weight"] = torch.ones(21)
    elif how == "twice":
        tensors[name.removeprefix("transformer.")] = tensors[name].clone()
    elif how == "nan":
        tensors[name][0, 0] = float("nan")
    elif how == "heads":
        keys["n_head"] = 4
    elif how == "activation":
        keys["activation_function"] = ["gelu"]
    elif how == "layers":
        keys["n_layer"] = -1
    save_file(tensors, file)
    config.write_text(json.dumps(keys))
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    return {"missing": "h.1.mlp.c_fc.weight is missing", "extra": "h.2.ln_1.weight",
            "twice": "the same tensor under two names", "nan": "not finite",
            "shape": "shape (21, 83) instead of (21, 84)",
            "heads": "n_head: 4 does not divide n_embd = 21", "activation": "activation_function",
            "layers": "n_layer: -1", "truncated": "damaged"}[how]


@pytest.mark.parametrize("how", ["missing", "shape", "extra", "twice", "nan", "heads",
                                 "activation", "layers", "truncated"])
def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path, capsys, how):
    gpt2().save_pretrained(tmp_path / "source")
    words = break_it(tmp_path / "source", how)
    result = do_import(capsys, tmp_path / "source", tmp_path / "run")
    assert result.status == 2 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and words in lines[0] and str(tmp_path / "source") in lines[0]
    assert not os.path.exists(tmp_path / "run")


def test_pickles_run_no_code(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    source = tmp_path / "source"
    gpt2().save_pretrained(source)
    (source / "model.safetensors").unlink()
    torch.save({"wte.weight": Evil()}, source / "pytorch_model.bin")
    result = do_import(capsys, source, tmp_path / "run")
    assert result.status == 2 and len(result.stderr.splitlines()) == 1
    assert not os.path.exists(tmp_path / "made") and not os.path.exists(tmp_path / "run")


def test_a_run_is_not_replaced_unasked(tmp_path, capsys):
    gpt2().save_pretrained(tmp_path / "source")
    assert do_import(capsys, tmp_path / "source", tmp_path / "run").status == 0
    again = do_import(capsys, tmp_path / "source", tmp_path / "run")
    assert again.status == 2 and "holds a run; give --new" in again.stderr
    assert do_import(capsys, tmp_path / "source", tmp_path / "run", "--new", "--yes").status == 0
