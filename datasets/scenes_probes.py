"""What pictures show of words, in the formats of CoDa and ViComTe, for eval_tasks' probes.

CoDa (Paik et al. 2021) has colours of things as people see them, ViComTe (Zhang et al. 2022) pairs
of a right and a wrong colour, shape or size. Here both come from how the world is drawn, whatever
the seed, and never from texts. Words are the rare ones; "told" says whether training texts may
state facts about their looks.
"""

import itertools
import math

from scenes_cloze import TEMPLATES, is_clear, nearest
from scenes_render import silhouette
from scenes_sample import named_colour, sample, stream
from scenes_world import (
    COLOURS,
    LOOKS_LIKE,
    RARE_COLOURS,
    SHAPES,
    VERSION,
    colour_distance,
)

# CoDa's colours, in the order of its labels.
CODA = ["black", "blue", "brown", "gray", "green", "orange", "pink", "purple", "red", "white",
        "yellow"]
DRAWN, SCENES = 100, 1000  # things of a word, and scenes, that are looked at
PAIRS, TRIPLES = 16, 32  # of words: pairs of each kind, told and not; triples of sizes
CLEARLY_LARGER = 1.5  # of an area, so that a shape is said to be larger


def files():
    """{name: JSON values} of every file."""
    smaller, larger = zip(*sizes(), strict=True)
    return {f"probes/{relation}/world.jsonl": values for relation, values in (
        ("coda", list(coda())), ("color", list(pairs("colour"))), ("shape", list(pairs("shape"))),
        ("size_larger", list(larger)), ("size_smaller", list(smaller)))}


def coda():
    """CoDa's lines: of each word how often its things are taken for each colour.

    A thing is taken for a colour at a Lab distance d in proportion to exp(-(d / LOOKS_LIKE)² / 2).
    Words that are nearest to teal, which CoDa lacks, are left out. The sentences are the first of
    those that texts have for words that they tell of: what is asked shall be understood.
    """
    for word in RARE_COLOURS:
        if nearest("colour", word) not in CODA:
            continue
        rng, label = stream(VERSION, "probes", word), [0.0] * len(CODA)
        for _ in range(DRAWN):
            _, _, rgb = named_colour(rng, word)
            taken = [math.exp(-(colour_distance(rgb, colour) / LOOKS_LIKE) ** 2 / 2)
                     for colour in CODA]
            label = [total + x / sum(taken) / DRAWN for total, x in zip(label, taken, strict=True)]
        label = [round(share, 4) for share in label]
        for number, template in enumerate(TEMPLATES["train"]["colour"]["nearest"][:3]):
            yield {"class_id": word, "ngram": word, "label": label,
                   "text": template.format(w=word, x="[MASK]"), "template_idx": number,
                   "told": COLOURS[word].told}


def pairs(about):
    """ViComTe's lines of colours or shapes: of two words, each has the other's answer as its wrong
    one, so that no preference for an answer scores above chance."""
    words = COLOURS if about == "colour" else SHAPES
    for told in (True, False):
        found = [(one, other) for one, other in itertools.combinations(
            [word for word, role in words.items() if role.split and role.told == told], 2)
            if _differ(about, one, other)]
        rng = stream(VERSION, "probes", about, told)
        for chosen in rng.sample(found, min(PAIRS, len(found))):
            right = [nearest(about, word) for word in chosen]
            for word, obj, alt in zip(chosen, right, reversed(right), strict=True):
                yield {"sub": f"{word} shape" if about == "colour" else word, "obj": obj,
                       "alt": alt, "told": told}


def _differ(about, one, other):
    """Whether each of two words is clearly more like its own basic word than like the other's."""
    right = [nearest(about, word) for word in (one, other)]
    return right[0] != right[1] and all(
        is_clear(about, word, answer, [wrong])
        for word, answer, wrong in zip((one, other), right, reversed(right), strict=True))


def areas():
    """{shape: the mean area of its things in pictures}, of the frame's."""
    found = {shape: [] for shape in SHAPES}
    for number in range(SCENES):
        for thing in sample(stream(VERSION, "probes", "sizes", number)).things:
            # A silhouette has a radius of 0.8.
            found[thing.shape].append(silhouette(thing.shape).mean() * (thing.radius / 0.8) ** 2)
    return {shape: float(sum(values) / len(values)) for shape, values in found.items()}


def sizes():
    """ViComTe's lines of sizes, (what is smaller, what is larger) for the same three shapes.

    Each triple is asked both ways, so that no preference for an answer scores above chance in both.
    """
    area = areas()
    found = [(word, small, large) for word, small, large in itertools.permutations(SHAPES, 3)
             if area[small] * CLEARLY_LARGER <= area[word]
             and area[word] * CLEARLY_LARGER <= area[large]]
    for word, small, large in stream(VERSION, "probes", "sizes").sample(found, TRIPLES):
        yield ({"sub": word, "obj": large, "alt": small}, {"sub": word, "obj": small, "alt": large})
