"""Scenes: one to three things on a backdrop, sampled from the world's vocabulary.

Scenes of different splits differ: the scene's words (colours, shapes, sizes, places), hashed,
decide the split to which it belongs, whatever the seed and the number of pictures.
"""

import random
import zlib
from typing import NamedTuple

from scenes_world import (
    BACKDROPS,
    BASIC_COLOURS,
    BASIC_SHAPES,
    COLOURS,
    LOOKS_LIKE,
    PLACES,
    RARE_COLOURS,
    RARE_SHAPES,
    blend,
    colour_distance,
    held_out,
    is_held_out,
    is_unnamed,
    mixtures,
    nearest_basic,
)

SPLITS = ["val", "val", "heldout", "heldout", "dev", "test"] + ["train"] * 14
ROUND = ["circle", "disc", "square", "box", "tile", "hexagon", "hoop"]  # a thing fits inside
RADII = {"small": (0.23, 0.27), "big": (0.35, 0.40)}
OUTER, INNER = (0.56, 0.60), (0.24, 0.27)  # radii of a thing and of one inside it
NESTED_SPREAD = 0.7  # how far from the centre these are, of what other things are
COLOUR_JITTER = 5  # of 255, so that a word's colour varies a little
PLACE_JITTER = 0.05
ALL_BACKDROPS = [(tone, rgb) for tone, colours in BACKDROPS.items() for rgb in colours]
GAP = 1.08  # of the sum of two radii, so that things do not touch


class Thing(NamedTuple):
    """One thing.

    Attributes:
        colour: its colour word, or "" if unnamed.
        between: the two basic colours between which an unnamed one lies, the nearer first, or ().
        rgb: sRGB, 0–255.
        shape, size, place: words of the vocabulary.
        x, y: centre in a frame from -1 to 1, y downwards.
        radius: in the same units.
        turned: whether its outline is turned (lying shapes) or mirrored.
    """
    colour: str
    between: tuple
    rgb: tuple
    shape: str
    size: str
    place: str
    x: float
    y: float
    radius: float
    turned: bool


class Scene(NamedTuple):
    """A backdrop ("light" or "dark"), its sRGB, the things, and whether the second of the two
    things is inside the first."""
    tone: str
    backdrop: tuple
    things: tuple
    nested: bool

    def as_json(self):
        """The scene as JSON values."""
        return {"tone": self.tone, "backdrop": self.backdrop, "nested": self.nested,
                "things": [thing._asdict() for thing in self.things]}


class Wish(NamedTuple):
    """What a scene must have: words for its first things, and what may not occur.

    Attributes:
        colours, shapes: words of the first things, in order.
        count: number of things, 0 for any.
        named: whether all colours must be named.
    """
    colours: tuple = ()
    shapes: tuple = ()
    count: int = 0
    named: bool = False


def split_of(scene):
    """The split to which a scene belongs: train, val, heldout, or dev and test for cloze items."""
    words = sorted(" ".join([thing.colour or "+".join(sorted(thing.between)), thing.shape,
                             thing.size, thing.place]) for thing in scene.things)
    return SPLITS[zlib.crc32("|".join([*words, str(scene.nested)]).encode()) % len(SPLITS)]


def has_held_out(scene):
    """Whether a thing of the scene is a combination held out of the texts."""
    return any(thing.colour and is_held_out(thing.colour, thing.shape) for thing in scene.things)


def picture_scene(rng, split):
    """A scene for a picture of the split; in "heldout" it has a held-out combination.

    Args:
        rng: random.Random; the scene is decided by its state alone.
        split: "train", "val" or "heldout".
    """
    while True:
        scene = sample(rng, _held_out_wish(rng) if split == "heldout" else Wish())
        if split_of(scene) == split:
            return scene


def text_scene(rng, split):
    """A scene for a text of the split: the next of `picture_scene`'s with named colours only, and
    with held-out combinations only in "heldout"."""
    while True:
        scene = picture_scene(rng, split)
        if all(thing.colour for thing in scene.things) and (
                split == "heldout" or not has_held_out(scene)):
            return scene


def wished_scene(rng, split, wish):
    """A scene of the split without held-out combinations that has the words of a wish, its things
    in order; None if none was found in some tries."""
    for _ in range(400):
        scene = sample(rng, wish)
        if split_of(scene) == split and not has_held_out(scene):
            return scene
    return None


def _held_out_wish(rng):
    colour, shape = rng.choice(held_out())
    return Wish(colours=(colour,), shapes=(shape,))


def sample(rng, wish=Wish()):  # noqa: B008 (immutable)
    """A scene.

    Args:
        rng: random.Random.
        wish: what it must have.
    """
    while True:
        count = wish.count or rng.choices([1, 2, 3], [7, 8, 5])[0]
        looks = _sample_looks(rng, count, wish)
        # no combination of colours is drawn again: else texts would show which ones look alike
        nested = (count == 2 and looks[0][3] in ROUND and rng.random() < 0.7
                  and colour_distance(looks[0][2], looks[1][2]) >= LOOKS_LIKE)
        spots = _nested_spots(rng) if nested else _sample_spots(rng, count)
        if spots:
            tone, backdrop = _sample_backdrop(rng, [look[2] for look in looks])
            return Scene(tone, backdrop, tuple(
                Thing(*look, *spot, rng.random() < 0.5)
                for look, spot in zip(looks, spots, strict=True)), nested)


def _sample_looks(rng, count, wish):
    """(colour, between, rgb, shape) of each thing; now and then they share a colour or shape."""
    looks = []
    same_colour, same_shape = rng.random() < 0.2, rng.random() < 0.3
    for number in range(count):
        shape = rng.choice(BASIC_SHAPES if rng.random() < 0.6 else RARE_SHAPES)
        if number < len(wish.shapes):
            shape = wish.shapes[number]
        elif looks and same_shape and rng.random() < 0.7:
            shape = looks[0][3]
        if number < len(wish.colours):
            colour = named_colour(rng, wish.colours[number])
        elif looks and same_colour and rng.random() < 0.7:
            colour = looks[0][:3]
        else:
            colour = _sample_colour(rng, wish.named)
        looks.append((*colour, shape))
    return looks


def named_colour(rng, word):
    """(colour, between, rgb) of a named colour."""
    return word, (), tuple(min(255, max(0, value + rng.randint(-COLOUR_JITTER, COLOUR_JITTER)))
                           for value in COLOURS[word].rgb)


def _sample_colour(rng, named):
    """(colour, between, rgb): basic, rare, or between two basic ones."""
    kind = rng.random()
    if kind >= 0.9 and not named:
        one, other = rng.choice(mixtures())
        rgb = blend(one, other, 0.35 + 0.3 * rng.random())
        if is_unnamed(rgb, one, other):
            return "", tuple(word for word, _ in nearest_basic(rgb)), rgb
    return named_colour(rng, rng.choice(BASIC_COLOURS if kind < 0.5 else RARE_COLOURS))


def _sample_spots(rng, count):
    """(size, place, x, y, radius) of each thing, none touching another, or None."""
    spots = []
    for _ in range(20 * count):
        size, place = rng.choice(list(RADII)), rng.choice(list(PLACES))
        spot = _spot(rng, size, place, RADII[size], 1)
        if all(((spot[2] - other[2]) ** 2 + (spot[3] - other[3]) ** 2) ** 0.5
               >= GAP * (spot[4] + other[4]) for other in spots):
            spots.append(spot)
        if len(spots) == count:
            return spots
    return None


def _nested_spots(rng):
    """As `_sample_spots`, for two things of which the second is inside the first."""
    outer = _spot(rng, "big", rng.choice(list(PLACES)), OUTER, NESTED_SPREAD)
    return [outer, ("small", *outer[1:4], rng.uniform(*INNER))]


def _spot(rng, size, place, radii, spread):
    x, y = (spread * at + rng.uniform(-PLACE_JITTER, PLACE_JITTER) for at in PLACES[place][0])
    return size, place, x, y, rng.uniform(*radii)


def _sample_backdrop(rng, colours):
    """(tone, rgb) of a backdrop on which all colours are seen as well as on any, if not clearly."""
    best, contrast = None, -1.0
    for tone, rgb in rng.sample(ALL_BACKDROPS, len(ALL_BACKDROPS)):
        least = min(colour_distance(rgb, colour) for colour in colours)
        if least >= LOOKS_LIKE:
            return tone, rgb
        if least > contrast:
            best, contrast = (tone, rgb), least
    return best


def stream(*names):
    """A random.Random that depends on nothing but the names (numbers or strings)."""
    return random.Random("/".join(map(str, names)))


