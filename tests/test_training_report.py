"""--report: what the page of one run and of two says, and what is refused."""

import html.parser
import json
import re

import jobs
import pytest
import report_runs

import main


class Page(html.parser.HTMLParser):
    """Tables, text, and every address that a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.addresses, self.open, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.addresses += [value for name, value in attributes if name in ("src", "href")
                           and tag not in ("use",)]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open[-1:] or "th" in self.open[-1:]:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    return [str(report_runs.write(directory / "gpt")),
            str(report_runs.write(directory / "gptc", offset=-0.25, lr=2e-3))]


@pytest.fixture(scope="module")
def both(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main.main(["--report", *runs, "--out", str(path), "--quiet"]) == 0
    return path.read_text(encoding="utf-8")


def row_of(page, name, heads):
    """{heading: text} of a run's row in the table that has all these headings."""
    at = next(i for i, row in enumerate(page.rows) if row[0] == "run" and set(heads) <= set(row))
    row = next(row for row in page.rows[at:] if row[0] == name)
    return dict(zip(page.rows[at], row, strict=True))


def test_scores_are_the_last_evaluations(both, runs):
    page = Page(both)
    for name, directory in zip(("gpt", "gptc"), runs, strict=True):
        last = jobs.metrics(directory)[-1]
        row = row_of(page, name, ["perplexity"])
        assert row["step"] == "40"
        for heading, key in (("loss", "eval_loss"), ("bits per byte", "bits_per_byte")):
            assert float(row[heading]) == pytest.approx(last[key], rel=1e-3)
    assert float(row_of(page, "gptc", ["chance"])["acc"]) == 0.25
    assert float(row_of(page, "gptc", ["spearman"])["spearman"]) == 0.55


def test_the_best_stand_out(both):
    best = re.findall(r"<td class=best>([^<]*)</td>", both)
    gptc = row_of(Page(both), "gptc", ["perplexity"])
    assert {gptc["loss"], gptc["perplexity"], gptc["bits per byte"], "0.55"} <= set(best)


def test_curves_are_of_both_runs_and_of_training_and_evaluation(both):
    plots = re.findall(r"(?s)<svg.*?</svg>", both)
    shown = [plot for plot in plots if ">loss/lm<" in plot]
    assert len(shown) == 1
    for label in ("gpt, training", "gpt, evaluation", "gptc, training", "gptc, evaluation"):
        assert f">{label}<" in shown[0]
    assert any(">bits_per_byte<" in plot for plot in plots)


def test_the_page_loads_nothing_from_elsewhere(both):
    page = Page(both)
    assert page.addresses and all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "@import" not in both and not re.search(r"url\((?!#)", both)
    assert "width=device-width" in both and "@media print" in both


def test_samples_are_text(both):
    assert "&lt;b&gt;A sample&lt;/b&gt; of step 40\n  &amp; more" in both and "<b>" not in both


def test_keys_in_which_runs_differ(both):
    rows = Page(both).rows
    assert ["lr", "0.001", "0.002"] in rows
    assert ["n_layer", "2"] in rows


def test_one_run_shows_its_groups(runs, tmp_path, capsys):
    path = tmp_path / "one.html"
    assert main.main(["--report", runs[0], "--out", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(path), "runs": ["gpt"]}
    assert ">norms<" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments, line", [
    (["nowhere"], "--report nowhere: no config.json there; give the directory of a run"),
    (["{0}", "{0}/"], "--report: a run is named twice"),
    (["{0}", "--out", "{0}/no/such/report.html"], "report.html cannot be written")])
def test_refusals(runs, tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert main.main(["--report", *(text.format(*runs) for text in arguments)]) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and line in errors[0]
    assert not list(tmp_path.iterdir())


def test_a_damaged_line_is_named(runs, tmp_path, capsys):
    directory = report_runs.write(tmp_path / "damaged")
    with (directory / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    assert main.main(["--report", str(directory), "--out", str(tmp_path / "x.html")]) == 2
    assert "metrics.jsonl: line 3 is no JSON" in capsys.readouterr().err
