"""--export hf: transformers loads what is written, with the same logits and the same ids."""

import json
import os

import numpy as np
import pytest
import test_import_gpt
import test_models_gpt
import test_predictor
from test_encoders import HARD
from test_import_clip import do_import, run_main

import encoders
from configs.errors import UserError
from interop import export_hf
from mesh.compat import tf
from training import checkpoints

torch = pytest.importorskip("torch", reason="compares with transformers")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

gpt2, neo, gptj, neox = (getattr(test_import_gpt, name) for name in ("gpt2", "neo", "gptj", "neox"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(directory):
    """What transformers makes of it; every weight has to be there, and no other."""
    module, facts = transformers.AutoModelForCausalLM.from_pretrained(
        str(directory), output_loading_info=True)
    assert not any(facts.values()), facts
    return module.eval()


def logits_of(module, tokens=test_models_gpt.TOKENS[:, :-1]):
    with torch.no_grad():
        return module(torch.tensor(tokens.astype(np.int64))).logits.numpy()


@pytest.mark.parametrize(("make", "changes"), [
    (gpt2, {}), (gpt2, {"n_inner": 50, "activation_function": "gelu"}),
    # The square root of a head's size is what queries are multiplied by on their way.
    (neo, {"hidden_size": 20, "num_heads": 5}), (gptj, {}), (neox, {}),
    (neox, {"use_parallel_residual": False, "tie_word_embeddings": True, "hidden_act": "relu"})],
    ids=["gpt2", "gpt2 wide", "neo", "gptj", "neox", "neox tied"])
def test_there_and_back_is_the_same_to_the_bit(tmp_path, capsys, make, changes):
    module, run = make(**changes), tmp_path / "run"
    module.save_pretrained(tmp_path / "source")
    assert do_import(capsys, tmp_path / "source", run).status == 0
    result = run_main(capsys, "--model", run / "config.json", "--export", "hf", tmp_path / "out")
    assert result.status == 0 and result.stdout == f"{tmp_path}/out\n", result.stderr
    back = load(tmp_path / "out")
    assert type(back) is type(module)
    theirs, ours = module.state_dict(), back.state_dict()
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name
    np.testing.assert_array_equal(logits_of(back), logits_of(module))


ROTARY = dict(position="rotary", no_weight_tie=False)


@pytest.mark.parametrize("changes", [
    {}, {"activation_function": "silu", "intermediate_size": 40, "pad_masked": False},
    {**ROTARY, "rotary_dims": 6, "rotary_base": 300.0}, {**ROTARY, "parallel_residual": "one_norm"},
    {**ROTARY, "parallel_residual": "two_norms", "activation_function": "gelu_exact"}],
    ids=["learned", "unmasked", "rotary", "one norm", "two norms"])
def test_a_run_of_ours_has_the_same_logits(tmp_path, changes):
    config = test_predictor.save_run(test_predictor.make_config(tmp_path / "run", **changes))
    export_hf.export(config, str(tmp_path / "out"))
    tokens = np.random.RandomState(1).randint(0, 257, [1, test_predictor.N_CTX])
    with tf.Graph().as_default(), tf.Session() as session:
        logits, feed, weights = test_predictor.full_forward(config)
        tf.train.Saver(weights).restore(session, checkpoints.latest(config.model_path))
        expected = session.run(logits, {feed: tokens})
    found = logits_of(load(tmp_path / "out"), tokens)
    assert found.shape[-1] == (257 if config.pad_masked else config.n_vocab_padded)
    np.testing.assert_allclose(found, expected[..., :found.shape[-1]], atol=2e-4)
    assert np.abs(expected[..., :257]).max() > 0.5


def test_large_ones_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(export_hf, "_SHARD", 20000)
    config = test_predictor.save_run(test_predictor.make_config(tmp_path / "run"))
    export_hf.export(config, str(tmp_path / "out"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2 and all((tmp_path / "out" / name).exists() for name in files)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    load(tmp_path / "out")


def encoder_specs(folder):
    """Specs of an encoder of each kind that is the same at Hugging Face."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    import encoders.char
    encoders.char.train(HARD).save(str(folder / "char.json"))
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.train_from_iterator(HARD, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    words.save(str(folder / "words.json"))
    return ["byte", f"char:{folder}/char.json", f"{folder}/words.json", "gpt2"]


def test_ids_are_the_encoders(tmp_path):
    for number, spec in enumerate(encoder_specs(tmp_path)):
        encoder, out = encoders.load(spec), tmp_path / str(number)
        out.mkdir()
        export_hf._write_encoder(str(out), encoder, 16)
        loaded = transformers.AutoTokenizer.from_pretrained(str(out))
        assert loaded.eos_token_id == encoder.eos_id
        end = loaded.eos_token
        for text in (text for text in HARD if end not in text):
            ids = loaded(text)["input_ids"]
            assert ids == encoder.encode(text), (spec, text)
            assert loaded.decode(ids) == encoder.decode(ids), (spec, text)
        assert loaded(f"a{end}")["input_ids"] == [*encoder.encode("a"), encoder.eos_id]


def test_clips_ids_are_openais_but_for_ftfy(tmp_path, shared_data):
    encoder = encoders.load("clip:" + os.path.join(shared_data, "bpe_simple_vocab_16e6.txt.gz"))
    export_hf._write_encoder(str(tmp_path), encoder, 16)
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in ("A photo of a cat.", "  Hello,\n\n WORLD!  ", "don't WE'LL 12,345.6 caf\u00e9",
                 "\u4f60\u597d, \u0434\u0430"):
        ids = loaded(text)["input_ids"]
        assert ids == encoder.encode(text)
        assert loaded.decode(ids).strip() == encoder.decode(ids).strip()


def test_the_tokenizer_comes_with_the_model(tmp_path):
    config = test_predictor.save_run(test_predictor.make_config(tmp_path / "run"))
    export_hf.export(config, str(tmp_path / "out"))
    module, tokenizer = load(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(
        str(tmp_path / "out"))
    assert module.config.eos_token_id == tokenizer.eos_token_id == 256
    prompt = tokenizer("caf\u00e9", return_tensors="pt")
    out = module.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=256)
    from training import predictor
    expected = next(predictor.Predictor(config, encoders.load("byte")).generate(
        [list("caf\u00e9".encode())], 1, 8, temperature=0.0))
    found = [t for t in out[0, prompt["input_ids"].shape[1]:].tolist() if t != 256]
    assert found == list(expected.tokens)


@pytest.mark.parametrize(("changes", "words"), [
    ({"position": "alibi"}, "position: 'alibi'"), ({"norm": "rms"}, "norm: 'rms'"),
    ({"mlp_glu": True}, "mlp_glu: True"), ({"macaron": True}, "macaron: True"),
    ({"rezero": True}, "rezero: True"), ({"share_parameters": True}, "share_parameters: True"),
    ({"attention_types": ("linear", "global")}, "attention_types: global, linear"),
    ({**ROTARY, "attention_types": ("local", "global")}, "attention_types: global, local"),
    ({"num_mem_kv": 2}, "num_mem_kv: 2"), ({"no_weight_tie": True}, "no_weight_tie: True"),
    ({"parallel_residual": "one_norm"}, "parallel_residual: 'one_norm'"),
    ({"activation_function": "mish"}, "activation_function: transformers has no 'mish'"),
    ({"position": "rotary", "rotary_style": "interleaved"}, "parallel_residual: 'none'"),
    ({"mlm_training": True}, "mlm_training: True"),
    # The run has biases that the other system does not.
    ({"attention_types": ("local", "global")}, "no place for gpt/h0/attn/qkv/bias"),
    ({**ROTARY, "no_weight_tie": True}, "no_weight_tie: True"),
    ({"position": "rotary", "rotary_style": "interleaved", "parallel_residual": "one_norm",
      "no_weight_tie": True}, "rotary_style: 'interleaved'")])
def test_what_has_no_twin_is_refused_by_name(tmp_path, changes, words):
    config = test_predictor.make_config(tmp_path / "run", **changes)
    if "mlm_training" not in changes:
        test_predictor.save_run(config)
    with pytest.raises(UserError) as caught:
        export_hf.export(config, str(tmp_path / "out"))
    assert words in str(caught.value) and "--export hf: " in str(caught.value)
    assert not [name for name in os.listdir(tmp_path) if name != "run"]


def test_nothing_is_overwritten_or_left(tmp_path, monkeypatch):
    config = test_predictor.save_run(test_predictor.make_config(tmp_path / "run"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken is there already"):
        export_hf.export(config, str(tmp_path / "taken"))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_hf, "_write_encoder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_hf.export(config, str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["run", "taken"]
