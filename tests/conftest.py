"""Fixtures and settings that all tests share."""

import os
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


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
