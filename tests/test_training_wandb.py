"""--wandb, offline: what TensorBoard has is in wandb's own file of the run."""

import glob
import json
import os
import sys

import jobs
import pytest

from configs import schema
from configs.errors import UserError
from training import wandb_log


def history(directory):
    """{step: {key: value}} of all of a run's offline files, as wandb's own reader finds them."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal import datastore

    found = {}
    for path in sorted(glob.glob(f"{directory}/wandb/offline-run-*/*.wandb")):
        store = datastore.DataStore()
        store.open_for_scan(path)
        while data := store.scan_data():
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): json.loads(item.value_json)
                         for item in record.history.item}
                found.setdefault(items["_step"], {}).update(items)
    return found


def test_scalars_are_logged_and_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), eval_steps=2, steps_per_checkpoint=2)
    for steps in (2, 4):
        assert jobs.process(path, "--set", f"train_steps={steps}", "--wandb", "ours").status == 0
    found, run = history(tmp_path / "run"), tmp_path / "run"
    for name, directory in (("train", run), ("eval", run / "eval")):
        for tag, curve in jobs.scalars(directory).items():
            for step, value in curve.items():
                assert found[step][f"{name}/{tag}"] == pytest.approx(value, rel=1e-5), (tag, step)
    assert sorted(found) == [1, 2, 3, 4]
    ids = {os.path.basename(name).split("-")[-1].removesuffix(".wandb")
           for name in glob.glob(f"{run}/wandb/offline-run-*/*.wandb")}
    assert ids == {json.loads((run / "wandb.json").read_text())["id"]}


def test_what_is_missing_is_one_line(tmp_path, monkeypatch):
    config = schema.load(jobs.config(tmp_path, []), ["n_vocab=9"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install -r requirements-wandb.txt"):
        wandb_log.Log(config, "ours")
