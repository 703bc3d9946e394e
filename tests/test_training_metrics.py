"""Numbers on their way to TensorBoard, metrics.jsonl and the terminal."""

import json
import logging
import math
import types

import jobs
import pytest

from training import metrics

CONFIG = types.SimpleNamespace(train_steps=1000, train_batch_size=4, n_ctx=25, model="GPT",
                               mesh_size=1, label_smoothing=0.0, entmax_alpha=1.0)
VALUES = {"loss": 2.5, "learning_rate": 1e-3, "gradient_norm": 0.75}


def facts(tokens=100, size=250, decoded=200):
    return types.SimpleNamespace(tokens=tokens, bytes=size, decoded_bytes=decoded, windows=40)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def writer(tmp_path):
    return metrics.Writer(str(tmp_path))


def test_scores_of_a_loss():
    """100 tokens of 250 bytes at ln 4 nats, which is 2 bits, a token: 200 bits / 250 bytes."""
    assert metrics.language_scores(math.log(4), facts()) == pytest.approx(
        {"perplexity": 4.0, "bits_per_byte": 0.8, "bits_per_decoded_byte": 1.0})


def test_bits_per_byte_need_bytes():
    scores = metrics.language_scores(1.0, facts(size=None, decoded=None))
    assert scores["bits_per_byte"] is None and scores["bits_per_decoded_byte"] is None


def test_a_hopeless_loss_has_a_perplexity_that_is_json():
    assert math.isfinite(metrics.language_scores(1e6, facts())["perplexity"])


def test_lines_are_appended(tmp_path):
    for step in (1, 2):
        metrics.append_line(str(tmp_path), {"step": step, "eval_loss": None})
    assert jobs.metrics(tmp_path) == [{"step": 1, "eval_loss": None},
                                      {"step": 2, "eval_loss": None}]


def test_what_is_written_is_what_tensorboard_reads(tmp_path, writer):
    writer.start(0)
    writer.text("config", metrics.fenced("a  1\nb  2"), 0)
    writer.scalars({"loss": 1.5, "loss/lm": 1.25}, 3)
    writer.close()
    assert jobs.scalars(tmp_path) == {"loss": {3: 1.5}, "loss/lm": {3: 1.25}}
    assert jobs.shown_text(tmp_path, "config") == {0: "    a  1\n    b  2"}


def test_a_resumed_run_replaces_the_steps_that_were_lost(tmp_path):
    """Both files may be of the same second."""
    for first, value in ((1, 1.0), (4, 2.0)):
        writer = metrics.Writer(str(tmp_path))
        writer.start(first - 1)
        for step in range(first, first + 5):
            writer.scalars({"loss": value}, step)
        writer.close()
    assert jobs.scalars(tmp_path)["loss"] == {1: 1.0, 2: 1.0, 3: 1.0, **dict.fromkeys(
        range(4, 9), 2.0)}


def test_rate_is_of_the_steps_after_the_first_of_each_leg(tmp_path, writer, clock):
    meter = metrics.Meter(CONFIG, facts(), writer)
    assert meter.tokens_per_second is None
    clock[0] = 60.0  # compiling
    meter.start_clock(1)
    meter.log(1, VALUES)
    assert meter.tokens_per_second is None
    clock[0] = 62.0
    meter.log(5, VALUES)  # 4 steps of 100 tokens in 2 seconds
    clock[0] = 200.0  # evaluating, compiling
    meter.start_clock(6)
    clock[0] = 208.0
    meter.log(10, {**VALUES, "loss": 2.0})  # 4 steps in 8 seconds
    writer.close()
    assert meter.tokens_per_second == 80.0
    assert meter.loss == 2.0
    shown = jobs.scalars(tmp_path)
    assert shown["tokens_per_second"] == {5: 200.0, 10: 50.0}
    assert shown["gradient_norm"] == {1: 0.75, 5: 0.75, 10: 0.75}
    assert shown["epoch"] == pytest.approx({1: 0.1, 5: 0.5, 10: 1.0})  # 4 of 40 windows a step


def test_line_on_the_terminal(writer, clock, caplog):
    meter = metrics.Meter(CONFIG, facts(), writer)
    meter.start_clock(200)
    clock[0] = 10.0
    with caplog.at_level(logging.INFO):
        meter.log(400, VALUES)
    # 2,000 tokens a second, and 600 steps of 100 tokens to go.
    assert caplog.messages == [
        "step  400/1000  loss 2.5000  lr 1.00e-03  2,000 tokens/s  00:30 left"]


def test_numbers_of_a_run_are_json(tmp_path):
    line = {"step": 1, **metrics.language_scores(3.0, facts(size=0))}
    metrics.append_line(str(tmp_path), line)
    assert jobs.metrics(tmp_path) == [json.loads(json.dumps(line))]


def test_a_line_that_a_kill_cut_off_is_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (2, 4):
        metrics.append_line(str(tmp_path), {"step": step})
    path.write_bytes(path.read_bytes()[:-5])
    assert metrics.read_lines(str(path)) == [{"step": 2}]
    metrics.append_line(str(tmp_path), {"step": 6})
    assert path.read_text() == '{"step": 2}\n{"step": 6}\n'


def test_what_never_happened_is_forgotten(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"st\n3\n{"step": 4}\n{"step": 6}\n{"step": 8')
    metrics.forget_after(str(path), 4)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
    assert [f"line {n} is damaged" in caplog.text for n in (1, 2, 3, 4)] == [False, True, True,
                                                                            False]
    metrics.forget_after(str(tmp_path / "none"), 4)
    assert not (tmp_path / "none").exists()
