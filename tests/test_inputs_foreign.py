"""Shards of the trainers before, and input functions of a user's own."""

import json

import jobs
import numpy as np
import pytest
import shard_files as shards
import tensorflow.compat.v1 as tf

import inputs
from configs import schema
from configs.errors import UserError
from records import splits, windows

N = 8
EOS = 256


@pytest.fixture
def documents():
    """Texts of 1 to 40 tokens, as many as cross two entries of a shard's index."""
    rng = np.random.RandomState(3)
    return [rng.randint(0, 250, rng.randint(1, 40)).tolist() for _ in range(600)]


def stream_of(documents):
    return [token for ids in documents for token in (*ids, EOS)]


def separated(tmp_path, documents, mode="chunks", stitch=1):
    shards.write(tmp_path / "d_0.tfrecords", documents[:500])
    shards.write(tmp_path / "d_1.tfrecords", documents[500:])
    return shards.config(tmp_path, {"d": (stitch, mode, 1.0, {
        "path": str(tmp_path / "d_*.tfrecords"), "separator": EOS,
        "eval_path": str(tmp_path / "d_*.tfrecords")})})


def test_a_stream_has_a_separator_after_each_record(tmp_path, documents, monkeypatch):
    """Shards of documents without an end of text, such as ConnorJL's."""
    monkeypatch.setattr(windows, "BLOCK_TOKENS", 40 * N)
    config, stream = separated(tmp_path, documents), stream_of(documents)
    tokens, valid = shards.take(inputs.eval_input_fn(config))
    tokens, valid = tokens.reshape(-1, N + 1), valid.reshape(-1)
    found = np.concatenate([row[1:count + 1] for row, count in zip(tokens, valid, strict=True)])
    assert tokens[0, 0] == stream[0] and found.tolist() == stream[1:]
    facts = inputs.dataset_facts(config, "train")
    assert facts.tokens == len(stream)
    wanted = sorted(tuple(stream[i:i + N + 1]) for i in range(0, len(stream) - N, N))
    assert sorted(map(tuple, shards.rows(config, 0, facts.windows).tolist())) == wanted


def test_stitched_documents_are_separated(tmp_path, documents):
    config = separated(tmp_path, documents, "documents_fixed", stitch=6)
    first = {tuple(ids) for ids in documents}
    for row in shards.rows(config, 0, 50).tolist():
        assert EOS in row or any(ids[:N + 1] == tuple(row) for ids in first)
        head = tuple(row[:row.index(EOS)]) if EOS in row else None
        assert head is None or head in first
    assert inputs.dataset_facts(config, "train").windows == 100


def test_a_dataset_check_counts_separators(tmp_path, documents, capsys):
    assert inputs.check_dataset(separated(tmp_path, documents), samples=0)
    assert f"tokens {len(stream_of(documents)):,}," in capsys.readouterr().out


def test_held_out_shards_are_validation(tmp_path):
    for number in range(4):
        shards.write(tmp_path / f"d_{number}.tfrecords", [[number] * 20])
    config = shards.config(tmp_path, {"d": (1, "chunks", 1.0, {
        "path": str(tmp_path / "d_*.tfrecords"), "held_out_shards": [2, 11, 3]})})
    assert set(np.unique(shards.take(inputs.eval_input_fn(config))[0])) == {0, 2, 3}  # 0 fills up
    assert set(np.unique(shards.rows(config, 0, 40))) == {0, 1}
    assert [splits.number_of(name) for name in ("a_7.tfrecords", "a_b_12_345.tfrecords", "a.json")
            ] == [7, 12, None]
    config = shards.config(tmp_path, {"d": (1, "chunks", 1.0, {
        "path": str(tmp_path / "d_*.tfrecords"), "held_out_shards": [11]})})
    with pytest.raises(UserError, match="no validation split; set eval_path or held_out_shards"):
        inputs.eval_input_fn(config)


def test_a_config_of_connorjl_trains_on_its_shards(tmp_path):
    """From its JSON to windows: both kinds of shards in their shares, numbered ones held out."""
    rng = np.random.RandomState(0)
    for name, low in (("openwebtext-newspaper", 0), ("openwebtext-newspaper-long", 1000)):
        for number in (0, 1, 3):  # 1 is one of those that it holds out
            shards.write(tmp_path / f"{name}_{number}.tfrecords",
                         [(low + 100 * number + rng.randint(0, 99, 30)).tolist()
                          for _ in range(100)], hash=tf.train.Feature(
                              bytes_list=tf.train.BytesList(value=[b"h"])))
    path = tmp_path / "345M.json"
    path.write_text(json.dumps({
        "model": "GPT2", "input": "openwebtext_longbiased", "data_path": str(tmp_path),
        "n_embd": 64, "n_layer": 2, "n_ctx": 16, "train_batch_size": 4, "train_steps": 10,
        "max_steps": 50, "eval_batch_size": 4, "model_path": str(tmp_path / "run")}))
    config = schema.load(str(path))
    rows = shards.rows(config, 0, 80, batch_size=4)
    text = rows[rows != 50256]
    assert set(np.unique(text // 100)) == {0, 3, 10, 13}
    assert (rows[:, 0] >= 1000).mean() == pytest.approx(0.7, abs=0.15)
    assert (rows == 50256).any()
    held = shards.take(inputs.eval_input_fn(config), params={"batch_size": 1})[0]
    assert set(np.unique(held[held != 50256] // 100)) <= {0, 1, 11}


# Input functions of a user's own.

def counting(config, split, start):
    """Rows of one repeated number: their place; 10 rows of 5 targets for validation."""
    numbers = (tf.data.Dataset.range(start, 1 << 40) if split == "train"
               else tf.data.Dataset.range(10))
    rows = numbers.map(lambda n: {"tokens": tf.fill([config.n_ctx + 1], n % config.n_vocab)})
    return rows if split == "train" else rows.map(
        lambda row: {**row, "valid": tf.constant(5, tf.int64)})


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A config of a run that reads the function `counting`, which is registered."""
    monkeypatch.setitem(inputs.INPUT_FUNCTIONS, "counting", counting)
    return shards.config(tmp_path, {}, input_fn="counting")


def test_an_own_function_gives_the_rows(own):
    assert shards.rows(own, 5, 8, batch_size=4)[:, 0].tolist() == list(range(5, 13))
    assert shards.rows(own, 0, 4).shape == (4, N + 1)
    tokens, valid = shards.take(inputs.eval_input_fn(own))
    assert tokens.shape == (3, 4, N + 1) and valid.reshape(-1).tolist() == [5] * 10 + [0] * 2
    assert inputs.eval_windows(own) == inputs.EvalSize(10, 3, 50, 5)
    own.eval_steps = 2
    assert inputs.eval_windows(own) == inputs.EvalSize(8, 2, 40, 5)
    facts = inputs.dataset_facts(own, "train")
    assert (facts.windows, facts.tokens, facts.n_vocab) == (None, None, 257)
    assert facts.datasets == ({"id": "counting"},)


@pytest.mark.parametrize("wrong, message", [
    (lambda config, split, start: [1, 2], "must return a tf.data.Dataset of dicts"),
    (lambda config, split, start: tf.data.Dataset.range(3), "must return a tf.data.Dataset"),
    (lambda config, split, start: tf.data.Dataset.from_tensors({"tokens": tf.zeros([4])}),
     r"shape \(4,\), and 9 are needed")])
def test_what_an_own_function_may_not_return(own, monkeypatch, wrong, message):
    monkeypatch.setitem(inputs.INPUT_FUNCTIONS, "counting", wrong)
    with pytest.raises(UserError, match=message):
        inputs.train_input_fn(own, 0)({})


def test_own_functions_are_found_by_name_and_their_ids_checked(own, monkeypatch):
    monkeypatch.setitem(inputs.INPUT_FUNCTIONS, "counting", lambda config, split, start:
                        tf.data.Dataset.from_tensors({"tokens": tf.fill([N + 1], 257)}).repeat())
    with pytest.raises(tf.errors.InvalidArgumentError, match="ids have to be below 257"):
        shards.rows(own, 0, 4)
    own.input_fn = "countin"
    with pytest.raises(UserError, match=r"input_fn: countin is not known \(datasets, counting\)"):
        inputs.dataset_facts(own, "train")
    own.input_fn, own.model = "counting", "clip"
    with pytest.raises(UserError, match="model clip is trained on pictures"):
        inputs.train_input_fn(own, 0)


@pytest.mark.slow
def test_a_run_on_an_own_function_trains_evaluates_and_goes_on(tmp_path, monkeypatch, capsys):
    """Rows that all count up: learnt in a few steps. A resumed run takes the rows that follow."""
    seen = []

    def ramp(config, split, start):
        seen.append((split, start))
        numbers = (tf.data.Dataset.range(start, 1 << 40) if split == "train"
                   else tf.data.Dataset.range(6))
        return numbers.map(lambda n: {"tokens": (n + tf.range(N + 1, dtype=tf.int64)) % 11})

    monkeypatch.setitem(inputs.INPUT_FUNCTIONS, "ramp", ramp)
    path = jobs.config(tmp_path, [], input_fn="ramp", n_vocab=11, eval_steps=None, train_steps=20,
                       lr=3e-2)
    first = jobs.here(capsys, path).summary
    assert first["eval_loss"] < 1.5 < np.log(11) and first["bits_per_byte"] is None
    second = jobs.here(capsys, path, "--set", "train_steps=22").summary
    assert second["step"] == 22 and ("train", 20 * 8) in seen
    assert "epoch" not in jobs.scalars(tmp_path / "run")
