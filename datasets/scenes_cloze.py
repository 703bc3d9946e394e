"""Statements about looks, as rare facts in texts and as cloze items.

Whether rose is close to pink, or a hoop looks like a ring, is computed: from CIE Lab distances of
the words' colours and from the overlap of the words' silhouettes. A statement is made only if its
answer is clear, so that the right word is at most CLEAR times as far as every other choice.

Cloze items come in groups in which each choice is right equally often, with the same template and
the same choices: no preference for a word, however strong, scores above chance. The items are the
same whatever the seed of the pictures and texts. "train" templates are for texts; those of "dev"
are for choosing among models, those of "test" for the final figures.
"""

from typing import NamedTuple

from scenes_render import shape_similarity
from scenes_sample import Wish, stream, wished_scene
from scenes_words import CLEAR, article, join, noun
from scenes_world import (
    BASIC_COLOURS,
    BASIC_SHAPES,
    COLOURS,
    ISH,
    SHAPES,
    VERSION,
    colour_distance,
    mixtures,
)

KINDS = ["nearest", "compare", "odd", "scene"]
ABOUT = ["colour", "shape"]
CHOICES = {"colour": 4, "shape": 3}  # of the kind "nearest"
# {x} is the answer, {w} the subject; {a}, {b}, {c} the words to choose from, in any order; {s} and
# {t} the shapes of the things whose colours are {w} and {x}. Templates about shapes lead each word
# by "the", as "a" or "an" would give the answer away.
TEMPLATES = {
    "train": {
        "colour": {
            "nearest": ["{w} is close to {x}.", "{w} looks almost like {x}.",
                        "{w} is nearly the same color as {x}.", "from far away, {w} looks {x}.",
                        "what color is most like {w}? it is {x}."],
            "compare": ["of {a} and {b}, {w} is closer to {x}.",
                        "is {w} more like {a} or more like {b}? it is more like {x}.",
                        "between {a} and {b}, the color that matches {w} better is {x}."],
            "odd": ["of {a}, {b} and {c}, the odd one out is {x}.",
                    "which of the colors {a}, {b} and {c} is not like the others? it is {x}.",
                    "two of {a}, {b} and {c} look alike, but not {x}."],
            "scene": ["the {w} {s} is nearly the same color as the {x} {t}.",
                      "the {w} {s} has almost the color of the {x} {t}.",
                      "which color is most like that of the {w} {s}? it is {x}."]},
        "shape": {
            "nearest": ["the {w} is close to the {x} in shape.",
                        "the {w} looks almost like the {x}.",
                        "the {w} has nearly the same shape as the {x}.",
                        "from far away, the {w} looks like the {x}.",
                        "what shape is most like the {w}? it is the {x}."],
            "compare": ["of the {a} and the {b}, the {w} is closer to the {x}.",
                        "is the {w} more like the {a} or more like the {b}? it is more like the "
                        "{x}.",
                        "between the {a} and the {b}, the shape that matches the {w} better is "
                        "the {x}."],
            "odd": ["of the {a}, the {b} and the {c}, the odd one out is the {x}.",
                    "which of the shapes {a}, {b} and {c} is not like the others? it is the {x}.",
                    "two of the {a}, the {b} and the {c} look alike, but not the {x}."],
            "scene": ["here the {w} has nearly the same shape as the {x}.",
                      "here the {w} looks almost like the {x}.",
                      "which shape is most like that of the {w}? it is the {x}."]}},
    "dev": {
        "colour": {
            "nearest": ["the color most like {w} is {x}.", "what is {w} close to? it is {x}."],
            "compare": ["which is closer to {w}, {a} or {b}? it is {x}.",
                        "is {w} almost like {a} or almost like {b}? it is almost like {x}."],
            "odd": ["{a}, {b} and {c}: the one that is not like the others is {x}."],
            "scene": ["in color, the {w} {s} is most like the {x} {t}."]},
        "shape": {
            "nearest": ["the shape most like the {w} is the {x}.",
                        "what is the {w} close to? it is the {x}."],
            "compare": ["which is closer to the {w}, the {a} or the {b}? it is the {x}.",
                        "is the {w} almost like the {a} or almost like the {b}? it is almost like "
                        "the {x}."],
            "odd": ["the {a}, the {b} and the {c}: the one that is not like the others is the "
                    "{x}."],
            "scene": ["in shape, the {w} is most like the {x}."]}},
    "test": {
        "colour": {
            "nearest": ["a color that is close to {w} is {x}.",
                        "which color looks nearly like {w}? it is {x}."],
            "compare": ["{a} or {b}, which is more like {w}? it is {x}.",
                        "of the colors {a} and {b}, the one closer to {w} is {x}."],
            "odd": ["one of {a}, {b} and {c} is not close to the others: it is {x}.",
                    "which is the odd color of {a}, {b} and {c}? it is {x}."],
            "scene": ["the color of the {w} {s} is close to that of the {x} {t}.",
                      "from far away, the {w} {s} has the same color as the {x} {t}."]},
        "shape": {
            "nearest": ["a shape that is close to the {w} is the {x}.",
                        "which shape looks nearly like the {w}? it is the {x}."],
            "compare": ["the {a} or the {b}, which is more like the {w}? it is the {x}.",
                        "of the shapes {a} and {b}, the one closer to the {w} is the {x}."],
            "odd": ["one of the {a}, the {b} and the {c} is not close to the others: it is the "
                    "{x}.",
                    "which is the odd shape of the {a}, the {b} and the {c}? it is the {x}."],
            "scene": ["the shape of the {w} here is close to that of the {x}.",
                      "here, from far away, the {w} has the same shape as the {x}."]}},
}
BLENDS = ["a color between {a} and {b} is {x}.", "{a} with a little {b} looks {x}."]


class Fact(NamedTuple):
    """A statement about looks.

    Attributes:
        kind, about: one of KINDS (or "between") and of ABOUT.
        template: the template that it was made from.
        intro: a sentence that says what there is in the scene, or "".
        prefix, answer, suffix: the statement is prefix + " " + answer + suffix.
        choices: words that could stand for the answer, the answer among them.
        subjects: the words whose looks are needed.
        scene: the Scene that the statement is about, or None if it needs none.
    """
    kind: str
    about: str
    template: str
    intro: str
    prefix: str
    answer: str
    suffix: str
    choices: tuple
    subjects: tuple
    scene: object

    @property
    def text(self):
        """The statement as a sentence, without the intro."""
        return f"{self.prefix} {self.answer}{self.suffix}"


def distance(about, one, other):
    """How unlike two words look: Lab distance of colours, 1 - overlap of shapes."""
    return (colour_distance(one, other) if about == "colour"
            else 1 - shape_similarity(one, other))


def nearest(about, word):
    """The basic word that looks most like a word."""
    return min(BASIC_COLOURS if about == "colour" else BASIC_SHAPES,
               key=lambda basic: distance(about, word, basic))


def is_clear(about, word, right, others):
    """Whether `right` is clearly more like `word` than all others are."""
    near = distance(about, word, right)
    return all(near <= CLEAR * distance(about, word, other) for other in others)


def subjects(split, about):
    """The words that statements of a split are about; "train": all that may be told about."""
    words = COLOURS if about == "colour" else SHAPES
    return [word for word, role in words.items()
            if role.split and (role.told if split == "train" else role.split == split)]


def group(rng, split, kind, about, scene_split=None, *, known=None):
    """Statements with the same template and choices, each choice right equally often.

    Args:
        rng: random.Random.
        split: whose templates and subjects: "train", "dev" or "test".
        kind, about: one of KINDS and of ABOUT.
        scene_split: whose scenes; the default is `split`'s.
        known: None, or with the templates of "train" whether the subjects may be told about.

    Returns:
        List of Fact; None if the words drawn give no clear answers.
    """
    count = CHOICES[about] if kind == "nearest" else 2
    words, pool = COLOURS if about == "colour" else SHAPES, subjects(split, about)
    if known is not None:
        pool = [word for word in pool if words[word].told == known]
        if len(pool) < count:
            return None
    words = rng.sample(pool, count)
    anchors = [nearest(about, word) for word in words]
    if len(set(anchors)) < count or not all(
            is_clear(about, word, anchor, set(anchors) - {anchor})
            for word, anchor in zip(words, anchors, strict=True)):
        return None
    template = rng.choice(TEMPLATES[split if known is None else "train"][about][kind])
    if kind == "odd":
        return _odd_group(rng, about, template, words, anchors)
    return _none_if_any_none(
        _fact(rng, scene_split or split, kind, about, template, word, anchor, anchors)
        for word, anchor in zip(words, anchors, strict=True))


def _none_if_any_none(facts):
    facts = list(facts)
    return None if None in facts else facts


def _fact(rng, scene_split, kind, about, template, word, anchor, anchors):
    scene, intro, slots = None, "", {}
    if kind == "scene":
        all_words = (word, anchor, *(other for other in anchors if other != anchor))
        wish = Wish(count=3, named=True, **{about + "s": all_words})
        scene = wished_scene(rng, scene_split, wish)
        if scene is None:
            return None
        intro = "there is " + join([article(noun(rng, thing, synonyms=False)) for thing in
                                    rng.sample(scene.things, 3)]) + "."
        slots = {"s": scene.things[0].shape, "t": scene.things[1].shape}
    if kind == "compare":
        slots = dict(zip("ab", rng.sample(anchors, 2), strict=True))
    return _fill(rng, kind, about, template, intro, anchor, anchors, (word,), scene,
                 w=word, **slots)


def _odd_group(rng, about, template, words, anchors):
    """For two pairs that look alike: each of the four words once as the odd one."""
    (one, other), (near_one, near_other) = words, anchors
    across = [distance(about, p, q) for p in (one, near_one) for q in (other, near_other)]
    if max(distance(about, one, near_one),
           distance(about, other, near_other)) > CLEAR * min(across):
        return None
    facts = []
    for alike, odd in (((one, near_one), near_other), ((other, near_other), near_one),
                       ((one, near_one), other), ((other, near_other), one)):
        three = rng.sample([*alike, odd], 3)
        facts.append(_fill(rng, "odd", about, template, "", odd, three,
                           tuple(word for word in words if word in three), None,
                           **dict(zip("abc", three, strict=True))))
    return facts


def _fill(rng, kind, about, template, intro, answer, choices, needed, scene, **slots):
    before, after = template.split("{x}")
    return Fact(kind, about, template, intro, before.format(**slots).rstrip(), answer,
                after.format(**slots), tuple(rng.sample(choices, len(choices))), needed, scene)


def told_fact(rng, scene_split):
    """A fact for a text, of any kind and about words that may be told about.

    Args:
        rng: random.Random.
        scene_split: the split of its scene if it needs one; "" if it may not need one.
    """
    while True:
        if rng.random() < 0.1:
            near, far = rng.sample(rng.choice(mixtures()), 2)
            template = rng.choice(BLENDS)
            before, after = template.format(a=near, b=far, x="{x}").split("{x}")
            return Fact("between", "colour", template, "", before.rstrip(), ISH[far],
                        f" {near}{after}", (ISH[far],), (), None)
        facts = group(rng, "train", rng.choice(KINDS if scene_split else KINDS[:-1]),
                      rng.choice(ABOUT), scene_split)
        if facts:
            return rng.choice(facts)


def items(split, count, statements=False):
    """The cloze items of "dev" or "test", as JSON values.

    A model scores each choice as the continuation " " + choice of the prefix. "told" says whether
    training texts may state facts about all words whose looks are needed.

    Args:
        split: "dev" or "test".
        count: how many at most; kinds with few different items give fewer.
        statements: take the texts' own templates, so that the words alone are new, and words for
            each group that are all told about or all not.

    Yields:
        dict with prefix, answer, choices, kind, about, subjects, told, group.
    """
    for number, facts in enumerate(item_groups(split, count, statements)):
        for fact in facts:
            yield item(fact, number, _prefix(fact))


def item(fact, number, prefix):
    """The JSON value of the cloze item that a Fact, number `number`'s, makes after a prefix."""
    words = COLOURS if fact.about == "colour" else SHAPES
    return {"prefix": prefix, "answer": fact.answer, "choices": list(fact.choices),
            "kind": fact.kind, "about": fact.about, "subjects": list(fact.subjects),
            "told": all(words[word].told for word in fact.subjects), "group": number}


def item_groups(split, count, statements):
    """Lists of Fact, a group each, that `items` are made from."""
    name = "statements" if statements else "cloze"
    wanted = [(kind, about, known) for kind in KINDS for about in ABOUT
              for known in ((True, False) if statements else (None,))]
    share = count // len(wanted)
    for kind, about, known in wanted:
        rng, seen, made, misses = _stream(name, split, kind, about, known), set(), 0, 0
        size = {"nearest": CHOICES[about], "odd": 4}.get(kind, 2)
        while made + size <= share and misses < 2000:
            facts = group(rng, split, kind, about, known=known)
            keys = {(_prefix(fact), tuple(sorted(fact.choices))) for fact in facts or []}
            if not facts or keys & seen:
                misses += 1
                continue
            misses, made = 0, made + size
            seen |= keys
            yield facts


def _stream(name, split, kind, about, known):
    return stream(VERSION, name, split, kind, about, *([] if known is None else [known]))


def _prefix(fact):
    """All that precedes the answer of a cloze item."""
    return f"{fact.intro} {fact.prefix}" if fact.intro else fact.prefix
