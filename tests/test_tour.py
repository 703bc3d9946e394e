"""docs/tour.ipynb runs from its first cell to its last, and says what it promises."""

import os

import nbclient
import nbformat
import pytest

PARAMETERS = """
os.environ.update(DATA="{0}/data", RUNS="{0}/runs", PICTURES="600", TEXTS="150",
                  CLIP_STEPS="6", STUDENT_STEPS="6", STEPS="9")
"""


def texts(cell):
    """What a cell's outputs say, as one text."""
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.slow
def test_the_tour_runs(root, tmp_path):
    tour = nbformat.read(os.path.join(root, "docs", "tour.ipynb"), as_version=4)
    assert not any(cell.get("outputs") for cell in tour.cells), "clear the outputs"
    [settings] = [cell for cell in tour.cells if "parameters" in cell.metadata.get("tags", [])]
    settings.source = PARAMETERS.format(tmp_path)
    nbclient.NotebookClient(tour, timeout=900, kernel_name="python3",
                            resources={"metadata": {"path": os.path.join(root, "docs")}}).execute()
    pictures = [output for cell in tour.cells for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3  # the world, heat maps, losses
    [losses] = [texts(cell) for cell in tour.cells if "plt.plot" in cell.source]
    assert "gpt {'eval_loss'" in losses and "gptc {'eval_loss'" in losses
    [samples] = [texts(cell) for cell in tour.cells if "--predict" in cell.source]
    assert samples.count("there is a rose hoop and a") == 2
