"""The files of the picture–caption world: whole, reproducible, never half or overwritten."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import scenes  # noqa: E402
import scenes_sample  # noqa: E402
import scenes_world  # noqa: E402
import scenes_zero_shot  # noqa: E402
from scene_checks import check  # noqa: E402
from scenes_render import render  # noqa: E402
from scenes_sample import Scene, Thing  # noqa: E402
from scenes_world import COLOURS  # noqa: E402

PIL = pytest.importorskip("PIL.Image", reason="Pillow draws the contact sheet")
SCRIPT = scenes.__file__


def run(out, *flags):
    return scenes.main(["--out", str(out), "--pictures", "60", "--texts", "40", "--cloze", "32",
                        "--zero_shot", "40", *flags])


def files(directory):
    return {path.relative_to(directory).as_posix(): path.read_bytes()
            for path in directory.rglob("*") if path.is_file()}


def records(path):
    for record in tf.io.tf_record_iterator(str(path)):
        features = tf.train.Example.FromString(record).features.feature
        yield {name: list(features[name].bytes_list.value) for name in features}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    assert run(directory, "--files_per", "25") == 0
    return directory


def test_files_hold_what_the_manifest_says(world):
    manifest = json.loads((world / "manifest.json").read_text())
    names = {"manifest.json", "contact_sheet.png", "zero_shot.jsonl", "zero_shot_val.tfrecords",
             manifest["captions_train"]["file"]}
    for split, number in (("train", 60), ("val", 3), ("heldout", 3)):
        shards = manifest["pictures"][split]
        assert sum(shard["records"] for shard in shards) == number
        for shard in shards:
            assert shard["file"].endswith(f"_{shard['records']}.tfrecords")
            assert len(list(records(world / shard["file"]))) == shard["records"]
        lines = (world / f"texts_{split}.jsonl").read_text().splitlines()
        assert len(lines) == manifest["texts"][split]["documents"]
        assert all(list(json.loads(line)) == ["text"] for line in lines)
        names |= {shard["file"] for shard in shards} | {f"texts_{split}.jsonl"}
    for split in ("dev", "test"):
        made = [json.loads(line) for line in (world / f"cloze_{split}.jsonl").open()]
        assert len(made) == manifest["cloze"][split]["items"] > 20
        names |= {f"{what}_{split}.jsonl" for what in ("cloze", "statements", "stories")}
    names.add("combinations.jsonl")
    assert len((world / "combinations.jsonl").read_text().splitlines()) == manifest[
        "combinations"]["items"] == 32
    for name, number in manifest["probes"].items():
        assert len((world / name).read_text().splitlines()) == number > 10
    assert names | set(manifest["probes"]) == set(files(world))
    assert [tuple(pair) for pair in manifest["held_out"]] == scenes_world.held_out()
    assert len(manifest["pictures"]["train"]) == 3
    assert (manifest["hard_groups"], manifest["group"]) == (0.5, 4)


def test_zero_shot_pictures_show_one_thing_that_was_not_trained_on(world):
    tasks = [json.loads(line) for line in (world / "zero_shot.jsonl").open()]
    assert [task["name"] for task in tasks] == ["colour", "shape"]
    for task in tasks:
        classes = [word for word, entry in getattr(scenes_world, task["name"].upper() + "S").items()
                   if not entry.split]
        assert list(task["prompts"]) == classes and task["label"] == task["name"]
        for word, texts in task["prompts"].items():
            assert all(f" {word}" in text for text in texts) and len(set(texts)) == len(texts) > 9
    found = list(records(world / tasks[0]["pictures"]))
    made = list(scenes_zero_shot.scenes(1, 40))
    assert len(found) == 40
    for record, scene in zip(found, made, strict=True):
        thing, = scene.things
        assert scenes_sample.split_of(scene) == "val"
        assert record["colour"] == [thing.colour.encode()]
        assert record["shape"] == [thing.shape.encode()]
        assert all(record[task["label"]][0].decode() in task["prompts"] for task in tasks)
        np.testing.assert_array_equal(
            np.array(PIL.open(io.BytesIO(record["image"][0]))), render([scene])[0])
    assert len({record["colour"][0] for record in found}) > 6
    assert len({record["shape"][0] for record in found}) > 6


def test_records_hold_png_captions_and_scene(world):
    for record in records(world / "pictures_train_1_25.tfrecords"):
        stored = json.loads(record["scene"][0])
        scene = Scene(stored["tone"], stored["backdrop"],
                      tuple(Thing(**thing) for thing in stored["things"]), stored["nested"])
        image = np.array(PIL.open(io.BytesIO(record["image"][0])))
        np.testing.assert_array_equal(image, render([scene])[0])
        assert 1 < len(record["caption"]) <= 6
        for line in record["caption"]:
            check(scene, line.decode())


def test_captions_of_training_pictures_are_a_text(world):
    lines = [json.loads(line) for line in (world / "captions_train.jsonl").open()]
    assert lines == [{"text": caption.decode()} for i, n in enumerate((25, 25, 10))
                     for record in records(world / f"pictures_train_{i}_{n}.tfrecords")
                     for caption in record["caption"]]
    assert json.loads((world / "manifest.json").read_text())["captions_train"] == {
        "file": "captions_train.jsonl", "captions": len(lines)}


def test_contact_sheet_opens(world):
    sheet = PIL.open(io.BytesIO((world / "contact_sheet.png").read_bytes()))
    pixels = np.array(sheet)
    assert sheet.width == 1400 and sheet.height > 1500
    for colour in COLOURS.values():
        assert (pixels == colour.rgb).all(-1).sum() > 1000


def test_same_bytes_in_another_process(world, tmp_path):
    for hash_seed in ("1", "77"):
        out = tmp_path / hash_seed
        subprocess.run([sys.executable, SCRIPT, "--out", str(out), "--pictures", "60", "--texts",
                        "40", "--cloze", "32", "--zero_shot", "40", "--files_per", "25"],
                       check=True,
                       env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True)
        assert files(out) == files(world)


def test_larger_worlds_begin_alike_and_seeds_differ(world, tmp_path):
    assert run(tmp_path / "a", "--pictures", "90", "--texts", "50") == 0
    large = list(records(tmp_path / "a" / "pictures_train_0_90.tfrecords"))
    small = [r for i, n in enumerate((25, 25, 10))
             for r in records(world / f"pictures_train_{i}_{n}.tfrecords")]
    assert large[:60] == small
    old, new = ((d / "texts_train.jsonl").read_text() for d in (world, tmp_path / "a"))
    assert new.startswith(old) and len(new) > len(old)
    assert run(tmp_path / "b", "--seed", "2") == 0
    assert (tmp_path / "b" / "texts_train.jsonl").read_text() != old
    assert files(tmp_path / "b")["cloze_test.jsonl"] == files(world)["cloze_test.jsonl"]


def test_a_broken_run_leaves_no_world(world, tmp_path, monkeypatch, capsys):
    example, made = scenes.example, []

    def breaks(*args):
        made.append(args)
        if len(made) > 40:
            raise KeyboardInterrupt
        return example(*args)
    monkeypatch.setattr(scenes, "example", breaks)
    assert run(tmp_path, "--files_per", "25") == 130
    assert "whole" in capsys.readouterr().err
    left = files(tmp_path)
    assert "manifest.json" not in left
    assert {name for name in left if not name.endswith(".tmp")} == {"pictures_train_0_25.tfrecords"}
    monkeypatch.undo()
    assert run(tmp_path, "--files_per", "25") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(tmp_path, "--files_per", "25", "--overwrite") == 0
    assert files(tmp_path) == files(world)


def test_other_file_systems_and_sizes():
    assert run("ram://scenes", "--size", "48") == 0
    (record, *_) = records("ram://scenes/pictures_val_0_3.tfrecords")
    assert PIL.open(io.BytesIO(record["image"][0])).size == (48, 48)


def test_an_empty_world(tmp_path):
    assert run(tmp_path, "--pictures", "0", "--texts", "0") == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["pictures"]["train"] == [] and manifest["texts"]["train"]["documents"] == 0
    assert (tmp_path / "texts_train.jsonl").read_bytes() == b""
    assert PIL.open(tmp_path / "contact_sheet.png").height > 300


def test_hard_groups_change_pictures_alone(world, tmp_path):
    assert run(tmp_path, "--files_per", "25", "--hard_groups", "0") == 0
    assert json.loads((tmp_path / "manifest.json").read_text())["group"] == 1
    plain, hard = files(tmp_path), files(world)
    differing = {name for name in plain if plain[name] != hard[name]}
    assert {name.partition("_")[0] for name in differing} == {"pictures", "captions", "contact",
                                                              "manifest.json"}


def test_a_directory_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "world") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out") and error.count("\n") == 1


@pytest.mark.parametrize("flags, word", [
    (["--facts", "1.5"], "--facts"), (["--size", "4"], "--size"),
    (["--hard_groups", "-0.1"], "--hard_groups"),
    (["--pictures", "-1"], "--pictures")])
def test_refusals(tmp_path, capsys, flags, word):
    assert run(tmp_path / "x", *flags) == 2
    assert capsys.readouterr().err.startswith(f"error: {word}")
    assert not os.path.exists(tmp_path / "x")
