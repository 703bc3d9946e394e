"""Probes of what pictures show: right by other programs' distances and by pictures, and fair."""

import os
import sys

import numpy as np
import pytest
from test_training_tasks import ENCODER, make_config, write

from configs.values import PROBES
from training import probes

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import scenes_probes  # noqa: E402
from scene_checks import delta  # noqa: E402
from scenes_render import render, shape_similarity  # noqa: E402
from scenes_sample import Scene, Thing, sample, stream  # noqa: E402
from scenes_world import BASIC_COLOURS, BASIC_SHAPES, COLOURS, SHAPES  # noqa: E402


@pytest.fixture(scope="module")
def made():
    """The lines of each relation."""
    return {name.split("/")[1]: values for name, values in scenes_probes.files().items()}


def test_the_formats_are_those_of_the_probes(made, tmp_path):
    """training/probes.py reads them, and a model that says what pictures show scores 1."""
    assert set(made) == set(PROBES) - {"material"}
    assert tuple(scenes_probes.CODA) == probes.RELATIONS["coda"].candidates
    for relation, values in made.items():
        entry = f"{relation}:{write(tmp_path / 'world.jsonl', values)}"
        found = probes.read(entry)
        file = probes.File(entry, ENCODER, make_config(tmp_path, n_ctx=128))
        sums = np.concatenate([np.log1p(probe.target) for probe in found
                               for _ in probe.templates])
        scores = file.scores(sums, None)
        assert scores["acc"] == 1 and scores["cut"] == 0, relation
        if relation == "coda":
            assert scores["spearman"] == scores["kendall"] == pytest.approx(1)
        if "size" not in relation:
            assert scores["told"]["items"] + scores["untold"]["items"] == scores["items"]


def test_colours_are_ranked_by_their_distances(made):
    for line in made["coda"]:
        word = line["class_id"]
        away = [float(delta(COLOURS[word].rgb, COLOURS[colour].rgb))
                for colour in scenes_probes.CODA]
        shares = np.array(line["label"])[np.argsort(away)]
        # Things of a word differ a little, so that colours as near as each other may change places.
        assert np.all(np.diff(shares) < 0.005) and shares[0] == shares.max() > 0.4, word
        assert sum(line["label"]) == pytest.approx(1, abs=1e-3)
        assert line["told"] == COLOURS[word].told and line["text"].startswith(f"{word} ")
    assert len({line["class_id"] for line in made["coda"]}) > 25


@pytest.mark.parametrize("about", ["color", "shape"])
def test_pairs_are_right_and_fair(made, about):
    """The answer is the word that looks more alike, and each is the wrong one as often as right."""
    words, basic = (COLOURS, BASIC_COLOURS) if about == "color" else (SHAPES, BASIC_SHAPES)

    def distance(one, other):
        return (float(delta(COLOURS[one].rgb, COLOURS[other].rgb)) if about == "color"
                else 1 - shape_similarity(one, other))

    for line in made[about]:
        word = line["sub"].removesuffix(" shape")
        assert distance(word, line["obj"]) < 0.7 * distance(word, line["alt"])
        assert {line["obj"], line["alt"]} <= set(basic) and word not in basic
        assert line["told"] == words[word].told
    for told in (True, False):
        lines = [line for line in made[about] if line["told"] == told]
        assert sorted(line["obj"] for line in lines) == sorted(line["alt"] for line in lines)
        assert len(lines) > 15


def test_larger_things_cover_more_of_pictures(made):
    """Counted in pictures of each thing alone, black on white."""
    covered = {shape: [] for shape in SHAPES}
    for number in range(400):
        for thing in sample(stream("other", number)).things:
            alone = Scene("light", (255,) * 3, (Thing("black", (), (0,) * 3, *thing[3:]),), False)
            covered[thing.shape].append(np.mean(render([alone]) < 128))
    mean = {shape: np.mean(values) for shape, values in covered.items()}
    for larger, smaller in zip(made["size_larger"], made["size_smaller"], strict=True):
        assert larger["sub"] == smaller["sub"] and larger["obj"] == smaller["alt"]
        assert mean[larger["obj"]] < mean[larger["sub"]] < mean[smaller["obj"]]
    assert len({line["sub"] for line in made["size_larger"]}) > 5
