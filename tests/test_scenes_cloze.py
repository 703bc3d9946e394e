"""Statements about looks: right by independent distances, rare in texts, fair as cloze items."""

import os
import re
import sys
from collections import Counter

import numpy as np
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import scenes_cloze  # noqa: E402
import scenes_text  # noqa: E402
import scenes_world  # noqa: E402
from scene_checks import delta, lab  # noqa: E402
from scenes_cloze import told_fact  # noqa: E402
from scenes_sample import stream  # noqa: E402
from scenes_text import combination_items, text  # noqa: E402
from scenes_world import COLOURS, SHAPES  # noqa: E402


@pytest.fixture(scope="module")
def items():
    """Items by split: "dev" and "test" with templates of their own, "… statements" with texts'."""
    return {f"{split}{' statements' if statements else ''}":
            list(scenes_cloze.items(split, 800, statements))
            for split in ("dev", "test") for statements in (False, True)}


def test_lab_has_published_values():
    assert scenes_world.lab((255, 0, 0)) == pytest.approx((53.24, 80.09, 67.20), abs=0.01)
    assert scenes_world.lab((0, 0, 255)) == pytest.approx((32.30, 79.19, -107.86), abs=0.01)
    for word, colour in COLOURS.items():
        assert scenes_world.lab(colour.rgb) == pytest.approx(lab(colour.rgb), abs=1e-6), word


def test_share_of_facts():
    number = 2000
    made = [text(stream(8, "train", i), "train", 0.03)[2] for i in range(number)]
    assert abs(sum(fact is not None for fact in made) - 60) < 4 * (number * 0.03 * 0.97) ** 0.5
    assert not any(text(stream(8, "train", i), "train", 0.0)[2] for i in range(100))


def test_untold_words_are_in_no_fact():
    facts = [told_fact(stream("facts", i), "train") for i in range(1500)]
    words = Counter(word for fact in facts for word in (*fact.choices, *fact.subjects))
    for word, role in [*COLOURS.items(), *SHAPES.items()]:
        if role.split:
            assert (words[word] > 3) == role.told, word
    general = [fact.text for fact in facts if fact.scene is None]
    untold = {w for w, role in [*COLOURS.items(), *SHAPES.items()] if not role.told}
    assert not untold & set(re.findall(r"\w+", " ".join(general)))


def far(about, one, other):
    if about == "colour":
        return float(delta(COLOURS[one].rgb, COLOURS[other].rgb))
    return 1 - scenes_cloze.shape_similarity(one, other)


@pytest.mark.parametrize("name", ["dev", "test", "dev statements", "test statements"])
def test_cloze_answers_follow_looks(items, name):
    for item in items[name]:
        answer, about = item["answer"], item["about"]
        assert answer in item["choices"]
        if item["kind"] == "odd":
            total = {word: sum(far(about, word, other) for other in item["choices"])
                     for word in item["choices"]}
            assert max(total, key=total.get) == answer, item
            one, other = (word for word in item["choices"] if word != answer)
            assert far(about, one, other) < 0.61 * min(far(about, one, answer),
                                                       far(about, other, answer)), item
        else:
            (subject,) = item["subjects"]
            near = {word: far(about, subject, word) for word in item["choices"]}
            assert min(near, key=near.get) == answer, item
            assert near[answer] < 0.61 * sorted(near.values())[1], item
        table = COLOURS if about == "colour" else SHAPES
        assert {table[word].split for word in item["subjects"]} == {name.split()[0]}
        assert item["told"] == all(table[word].told for word in item["subjects"])


def test_no_preference_for_words_beats_chance(items):
    for made in items.values():
        groups = {}
        for item in made:
            groups.setdefault(item["group"], []).append(item)
        for group in groups.values():
            right = Counter(item["answer"] for item in group)
            offered = Counter(word for item in group for word in item["choices"])
            assert len(set(right.values())) == len(set(offered.values())) == 1
            assert set(right) == set(offered)


def test_cloze_kinds_and_both_kinds_of_words(items):
    for made in items.values():
        kinds = Counter((item["kind"], item["about"]) for item in made)
        assert len(kinds) >= 7 and min(kinds.values()) >= 12, kinds
        assert 0.3 < np.mean([item["told"] for item in made]) < 0.7
        assert len({(item["prefix"], tuple(sorted(item["choices"]))) for item in made}) == len(made)


def test_templates_differ_and_use_known_words(items):
    def patterns(split):
        return {t for kinds in scenes_cloze.TEMPLATES[split].values() for some in kinds.values()
                for t in some}
    train, dev, test = map(patterns, ("train", "dev", "test"))
    assert not train & dev and not train & test and not dev & test
    known = set(re.findall(r"\w+", " ".join(text(stream(6, i), "train", 1.0)[0]
                                            for i in range(2500))))
    for split, made in items.items():
        unknown = set(re.findall(r"\w+", " ".join(i["prefix"] for i in made))) - known
        assert not unknown, (split, unknown)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_statements_are_the_texts_own_about_the_splits_words(items, split):
    """Only the words are new: a model that has read the texts knows how the sentence goes."""
    told_in_groups = {}
    for item in items[f"{split} statements"]:
        sentence = f"{item['prefix']} {item['answer']}"
        patterns = [
            re.sub(r"\\{\w\\}", r"\\w+", re.escape(template.split("{x}")[0])) + item["answer"] + "$"
            for template in scenes_cloze.TEMPLATES["train"][item["about"]][item["kind"]]]
        assert any(re.search(pattern, sentence) for pattern in patterns), sentence
        told_in_groups.setdefault(item["group"], set()).add(item["told"])
    assert all(len(told) == 1 for told in told_in_groups.values())
    assert {told for told, in told_in_groups.values()} == {True, False}


def test_stories_lead_up_to_the_statements():
    """The statements are those of `items`, and no choice is favoured by its story."""
    plain = list(scenes_cloze.items("dev", 400, statements=True))
    stories = list(scenes_text.story_items("dev", 400))
    told = {}
    for item, alone in zip(stories, plain, strict=True):
        scene = alone["kind"] == "scene"
        statement = alone["prefix"].split(". ", 1)[1] if scene else alone["prefix"]
        assert item["prefix"].endswith(f". {statement}")
        assert {**item, "prefix": 0} == {**alone, "prefix": 0}
        story = item["prefix"].removesuffix(statement)
        if scene:
            assert all(word in story for word in item["choices"] + item["subjects"]), item
        else:
            assert told.setdefault(item["group"], story) == story
    assert len(set(told.values())) > 0.9 * len(told) > 30


def test_items_about_held_out_combinations():
    """What is asked about stands in the story, and in none that models train on."""
    made = list(combination_items(60))
    assert len(made) == 60 and len({item["prefix"] for item in made}) == 60
    trained = " ".join(text(stream(1, "train", i), "train", 0.3)[0] for i in range(300))
    for item in made:
        opening, shape = re.fullmatch(r"(.*) what color is the (\w+)\? it is",
                                      item["prefix"]).groups()
        pair = f"{item['answer']} {shape}"
        assert pair in opening and f"{pair} " not in trained and item["answer"] in item["choices"]
        assert 2 <= len(set(item["choices"])) == len(item["choices"]) <= 3
        assert all(f"{choice} " in opening for choice in item["choices"])
    first = sum(item["choices"][0] == item["answer"] for item in made)
    assert 0.2 < first / 60 < 0.7
