"""TensorBoard and the report as a browser shows them, with pictures in the test's directory.

Set GPTC_SCREENSHOTS to a directory to have them there.
"""

import os
import pathlib

import browser
import pytest
import report_runs
from PIL import Image
from tensorboard import program

import main
from training import open_board

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not all(browser.PROGRAMS),
                                 reason="a browser looks: apt-get install chromium-driver")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    for name, offset in (("gpt", 0.0), ("gptc", -0.25)):
        report_runs.write(directory / name, offset)
    report_runs.project(directory / "gptc")
    return directory


@pytest.fixture(scope="module")
def board(runs):
    """The address of a TensorBoard of the runs, which ends with this process."""
    server = program.TensorBoard(open_board.plugins())
    server.configure(argv=[None, "--logdir", str(runs), "--port", "0", "--host", "127.0.0.1",
                           "--load_fast", "false", "--reload_interval", "1"])
    return server.launch()


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    opened = browser.Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture
def look(window, tmp_path):
    """A function (address, name, wanted, size) -> the page's text, once it has all wanted parts.

    It takes a screenshot that is checked not to be blank: many colors, none of them nearly all.
    """
    def look(address, name, wanted, size=(1400, 1200)):
        text, png = window.show(address, size, wanted)
        path = pathlib.Path(os.environ.get("GPTC_SCREENSHOTS") or tmp_path, name + ".png")
        path.write_bytes(png)
        with Image.open(path) as picture:
            counts = sorted(count for count, _ in picture.convert("RGB").getcolors(2 ** 24))
        assert len(counts) > 100 and counts[-1] < 0.97 * sum(counts), "the page is blank"
        return text

    return look


@pytest.mark.parametrize("page, wanted", [
    ("", ["Loss: training and evaluation", "language model (nats per token)", "bits per byte",
          "gpt/eval", "gptc/eval"]),  # the page on which it opens
    ("scalars", ["gptc/eval", "loss", "learning_rate", "perplexity"]),
    ("text", ["config", "sample"]),
    ("images", ["probe"]),
    ("hparams", ["train_batch_size", "eval loss/lm", "n_embd"]),
    ("projector", ["clip, step 40", "Points: 600", "Label by", "what"]),
])
def test_tensorboard(board, look, page, wanted):
    look(f"{board}#{page}" if page else board, f"tensorboard_{page or 'opened'}", wanted)


@pytest.mark.parametrize("name, size", [("page", (1100, 2200)), ("phone", (500, 2200))])
def test_report(runs, look, window, tmp_path, name, size):
    path = tmp_path / "report.html"
    assert main.main(["--report", str(runs / "gpt"), str(runs / "gptc"), "--out", str(path),
                      "--quiet"]) == 0
    text = look(f"file://{path}", f"report_{name}", ["bits per byte", "gptc, evaluation"], size)
    assert text.count("gptc, training") > 3
    assert window.run("return document.documentElement.scrollWidth <= window.innerWidth"), (
        "the page is wider than the window")
