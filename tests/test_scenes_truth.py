"""Captions and texts of the picture–caption world are true, and keep to their split."""

import os
import re
import sys
from collections import Counter

import numpy as np
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import scene_checks  # noqa: E402
import scenes_cloze  # noqa: E402
import scenes_world  # noqa: E402
from scene_checks import (  # noqa: E402
    COLOUR,
    ISH,
    NOUN,
    NUMBERS,
    SHAPE,
    SHAPE_OF,
    SIZE_OF,
    WHERE,
    check,
    delta,
    matching,
    pictures,
)
from scenes_render import render  # noqa: E402
from scenes_sample import picture_scene, stream  # noqa: E402
from scenes_text import text  # noqa: E402
from scenes_world import COLOURS, SHAPES  # noqa: E402


@pytest.fixture(scope="module")
def train():
    return pictures("train", 1500)


@pytest.fixture(scope="module")
def texts():
    return {split: [text(stream(5, split, i), split, 0.2) for i in range(number)]
            for split, number in (("train", 1500), ("val", 200), ("heldout", 150))}


def test_captions_are_true_of_the_scenes(train):
    checked = Counter()
    for scene, lines in zip(*train, strict=True):
        for line in lines:
            checked += check(scene, line)
    for what in ("denied shape", "denied colour", "number", "noun", "left", "right", "above",
                 "below", "inside"):
        assert checked[what] >= (20 if what == "inside" else 100), checked


def test_the_checker_finds_lies(train):
    """Captions of another scene are mostly false of this one."""
    made, lines = train
    wrong = 0
    for scene, other in zip(made[:200], lines[1:201], strict=True):
        try:
            check(scene, other[0])
        except AssertionError:
            wrong += 1
    assert wrong > 190


def test_first_caption_names_all_things(train):
    for scene, lines in zip(*train, strict=True):
        found = [p for p in NOUN.finditer(lines[0])]
        assert len(found) == len(scene.things)
        assert all(p[1] and (p[3] or p[5]) for p in found)
        assert set().union(*(matching(scene, p) for p in found)) == set(range(len(scene.things)))


def test_denied_colours_are_not_in_the_picture(train):
    made, lines = train
    seen = 0
    for said, image in zip(lines, render(made), strict=True):
        for colour in set(scene_checks.DENIED_COLOUR.findall(". ".join(said))):
            near = delta(image.reshape(-1, 3), COLOURS[colour].rgb) < 15
            assert near.mean() < 0.04  # edges blend two colours
            seen += 1
    assert seen > 50


def test_texts_are_true_of_the_scenes(texts):
    checked = Counter()
    for words, scene, fact in (entry for made in texts.values() for entry in made):
        words = words.replace(fact.text, "") if fact else words
        words = re.sub(rf"(looks for|is there|wants) an? ({SHAPE})", "", words)
        words = re.sub(rf"(looks for something|is anything) ({COLOUR})", "", words)
        for sentence in re.split(r"[.?:] ?", words):
            checked += check(scene, sentence)
    for what in ("denied shape", "denied colour", "number", "noun", "left", "above"):
        assert checked[what] >= 100, checked


def test_held_out_combinations_are_in_pictures_and_not_in_texts(train, texts):
    held = set(scenes_world.held_out())
    assert 0.05 < len(held) / (len(COLOURS) * len(SHAPES)) < 0.12
    pair = re.compile(rf"\b({COLOUR}) ({SHAPE})\b")

    def told(words):
        return {(colour, SHAPE_OF[shape]) for colour, shape in pair.findall(words)} & held
    assert not any(told(words) for split in ("train", "val") for words, _, _ in texts[split])
    assert all(told(words) for words, _, _ in texts["heldout"])

    def shown(made):
        return [{(t.colour, t.shape) for t in scene.things} & held for scene in made]
    assert 0.05 < np.mean([bool(found) for found in shown(train[0])]) < 0.3
    assert all(shown(pictures("heldout", 100)[0]))


def test_every_word_is_used(train, texts):
    words = Counter(re.findall(r"\w+", " ".join(line for lines in train[1] for line in lines)))
    told = Counter(re.findall(r"\w+", " ".join(words for words, _, _ in texts["train"])))
    for word in [*COLOURS, *SHAPES]:
        assert words[word] >= 20 and told[word] >= 5, word
    assert all(words[word] for word in ISH)
    for word in [*SIZE_OF, *WHERE, *NUMBERS, "upper", "lower", "corner", "middle", "center"]:
        assert words[word] >= 5, word
    assert told["rose"] < told["pink"]


def test_scenes_of_the_splits_differ(train, texts):
    def key(scene):
        return scene.nested, tuple(sorted((t.colour or str(sorted(t.between)), t.shape, t.size,
                                           t.place) for t in scene.things))
    keys = {"train": {key(s) for s in train[0]} | {key(s) for _, s, _ in texts["train"]}}
    for split in ("val", "heldout"):
        keys[split] = ({key(s) for s in pictures(split, 200)[0]}
                       | {key(s) for _, s, _ in texts[split]})
    for split in ("dev", "test"):
        rng = stream("splits", split)
        groups = [scenes_cloze.group(rng, split, "scene", "colour") for _ in range(20)]
        keys[split] = {key(fact.scene) for group in groups if group for fact in group}
    names = list(keys)
    assert all(len(keys[name]) > 10 for name in names)
    for i, one in enumerate(names):
        for other in names[i + 1:]:
            assert not keys[one] & keys[other], (one, other)


def test_a_text_tells_of_the_picture_of_its_number():
    same = [text(stream(1, "train", i), "train", 0)[1] == picture_scene(stream(1, "train", i),
                                                                        "train")
            for i in range(100)]
    assert 60 < sum(same) < 100
