"""Benchmarks of training, in small: contestants in turns, memory, profiles and plots."""

import json
import os
import subprocess
import sys

import pytest
from tfrecord_runs import ROOT

from benchmarks import scaling

TINY = ["--size", "1x32x16", "--set", "train_batch_size=4"]


def run(script, *args):
    """The JSON of a benchmark's last line, and all that it printed."""
    done = subprocess.run([sys.executable, os.path.join(ROOT, "benchmarks", script), *args],
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.slow
def test_speed_and_profiles_of_both(tmp_path):
    pytest.importorskip("torch", reason="it is what ours is compared with")
    out = tmp_path / "found" / "speed.json"
    found, shown = run("train_speed.py", *TINY, "--rounds", "2", "--steps", "3", "--profile",
                       str(tmp_path / "profiles"), "--out", str(out))
    assert json.loads(out.read_text()) == found and found["baseline"] == "transformers eager"
    for name in ("ours", "transformers eager"):
        assert len(found[name]["rounds"]) == 2 and name in shown
        assert found[name]["peak_bytes"] > 50e6
        # Random ids of 65: the loss is that of a guess, whichever library computes it.
        assert 4.0 < found[name]["loss"] < 4.4
    assert found["speed_ratio"] > 0 and found["peak_memory_ratio"] > 0
    profiles = {name: (tmp_path / "profiles" / name).read_text()
                for name in os.listdir(tmp_path / "profiles")}
    assert len(profiles) == 4
    assert "MatMul" in profiles["ours.txt"] and "addmm" in profiles["transformers_eager.txt"]
    assert json.loads(profiles["ours.json"])["traceEvents"]


@pytest.mark.slow
def test_what_a_student_costs():
    small = [f"--set={item}" for item in ("n_layer=1", "n_embd=32", "n_head=2", "rotary_dims=16",
                                          'attention_types=[[["global"],1]]')]
    found, _ = run("gptc_cost.py", *small, "--n_ctx", "16", "--rounds", "1", "--steps", "2")
    assert found["time_ratio"] > 0
    # The GPT-C's loss is the GPT's and something that the student adds.
    assert found["GPT-C"]["loss"] > found["GPT"]["loss"]


@pytest.mark.slow
def test_distillation_in_two_streams_is_that_of_separate_passes():
    found, _ = run("distillation.py", "--windows", "1", "--layers", "1", "--width", "32",
                   "--repeats", "1")
    assert found["loss"] > 0 and found["loss_difference"] < 1e-5
    assert found["weights_difference"] < 1e-4 and found["ratio"] > 1


@pytest.mark.slow
def test_all_prefixes_in_one_pass():
    found, _ = run("two_stream.py", "--towers", "tiny", "--repeats", "1")
    assert found["tiny"]["max_abs_difference"] < 1e-5 and found["tiny"]["padded_ratio"] > 1


@pytest.mark.slow
def test_memory_of_both():
    pytest.importorskip("torch", reason="it is what ours is compared with")
    found, _ = run("train_memory.py", "--size", "1x32x16", "--batch", "4", "--vocab", "65",
                   "--steps", "1")
    assert all(found[name]["peak_bytes"] > 50e6 for name in ("ours", "theirs"))


@pytest.mark.slow
def test_points_are_kept_and_axes_measured_one_by_one(tmp_path, monkeypatch, capsys):
    sizes = {"layers": 1, "width": 64, "context": 16, "batch": 2, "vocabulary": 256, "mesh": 1}
    monkeypatch.setattr(scaling, "BASE", sizes)
    monkeypatch.setattr(scaling, "AXES", {"layers": [1], "batch": [2, 4]})
    before = {"layers": [{**sizes, "seconds": 0.5, "predicted": 0.5}]}
    (tmp_path / "scaling.json").write_text(json.dumps(before))
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--out", str(tmp_path), "--seconds", "0.1",
                                      "--axes", "batch"])
    scaling.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    small, large = found["batch"]
    assert small["seconds"] == small["predicted"] > 0 and large["flops"] == 2 * small["flops"]
    assert large["predicted"] == pytest.approx(2 * small["seconds"])
    kept = json.loads((tmp_path / "scaling.json").read_text())
    assert kept == {**before, "batch": found["batch"]}
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
