"""Hard groups: four pictures that differ in one attribute, and what they leave as it was."""

import functools
import hashlib
import json
import os
import sys
from collections import Counter

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import scenes_cloze  # noqa: E402
import scenes_groups  # noqa: E402
import scenes_text  # noqa: E402
from scene_checks import check, delta  # noqa: E402
from scenes_captions import captions  # noqa: E402
from scenes_render import render  # noqa: E402
from scenes_sample import has_held_out, picture_scene, split_of, stream  # noqa: E402
from scenes_world import held_out  # noqa: E402

# SHA-256 of the cloze files of every world: figures of models
# are compared on these items.
FROZEN = {
    "cloze_dev": "f2a93352220a31c44d82105734f613694496558d4c82c15495f6549c4546442d",
    "cloze_test": "504357fb908e77f8a0f80b4d2550951201e4514bef17f34bc3ebdfb4d87dc57c",
    "statements_dev": "1f3b80d8fa471baa3c1f246f6da194b9fc1a23ca2fd8ca78a1e689be7c07fb2b",
    "statements_test": "2ad057afadab67fc1ca0f0031a85fa8ca5e430e1d3314af44a2399a3a5c9f1c8",
    "stories_dev": "acb7c81b32221645ad6357f4d3ba18641d1b8570dbecc5a7e95c0d73b102c951",
    "stories_test": "8b196f40cd7c51ae67a19c43b37964feee2784b538b9007bbe20ed7b3d74f4f4"}
MAKERS = {"cloze": scenes_cloze.items,
          "statements": functools.partial(scenes_cloze.items, statements=True),
          "stories": scenes_text.story_items}


def scenes(split, number, share, seed=4):
    return [scenes_groups.scene_of(seed, split, i, share)[0] for i in range(number)]


def differing(group):
    """The attributes in which scenes differ, and the number of things in which they do."""
    assert len({(s.tone, tuple(s.backdrop), s.nested, len(s.things)) for s in group}) == 1
    attributes, things = set(), set()
    for place, same in enumerate(zip(*(scene.things for scene in group), strict=True)):
        for names in (("shape",), ("colour", "between", "rgb"), ("place", "x", "y")):
            values = {tuple(getattr(thing, name) for name in names) for thing in same}
            if len(values) > 1:
                assert len(values) == 4
                attributes.add(names[0])
                things.add(place)
        assert len({(t.size, t.radius, t.turned) for t in same}) == 1
    return attributes, things


@pytest.fixture(scope="module")
def groups():
    """Groups by split, the training ones all hard."""
    found = {}
    for split, number in (("train", 800), ("val", 160), ("heldout", 160)):
        made = scenes(split, number, 1.0)
        found[split] = [made[i:i + 4] for i in range(0, number, 4)]
    return found


def test_groups_differ_in_one_attribute_mostly_shape(groups):
    kinds = Counter()
    for group in groups["train"]:
        (attribute,), things = differing(group)
        nested_place = attribute == "place" and group[0].nested
        assert len(things) == (2 if nested_place else 1)
        kinds[attribute] += 1
    assert kinds["shape"] > len(groups["train"]) / 2, kinds
    assert set(kinds) == {"shape", "colour", "place"}


@pytest.mark.parametrize("split", ["val", "heldout"])
def test_only_training_pictures_come_in_hard_groups(split):
    assert scenes(split, 40, 1.0) == [picture_scene(stream(4, split, i), split) for i in range(40)]


def test_pictures_of_a_group_can_be_told_apart(groups):
    for group in groups["train"]:
        images = render(group).astype(int)
        for one in range(4):
            for other in range(one):
                assert (abs(images[one] - images[other]).max(-1) > 6).sum() >= 2
    for group in groups["train"]:
        if differing(group)[0] == {"colour"}:
            (place,) = differing(group)[1]
            colours = [scene.things[place].rgb for scene in group]
            assert min(delta(a, b) for i, a in enumerate(colours) for b in colours[:i]) >= 24.9


def test_captions_of_groups_are_true(groups):
    checked = Counter()
    for made in groups.values():
        for number, scene in enumerate(scene for group in made for scene in group):
            for line in captions(stream("captions", number), scene, 6):
                checked += check(scene, line)
    assert checked["noun"] > 1000 and checked["inside"] > 10, checked


def test_groups_keep_to_their_split(groups):
    for split, made in groups.items():
        for group in made:
            assert {split_of(scene) for scene in group} == {split}
    held = set(held_out())
    for group in groups["heldout"]:
        for scene in group:
            assert has_held_out(scene)
            assert {(t.colour, t.shape) for t in scene.things} & held
    with_held = [bool({(t.colour, t.shape) for t in scene.things} & held)
                 for group in groups["train"] for scene in group]
    assert 0.05 < sum(with_held) / len(with_held) < 0.3


def test_the_share_of_hard_groups():
    made = scenes("train", 1200, 0.5)
    single = [picture_scene(stream(4, "train", i), "train") for i in range(1200)]
    assert scenes("train", 1200, 0.0) == single
    groups = [(made[i:i + 4], single[i:i + 4]) for i in range(0, 1200, 4)]
    hard = [found for found, alone in groups if found != alone]
    assert 120 < len(hard) < 180
    for group in hard:
        assert len(differing(group)[0]) == 1
    # a picture depends on its number alone, not on which others are made with it
    scenes_groups._group_of.cache_clear()
    assert scenes_groups.scene_of(4, "train", 602, 0.5)[0] == made[602]
    assert scenes("train", 40, 0.5, seed=5) != made[:40]


def test_cloze_items_are_frozen():
    for name, wanted in FROZEN.items():
        maker, split = name.split("_")
        lines = "".join(json.dumps(item) + "\n" for item in MAKERS[maker](split, 1600))
        assert hashlib.sha256(lines.encode()).hexdigest() == wanted, name
