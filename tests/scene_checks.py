"""An independent reading of captions: whether what they say is true of a scene.

Colours are compared by an own Lab conversion, places by coordinates, phrases found by patterns.
"""

import functools
import os
import re
import sys
from collections import Counter

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
from scenes_captions import captions  # noqa: E402
from scenes_sample import picture_scene, stream  # noqa: E402
from scenes_world import COLOURS, SHAPES  # noqa: E402

NUMBERS = {"one": 1, "two": 2, "three": 3}
BASIC = [word for word, colour in COLOURS.items() if not colour.split]
SHAPE_OF = {**{word: word for word in SHAPES}, **{s.plural: word for word, s in SHAPES.items()}}
ALIKE = {"disc": "circle", "box": "square"}  # drawn by the same outline
ISH = {"reddish": "red", "orangey": "orange", "yellowish": "yellow", "greenish": "green",
       "tealish": "teal", "bluish": "blue", "purplish": "purple", "pinkish": "pink",
       "brownish": "brown", "grayish": "gray", "whitish": "white", "blackish": "black"}
SIZE_OF = {"small": "small", "little": "small", "tiny": "small", "big": "big", "large": "big",
           "huge": "big"}
COLOUR = "|".join(COLOURS)
SHAPE = "|".join(sorted(SHAPE_OF, key=len, reverse=True))
PLACE = r"(?: (?:at|in|on|near) the ((?:top|upper|bottom|lower)? ?(?:left|right|top|bottom|center" \
        r"|middle))(?: corner)?)?"
NOUN = re.compile(rf"(?:\b({'|'.join(SIZE_OF)}) )?(?:\b({'|'.join(ISH)}) )?(?:\b({COLOUR}) )?"
                  rf"\b({SHAPE})\b(?: between (\w+) and (\w+) in color)?{PLACE}")
DENIED_SHAPE = re.compile(rf"\b(?:no|not an?|without an?|nothing here is an?) ({SHAPE})\b")
DENIED_COLOUR = re.compile(rf"\bnothing (?:here is |in this picture is |is )?({COLOUR})\b")
NUMBERED = re.compile(rf"\b(one|two|three) (?:({COLOUR}) )?({SHAPE}|shapes?)\b")
WHERE = {"left": "left", "right": "right", "above": "above", "over": "above", "below": "below",
         "under": "below", "inside": "inside", "within": "inside"}
RELATED = re.compile(r"^(.*?)(?: is)? (?:to the )?(left|right|above|over|below|under|inside"
                     r"|within)(?: of)? ((?:an?|the) .*)$")


def lab(rgb):
    """CIE Lab of sRGB [..., 3] in 0–255, written after CIE 15 and IEC 61966-2-1."""
    v = np.asarray(rgb, np.float64) / 255
    v = np.where(v > 0.04045, ((v + 0.055) / 1.055) ** 2.4, v / 12.92)
    xyz = v @ np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                        [0.0193339, 0.1191920, 0.9503041]]).T / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]),
                     200 * (f[..., 1] - f[..., 2])], -1)


def delta(one, other):
    return np.linalg.norm(lab(one) - lab(other), axis=-1)


@functools.cache
def basics_by_distance(rgb):
    return sorted(BASIC, key=lambda word: delta(rgb, COLOURS[word].rgb))


def outline(word):
    return ALIKE.get(SHAPE_OF[word], SHAPE_OF[word])


def lies(thing, place):
    """Whether a thing is at a place named in English, by its centre alone."""
    words = set(place.replace("upper", "top").replace("lower", "bottom").split())
    for word, value in (("left", -thing.x), ("right", thing.x), ("top", -thing.y),
                        ("bottom", thing.y)):
        if (word in words) != (value > 0.2):
            return False
    return True


def matching(scene, phrase):
    """The numbers of the things that a match of NOUN is true of."""
    size, ish, colour, shape, near, far, place = phrase.groups()
    found = []
    for number, thing in enumerate(scene.things):
        nearest = basics_by_distance(tuple(thing.rgb))
        between = (near, far) if near else (colour, ISH[ish]) if ish else None
        if between:
            right = not thing.colour and between == tuple(nearest[:2])
        else:
            right = not colour or colour in (thing.colour, nearest[0])
        if (right and outline(shape) == outline(thing.shape)
                and (not size or SIZE_OF[size] == thing.size)
                and (not place or lies(thing, place))):
            found.append(number)
    return found


def check(scene, words):
    """Asserts that what a caption or text says is true of the scene; counts what was checked."""
    checked = Counter()
    for shape in DENIED_SHAPE.findall(words):
        assert outline(shape) not in {outline(t.shape) for t in scene.things}, (words, scene)
        checked["denied shape"] += 1
    for colour in DENIED_COLOUR.findall(words):
        assert min(delta(t.rgb, COLOURS[colour].rgb) for t in scene.things) >= 40, (words, scene)
        checked["denied colour"] += 1
    words = DENIED_SHAPE.sub(";", DENIED_COLOUR.sub(";", words))
    for number, colour, shape in NUMBERED.findall(words):
        things = [t for t in scene.things
                  if (not colour or t.colour == colour)
                  and (shape.startswith("shape") or outline(t.shape) == outline(shape))]
        assert len(things) == NUMBERS[number], (words, scene)
        checked["number"] += 1
    for phrase in NOUN.finditer(words):
        assert matching(scene, phrase), (words, phrase.group(), scene)
        checked["noun"] += 1
    related = RELATED.match(words)
    parts = [NOUN.search(related[1]), NOUN.search(related[3])] if related else []
    if all(parts) and parts and not re.search(" (at|in|on) the ", words):
        one, other = parts
        relation = WHERE[related[2]]
        assert any(holds(scene, relation, a, b) for a in matching(scene, one)
                   for b in matching(scene, other) if a != b), (words, scene)
        checked[relation] += 1
    return checked


def holds(scene, relation, one, other):
    a, b = scene.things[one], scene.things[other]
    if relation == "inside":
        return ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 < 0.05 and a.radius < b.radius / 1.9
    return {"left": b.x - a.x, "right": a.x - b.x, "above": b.y - a.y,
            "below": a.y - b.y}[relation] >= 0.3


def pictures(split, number, seed=3):
    streams = [stream(seed, split, i) for i in range(number)]
    made = [picture_scene(rng, split) for rng in streams]
    return made, [captions(rng, scene, 6) for rng, scene in zip(streams, made, strict=True)]
