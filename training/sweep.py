"""Many runs of one config with other values of some keys: main.py --sweep."""

import json
import logging
import math
import os
import signal
import subprocess
import sys

from configs import sweep_file
from configs.errors import Stopped, UserError
from configs.progress import tqdm
from configs.redaction import hidden_values
from mesh import processes
from mesh.compat import tf
from training import checkpoints, metrics, stopping, sweep_report

MAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "main.py")
# So many trials that fail one after the other, from the first on, are not bad luck.
_FAILURES = 3
# Exit statuses of a trial that a signal has ended.
_STOPPED = (75, 130, *(-number for number in stopping.SIGNALS))


def run(path, model_path=None, flags=()):
    """Runs a sweep's trials, each a run of its own, and writes a table and plots of them.

    A sweep that was stopped goes on with the trial that it was at. The last line on stdout is JSON.

    Args:
      path: the sweep's file, see configs.sweep_file.Sweep.
      model_path: another directory than the file's.
      flags: further flags of main.py for every trial.

    Raises:
      UserError: the file is wrong, Optuna is not installed, the directory holds another sweep, or
        the first trials all fail.
      Stopped: a signal came; the trial is saved.
    """
    optuna = _optuna()
    sweep = sweep_file.load(path, model_path)
    _begin(sweep, path)
    trials = _read(sweep)
    with tqdm(total=sweep.number, desc="trials") as bar:
        for number in range(sweep.number):
            trial = trials.get(number)
            values = trial["values"] if trial else _choose(optuna, sweep, number, trials)
            if trial is None or trial["state"] == "begun":
                trial = _carry_out(sweep, number, values, flags, begun=trial is not None)
                trials[number] = trial
            _refuse_failures(sweep, trials)
            bar.update()
    best = sweep_report.write(sweep, list(trials.values()))
    print(json.dumps({"trials": len(trials),
                      "failed": sum(trial["state"] == "failed" for trial in trials.values()),
                      "best": best, "model_path": sweep.model_path}), flush=True)


def _optuna():
    try:
        import optuna
    except ImportError as error:
        raise UserError("--sweep needs Optuna: pip install -r requirements-sweep.txt") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _begin(sweep, path):
    """Makes the directory, or checks that it is this sweep's."""
    kept = os.path.join(sweep.model_path, "sweep.json")
    asked = hidden_values(sweep.model_dump(mode="json", exclude={"trials", "model_path"}))
    if tf.io.gfile.exists(kept):
        with tf.io.gfile.GFile(kept) as file:
            before = json.loads(file.read())
        for key, value in asked.items():
            if before.get(key) != value:
                raise UserError(f"{path}: {key}: {json.dumps(value)} is not what the sweep in "
                                f"{sweep.model_path} was begun with ({json.dumps(before.get(key))})"
                                "; give another model_path")
        return
    tf.io.gfile.makedirs(sweep.model_path)
    checkpoints.write_text(kept, json.dumps(asked, indent=1) + "\n")


def _read(sweep):
    """{number: the last that is known of a trial}, from the sweep's metrics.jsonl."""
    lines = metrics.read_lines(os.path.join(sweep.model_path, "metrics.jsonl"))
    return {trial["trial"]: trial for trial in lines}


def _choose(optuna, sweep, number, trials):
    """The values of a trial. They follow from the sweep, the number and the trials before it."""
    if sweep.search == "grid":
        return next(values for i, values in enumerate(sweep.grid()) if i == number)
    sampler = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    # A study remembers what it was asked: a new one knows what the trials tell, and nothing else.
    study = optuna.create_study(direction=sweep.goal,
                                sampler=sampler[sweep.search](seed=sweep.seed + number))
    for _, trial in sorted(trials.items()):
        _tell(optuna, study, sweep, trial)
    found = study.ask(_distributions(optuna, sweep)).params
    return {key: json.loads(found[key]) if isinstance(sweep.keys[key], list) else found[key]
            for key in sweep.keys}


def _distributions(optuna, sweep):
    """The keys' values in Optuna's terms. Those of lists are JSON text: they may be anything."""
    made = {}
    for key, tried in sweep.keys.items():
        if isinstance(tried, list):
            made[key] = optuna.distributions.CategoricalDistribution(
                [json.dumps(value) for value in tried])
        elif tried.whole:
            made[key] = optuna.distributions.IntDistribution(int(tried.low), int(tried.high),
                                                             log=tried.log)
        else:
            made[key] = optuna.distributions.FloatDistribution(tried.low, tried.high,
                                                               log=tried.log)
    return made


def _tell(optuna, study, sweep, trial):
    """Has Optuna know of a trial that has ended."""
    params = {key: json.dumps(value) if isinstance(sweep.keys[key], list) else value
              for key, value in trial["values"].items()}
    state = optuna.trial.TrialState
    study.add_trial(optuna.trial.create_trial(
        state=state.COMPLETE if trial["state"] == "done" else state.FAIL, value=trial["score"],
        params=params, distributions=_distributions(optuna, sweep)))


def _carry_out(sweep, number, values, flags, begun):
    """Runs a trial to its end; returns what is known of it."""
    trial = {"trial": number, "state": "begun", "values": values, "score": None}
    if not begun:
        metrics.append_line(sweep.model_path, trial)
    directory = os.path.join(sweep.model_path, f"trial_{number:03}")
    command = [sys.executable, MAIN, "--model", sweep.model, "--model_path", directory, *flags]
    for override in sweep.overrides(values):
        command += ["--set", override]
    logging.info("trial %d: %s", number, json.dumps(values))
    status, stdout, stderr = _process(command)
    tf.io.gfile.makedirs(directory)
    checkpoints.write_text(os.path.join(directory, "trial.log"), stderr + stdout)
    if status in _STOPPED:
        raise Stopped(f"stopped in trial {number}; the same command goes on with it")
    trial.update(_outcome(sweep, status, stdout, stderr))
    metrics.append_line(sweep.model_path, trial)
    logging.info("trial %d: %s %s", number, sweep.score, trial["score"] if
                 trial["state"] == "done" else f"failed: {trial['error']}")
    return trial


def _process(command):
    """Runs a command to its end; returns (exit status, stdout, stderr).

    It is sent the signals that come, and stops in its own way; as it does where this process is
    killed, or two might train in one directory when the sweep goes on.
    """
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True,
                             preexec_fn=_end_with_parent)
    before = {number: signal.signal(number, lambda number, frame: child.send_signal(number))
              for number in stopping.SIGNALS}
    try:
        stdout, stderr = child.communicate()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return child.returncode, stdout, stderr


def _end_with_parent():
    processes.end_with_parent(signal.SIGTERM)


def _outcome(sweep, status, stdout, stderr):
    """What a trial's process came to: its state, score and summary, or error."""
    if status:
        lines = stderr.splitlines() or [f"exit status {status}"]
        return {"state": "failed", "error": lines[-1].removeprefix("error: ")}
    summary = json.loads(stdout.splitlines()[-1])
    numbers = _numbers(summary)
    if sweep.score not in numbers:
        raise UserError(f"score: {sweep.score} is no number of a run's summary, which has "
                        + ", ".join(numbers))
    score = numbers[sweep.score]
    if not math.isfinite(score):
        return {"state": "failed", "error": f"{sweep.score} is {score}"}
    return {"state": "done", "score": score, "summary": summary}


def _numbers(values, prefix=""):
    """{dotted name: number} of nested dicts."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found.update(_numbers(value, f"{prefix}{key}."))
        elif isinstance(value, int | float):
            found[prefix + key] = value
    return found


def _refuse_failures(sweep, trials):
    if len(trials) == _FAILURES and all(t["state"] == "failed" for t in trials.values()):
        raise UserError(f"{sweep.model_path}: the first {_FAILURES} trials all failed, the last "
                        f"one with: {trials[_FAILURES - 1]['error']}")
