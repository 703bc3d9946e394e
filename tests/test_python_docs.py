"""The text that needs no download: whole, and refused in one line where it cannot be written."""

import json
import os
import pydoc_data.topics
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import python_docs  # noqa: E402


def test_every_topic_is_written(tmp_path, capsys):
    path = tmp_path / "new" / "docs.jsonl"
    assert python_docs.main(["--out", str(path)]) == 0
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["topic"]: line["text"] for line in found} == pydoc_data.topics.topics
    assert f"{len(found)} documents" in capsys.readouterr().out


def test_refusals_are_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert python_docs.main(["--out", str(tmp_path / "file" / "docs.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
