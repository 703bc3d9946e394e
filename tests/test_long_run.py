"""The measure of long runs, on a short one: one event file a curve, and nothing left open."""

import json
import os
import subprocess
import sys

import pytest
from tfrecord_runs import ROOT


@pytest.mark.slow
def test_evaluations_leave_neither_open_files_nor_event_files(tmp_path):
    result = subprocess.run(
        [sys.executable, os.path.join(ROOT, "benchmarks", "long_run.py"), "--out", str(tmp_path),
         "--steps", "40", "--every", "10"], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["evaluations"] == 4 and found["checkpoints"] == 3
    assert found["event_files"] == 2  # training's and evaluations'
    assert found["mib_end"] < found["mib_quarter"] + 100
    assert found["files_end"] <= found["files_quarter"] + 1
