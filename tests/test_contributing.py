"""CONTRIBUTING.md's recipes, applied to a copy of the program: it trains and samples with them."""

import os
import re
import shutil
import subprocess
import sys

import jobs
import numpy as np
import pytest
from tfrecord_runs import ROOT

CHECK = """
import graphs, numpy as np
from models import mean

x = np.random.RandomState(0).randn(2, 6, 3, 4, 5).astype(np.float32)
names = ("batch", "sequence", "qkv", "heads", "features_per_head")

def build(mesh):
    def piece(first, last, name):
        part = x[:, first:last]
        return graphs.give(mesh, part, *(graphs.dim(name if n == "sequence" else n, size)
                                         for n, size in zip(names, part.shape)))
    whole = piece(0, 6, "sequence")
    ctx = type("Context", (), {"mesh": mesh})
    batch, _, _, heads, features = whole.shape.dims
    def numbers(*values):
        return graphs.give(mesh, np.array(values, np.int32), batch)
    # Of the second row, only two of the first four tokens are its own.
    first, cache = mean.incremental(piece(0, 4, "new"), mean.empty_cache(
        ctx, batch, heads, features), numbers(0, 0), numbers(4, 2))
    second, _ = mean.incremental(piece(4, 6, "later"), cache, numbers(4, 2), None)
    return {"full": mean.full(whole), "both": mean.full(whole, causal=False), "first": first,
            "second": second}

v = x[:, :, 2]
found = graphs.run(build)
wanted = np.cumsum(v, 1) / np.arange(1, 7)[:, None, None]
np.testing.assert_allclose(found["full"], wanted, rtol=1e-4, atol=1e-6)
np.testing.assert_allclose(found["both"], v.mean(1, keepdims=True) + 0 * v, rtol=1e-4, atol=1e-6)
np.testing.assert_allclose(found["first"][0], wanted[0, :4], rtol=1e-4, atol=1e-6)
np.testing.assert_allclose(found["second"][0], wanted[0, 4:], rtol=1e-4, atol=1e-6)
own = np.concatenate([v[1, :2], v[1, 4:]])
np.testing.assert_allclose(found["second"][1], (own.cumsum(0) / np.arange(1, 5)[:, None, None])[2:],
                           rtol=1e-4, atol=1e-6)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The program with the recipes, and a function that runs Python in it."""
    directory = tmp_path_factory.mktemp("copy") / "main"
    shutil.copytree(ROOT, directory, ignore=shutil.ignore_patterns(
        ".git", ".venv", "__pycache__", ".*_cache", "data", "runs", "docs"))
    with open(os.path.join(ROOT, "CONTRIBUTING.md"), encoding="utf-8") as file:
        page = file.read()
    new = re.findall(r"(?ms)^```python\n# (\S+)\n(.*?)^```$", page)
    changes = re.findall(r"(?ms)^```diff\n(.*?)^```$", page)
    assert [name for name, _ in new] == ["models/mean.py", "encoders/ascii.py"]
    assert len(changes) == 3
    for name, text in new:
        assert not (directory / name).exists()
        (directory / name).write_text(text, encoding="utf-8")
    for change in changes:
        # A page's blocks are not a repository's: git looks for one above.
        subprocess.run(["git", "apply", "--whitespace=nowarn", "-"], input=change, text=True,
                       cwd=directory, check=True,
                       env={**os.environ, "GIT_CEILING_DIRECTORIES": str(directory.parent)})

    def run(*words):
        done = subprocess.run([sys.executable, *map(str, words)], cwd=directory, text=True,
                              capture_output=True, timeout=300,
                              env={**os.environ, "PYTHONPATH": f"{directory}:{directory}/tests"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return directory, run


@pytest.mark.slow
def test_the_recipes_work(copy, tmp_path):
    directory, run = copy
    run("-m", "ruff", "check", ".")
    run("-c", CHECK)
    (tmp_path / "text.txt").write_text("".join(jobs.texts()))
    run("datasets/create_tfrecords.py", "--input_dir", tmp_path / "text.txt", "--name", "mine",
        "--output_dir", tmp_path / "mine", "--encoder", "ascii", "--write_dataset_config",
        tmp_path / "mine.json", "--processes", "1")
    path = jobs.config(tmp_path, str(tmp_path / "mine.json"), n_layer=2, mesh_shape="x:2",
                       layout="heads:x", attention_types=[[["mean", "global"], 1]],
                       state_penalty=0.1)
    run("main.py", "--model", path)
    shown = jobs.scalars(tmp_path / "run")
    for step, loss in shown["loss"].items():
        states = shown["loss/states"][step]
        assert states > 0 and loss == pytest.approx(shown["loss/lm"][step] + 0.1 * states, rel=1e-5)
    sample = run("main.py", "--model", path, "--predict", "--prompt", "abé",
                 "--max_new_tokens", "4")
    assert sample.startswith("ab") and sample.isascii()
    assert np.shape(jobs.weights(str(tmp_path / "run"))["gpt/wte"]) == (136, 16)
