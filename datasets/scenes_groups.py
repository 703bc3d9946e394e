"""Hard groups: scenes that are equal but for one attribute of one thing, mostly its shape.

A CLIP learns little from pictures that any word tells apart. In a batch that holds such groups it
has to look at shapes (or a colour, or a place) to find the right caption.
"""

import functools

from scenes_render import shape_similarity
from scenes_sample import (
    GAP,
    NESTED_SPREAD,
    ROUND,
    has_held_out,
    named_colour,
    picture_scene,
    split_of,
    stream,
)
from scenes_world import COLOURS, LOOKS_LIKE, PLACES, SHAPES, colour_distance

GROUP = 4  # scenes of a group
TOO_ALIKE = 0.92  # similarity from which two outlines are one in a small picture
ATTRIBUTES = {"shape": 0.65, "colour": 0.25, "place": 0.1}  # how often each one differs


def scene_of(seed, split, number, share):
    """The scene of picture `number` of a split.

    Pictures GROUP·i … GROUP·i + GROUP - 1 belong together. Whether they are a hard group follows
    from the seed, the split and i alone; those which are none are independent scenes, the same
    whatever the share. Only training pictures come in hard groups: retrieval among validation
    pictures then means what it means elsewhere.

    Args:
        seed: the world's.
        split: "train", "val" or "heldout".
        number: of the picture.
        share: of the training groups that are hard.

    Returns:
        (Scene, the random.Random that the picture's captions are drawn from).
    """
    rng = stream(seed, split, number)
    group, place = divmod(number, GROUP)
    found = _group_of(seed, split, group, share)
    return (found[place] if found else picture_scene(rng, split)), rng


@functools.lru_cache(maxsize=8)
def _group_of(seed, split, number, share):
    """The scenes of a hard group, or None if its pictures are independent."""
    rng = stream(seed, split, "group", number)
    return hard_group(rng, split) if split == "train" and rng.random() < share else None


def hard_group(rng, split):
    """GROUP scenes of a split that differ in one attribute of one thing.

    In "heldout" each of them has a combination held out of the texts.

    Args:
        rng: random.Random.
        split: "train", "val" or "heldout".
    """
    while True:
        scene = picture_scene(rng, split)
        number = rng.randrange(len(scene.things))
        attribute = rng.choices(list(ATTRIBUTES), ATTRIBUTES.values())[0]
        found = [scene]
        for other in VARIANTS[attribute](rng, scene, number):
            if split_of(other) == split and (split != "heldout" or has_held_out(other)):
                found.append(other)
            if len(found) == GROUP:
                rng.shuffle(found)
                return found


def _with(scene, number, thing):
    """The scene with another thing in the place of one."""
    things = list(scene.things)
    things[number] = thing
    return scene._replace(things=tuple(things))


def _other_shapes(rng, scene, number):
    """The scene with another outline of a thing, no two of them too much alike."""
    thing = scene.things[number]
    seen = [thing.shape]
    # a thing fits only into some outlines
    words = ROUND if scene.nested and number == 0 else list(SHAPES)
    for word in rng.sample(words, len(words)):
        if all(shape_similarity(word, other) < TOO_ALIKE for other in seen):
            seen.append(word)
            yield _with(scene, number, thing._replace(shape=word))


def _other_colours(rng, scene, number):
    """The scene with another colour of a thing, far enough from each other one to be told apart."""
    thing = scene.things[number]
    seen = [thing.rgb, scene.backdrop]
    if scene.nested:
        seen.append(scene.things[1 - number].rgb)
    for word in rng.sample(list(COLOURS), len(COLOURS)):
        colour, between, rgb = named_colour(rng, word)
        if all(colour_distance(rgb, other) >= LOOKS_LIKE for other in seen):
            seen.append(rgb)
            yield _with(scene, number, thing._replace(colour=colour, between=between, rgb=rgb))


def _other_places(rng, scene, number):
    """The scene with a thing at another place; what is inside a thing moves with it."""
    for place in rng.sample(list(PLACES), len(PLACES)):
        if place == scene.things[number].place:
            continue
        if scene.nested:
            yield scene._replace(things=tuple(_moved(thing, place, NESTED_SPREAD)
                                              for thing in scene.things))
            continue
        moved = _moved(scene.things[number], place, 1)
        if all(((moved.x - other.x) ** 2 + (moved.y - other.y) ** 2) ** 0.5
               >= GAP * (moved.radius + other.radius)
               for index, other in enumerate(scene.things) if index != number):
            yield _with(scene, number, moved)


def _moved(thing, place, spread):
    """The thing at another place, as far from the place's centre as it was."""
    (old_x, old_y), (x, y) = PLACES[thing.place][0], PLACES[place][0]
    return thing._replace(place=place, x=thing.x + spread * (x - old_x),
                          y=thing.y + spread * (y - old_y))


VARIANTS = {"shape": _other_shapes, "colour": _other_colours, "place": _other_places}
