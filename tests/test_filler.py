"""Masked language models that have learnt something: scores, and prompts with masks filled in."""

import io
import json
import re

import jobs
import numpy as np
import pytest
from test_configs_progress import Terminal

import encoders
from configs import progress, schema
from configs.errors import UserError
from mesh import devices
from mesh.compat import mtf, tf
from models import layers
from training import checkpoints, filler, language_models

FACTS = [("sky", "blue"), ("sun", "gold"), ("fog", "grey"), ("sea", "teal")]
MASK = 257  # the first id that pads the 257 of bytes


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run that learns FACTS: (the path of its config, its directory, Result)."""
    directory = tmp_path_factory.mktemp("learnt")
    lines = [f"the {thing} is {colour}." for thing, colour in FACTS]
    documents = [" ".join(np.random.RandomState(i).permutation(lines * 3)) for i in range(40)]
    path = jobs.config(
        directory, jobs.dataset(directory, documents=documents), n_ctx=20, n_embd=32,
        mlm_training=True, mlm_mask_prob=0.2, mlm_random_token_prob=0.05, train_steps=900,
        iterations=100, steps_per_checkpoint=900, n_layer=2, eval_steps=4, train_batch_size=16,
        position="rotary", predict_batch_size=3, sample_tokens=8)
    return path, directory / "run", jobs.process(path)


@pytest.fixture(scope="module")
def model(learnt):
    return filler.Filler(schema.load(learnt[0]), encoders.load("byte"))


def test_it_learns_and_says_so(learnt):
    path, model_path, result = learnt
    summary = result.summary
    assert summary["mlm_accuracy"] > 0.85 and summary["eval_loss"] < 0.6
    assert summary["mlm_perplexity"] == pytest.approx(np.exp(summary["eval_loss"]))
    assert summary["perplexity"] is None and summary["loss/mlm"] == summary["eval_loss"]
    line = [line for line in result.stderr.splitlines() if line.startswith("step 900: ")][0]
    assert "mlm perplexity" in line and "mlm accuracy" in line
    shown = jobs.scalars(str(model_path / "eval"))
    assert shown["mlm_accuracy"][900] == pytest.approx(summary["mlm_accuracy"])
    assert "loss/mlm" in jobs.scalars(str(model_path))


def test_a_terminal_shows_how_far_it_is(model, monkeypatch):
    monkeypatch.setattr(progress.tqdm, "silent", False)  # --quiet of another test
    shown = Terminal()
    monkeypatch.setattr(filler, "tqdm", lambda delay, **keys: progress.tqdm(
        file=shown, mininterval=0, **keys))
    model.fill([filler.encode(model.config, model.encoder, "the sky is bl[MASK]e.")], 4)
    assert re.search("filling in: .* 3/4 ", shown.getvalue())


def test_entmax_and_ids_that_are_never_predicted(learnt):
    """The entmax has fewer tokens than the softmax; ignored ids are never filled in."""
    config, encoder = schema.load(learnt[0]), encoders.load("byte")
    prompt = filler.encode(config, encoder, "the sky is bl[MASK]e.")
    place = prompt.index(MASK)
    hot = dict(num_samples=60, temperature=1.5)

    def found(**changes):
        other = filler.Filler(config.replace(**changes), encoder)
        return {sample.tokens[place] for sample in other.fill([prompt], **hot)}

    plain = found()
    assert len(found(entmax_sampling=True, entmax_alpha=2.0)) < len(plain)
    likeliest = ord("u")
    assert likeliest in plain
    assert likeliest not in found(mlm_mask_ignore_ids=[likeliest])


def test_evaluation_masks_the_same_whatever_the_seed_and_batch_size(learnt, capsys):
    path, _, result = learnt
    wanted = result.summary
    for flags in [["seed=5"], ["eval_batch_size=4", "eval_steps=8"]]:
        summary = jobs.here(capsys, path, "--eval", *(
            part for flag in flags for part in ("--set", flag))).summary
        assert summary["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-5)
        assert summary["mlm_accuracy"] == pytest.approx(wanted["mlm_accuracy"], rel=1e-5)


def test_prompts_are_filled_in(learnt, capsys, tmp_path):
    """Two lengths of prompts and several masks in one call; the right words."""
    out = tmp_path / "filled.jsonl"
    prompts = ["the sun is g[MASK]ld.", "the sky is b[MASK][MASK]e.", "the [MASK]ea is teal."]
    found = jobs.here(capsys, learnt[0], "--predict", "--temperature", 0, "--set",
                      f"predict_path={out}", *(x for p in prompts for x in ("--prompt", p)))
    wanted = ["the sun is gold.", "the sky is blue.", "the sea is teal."]
    assert found.status == 0 and found.stdout.split("\n---------------\n") == [*wanted, ""]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["prompt"], line["text"]) for line in lines] == list(
        zip(prompts, wanted, strict=True))


@pytest.mark.parametrize(("flags", "wanted"), [
    ([], "--prompt: missing; give a text with [MASK] in it"),
    (["--prompt", "a [MASK]", "--stop", "x"], "--stop: a masked language model fills in"),
    (["--prompt", "a [MASK]", "--max_new_tokens", 3], "--max_new_tokens: a masked language"),
    (["--prompt", "plain"], "prompt: there is no [MASK] in 'plain'")])
def test_flags_that_mean_nothing_here(learnt, capsys, flags, wanted):
    assert wanted in jobs.here(capsys, learnt[0], "--predict", *flags).error


def test_interactive_and_another_text_for_the_mask(learnt, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("no mask\nthe f<m>g is grey.\n"))
    found = jobs.here(capsys, learnt[0], "--predict", "--interactive", "--temperature", 0,
                      "--set", "mlm_mask_text=<m>")
    assert found.stdout == "the fog is grey.\n---------------\n"
    assert "error: prompt: there is no <m> in 'no mask'" in found.stderr


def encode(model, prompt):
    return filler.encode(model.config, model.encoder, prompt)


def by_full_passes(config, prompt):
    """Masks filled in from left to right by argmax over the encoder's ids of full passes."""
    with tf.Graph().as_default(), tf.Session() as session:
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        model, ctx = language_models.build(config, 257), layers.Context(mesh, config)
        tokens = tf.placeholder(tf.int32, [1, len(prompt)])
        shape = mtf.Shape([mtf.Dimension("batch", 1), mtf.Dimension("sequence", len(prompt))])
        logits = model.logits(ctx, model.hidden(ctx, mtf.import_tf_tensor(mesh, tokens, shape)))
        lowering = mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(config)}, autostack=False)
        logits = lowering.export_to_tf_tensor(logits)
        tf.train.Saver(tf.global_variables()).restore(session, checkpoints.latest(
            config.model_path))
        filled = list(prompt)
        while MASK in filled:
            at = filled.index(MASK)
            filled[at] = int(session.run(logits, {tokens: [filled]})[0, at, :257].argmax())
        return filled


def test_greedy_filling_equals_full_passes_on_every_mesh(learnt, model):
    random = np.random.RandomState(0)
    prompts = [random.randint(97, 123, length).tolist() for length in (9, 9, 5, 9)]
    for prompt, at in zip(prompts, [[0], [3, 4, 5], [4], [0, 8]], strict=True):
        for i in at:
            prompt[i] = MASK
    wanted = [by_full_passes(model.config, prompt) for prompt in prompts]
    for changes in ({}, {"mesh_shape": "x:2,y:2", "layout": "sequence:x,vocab:y,heads:y"}):
        found = filler.Filler(model.config.replace(**changes), model.encoder)
        assert [sample.tokens for sample in found.fill(prompts, temperature=0.0)] == wanted
        found.close()


def test_samples_are_functions_of_prompt_number_and_settings(model):
    prompts = [encode(model, "[MASK][MASK][MASK]"), encode(model, "the [MASK]ky is")]
    together = model.fill(prompts, 3, temperature=3.0, seed=4)
    assert [sample.number for sample in together] == [0, 1, 2] * 2
    apart = [s for p in prompts for s in model.fill([p], 3, temperature=3.0, seed=4)]
    assert [s.tokens for s in together] == [s.tokens for s in apart]
    assert len({tuple(s.tokens) for s in together[:3]}) == 3
    other = model.fill(prompts, 3, temperature=3.0, seed=5)
    assert [s.tokens for s in other] != [s.tokens for s in together]
    assert all(0 <= t < 257 for s in together for t in s.tokens)


def test_prompts_that_cannot_be_filled_in(model):
    assert encode(model, "a [MASK]") == [97, 32, MASK]  # a byte's space is a token like any other
    for prompt, wanted in [("plain", r"prompt: there is no \[MASK\] in 'plain'"), ("", "no .MASK"),
                           ("[MASK]" + "a" * 20, "has 21 tokens, and the model reads n_ctx = 20")]:
        with pytest.raises(UserError, match=wanted):
            encode(model, prompt)


def test_a_words_space_belongs_to_its_mask_and_rows_begin_with_their_token(model):
    encoder = encoders.load("gpt2")
    config = model.config.replace(n_vocab=50257, mlm_mask_id=50257, mlm_cls_token_id=50258)
    ids = filler.encode(config, encoder, "a rose is near [MASK].")
    assert ids == [50258, *encoder.encode("a rose is near"), 50257, *encoder.encode(".")]
    rose = encoder.encode(" rose")
    assert len(rose) == 1
    assert filler.decode(config, encoder, [*ids[:-2], *rose, ids[-1]]) == "a rose is near rose."
