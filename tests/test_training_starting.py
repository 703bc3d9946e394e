"""training/starting.py: runs that start from another run's weights, by way of main.py."""

import json
import os
import shutil
import signal

import clip_runs
import jobs
import numpy as np
import pytest

import inputs
from configs import schema
from mesh.compat import tf

# Sizes of a source: those of jobs.TINY, with weights that are far from its first ones.
KEYS = dict(n_ctx=16, pad_vocab_multiple=8, eval_steps=None, train_batch_size=4)
CONSTANT = dict(lr_decay="constant", warmup_steps=0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(a dataset of bytes, a run of 8 steps on it, its summary)."""
    directory = tmp_path_factory.mktemp("source")
    data = jobs.dataset(directory)
    path = jobs.config(directory, data, train_steps=8, **{**KEYS, "lr": 0.03})
    with pytest.MonkeyPatch.context(), jobs.quiet():
        result = jobs.process(path)
    return data, f"{directory}/run", result.summary


def words(directory, vocabulary, name):
    """A dataset of words, whose encoder has them in this order after the end of text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(
        {word: number for number, word in enumerate(["<eos>", *vocabulary])}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.save(f"{directory}/{name}.json")
    random = np.random.RandomState(0)
    texts = [" ".join(random.choice(vocabulary, 30)) for _ in range(40)]
    return jobs.dataset(directory, f"{name}_data", texts, f"{directory}/{name}.json#<eos>")


@pytest.fixture(scope="module")
def few_words(tmp_path_factory):
    """(the directory, a run on words of seven ids, padded to eight)."""
    directory = tmp_path_factory.mktemp("words")
    path = jobs.config(directory, words(directory, list("abcdef"), "few"), train_steps=2, **KEYS)
    assert jobs.process(path).status == 0
    return directory, f"{directory}/run"


def test_the_first_step_has_the_sources_loss_and_a_fresh_optimizer(source, tmp_path, capsys):
    data, run, summary = source
    still = jobs.config(tmp_path, data, name="still", init_from=run, train_steps=1,
                        **{**KEYS, "lr": 0.0})
    result = jobs.here(capsys, still)
    assert result.summary["eval_loss"] == pytest.approx(summary["eval_loss"], abs=1e-6)
    assert f"starting from {run}/model.ckpt-8" in result.stderr
    scratch = jobs.config(tmp_path, data, name="scratch", train_steps=1, **{**KEYS, "lr": 0.0})
    assert jobs.here(capsys, scratch).summary["eval_loss"] > summary["eval_loss"] + 0.5
    moved = jobs.config(tmp_path, data, name="moved", init_from=run, train_steps=1, beta1=0.9,
                        beta2=0.99, weight_decay=0.0, **{**KEYS, "lr": 1e-3}, **CONSTANT)
    assert jobs.here(capsys, moved).summary["step"] == 1
    before, after = jobs.weights(run), jobs.weights(tmp_path / "moved")
    assert after["global_step"] == 1
    for name in ("gpt/h0/attn/qkv/kernel", "gpt/h0/mlp/out/kernel", "gpt/wpe"):
        m, v = after[f"{name}/adam_m"], after[f"{name}/adam_v"]
        # Of the first gradient alone, so that each weight moves by the learning rate.
        np.testing.assert_allclose(v, 0.01 * (m / 0.1) ** 2, rtol=1e-3, atol=1e-14)
        step = np.abs(after[name] - before[name])[np.abs(m) > 1e-6]
        np.testing.assert_allclose(step, 1e-3, rtol=0.05)


def test_it_resumes_from_its_own_checkpoints_to_the_bit(source, tmp_path, capsys):
    data, run, _ = source
    shutil.copytree(run, tmp_path / "gone")
    keys = dict(init_from=f"{tmp_path}/gone", **{**KEYS, "eval_steps": 0}, **CONSTANT,
                **jobs.DROPOUT)
    straight = jobs.config(tmp_path, data, name="straight", train_steps=4, **keys)
    stopped = jobs.config(tmp_path, data, name="stopped", train_steps=2, **keys)
    jobs.here(capsys, straight)
    jobs.here(capsys, stopped)
    shutil.rmtree(tmp_path / "gone")
    result = jobs.here(capsys, stopped, "--set", "train_steps=4")
    assert result.summary["step"] == 4 and "starting from" not in result.stderr
    jobs.assert_same_bits(jobs.weights(tmp_path / "straight"), jobs.weights(tmp_path / "stopped"))
    # Anew it needs the source again, and keeps what is there until it has it.
    again = jobs.here(capsys, stopped, "--new", "--yes")
    assert "init_from: " in again.error and jobs.steps(tmp_path / "stopped") == [2, 4]


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_layer": 2}, "has n_layer = 1, and the config 2"),
    ({"n_head": 2}, "has n_head = 4, and the config 2"),
    ({"position": "rotary"}, 'has position = "learned", and the config "rotary"'),
    ({"activation_function": "relu"}, 'activation_function = "gelu", and the config "relu"'),
    ({"n_ctx": 8}, "n_ctx: 8, and init_from"), ({"n_ctx": 32}, "learned positions for 16"),
    ({"n_vocab": 300}, "n_vocab: 300, and init_from"),
    ({"mlm_training": True}, "has mlm_training = false, and the config true"),
    ({"init_from": "/nowhere/at all"}, "init_from: /nowhere/at all holds no run"),
    ({"init_from": None, "init_resize": ["vocab"]}, "init_resize: there is no init_from"),
    ({"init_resize": ["width"]}, "init_resize.0: must be 'vocab' or 'context'"),
    ({"model": "clip_student", "position": "rotary", "clip": {"teacher": "x"}},
     "init_from: only language models")], ids=str)
def test_what_does_not_fit_is_one_line(source, tmp_path, capsys, changes, message):
    data, run, _ = source
    path = jobs.config(tmp_path, data, **{**KEYS, "init_from": run, **changes})
    assert message in jobs.here(capsys, path).error
    assert not os.path.exists(tmp_path / "run")


def test_another_encoder_is_refused(few_words, tmp_path, capsys):
    """Also where the vocabulary may differ, since the ids that both have are other words."""
    _, run = few_words
    data = words(tmp_path, list("abfdce"), "other")
    keys = {**KEYS, "init_from": run}
    path = jobs.config(tmp_path, data, **keys)
    assert "trained with encoder" in jobs.here(capsys, path).error
    error = jobs.here(capsys, path, "--set", 'init_resize=["vocab"]').error
    assert "where id 3 is another text" in error and not os.path.exists(tmp_path / "run")


@pytest.mark.parametrize("vocabulary", ["abcdefghijklmn", "abcd"])
def test_a_vocabulary_grows_and_shrinks(few_words, tmp_path, capsys, vocabulary):
    directory, run = few_words
    data, ids = words(tmp_path, list(vocabulary), "other"), len(vocabulary) + 1
    path = jobs.config(tmp_path, data, init_from=run, init_resize=["vocab"], train_steps=1,
                       **{**KEYS, "lr": 0.0, "weight_decay": 0.0, "eval_steps": 0})
    assert jobs.here(capsys, path).summary["step"] == 1
    before, after = jobs.weights(run)["gpt/wte"], jobs.weights(tmp_path / "run")["gpt/wte"]
    kept = min(7, ids)
    np.testing.assert_array_equal(after[:kept], before[:kept])
    assert len(after) == (16 if ids > 8 else 8)
    if ids > 7:
        np.testing.assert_allclose(after[7:ids], np.tile(before[:7].mean(0), [ids - 7, 1]),
                                   atol=1e-6)


@pytest.mark.parametrize("n_ctx", [8, 40])
def test_a_context_grows_and_shrinks(source, tmp_path, capsys, n_ctx):
    data, run, _ = source
    path = jobs.config(tmp_path, data, init_from=run, init_resize=["context"], train_steps=1,
                       **{**KEYS, "lr": 0.0, "n_ctx": n_ctx, "eval_steps": 0})
    assert jobs.here(capsys, path).summary["step"] == 1
    before, after = jobs.weights(run)["gpt/wpe"], jobs.weights(tmp_path / "run")["gpt/wpe"]
    np.testing.assert_array_equal(after, np.concatenate([before] * 3)[:n_ctx])


def test_a_run_on_a_remote_file_system_gets_a_copy(source, tmp_path, capsys):
    data, run, summary = source
    there = f"ram://{tmp_path.name}/run"
    path = jobs.config(tmp_path, data, init_from=run, train_steps=1,
                       **{**KEYS, "lr": 0.0, "model_path": there})
    result = jobs.here(capsys, path)
    assert result.summary["eval_loss"] == pytest.approx(summary["eval_loss"], abs=1e-6)
    assert f"starting from {there}/init/model.ckpt-8" in result.stderr
    assert not tf.io.gfile.glob(f"{there}/init/*")


def test_rotary_positions_fit_any_context(source, tmp_path, capsys):
    keys = {**KEYS, "eval_steps": 0, "position": "rotary", "train_steps": 1}
    first = jobs.config(tmp_path, source[0], name="first", **keys)
    longer = jobs.config(tmp_path, source[0], name="longer", init_from=f"{tmp_path}/first",
                         **{**keys, "n_ctx": 32, "lr": 0.0})
    jobs.here(capsys, first)
    jobs.here(capsys, longer)
    before, after = jobs.weights(tmp_path / "first"), jobs.weights(tmp_path / "longer")
    np.testing.assert_array_equal(after["gpt/h0/mlp/in/kernel"], before["gpt/h0/mlp/in/kernel"])


def test_gpt_c_starts_from_a_plain_gpt(source, tmp_path, capsys):
    """And a plain GPT from that; the projection is new, and the language model the source's."""
    data, run, summary = source
    student, _ = clip_runs.student(tmp_path / "student")
    keys = {**KEYS, "lr": 0.0, "train_steps": 1}
    path = jobs.config(tmp_path, data, name="gptc", init_from=run, model="gpt_c",
                       clip={"student": student}, **keys)
    result = jobs.here(capsys, path).summary
    assert result["eval_loss"] == pytest.approx(summary["eval_loss"], abs=1e-6)
    assert result["loss/clip"] > 0
    held = jobs.weights(tmp_path / "gptc")
    assert held["clip_head/last/projection/kernel"].std() > 0
    back = jobs.config(tmp_path, data, name="back", init_from=f"{tmp_path}/gptc", **keys)
    assert jobs.here(capsys, back).summary["eval_loss"] == pytest.approx(summary["eval_loss"],
                                                                         abs=1e-6)


GPT2 = dict(vocab_size=257, n_embd=16, n_layer=1, n_head=4, n_positions=16)


def published(directory):
    """A GPT-2 of transformers' of random weights, saved: (the module, its directory)."""
    pytest.importorskip("transformers", reason="compares with transformers")
    import test_import_gpt

    module = test_import_gpt.gpt2(**GPT2)
    module.save_pretrained(directory)
    return module, str(directory)


@pytest.mark.parametrize("mesh", [{}, {"mesh_shape": "x:2,y:2",
                                       "layout": "batch:x,vocab:y,heads:y,embed_sequence:y",
                                       "tokens_per_mb_per_replica": 16}], ids=["one", "mesh"])
def test_hugging_faces_weights_give_transformers_loss_on_the_first_batch(source, tmp_path, capsys,
                                                                         mesh):
    torch = pytest.importorskip("torch", reason="compares with transformers")
    module, folder = published(tmp_path / "hf")
    path = jobs.config(tmp_path, source[0], init_from=folder, train_steps=1,
                       **{**KEYS, "eval_steps": 0, **mesh})
    assert jobs.here(capsys, path).summary["step"] == 1
    config = schema.load(path)
    batch = next(iter(inputs.train_input_fn(config, 0)({}).take(1).as_numpy_iterator()))
    rows = torch.tensor(batch["tokens"]).long()
    with torch.no_grad():
        logits = module(rows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 257), rows[:, 1:].reshape(-1))
    assert jobs.losses(tmp_path / "run")[0] == pytest.approx(float(expected), abs=1e-4)
    # What was imported is not needed beside a checkpoint.
    assert not tf.io.gfile.exists(str(tmp_path / "run" / "init"))


@pytest.mark.slow
def test_killed_before_its_first_checkpoint_it_starts_again(source, tmp_path):
    _, folder = published(tmp_path / "hf")
    keys = dict(init_from=folder, train_steps=200, n_ctx=16, **CONSTANT, **jobs.DROPOUT)
    killed, whole = (jobs.config(tmp_path, source[0], name=name, **keys)
                     for name in ("killed", "whole"))
    running = jobs.start(killed)
    jobs.wait_for(running, "step   5/200")
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert jobs.steps(tmp_path / "killed") == []
    assert json.loads((tmp_path / "killed" / "init" / "run.json").read_text())
    first, second = (jobs.process(path) for path in (killed, whole))
    assert first.summary["step"] == second.summary["step"] == 200
    jobs.assert_same_bits(jobs.weights(tmp_path / "killed"), jobs.weights(tmp_path / "whole"))
