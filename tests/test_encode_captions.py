"""encode_captions: pictures as they were, captions as the encoder has them, and plain refusals."""

import json
import os

import numpy as np
import pytest

pytest.importorskip("PIL.Image", reason="Pillow makes the pictures")
from picture_shards import captions, encode, inputs_of, picture, stored, write_input  # noqa: E402

import encoders  # noqa: E402
from configs.dataset import DatasetConfig  # noqa: E402


def test_pictures_and_captions_are_kept(tmp_path):
    manifest = encode(tmp_path, "--input", inputs_of(tmp_path, [300, 0, 261]), "--files_per", "300",
                      "--val_input", inputs_of(tmp_path, [7], "val", 561))
    assert (manifest.mode, manifest.image_size, manifest.group) == ("pictures", 8, 1)
    number = 0
    for split, infix, counts in (("train", "", [300, 261]), ("validation", "_val", [7])):
        assert [shard.records for shard in manifest.splits[split]] == counts
        for place, shard in enumerate(manifest.splits[split]):
            assert shard.file == f"p{infix}_{place}_{shard.records}.tfrecords"
            path = tmp_path / "out" / shard.file
            found = list(stored(path))
            before = np.cumsum([0, *(len(ids) for _, ids, _ in found)])
            assert shard.tokens == shard.bytes == before[-1]
            assert shard.shortest == min(np.diff(before)) and shard.longest == max(np.diff(before))
            data = path.read_bytes()
            assert len(shard.index) == -(-len(found) // 256)
            for entry, (offset, tokens) in enumerate(shard.index):
                length = int.from_bytes(data[offset:offset + 8], "little")
                assert found[256 * entry][0] in data[offset + 12:offset + 12 + length]
                assert tokens == before[256 * entry]
            for image, ids, lengths in found:
                assert image == picture(number)
                texts = np.split(ids, np.cumsum(lengths)[:-1])
                assert [bytes(text.tolist()).decode() for text in texts] == captions(number)
                number += 1
    assert number == 568


def test_the_dataset_config_is_right_from_everywhere(tmp_path, monkeypatch):
    glob = inputs_of(tmp_path, [5])
    monkeypatch.chdir(tmp_path)
    encode(tmp_path, "--input", os.path.relpath(glob), "--output_dir", "out")
    dataset = DatasetConfig.from_json((tmp_path / "p.json").read_text(), "p")
    assert dataset.path == str(tmp_path / "out" / "p_[0-9]*.tfrecords")
    assert dataset.eval_path is None
    byte = encoders.load("byte")
    assert (dataset.encoder, dataset.encoder_hash, dataset.n_vocab) == (
        "byte", byte.hash, byte.n_vocab)


def test_groups_come_from_the_note_beside_the_pictures(tmp_path, capsys):
    glob = inputs_of(tmp_path, [10, 12])  # the third group lies in both files, the last is not full
    (tmp_path / "manifest.json").write_text(json.dumps({"group": 4}))
    assert encode(tmp_path, "--input", glob, "--group", "2").group == 2
    manifest = encode(tmp_path, "--input", glob, "--val_input", inputs_of(tmp_path, [5], "val"),
                      "--overwrite")
    assert manifest.group == 4 and manifest.dropped.documents == 2
    assert manifest.total("train", "records") == 20 and manifest.total("validation", "records") == 5
    assert "the last 2 pictures are no group of 4" in capsys.readouterr().out
    encode(tmp_path, "--input", glob, "--files_per", "6", "--overwrite", status=2)
    assert "--files_per 6: is no multiple of the groups of 4 pictures; give 8" in \
        capsys.readouterr().err
    (tmp_path / "manifest.json").write_text('{"group": "all"}')
    encode(tmp_path, "--input", glob, "--overwrite", status=2)
    assert "manifest.json: group is 'all'" in capsys.readouterr().err


BAD = [
    ((picture(1)[:40], ["a"]), "cannot be decoded"),
    ((b"no picture", ["a"]), "cannot be decoded"),
    ((picture(1, 16), ["a"]), "has 16 × 16 pixels, not 8 × 8"),
    ((picture(1, (8, 9)), ["a"]), "has 8 × 9 pixels, not 8 × 8"),
    ((picture(1), []), "has no caption"),
    ((picture(1), ["", ""]), "has no caption"),
    ((picture(1), [b"\xff"]), "no UTF-8"),
    ((None, ["a"]), 'has 0 byte strings under "image"'),
]


@pytest.mark.parametrize("entry, problem", BAD)
def test_a_bad_record_is_named_and_refused_or_skipped(tmp_path, capsys, entry, problem):
    entries = [(picture(i), captions(i)) for i in range(8)]
    entries[5] = entry
    path = tmp_path / "in.tfrecords"
    offset = write_input(path, entries)[5]
    flags = ("--input", path, "--group", "2")
    encode(tmp_path, *flags, status=2)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: the picture at byte {offset} ")
    assert problem in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "p_manifest.json").exists()
    manifest = encode(tmp_path, *flags, "--on_error", "skip")
    assert f"at byte {offset}" in capsys.readouterr().out
    assert manifest.dropped.documents == 2
    found = [image for image, _, _ in stored(tmp_path / "out" / "p_0_6.tfrecords")]
    assert found == [picture(i) for i in (0, 1, 2, 3, 6, 7)]


def test_a_start_token_in_a_caption_is_no_caption(tmp_path, capsys, shared_data):
    path = tmp_path / "in.tfrecords"
    write_input(path, [(picture(0), ["a <|startoftext|> b"])])
    merges = os.path.join(shared_data, "bpe_simple_vocab_16e6.txt.gz")
    encode(tmp_path, "--input", path, "--encoder", f"clip:{merges}", status=2)
    assert "spells token 49406" in capsys.readouterr().err


def test_a_damaged_file_is_refused_even_if_problems_are_skipped(tmp_path, capsys):
    path = tmp_path / "in.tfrecords"
    offset = write_input(path, [(picture(i), ["a"]) for i in range(5)])[3]
    data = bytearray(path.read_bytes())
    data[offset + 30] ^= 255
    path.write_bytes(data)
    encode(tmp_path, "--input", path, "--on_error", "skip", status=2)
    assert f"{path}: corrupt record (data) at byte {offset}" in capsys.readouterr().err


def test_nothing_is_overwritten_and_an_unfinished_run_begins_again(tmp_path, capsys, monkeypatch):
    glob = inputs_of(tmp_path, [30])
    flags = ("--input", glob, "--files_per", "8")
    import picture_source
    real, made = picture_source.Pictures._picture, []

    def breaks(*args):
        made.append(args)
        if len(made) > 20:
            raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(picture_source.Pictures, "_picture", breaks)
    encode(tmp_path, *flags, status=130)
    left = sorted(os.listdir(tmp_path / "out"))
    assert "p_1_8.tfrecords" in left and "p_manifest.json" not in left
    assert not any(name.startswith("p_2_") and name.endswith("tfrecords") for name in left)
    assert not (tmp_path / "p.json").exists()
    monkeypatch.undo()
    capsys.readouterr()
    encode(tmp_path, "--input", glob, "--files_per", "10", status=2)
    assert "unfinished dataset was begun with other settings (files_per: 8, now 10)" in \
        capsys.readouterr().err
    assert encode(tmp_path, *flags).total("train", "records") == 30
    assert not [name for name in os.listdir(tmp_path / "out") if "tmp" in name or "prog" in name]
    whole = (tmp_path / "out" / "p_1_8.tfrecords").read_bytes()
    encode(tmp_path, *flags, "--encoder", "gpt2", status=2)
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "p_1_8.tfrecords").read_bytes() == whole
    assert encode(tmp_path, "--input", glob, "--overwrite").splits["train"][0].records == 30
    assert not (tmp_path / "out" / "p_1_8.tfrecords").exists()


@pytest.mark.parametrize("flags, message", [
    (["--input", "/nowhere/*.tfrecords"], "--input: no file matches"),
    (["--input", "/nowhere/a.tfrecords"], "/nowhere/a.tfrecords"),
    (["--files_per", "0"], "--files_per 0: must be at least 1"),
    (["--group", "0"], "--group 0: must be at least 1"),
    (["--encoder", "bite"], "did you mean 'byte'"),
    (["--val_input", "IN"], "is matched by --input and by --val_input"),
    (["--name", "p_val"], "--name p_val"),
    (["--group", "16"], "no train picture is left"),
    (["--inptu", "x"], "did you mean --input?"),
])
def test_refusals_are_one_line(tmp_path, capsys, flags, message):
    glob = inputs_of(tmp_path, [4])
    words = [glob if word == "IN" else word for word in flags]
    try:
        encode(tmp_path, "--input", glob, *words, *(
            ["--files_per", "16"] if "16" in flags else []), status=2)
    except SystemExit as stopped:
        assert stopped.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out" / "p_manifest.json").exists()


def test_other_file_systems(tmp_path):
    import tensorflow.compat.v1 as tf
    tf.io.gfile.makedirs("ram://captions/in")
    write_input("ram://captions/in/a.tfrecords", [(picture(0), ["a"])])
    with tf.io.gfile.GFile("ram://captions/in/manifest.json", "w") as file:
        file.write('{"group": 1}')
    import encode_captions
    assert encode_captions.main([
        "--input", "ram://captions/in/*.tfrecords", "--name", "p", "--output_dir",
        "ram://captions/out", "--encoder", "byte", "--write_dataset_config",
        "ram://captions/p.json"]) == 0
    assert [image for image, _, _ in stored("ram://captions/out/p_0_1.tfrecords")] == [picture(0)]
    with tf.io.gfile.GFile("ram://captions/p.json") as file:
        assert json.loads(file.read())["path"] == "ram://captions/out/p_[0-9]*.tfrecords"
