"""What a process asks of the system."""

import ctypes
import subprocess
import sys

import pytest
from tfrecord_runs import ROOT

MEMORY = """
import psutil
from mesh import processes

blocks = [bytearray(2000) for _ in range(100_000)]
last = blocks[-1]  # above all that is freed, so that it cannot just be cut off
blocks.append(blocks)
del blocks
before = psutil.Process().memory_info().rss
processes.give_memory_back()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's allocator")
def test_freed_memory_goes_back():
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, check=True,
                          capture_output=True, text=True)
    assert int(done.stdout) > 150e6
