"""--dry_run: what it says of a run is what the run then is, and nothing is written."""

import os
import types

import clip_runs
import jobs
import numpy as np
import psutil
import pytest

MESH = "x:2,y:2"
LAYOUT = "batch:x,heads:y,vocab:y,intermediate_expanded:y"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The path of a dataset's JSON."""
    return jobs.dataset(tmp_path_factory.mktemp("data"))


def told(result):
    """What is printed before the JSON, by heading."""
    return dict(line.split("  ", 1) for line in result.stdout.splitlines()[:-1])


def test_it_says_what_the_run_is(dataset, tmp_path, capsys, monkeypatch):
    keys = dict(mesh_shape=MESH, layout=LAYOUT, train_steps=6, steps_per_checkpoint=4,
                eval_steps=None)
    path = jobs.config(tmp_path, dataset, **keys)
    result = jobs.here(capsys, path, "--dry_run")
    found = result.summary
    assert not os.path.exists(tmp_path / "run")

    shapes = {}
    jobs.watch_lowerings(monkeypatch, lambda *lowered: shapes.update(jobs.slice_shapes(*lowered)))
    trained = jobs.here(capsys, path, "--set", "eval_steps=0").summary
    pieces = {name: 4 * np.prod(slices[0]) for name, (_, slices) in shapes.items()}
    moments = sum(size for name, size in pieces.items() if name.endswith(("adam_m", "adam_v")))
    sizes = {name: value.size for name, value in jobs.weights(trained["model_path"]).items()
             if not name.endswith(("adam_m", "adam_v", "global_step"))}
    assert found["parameters"] == sum(sizes.values()) and found["frozen"] == 0
    assert found["moments_bytes"] == moments > 0
    assert found["weights_bytes"] == sum(pieces.values()) - moments
    assert found["tokens_per_step"] == 8 * 8
    epochs = jobs.scalars(trained["model_path"])["epoch"]
    assert found["steps_per_epoch"] == pytest.approx(1 / epochs[1], rel=1e-5)
    assert found["train_seconds"] == pytest.approx(6 * found["step_seconds"])
    assert found["tokens_per_second"] == pytest.approx(64 / found["step_seconds"])
    assert 0 < found["eval_seconds"] and 0.1 < found["peak_gib"] < 100
    lines = told(result)
    assert lines["run"].split(": ")[1] == "begins anew and ends at step 6"
    assert lines["checkpoints"].strip() == "2, each with an evaluation"

    before = sorted(os.listdir(tmp_path / "run"))
    result = jobs.here(capsys, path, "--set", "train_steps=20", "--dry_run")
    assert told(result)["run"].endswith("goes on from step 6 and ends at step 20")
    assert told(result)["checkpoints"].strip().startswith("4,")
    assert result.summary["train_seconds"] == pytest.approx(14 * result.summary["step_seconds"])
    refused = jobs.here(capsys, path, "--set", "n_layer=2", "--dry_run").error
    assert "its weights have n_layer = 1, the config 2" in refused
    assert sorted(os.listdir(tmp_path / "run")) == before


def test_what_does_not_fit_into_memory_is_not_tried(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
    result = jobs.here(capsys, jobs.config(tmp_path, dataset), "--dry_run")
    assert "not measured: weights, moments and gradients take" in told(result)["time"]
    assert result.summary["step_seconds"] is result.summary["train_seconds"] is None
    assert result.summary["parameters"] > 0


def test_frozen_weights_are_counted_apart(dataset, tmp_path, capsys):
    student, weights = clip_runs.student(tmp_path / "student")
    path = jobs.config(tmp_path, dataset, model="gpt_c", n_ctx=12, clip={"student": student})
    found = jobs.here(capsys, path, "--dry_run").summary
    plain = jobs.here(capsys, path, "--set", "clip.weight=0", "--dry_run").summary
    held = {name: value.size for name, value in weights.items()}
    assert 0 < found["frozen"] <= sum(held.values()) and plain["frozen"] == 0
    assert found["parameters"] > plain["parameters"]  # by the projection
    assert not os.path.exists(tmp_path / "run")
