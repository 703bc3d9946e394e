"""Phrases about things and statements that are true of a scene, for captions and texts."""

import functools

from scenes_render import shape_similarity
from scenes_world import (
    BASIC_COLOURS,
    CLEARLY_NOT,
    ISH,
    LOOKS_LIKE,
    NUMBERS,
    PLACES,
    SHAPES,
    SIZES,
    colour_distance,
    nearest_basic,
)

SAME_OUTLINE = 0.97  # similarity from which two shape words are interchangeable
OTHER_OUTLINE = 0.7  # similarity below which a shape is not taken for another
CLEAR = 0.6  # of the second nearest word's distance, for a word to be clearly the nearest
RELATIONS = {"left": ["left of", "to the left of"], "right": ["right of", "to the right of"],
             "above": ["above", "over"], "below": ["below", "under"],
             "inside": ["inside", "within"]}


def article(phrase):
    """The phrase with "a" or "an"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def join(parts, word="and"):
    """Parts as an English list: "a", "a and b", "a, b and c"."""
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)


@functools.lru_cache(maxsize=len(SHAPES))
def names_of(shape):
    """The shape words of the same outline, the word itself first."""
    return [shape] + [word for word in SHAPES
                      if word != shape and shape_similarity(word, shape) >= SAME_OUTLINE]


def colour_names(thing):
    """The words that are true of a thing's colour: its own, and its clearly nearest basic one."""
    (word, near), (_, far) = nearest_basic(thing.rgb)
    clear = [word] if near < CLEAR * far else []
    return [thing.colour, *(w for w in clear if w != thing.colour)] if thing.colour else clear


def colour_adjective(rng, thing, own_word):
    """A colour word for a thing; "reddish orange" if it is unnamed.

    Args:
        rng: random.Random.
        thing: the Thing.
        own_word: whether only the colour's own word will do.
    """
    if not thing.colour:
        near, far = thing.between
        return f"{ISH[far]} {near}"
    names = colour_names(thing)
    return names[-1] if not own_word and rng.random() < 0.2 else names[0]


def noun(rng, thing, size=False, colour=True, synonyms=True):
    """A noun phrase without article, such as "tiny rose hoop".

    Args:
        rng: random.Random.
        thing: the Thing.
        size, colour: whether to name them.
        synonyms: whether other words for the same look may stand for the thing's own.
    """
    words = [rng.choice(SIZES[thing.size])] if size else []
    tail = ""
    if colour and not thing.colour and rng.random() < 0.4:
        tail = " between {} and {} in color".format(*thing.between)
    elif colour:
        words.append(colour_adjective(rng, thing, not synonyms))
    return " ".join([*words, rng.choice(names_of(thing.shape)) if synonyms else thing.shape]) + tail


def place(rng, thing):
    """Where a thing is, such as "in the upper left"."""
    return rng.choice(PLACES[thing.place][1])


def relations(scene, one, other):
    """The relations in which thing number `one` stands to thing number `other`: keys of RELATIONS.

    A direction holds if it is the main one, or one of two equal ones.
    """
    if scene.nested:
        return ["inside"] if (one, other) == (1, 0) else []
    right = scene.things[other].x - scene.things[one].x
    down = scene.things[other].y - scene.things[one].y
    held = []
    if abs(right) >= 0.3 and abs(right) >= 0.8 * abs(down):
        held.append("left" if right > 0 else "right")
    if abs(down) >= 0.3 and abs(down) >= 0.8 * abs(right):
        held.append("above" if down > 0 else "below")
    return held


def number_of(scene, shape):
    """How many things have the shape; None if some thing only resembles it."""
    alike = [shape_similarity(thing.shape, shape) for thing in scene.things]
    if any(OTHER_OUTLINE <= value < SAME_OUTLINE for value in alike):
        return None
    return sum(value >= SAME_OUTLINE for value in alike)


def number_coloured(scene, colour):
    """How many things are called by the colour word; None if another has a colour like it."""
    count = sum(thing.colour == colour for thing in scene.things)
    near = sum(colour_distance(thing.rgb, colour) < LOOKS_LIKE for thing in scene.things)
    return count if near == count else None


def absent_shape(rng, scene, words=tuple(SHAPES)):
    """A shape word of which nothing in the scene is an example or resembles one."""
    return rng.choice([word for word in words if number_of(scene, word) == 0])


def absent_colour(rng, scene, words=tuple(BASIC_COLOURS)):
    """A colour word from which every thing's colour is clearly another, and the backdrop's too."""
    return rng.choice([word for word in words if all(
        colour_distance(thing.rgb, word) >= CLEARLY_NOT for thing in scene.things)
        and colour_distance(scene.backdrop, word) >= LOOKS_LIKE])


def counted(scene):
    """True statements of number: [(count, singular, plural)], of shapes, colours and all things."""
    found = [(len(scene.things), "shape", "shapes")]
    for shape in dict.fromkeys(thing.shape for thing in scene.things):
        if number_of(scene, shape):
            found.append((number_of(scene, shape), shape, SHAPES[shape].plural))
    for colour in dict.fromkeys(thing.colour for thing in scene.things):
        if colour and number_coloured(scene, colour):
            found.append((number_coloured(scene, colour), f"{colour} shape", f"{colour} shapes"))
    return found


def amount(count, singular, plural):
    """ "one circle" or "two circles"."""
    return f"{NUMBERS[count]} {singular if count == 1 else plural}"


def groups(scene):
    """The things by colour and shape word: lists of equal things, in the scene's order."""
    found = {}
    for thing in scene.things:
        found.setdefault((thing.colour or thing.between, thing.shape), []).append(thing)
    return list(found.values())
