"""Steps whose loss or gradient is not finite, losses that jump, and where their rows come from."""

import json
import types

import jobs
import numpy as np
import pytest
import shard_files as shards

import inputs
from configs.errors import UserError
from mesh.compat import tf
from records import windows
from training import watching


@pytest.mark.parametrize("value, what, said", [
    (np.nan, ("gradient",), "at step 3 the gradient's norm is nan"),
    (np.inf, ("loss",), "at step 3 the loss is inf")])
def test_a_step_that_is_not_finite_stops_the_run(tmp_path, capsys, bad_steps, value, what, said):
    bad_steps[3] = value, what
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), train_steps=4, steps_per_checkpoint=2,
                       iterations=100)
    result = jobs.here(capsys, path)
    assert result.status == 2 and jobs.steps(tmp_path / "run") == [2]
    error = result.stderr.splitlines()[-1]
    assert said in error and "the last checkpoint is good: lower lr" in error
    [line] = map(json.loads, (tmp_path / "run" / "bad_steps.jsonl").read_text().splitlines())
    first = line["rows"][0]
    assert f"of record {first['record']} at byte {first['offset']} of {first['file']}" in error
    assert line["step"] == 3 and {row["row"] for row in line["rows"]} == set(range(8))
    # The rows that the step did take begin in these records.
    from configs import schema
    config = schema.load(path)
    taken = shards.take(inputs.train_input_fn(config, 16), 1)[0][0]
    for row, place in zip(taken, line["rows"], strict=True):
        assert holds(place, row[0]), place
    bad_steps.clear()
    assert jobs.here(capsys, path).summary["step"] == 4


def record_at(place):
    """The ids of a record, read where a place says."""
    data = open(place["file"], "rb").read()
    offset = place["offset"]
    length = int.from_bytes(data[offset:offset + 8], "little")
    example = tf.train.Example.FromString(data[offset + 12:offset + 12 + length])
    return list(example.features.feature["text"].int64_list.value)


def holds(place, token):
    return token in record_at(place)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [
    dict(mesh_shape="x:2", layout="batch:x", tokens_per_mb_per_replica=16),
    dict(mesh_shape="x:2", layout="vocab:x", opt_name="adafactor", precision="bfloat16"),
    dict(opt_name="sgd"), dict(opt_name="lion", recompute_grad=True)])
def test_a_skipped_step_changes_no_bit_but_the_step(tmp_path, capsys, bad_steps, keys):
    keys = dict(train_steps=2, lr_decay="constant", on_nan="skip", **jobs.DROPOUT, **keys)
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), **keys)
    bad_steps[1] = np.nan, ("loss", "gradient")  # moments are still zeros
    bad_steps[3] = np.inf, ("gradient",)
    first = jobs.here(capsys, path)
    assert first.summary["step"] == 2 and first.stderr.count("its update is left out") == 1
    before = jobs.weights(tmp_path / "run")
    result = jobs.here(capsys, path, "--set", "train_steps=3")
    assert result.summary["step"] == 3
    assert "warning: step 3: the gradient's norm is " in result.stderr
    after = jobs.weights(tmp_path / "run", 3)
    assert after.pop("global_step") == 3 and before.pop("global_step") == 2
    jobs.assert_same_bits(before, after)
    jobs.here(capsys, path, "--set", "train_steps=4")
    moved = jobs.weights(tmp_path / "run", 4)
    assert all(np.isfinite(value).all() for value in moved.values())
    assert all((moved[name] != value).any() for name, value in before.items())


def test_skipping_changes_nothing_where_all_is_finite(tmp_path, capsys):
    data, weights = jobs.dataset(tmp_path), []
    for on_nan in ("stop", "skip"):
        jobs.here(capsys, jobs.config(tmp_path, data, name=on_nan, on_nan=on_nan, train_steps=3))
        weights.append(jobs.weights(tmp_path / on_nan))
    jobs.assert_same_bits(*weights)


# The watch by itself.

@pytest.fixture
def watch(tmp_path, monkeypatch):
    monkeypatch.setattr(watching.inputs, "origins", lambda config, start, count: [
        {"row": row, "dataset": "d", "file": "f", "record": start + row, "offset": 7}
        for row in range(count)])
    config = types.SimpleNamespace(on_nan="skip", on_nan_limit=2, model_path=str(tmp_path),
                                   train_batch_size=2, input_fn="datasets")
    return watching.Watch(config, lambda step: 2 * step)


def test_too_many_in_a_row_stop_the_run(watch):
    for step_number in (1, 2, 4, 5):  # 3 is good, and the count begins again
        watch.see(step_number, float("nan"), 1.0)
        if step_number == 2:
            watch.see(3, 1.0, 1.0)
    with pytest.raises(UserError, match="at step 6 the loss is nan, and 2 updates in a row were"):
        watch.see(6, float("nan"), 1.0)
    assert watch.skipped == 5


def test_a_spike_is_told_with_its_rows(watch, caplog, tmp_path):
    rng = np.random.RandomState(0)
    for number in range(1, 201):
        watch.see(number, 3.0 + 0.1 * rng.randn(), 1.0)
    assert not caplog.records
    watch.see(201, 4.5, 1.0)
    assert "step 201: the loss is 4.5000, after 3.0" in caplog.text
    assert "its 2 rows are listed in" in caplog.text and "record 400 at byte 7 of f" in caplog.text
    [line] = map(json.loads, (tmp_path / "bad_steps.jsonl").read_text().splitlines())
    assert [row["record"] for row in line["rows"]] == [400, 401]
    watch.see(202, 3.0, 1.0)
    assert len(caplog.records) == 1


def test_a_level_curve_has_no_spikes_of_nothing(watch, caplog):
    for number in range(1, 80):
        watch.see(number, 3.0, 1.0)
    watch.see(80, 3.1, 1.0)
    assert not caplog.records


# Where rows come from.

@pytest.mark.parametrize("mode, stitch, separator", [
    ("chunks", 1, None), ("chunks", 1, 256), ("documents_fixed", 3, None)])
def test_origins_of_a_mix_over_epochs(tmp_path, monkeypatch, mode, stitch, separator):
    """Each id of a record is its own number: a row's first token tells where it begins."""
    monkeypatch.setattr(windows, "BLOCK_TOKENS", 100)
    monkeypatch.setattr(windows, "GROUP_TOKENS", 400)
    rng = np.random.RandomState(1)
    offsets, starts = {}, {}
    for dataset, low in (("a", 0), ("b", 125)):
        for number in range(2):
            path = tmp_path / f"{dataset}_{number}.tfrecords"
            documents = [[low + 60 * number + i] * rng.randint(3, 9) for i in range(60)]
            offsets[str(path)] = shards.write(path, documents)
            starts.update({low + 60 * number + i: (dataset, str(path), i) for i in range(60)})
    stated = {} if separator is None else {"separator": separator}
    config = shards.config(tmp_path, {
        name: (stitch, mode, weight, {"path": str(tmp_path / f"{name}_*.tfrecords"), **stated})
        for name, weight in (("a", 1.0), ("b", 2.0))})
    rows = shards.rows(config, 37, 120)
    found = inputs.origins(config, 37, 120)
    assert len(found) == 120 * (stitch if mode != "chunks" else 1)
    seen = 0
    for place in found:
        assert place["offset"] == offsets[place["file"]][place["record"]]
        token = rows[place["row"]][0]
        if token == separator or (mode != "chunks" and place["row"] == seen - 1):
            seen = place["row"] + 1
            continue
        seen = place["row"] + 1
        assert (place["dataset"], place["file"], place["record"]) == starts[token]
