"""Probes of visual knowledge: CoDa's and ViComTe's files, their scores, and what is refused."""

import json

import numpy as np
import pytest
from test_training_tasks import ENCODER, continuation, gpt2, make_config, write  # noqa: F401

from configs.errors import UserError
from configs.values import task_name
from training import probes, rank_correlation, tasks

COLOURS = probes.RELATIONS["coda"].candidates
# As the hub has CoDa's lines, but for the words.
CODA = [
    {"class_id": "/m/1", "display_name": "Pigs", "ngram": "pig", "label": [0.0] * 6 + [1.0] * 2 + [
        0.0] * 3, "object_group": 1, "text": text, "template_group": group, "template_idx": number}
    for number, (group, text) in enumerate([
        (1, "Most pigs are [MASK]."), (0, "a photo of my pig."), (1, "All pigs are [MASK] today.")])
] + [{"class_id": "/m/2", "ngram": "sea", "label": [0, 8, 0, 1.5, 2, 0, 0, 0, 0, 0.5, 0],
      "object_group": 0, "text": "This sea is [MASK]."}]
SHAPES = {"donut": [6, 0, 0, 0, 0, 0, 0, 148, 0, 11, 0, 0],
          "kite": [5, 0, 0, 2, 0, 5, 4, 21, 0, 11, 0, 14]}
SIZES = [{"sub": "bear", "obj": "ant", "alt": "sky"}, {"sub": "cup", "obj": "bee", "alt": "bus"}]


def stats():
    return pytest.importorskip("scipy.stats", reason="compares with scipy")


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_rank_correlations_equal_scipy(levels):
    random = np.random.RandomState(levels)
    for size in (2, 3, 11, 18) * 5:
        x, y = random.randint(0, levels, (2, size)) / 7
        for ours, theirs in [(rank_correlation.spearman, stats().spearmanr),
                             (rank_correlation.kendall, stats().kendalltau)]:
            if len(set(x)) == 1 or len(set(y)) == 1:
                assert np.isnan(ours(x, y))
            else:
                assert ours(x, y) == pytest.approx(theirs(x, y)[0], abs=1e-12)


def expected(log_likelihoods, templates, candidates, target):
    """(top-1, Spearman, Kendall) of an object by transformers and scipy."""
    shares = []
    for template in templates:
        before, after = template.split(" [MASK]")
        found = np.exp([continuation(log_likelihoods, before, f" {candidate}{after}")[0]
                        for candidate in candidates])
        shares.append(found / found.sum())
    mean = np.mean(shares, axis=0)
    top = target[int(np.argmax(mean))] == max(target)
    return float(top), stats().spearmanr(mean, target)[0], stats().kendalltau(mean, target)[0]


def test_coda_equals_transformers_and_scipy(gpt2, tmp_path):  # noqa: F811
    directory, log_likelihoods = gpt2
    path = write(tmp_path / "default_test.jsonl", CODA)
    found = tasks.Tasks(make_config(directory, eval_tasks=[f"coda:{path}"]), ENCODER).scores()
    assert list(found) == ["coda_default_test"]
    scores = found["coda_default_test"]
    pig = expected(log_likelihoods, [CODA[0]["text"], CODA[2]["text"]], COLOURS, CODA[0]["label"])
    sea = expected(log_likelihoods, [CODA[3]["text"]], COLOURS, CODA[3]["label"])
    names = ("acc", "spearman", "kendall")
    for place, values in [(scores, np.mean([pig, sea], axis=0)), (scores["about"]["multi"], pig),
                          (scores["about"]["single"], sea)]:
        assert [place[name] for name in names] == pytest.approx(list(values), abs=1e-5)
    assert scores["items"] == 2 and scores["chance"] == pytest.approx((2 / 11 + 1 / 11) / 2)
    assert tasks.phrases(found) == [f"coda_default_test spearman {scores['spearman']:.3f} "
                                    f"acc {scores['acc']:.3f}"]


def test_vicomte_equals_transformers_and_scipy(gpt2, tmp_path):  # noqa: F811
    directory, log_likelihoods = gpt2
    paths = [f"shape:{write(tmp_path / 'shape-dist.jsonl', [SHAPES])}",
             f"size_larger:{write(tmp_path / 'test.jsonl', SIZES)}"]
    found = tasks.Tasks(make_config(directory, eval_tasks=paths), ENCODER).scores()
    shape, size = found["shape_shape-dist"], found["size_larger_test"]
    relation = probes.RELATIONS["shape"]
    values = [expected(log_likelihoods, [t.format(name) for t in relation.templates],
                       relation.candidates, target) for name, target in SHAPES.items()]
    assert [shape[name] for name in ("acc", "spearman", "kendall")] == pytest.approx(
        list(np.mean(values, axis=0)), abs=1e-5)
    templates = probes.RELATIONS["size_larger"].templates
    right = [expected(log_likelihoods, [t.format(pair["sub"]) for t in templates],
                      (pair["obj"], pair["alt"]), (1, 0))[0] for pair in SIZES]
    assert size == {"items": 2, "acc": np.mean(right), "chance": 0.5, "cut": 8}


def test_a_model_that_knows_scores_one(tmp_path):
    """With likelihoods in the order of the labels all scores are 1, in the reverse one -1 and 0."""
    entry = f"shape:{write(tmp_path / 'dist.jsonl', [SHAPES])}"
    file = probes.File(entry, ENCODER, make_config(tmp_path, n_ctx=64))
    label = np.log1p([counts for counts in SHAPES.values() for _ in range(2)]).reshape(-1)
    scores = file.scores(label, None)
    assert (scores["spearman"], scores["kendall"], scores["acc"]) == pytest.approx((1, 1, 1))
    scores = file.scores(-label, None)
    assert (scores["spearman"], scores["kendall"], scores["acc"]) == pytest.approx((-1, -1, 0))


def test_a_label_without_order_has_no_correlation(tmp_path):
    entry = f"material:{write(tmp_path / 'm.jsonl', [{'cup': [1] * 18}])}"
    file = probes.File(entry, ENCODER, make_config(tmp_path, n_ctx=64))
    scores = file.scores(np.arange(36.0), None)
    assert "spearman" not in scores and scores["acc"] == scores["chance"] == 1
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize(("entry", "name"), [
    ("coda:gs://a/default_test.jsonl", "coda_default_test"), ("color:single/test.jsonl",
                                                              "color_test"),
    ("size_smaller:test.jsonl", "size_smaller_test"), ("gs://a/b.jsonl", "b"),
    ("lambada:x/coda.jsonl", "coda")])
def test_names_of_scores(entry, name):
    assert task_name(entry) == name


@pytest.mark.parametrize(("entry", "lines", "wanted"), [
    ("coda", ["x"], "is no line of coda"),
    ("coda", [CODA[1]], "has no probes"),
    ("coda", [{**CODA[0], "label": [1, 2]}], "pig must have 11 numbers from 0, not all 0"),
    ("coda", [{**CODA[0], "label": [0] * 11}], "pig must have 11 numbers"),
    ("coda", [{**CODA[0], "label": [1, True] + [0] * 9}], "pig must have 11 numbers"),
    ("coda", [{**CODA[0], "label": 3}], "pig must have 11 numbers"),
    ("coda", [CODA[0], {**CODA[2], "label": [1] * 11}], ":2: label of pig is another one than in"),
    ("coda", [{**CODA[0], "ngram": 3}], "ngram must be text"),
    ("color", [{"rose": [1] * 11}], "rose must have 12 numbers"),
    ("color", [CODA[0]], "is no line of color, which has sub, obj and alt, or objects with"),
    ("color", [{"sub": "rose", "obj": "red", "alt": "red"}], "obj and alt are both 'red'"),
    ("color", [SIZES[0], {"rose": [1] * 12}], ":2: has another form than the lines before"),
    ("size_larger", [{"rose": [1] * 12}], "is no line of size_larger, which has sub, obj and alt"),
    ("shape", [SIZES[0] | {"sub": "ä"}], "x.jsonl:1: ")])
def test_lines_that_are_no_probes(tmp_path, entry, lines, wanted):
    path = write(tmp_path / "x.jsonl", lines)
    with pytest.raises(UserError) as caught:
        tasks.Tasks(make_config(tmp_path, eval_tasks=[f"{entry}:{path}"]), ENCODER)
    text = str(caught.value)
    assert text.startswith(f"eval_tasks: {path}") and wanted in text and "\n" not in text


def test_files_that_are_not_there_or_no_json(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{\n")
    for name, wanted in [("bad.jsonl", "bad.jsonl:1: no JSON"), ("no.jsonl", "cannot be read")]:
        with pytest.raises(UserError, match=wanted):
            probes.read(f"coda:{tmp_path / name}")
