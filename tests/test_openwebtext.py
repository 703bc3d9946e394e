"""datasets/openwebtext.py: archives of every kind to clean JSONL, each text once."""

import gzip
import io
import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
import zlib

import ftfy
import pytest
import tfrecord_runs
import zstandard

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import jsonl_shards  # noqa: E402
import openwebtext  # noqa: E402
import openwebtext_reading  # noqa: E402
import openwebtext_text  # noqa: E402
import seen_keys  # noqa: E402
import sources  # noqa: E402
import unpacking  # noqa: E402
import warc  # noqa: E402
import web_documents  # noqa: E402

MENDED = "The schÃ¶n cafÃ© â€” it works"  # UTF-8 read as Windows-1252


def tar(members, **attributes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def subset(number, texts):
    """An inner archive of OpenWebText."""
    name = f"openwebtext/urlsf_subset00-{number}_data.xz"
    return name, lzma.compress(tar([(f"{number:07}-{i}.txt", text.encode())
                                    for i, text in enumerate(texts)]))


def corpus(count, seed=0):
    """Texts of 0 to 60 words; about every third came before, some with other white space."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        again = found and rng.random() < 0.3
        text = (rng.choice(found) + rng.choice(["", "\n"]) if again else
                " ".join(rng.choice(["one", "two", "naïve", "漢字", "MENDED"])
                         for _ in range(rng.randint(0, 60))))
        found.append(text)
    return found


def distinct(texts, minimum=1):
    """What has to be kept: the first of those that are alike but for white space."""
    seen, kept = set(), []
    for text in texts:
        if len(text.strip()) >= minimum and tuple(text.split()) not in seen:
            seen.add(tuple(text.split()))
            kept.append(text)
    return kept


def put(directory, name, data):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def published(directory, texts, size=7):
    """The published archive: a compressed tar of compressed tars of texts."""
    cut = [texts[i:i + size] for i in range(0, len(texts), size)]
    data = tar([subset(i, part) for i, part in enumerate(cut)])
    return put(directory, "openwebtext.tar.xz", lzma.compress(data))


def arguments(out, *flags):
    return ["--name", "owt", "--output_dir", str(out), "--processes", "1", *map(str, flags)]


def run(tmp_path, *flags, out="out"):
    """Runs in this process; returns the records and the report."""
    assert openwebtext.main(arguments(tmp_path / out, *flags)) == 0
    return read(tmp_path / out)


def read(directory):
    report = json.loads((directory / "owt_report.json").read_text())
    found = []
    for shard in report["shards"]:
        data = (directory / shard["file"]).read_bytes()
        assert len(data) == shard["bytes"]
        if shard["file"].endswith(".zst"):
            # a single frame that tells its size: many readers stop behind the first
            assert zstandard.frame_content_size(data) > 0
            decoder = zstandard.ZstdDecompressor().decompressobj()
            data = decoder.decompress(data)
            assert decoder.eof and not decoder.unused_data
        lines = data.decode().split("\n")
        assert not lines.pop() and len(lines) == shard["documents"]
        found += map(json.loads, lines)
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        ["owt_report.json", *(shard["file"] for shard in report["shards"])])
    return found, report


def test_the_published_archive(tmp_path):
    texts = corpus(80)
    path = published(tmp_path, texts)
    found, report = run(tmp_path, "--input", path, "--minimum_size", 20, "--files_per", 15)
    kept = distinct(texts, 20)
    assert [record["text"] for record in found] == kept
    assert all(record.keys() == {"text"} for record in found)
    short = sum(len(text.strip()) < 20 for text in texts)
    assert (report["documents"], report["kept"], report["too_short"], report["duplicates"]) == (
        80, len(kept), short, 80 - short - len(kept))
    assert short and report["duplicates"] and len(report["shards"]) > 2
    assert report["input_bytes"] == path.stat().st_size
    assert report["document_bytes"] == sum(len(text.encode()) for text in texts)
    assert report["text_bytes"] == sum(len(text.encode()) for text in kept)


def test_what_create_tfrecords_reads_is_what_was_kept(tmp_path):
    texts = corpus(30)
    found, report = run(tmp_path, "--input", published(tmp_path, texts), "--files_per", 9)
    directory, manifest = tfrecord_runs.run(
        tmp_path, "--input_dir", tmp_path / "out" / "owt_*.jsonl.zst", "--chunk_size", 64,
        "--on_error", "refuse", out="records")
    read_again = tfrecord_runs.split_documents(directory, manifest, "train")
    assert len(report["shards"]) > 1
    assert sorted(read_again) == sorted(record["text"] for record in found) == sorted(
        distinct(texts))


def test_files_directories_and_globs_in_natural_order(tmp_path):
    put(tmp_path, "in/a_10.txt", b"ten")
    put(tmp_path, "in/a_2.txt.gz", gzip.compress(b"\xef\xbb\xbftwo"))
    put(tmp_path, "in/b/c.tgz", gzip.compress(tar([("x.txt", b"two\n"), ("y.txt", b" ten "),
                                                   ("z.txt.xz", lzma.compress(b"new"))])))
    put(tmp_path, "in/note.md", b"?")
    put(tmp_path, "d.txt.zst", zstandard.compress("cafe\u0301 café".encode()))
    put(tmp_path, "e.txt", "café cafe\u0301".encode())
    found, report = run(tmp_path, "--input", tmp_path / "in", tmp_path / "*.txt*", "--format",
                        "jsonl")
    assert [record["text"] for record in found] == ["cafe\u0301 café", "two", "ten", "new"]
    assert report["duplicates"] == 3, "composed accents and outer space are no difference"
    assert report["shards"][0]["file"] == "owt_0.jsonl"


def test_ftfy(tmp_path):
    path = put(tmp_path, "a.txt", MENDED.encode())
    put(tmp_path, "b.txt", ftfy.fix_text(MENDED).encode())
    found, _ = run(tmp_path, "--input", path, tmp_path / "b.txt", "--ftfy")
    assert [record["text"] for record in found] == [ftfy.fix_text(MENDED)] != [MENDED]
    found, _ = run(tmp_path, "--input", path, out="plain")
    assert found[0]["text"] == MENDED


# --- pages ---

ARTICLE = ("<p>Rose hoops are made in <b>Königsberg</b>, where the river is wide and slow.</p>"
           "<p>Nobody knows who made the first of them, or what it was used for then.</p>")
SENTENCES = ["Rose hoops are made in Königsberg, where the river is wide and slow.",
             "Nobody knows who made the first of them, or what it was used for then."]
PAGE = ("<!doctype html><html><head><title>T</title><script>var x;</script></head><body><nav><ul>"
        "<li><a href=/>Home</a><li><a href=/b>About</a></ul></nav><article>" + ARTICLE
        + "</article><footer>Copyright</footer></body></html>")


def record(kind, url, media, block, extra=b""):
    """A WARC record, written as ISO 28500 says."""
    head = (f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {media}\r\n"
            f"Content-Length: {len(block)}\r\n").encode() + extra
    return head + b"\r\n" + block + b"\r\n\r\n"


def response(url, body, headers="Content-Type: text/html; charset=utf-8", status="200 OK"):
    return record("response", url, "application/http; msgtype=response",
                  f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body)


def chunked(body, size=50):
    parts = [body[i:i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def page(number):
    return PAGE.replace("Rose", f"Rose{number}").encode()


def test_pages_of_warc_files(tmp_path):
    pytest.importorskip("resiliparse")
    brotli = pytest.importorskip("brotli")
    utf_8 = "Content-Type: text/html; charset=utf-8"
    deflate = zlib.compressobj(wbits=-15)
    coded = [
        ("", page(0)),
        ("\r\nTransfer-Encoding: chunked", chunked(page(1))),
        ("\r\nContent-Encoding: gzip", gzip.compress(page(2))),
        ("\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip",
         chunked(gzip.compress(page(3)))),
        ("\r\nContent-Encoding: deflate", zlib.compress(page(4))),
        ("\r\nContent-Encoding: deflate", deflate.compress(page(5)) + deflate.flush()),
        ("\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip", page(6)),  # decoded already
        ("\r\nContent-Encoding: br", brotli.compress(page(7))),
    ]
    members = [record("warcinfo", "", "application/warc-fields", b"software: x\r\n"),
               *(response(f"http://a.org/{i}", body, utf_8 + head)
                 for i, (head, body) in enumerate(coded)),
               response("http://a.org/gone", page(20), status="404 Not Found"),
               response("http://a.org/picture", b"\x89PNG", "Content-Type: image/png"),
               record("request", "http://a.org/", "application/http", b"GET / HTTP/1.1\r\n\r\n"),
               response("http://a.org/again", page(1)),
               response("http://a.org/latin", page(8).decode().encode("latin-1"),
                        "Content-Type: text/html; charset=ISO-8859-1"),
               record("resource", "<http://a.org/own>", "text/html", page(9)),
               record("conversion", "http://a.org/wet", "text/plain", "plain words 漢字".encode())]
    plain = put(tmp_path, "a.warc", b"".join(members))
    packed = put(tmp_path, "b.warc.gz", b"".join(map(gzip.compress, members)))
    found, report = run(tmp_path, "--input", plain)
    assert [one["url"].rpartition("/")[2] for one in found] == [
        *map(str, range(8)), "latin", "own", "wet"]
    for number, one in enumerate(found[:10]):
        first, second = SENTENCES
        assert one["text"].split("\n\n") == [first.replace("Rose", f"Rose{number}"), second]
    assert found[10]["text"] == "plain words 漢字"
    assert (report["duplicates"], report["other_responses"], report["with_url"]) == (1, 2, 11)
    again, _ = run(tmp_path, "--input", packed, out="gz")
    assert again == found


def test_bodies_that_are_no_text_whatever_their_server_said(tmp_path):
    """Pictures and PDF sent as HTML; but UTF-16, with zeros in it, is text."""
    pytest.importorskip("resiliparse")
    html, text = "Content-Type: text/html; charset=", "Content-Type: text/plain"
    bodies = [(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", html + "utf-8"),
              (b"%PDF-1.4\n1 0 obj << /Type /Catalog >>", html + "utf-8"),
              (b"PK\x03\x04words", text), (page(1).decode().encode("utf-16"), html + "utf-8"),
              (page(2).decode().encode("utf-16-le"), html + "utf-16le"),
              (page(3) + b"\x1b[0m", html + "utf-8")]
    path = put(tmp_path, "a.warc", b"".join(
        response(f"http://a.org/{i}", *given) for i, given in enumerate(bodies)))
    found, report = run(tmp_path, "--input", path)
    assert [one["text"].split()[0] for one in found] == ["Rose1", "Rose2", "Rose3"]
    assert (report["documents"], report["other_responses"]) == (3, 3)


def test_what_openwebtexts_scraper_stores_raw(tmp_path):
    """Pages in .txt files of RS_*_data.xz, beside archives of JSON that are no text."""
    pytest.importorskip("resiliparse")
    put(tmp_path, "in/RS_2017-04-1_data.xz", lzma.compress(tar(
        [(f"{i:07}-{i:032x}.txt", page(i)) for i in range(3)])))
    put(tmp_path, "in/RS_2017-04-1_meta.xz", lzma.compress(tar([("0000000-0.json", b"{}")])))
    found, report = run(tmp_path, "--input", tmp_path / "in", "--txt_pages")
    assert [one["text"] for one in found] == [
        "\n\n".join(SENTENCES).replace("Rose", f"Rose{i}") for i in range(3)]
    assert report["unreadable"] == 0
    found, _ = run(tmp_path, "--input", tmp_path / "in", out="as_text")
    assert [one["text"] for one in found] == [page(i).decode() for i in range(3)]


def test_pages_as_files(tmp_path):
    pytest.importorskip("resiliparse")
    put(tmp_path, "a.html", PAGE.replace("<title>", '<meta charset="iso-8859-1"><title>').encode(
        "latin-1"))
    put(tmp_path, "b.tar", tar([("x.htm.gz", gzip.compress(page(1)))]))
    deep = b"<div>x" * 30_000  # finding the main text of this would take minutes
    put(tmp_path, "c.html", deep)
    flags = ["--input", tmp_path / "a.html", tmp_path / "b.tar", tmp_path / "c.html"]
    found, _ = run(tmp_path, *flags)
    assert found[0]["text"] == "\n\n".join(SENTENCES)
    assert found[1]["text"].startswith("Rose1 hoops")
    assert found[2]["text"].count("x") == 30_000
    whole, _ = run(tmp_path, *flags, "--whole_pages", out="whole")
    assert "Copyright" in whole[0]["text"] and "Home" in whole[0]["text"]


def test_without_the_library_pages_are_refused_at_once(tmp_path, monkeypatch, capsys):
    for module in ("resiliparse", "resiliparse.extract.html2text"):
        monkeypatch.setitem(sys.modules, module, None)
    put(tmp_path, "a.warc", response("http://a.org", page(0)))
    assert openwebtext.main(arguments(tmp_path / "out", "--input", tmp_path / "a.warc")) == 2
    assert "pip install" in capsys.readouterr().err


# --- damage ---

def damaged():
    """(name, bytes, what the message has to hold, texts that are still read)."""
    # Long names fill the headers, so that the cuts fall where they are meant to.
    two = tar([("1.txt", b"one"), ("2.txt", b"two")])
    incompressible = random.Random(1).randbytes(40_000).hex().encode()
    large = tar([("1.txt", b"one"), ("2.txt", incompressible), ("3.txt", b"three")])
    packed, zipped = lzma.compress(large), gzip.compress(large)
    inner = lzma.compress(tar([("1.txt", b"one"), ("2.txt", incompressible)]))
    hit = bytearray(two)
    hit[1024 + 10] ^= 1  # in the second header
    pages = [record("conversion", f"http://a/{i}", "text/plain", text)
             for i, text in enumerate((b"one", b"two"))]
    bomb = tar([("1.txt", b"one")]) + tar([("long", b"")], type=tarfile.GNUTYPE_LONGNAME)
    bomb = bytearray(bomb[:1024] + bomb[10240:])
    bomb[1024:1536] = _sized(bomb[1024:1536], 1 << 30)
    return [
        ("a.txt", b"", "empty", []),
        ("a.txt", b"\xff\xfe\xff", "utf-8", []),
        ("a.txt.gz", gzip.compress(b"one")[:-9], r"within its first \d+ of \d+ bytes", []),
        ("subset.xz", lzma.compress(two), "a tar, which its name does not say", []),
        ("a.tar", two[:1024 + 514], "cut off|unexpected end", ["one"]),
        ("a.tar", two[:1024], "cut off", ["one"]),
        ("a.tar", bytes(hit), "header is damaged", ["one"]),
        ("a.tar", bytes(bomb), "header of 1073741824 bytes", ["one"]),
        ("a.tar.xz", packed[:len(packed) // 2], r"within its first \d+ of \d+ bytes", ["one"]),
        ("a.tar.gz", zipped[:len(zipped) // 2], r"2.txt: at byte 1536 of the tar", ["one"]),
        ("a.tar", tar([("x_data.xz", inner[:len(inner) // 2]), ("y.txt", b"why")]),
         r"a.tar:x_data.xz", ["one", "why"]),
        ("a.tar", tar([("x_data.xz", b"no xz"), ("y.png", b""), ("y.txt", b"why")]),
         r"a.tar:(x_data.xz|y.png)", ["why"]),
        ("a.wet", pages[0] + pages[1][:-6], r"record 1: cut off, 2 of 3 bytes", ["one"]),
        ("a.wet", pages[0] + b"no record\r\n" + pages[1], r"record 1: WARC", ["one"]),
        ("a.wet.gz", gzip.compress(pages[0]) + gzip.compress(pages[1])[:-20], "end-of-stream",
         ["one"]),
        ("a.wet", pages[0].replace(b"Length: 3", b"Length: -3"), "Content-Length '-3'", []),
        ("a.wet", pages[0] + b"WARC/1.0\r\n" + b"a: b\r\n" * 5000, "header of more than", ["one"]),
    ]


def _sized(header, size):
    """A tar header with another size and the right checksum."""
    header = bytearray(header)
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return header


def test_damage_is_named_refused_or_skipped(tmp_path, capsys):
    for number, (name, data, message, texts) in enumerate(damaged()):
        where = put(tmp_path, f"{number}/{name}", data)
        good = put(tmp_path, f"{number}/z.txt", b"last")
        out = f"out{number}"
        assert openwebtext.main(arguments(tmp_path / out, "--input", where, good)) == 2, name
        line = capsys.readouterr().err
        assert str(where) in line and line.count("\n") == 1 and "--on_error skip" in line
        # what was refused goes on when told to skip
        found, report = run(tmp_path, "--input", where, good, "--on_error", "skip", out=out)
        named = "\n".join(report["named"]["unreadable"])
        assert re.search(message, named), (name, named)
        assert [one["text"] for one in found] == [*texts, "last"], (number, name)
        assert report["unreadable"] == len(report["named"]["unreadable"]) > 0


def test_large_documents_and_bombs_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(openwebtext_text, "EXPANDED", 5000)
    bomb = b"0" * 50_000_000
    put(tmp_path, "a.txt.xz", lzma.compress(bomb, preset=0))
    put(tmp_path, "b.tar", tar([("1.txt", bomb[:2001]), ("2.txt.gz", gzip.compress(bomb)),
                                ("3.txt", bomb[:2000])]))
    many = tar([(f"{i}.txt", b"%04d" % i * 400) for i in range(9)])
    put(tmp_path, "c.tar", tar([("x_data.xz", lzma.compress(many))]))
    put(tmp_path, "d.wet", record("conversion", "http://a", "text/plain", bomb[:100_000])
        + record("conversion", "http://b", "text/plain", b"short"))
    head = "Content-Type: text/plain\r\nContent-Encoding: "
    put(tmp_path, "e.wet", response("http://c", gzip.compress(bomb), head + "gzip")
        + response("http://d", zlib.compress(bomb), head + "deflate"))
    found, report = run(tmp_path, "--input", *sorted(map(str, tmp_path.glob("?.*"))),
                        "--maximum_size", 2000, "--on_error", "skip")
    assert [one["text"][:4] for one in found] == ["0000", *(f"{i:04}" for i in range(4)), "shor"]
    assert report["too_large"] == 6 and len(report["named"]["too_large"]) == 6
    assert "c.tar:x_data.xz" in report["named"]["unreadable"][0]
    assert "expand" in report["named"]["unreadable"][0]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_a_body_is_not_decompressed_much_further_than_the_limit(coding):
    bomb = bytes(20_000_000)
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(coding)
    pack = pack or pytest.importorskip("brotli").compress
    fields = {"content-encoding": coding}
    assert warc.decoded_body(fields, pack(bomb), 30_000_000) == bomb
    assert 5000 < len(warc.decoded_body(fields, pack(bomb), 5000)) <= 5001 + 2 * unpacking.BLOCK
    with pytest.raises(EOFError, match="cut off"):
        warc.decoded_body(fields, pack(b"some words " * 9)[:-12], 5000)


def test_climbing_names_are_only_read(tmp_path):
    put(tmp_path, "a.tar", tar([("../../climbed.txt", b"one"), ("/etc/x.txt", b"two")]))
    before = sorted(os.listdir(tmp_path.parent))
    found, _ = run(tmp_path, "--input", tmp_path / "a.tar")
    assert [one["text"] for one in found] == ["one", "two"]
    assert sorted(os.listdir(tmp_path.parent)) == before
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "out"]


def test_damage_in_a_tar_is_noticed_by_create_tfrecords_too(tmp_path):
    for name, data, message, texts in damaged():
        if name == "a.tar" and "x_data" not in message:
            problems = []
            path = str(put(tmp_path, name, data))
            assert list(sources.documents(path, on_bad=problems.append)) == texts
            assert problems


# --- restarts and processes ---

def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(openwebtext_reading, "BATCH_ITEMS", 2)
    monkeypatch.setattr(seen_keys, "SMALLEST", 4)
    monkeypatch.setattr(jsonl_shards, "BLOCK", 500)


@pytest.mark.parametrize("form", ["jsonl", "jsonl.zst"])
def test_killed_before_any_file_operation_it_resumes_to_the_same_bytes(
        tmp_path, monkeypatch, small_batches, form):
    import tensorflow as tf
    texts = corpus(60)
    path = published(tmp_path, texts[:45], size=5)
    more = put(tmp_path, "z.tar", tar([("x.png", b""), *((f"{i}.txt", text.encode())
                                       for i, text in enumerate(texts[45:]))]))
    flags = ["--input", path, more, "--files_per", 9, "--format", form, "--on_error", "skip"]
    run(tmp_path, *flags, "--checkpoint_seconds", 1000, out="unbroken")
    expected = contents(tmp_path / "unbroken")
    assert len(expected) > 3
    flags += ["--checkpoint_seconds", 0]
    for count in range(1000):
        out = f"out{count}"
        with monkeypatch.context() as patch:
            left = [count]

            def deadly(function, left=left):
                def call(*args, **kwargs):
                    left[0] -= 1
                    if left[0] < 0:
                        raise tfrecord_runs.Killed
                    return function(*args, **kwargs)
                return call

            for owner, name in ((tf.io.gfile, "rename"), (tf.io.gfile, "remove"),
                                (tf.io.gfile.GFile, "write")):
                patch.setattr(owner, name, deadly(getattr(owner, name)))
            try:
                run(tmp_path, *flags, out=out)
                break
            except tfrecord_runs.Killed:
                pass
        if count % 3 == 0 or count < 20:
            run(tmp_path, *flags, out=out)
            assert contents(tmp_path / out) == expected, count
    assert count > 60


def test_any_number_of_processes_and_kill_9(tmp_path):
    """Real processes, the second run of which ends what the first began."""
    texts = [text * 5 for text in corpus(1200, 2)]
    path = published(tmp_path, texts, size=20)
    flags = ["--input", path, "--files_per", 200, "--ftfy"]
    found, _ = run(tmp_path, *flags, out="one")
    assert [one["text"] for one in found] == [ftfy.fix_text(text) for text in distinct(texts)]
    expected = contents(tmp_path / "one")
    # batches far smaller than the program's, so that there is something to kill
    code = ("import sys; sys.path.insert(0, sys.argv.pop(1)); import openwebtext_reading as r; "
            "r.BATCH_BYTES = 9_000; import openwebtext; sys.exit(openwebtext.main(sys.argv[1:]))")
    args = [sys.executable, "-c", code, os.path.dirname(openwebtext.__file__),
            *arguments(tmp_path / "out", *flags, "--checkpoint_seconds", 0)]
    args[args.index("--processes") + 1] = "3"
    progress = tmp_path / "out" / "owt_progress.json"
    process = subprocess.Popen(args, stdout=subprocess.PIPE)
    while not progress.exists() or json.loads(
            progress.read_text())["state"]["counts"]["documents"] < 300:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "owt_report.json").exists()
    last = subprocess.run(args, check=True, capture_output=True, text=True)
    assert contents(tmp_path / "out") == expected
    assert "1,200 documents in" in last.stdout and "duplicates" in last.stdout


def test_other_runs_are_refused(tmp_path, capsys):
    path = put(tmp_path, "a.txt", b"one")
    run(tmp_path, "--input", path)
    again = arguments(tmp_path / "out", "--input", path)
    assert openwebtext.main(again) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert openwebtext.main([*again, "--overwrite"]) == 0
    for flags, message in ((["--minimum_size", "-1"], "--minimum_size -1"),
                           (["--minimum_size", "99"], "no document is left: 1 documents in"),
                           (["--name", "a/b"], "--name a/b")):
        assert openwebtext.main([*arguments(tmp_path / "new", "--input", path), *flags]) == 2
        line = capsys.readouterr().err
        assert message in line and line.count("\n") == 1


def test_an_unfinished_run_goes_on_with_the_same_settings_alone(tmp_path, small_batches, capsys):
    put(tmp_path, "in/a.tar", tar([(f"{i}.txt", b"%d" % i) for i in range(9)]))
    put(tmp_path, "in/b.txt", b"\xff")
    same = arguments(tmp_path / "out", "--input", tmp_path / "in", "--checkpoint_seconds", 0)
    assert openwebtext.main(same) == 2
    capsys.readouterr()
    assert openwebtext.main([*same, "--minimum_size", "2"]) == 2
    assert "begun with other settings (minimum_size: 1, now 2)" in capsys.readouterr().err
    assert openwebtext.main([*same, "--on_error", "skip"]) == 0
    found, report = read(tmp_path / "out")
    assert [one["text"] for one in found] == list("012345678") and report["unreadable"] == 1


def test_the_table_of_keys_is_a_set(tmp_path, small_batches):
    rng = random.Random(3)
    keys = [rng.randrange(1 << 64) for _ in range(500)] + [0, 0, 5, 5 + 64, 5 + 128]
    keys += rng.choices(keys, k=300)
    seen, known = seen_keys.SeenKeys(str(tmp_path), "k"), set()
    for number, key in enumerate(keys):
        assert seen.add(key) == (key not in known), key
        known.add(key)
        if number % 100 == 50:
            parts = seen.store()
            seen = seen_keys.SeenKeys(str(tmp_path), "k", parts)


def test_helpers_read_no_more_than_they_need():
    """Records that nobody wants are passed over in pieces."""
    class Counting(io.BytesIO):
        largest = 0

        def read(self, size=-1):
            self.largest = max(self.largest, size)
            return super().read(size)

    stream = Counting(record("response", "http://a", "application/http", bytes(5 << 20)))
    found, = warc.records(stream, 1000, ("response",))
    assert found.block is None and found.size == 5 << 20
    assert stream.largest <= unpacking.BLOCK
    assert web_documents.reason(EOFError()) == "EOFError"
