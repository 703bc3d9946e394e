"""create_tfrecords: nothing lost, the same bytes however it ran, and a true manifest."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from tfrecord_runs import (
    BYTE,
    SCRIPT,
    command,
    corpus,
    create_tfrecords,
    read_manifest,
    records,
    run,
    split_documents,
    split_records,
    write_jsonl,
)

import encoders
from configs.dataset import DatasetConfig, Manifest
from encoders import char


@pytest.fixture
def inputs(tmp_path):
    """Three files: the texts by file, in natural order."""
    texts = [corpus(i, 100) for i in range(2)] + [["A single text file. " * 50]]
    write_jsonl(tmp_path / "a_2.jsonl", texts[0])
    write_jsonl(tmp_path / "a_10.jsonl", texts[1])
    (tmp_path / "b.txt").write_text(texts[2][0])
    return texts


@pytest.mark.parametrize("mode", ["chunks", "documents"])
def test_every_document_is_kept_once(tmp_path, inputs, mode):
    """GPT-Neo's script lost the tails of documents and documents shorter than a chunk."""
    directory, manifest = run(tmp_path, "--mode", mode, "--chunk_size", 64, "--files_per", 100)
    expected = [text for texts in inputs for text in texts if text]
    found = split_documents(directory, manifest, "train")
    assert sorted(found) == sorted(expected)
    lengths = [len(record) for record in split_records(directory, manifest, "train")]
    if mode == "chunks":
        assert set(lengths[:-1]) == {64} and 0 < lengths[-1] <= 64
    else:
        assert len(lengths) == len(expected)
    empty = sum(not text for texts in inputs for text in texts)
    assert manifest.dropped.documents == empty > 0 and manifest.dropped.tokens == 0


def test_documents_keep_their_order_within_a_file_and_seed_shuffles_files(tmp_path, inputs):
    orders = set()
    for seed in range(4):
        directory, manifest = run(tmp_path, "--seed", seed, out=f"out{seed}")
        found = split_documents(directory, manifest, "train")
        order = sorted(range(3), key=lambda i: found.index(next(t for t in inputs[i] if t)))
        assert found == [text for i in order for text in inputs[i] if text]
        orders.add(tuple(order))
    assert len(orders) > 1


@pytest.mark.parametrize("mode", ["chunks", "documents"])
def test_manifest_equals_an_independent_scan(tmp_path, inputs, mode):
    directory, manifest = run(tmp_path, "--mode", mode, "--chunk_size", 16, "--files_per", 300,
                              "--val_fraction", 0.3)
    names = sorted(path.name for path in directory.glob("*.tfrecords"))
    listed = [shard.file for split in manifest.splits.values() for shard in split]
    assert names == sorted(listed) and not list(directory.glob("*.tmp"))
    assert manifest.encoder.hash == BYTE.hash and manifest.encoder.n_vocab == 257
    seeks = 0
    for split, infix in (("train", ""), ("validation", "_val")):
        carried = 0  # tokens of the document that a shard begins in the middle of
        for number, shard in enumerate(manifest.splits[split]):
            found = records(directory / shard.file)
            tokens = np.concatenate(found)
            lengths = [len(record) for record in found]
            assert shard.file == f"d{infix}_{number}_{len(found)}.tfrecords"
            assert len(found) == 300 or shard is manifest.splits[split][-1]
            assert (shard.records, shard.tokens) == (len(found), len(tokens))
            assert (shard.shortest, shard.longest) == (min(lengths), max(lengths))
            begins = np.flatnonzero(np.r_[carried == 0, tokens[:-1] == BYTE.eos_id])
            assert shard.documents == len(begins)
            carried = tokens[-1] != BYTE.eos_id
            data = (directory / shard.file).read_bytes()
            assert len(shard.index) == -(-len(found) // 256)
            for entry, (offset, first) in enumerate(shard.index):
                length = int.from_bytes(data[offset:offset + 8], "little")
                example = tf.train.Example.FromString(data[offset + 12:offset + 12 + length])
                value = list(example.features.feature["text"].int64_list.value)
                assert value == found[256 * entry].tolist()
                assert first == sum(lengths[:256 * entry])
                seeks += entry > 0
        texts = split_documents(directory, manifest, split)
        size = sum(len(text.encode()) for text in texts)
        assert manifest.total(split, "bytes") == manifest.total(split, "decoded_bytes") == size
        assert manifest.total(split, "documents") == len(texts)
        index = (directory / f"d.{infix.strip('_') or 'train'}.index").read_text().split()
        assert index == [str(directory / shard.file) for shard in manifest.splits[split]]
    assert seeks or mode == "documents"


def test_bytes_count_for_the_shard_in_which_a_document_begins(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["abcdefg", "hi", "j"])  # with eos: 8 + 3 + 2 tokens
    _, manifest = run(tmp_path, "--chunk_size", 3, "--files_per", 1)
    assert [(s.tokens, s.documents, s.bytes) for s in manifest.splits["train"]] == [
        (3, 1, 7), (3, 0, 0), (3, 1, 2), (3, 1, 1), (1, 0, 0)]


@pytest.mark.parametrize("limit", [0, 1, 5])
def test_minimum_size_counts_tokens_and_reports(tmp_path, limit, capsys):
    write_jsonl(tmp_path / "a.jsonl", ["", "abcd", "efghi", "é漢"])
    directory, manifest = run(tmp_path, "--minimum_size", limit)
    kept = {0: 3, 1: 3, 5: 2}[limit]
    assert len(split_documents(directory, manifest, "train")) == kept
    assert manifest.dropped.documents == 4 - kept
    assert manifest.dropped.tokens == (4 if limit == 5 else 0)
    line = {0: "17 (separators included) = tokens out 17 + dropped 0",
            1: "17 (separators included) = tokens out 17 + dropped 0",
            5: "16 (separators included) = tokens out 12 + dropped 4"}[limit]
    assert f"tokens in {line}" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["chunks", "documents"])
@pytest.mark.parametrize("least", [0, 2, 4, 8])
def test_repetitive_documents_are_dropped(tmp_path, least, mode):
    """Those of which 8 bytes from a multiple of 8 on have too few different ones, and no others."""
    texts = ["aaaaaaaa", "aaaaaaa", "abcdefgh", "abcabcabcabc", "abcdefghaaaaaaaaab", "ab" * 8,
             "xabcdefghaaaaaaa"]
    write_jsonl(tmp_path / "a.jsonl", texts)
    kept = [text for text in texts if all(
        len(set(text[start:start + 8])) >= least for start in range(0, len(text) - 7, 8))]
    directory, manifest = run(tmp_path, "--min_unique_tokens", least, "--chunk_size", 8,
                              "--mode", mode)
    assert split_documents(directory, manifest, "train") == kept
    assert manifest.dropped.documents == len(texts) - len(kept)
    assert manifest.dropped.tokens == sum(map(len, texts)) - sum(map(len, kept))
    assert ("different ones in 8" in manifest.dropped.why) == bool(least)


def test_validation_by_document(tmp_path, inputs):
    directory, manifest = run(tmp_path, "--val_fraction", 0.25)
    parts = {split: split_documents(directory, manifest, split) for split in manifest.splits}
    expected = [text for texts in inputs for text in texts if text]
    assert sorted(parts["train"] + parts["validation"]) == sorted(expected)
    assert 0.15 < len(parts["validation"]) / len(expected) < 0.35
    again = run(tmp_path, "--val_fraction", 0.25, out="again")
    assert split_documents(*again, "validation") == parts["validation"]
    other = run(tmp_path, "--val_fraction", 0.25, "--seed", 5, out="other")
    assert sorted(split_documents(*other, "validation")) != sorted(parts["validation"])


def test_val_tail_of_each_document(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["0123456789", "é漢🎈abcdefghijklmnopq", "x"])
    directory, manifest = run(tmp_path, "--val_fraction", 0.2, "--val_tail")
    assert split_documents(directory, manifest, "train") == ["01234567", "é漢🎈abcdefghijklm"]
    assert split_documents(directory, manifest, "validation") == ["89", "nopq", "x"]


def test_shakespeare_is_split_as_nanogpt_does(tmp_path, shared_data):
    source = os.path.join(shared_data, "tinyshakespeare.txt")
    config = tmp_path / "configs" / "d.json"
    directory, manifest = run(
        tmp_path, "--input_dir", source, "--encoder", "char", "--val_fraction", 0.1, "--val_tail",
        "--chunk_size", 1024, "--write_dataset_config", config)
    with open(source, encoding="utf-8", newline="") as file:
        text = file.read()
    cut = int(len(text) * 0.9)
    encoder = encoders.load(manifest.encoder.spec)
    assert encoder.n_vocab == len(set(text)) + 1 and encoder.hash == manifest.encoder.hash
    for split, part in (("train", text[:cut]), ("validation", text[cut:])):
        ids = np.concatenate(split_records(directory, manifest, split)).tolist()
        assert ids.pop() == encoder.eos_id
        assert encoder.decode(ids) == part
    dataset = DatasetConfig.from_json(config.read_text(), "d.json")
    assert dataset.encoder == f"char:{directory}/d_encoder.json"
    assert (dataset.encoder_hash, dataset.n_vocab, dataset.eos_id) == (
        encoder.hash, encoder.n_vocab, encoder.eos_id)
    for split, paths in (("train", dataset.paths), ("validation", dataset.eval_paths)):
        assert sorted(map(os.path.basename, tf.io.gfile.glob(paths))) == sorted(
            shard.file for shard in manifest.splits[split])


@pytest.mark.parametrize("encoder", [
    "byte", "char", "char:characters.json", "characters.json", f"characters.json#{char.EOS}"])
def test_the_dataset_config_is_good_in_every_directory(tmp_path, monkeypatch, encoder):
    """Relative paths of the command line, from a directory whose name looks like a pattern."""
    place = tmp_path / "a [1]*"
    place.mkdir()
    monkeypatch.chdir(place)
    texts = corpus(5, 40)
    write_jsonl(place / "a.jsonl", texts)
    char.train(texts).save("characters.json")
    status = create_tfrecords.main([
        "--name", "d", "--output_dir", "out/d", "--encoder", encoder, "--input_dir", "a.jsonl",
        "--val_fraction", "0.3", "--write_dataset_config", "d.json"])
    assert status == 0
    monkeypatch.chdir(tmp_path)
    dataset = DatasetConfig.from_json((place / "d.json").read_text(), "d.json")
    for paths, infix in ((dataset.paths, ""), (dataset.eval_paths, "_val")):
        there = sorted(map(str, (place / "out" / "d").glob(f"d{infix}_[0-9]*.tfrecords")))
        assert sorted(tf.io.gfile.glob(paths)) == there != []
    for spec in (dataset.encoder, read_manifest(place / "out" / "d").encoder.spec):
        assert encoders.load(spec).hash == dataset.encoder_hash


def test_on_any_file_system(tmp_path):
    """TensorFlow's in-memory file system stands for gs://."""
    texts = corpus(3, 40)
    with tf.io.gfile.GFile("ram://in/a.jsonl", "w") as file:
        file.write("".join(json.dumps(text) + "\n" for text in texts))
    assert create_tfrecords.main([
        "--name", "r", "--output_dir", "ram://out/dir", "--encoder", "char", "--input_dir",
        "ram://in/*.jsonl", "--chunk_size", "100", "--files_per", "9", "--checkpoint_seconds", "0",
        "--write_dataset_config", "ram://out/r.json"]) == 0
    with tf.io.gfile.GFile("ram://out/dir/r_manifest.json") as file:
        manifest = Manifest.from_json(file.read(), "r")
    encoder = encoders.load("char:ram://out/dir/r_encoder.json")
    ids = np.concatenate([record for shard in manifest.splits["train"]
                          for record in records("ram://out/dir/" + shard.file)])
    assert encoder.decode(ids.tolist()) == "".join(texts)


def test_tfds_by_name(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="reads what TFDS prepares")
    pytest.importorskip("importlib_resources", reason="tensorflow-datasets prepares data with it")
    texts = [text for text in corpus(4, 20) if text]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="verses", version="1.0.0", data_dir=str(tmp_path / "tfds"),
        features=tfds.features.FeaturesDict({"line": tfds.features.Text()}),
        split_datasets={"test": [(i, {"line": text}) for i, text in enumerate(texts)]})
    subprocess.run(command(tmp_path, "out", "--tfds", "verses:test"), check=True,
                   env={**os.environ, "TFDS_DATA_DIR": str(tmp_path / "tfds")})
    found = split_documents(tmp_path / "out", read_manifest(tmp_path / "out"), "train")
    assert sorted(found) == sorted(texts)


def test_bytes_of_a_lossy_encoder(tmp_path, shared_data):
    """CLIP's drops case and line breaks: both counts of bytes are kept."""
    spec = "clip:" + os.path.join(shared_data, "bpe_simple_vocab_16e6.txt.gz")
    texts = ["Two\n\nLINES  here", "É 🎈"]
    write_jsonl(tmp_path / "a.jsonl", texts)
    _, manifest = run(tmp_path, "--encoder", spec)
    encoder = encoders.load(spec)
    decoded = [encoder.decode(encoder.encode(text)) for text in texts]
    assert manifest.total("train", "bytes") == sum(len(text.encode()) for text in texts)
    assert manifest.total("train", "decoded_bytes") == sum(len(t.encode()) for t in decoded)
    assert decoded != texts and not manifest.encoder.lossless


def test_ftfy_only_if_asked(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["schÃ¶n N : N"])
    assert split_documents(*run(tmp_path), "train") == ["schÃ¶n N : N"]
    assert split_documents(*run(tmp_path, "--ftfy", out="mended"), "train") == ["schön N : N"]


def test_wikitexts_form_is_undone_only_if_asked(tmp_path):
    form = " = Plot = \n It 's 3 @-@ 4 ( so ) . \n"
    write_jsonl(tmp_path / "a.jsonl", [form])
    assert split_documents(*run(tmp_path), "train") == [form]
    assert split_documents(*run(tmp_path, "--wikitext_detokenize", out="mended"), "train") == [
        "= Plot =\nIt's 3-4 (so).\n"]


def test_separator(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["ab", "c"])
    directory, manifest = run(tmp_path, "--separator", 10, 10)
    assert records(directory / manifest.splits["train"][0].file)[0].tolist() == [
        97, 98, 10, 10, 99, 10, 10]
    assert manifest.separator == [10, 10]


def test_skipped_inputs_are_named(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"sch\xf6n")
    write_jsonl(tmp_path / "a.jsonl", ["good"])
    directory, manifest = run(tmp_path, "--on_error", "skip")
    assert split_documents(directory, manifest, "train") == ["good"]
    named = {re.search(r"(\w+)\.txt", line)[1] for line in manifest.dropped.problems}
    assert named == {"empty", "latin"}
    assert "latin.txt" in capsys.readouterr().out


def test_help_is_instant_and_names_every_flag():
    began = time.monotonic()
    text = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True,
                          check=True).stdout
    assert time.monotonic() - began < 1.5
    for flag in ("input_dir tfds text_key ftfy wikitext_detokenize minimum_size "
                 "min_unique_tokens on_error name "
                 "output_dir encoder mode chunk_size separator files_per val_fraction val_tail "
                 "seed write_dataset_config overwrite processes checkpoint_seconds").split():
        assert f"--{flag}" in text
