"""Texts of a few sentences about scenes, lower case.

Every sentence is true of the scene. Within a text a thing keeps its words; what a text denies or
counts is chosen among basic words in scenes of basic words only; and that a thing is inside another
is left to captions, as it fits only some shapes. So, apart from the rare facts about looks
(scenes_cloze.py), words that look alike hardly show it in the texts.
"""

from scenes_cloze import item, item_groups, told_fact
from scenes_sample import stream, text_scene
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
from scenes_world import BASIC_COLOURS, BASIC_SHAPES, NUMBERS, SHAPES, VERSION, is_held_out

PEOPLE = ["mia", "tom", "ada", "ben", "zoe", "max", "eva", "leo", "ida", "sam", "lily", "noah"]
OPENINGS = ["{who} has a picture with {things}.", "{who} looks at a picture of {things}.",
            "{who} drew {things}.", "there {be} {things}.", "here we see {things}.",
            "{who} finds a card that shows {things}.",
            "in a picture from {who} there {be} {things}.",
            "one day {who} made a picture. there {be} {things} in it."]
ACTIONS = ["{who} points at {a}.", "{who} likes {a}.", "{who} asks for {a}, and {other} finds it.",
           "{who} thinks of {a} all day.", "{who} shows {a} to {other}.",
           "{other} asks {who} about {a}.", "{who} draws {a} again.",
           "where is {a}? {who} knows: it is {place}.", "{a} is {place}.", "{place} is {a}.",
           "{place}, {who} sees {a}.", "look {place}, that is {a}."]
CLOSINGS = ["{who} smiles.", "then {who} puts the picture away.", "that is all.",
            "{other} wants to see it too.", "{who} is happy with it.", "good night, {who}.",
            "then {other} turns the page.", "{who} gives the picture to {other}."]


class Teller:
    """Tells about one scene.

    Args:
        rng: random.Random.
        scene: the Scene; its colours must be named.
    """

    def __init__(self, rng, scene):
        self.rng = rng
        self.scene = scene
        self.who, self.other = rng.sample(PEOPLE, 2)
        self.singles = [scene.things.index(group[0]) for group in groups(scene)
                        if len(group) == 1]
        self.basic = (all(thing.colour in BASIC_COLOURS for thing in scene.things),
                      all(thing.shape in BASIC_SHAPES for thing in scene.things))

    def fill(self, template, **slots):
        """A template with its slots filled, the people's among them."""
        return template.format(who=self.who, other=self.other, **slots)

    def the(self, number):
        """A thing of which there is only one, such as "the rose hoop"."""
        thing = self.scene.things[number]
        return f"the {thing.colour} {thing.shape}"

    def opening(self):
        """What there is, all of it."""
        sizes, parts = self.rng.random() < 0.4, []
        for group in groups(self.scene):
            thing = group[0]
            if len(group) == 1:
                parts.append(article(noun(self.rng, thing, size=sizes, synonyms=False)))
            else:
                parts.append(f"{NUMBERS[len(group)]} {thing.colour} {SHAPES[thing.shape].plural}")
        self.rng.shuffle(parts)
        be = "are" if parts[0].split(" ")[0] in NUMBERS else "is"
        return self.fill(self.rng.choice(OPENINGS), things=join(parts), be=be)

    def action(self):
        """Someone does something with a thing, or it is said where it is."""
        if not self.singles:
            return None
        number = self.rng.choice(self.singles)
        return self.fill(self.rng.choice(ACTIONS), a=self.the(number),
                         place=place(self.rng, self.scene.things[number]))

    def relation(self):
        """How two things lie to each other, stated or asked."""
        if self.scene.nested or not 2 <= len(self.singles) == len(self.scene.things):
            return None
        one, other = self.rng.sample(self.singles, 2)
        held = relations(self.scene, one, other)
        if not held:
            return None
        key = self.rng.choice(held)
        how = self.rng.choice(RELATIONS[key])
        alone = sum(key in relations(self.scene, number, other) for number in self.singles
                    if number != other) == 1
        if alone and self.rng.random() < 0.5:
            return self.fill(self.rng.choice(["what is {how} {b}? it is {a}.",
                                              "{who} asks: what is {how} {b}? {other} says: {a}."]),
                             how=how, a=self.the(one), b=self.the(other))
        return f"{self.the(one)} is {how} {self.the(other)}."

    def size(self):
        """The size of a thing, or which of two is bigger."""
        if not self.singles:
            return None
        one, other = (self.rng.choice(self.singles) for _ in range(2))
        sizes = [self.scene.things[number].size for number in (one, other)]
        if sizes[0] == sizes[1]:
            return f"{self.the(one)} is {sizes[0]}."
        words = ["bigger", "larger"] if sizes[0] == "big" else ["smaller"]
        return f"{self.the(one)} is {self.rng.choice(words)} than {self.the(other)}."

    def number(self):
        """How many things, or things of a basic shape or colour, there are."""
        found = counted(self.scene) if all(self.basic) else counted(self.scene)[:1]
        count, *words = self.rng.choice(found)
        return self.fill(self.rng.choice([
            "there {be} {n}.", "{who} counts {n}.", "how many {many} are there? there {be} {m}.",
            "in all there {be} {n}."]), n=amount(count, *words), m=NUMBERS[count], many=words[1],
            be="is" if count == 1 else "are")

    def absence(self):
        """What is not there, in a scene of basic words."""
        if self.basic[1] and self.rng.random() < 0.6:
            shape = absent_shape(self.rng, self.scene, tuple(BASIC_SHAPES))
            return self.fill(self.rng.choice([
                "there is no {s}.", "{who} looks for {as_}, but there is none.",
                "is there {as_}? no, there is none.", "{other} wants {as_}, but there is no {s}."]),
                s=shape, as_=article(shape))
        if self.basic[0]:
            colour = absent_colour(self.rng, self.scene)
            return self.fill(self.rng.choice([
                "nothing is {c}.", "{who} looks for something {c}, but there is nothing {c}.",
                "is anything {c}? no, nothing is."]), c=colour)
        return None

    def color(self):
        """What colour a shape has, if only one thing has the shape."""
        number = self.rng.choice(range(len(self.scene.things)))
        thing = self.scene.things[number]
        if sum(other.shape == thing.shape for other in self.scene.things) > 1:
            return None
        return self.fill(self.rng.choice([
            "what color is the {s}? it is {c}.", "the {s} is {c}.",
            "{who} asks what color the {s} is. {other} says it is {c}."]),
            s=thing.shape, c=thing.colour)

    def rest(self):
        """What can still be seen when one thing is covered."""
        if len(self.singles) < 2 or len(self.scene.things) != len(self.singles):
            return None
        gone = self.rng.choice(self.singles)
        rest = join([self.the(number) for number in self.singles if number != gone])
        return self.fill(self.rng.choice([
            "{who} covers {a}. now one can see only {b}.",
            "without {a}, there is only {b}."]), a=self.the(gone), b=rest)

    def closing(self):
        """How the text ends."""
        return self.fill(self.rng.choice(CLOSINGS))

    def body(self, count):
        """Up to `count` different sentences."""
        kinds = [self.action, self.relation, self.size, self.number, self.absence, self.color,
                 self.rest]
        found = []
        for _ in range(4 * count):
            if len(found) >= count:
                break
            sentence = self.rng.choices(kinds, [6, 5, 3, 2, 2, 2, 1])[0]()
            if sentence and sentence not in found:
                found.append(sentence)
        return found


def text(rng, split, facts):
    """A text of a split.

    Args:
        rng: random.Random.
        split: "train", "val" or "heldout".
        facts: share of the texts that hold one fact about looks.

    Returns:
        (the text, its scene, the scenes_cloze.Fact in it or None).
    """
    scene, fact = text_scene(rng, split), None
    if rng.random() < facts:
        fact = told_fact(rng, "" if split == "heldout" else split)
        scene = fact.scene or scene
    teller = Teller(rng, scene)
    sentences = [teller.opening(), *teller.body(rng.randint(2, 5))]
    if fact:
        sentences.insert(rng.randint(1, len(sentences)), fact.text)
    if rng.random() < 0.5:
        sentences.append(teller.closing())
    return " ".join(sentences), scene, fact


def combination_items(count):
    """Cloze items about things of a held-out combination of colour and shape, as JSON values.

    A story begins, and asks what colour the thing has; the choices are the colours of all things
    of the scene, none of which another one shares.

    Args:
        count: how many; items are the same for every world.

    Yields:
        dict with prefix, answer and choices.
    """
    made = number = 0
    while made < count:
        rng, number = stream(VERSION, "combinations", number), number + 1
        scene = text_scene(rng, "heldout")
        colours = [thing.colour for thing in scene.things]
        shapes = {thing.shape for thing in scene.things}
        if not len(colours) == len(set(colours)) == len(shapes) > 1:
            continue
        opening = Teller(rng, scene).opening()
        for thing in scene.things:
            if is_held_out(thing.colour, thing.shape) and made < count:
                made += 1
                yield {"prefix": f"{opening} what color is the {thing.shape}? it is",
                       "answer": thing.colour, "choices": rng.sample(colours, len(colours))}


def story_items(split, count):
    """The statements of "dev" or "test" as they stand in texts, after the beginning of a story.

    The items of a group share the story, or each tells of the scene that its statement is about;
    stories are about scenes of the split "val".

    Args:
        split, count: as for scenes_cloze.items, whose statements these are.

    Yields:
        dict as scenes_cloze.items does.
    """
    for number, facts in enumerate(item_groups(split, count, statements=True)):
        rng = stream(VERSION, "stories", split, number)
        shared = _beginning(rng, text_scene(rng, "val"))
        for fact in facts:
            story = _beginning(rng, fact.scene) if fact.scene else shared
            yield item(fact, number, f"{story} {fact.prefix}")


def _beginning(rng, scene):
    """The sentences of a text about a scene that precede the fact in it."""
    teller = Teller(rng, scene)
    sentences = [teller.opening(), *teller.body(rng.randint(2, 5))]
    return " ".join(sentences[:rng.randint(1, len(sentences))])
