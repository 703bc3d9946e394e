"""Rows of pictures and captions against pictures decoded by Pillow and captions as written."""

import io
import json

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

Image = pytest.importorskip("PIL.Image", reason="Pillow makes the pictures")
import shard_files  # noqa: E402
from picture_shards import (  # noqa: E402
    SIZE,
    captions,
    config,
    encode,
    inputs_of,
    numbers,
    picture,
    rows,
    stored,
    take,
    write_input,
)

import inputs  # noqa: E402
from configs.errors import UserError  # noqa: E402
from records import pictures, sources  # noqa: E402

START, END = 257, 258


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks of 8 pictures and groups of some blocks, so that few pictures make many."""
    monkeypatch.setattr(pictures, "BLOCK_PICTURES", 8)
    monkeypatch.setattr(pictures, "GROUP_BYTES", 8000)
    sources.forget()


@pytest.fixture
def made(tmp_path):
    """A run's config over 100 pictures in groups of 4 and shards of 36, and 10 for validation."""
    encode(tmp_path, "--input", inputs_of(tmp_path, [100]), "--files_per", "36", "--group", "4",
           "--val_input", inputs_of(tmp_path, [10], "val", 100))
    return config(tmp_path)


def test_an_epoch_has_every_picture_once_with_its_own_caption(made):
    found = rows(made, 0, 200)
    order = numbers(found)
    assert sorted(order[:100]) == sorted(order[100:]) == list(range(100))
    assert order[:100] != order[100:]
    assert (found["valid"] == 1).all()
    for place, number in enumerate(order):
        image = np.array(Image.open(io.BytesIO(picture(number))))
        np.testing.assert_array_equal(found["images"][place], image)
        end = found["ends"][place]
        row = found["tokens"][place].tolist()
        assert row[0] == START and row[end] == END and set(row[end + 1:]) <= {0}
        assert bytes(row[1:end]).decode() in captions(number)


def test_groups_stay_whole_and_move(made):
    order = numbers(rows(made, 0, 300, batch_size=4))
    groups = np.array(order).reshape(-1, 4)
    assert (groups // 4 == groups[:, :1] // 4).all()
    firsts = groups[:, 0].reshape(3, 25)
    assert all(abs(np.corrcoef(epoch, np.arange(25))[0, 1]) < 0.6 for epoch in firsts)
    assert len(set(map(tuple, firsts.tolist()))) == 3
    other = numbers(rows(made.replace(seed=2), 0, 100))
    assert other != order[:100]


def test_resuming_anywhere_equals_the_straight_run(made):
    straight = rows(made, 0, 330)
    for start, size in ((1, 3), (32, 4), (99, 1), (100, 6), (203, 5), (310, 2)):
        found = rows(made, start, 4 * size, batch_size=size)
        for name, values in found.items():
            np.testing.assert_array_equal(values, straight[name][start:start + 4 * size], name)


def test_captions_follow_from_seed_epoch_and_picture(made):
    """Of pictures with three captions each one is taken, another one in other epochs and seeds."""
    def chosen(run, epoch):
        found = rows(run, 100 * epoch, 100)
        return {number: end for number, end in zip(numbers(found), found["ends"].tolist(),
                                                   strict=True) if number % 3 == 2}
    first, second, other = chosen(made, 0), chosen(made, 1), chosen(made.replace(seed=2), 0)
    assert len(first) == 33
    for two in (second, other):
        assert 8 < sum(first[number] != two[number] for number in first) < 33
    lengths = {number: end - 1 - len(str(number)) for number, end in first.items()}
    assert set(lengths.values()) == {0, 1, 2}


@pytest.mark.parametrize("eval_steps", [None, 2])
def test_evaluation_sees_each_picture_once_with_its_first_caption(made, eval_steps):
    run = made.replace(eval_steps=eval_steps)
    found = take(inputs.eval_input_fn(run))
    count = 10 if eval_steps is None else 8
    assert found["valid"].tolist() == [1] * count + [0] * (-count % 4)
    assert numbers({name: values[:count] for name, values in found.items()}) == list(
        range(100, 100 + count))
    assert all(end == 4 for end in found["ends"][:count])  # first captions are the bare number
    assert not found["images"][count:].any() and not found["tokens"][count:].any()
    assert inputs.eval_windows(run) == inputs.EvalSize(count, -(-count // 4), count, 1)


def test_facts(made):
    facts = inputs.dataset_facts(made, "train")
    assert (facts.windows, facts.bytes, facts.decoded_bytes) == (100, None, None)
    assert facts.tokens == sum(len(text) for number in range(100) for text in captions(number))
    assert (facts.encoder, facts.n_vocab) == ("byte", 257)
    assert facts.datasets[0]["mode"] == "pictures" and made.n_vocab == 259


def test_long_captions_keep_their_end(tmp_path):
    path = tmp_path / "in.tfrecords"
    write_input(path, [(picture(0), ["abcdef"]), (picture(1), ["abcdefg"]), (picture(2), ["ab"])])
    encode(tmp_path, "--input", path, "--val_input", inputs_of(tmp_path, [1], "val"))
    found = rows(config(tmp_path, train_batch_size=1), 0, 3)
    texts = {tuple(row) for row in found["tokens"].tolist()}
    full = (START, *b"abcdef", END)
    assert texts == {full, (START, *b"ab", END, 0, 0, 0, 0)}
    assert sorted(found["ends"].tolist()) == [3, 7, 7]


@pytest.mark.parametrize("kind, mode", [("JPEG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"),
                                        ("BMP", "RGB")])
def test_other_kinds_of_pictures(tmp_path, kind, mode):
    data = picture(5, kind=kind, mode=mode)
    path = tmp_path / "in.tfrecords"
    write_input(path, [(data, ["5"])])
    encode(tmp_path, "--input", path)
    (found,) = rows(config(tmp_path, train_batch_size=1), 0, 1)["images"]
    wanted = np.array(Image.open(io.BytesIO(data)))
    wanted = np.broadcast_to(wanted[..., None], (SIZE, SIZE, 3)) if mode == "L" else wanted[..., :3]
    assert np.abs(found.astype(int) - wanted).max() <= (3 if kind == "JPEG" else 0)


def test_datasets_of_pictures_are_mixed(tmp_path):
    for name, first in (("a", 0), ("b", 50)):
        directory = tmp_path / name
        directory.mkdir()
        encode(directory, "--input", inputs_of(directory, [40], "train", first))
    run = config(tmp_path, datasets=[[str(tmp_path / "a" / "p.json"), 1, None, 3.0],
                                     [str(tmp_path / "b" / "p.json"), 1, None, 1.0]])
    order = numbers(rows(run, 0, 100, batch_size=4))
    small = [number for number in order if number < 50]
    assert 65 < len(small) < 85 and sorted(small[:40]) == list(range(40))
    assert numbers(rows(run, 37, 20)) == order[37:57]


def rewrite(path, change):
    """Writes a shard anew, each record changed by a function of its number and features."""
    found = list(stored(path))
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, (image, ids, lengths) in enumerate(found):
            image, ids, lengths = change(number, image, ids, lengths)
            example = tf.train.Example()
            example.features.feature["image"].bytes_list.value.append(image)
            example.features.feature["text"].int64_list.value.extend(ids)
            example.features.feature["lengths"].int64_list.value.extend(lengths)
            writer.write(example.SerializeToString(deterministic=True))


def at_five(**new):
    """A change of record 5 alone."""
    def change(number, image, ids, lengths):
        old = {"image": image, "ids": ids, "lengths": lengths}
        return {**old, **(new if number == 5 else {})}.values()
    return change


SAME_LENGTH = len(picture(5))


@pytest.mark.parametrize("change, message", [
    (at_five(image=picture(5, 16)), "pictures have 8 × 8 pixels, and this one"),
    (at_five(ids=[300], lengths=[1]), "ids of captions have to be below n_vocab - 2 = 257"),
    (at_five(ids=[-1], lengths=[1]), "ids of captions have to be below n_vocab - 2 = 257"),
    (at_five(lengths=[7]), "the captions of a picture"),
    (at_five(lengths=[]), "the captions of a picture"),
    (at_five(image=b"x" * SAME_LENGTH), "the picture at byte"),
])
def test_wrong_records_are_named_in_one_line(tmp_path, capsys, change, message):
    encode(tmp_path, "--input", inputs_of(tmp_path, [8]))
    run = config(tmp_path, train_batch_size=1)
    path = tmp_path / "out" / "p_0_8.tfrecords"
    rewrite(path, change)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        rows(run, 0, 8)
    line = inputs.explain_data_error(run, caught.value)
    assert message in line and str(path) in line and "\n" not in line
    capsys.readouterr()
    assert not inputs.check_dataset(run)
    assert f"problem: {path}" in capsys.readouterr().out


def test_damage_is_named_by_file_and_offset(tmp_path):
    encode(tmp_path, "--input", inputs_of(tmp_path, [30]))
    path = tmp_path / "out" / "p_0_30.tfrecords"
    data = bytearray(path.read_bytes())
    data[data.index(picture(17)) + 50] ^= 255
    path.write_bytes(data)
    run = config(tmp_path, train_batch_size=1)
    with pytest.raises(tf.errors.DataLossError) as caught:
        rows(run, 0, 30)
    line = inputs.explain_data_error(run, caught.value)
    assert line.startswith(f"{path}: corrupt record (data) at byte ")


def test_check_dataset_tells_of_pictures(made, capsys):
    assert inputs.check_dataset(made, samples=2)
    printed = capsys.readouterr().out
    assert "pictures of 8 pixels a side, 4 a group" in printed
    assert "records 100, tokens" in printed and "windows of" not in printed
    assert "picture 50: '50', '50x', '50xx'\n" in printed
    assert printed.endswith("0 problems found\n")


def refusal(run, split="train"):
    with pytest.raises(UserError) as caught:
        inputs.train_input_fn(run, 0) if split == "train" else inputs.eval_input_fn(run)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals_before_a_run(made, tmp_path):
    assert "pictures of 8 pixels a side, and clip.image_size is 16; set it to 8" in refusal(
        made.replace(clip={"image_size": 16}))
    assert "train_batch_size: 6 is no multiple of 4" in refusal(
        made.replace(train_batch_size=6, eval_batch_size=6))
    assert "has 259 token ids, start and end included, more than n_vocab 258" in refusal(
        made.replace(n_vocab=258))
    name = str(tmp_path / "p.json")
    assert "which are not read as chunks" in refusal(
        made.replace(datasets=[[name, 1, "chunks", 1.0]]))
    text = shard_files.config(tmp_path, {"p": (1, None, 1.0, json.loads(
        (tmp_path / "p.json").read_text()))})
    assert "holds pictures, and model GPT is trained on text" in refusal(text)
    shard_files.write(tmp_path / "text.tfrecords", [[1] * 20] * 3)
    (tmp_path / "text.json").write_text(json.dumps(
        {"path": str(tmp_path / "text.tfrecords"), "n_vocab": 257}))
    assert "holds no pictures with a manifest" in refusal(
        made.replace(datasets=[str(tmp_path / "text.json")], n_vocab=259))


def test_no_validation_and_torn_groups(tmp_path):
    encode(tmp_path, "--input", inputs_of(tmp_path, [12]), "--group", "4")
    run = config(tmp_path)
    assert "has no validation split" in refusal(run, "validation")
    manifest = tmp_path / "out" / "p_manifest.json"
    manifest.write_text(manifest.read_text().replace('"group": 4', '"group": 5'))
    sources.forget()
    assert "p_0_12.tfrecords has 12 pictures, which are no groups of 5" in refusal(
        run.replace(train_batch_size=5, eval_batch_size=5))
    manifest.write_text(manifest.read_text().replace(' "group": 5,\n', ""))
    sources.forget()
    assert "'image_size' and 'group' belong to mode \"pictures\"" in refusal(run)


def test_pipelines_hold_no_python_functions(made):
    """On a TPU the pipeline runs on another host: its graph may not call back into Python."""
    for input_fn in (inputs.train_input_fn(made, 0), inputs.eval_input_fn(made)):
        with tf.Graph().as_default() as graph:
            tf.data.make_one_shot_iterator(input_fn({})).get_next()
        definition = graph.as_graph_def()
        used = {node.op for function in definition.library.function for node in function.node_def}
        assert "DecodeImage" in used
        assert not {op for op in used if "PyFunc" in op or "Generator" in op}
