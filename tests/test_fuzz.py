"""Files from strangers: whatever their bytes, readers give a value or one UserError, and end.

GPTC_FUZZ=10 damages ten times as many; with -s their number and size are printed.
"""

import io
import json
import os
import struct
import sys
import tarfile

import pytest
import tensorflow.compat.v1 as tf
import yaml
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from shard_files import cut, facts, manifest, write

import encoders
from configs import reading, schema
from configs.dataset import DatasetConfig, Manifest
from configs.errors import UserError
from encoders import files
from interop import tensor_files, tf_checkpoints
from records.shard import scan, walk
from training import checkpoints, items

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                                "datasets"))
import sources  # noqa: E402
import unpacking  # noqa: E402

TIMES = int(os.environ.get("GPTC_FUZZ", "1"))
made = []  # the sizes of the damaged files


def fuzz(max_examples):
    return settings(
        max_examples=TIMES * max_examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module", autouse=True)
def tell():
    yield
    print(f"\n{len(made)} damaged files of {sum(made)} bytes")


# A place as a share of the length, what to do there, and bytes for it.
EDITS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "repeat"]),
                           st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)
DEEP = 20_000


def damaged(data, edits):
    """Bytes after edits."""
    for share, kind, new in edits:
        place = int(share * len(data))
        if kind == "flip":
            data = data[:place] + new + data[place + len(new):]
        elif kind == "cut":
            data = data[:place]
        elif kind == "insert":
            data = data[:place] + new + data[place:]
        else:
            data = data[:place] + data[place // 2:]
    made.append(len(data))
    return data


def value_or_refusal(read, *arguments):
    """What a reader gives, None if it refuses; any other exception fails the test."""
    try:
        return read(*arguments)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return None


CONFIG = {"model": "GPT", "n_vocab": 257, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 2,
          "lr": 1e-3, "datasets": [["d", None, None, None]], "mesh_shape": "batch:2",
          "layout": "batch:batch", "train_steps": 10, "attention_types": [[["global"], 2]]}


@fuzz(80)
@given(edits=EDITS, ending=st.sampled_from(["json", "yaml"]))
def test_configs(tmp_path, edits, ending):
    text = (json.dumps if ending == "json" else yaml.safe_dump)(CONFIG)
    path = tmp_path / f"c.{ending}"
    path.write_bytes(damaged(text.encode(), edits))
    value_or_refusal(schema.load, str(path))


@pytest.mark.parametrize("ending, text", [
    ("json", '{"a":' * DEEP), ("yaml", "[" * DEEP), ("json", '{"n_ctx": ' + "9" * 5000 + "}"),
    ("yaml", "n_ctx: " + "9" * 5000), ("yaml", "a: &a [*a]"),
    ("yaml", "? [1]\n: 2\n"), ("yaml", "!!binary 'x': 1"),
    ("yaml", "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n"
                                           for i in range(1, 40)))])
def test_configs_that_exhaust_a_parser(tmp_path, ending, text):
    path = tmp_path / f"c.{ending}"
    path.write_text(text)
    with pytest.raises(UserError, match=f"c.{ending}: "):
        schema.load(str(path))


@pytest.mark.parametrize("text", ["[" * DEEP, "9" * 5000, '{"a":' * DEEP])
def test_overrides_that_exhaust_a_parser_are_text(text):
    assert reading.parse_value(text) == text


TOKENIZER = {
    "version": "1.0", "added_tokens": [
        {"id": 3, "content": "<|endoftext|>", "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}],
    "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False,
                                          "trim_offsets": True, "use_regex": True},
    "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": False,
                                        "trim_offsets": True, "use_regex": True},
    "truncation": None, "padding": None,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": {
        "a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, "merges": [["a", "b"]]}}
CHARS = {"version": "1.0", "normalizer": None,
         "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<|endoftext|>": 2}}}


@fuzz(200)
@given(edits=EDITS, content=st.sampled_from([TOKENIZER, CHARS]),
       kind=st.sampled_from(["", "char:"]))
def test_tokenizers(tmp_path, edits, content, kind):
    path = tmp_path / "t.json"
    path.write_bytes(damaged(json.dumps(content).encode(), edits))
    encoder = value_or_refusal(encoders.load, f"{kind}{path}")
    if encoder:
        value_or_refusal(encoder.encode, "ab")


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a": ' + "9" * 5000 + "}", '{"a":' * DEEP])
def test_json_that_exhausts_a_parser(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    (tmp_path / "run.json").write_text(text)
    for read in (lambda: encoders.load(str(path)), lambda: tensor_files.read_json(str(path)),
                 lambda: Manifest.from_json(text, str(path)),
                 lambda: DatasetConfig.from_json(text, str(path)),
                 lambda: items.read(str(path)), lambda: checkpoints.read_record(str(tmp_path)),
                 lambda: list(sources.documents(str(path)))):
        with pytest.raises(UserError, match=r"(t|run)\.json"):
            read()


@fuzz(100)
@given(edits=EDITS)
def test_merges(edits):
    good = b"#version: 0.2\n" + b"".join(b"a%d b%d\n" % (i, i) for i in range(20))
    value_or_refusal(files.parse_merges, damaged(good, edits), "m")
    value_or_refusal(files.parse_merges,
                     damaged(unpacking.gzip.compress(good, mtime=0), edits), "m")


def test_merges_that_swell_are_refused():
    bomb = unpacking.gzip.compress(bytes(200 << 20), 9)
    assert len(bomb) < 1 << 20
    with pytest.raises(UserError, match="merges file m .*bytes"):
        files.parse_merges(bomb, "m")


@fuzz(100)
@given(edits=EDITS)
def test_manifests(tmp_path, edits):
    records = cut(list(range(40)), 5)
    shard = tmp_path / "d_train_0_8.tfrecords"
    offsets = write(shard, records)
    manifest(tmp_path, "d", "chunks", {"train": [facts(shard, records, offsets)]})
    text = (tmp_path / "d_manifest.json").read_bytes()
    value_or_refusal(Manifest.from_json, damaged(text, edits).decode("utf-8", "replace"), "m")


def _tar(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


LINES = b"".join(b'{"text": "document %d"}\n' % i for i in range(50))
PLAIN = {".jsonl": LINES, ".json": json.dumps(["one", {"text": "two"}]).encode(),
         ".dat": b"%016d" % 5 + b"hello" + b"%016d" % 2 + b"ab",
         ".tar": _tar([("a.txt", b"text"), ("b.jsonl", LINES), ("long" * 40 + ".txt", b"x")])}
PACKERS = {"": bytes, ".gz": lambda data: unpacking.gzip.compress(data, mtime=0),
           ".bz2": unpacking.bz2.compress, ".xz": unpacking.lzma.compress,
           ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
ARCHIVES = {form + packing: pack(data) for form, data in PLAIN.items()
            for packing, pack in PACKERS.items()}


@fuzz(200)
@given(edits=EDITS, name=st.sampled_from(sorted(ARCHIVES)))
def test_archives(tmp_path, edits, name):
    for old in tmp_path.iterdir():  # of an example that failed
        old.unlink()
    path = tmp_path / f"a{name}"
    path.write_bytes(damaged(ARCHIVES[name], edits))
    value_or_refusal(lambda: list(sources.documents(str(path))))
    bad = []
    skipped = value_or_refusal(lambda: list(sources.documents(str(path), on_bad=bad.append)))
    assert skipped is not None, "problems that are skipped are not raised"
    assert skipped or bad
    assert not any("\n" in line for line in bad)
    path.unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head, said", [
    (b"9999999999999999", "more than 1,073,741,824 bytes"),
    (b"0000001000000000", "document of 1000000000 bytes cut off after 5")])
def test_an_archive_that_declares_more_than_it_has(tmp_path, head, said):
    path = tmp_path / "a.dat"
    path.write_bytes(head + b"short")
    with pytest.raises(UserError, match=f"a.dat: unreadable: {said}"):
        list(sources.documents(str(path)))


@fuzz(200)
@given(edits=EDITS, data=st.binary(max_size=400), fresh=st.booleans())
def test_weights(tmp_path, edits, data, fresh):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    good = struct.pack("<Q", len(header)) + header + bytes(24)
    path = tmp_path / "w.safetensors"
    path.write_bytes(data if fresh else damaged(good, edits))
    found = value_or_refusal(tensor_files.read, str(path))
    for stored in found.tensors.values() if found else ():
        value_or_refusal(stored.read)


@fuzz(60)
@given(edits=EDITS, ending=st.sampled_from(["index", "data-00000-of-00001"]))
@example(edits=[(0.6875, "flip", b"\x80\x80\x80\x80_")], ending="index")  # too large for memory
def test_checkpoints(tmp_path, edits, ending):
    path, file = str(tmp_path / "m"), tmp_path / f"m.{ending}"
    with tf.Graph().as_default(), tf.Session() as session:
        session.run([tf.get_variable(name, initializer=tf.range(7.0)).initializer
                     for name in ("a", "b")])
        tf.train.Saver().save(session, path, write_meta_graph=False)
    file.write_bytes(damaged(file.read_bytes(), edits))
    for stored in (value_or_refusal(tf_checkpoints.read, path) or {}).values():
        value_or_refusal(stored.read)


@fuzz(40)
@given(edits=EDITS, count=st.integers(0, 12))
def test_tfrecords(tmp_path, edits, count):
    """Our walk and TensorFlow's reader agree on where the first damage is."""
    path = tmp_path / "r.tfrecords"
    write(path, cut(list(range(5 * count)), 5))
    path.write_bytes(damaged(path.read_bytes(), edits))
    whole, problem = 0, None
    for _, _, problem in walk(str(path)):
        if problem:
            break
        whole += 1
    read = 0
    try:
        for _ in tf.io.tf_record_iterator(str(path)):
            read += 1
        # TensorFlow takes a tail that is shorter than a header for the file's end.
        assert not problem or problem == "truncated record"
    except tf.errors.DataLossError:
        assert problem
    assert read == whole
    shard = value_or_refusal(scan, str(path))
    assert shard is None if problem else shard is None or shard.records == whole


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("link.txt")
            info.type, info.linkname = kind, str(tmp_path / "secret.txt")
            archive.addfile(info)
    with pytest.raises(UserError, match="a.tar: empty"):
        list(sources.documents(str(path)))
