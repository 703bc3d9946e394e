"""Runs that are killed again and again, by tests/kills.py in a process that has run nothing yet."""

import json
import os
import subprocess
import sys

import pytest
from tfrecord_runs import ROOT


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(tmp_path):
    result = subprocess.run(
        [sys.executable, os.path.join(ROOT, "tests", "kills.py"), "--kills", "8", "--kinds",
         "gpt", "gpt_c", "--meshes", "x:2", "--out", str(tmp_path / "kills")],
        capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["kills"] == 8 and found["cases"] == {"gpt, x:2": 4, "gpt_c, x:2": 4}
    assert len(found["moments"]) >= 4 and {"evaluation", "new"} & set(found["moments"])
