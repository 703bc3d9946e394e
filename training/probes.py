"""Visual knowledge: what a language model says of objects' colours, shapes, materials and sizes.

Files are those of CoDa (Paik et al. 2021, "The World of an Octopus", arXiv:2110.08182) and ViComTe
(Zhang et al. 2022, "Visual Commonsense in Pretrained Unimodal and Multimodal Models",
arXiv:2205.01850). Candidates stand where a template has [MASK] and are scored by the likelihood of
the rest of the sentence from there on; an object's distribution is the mean over its templates.
"""

import json
import logging
from typing import NamedTuple

import numpy as np

from configs.errors import UserError
from configs.values import probe_of
from encoders.base import join_surrogates
from training import items, rank_correlation

MASK = "[MASK]"
_CODA = ("black", "blue", "brown", "gray", "green", "orange", "pink", "purple", "red", "white",
         "yellow")
_COLOR_TEMPLATES = ("This {} is [MASK].", "The color of the {} is [MASK].")


class _Relation(NamedTuple):
    """Candidates in the order of the files' distributions, and sentences about an object."""

    candidates: tuple
    templates: tuple


RELATIONS = {
    "coda": _Relation(_CODA, _COLOR_TEMPLATES),
    "color": _Relation((*_CODA[:9], "silver", *_CODA[9:]), _COLOR_TEMPLATES),
    "shape": _Relation(
        ("cross", "heart", "octagon", "oval", "polygon", "rectangle", "rhombus", "round",
         "semicircle", "square", "star", "triangle"),
        ("The shape of the {} is [MASK].", "The {} has the shape [MASK].")),
    "material": _Relation(
        ("bronze", "ceramic", "cloth", "concrete", "cotton", "denim", "glass", "gold", "iron",
         "jade", "leather", "metal", "paper", "plastic", "rubber", "stone", "tin", "wood"),
        ("The {} is made of [MASK].", "The material of the {} is [MASK].")),
    "size_larger": _Relation((), ("The {} is larger than the [MASK].",
                                  "The {} is bigger than the [MASK].")),
    "size_smaller": _Relation((), ("The {} is smaller than the [MASK].",
                                   "The {} is not as big as the [MASK]."))}
_GROUPS = ("Single", "Multi", "Any")


class Probe(NamedTuple):
    """An object, what is asked about it, and what people or pictures say.

    Attributes:
      place: file and line, for messages.
      templates: sentences with [MASK].
      candidates: what may stand there.
      target: [candidates], a distribution that sums to 1; (1, 0) for a pair.
      ranked: whether the target is more than a choice between two.
      parts: as those of training.items.Item.
    """

    place: str
    templates: tuple
    candidates: tuple
    target: tuple
    ranked: bool
    parts: tuple


class File:
    """A file of probes and its rows.

    Args:
      entry: the entry of `eval_tasks`, such as "coda:default_test.jsonl".
      encoder: the encoder of the run's weights.
      config: the run's config.

    Raises:
      UserError: the file cannot be read, or a line is no probe.
    """

    def __init__(self, entry, encoder, config):
        self._probes = read(entry)
        self.rows = [row for probe in self._probes for template in probe.templates
                     for row in _rows(probe, template, encoder, config)]
        self._cut = sum(row.cut for row in self.rows)
        if self._cut:
            logging.info("note: %s: %d of %d sentences are longer than n_ctx = %d and lose their "
                         "beginning", entry, self._cut, len(self.rows), config.n_ctx)

    def scores(self, sums, likeliest):
        """Scores from Scorer.score's results for all rows: see docs/evaluation.md."""
        ends = np.cumsum([len(p.templates) * len(p.candidates) for p in self._probes])
        found = [_score(probe, values.reshape(len(probe.templates), -1)) for probe, values in zip(
            self._probes, np.split(sums, ends[:-1]), strict=True)]
        parts = [probe.parts for probe in self._probes]
        return {**items.with_parts(_mean, found, parts), "cut": self._cut}


def _rows(probe, template, encoder, config):
    before, _, after = template.partition(MASK)
    texts = tuple(candidate + after for candidate in probe.candidates)
    item = items.Item("choices", probe.place, before.rstrip(), texts, 0, ())
    return items.rows(item, encoder, config.n_ctx, config.eval_tasks_bos)


def _score(probe, sums):
    """Scores of an object from its sentences' log-likelihoods, [templates, candidates]."""
    logs = sums - np.logaddexp.reduce(sums, axis=1, keepdims=True)
    found, target = np.mean(np.exp(logs), axis=0), np.array(probe.target)
    right = target == target.max()
    result = {"acc": float(right[np.argmax(found)]), "chance": float(np.mean(right))}
    if probe.ranked:
        result["spearman"] = rank_correlation.spearman(found, target)
        result["kendall"] = rank_correlation.kendall(found, target)
    return result


def _mean(found):
    """Means over objects; of a correlation over those that have one."""
    result = {"items": len(found)}
    for name in found[0]:
        values = [value[name] for value in found if not np.isnan(value[name])]
        if values:
            result[name] = float(np.mean(values))
    return result


def read(entry):
    """The Probes of an entry of `eval_tasks`.

    Raises:
      UserError: the file cannot be read, or a line has none of the known forms.
    """
    name, path = probe_of(entry)
    found, form = [], None
    for line, place in items.lines("eval_tasks", path):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _error(place, f"no JSON ({error})") from error
        of_line = _form(values, name, place)
        if form not in (None, of_line):
            raise _error(place, "has another form than the lines before it; give each a file")
        form = of_line
        found += form(values, name, place)
    found = _joined(found)
    if not found:
        raise UserError(f"eval_tasks: {path} has no probes; give lines of CoDa, with {MASK} in "
                        "their text, or of ViComTe")
    return found


def _form(values, name, place):
    """The function that reads a line."""
    if isinstance(values, dict) and {"sub", "obj", "alt"} <= values.keys():
        return _pair
    if isinstance(values, dict) and name == "coda" and {"text", "label"} <= values.keys():
        return _coda
    if RELATIONS[name].candidates and isinstance(values, dict) and values and all(
            isinstance(value, list) for value in values.values()):
        return _distributions
    forms = ["sub, obj and alt"]
    if RELATIONS[name].candidates:
        forms.append("objects with their lists of "
                     f"{len(RELATIONS[name].candidates)} numbers")
    if name == "coda":
        forms.append("text, label and ngram")
    raise _error(place, f"is no line of {name}, which has {', or '.join(forms)}")


def _pair(values, name, place):
    """ViComTe's db: an object, its attribute or the object it compares with, and a wrong one."""
    subject, *pair = (_text(values, key, place) for key in ("sub", "obj", "alt"))
    if pair[0] == pair[1]:
        raise _error(place, f"obj and alt are both {pair[0]!r}")
    return [Probe(place, _filled(name, subject), tuple(pair), (1.0, 0.0), False,
                  items.parts_of(values, place))]


def _distributions(values, name, place):
    """ViComTe's distributions: all objects in a line, each with a count or share per candidate."""
    candidates = RELATIONS[name].candidates
    return [Probe(place, _filled(name, join_surrogates(subject)), candidates,
                  _shares(numbers, candidates, subject, place), True, ())
            for subject, numbers in values.items()]


def _coda(values, name, place):
    """CoDa's templated lines: a sentence about an object; without [MASK] they are CLIP's."""
    text = _text(values, "text", place)
    if text.count(MASK) != 1:
        return []
    candidates, group = RELATIONS[name].candidates, values.get("object_group")
    if type(group) is int and 0 <= group < len(_GROUPS):
        group = _GROUPS[group]
    parts = items.parts_of(values, place)
    if isinstance(group, str) and group:
        parts += (("about", group.lower()),)
    key = "ngram" if "ngram" in values else "class_id"
    subject = _text(values, key, place)
    target = _shares(values["label"], candidates, subject, place)
    return [(subject, Probe(place, (text,), candidates, target, True, parts))]


def _joined(found):
    """CoDa's sentences about an object as one Probe; others as they are."""
    result = {}
    for number, value in enumerate(found):
        subject, probe = (number, value) if isinstance(value, Probe) else value
        first = result.get(subject)
        if first is None:
            result[subject] = probe
            continue
        if first.target != probe.target:
            raise _error(probe.place, f"label of {subject} is another one than in {first.place}")
        result[subject] = first._replace(templates=first.templates + probe.templates)
    return list(result.values())


def _filled(name, subject):
    return tuple(template.format(subject) for template in RELATIONS[name].templates)


def _shares(numbers, candidates, subject, place):
    right = isinstance(numbers, list) and len(numbers) == len(candidates) and all(
        type(x) in (int, float) and 0 <= x < float("inf") for x in numbers)
    if not right or not sum(numbers):
        raise _error(place, f"{subject} must have {len(candidates)} numbers from 0, not all 0: of "
                            f"{', '.join(candidates)}")
    return tuple(x / sum(numbers) for x in numbers)


def _text(values, key, place):
    text = values.get(key)
    if not isinstance(text, str) or not text.strip():
        raise _error(place, f"{key} must be text")
    return join_surrogates(text)


def _error(place, sentence):
    return UserError(f"eval_tasks: {place}: {sentence}")
