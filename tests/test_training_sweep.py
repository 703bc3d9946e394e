"""--sweep: which trials there are, that it goes on where it was, and what comes of it."""

import json
import signal
import sys
import time

import jobs
import numpy as np
import pytest
from PIL import Image

from configs import sweep_file
from configs.errors import UserError
from training import sweep

# Stands for main.py: its score follows from lr and n_layer; files beside its
# directory have it do as a run that a signal stops, or wait for one.
FAKE = """
import json, os, sys, time
flags = sys.argv[1:]
values = dict(f.split("=", 1) for f, before in zip(flags[1:], flags) if before == "--set")
directory = flags[flags.index("--model_path") + 1]
parent = os.path.dirname(directory)
os.makedirs(directory, exist_ok=True)
with open(f"{parent}/started", "a") as file:
    print(os.path.basename(directory), *sorted(values.items()), file=file)
if values.get("n_layer") == "3":
    sys.exit("error: three layers are too many")
if os.path.exists(f"{parent}/stop_{directory[-3:]}"):
    os.remove(f"{parent}/stop_{directory[-3:]}")
    sys.exit(75)
if os.path.exists(f"{parent}/wait"):
    import signal
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("waiting", file=open(f"{parent}/waiting", "w"), flush=True)
    time.sleep(60)
loss = (float(values.get("lr", 1)) - 0.01) ** 2
print(json.dumps({"step": 5, "eval_loss": loss, "tasks": {"a.b": {"acc": 1 - loss}}}))
"""


def write(directory, **changes):
    """Writes a sweep's file; returns its path."""
    values = {"model": "demo", "model_path": str(directory / "runs"), "search": "grid",
              "keys": {"lr": [0.1, 0.01, 0.001], "n_layer": [1, 2]}, **changes}
    path = directory / "sweep.json"
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return str(path)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A directory, beside which main.py is the stand-in."""
    (tmp_path / "fake_main.py").write_text(FAKE)
    monkeypatch.setattr(sweep, "MAIN", str(tmp_path / "fake_main.py"))
    return tmp_path


def started(directory):
    """The names of the trials that were started, in order."""
    return [line.split()[0] for line in (directory / "runs" / "started").read_text().splitlines()]


def trials(directory):
    """The last line about each trial."""
    lines = map(json.loads, (directory / "runs" / "metrics.jsonl").read_text().splitlines())
    return {line["trial"]: line for line in lines}


def test_a_grid_is_every_combination_and_the_best_one_wins(fake, capsys):
    sweep.run(write(fake, set=["iterations=5"]))
    *table, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    assert summary["best"] == {"trial": 2, "values": {"lr": 0.01, "n_layer": 1}, "score": 0.0}
    assert (summary["trials"], summary["failed"]) == (6, 0)
    assert [t["values"] for t in trials(fake).values()] == [
        {"lr": lr, "n_layer": n} for lr in (0.1, 0.01, 0.001) for n in (1, 2)]
    assert "('iterations', '5')" in (fake / "runs" / "started").read_text()
    assert table[0] == "| trial | lr | n_layer | eval_loss |"
    scores = [float(line.split("|")[-2]) for line in table[2:]]
    assert len(scores) == 6 and scores == sorted(scores)
    assert (fake / "runs" / "results.md").read_text().splitlines() == table
    with Image.open(fake / "runs" / "results.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] > pixels.shape[0] > 200 and (pixels < 128).sum() > 1000


def test_maximize_and_failures(fake, capsys):
    sweep.run(write(fake, goal="maximize", score="tasks.a.b.acc",
                    keys={"lr": [0.1, 0.2], "n_layer": [2, 3]}))
    *table, last = capsys.readouterr().out.splitlines()
    summary = json.loads(last)
    assert summary["best"]["values"] == {"lr": 0.1, "n_layer": 2} and summary["failed"] == 2
    assert [line.split("|")[-2].strip() for line in table[-2:]] == ["failed", "failed"]
    assert trials(fake)[1]["error"] == "three layers are too many"


def test_where_the_first_trials_all_fail_there_is_an_end(fake):
    with pytest.raises(UserError, match="first 3 trials all failed.*three layers are too many"):
        sweep.run(write(fake, keys={"n_layer": [3], "lr": [0.1, 0.2, 0.3, 0.4]}))
    assert len(started(fake)) == 3


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_what_is_chosen_keeps_to_the_ranges_and_a_stopped_sweep_goes_on(fake, capsys, search):
    keys = {"lr": {"low": 0.001, "high": 0.1, "log": True}, "n_layer": [1, 2],
            "n_ctx": {"low": 8, "high": 16, "whole": True}}
    one, other = fake / "one", fake / "other"
    for directory in (one, other):
        directory.mkdir()
    sweep.run(write(one, search=search, trials=14, keys=keys))
    (other / "runs").mkdir()
    (other / "runs" / "stop_005").touch()
    path = write(other, search=search, trials=14, keys=keys)
    with pytest.raises(sweep.Stopped, match="stopped in trial 5"):
        sweep.run(path)
    assert trials(other)[5]["state"] == "begun"
    sweep.run(path)
    assert started(other) == [f"trial_{n:03}" for n in (*range(6), *range(5, 14))]
    found = [t["values"] for t in trials(other).values()]
    assert found == [t["values"] for t in trials(one).values()]
    assert all(0.001 <= v["lr"] <= 0.1 and v["n_layer"] in (1, 2) and type(v["n_ctx"]) is int
               and 8 <= v["n_ctx"] <= 16 for v in found)
    assert len({v["lr"] for v in found}) == 14 and len({v["n_ctx"] for v in found}) > 3
    # Finished: more trials may be asked for, and another sweep may not.
    sweep.run(write(other, search=search, trials=15, keys=keys))
    assert started(other)[-1] == "trial_014"
    with pytest.raises(UserError, match="keys: .* is not what the sweep in .* was begun with"):
        sweep.run(write(other, search=search, trials=15, keys={**keys, "n_layer": [1]}))
    capsys.readouterr()


def waiting(fake):
    """The process of a sweep whose first trial has begun and waits."""
    (fake / "runs").mkdir()
    (fake / "runs" / "wait").touch()
    code = ("import sys, main; from training import sweep; sweep.MAIN = sys.argv[1]; "
            "sys.exit(main.main(['--sweep', sys.argv[2]]))")
    process = jobs.subprocess.Popen([sys.executable, "-c", code, sweep.MAIN, write(fake)],
                                    cwd=jobs.ROOT, stderr=jobs.subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (fake / "runs" / "waiting").exists() and time.monotonic() < until:
        time.sleep(0.1)
    return process


def test_a_signal_is_the_trials(fake):
    process = waiting(fake)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert stderr.splitlines()[-1].startswith("stopped in trial 0")
    assert trials(fake)[0]["state"] == "begun"


def test_a_trial_ends_with_a_sweep_that_is_killed(fake):
    """Or it would train on beside the one with which the sweep goes on."""
    process = waiting(fake)
    [trial] = jobs.subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True,
                                  text=True, check=True).stdout.split()
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 30
    while is_running(trial) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(trial)


def is_running(process):
    """Whether there is a process of this number that has not ended."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("changes", "words"), [
    ({"keys": {}}, "keys"), ({"keys": {"lr": []}}, "lr has no values"),
    ({"keys": {"lr": {"low": 0.1, "high": 0.2}}}, "a grid takes lists"),
    ({"keys": {"lr": {"low": 2, "high": 1}}, "search": "tpe", "trials": 2}, "must be below high"),
    ({"keys": {"lr": {"low": 0, "high": 1, "log": True}}, "search": "tpe", "trials": 2},
     "log needs a low above 0"),
    ({"seed": 2 ** 31}, "seed"),
    ({"search": "tpe"}, "trials: missing"), ({"serch": "grid"}, "did you mean search?"),
    ({"about": "x"}, "about: unknown key; there are model, "),
    ({"model": "dmo"}, "did you mean demo?"), ({"model_path": None}, "model_path"),
    ({"keys": {"n_laier": [1]}}, "did you mean n_layer?"),
    ({"keys": {"lr": [0.1, "fast"]}}, 'lr "fast"'), ({"set": ["n_head=5"]}, "n_head")])
def test_a_mistake_is_found_before_anything_runs(tmp_path, changes, words):
    path = write(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        sweep_file.load(path)
    assert words in str(caught.value) and str(caught.value).startswith(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_a_score_that_no_run_has(fake):
    with pytest.raises(UserError, match="score: acc is no number.*step, eval_loss, tasks.a.b.acc"):
        sweep.run(write(fake, score="acc"))


def test_without_optuna(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="requirements-sweep.txt"):
        sweep.run(write(tmp_path))


@pytest.mark.slow
def test_real_runs(tmp_path, capsys):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), eval_steps=2)
    values = {"model": path, "model_path": f"{tmp_path}/runs", "search": "grid",
              "keys": {"lr": [1e-2, 1e-9]}}
    (tmp_path / "sweep.json").write_text(json.dumps(values))
    with jobs.quiet():
        assert jobs.main.main(["--sweep", str(tmp_path / "sweep.json")]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["best"]["values"] == {"lr": 1e-2}
    assert summary["best"]["score"] == jobs.metrics(f"{tmp_path}/runs/trial_000")[-1]["eval_loss"]
