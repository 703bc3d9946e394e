"""--check_dataset names every problem by file, and prints what a dataset is."""

import pytest
import shard_files as shards

import inputs
from records import shard

TEXT = "The cat sat on the mat. " * 20


@pytest.fixture
def dataset(tmp_path):
    """(config, paths, records, offsets) of two training shards and a validation shard of bytes."""
    records = shards.cut(list(TEXT.encode()) + [256], 24)
    listed, paths, offsets = {"train": [], "validation": []}, [], []
    for name, split in (("x_0", "train"), ("x_1", "train"), ("x_val_0", "validation")):
        paths.append(tmp_path / f"{name}_{len(records)}.tfrecords")
        offsets = shards.write(paths[-1], records)
        listed[split].append(shards.facts(paths[-1], records, offsets))
    import encoders
    shards.manifest(tmp_path, "x", "chunks", listed, hash=encoders.load("byte").hash)
    config = shards.config(tmp_path, {"x": (1, None, 1.0, {
        "path": str(tmp_path / "x_[0-9]*.tfrecords"), "encoder": "byte"})})
    return config, paths, records, offsets


def problems(config, capsys):
    """(whether all is well, printed text, problems)."""
    well = inputs.check_dataset(config, samples=2)
    printed = capsys.readouterr().out
    return well, printed, [line for line in printed.splitlines() if line.startswith("problem: ")]


def test_a_whole_dataset(dataset, capsys):
    config, _, records, _ = dataset
    well, printed, found = problems(config, capsys)
    assert well and not found, printed
    assert "dataset x, train: 2 shards\n" in printed
    assert f"dataset x, validation: 1 shards\n  records {len(records)}, tokens 481," in printed
    assert f"records {2 * len(records)}, tokens 962, 22 tokens a record (shortest 1, longest 24)" \
        in printed
    assert f"ids from {ord(' ')} to 256" in printed
    assert "bytes of text 2,886, 3.000 a token" in printed
    assert "The cat sat on the mat. The cat" in printed
    assert "windows of 8 targets in an epoch, read as chunks: 120" in printed
    assert printed.endswith("0 problems found\n")


def test_damaged_records_are_named_and_counting_goes_on(dataset, capsys):
    config, (path, other, _), _, offsets = dataset
    data = bytearray(path.read_bytes())
    for place in (offsets[4], offsets[9]):
        data[place + 20] ^= 255
    path.write_bytes(data)
    other.write_bytes(other.read_bytes()[:offsets[-1] + 9])
    well, printed, found = problems(config, capsys)
    assert not well
    assert any(f"{path}: corrupt record (data) at byte {offsets[4]}" in line for line in found)
    assert any(f"{path}: corrupt record (data) at byte {offsets[9]}" in line for line in found)
    assert any(f"{other}: truncated record at byte {offsets[-1]}" in line for line in found)
    assert "dataset x, validation: 1 shards" in printed


def test_a_manifest_that_disagrees(dataset, capsys):
    config, (path, *_), records, _ = dataset
    shards.write(path, records[:-1])
    found = problems(config, capsys)[2]
    assert any(f"{path}: the name says {len(records)}" in line for line in found)
    assert any(f"{path}: its manifest says records {len(records)} (found {len(records) - 1}), "
               "tokens 481 (found 480)" in line for line in found)


def test_ids_empty_lost_and_unlisted_shards(dataset, tmp_path, capsys):
    config, (path, other, _), records, _ = dataset
    shards.write(path, [*records[:-1], [300]])
    other.unlink()
    shards.write(tmp_path / "x_7_0.tfrecords", [])
    well, _, found = problems(config, capsys)
    assert not well
    assert any(f"{path}: ids range from 32 to 300, and the encoder has 257" in line
               for line in found)
    assert any(f"{other}: the manifest lists it, and it does not exist" in line for line in found)
    assert any("x_7_0.tfrecords: holds no records" in line for line in found)
    assert any("x_7_0.tfrecords: no manifest in its directory lists it" in line for line in found)


def test_another_encoder_than_that_of_the_shards(dataset, tmp_path, capsys):
    config = dataset[0]
    path = tmp_path / "x_manifest.json"
    import encoders
    path.write_text(path.read_text().replace(encoders.load("byte").hash, "f" * 16))
    found = problems(config, capsys)[2]
    assert any("encoder byte has hash" in line and "made with ffffffffffffffff" in line
               for line in found)


def test_foreign_shards_and_records_of_another_kind(tmp_path, capsys):
    shards.write(tmp_path / "a.tfrecords", [list(b"hello there, world")] * 3)
    config = shards.config(tmp_path, {"a": (1, "documents_fixed", 1.0, {
        "path": str(tmp_path / "a.tfrecords"), "encoder": "byte"})})
    well, printed, _ = problems(config, capsys)
    assert well and "1 shards without a manifest" in printed and "hello there" in printed
    assert "bytes of text unknown" in printed and "validation: none" in printed
    config.n_ctx = 18
    assert any("stitch to 2 or more" in line for line in problems(config, capsys)[2])
    import tensorflow.compat.v1 as tf
    with tf.io.TFRecordWriter(str(tmp_path / "b.tfrecords")) as writer:
        writer.write(b"no example")
    config = shards.config(tmp_path, {"b": (1, None, 1.0, {"path": str(tmp_path / "b.tfrecords")})})
    assert any("b.tfrecords: a record is no tf.train.Example" in line
               for line in problems(config, capsys)[2])


def test_walking_agrees_with_tensorflow(tmp_path):
    """The offsets and lengths of the walk are those of the records that TensorFlow wrote."""
    records = [[n] * (n % 50) for n in range(600)]
    offsets = shards.write(tmp_path / "a.tfrecords", records)
    walked = list(shard.walk(str(tmp_path / "a.tfrecords")))
    assert [offset for offset, _, _ in walked] == offsets
    assert [length for _, length, _ in walked] == [len(shards.example(ids)) for ids in records]
    assert not any(problem for _, _, problem in walked)
    found = shard.scan(str(tmp_path / "a.tfrecords"))
    assert found.index == ((0, 0), (offsets[256], sum(map(len, records[:256]))),
                           (offsets[512], sum(map(len, records[:512]))))
