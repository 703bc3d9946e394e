"""The loops, by runs of main.py: what they print, write, keep and refuse."""

import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import jobs
import pytest
import scalar_names
import tfrecord_runs

import inputs
from configs import schema
from training import hooks, keeping

KEYS = ["step", "train_loss", "eval_loss", "perplexity", "bits_per_byte", "bits_per_decoded_byte",
        "loss/lm", "tokens_per_sec", "seconds", "model_path"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 6 steps with checkpoints at 4 and 6, in a process: (config's path, its Result)."""
    directory = tmp_path_factory.mktemp("finished")
    path = jobs.config(directory, jobs.dataset(directory), train_steps=6, steps_per_checkpoint=4,
                       iterations=3, eval_steps=None, res_dropout=0.1, sample_tokens=5)
    return path, jobs.process(path)


@pytest.fixture
def trained(finished, tmp_path):
    """A copy of that run to work on: (config's path, model_path)."""
    values = schema.load(finished[0])
    shutil.copytree(values.model_path, tmp_path / "run")
    return jobs.config(tmp_path, values.datasets[0].id, train_steps=6, steps_per_checkpoint=4,
                       iterations=3, eval_steps=None, res_dropout=0.1), tmp_path / "run"


def contents(directory):
    """The bytes of the checkpoints and of what says which is the newest."""
    return {path.name: path.read_bytes() for path in directory.iterdir()
            if path.name.startswith(("model.ckpt", "checkpoint"))}


# What a run leaves.

def test_summary_is_the_last_line_of_stdout_and_the_only_one(finished):
    path, result = finished
    assert list(result.summary) == KEYS
    assert result.stdout.count("\n") == 1
    assert result.summary["step"] == 6
    assert result.summary["model_path"] == schema.load(path).model_path
    assert 0 < result.summary["seconds"] < 300 and result.summary["tokens_per_sec"] > 0


def test_progress_goes_to_stderr_one_line_each(finished):
    lines = [line for line in finished[1].stderr.splitlines() if line.startswith("step")]
    assert [line.split("  ")[0] for line in lines if "validation" not in line] == [
        f"step {step}/6" for step in (1, 3, 4, 6)]
    assert [line.split(":")[0] for line in lines if "validation" in line] == ["step 4", "step 6"]
    assert "tokens/s" in lines[1] and "left" in lines[1]
    assert "\r" not in finished[1].stderr  # a progress bar is for terminals


def test_metrics_hold_a_line_for_each_evaluation(finished):
    path, result = finished
    first, last = jobs.metrics(schema.load(path).model_path)
    assert list(first) == list(last) == KEYS
    assert (first["step"], last["step"]) == (4, 6)
    assert {**last, "seconds": 0} == {**result.summary, "seconds": 0}
    assert first["seconds"] < last["seconds"] <= result.summary["seconds"]
    assert first["eval_loss"] > last["eval_loss"]
    assert last["perplexity"] == pytest.approx(math.exp(last["eval_loss"]))


def test_tensorboard_shows_the_run(finished):
    path, result = finished
    config = schema.load(path)
    shown = jobs.scalars(config.model_path)
    scalar_names.check("gpt", config.model_path)
    for tag, curve in shown.items():
        assert list(curve) == ([3, 4, 6] if tag == "tokens_per_second" else [1, 3, 4, 6]), tag
    assert shown["loss"] == shown["loss/lm"]
    assert shown["loss"][6] == result.summary["train_loss"]
    assert shown["loss"][6] < shown["loss"][1]
    facts = inputs.dataset_facts(config, "train")
    for step, loss in shown["loss/lm"].items():
        assert shown["perplexity"][step] == pytest.approx(math.exp(loss), rel=1e-5)
        assert shown["bits_per_byte"][step] == pytest.approx(
            loss / math.log(2) * facts.tokens / facts.bytes, rel=1e-5)
    assert shown["learning_rate"][1] == pytest.approx(config.lr)
    evaluated = jobs.scalars(os.path.join(config.model_path, "eval"))
    assert evaluated["loss"] == {line["step"]: pytest.approx(line["eval_loss"])
                                 for line in jobs.metrics(config.model_path)}
    [text] = jobs.shown_text(config.model_path, "config").values()
    assert "| n_embd | 16 | file |" in text.splitlines()
    assert list(jobs.shown_text(config.model_path, "sample")) == [4, 6]


def test_config_is_kept_as_one_that_can_be_used(finished):
    config = schema.load(finished[0])
    kept = schema.load(os.path.join(config.model_path, "config.json"))
    assert kept.model_dump() == config.model_dump()


def test_directory_holds_checkpoints_and_no_temporary_files(finished):
    model_path = schema.load(finished[0]).model_path
    assert jobs.steps(model_path) == [4, 6]
    names = {name.partition(".")[0] for name in os.listdir(model_path)}
    assert names == {"model", "checkpoint", "config", "run", "metrics", "events", "eval",
                     "scores", "embeddings", "projector_config"}
    assert not [name for name in os.listdir(model_path) if name.endswith(".tmp")]


# After a run.

def test_train_steps_already_reached(trained, capsys, finished):
    path, model_path = trained
    before = contents(model_path)
    result = jobs.here(capsys, path)
    assert "nothing to train: step 6 of train_steps = 6" in result.stderr
    assert result.summary["step"] == 6 and result.summary["train_loss"] is None
    assert result.summary["eval_loss"] == pytest.approx(finished[1].summary["eval_loss"], abs=1e-6)
    assert contents(model_path) == before


def test_eval_prints_and_appends_the_same_scores(trained, capsys, finished):
    path, model_path = trained
    before = contents(model_path)
    summary = jobs.here(capsys, path, "--eval").summary
    assert list(summary) == KEYS and summary["train_loss"] is None
    for key in ("step", "eval_loss", "perplexity", "bits_per_byte"):
        assert summary[key] == pytest.approx(finished[1].summary[key], rel=1e-6)
    assert jobs.metrics(model_path)[-1] == summary
    assert contents(model_path) == before


def test_eval_without_a_checkpoint(tmp_path, capsys):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path))
    assert "no checkpoint there; train first" in jobs.here(capsys, path, "--eval").error


@pytest.mark.parametrize("flags", [(), ("--eval",)])
def test_another_architecture_is_refused_by_its_key(trained, capsys, flags):
    path, model_path = trained
    before = contents(model_path)
    error = jobs.here(capsys, path, "--set", "n_embd=32", *flags).error
    assert "weights have n_embd = 16, the config 32" in error
    assert contents(model_path) == before


def test_another_encoder_is_refused_with_its_hash(tmp_path, capsys):
    """Two alphabets of the same size, so that the shapes are alike."""
    data = [jobs.dataset(tmp_path, name, [letters * 20] * 16, "char")
            for name, letters in (("abc", "abca"), ("abd", "abda"))]
    first = jobs.config(tmp_path, data[0], train_steps=1)
    assert jobs.here(capsys, first).summary["step"] == 1
    error = jobs.here(capsys, jobs.config(tmp_path, data[1], train_steps=2)).error
    assert "trained with encoder char:" in error and "abc" in error and "abd" in error
    known = json.loads((tmp_path / "run" / "run.json").read_text())["encoder"]["hash"]
    assert known in error


# Starting afresh.

def test_new_without_a_terminal_needs_yes(trained, capsys):
    path, model_path = trained
    before = contents(model_path)
    error = jobs.here(capsys, path, "--new").error
    assert f"would delete the run in {model_path} (step 6); give --yes" in error
    assert contents(model_path) == before


class Terminal:
    """Stands for stdin on a terminal."""

    def __init__(self, answer):
        self._answer = answer

    def isatty(self):
        return True

    def readline(self):
        return self._answer


@pytest.mark.parametrize("answer", ["\n", "n\n", "", "yesterday\n"])
def test_new_asks_and_keeps_the_run_unless_told_yes(trained, capsys, monkeypatch, answer):
    path, model_path = trained
    before = contents(model_path)
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    result = jobs.here(capsys, path, "--new")
    assert f"Delete the run in {model_path} (step 6)? [y/N]" in result.stderr
    assert "is kept" in result.stderr and result.status == 2
    assert contents(model_path) == before


@pytest.mark.parametrize("flags, answer", [(["--new", "--yes"], None), (["--new"], "y\n")])
def test_new_starts_from_nothing(trained, capsys, monkeypatch, flags, answer):
    path, model_path = trained
    (model_path / "events.out.tfevents.1.old").write_text("")
    (model_path / "notes.txt").write_text("mine")
    if answer:
        monkeypatch.setattr("sys.stdin", Terminal(answer))
    result = jobs.here(capsys, path, *flags, "--set", "n_embd=8", "--set", "train_steps=2")
    assert result.summary["step"] == 2
    assert jobs.steps(model_path) == [2]
    assert not (model_path / "events.out.tfevents.1.old").exists()
    assert (model_path / "notes.txt").read_text() == "mine"
    assert jobs.weights(model_path)["gpt/wpe"].shape == (8, 8)
    assert [line["step"] for line in jobs.metrics(model_path)] == [2]


def test_new_deletes_no_directory_that_holds_no_run(tmp_path, capsys):
    mine = tmp_path / "run" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), train_steps=1)
    assert jobs.here(capsys, path, "--new").summary["step"] == 1
    assert mine.read_text() == "years of work"


# Checkpoints.

def test_keep_deletes_older_checkpoints_over_legs_and_processes(tmp_path, capsys):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), train_steps=3, steps_per_checkpoint=1,
                       keep=2)
    assert jobs.here(capsys, path).summary["step"] == 3
    assert jobs.steps(str(tmp_path / "run")) == [2, 3]
    assert jobs.here(capsys, path, "--set", "train_steps=4").summary["step"] == 4
    assert jobs.steps(str(tmp_path / "run")) == [3, 4]


def test_fewer_steps_than_between_checkpoints(tmp_path, capsys):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), train_steps=2, steps_per_checkpoint=50)
    summary = jobs.here(capsys, path).summary
    assert summary["step"] == 2 and summary["eval_loss"] is None and summary["train_loss"] > 0
    assert jobs.steps(str(tmp_path / "run")) == [2]


def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path, capsys, monkeypatch):
    """Killed at the second batch of the evaluation of step 4, which is to be the best."""
    data = jobs.dataset(tmp_path)
    keys = dict(train_steps=6, steps_per_checkpoint=2, eval_steps=3, keep=1, keep_best=1)
    paths = [jobs.config(tmp_path, data, name=name, **keys) for name in ("straight", "broken")]
    straight = jobs.here(capsys, paths[0])
    begun, real = [0], hooks.Bar.after_run

    def after_run(self, context, values):
        begun[0] += 1
        if begun[0] == 3 + 2:
            raise SystemExit("killed")
        real(self, context, values)

    with monkeypatch.context() as patch:
        patch.setattr(hooks.Bar, "after_run", after_run)
        with pytest.raises(SystemExit):
            jobs.here(capsys, paths[1])
    assert [line["step"] for line in jobs.metrics(tmp_path / "broken")] == [2]
    (tmp_path / "broken" / "metrics.jsonl").open("a").write('{"step": 4, "eval')
    result = jobs.here(capsys, paths[1])
    assert "the evaluation of step 4 was cut off; it comes first" in result.stderr
    assert "cut off" not in straight.stderr
    found = [[(line["step"], line["eval_loss"]) for line in jobs.metrics(tmp_path / name)]
             for name in ("straight", "broken")]
    assert found[0] == found[1] and [step for step, _ in found[0]] == [2, 4, 6]
    scores = [keeping.scores(str(tmp_path / name)) for name in ("straight", "broken")]
    assert scores[0] == scores[1] and jobs.steps(tmp_path / "straight") == jobs.steps(
        tmp_path / "broken")
    assert jobs.scalars(tmp_path / "broken" / "eval")["loss"] == jobs.scalars(
        tmp_path / "straight" / "eval")["loss"]
    again = jobs.here(capsys, paths[1])
    assert "cut off" not in again.stderr and len(jobs.metrics(tmp_path / "broken")) == 3


# What goes wrong on the way.

def test_a_shard_that_is_replaced_during_a_run_stops_it_at_a_checkpoint(tmp_path, capsys,
                                                                         monkeypatch):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), steps_per_checkpoint=2)
    [shard, *_] = (tmp_path / "tiny").glob("tiny_0_*.tfrecords")
    real, legs = inputs.train_input_fn, []

    def replacing(*args):
        legs.append(args)
        os.utime(shard, (time.time() + 10, time.time() + 10))  # TensorFlow sees seconds
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "train_input_fn", replacing)
        error = jobs.here(capsys, path).error
    assert f"{shard} was written anew during the run" in error and len(legs) == 1
    assert jobs.steps(tmp_path / "run") == [2]
    assert jobs.here(capsys, path).summary["step"] == 4


def test_a_loss_that_is_no_number_leaves_the_last_checkpoint(trained, capsys):
    path, model_path = trained
    before = contents(model_path)
    error = jobs.here(capsys, path, "--set", "train_steps=12", "--set", "lr=1e37", "--set",
                      "gradient_clipping=0").error
    assert "lower lr" in error
    assert re.search(r"at step \d+ the (loss|gradient.s norm) is (nan|inf)", error)
    assert str(model_path) in error
    assert contents(model_path) == before
    assert jobs.here(capsys, path, "--set", "train_steps=7").summary["step"] == 7


def test_a_damaged_shard_is_named_with_the_place(tmp_path, capsys):
    data = jobs.dataset(tmp_path)
    [shard] = (tmp_path / "tiny").glob("tiny_[0-9]*.tfrecords")
    content = bytearray(shard.read_bytes())
    offset = 0
    for _ in range(20):  # a record: length, checksum of it, data, checksum of them
        offset += 16 + struct.unpack("<Q", content[offset:offset + 8])[0]
    content[offset + 20] ^= 255
    shard.write_bytes(content)
    error = jobs.here(capsys, jobs.config(tmp_path, data)).error
    assert str(shard) in error and str(offset) in error, error


def test_skip_corrupt_is_a_flag_and_counts_in_the_summary(tmp_path, capsys):
    """A record of training and one of validation are damaged."""
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), eval_steps=None, train_steps=2)
    for shard in (tmp_path / "tiny").glob("*.tfrecords"):
        content = bytearray(shard.read_bytes())
        content[40] ^= 255
        shard.write_bytes(content)
    assert "corrupt" in jobs.here(capsys, path).error
    result = jobs.here(capsys, path, "--skip_corrupt")
    assert result.summary["skipped_records"] == 2 and result.summary["step"] == 2
    assert result.stderr.count("1 records of tiny_") == 2
    assert jobs.here(capsys, path, "--eval", "--skip_corrupt").summary["skipped_records"] == 1
    for flags, status in (([], 1), (["--skip_corrupt"], 0)):
        checked = jobs.here(capsys, path, "--check_dataset", *flags)
        assert checked.status == status
        places = [line for line in checked.stdout.splitlines() if "corrupt record" in line]
        assert [line.split(":")[0].strip() for line in places] == 2 * (
            ["left out"] if flags else ["problem"])
        assert ("2 damaged records left out (skip_corrupt)" in checked.stdout) == bool(flags)


def test_a_damaged_checkpoint_is_named(trained, capsys):
    path, model_path = trained
    for data in model_path.glob("model.ckpt-*.data*"):
        data.write_bytes(data.read_bytes()[:1000])
    before = contents(model_path)
    for flags in (["--set", "train_steps=7"], ["--eval"], ["--predict"]):
        error = jobs.here(capsys, path, *flags).error
        assert f"{model_path}/model.ckpt-6: the checkpoint is damaged" in error
    assert contents(model_path) == before


@pytest.mark.parametrize("recorded", [False, True])
def test_weights_of_another_shape_are_refused_and_nothing_is_written(trained, capsys, recorded):
    """Whether run.json tells, or, where there is none, the first tensor that differs."""
    path, model_path = trained
    if not recorded:
        (model_path / "run.json").unlink()
    before = contents(model_path)
    for flags in (["--set", "train_steps=7"], ["--eval"], ["--predict"]):
        error = jobs.here(capsys, path, *flags, "--set", "n_embd=32").error
        if recorded:
            assert "n_embd = 16, the config 32" in error
        else:
            assert re.search(rf"{model_path}/model.ckpt-6: gpt/\S+ has shape \[.*16.*\], and the "
                             r"config makes it \[.*32.*\]; ", error)
    assert contents(model_path) == before
    assert (model_path / "run.json").exists() == recorded


def test_another_optimizer_is_refused(trained, capsys):
    path, model_path = trained
    before = contents(model_path)
    error = jobs.here(capsys, path, "--set", "train_steps=7", "--set", "opt_name=adafactor").error
    assert f"{model_path}/model.ckpt-6: has no gpt/" in error and "opt_name" in error
    assert contents(model_path) == before


def test_what_cannot_be_written_is_named_by_its_key(trained, capsys):
    path, _ = trained
    error = jobs.here(capsys, path, "--model_path", __file__).error
    assert f"model_path: {__file__} cannot be written" in error
    error = jobs.here(capsys, path, "--predict", "--max_new_tokens", 1, "--set",
                      f"predict_path={__file__}/samples").stderr
    assert f"predict_path: {__file__}/samples cannot be written" in error


def test_without_a_validation_split_the_remedies_are_named(tmp_path, capsys):
    data = jobs.dataset(tmp_path)
    for shard in (tmp_path / "tiny").glob("tiny_val_*.tfrecords"):
        shard.unlink()
    for manifest in (tmp_path / "tiny").glob("*_manifest.json"):
        manifest.unlink()
    with open(data, encoding="utf-8") as file:
        values = {**json.load(file), "eval_path": None}
    with open(data, "w", encoding="utf-8") as file:
        json.dump(values, file)
    path = jobs.config(tmp_path, data, eval_steps=None)
    error = jobs.here(capsys, path).error
    assert "has no validation split; set eval_path" in error and "eval_steps=0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_gives_75(tmp_path, number):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), train_steps=1000000,
                       steps_per_checkpoint=1000000)
    # A background job of a shell ignores the signal, and hands that on to its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = jobs.start(path)
    try:
        jobs.wait_for(running, "step       3/")
        running.send_signal(number)
        stdout, stderr = running.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
        running.kill()
    [step] = jobs.steps(tmp_path / "run")
    assert running.returncode == 75 and stdout == "" and step >= 3
    assert stderr.splitlines()[-1] == (f"stopped at step {step}, which is saved; the same command "
                                       "goes on from it")
    assert jobs.weights(tmp_path / "run")["global_step"] == step and "Traceback" not in stderr


def test_a_second_signal_ends_it_at_once():
    """In a step that would never end; the first signal waits for it."""
    code = """
import os, signal, time
from training import stopping
with stopping.Stop() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print(stop.asked, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(100)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                            timeout=60, cwd=tfrecord_runs.ROOT)
    assert result.returncode == -signal.SIGTERM and result.stdout == "True\n", result.stderr
