"""create_tfrecords, killed anywhere and run on any number of processes: the same bytes."""

import gc
import itertools
import json
import os
import random
import re
import signal
import subprocess
import time

import pytest
import tensorflow as tf
from tfrecord_runs import (
    Killed,
    command,
    contents,
    corpus,
    create_tfrecords,
    kill_at,
    run,
    write_jsonl,
)

from records import retrying


@pytest.fixture
def quick_collection():
    """Sets TensorFlow's own objects aside, so that collecting a run's takes no time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("mode", ["chunks", "documents"])
def test_killed_before_any_file_operation_it_resumes_to_the_same_bytes(
        tmp_path, mode, monkeypatch, quick_collection):
    import batches
    monkeypatch.setattr(batches, "BATCH_DOCUMENTS", 7)
    write_jsonl(tmp_path / "a.jsonl", corpus(1, 16))
    (tmp_path / "b.jsonl").write_text('"x"\n{broken\n' + (json.dumps("y" * 90) + "\n\n") * 12)
    flags = ["--mode", mode, "--chunk_size", 120, "--files_per", 4, "--val_fraction", 0.3,
             "--on_error", "skip", "--encoder", "char", "--checkpoint_seconds", 0]
    unbroken, _ = run(tmp_path, *flags[:-1], 1000, out="unbroken")
    expected = contents(unbroken)
    assert len([name for name in expected if name.endswith(".tfrecords")]) > 3
    for count in range(1000):
        out = f"out{count}"
        with monkeypatch.context() as patch:
            kill_at(patch, count)
            try:
                run(tmp_path, *flags, out=out)
                break
            except Killed:
                pass
        gc.collect()  # closes the files of the dead run, as the end of a process does
        run(tmp_path, *flags, out=out)
        found = contents(tmp_path / out)
        assert {name: same_paths(data, out) for name, data in found.items()} == {
            name: same_paths(data, "unbroken") for name, data in expected.items()}, count
    assert count > 40


def test_a_full_disk_stops_it_in_one_line_and_it_goes_on_later(
        tmp_path, monkeypatch, capsys, quick_collection):
    write_jsonl(tmp_path / "a.jsonl", corpus(1, 60))
    flags = ["--chunk_size", 120, "--files_per", 4, "--val_fraction", 0.3,
             "--checkpoint_seconds", 0]
    expected = contents(run(tmp_path, *flags, out="unbroken")[0])
    full = tf.errors.ResourceExhaustedError(None, None, "d_0.tfrecords; No space left on device")
    for count in range(0, 200, 9):
        out = f"out{count}"
        capsys.readouterr()
        with monkeypatch.context() as patch:
            kill_at(patch, count, full)
            status = create_tfrecords.main([
                "--name", "d", "--output_dir", str(tmp_path / out), "--encoder", "byte",
                "--processes", "1", "--input_dir", str(tmp_path / "a.jsonl"),
                *map(str, flags)])
        error = capsys.readouterr().err
        if status == 0:
            break
        assert status == 2 and "Traceback" not in error
        assert "No space left on device" in error.splitlines()[-1]
        assert "free space" in error.splitlines()[-1]
        gc.collect()
        run(tmp_path, *flags, out=out)
        assert contents(tmp_path / out) == expected, count
    assert count > 40


def test_storage_that_is_out_of_reach_for_a_moment_changes_nothing(
        tmp_path, monkeypatch, quick_collection):
    """Each operation on a file in turn fails once, as one on gs:// may."""
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    write_jsonl(tmp_path / "a.jsonl", corpus(1, 60))
    flags = ["--chunk_size", 120, "--files_per", 4, "--val_fraction", 0.3,
             "--checkpoint_seconds", 0]
    expected = contents(run(tmp_path, *flags, out="unbroken")[0])
    gone = tf.errors.UnavailableError(None, None, "503 from storage")
    for count in itertools.count(0, 3):
        with monkeypatch.context() as patch:
            left = kill_at(patch, count, gone, times=1)
            run(tmp_path, *flags, out=f"out{count}")
        assert contents(tmp_path / f"out{count}") == expected, count
        if left[0] >= 0:
            break
    assert count > 40


def same_paths(data, out):
    """The encoder's path is in the manifest and differs with the directory."""
    return data.replace(f"/{out}/d_encoder".encode(), b"/d_encoder")


def documents_done(progress):
    """How many documents the last checkpoint of a run holds; -1 before the first."""
    if not progress.exists():
        return -1
    return json.loads(progress.read_text())["state"]["totals"]["documents"]


@pytest.mark.slow
def test_any_number_of_processes_and_kill_9(tmp_path):
    """Real processes, killed at random moments; more processes than files (GPT-Neo divided 0)."""
    write_jsonl(tmp_path / "a.jsonl", [text * 40 for text in corpus(2, 1500)])
    flags = ["--chunk_size", 128, "--files_per", 20000, "--val_fraction", 0.05]
    directory, _ = run(tmp_path, *flags, out="one")
    expected = contents(directory)
    flags += ["--input_dir", tmp_path / "a.jsonl"]
    subprocess.run(command(tmp_path, "two", *flags, "--processes", 2), check=True)
    assert contents(tmp_path / "two") == expected
    args = command(tmp_path, "out", *flags, "--processes", 3, "--checkpoint_seconds", 0)
    rng = random.Random(0)
    for documents in (0, *sorted(rng.sample(range(1, 1200), 4))):
        process = subprocess.Popen(args, stdout=subprocess.PIPE)
        while documents_done(tmp_path / "out" / "d_progress.json") < documents:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert "d_manifest.json" not in contents(tmp_path / "out")
    last = subprocess.run(args, check=True, capture_output=True, text=True)
    assert contents(tmp_path / "out") == expected
    assert re.search(r"tokens in [\d,]+ .* = tokens out [\d,]+ \+ dropped 0", last.stdout)


def worker_processes(parent):
    """The ids of the encoding processes of a run."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        children = file.read().split()
    lines = {}
    for child in children:
        with open(f"/proc/{child}/cmdline") as file:
            lines[child] = file.read()
    return [child for child, line in lines.items() if "spawn_main" in line]


def test_workers_end_with_their_parent(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [text * 60 for text in corpus(2, 1500)])
    process = subprocess.Popen(command(tmp_path, "out", "--input_dir", tmp_path / "a.jsonl",
                                       "--processes", 2, "--files_per", 100))
    children = []
    while not children and process.poll() is None:
        time.sleep(0.05)
        children = worker_processes(process.pid)
    process.kill()
    process.wait()
    assert children
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < deadline, "orphans go on"
        time.sleep(0.1)
