"""Items that language models are scored on: files of JSON lines, and the rows of tokens they give.

Tokens are cut where EleutherAI's lm-evaluation-harness cuts them: prefix and continuation are
encoded together, and the continuation's tokens are those past the number that the prefix has by
itself. White space at a prefix's end belongs to the continuation. Documents, and what has no
prefix, begin with the end-of-text id.
"""

import json
import re
from typing import NamedTuple

from configs.errors import UserError
from encoders.base import join_surrogates
from mesh.compat import tf

# What the parts of an item are called: here first, then in files of others.
_NAMES = {"prefix": ("prefix", "context", "query", "ctx"), "choices": ("choices", "endings"),
          "answer": ("answer", "gold", "label"), "completion": ("completion",), "text": ("text",)}


class Item(NamedTuple):
    """One line of a file of items.

    Attributes:
      kind: "choices", "completion" or "text".
      place: file and line, for messages.
      prefix: what comes before; "" for a text.
      texts: what is scored: the choices, the completion, or the text.
      answer: the right choice's number, 0 for the other kinds.
      parts: names of the parts of the file that are reported apart and hold the item, each a tuple.
    """

    kind: str
    place: str
    prefix: str
    texts: tuple
    answer: int
    parts: tuple


class Row(NamedTuple):
    """Tokens that go through the model together.

    Attributes:
      ids: 2 … n_ctx + 1 token ids.
      count: the last `count` of them are scored.
      cut: whether tokens that came before were left out.
    """

    ids: list
    count: int
    cut: bool = False


def lines(key, path):
    """The lines of a JSONL file that are not empty, each with its place, "file:number".

    Raises:
      UserError: the file, which the config's `key` names, cannot be read.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            found = file.read().split(b"\n")
    except tf.errors.OpError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.message}); give the path of a JSONL "
                        "file") from error
    return [(line, f"{path}:{number}") for number, line in enumerate(found, 1) if line.strip()]


def read(path):
    """The items of a file, all of one kind.

    Raises:
      UserError: there is no such file, or a line is no item.
    """
    items = [_item(line, place) for line, place in lines("eval_tasks", path)]
    if not items:
        raise UserError(f"eval_tasks: {path} has no items; give one JSON object a line")
    for item in items:
        if item.kind != items[0].kind:
            raise _error(item.place, f"is an item with {item.kind} in a file that began with "
                                     f"{items[0].kind}; give each kind a file")
    return items


def _item(line, place):
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _error(place, f"no JSON ({error})") from error
    if not isinstance(values, dict):
        raise _error(place, "no JSON object; write one item a line")
    keys = {part: next((name for name in names if name in values), part)
            for part, names in _NAMES.items()}
    kinds = [kind for kind in ("choices", "completion", "text") if keys[kind] in values]
    if len(kinds) != 1:
        raise _error(place, f"has {' and '.join(kinds) or 'none of choices, completion and text'}; "
                            "an item has one of choices, completion and text")
    kind = kinds[0]
    prefix, answer = "", 0
    if kind != "text":
        prefix = _text(values, keys["prefix"], place, empty=True)
    if kind == "choices":
        texts = values[keys["choices"]]
        if not isinstance(texts, list) or len(texts) < 2:
            raise _error(place, "choices must be a list of two or more texts")
        texts = tuple(_text(dict(enumerate(texts)), number, place, of="choices ")
                      for number in range(len(texts)))
        answer = _answer(values.get(keys["answer"]), texts, place)
    else:
        texts = (_text(values, kind, place),)
    return Item(kind, place, prefix, texts, answer, parts_of(values, place))


def _text(values, key, place, empty=False, of=""):
    text = values.get(key)
    if not isinstance(text, str):
        raise _error(place, f"{of}{key} must be text")
    if not text and not empty:
        raise _error(place, f"{of}{key} is empty")
    return join_surrogates(text)


def _answer(answer, choices, place):
    """The right choice's number, from it, in digits or not, or from the choice itself."""
    if isinstance(answer, str):
        if join_surrogates(answer) in choices:
            return choices.index(join_surrogates(answer))
        answer = int(answer) if re.fullmatch("[0-9]{1,9}", answer) else answer
    if type(answer) is int and 0 <= answer < len(choices):
        return answer
    raise _error(place, f"answer {json.dumps(answer, ensure_ascii=False)[:40]} is neither one of "
                        f"the choices nor a number from 0 to {len(choices) - 1}")


def parts_of(values, place):
    """The names of the parts that hold a line of a file, as Item has them.

    Raises:
      UserError: `told` or `about` is none.
    """
    found = []
    if "told" in values:
        if not isinstance(values["told"], bool):
            raise _error(place, "told must be true or false")
        found.append(("told",) if values["told"] else ("untold",))
    if "about" in values:
        found.append(("about", _text(values, "about", place)))
    return tuple(found)


def rows(item, encoder, n_ctx, begins=False):
    """The rows of an item: one for each choice, one for a completion, some for a text.

    Args:
      item: an Item.
      encoder: the encoder.
      n_ctx: the model's window.
      begins: whether prefixes begin with the end-of-text id too.

    Raises:
      UserError: the encoder does not know a character, or a continuation has no token of its own
        or more than n_ctx.
    """
    try:
        if item.kind == "text":
            return windows([encoder.eos_id, *encoder.encode(item.texts[0])], n_ctx, item.place)
        space = " " if item.kind == "choices" else ""
        prefix = item.prefix.rstrip()
        white = item.prefix[len(prefix):] + space
        known = len(encoder.encode(prefix)) if prefix else 0
        found = []
        for text in item.texts:
            ids = encoder.encode(prefix + white + text)
            count = len(ids) - known
            if not 0 < count <= n_ctx:
                raise UserError(f"{text[:40]!r} is {max(count, 0)} tokens after its prefix; from 1 "
                                f"to n_ctx = {n_ctx} can be scored")
            ids = ids if known and not begins else [encoder.eos_id, *ids]
            found.append(Row(ids[-(n_ctx + 1):], count, len(ids) > n_ctx + 1))
        return found
    except UserError as error:
        raise _error(item.place, str(error)) from error


def windows(ids, n_ctx, place):
    """Rows in which each id but the first is scored once, after as many others as fit.

    All rows are full but of a text shorter than n_ctx, so the last one looks back at what the one
    before it has scored.
    """
    if len(ids) < 2:
        raise _error(place, "the encoder finds no token in the text")
    found, done = [], 1
    while done < len(ids):
        end = min(done + n_ctx, len(ids))
        found.append(Row(ids[max(0, end - n_ctx - 1):end], end - done))
        done = end
    return found


def with_parts(mean, found, parts):
    """mean(found), and in it the same of each part of the items.

    Args:
      mean: a function of a list of items' scores that gives a dict.
      found: the scores of each item.
      parts: the names of each item's parts, as Item has them.
    """
    result = mean(found)
    for part in sorted({part for of_item in parts for part in of_item}):
        inner = result
        for name in part[:-1]:
            inner = inner.setdefault(name, {})
        inner[part[-1]] = mean([value for value, of_item in zip(found, parts, strict=True)
                                if part in of_item])
    return result


def _error(place, sentence):
    return UserError(f"eval_tasks: {place}: {sentence}")
