"""skip_corrupt: damaged records are counted and left out, and all others come."""

import logging
import os

import numpy as np
import pytest
import shard_files as shards
import tensorflow.compat.v1 as tf

import inputs
from configs.command_line import refusal
from configs.errors import UserError
from records import sources, windows

RECORDS = [[number % 250] * 12 for number in range(700)]


def damaged(path, offsets, where):
    """Damages a file: flips a bit of the data of some records, or of a length, or cuts it."""
    data = bytearray(path.read_bytes())
    for record, what in where.items():
        if what == "cut":
            del data[offsets[record] + 5:]
        else:
            data[offsets[record] + (14 if what == "data" else 2)] ^= 4
    path.write_bytes(data)


@pytest.fixture(params=["manifest", "foreign"])
def make(request, tmp_path, monkeypatch):
    """A function that writes two shards, damages the first one, and gives the run's config."""
    monkeypatch.setattr(windows, "BLOCK_TOKENS", 160)

    def make(where, mode="chunks", stitch=1, **keys):
        whole, path = tmp_path / "d_0_100.tfrecords", tmp_path / "d_1_700.tfrecords"
        facts = [shards.facts(p, r, shards.write(p, r))
                 for p, r in ((whole, RECORDS[:100]), (path, RECORDS))]
        offsets = shards.write(path, RECORDS)
        if request.param == "manifest":
            shards.manifest(tmp_path, "d", mode.partition("_")[0], {"train": facts})
        damaged(path, offsets, where)
        sources.forget()
        return shards.config(tmp_path, {"d": (stitch, mode, 1.0, {
            "path": str(tmp_path / "d_*.tfrecords")})}, skip_corrupt=True, **keys)

    make.manifest = request.param == "manifest"
    return make


@pytest.mark.parametrize("where, lost", [
    ({3: "data", 4: "data", 300: "data", 699: "data"}, [3, 4, 300, 699]),
    ({0: "data", 500: "length"}, [0, *range(500, 700)]), ({256: "cut"}, range(256, 700))])
def test_all_but_the_damaged_records_are_read(make, where, lost, caplog):
    config = make(where)
    kept = RECORDS[:100] + [ids for number, ids in enumerate(RECORDS) if number not in lost]
    stream = np.concatenate(kept)
    with caplog.at_level(logging.WARNING):
        facts = inputs.dataset_facts(config, "train")
    count = len(lost) if make.manifest else len(where)
    assert f"dataset d, train: {count} records of d_1_700.tfrecords left out" in caplog.text
    assert f"{600 + 100 - len(lost)} records of it are read and {count} are left out" in caplog.text
    assert facts.tokens == len(stream)
    found = shards.rows(config, 0, facts.windows)
    wanted = sorted(tuple(stream[i:i + 9]) for i in range(0, len(stream) - 8, 8))
    assert sorted(map(tuple, found.tolist())) == wanted
    sources.forget()  # a process that goes on
    np.testing.assert_array_equal(shards.rows(config, 41, 60), found[41:101])


def test_documents_too(make):
    config = make({3: "data", 300: "data"}, "documents_fixed")
    seen = sorted(row[0] for row in shards.rows(config, 0, 798).tolist())
    wanted = [number % 250 for number in range(700) if number not in (3, 300)]
    assert seen == sorted(wanted + list(range(100)))


def test_a_whole_dataset_says_nothing(make, caplog):
    with caplog.at_level(logging.WARNING):
        facts = inputs.dataset_facts(make({}), "train")
    assert facts.tokens == 800 * 12 and "skip_corrupt" not in caplog.text


def test_a_file_of_something_else_is_not_salvaged(tmp_path):
    (tmp_path / "d_0.tfrecords").write_bytes(b"no records at all, but text that goes on and on")
    sources.forget()
    config = shards.config(tmp_path, {"d": (1, "chunks", 1.0, {
        "path": str(tmp_path / "d_0.tfrecords")})}, skip_corrupt=True)
    with pytest.raises(UserError, match="its 1 train shards hold no tokens"):
        inputs.dataset_facts(config, "train")


def test_a_tail_shorter_than_a_header_is_noticed(tmp_path):
    """TensorFlow takes it for the end of the file."""
    path = tmp_path / "d_0.tfrecords"
    offsets = shards.write(path, RECORDS[:5])
    path.write_bytes(path.read_bytes()[:offsets[4] + 7])
    sources.forget()
    config = shards.config(tmp_path, {"d": (1, "chunks", 1.0, {"path": str(path)})})
    with pytest.raises(UserError, match=rf"truncated record at byte {offsets[4]}; copy or make"):
        inputs.dataset_facts(config, "train")


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_shard_that_goes_away_during_a_run_is_named(tmp_path, change):
    path = tmp_path / "d_0_700.tfrecords"
    shards.manifest(tmp_path, "d", "chunks", {
        "train": [shards.facts(path, RECORDS, shards.write(path, RECORDS))]})
    sources.forget()
    config = shards.config(tmp_path, {"d": (1, "chunks", 1.0, {"path": str(path)})})
    shards.rows(config, 0, 8)  # the run has begun
    if change == "removed":
        path.unlink()
    else:
        shards.write(path, [ids[:7] for ids in RECORDS])
    with pytest.raises(tf.errors.OpError) as caught:
        shards.rows(config, 8, 1000)
    line = inputs.explain_data_error(config, caught.value) or refusal(caught.value)
    assert str(path) in line and "\n" not in line
    said = "No such file" if change == "removed" else "a shard holds less than it held"
    assert said in line


def test_a_shard_replaced_by_one_of_its_size_is_named(tmp_path):
    path = tmp_path / "d_0_700.tfrecords"
    shards.manifest(tmp_path, "d", "chunks", {
        "train": [shards.facts(path, RECORDS, shards.write(path, RECORDS))]})
    config = shards.config(tmp_path, {"d": (1, "chunks", 1.0, {"path": str(path)})}, eval_steps=0)
    sources.forget()
    shards.rows(config, 0, 8)  # the run has begun
    inputs.check_unchanged(config)
    size, written = path.stat().st_size, path.stat().st_mtime_ns
    shards.write(path, [ids[::-1] for ids in RECORDS])
    os.utime(path, ns=(written + 10**10, written + 10**10))  # TensorFlow sees seconds
    assert path.stat().st_size == size
    with pytest.raises(UserError, match=rf"{path} was written anew during the run; if it holds"):
        inputs.check_unchanged(config)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path} does not exist"):
        inputs.check_unchanged(config)
