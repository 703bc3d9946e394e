"""The vocabulary of the picture–caption world: words, what they look like, what is held out.

A colour word stands for an RGB value, a shape word for an outline (scenes_render.py). The basic
words are common; the others are rarer, and each has a role in the cloze tests:

* split: "train" (only ever the subject of facts told in training texts), "dev" or "test" (the
  subject of that split's cloze items);
* told: whether training texts may state facts about its looks. Of the dev and test words about
  half are never told about: how they look is shown by the captions' pictures alone.

The test words, their roles and the test templates (scenes_cloze.py) are frozen: a change is a new
VERSION, and figures of two versions are not comparable.
"""

import functools
import zlib
from typing import NamedTuple

VERSION = 1
HELD_OUT_ONE_IN = 12  # share of the colour–shape combinations that texts never mention
LOOKS_LIKE = 25.0  # Lab distance below which two colours may be taken for one another
CLEARLY_NOT = 40.0  # Lab distance from which a colour is clearly another


class Colour(NamedTuple):
    """A colour word: sRGB of 0–255, and its role (split is "" for basic words)."""
    rgb: tuple
    split: str
    told: bool


class Shape(NamedTuple):
    """A shape word: its plural, and its role (split is "" for basic words)."""
    plural: str
    split: str
    told: bool


def _colours(split, told, **words):
    return {word: Colour(rgb, split, told) for word, rgb in words.items()}


def _shapes(split, told, words):
    return {word: Shape(word + ("es" if word[-1] in "sx" else "s"), split, told)
            for word in words.split()}


COLOURS = {
    **_colours("", True, red=(222, 30, 35), orange=(248, 135, 25), yellow=(248, 222, 45),
               green=(45, 165, 60), teal=(20, 145, 150), blue=(40, 85, 220),
               purple=(130, 50, 180), pink=(250, 150, 185), brown=(125, 75, 40),
               gray=(125, 125, 125), white=(252, 252, 252), black=(14, 14, 14)),
    **_colours("train", True, scarlet=(238, 52, 28), tangerine=(240, 120, 20),
               lemon=(250, 235, 85), moss=(75, 150, 45), turquoise=(55, 165, 160),
               sapphire=(30, 65, 185), grape=(110, 40, 150), blush=(248, 180, 200),
               chocolate=(95, 55, 30), charcoal=(38, 38, 40)),
    **_colours("dev", True, ruby=(190, 25, 50), amber=(250, 160, 40), emerald=(20, 150, 80),
               slate=(110, 118, 130)),
    **_colours("dev", False, gold=(225, 195, 40), azure=(50, 110, 240), violet=(145, 75, 200),
               ivory=(250, 246, 232)),
    **_colours("test", True, crimson=(185, 20, 35), rose=(245, 120, 165), cobalt=(20, 60, 200),
               fern=(80, 140, 40), silver=(150, 152, 155), mustard=(215, 180, 45)),
    **_colours("test", False, apricot=(250, 160, 75), jade=(45, 155, 90), plum=(110, 45, 135),
               lagoon=(20, 130, 140), chestnut=(140, 75, 50), ebony=(30, 24, 22)),
}
SHAPES = {
    **_shapes("", True, "circle oval ring square rectangle triangle cross star diamond crescent "
                        "hexagon"),
    **_shapes("train", True, "disc ellipse bar donut"),
    **_shapes("dev", True, "box plus"),
    **_shapes("dev", False, "wedge gem starfish"),
    **_shapes("test", True, "hoop slab moon"),
    **_shapes("test", False, "tile cone kite egg"),
}
SHAPES["starfish"] = SHAPES["starfish"]._replace(plural="starfish")

BASIC_COLOURS = [word for word, colour in COLOURS.items() if not colour.split]
BASIC_SHAPES = [word for word, shape in SHAPES.items() if not shape.split]
RARE_COLOURS = [word for word, colour in COLOURS.items() if colour.split]
RARE_SHAPES = [word for word, shape in SHAPES.items() if shape.split]

ISH = {"red": "reddish", "orange": "orangey", "yellow": "yellowish", "green": "greenish",
       "teal": "tealish", "blue": "bluish", "purple": "purplish", "pink": "pinkish",
       "brown": "brownish", "gray": "grayish", "white": "whitish", "black": "blackish"}
SIZES = {"small": ["small", "small", "little", "tiny"], "big": ["big", "big", "large", "huge"]}
PLACES = {  # centre in a frame from -1 to 1, y downwards; how English names it
    "top left": ((-.5, -.5), ["at the top left", "in the upper left", "in the top left corner"]),
    "top": ((0, -.5), ["at the top", "near the top"]),
    "top right": ((.5, -.5), ["at the top right", "in the upper right",
                              "in the top right corner"]),
    "left": ((-.5, 0), ["on the left", "at the left"]),
    "center": ((0, 0), ["in the center", "in the middle"]),
    "right": ((.5, 0), ["on the right", "at the right"]),
    "bottom left": ((-.5, .5), ["at the bottom left", "in the lower left",
                                "in the bottom left corner"]),
    "bottom": ((0, .5), ["at the bottom", "near the bottom"]),
    "bottom right": ((.5, .5), ["at the bottom right", "in the lower right",
                                "in the bottom right corner"]),
}
BACKDROPS = {"light": [(232, 228, 218), (214, 224, 228), (205, 212, 200), (226, 214, 222),
                       (170, 184, 194), (188, 178, 164)],
             "dark": [(50, 54, 62), (62, 56, 52), (46, 60, 56), (66, 60, 74)]}
NUMBERS = ["no", "one", "two", "three"]


def _linear(channel):
    """An sRGB channel of 0–255 as linear light of 0–1."""
    value = channel / 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def _lab_curve(ratio):
    return ratio ** (1 / 3) if ratio > 216 / 24389 else (24389 / 27 * ratio + 16) / 116


@functools.lru_cache(maxsize=1 << 16)
def lab(rgb):
    """CIE L*a*b* (D65, 2 degrees) of an sRGB triple of 0–255."""
    r, g, b = map(_linear, rgb)
    x = _lab_curve((0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047)
    y = _lab_curve(0.2126729 * r + 0.7151522 * g + 0.0721750 * b)
    z = _lab_curve((0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def colour_distance(one, other):
    """CIE76 distance of two colours, each an RGB triple or a colour word; about 2 is just seen."""
    one, other = (lab(COLOURS[c].rgb if isinstance(c, str) else c) for c in (one, other))
    return sum((p - q) ** 2 for p, q in zip(one, other, strict=True)) ** 0.5


@functools.lru_cache(maxsize=1 << 16)
def nearest_basic(rgb, count=2):
    """The basic colour words nearest to an RGB triple: [(word, distance)], nearest first."""
    return sorted(((word, colour_distance(rgb, word)) for word in BASIC_COLOURS),
                  key=lambda pair: pair[1])[:count]


def blend(one, other, share):
    """The RGB triple on the way from one colour word to another, share of 0–1."""
    return tuple(round(p + share * (q - p)) for p, q in
                 zip(COLOURS[one].rgb, COLOURS[other].rgb, strict=True))


def is_unnamed(rgb, one, other):
    """Whether a colour lies between two basic ones and is not near any named one."""
    return ({word for word, _ in nearest_basic(rgb)} == {one, other}
            and all(colour_distance(rgb, word) >= 14 for word in COLOURS))


@functools.lru_cache(maxsize=1)
def mixtures():
    """Pairs of basic colours with unnamed colours between them, in order of the vocabulary."""
    shares = [step / 20 for step in range(7, 14)]
    return [(one, other) for i, one in enumerate(BASIC_COLOURS) for other in BASIC_COLOURS[i + 1:]
            if colour_distance(one, other) < 110
            and any(is_unnamed(blend(one, other, share), one, other) for share in shares)]


def is_held_out(colour, shape):
    """Whether no text may mention this colour and shape together (pictures and captions do)."""
    return zlib.crc32(f"{colour} {shape}".encode()) % HELD_OUT_ONE_IN == 0


@functools.lru_cache(maxsize=1)
def held_out():
    """All combinations (colour, shape) that are held out of the texts."""
    return [(colour, shape) for colour in COLOURS for shape in SHAPES if is_held_out(colour, shape)]
