"""Captions: true statements about a scene in varied English, lower case.

A caption may say everything or little. Rare colours and shapes are mostly called by their own
words, sometimes by a basic word that fits as well; an unnamed colour is described by its two
neighbours.
"""

from scenes_words import (
    RELATIONS,
    absent_colour,
    absent_shape,
    amount,
    article,
    counted,
    groups,
    join,
    noun,
    place,
    relations,
)
from scenes_world import NUMBERS, SHAPES

FRAMES = ["{}", "{}", "{}", "{}.", "a picture of {}", "an image of {}", "a drawing of {}",
          "a picture with {}", "this shows {}", "we see {}", "here is {}", "look, {}"]
STATED = ["{}", "{}.", "in this picture {}", "here {}"]


def full(rng, scene):
    """All things with size, colour, shape and place, and sometimes the backdrop."""
    if scene.nested:
        outer, inner = scene.things
        middle = rng.choice(["inside", "within", "in"])
        text = f"{article(noun(rng, inner, size=True))} {middle} " \
               f"{article(noun(rng, outer, size=True))} {place(rng, outer)}"
    else:
        parts = [f"{article(noun(rng, thing, size=True))} {place(rng, thing)}"
                 for thing in rng.sample(scene.things, len(scene.things))]
        text = join(parts) if rng.random() < 0.8 else ", ".join(parts)
    if rng.random() < 0.25:
        text += rng.choice([f" on a {scene.tone} background", f", the background is {scene.tone}"])
    return framed(rng, text)


def framed(rng, text):
    """A noun phrase as a caption."""
    return rng.choice(FRAMES).format(text)


def listed(rng, scene):
    """All things, each with some of its attributes; equal ones may be counted."""
    parts = []
    for group in groups(scene):
        thing = group[0]
        if len(group) > 1:
            words = noun(rng, thing, synonyms=False).split(" ")
            at = words.index(thing.shape)
            plural = " ".join([*words[:at], SHAPES[thing.shape].plural, *words[at + 1:]])
            parts.append(f"{NUMBERS[len(group)]} {plural}")
            continue
        phrase = noun(rng, thing, size=rng.random() < 0.4, colour=rng.random() < 0.95)
        parts.append(article(phrase) + (" " + place(rng, thing) if rng.random() < 0.3 else ""))
    rng.shuffle(parts)
    return framed(rng, join(parts, "with" if len(parts) == 2 and rng.random() < 0.2 else "and"))


def one_thing(rng, scene):
    """One of the things, with some of its attributes."""
    thing = rng.choice(scene.things)
    phrase = article(noun(rng, thing, size=rng.random() < 0.4, colour=rng.random() < 0.9))
    return framed(rng, phrase + (" " + place(rng, thing) if rng.random() < 0.4 else ""))


def colour_only(rng, scene):
    """The colour of a thing, without its shape."""
    thing = rng.choice(scene.things)
    if not thing.colour:
        near, far = thing.between
        text = f"something between {near} and {far}"
    else:
        text = rng.choice(["something {}", "a thing that is {}", "one thing is {}"]).format(
            thing.colour)
    return text + (" " + place(rng, thing) if rng.random() < 0.3 else "")


def related(rng, scene):
    """How one thing lies to another."""
    if len(scene.things) < 2:
        return None
    one, other = rng.sample(range(len(scene.things)), 2)
    held = relations(scene, one, other)
    if not held:
        return None
    first, second = (article(noun(rng, scene.things[number], size=rng.random() < 0.2))
                     for number in (one, other))
    how = rng.choice(RELATIONS[rng.choice(held)])
    if scene.nested and rng.random() < 0.4:
        return framed(rng, f"{second} with {first} inside it")
    if rng.random() < 0.3:
        return rng.choice(STATED).format(f"{first} is {how} {second}")
    return framed(rng, f"{first} {how} {second}")


def sized(rng, scene):
    """Which of two things is bigger."""
    sizes = {thing.size: thing for thing in scene.things}
    if len(sizes) < 2:
        return None
    words = [("bigger", "big", "small"), ("smaller", "small", "big"), ("larger", "big", "small")]
    word, one, other = rng.choice(words)
    return rng.choice(STATED).format(f"{article(noun(rng, sizes[one]))} is {word} than "
                                     f"{article(noun(rng, sizes[other]))}")


def numbered(rng, scene):
    """How many things, or things of a shape or colour, there are."""
    found = counted(scene)
    count, *words = rng.choice(found[1:] if len(found) > 1 and rng.random() < 0.7 else found)
    text = amount(count, *words)
    return rng.choice([
        "{}", "a picture with {}", "exactly {}", "there {be} {}", "we count {}", "only {}"]).format(
            text, be="is" if count == 1 else "are")


def negative(rng, scene):
    """What is not there."""
    if rng.random() < 0.6:
        shape = absent_shape(rng, scene)
        denial = rng.choice([f"no {shape}", f"no {SHAPES[shape].plural}", f"not {article(shape)}"])
        if rng.random() < 0.4:
            return rng.choice(["there is no {}", "a picture without {a}", "we see no {}",
                               "nothing here is {a}"]).format(shape, a=article(shape))
    else:
        colour = absent_colour(rng, scene)
        denial = f"nothing {colour}"
        if rng.random() < 0.5:
            return rng.choice(["nothing here is {}", "nothing in this picture is {}",
                               "there is nothing {}"]).format(colour)
    thing = rng.choice(scene.things)
    return f"{article(noun(rng, thing))}{rng.choice([', ', ' but ', ', but ', ' and '])}{denial}"


KINDS = [(listed, 30), (one_thing, 16), (related, 20), (numbered, 10), (negative, 10), (sized, 6),
         (colour_only, 6), (full, 12)]


def captions(rng, scene, count):
    """Captions of a scene.

    Args:
        rng: random.Random.
        scene: the Scene.
        count: how many; the first is always complete.

    Returns:
        List of str, all different as far as some tries can make them so.
    """
    found = [full(rng, scene)]
    kinds, weights = zip(*KINDS, strict=True)
    for _ in range(20 * count):
        if len(found) >= count:
            break
        text = rng.choices(kinds, weights)[0](rng, scene)
        if text and text not in found:
            found.append(text)
    return found[:count]
