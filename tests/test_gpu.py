"""Runs on GPUs. They skip where there is none; docs/gpu.md says that they have not been run yet."""

import os
import shutil
import subprocess
import sys

import jobs
import numpy as np
import pytest

CODE = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"


def visible():
    """The environment without what hides GPUs from the other tests."""
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}


@pytest.fixture(scope="module")
def gpus():
    """How many GPUs TensorFlow sees, one at least, or a skip."""
    found = 0
    if shutil.which("nvidia-smi"):
        found = int(subprocess.run([sys.executable, "-c", CODE], env=visible(), check=True,
                                   capture_output=True, text=True).stdout)
    if not found:
        pytest.skip("no GPU here that TensorFlow sees")
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_losses_on_gpus_are_the_cpus(gpus, tmp_path, monkeypatch, count):
    if count > gpus:
        pytest.skip(f"needs {count} GPUs, and {gpus} is here")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    data, found = jobs.dataset(tmp_path), []
    split = {1: {}, 2: dict(mesh_shape="x:2", layout="heads:x,vocab:x,intermediate_expanded:x")}
    for name, flags in (("cpu", []), ("gpu", ["--gpu_ids", *map(str, range(count))])):
        path = jobs.config(tmp_path, data, name=name, train_steps=10, **split[count])
        assert jobs.process(path, *flags).status == 0
        found.append(jobs.losses(f"{tmp_path}/{name}"))
    np.testing.assert_allclose(*found, rtol=1e-3)


def test_sampling_on_a_gpu(gpus, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), train_steps=20)
    assert jobs.process(path, "--gpu_ids", "0").status == 0
    flags = ["--predict", "--prompt", "ab", "--temperature", "0", "--max_new_tokens", "6"]
    texts = [jobs.process(path, *flags, *more).stdout for more in ([], ["--gpu_ids", "0"])]
    assert texts[0] == texts[1] != ""
