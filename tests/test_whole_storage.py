"""A whole run with every path on a remote file system, which ram:// stands for."""

import json

import jobs
import numpy as np
import pytest

from mesh.compat import tf

pytestmark = pytest.mark.slow


def test_from_text_to_samples_without_a_local_file(capsys, monkeypatch, tmp_path):
    """What is local is an empty directory, and stays empty."""
    monkeypatch.chdir(tmp_path)
    place = "ram://bucket/project"
    data = jobs.dataset(place)
    path = jobs.config(place, data, train_steps=6, steps_per_checkpoint=3, eval_steps=None, keep=1,
                       sample_tokens=5, predict_path=f"{place}/samples/out.jsonl", **jobs.DROPOUT)
    summary = jobs.here(capsys, path).summary
    assert summary["step"] == 6 and summary["model_path"] == f"{place}/run"
    assert jobs.steps(f"{place}/run") == [6]
    assert [line["step"] for line in jobs.metrics(f"{place}/run")] == [3, 6]

    again = jobs.here(capsys, path, "--eval").summary
    assert again["eval_loss"] == pytest.approx(summary["eval_loss"], rel=1e-6)
    resumed = jobs.here(capsys, path, "--set", "train_steps=8")
    assert "going on from step 6" in resumed.stderr and resumed.summary["step"] == 8

    prompt = f"{place}/prompt.txt"
    with tf.io.gfile.GFile(prompt, "w") as file:
        file.write("abc ")
    sampled = jobs.here(capsys, path, "--predict", "--prompt", prompt, "--num_samples", "2",
                        "--max_new_tokens", "5")
    assert sampled.status == 0 and sampled.stdout.startswith("abc ")
    with tf.io.gfile.GFile(f"{place}/samples/out.jsonl") as file:
        lines = [json.loads(line) for line in file]
    assert [line["prompt"] for line in lines] == ["abc ", "abc "]
    assert lines[0]["checkpoint"] == f"{place}/run/model.ckpt-8"

    exported = jobs.here(capsys, path, "--export", "saved_model")
    assert exported.status == 0 and exported.stdout.strip() == f"{place}/run/export"
    assert tf.io.gfile.exists(f"{place}/run/export/saved_model.pb")
    assert tf.saved_model.contains_saved_model(f"{place}/run/export")

    assert jobs.here(capsys, path, "--new", "--yes", "--set", "train_steps=1").summary["step"] == 1
    assert jobs.steps(f"{place}/run") == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_storage_equals_a_local_one(capsys, tmp_path):
    weights = []
    for place in ("ram://other", str(tmp_path)):
        path = jobs.config(place, jobs.dataset(place), train_steps=3)
        jobs.here(capsys, path)
        weights.append(jobs.weights(f"{place}/run", 3))
    jobs.assert_same_bits(*weights)
    assert not np.array_equal(weights[0]["gpt/wte"], weights[0]["gpt/wte/adam_m"])
