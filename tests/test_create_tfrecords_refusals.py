"""create_tfrecords: what it refuses, in one line, and what it never overwrites."""

import gc

import pytest
from tfrecord_runs import (
    Killed,
    contents,
    corpus,
    create_tfrecords,
    kill_at,
    run,
    split_documents,
    write_jsonl,
)

REFUSALS = [
    (["--val_fraction", "1"], "--val_fraction 1.0: must be"),
    (["--val_tail"], "--val_tail: give the share"),
    (["--chunk_size", "0"], "--chunk_size 0: must be at least 1"),
    (["--separator", "257"], "--separator 257: byte has ids 0 to 256"),
    (["--name", "a/b"], "--name a/b"),
    (["--name", "d_val"], "--name d_val"),
    (["--encoder", "bite"], "byte"),
    (["--input_dir", "/nowhere/*.txt"], "/nowhere/"),
    (["--min_unique_tokens", "-1"], "--min_unique_tokens -1: must be at least 0"),
    (["--min_unique_tokens", "300", "--chunk_size", "256"], "no chunk of 256 tokens"),
    (["--minimum_size", "1000"], "no training document is left of 1 "),
    (["--val_fraction", "0.0001"], "none of 1 documents fell to validation"),
    (["--output_dir", __file__ + "/x"], "/x: cannot be made"),
    (["--write_dataset_config", __file__ + "/x/d.json"], "d.json: its directory"),
    (["--encoder", "char:vocabulary.json"], "vocabulary.json"),
]


@pytest.mark.parametrize("flags, message", REFUSALS)
def test_refusals_are_one_line(tmp_path, flags, message, capsys):
    write_jsonl(tmp_path / "a.jsonl", ["text"])
    run(tmp_path, *flags, status=2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.glob("out/*manifest*"))


def test_unreadable_and_empty_inputs_are_refused_by_name(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", ["good"])
    (tmp_path / "empty.txt").write_text("")
    run(tmp_path, status=2)
    assert "empty.txt" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_bytes(b"\xff")
    run(tmp_path, status=2)
    assert "empty.txt: unreadable" in capsys.readouterr().err
    # what was refused before it began stands in nobody's way
    (tmp_path / "empty.txt").unlink()
    directory, manifest = run(tmp_path)
    assert split_documents(directory, manifest, "train") == ["good"]
    assert sorted(path.name for path in directory.iterdir()) == [
        "d.train.index", "d_0_1.tfrecords", "d_manifest.json"]


def test_a_character_that_the_encoder_lacks_names_the_document(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", ["abc", "bca"])
    directory, _ = run(tmp_path, "--encoder", "char")
    write_jsonl(tmp_path / "a.jsonl", ["abc", "abx"])
    run(tmp_path, "--encoder", f"char:{directory}/d_encoder.json", out="x", status=2)
    error = capsys.readouterr().err
    assert "a.jsonl, document 1 (the first is 0)" in error and "'x'" in error


def test_existing_output_is_not_overwritten_silently(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"] * 10)
    config = tmp_path / "d.json"
    directory, _ = run(tmp_path, "--files_per", 1, "--chunk_size", 8)
    before = contents(directory)
    run(tmp_path, status=2)
    assert "d_manifest.json: exists" in capsys.readouterr().err
    (directory / "d_manifest.json").unlink()
    run(tmp_path, status=2)
    assert "d_0_1.tfrecords: exists" in capsys.readouterr().err
    assert {**contents(directory), "d_manifest.json": before["d_manifest.json"]} == before
    config.write_text("mine")
    run(tmp_path, "--write_dataset_config", config, out="new", status=2)
    assert "d.json: exists with other content" in capsys.readouterr().err
    _, manifest = run(tmp_path, "--overwrite", "--write_dataset_config", config)
    assert sorted(path.name for path in directory.iterdir()) == [
        "d.train.index", f"d_0_{manifest.total('train', 'records')}.tfrecords", "d_manifest.json"]


def test_an_unfinished_run_of_other_settings_is_named(tmp_path, capsys, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", corpus(5, 30))
    flags = ["--files_per", "1", "--chunk_size", "50", "--seed", "3"]
    with monkeypatch.context() as patch:
        kill_at(patch, 20)
        with pytest.raises(Killed):
            run(tmp_path, *flags)
    gc.collect()
    run(tmp_path, *flags[:-1], "4", status=2)
    assert "other settings (seed: 3, now 4)" in capsys.readouterr().err
    run(tmp_path, *flags, "--val_fraction", "0.5", status=2)
    assert "other settings (val_fraction: 0.0, now 0.5)" in capsys.readouterr().err
    before = contents(tmp_path / "out")
    write_jsonl(tmp_path / "a.jsonl", corpus(5, 31))
    run(tmp_path, *flags, status=2)
    assert "other settings (sizes of inputs: " in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    directory, manifest = run(tmp_path, *flags[:-1], "4", "--overwrite")
    expected = [text for text in corpus(5, 31) if text]
    assert split_documents(directory, manifest, "train") == expected
    assert len(list(directory.glob("*.tfrecords"))) == len(manifest.splits["train"])


def test_names_whose_globs_would_match_each_other(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", ["text"])
    run(tmp_path)
    run(tmp_path, "--name", "d_1", status=2)
    assert "holds the dataset 'd'" in capsys.readouterr().err
    assert create_tfrecords.main([
        "--name", "d_b", "--output_dir", str(tmp_path / "out"), "--encoder", "byte",
        "--input_dir", str(tmp_path / "a.jsonl")]) == 0
