"""mesh_shape and layout: their syntax, the model's named dimensions, and which splits can work."""

import re
from typing import Any, NamedTuple

from configs.errors import UserError
from configs.messages import did_you_mean

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Dimension(NamedTuple):
    """A named dimension of the model's tensors: the public interface of layout rules."""

    size: str  # the keys that decide its size, for the reference page
    meaning: str
    splittable: bool


DIMENSIONS = {
    "batch": Dimension("train_batch_size, eval_batch_size",
                       "sequences of a step; splitting it is data parallelism", True),
    "sequence": Dimension("n_ctx", "positions of a sequence", False),
    "memory_length": Dimension("n_ctx", "positions that attention looks back at", False),
    "embed_sequence": Dimension("n_ctx", "rows of the learned position table", True),
    "embd": Dimension("n_embd", "width of the residual stream", True),
    "vocab": Dimension("n_vocab, padded to pad_vocab_multiple",
                       "rows of the token table and the logits", True),
    "qkv": Dimension("3", "query, key and value, packed into one weight", False),
    "heads": Dimension("n_head", "attention heads", True),
    "features_per_head": Dimension("n_embd / n_head", "width of one head", False),
    "intermediate_expanded": Dimension("4 × n_embd", "hidden width of a feed-forward block", True),
}

# Each mesh axis may split one dimension of a tensor: two would ask for a diagonal of slices.
TENSORS = {
    "the token table": ("vocab", "embd"),
    "the position table": ("embed_sequence", "embd"),
    "the query, key and value weights": ("embd", "qkv", "heads", "features_per_head"),
    "the attention output weights": ("heads", "features_per_head", "embd"),
    "the feed-forward weights": ("embd", "intermediate_expanded"),
    "the residual stream": ("batch", "sequence", "embd"),
    "the attention weights": ("batch", "heads", "sequence", "memory_length"),
    "the feed-forward activations": ("batch", "sequence", "intermediate_expanded"),
    "the logits": ("batch", "sequence", "vocab"),
}


def parse_pairs(value: Any, example: str) -> list[tuple[str, str]]:
    """Pairs written as mtf writes them ("x:4,y:2"), or as a list of pairs.

    Raises:
        ValueError: something is not a pair, or a first name is given twice or is no name.
    """
    if value is None:
        value = ""
    if isinstance(value, str):
        items = [item.split(":") for item in re.split(r"[,.;\s]+", value.strip()) if item]
    elif isinstance(value, list | tuple):
        items = [list(item) if isinstance(item, list | tuple) else [item] for item in value]
    else:
        raise ValueError(f"must be text such as \"{example}\", not {value!r}")
    pairs = []
    for item in items:
        if len(item) != 2 or isinstance(item[1], bool) or not NAME.fullmatch(str(item[0])):
            wrong = ":".join(map(str, item))
            raise ValueError(f"{wrong} is no pair; write it as in \"{example}\"")
        pairs.append((str(item[0]), str(item[1])))
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice; keep one")
    return pairs


def parse_mesh_shape(value: Any) -> list[tuple[str, int]]:
    """[("x", 4), ("y", 2)] from "x:4,y:2".

    Raises:
        ValueError: wrong syntax or a size below 1.
    """
    mesh = []
    for name, size in parse_pairs(value, "x:4,y:2"):
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"{name}:{size}: the size must be a whole number, 1 or more")
        mesh.append((name, int(size)))
    return mesh


def parse_layout(value: Any) -> list[tuple[str, str]]:
    """[("batch", "x"), ("heads", "y")] from "batch:x,heads:y".

    Raises:
        ValueError: wrong syntax, a dimension that does not exist or that may not be split.
    """
    rules = parse_pairs(value, "batch:x,heads:y")
    for name, _ in rules:
        if name not in DIMENSIONS:
            hint = did_you_mean(name, DIMENSIONS) or f"; known: {', '.join(DIMENSIONS)}"
            raise ValueError(f"{name} is no dimension of the model{hint}")
        if not DIMENSIONS[name].splittable:
            able = [other for other, dim in DIMENSIONS.items() if dim.splittable]
            raise ValueError(f"{name} cannot be split in this release; remove the rule "
                             f"(can be split: {', '.join(able)})")
    return rules


def check_layout(config: Any) -> None:
    """Refuses layout rules that the mesh or the model's sizes cannot follow.

    Raises:
        UserError: an unknown mesh axis, a size that the axis does not divide, or two dimensions
            of one tensor on one axis.
    """
    mesh, rules = dict(config.mesh), dict(config.layout_rules)
    for name, axis in rules.items():
        if axis not in mesh:
            known = f"mesh_shape has {', '.join(mesh)}" if mesh else "mesh_shape is empty"
            raise UserError(f"layout: {name}:{axis} names a mesh axis that does not exist; {known}")
    for tensor, dims in TENSORS.items():
        for number, first in enumerate(dims):
            for second in dims[number + 1:]:
                if first in rules and rules[first] == rules.get(second):
                    raise UserError(
                        f"layout: {first}:{rules[first]} and {second}:{rules[second]} would split "
                        f"two dimensions of {tensor} over one mesh axis; split one of them")
    for name, axis in rules.items():
        for key, size in _sizes(config, name):
            if size % mesh[axis]:
                raise UserError(f"layout: {name}:{axis} splits {key} = {size} over {axis}:"
                                f"{mesh[axis]}, which does not divide it; "
                                f"{_remedy(name, key, mesh[axis])}")


def _sizes(config: Any, dimension: str) -> list[tuple[str, int]]:
    """(key, size) of everything that a rule for `dimension` has to divide."""
    return {
        "batch": [("train_batch_size", config.train_batch_size),
                  ("eval_batch_size", config.eval_batch_size)],
        "embed_sequence": [("n_ctx", config.n_ctx)],
        "embd": [("n_embd", config.n_embd)],
        "vocab": [("the padded n_vocab", config.n_vocab_padded)],
        "heads": [("n_head", config.n_head)],
        "intermediate_expanded": [("4 × n_embd", 4 * config.n_embd)],
    }[dimension]


def _remedy(dimension: str, key: str, size: int) -> str:
    if dimension == "vocab":
        return f"make pad_vocab_multiple a multiple of {size}"
    if dimension in ("heads", "embd", "embed_sequence", "intermediate_expanded"):
        return "change mesh_shape or remove the rule"
    return f"make {key} a multiple of {size}"


def idle_axes(config: Any) -> list[str]:
    """Mesh axes longer than 1 that no rule uses: their devices repeat each other's work."""
    used = {axis for _, axis in config.layout_rules}
    return [name for name, size in config.mesh if size > 1 and name not in used]


def pairs_text(pairs: list[tuple]) -> str:
    """Pairs as mtf writes them: "x:4,y:2"."""
    return ",".join(f"{first}:{second}" for first, second in pairs)
