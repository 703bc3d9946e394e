"""Raw inputs: every format, damaged files, and what a path stands for."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import tracemalloc

import numpy as np
import pytest
import zstandard

from configs.errors import UserError

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import sources  # noqa: E402
import tfds_source  # noqa: E402
import unpacking  # noqa: E402

TEXTS = ["First line.\r\nSecond, with ümlauts and 漢字.\n", "two 🎈", "three\n"]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress,
            ".zst": zstandard.ZstdCompressor().compress}


def put(directory, name, data):
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return path


def jsonl(texts, key="text"):
    return "".join(json.dumps({key: text, "meta": {}}) + "\n" for text in texts).encode()


def tar(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(path, **kwargs):
    return list(sources.documents(str(path), **kwargs))


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("form, data, expected", [
    (".txt", TEXTS[0].encode(), TEXTS[:1]),
    (".txt", b"\xef\xbb\xbfmarked", ["marked"]),
    (".jsonl", jsonl(TEXTS), TEXTS),
    (".jsonl", b'"bare"\n\n{"text": ["a", "b"]}\r\n{"text": ""}', ["bare", "a\n\nb", ""]),
    (".json", json.dumps(TEXTS).encode(), TEXTS),
    (".dat", b"".join(b"%016d" % len(t.encode()) + t.encode() for t in TEXTS), TEXTS),
    (".tar", tar([("a/1.txt", b"one"), ("a/2.txt.xz", lzma.compress(b"two")), ("a/3.xz",
                  lzma.compress(b"3")), ("._a.txt", b"\0"), ("b.jsonl", jsonl(TEXTS))]),
     ["one", "two", "3", *TEXTS]),
])
def test_formats(tmp_path, form, compression, data, expected):
    assert read(put(tmp_path, "x" + form + compression, COMPRESS[compression](data))) == expected


def test_tar_variants(tmp_path):
    assert read(put(tmp_path, "a.tgz", tar([("1.txt", b"one")], "w:gz"))) == ["one"]
    subset = lzma.compress(tar([("7-a.txt", b"owt")]))  # OpenWebText's urlsf_subset*_data.xz
    assert read(put(tmp_path, "urlsf_subset00-7_data.xz", subset)) == ["owt"]
    assert read(put(tmp_path, "owt.tar.xz", tar([("urlsf_subset00-7_data.xz", subset)],
                                                "w:xz"))) == ["owt"]


def test_zstd_of_several_frames(tmp_path):
    frames = b"".join(COMPRESS[".zst"](jsonl([text])) for text in TEXTS)
    assert read(put(tmp_path, "x.jsonl.zst", frames)) == TEXTS


def test_text_key(tmp_path):
    path = put(tmp_path, "x.jsonl", jsonl(TEXTS, key="content"))
    assert read(path, text_key="content") == TEXTS
    with pytest.raises(UserError, match=r"x.jsonl line 1: no key 'text'; .*--text_key"):
        read(path)


def test_surrogates_become_replacement_characters(tmp_path):
    path = put(tmp_path, "x.jsonl", rb'{"text": "a\ud83cb \ud83c\udf88"}')
    assert read(path) == ["a\ufffdb 🎈"]


BAD = [
    ("x.txt", b"\xff\xfe", "unreadable: .*utf-8"),
    ("x.txt", b"", "empty"),
    ("x.jsonl", b"\n\n", "empty"),
    ("x.jsonl", b'{"text": 3}', "line 1: not a JSON record with text"),
    ("x.jsonl", b'{"text": "a', "line 1: not a JSON"),
    ("x.json", b"[1", "not JSON"),
    ("x.dat", b"%016d" % 9 + b"short", "cut off"),
    ("x.txt.xz", b"no xz", "unreadable"),
    ("x.tar", b"no tar" * 200, "unreadable"),
    ("x.tar", tar([("logo.png", b"\x89")]), r"x.tar:logo.png: of no known kind"),
    ("x.tar", tar([("a.txt", b"")]), r"x.tar:a.txt: empty"),
    ("x.tar", tar([("a.txt.gz", b"no gz")]), r"x.tar:a.txt.gz: unreadable"),
]


@pytest.mark.parametrize("name, data, message", BAD)
def test_bad_inputs_are_refused_or_reported(tmp_path, name, data, message):
    path = put(tmp_path, name, data)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert path in str(error.value) and "\n" not in str(error.value)
    problems = []
    assert read(path, on_bad=problems.append) == []
    assert problems and path in problems[0]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".bz2", ".zst"])
def test_cut_off_streams_are_noticed(tmp_path, compression):
    texts = [os.urandom(200_000).hex() for _ in range(4)]
    data = COMPRESS[compression](jsonl(texts))
    path = put(tmp_path, "x.jsonl" + compression, data[:len(data) * 3 // 4])
    problems = []
    kept = read(path, on_bad=problems.append)
    assert kept == texts[:len(kept)] and len(kept) < 4
    assert any("unreadable" in problem for problem in problems)


MIB = 1 << 20
BOMBS = {  # name: (stored, what is named besides the file)
    "x.txt.xz": (lzma.compress(bytes(4 * MIB)), ""),
    "x.txt.zst": (zstandard.ZstdCompressor().compress(bytes(4 * MIB)), ""),
    "x.json.gz": (gzip.compress(b'["' + b"a" * 4 * MIB + b'"]'), ""),
    "x.jsonl.bz2": (bz2.compress(b'"one"\n"' + b"a" * 4 * MIB + b'"\n'), ""),
    "x.dat": (b"%016d" % (4 * MIB) + b"short", ""),
    "x.tar.xz": (lzma.compress(tar([("big.txt", bytes(4 * MIB))])), ":big.txt"),
    "y.tar.xz": (lzma.compress(tar([("big.json", b'["' + b"a" * 4 * MIB + b'"]')])),
                 ":big.json"),
    "z.tar": (tar([("in.txt.xz", lzma.compress(bytes(4 * MIB)))]), ":in.txt.xz"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_unpacks_to_more_than_the_limit_is_refused(tmp_path, name):
    data, member = BOMBS[name]
    path = put(tmp_path, name, data)
    assert len(data) < MIB
    with pytest.raises(UserError) as error:
        read(path, largest=MIB)
    assert str(error.value) == (
        f"{path}{member}: unreadable: more than 1,048,576 bytes; raise --maximum_size to read it; "
        "mend or remove it, or skip such inputs (--on_error skip)")
    problems = []
    kept = read(path, largest=MIB, on_bad=problems.append)
    assert kept == (["one"] if name == "x.jsonl.bz2" else []) and problems
    if name != "x.dat":
        assert sum(map(len, read(path))) >= 4 * MIB


def test_what_is_stored_may_be_read(tmp_path):
    """A limit is for what unpacks: an input's own size is no less."""
    assert read(put(tmp_path, "x.txt", b"a" * MIB), largest=10) == ["a" * MIB]


def test_a_zstd_bomb_comes_in_pieces():
    """A gigabyte of 32 KiB, of which no more than a part is ever in memory."""
    frame = zstandard.ZstdCompressor().compressobj(size=-1)
    data = b"".join(frame.compress(bytes(1 << 26)) for _ in range(16)) + frame.flush()
    assert len(data) < 1 << 17
    tracemalloc.start()
    stream = unpacking.decompressed(io.BytesIO(data), ".zst")
    with pytest.raises(unpacking.TooLargeError):
        unpacking.whole(stream, 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_a_tar_that_climbs_writes_nothing(tmp_path):
    members = [(name, b"text") for name in ("../up.txt", "/tmp/../abs.txt", "a/../../b.txt")]
    path = put(tmp_path / "in", "x.tar", tar(members))
    before = sorted(tmp_path.rglob("*"))
    assert read(path) == ["text"] * 3
    assert sorted(tmp_path.rglob("*")) == before and not os.path.exists("/abs.txt")


@pytest.mark.parametrize("change", [
    {"type": tarfile.GNUTYPE_SPARSE}, {"pax_headers": {"GNU.sparse.major": "1",
                                                       "GNU.sparse.minor": "0"}},
    {"pax_headers": {"GNU.sparse.map": "9,x"}}, {"pax_headers": {"GNU.sparse.map": "9" * 5000}},
    {"size": -5}])
def test_tar_headers_that_lie(tmp_path, change):
    info = tarfile.TarInfo("a.txt")
    info.size = 512
    for name, value in change.items():
        setattr(info, name, value)
    head = info.tobuf(tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT)
    path = put(tmp_path, "x.tar", head + b"9\n1\n".ljust(512, b"\0") + bytes(1024))
    with pytest.raises(UserError, match=r"x.tar: (unreadable|empty)"):
        read(path)


def test_a_tar_of_headers_without_end(tmp_path):
    info = tarfile.TarInfo("n" * 150)
    head = info.tobuf(tarfile.GNU_FORMAT)[:1024]  # a long name, whose file does not come
    path = put(tmp_path, "x.tar.xz", lzma.compress(head * 5000))
    with pytest.raises(UserError, match="x.tar.xz: unreadable: .*recursion"):
        read(path)


def test_reading_goes_on_behind_bad_parts(tmp_path):
    data = tar([("1.txt", b"one"), ("2.txt.gz", b"bad"), ("3.jsonl", b'"x"\n{"a\n"y"\n')])
    problems = []
    assert read(put(tmp_path, "x.tar", data), on_bad=problems.append) == ["one", "x", "y"]
    assert len(problems) == 2 and "3.jsonl line 2" in problems[1]


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="nowhere.txt"):
        read(tmp_path / "nowhere.txt")


def test_on_read_counts_stored_bytes(tmp_path):
    data = lzma.compress(os.urandom(1000).hex().encode() * 1000)
    counts = []
    read(put(tmp_path, "x.txt.xz", data), on_read=counts.append)
    assert sum(counts) == len(data)


def test_list_files(tmp_path):
    for name in ("d/s_10.txt", "d/s_2.jsonl.zst", "d/deep/s_1.tar.gz", "d/.hidden/a.txt",
                 "d/.b.txt", "d/note.md", "e.txt"):
        put(tmp_path, name, b"x")
    at = tmp_path.joinpath
    inside = [str(at(name)) for name in ("d/deep/s_1.tar.gz", "d/s_2.jsonl.zst", "d/s_10.txt")]
    ignored = []
    assert sources.list_files([str(at("d"))], ignored) == inside
    assert ignored == [str(at("d/note.md"))]
    assert sources.list_files(str(at("d/s_*"))) == inside[1:]
    assert sources.list_files(str(at("*"))) == [*inside, str(at("e.txt"))]
    index = put(tmp_path, "all.index", f"# list\n{at('d/s_*')}\n\n{at('e.txt')}\n".encode())
    assert sources.list_files([index, str(at("d"))]) == [*inside, str(at("e.txt"))]
    for wrong in ("d/note.md", "none.txt", "d/*.zip", "d/.hidden/*.jsonl"):
        with pytest.raises(UserError, match=wrong.replace("*", r"\*")):
            sources.list_files([str(at(wrong))])


def test_tfds_specs():
    assert tfds_source.split_spec("lm1b") == ("lm1b", "train")
    assert tfds_source.split_spec("lm1b:test") == ("lm1b", "test")
    assert tfds_source.split_spec("wiki40b/en:1.3.0") == ("wiki40b/en:1.3.0", "train")
    assert tfds_source.split_spec("wiki40b/en:1.3.0:test[:10%]") == (
        "wiki40b/en:1.3.0", "test[:10%]")
    assert tfds_source.split_spec("gs://b/d:1") == ("gs://b/d", "1")
    assert tfds_source.split_spec("gs://b/d") == ("gs://b/d", "train")


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A prepared dataset with a text, a label and, in config two, a second string."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="reads what TFDS prepares")
    pytest.importorskip("importlib_resources", reason="tensorflow-datasets prepares data with it")

    root = tmp_path_factory.mktemp("tfds")
    for config, strings in (("one", ["line"]), ("two", ["line", "title"])):
        features = {key: tfds.features.Text() for key in strings}
        rows = [(i, {key: text if key == "line" else "t" for key in strings} | {"label": i})
                for i, text in enumerate(TEXTS)]
        tfds.dataset_builders.store_as_tfds_dataset(
            name="poems", config=config, version="1.0.0", data_dir=str(root),
            features=tfds.features.FeaturesDict(
                {**features, "label": tfds.features.Scalar(np.int64)}),
            split_datasets={"train": rows, "test": rows[:2]})
    return root / "poems"


def test_tfds(tfds_dir):
    spec = f"tfds:{tfds_dir / 'one' / '1.0.0'}"
    assert sorted(read(spec)) == sorted(TEXTS)
    assert sorted(read(spec + ":test")) == sorted(TEXTS[:2])
    assert sources.size_of(spec) > 0
    two = f"tfds:{tfds_dir / 'two' / '1.0.0'}"
    with pytest.raises(UserError, match="--text_key: line, title"):
        read(two)
    assert read(two, text_key="title") == ["t"] * 3
    with pytest.raises(UserError, match="tfds .*one/1.0.0:tset: "):
        read(spec + ":tset")
    with pytest.raises(UserError, match="--tfds no_such_dataset_at_all"):
        read("tfds:no_such_dataset_at_all")
