"""datasets/wikitext.py: the tokenised form of WikiText, undone."""

import os
import re
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import wikitext  # noqa: E402


def in_form(text):
    """Ordinary text in WikiText's form, by the rules of a tokenizer as Moses': marks set apart."""
    lines = []
    for line in text.split("\n"):
        line = re.sub(r"(?<=\d)([,.])(?=\d)", r" @\1@ ", line)
        line = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", line)
        line = re.sub(r"(?<![@ ])([,.;:!?)\]])(?![@])", r" \1", line)
        line = re.sub(r"([(\[])", r"\1 ", line)
        line = re.sub(r"(?<=\w)('(?:s|t|re|ve|ll|d|m))\b", r" \1", line)
        lines.append(f" {line} " if line else " ")
    return "\n".join(lines)


def test_text_comes_back_from_the_form(shared_data):
    with open(os.path.join(shared_data, "tinyshakespeare.txt"), encoding="utf-8") as file:
        lines = file.read(200000).split("\n")
    # Shakespeare's "an 't please you" and "friends,--" are in no tokenizer's rules.
    lines = [line for line in lines if not re.search(r"\W'|'\W|--|'d\b|n't|on't|to't|  | $", line)]
    text = "\n".join(["Of 1,234,567.5 lines (all in [old] English; so-called):", *lines])
    form = in_form(text)
    assert form.count(" @") > 50 and form.count(" ,") > 1000 and form.count(" 's") > 100
    assert wikitext.detokenize(form) == text
    assert wikitext.detokenize(text) == text  # which is not in the form


@pytest.mark.parametrize("form, text", [
    (' " A game " , he said , " is " a " . ', '"A game", he said, "is" a ".'),
    (" the boys ' house and ' this ' one ", "the boys' house and 'this' one"),
    (" = = = Early life = = = ", "=== Early life ==="), (" = Title = ", "= Title ="),
    (" = = Plot , part 2 = = ", "== Plot, part 2 =="),
    (" 25 ° C at 10 : 30 { x } ", "25°C at 10: 30 {x}"),
    (" \n \n x \n", "\n\nx\n"), (" <unk> N <unk> ", "<unk> N <unk>")])
def test_rules(form, text):
    assert wikitext.detokenize(form) == text == wikitext.detokenize(text)


@pytest.mark.parametrize("text", [
    "", "    if x == (1, 2):\n        return [x]\n", "a  b", "  two at both ends  ", ". x", "@-@",
    'an "odd quote', "\tx = {'a': 1}; y", "user@-@host"])
def test_other_text_stays_as_it_is(text):
    assert wikitext.detokenize(text) == text
