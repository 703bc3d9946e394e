"""benchmarks/preflight_table.py: its rows, and the smallest of the table in docs/tpu.md anew."""

import json
import os
import re

import jobs
import pytest

from benchmarks import preflight_table
from configs import schema
from mesh import pjrt, tpus

SMALLEST = "gpt2_117M"


def document():
    with open(os.path.join(jobs.ROOT, "docs", "tpu.md"), encoding="utf-8") as file:
        return file.read()


def stored():
    """{(config, slice): the cells} of the table in docs/tpu.md."""
    lines = document().splitlines()
    begin = lines.index("| " + " | ".join(preflight_table.HEADS) + " |") + 2
    rows = {}
    for line in lines[begin:]:
        if not line.startswith("|"):
            return rows
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0].strip("`"), cells[1]] = cells
    return rows


def test_every_config_with_a_tpus_mesh_has_its_row():
    """Or is named as one that has not been compiled; and no row has a mesh of an older config."""
    listed = {(name, tpu.name): config for name, config, tpu in preflight_table.jobs(None, None)}
    rows, absent = stored(), re.search(r"Not compiled yet: ([^.]*(?:\.\d[^.]*)*)\.\s", document())
    absent = set(re.findall("`(.*?)`", absent[1])) if absent else set()
    assert {name for name, _ in listed} == {name for name, _ in rows} | absent
    for (name, tpu), cells in rows.items():
        assert name not in absent and cells[2] == f"`{listed[name, tpu].mesh_shape}`", name
        assert re.fullmatch(r"\d+\.\d\d", cells[4]), f"{name} does not fit"
    assert {"gpt_162M", "gptc_1.3B", "text_clip", "gpt_13B"} <= {name for name, _ in listed}


def test_a_config_has_the_mesh_that_its_header_lists():
    def mesh(name, tpu):
        moved = preflight_table.on_slice(schema.load(name), tpus.find(tpu))
        return moved and moved.mesh_shape

    assert mesh("gpt_1.3B", "v4-128") == "x:32,y:4" and mesh("gpt_1.3B", "v3-8") == "x:2,y:4"
    assert mesh("gpt_162M", "v3-128") == "x:128"
    assert mesh("gpt2_345M", "v3-32") is None  # its batch has eight rows


def test_a_row_of_all_layers_stands_for_one_of_few(tmp_path, monkeypatch):
    made = []

    def row(name, config, tpu, step):
        made.append(step.few)
        few = {"extrapolated_from_layers": [1, 2]} if step.few else {}
        return {"config": name, "slice": tpu.name, "mesh_shape": config.mesh_shape, "n_layer": 12,
                "fits": True, "hbm_gib": 1.0, "step_seconds": 2.0, "tokens_per_second": 3.0,
                "mfu": 0.4, "collectives": [], "input_bytes": 8, **few}

    monkeypatch.setattr(preflight_table, "row", row)
    monkeypatch.setattr(preflight_table.compiler, "check_installed", lambda: None)

    def layers(*flags):
        args = ["--out", str(tmp_path), "--configs", SMALLEST, *flags]
        assert preflight_table.main(preflight_table.parse_args(args)) == 0
        return (tmp_path / "table.md").read_text().splitlines()[2].split("|")[4].strip()

    assert layers("--layers", "few") == layers("--layers", "few") == "1 and 2 of 12"
    assert layers() == layers("--layers", "few") == "all" and made == [True, False]


@pytest.mark.slow
@pytest.mark.skipif(pjrt.library() is None, reason="libtpu compiles: requirements-preflight.txt")
def test_the_smallest_row_is_what_the_compiler_says_now(tmp_path):
    """From few layers: so it checks the table, and that few layers tell what all do."""
    args = ["--out", str(tmp_path), "--configs", SMALLEST, "--layers", "few"]
    assert preflight_table.main(preflight_table.parse_args(args)) == 0
    with open(tmp_path / "table.json") as file:
        [row] = json.load(file)
    cells = stored()[SMALLEST, row["slice"]]
    assert row["fits"] and cells[3] == "all" and row["extrapolated_from_layers"] == [1, 2]
    assert row["hbm_gib"] == pytest.approx(float(cells[4]), rel=0.1)
    assert row["step_seconds"] == pytest.approx(float(cells[5]), rel=0.1)
    assert 100 * row["mfu"] == pytest.approx(float(cells[7].split()[0]), rel=0.1)
