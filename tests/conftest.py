"""Fixtures and settings that all tests share."""

import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("GPTC_COMPILE_CACHE", "")  # what is tested is what the compiler says now


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Runs the fast tests first, and those of a file in one process, which shares its fixtures."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    for item in items:
        slow = "-slow" if item.get_closest_marker("slow") else ""
        item.add_marker(pytest.mark.xdist_group(item.path.name + slow))


@pytest.fixture(scope="session")
def root():
    """The checkout's root directory."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data():
    """A directory with tinyshakespeare.txt and CLIP's merges, or a skip."""
    path = os.environ.get("GPTC_TEST_DATA", os.path.join(os.path.dirname(ROOT), "shared", "data"))
    if not os.path.isdir(path):
        pytest.skip("test data absent: set GPTC_TEST_DATA to a directory with tinyshakespeare.txt "
                    "and bpe_simple_vocab_16e6.txt.gz")
    return path


@pytest.fixture
def bad_steps(monkeypatch):
    """Filled with {step: (a factor, of "loss" and "gradient" those that it multiplies)} by a test.

    The gradient is the first variable's.
    """
    from mesh.compat import mtf, tf
    from training import step

    bad, real = {}, step.losses_and_gradients

    def losses_and_gradients(features, loss_fn, key, num_microbatches):
        values, gradients = real(features, loss_fn, key, num_microbatches)
        now = tf.cast(tf.train.get_global_step(), tf.int32) + 1

        def times(x, what):
            factor = 1.0
            for number, (value, multiplied) in bad.items():
                if what in multiplied:
                    factor = tf.where(tf.equal(now, number), value, factor)
            return x * mtf.import_tf_tensor(x.mesh, tf.cast(factor, tf.float32), mtf.Shape([]))

        values["loss"] = times(values["loss"], "loss")
        return values, [times(gradients[0], "gradient"), *gradients[1:]]

    monkeypatch.setattr(step, "losses_and_gradients", losses_and_gradients)
    return bad
