"""The benchmarks of speed at toy sizes, beside what they compare with; nothing is timed here."""

import json
import os
import subprocess
import sys

import pytest


def run(root, script, *flags):
    """(rows of the table, the JSON) of a benchmark."""
    done = subprocess.run(
        [sys.executable, os.path.join(root, "benchmarks", script), "--rounds", "1", *flags],
        capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    table = [line for line in said if line.startswith("| ")]
    assert said[:-1] == table, "the JSON comes last, and nothing else is said"
    return table[2:], json.loads(said[-1])


def test_generation(root):
    pytest.importorskip("transformers", reason="the benchmark compares with it")
    rows, found = run(root, "generation.py", "--sizes", "tiny", "--batch", "2", "--prompt", "5",
                      "--new", "9", "--precision", "float32")
    (figures,) = found["results"]
    assert len(rows) == 1 and figures["ratio"] > 0
    assert figures["same_greedy_tokens"] == 1.0, "both have the same weights"


def test_encoding(root, tmp_path):
    pytest.importorskip("transformers", reason="the benchmark compares with it")
    profile = tmp_path / "profile"
    rows, found = run(root, "encoding.py", "--encoders", "gpt2", "--megabytes", "0.02",
                      "--profile", str(profile))
    (figures,) = found["results"]
    assert len(rows) == 1 and figures["ratio"] > 0 and figures["documents"] > 50
    assert figures["same_documents"] == 1.0
    assert (profile / "gpt2" / "python.prof").exists()


def test_input_speed(root):
    rows, found = run(root, "input_speed.py", "--set", "n_layer=1", "--set", "n_embd=16", "--steps",
                      "2", "--batches", "3", "--documents", "400")
    assert [row.split(" | ")[0] for row in rows] == ["| training", "| chunks", "| stitched"]
    assert found["chunks"]["ratio"] > 0 and found["stitched"]["ratio"] > 0


@pytest.mark.slow
def test_start(root):
    rows, found = run(root, "start.py", "--new", "2", "--set", "n_layer=1", "--set", "n_embd=16")
    assert len(rows) == len(found["medians"]) == 5
    assert all(seconds > 0 for seconds in found["medians"].values())
