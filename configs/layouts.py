"""mesh_shape and layout: their syntax, the model's named dimensions, and which splits can work."""

import re
from typing import Any, NamedTuple

from configs.errors import UserError
from configs.messages import did_you_mean

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


LANGUAGE_MODELS = ("GPT", "gpt_c")
TOWERS = ("clip", "clip_student", "gpt_c")


class Dimension(NamedTuple):
    """A named dimension of the model's tensors: the public interface of layout rules."""

    size: str  # the keys that decide its size, for the reference page
    meaning: str
    splittable: bool
    models: tuple[str, ...] = LANGUAGE_MODELS  # the kinds of model that have it


DIMENSIONS = {
    "batch": Dimension("train_batch_size, eval_batch_size",
                       "sequences or pictures of a step; splitting it is data parallelism", True,
                       ("GPT", *TOWERS)),
    "sequence": Dimension("n_ctx", "positions of a sequence; in sampling none is split", True),
    "memory_length": Dimension("n_ctx", "positions that attention looks back at", True),
    "embed_sequence": Dimension("n_ctx", "rows of the learned position table", True),
    "embd": Dimension("n_embd", "width of the residual stream", True),
    "vocab": Dimension("n_vocab, padded to pad_vocab_multiple",
                       "rows of the token table and the logits", True),
    "qkv": Dimension("3", "query, key and value, packed into one weight", False,
                     ("GPT", *TOWERS)),
    "heads": Dimension("n_head", "attention heads", True),
    "features_per_head": Dimension("n_embd / n_head", "width of one head", True),
    "mem_kv": Dimension("num_mem_kv", "learned memory keys and values of a head", False),
    "intermediate_expanded": Dimension("intermediate_size, or 4 × n_embd",
                                       "hidden width of a feed-forward block", True),
    "glu": Dimension("2", "value and gate of a gated feed-forward block, or the two parts of "
                          "crelu, in one weight", False),
    "axial_dim_0": Dimension("axial_dims", "rows of the first table of axial positions", False),
    "axial_dim_1": Dimension("axial_dims", "rows of the second one", False),
    "experts": Dimension("moe_params.num_experts",
                         "experts of a layer; over the batch's axis, tokens travel to them", True),
    "expert_hidden": Dimension("moe_params.hidden_size", "hidden width of an expert", True),
    "clip_embd": Dimension("n_embd", "width of the text tower, student or teacher", True, TOWERS),
    "clip_heads": Dimension("n_head", "its attention heads", True, TOWERS),
    "clip_features_per_head": Dimension("n_embd / n_head", "width of one of its heads", False,
                                        TOWERS),
    "clip_intermediate": Dimension("4 × n_embd", "hidden width of its feed-forward blocks", True,
                                   TOWERS),
    "clip_vocab": Dimension("n_vocab, padded to pad_vocab_multiple", "rows of its token table",
                            True, TOWERS),
    "clip_out": Dimension("clip.out", "width of embeddings, and of what a student says", True,
                          TOWERS),
    "clip_sequence": Dimension("n_ctx", "positions of its text", False, TOWERS),
    "clip_memory_length": Dimension("n_ctx", "positions that its attention looks back at", False,
                                    TOWERS),
    "clip_embed_sequence": Dimension("n_ctx of a CLIP", "rows of its table of positions", True,
                                     ("clip", "clip_student")),
    "clip_candidates": Dimension("train_batch_size, clip.samples",
                                 "what a contrastive loss compares with", False, TOWERS),
    "clip_image_embd": Dimension("clip.image_width", "width of the vision transformer", True,
                                 ("clip",)),
    "clip_image_heads": Dimension("clip.image_heads", "its attention heads", True, ("clip",)),
    "clip_image_intermediate": Dimension("4 × clip.image_width",
                                         "hidden width of its feed-forward blocks", True,
                                         ("clip",)),
    "clip_image_features": Dimension("clip.image_channels", "features of the convolutions", False,
                                     ("clip",)),
}

# A tower's sizes are keys of its own run, where they mean what a GPT's mean.
_OF_TOWER = {"clip_embd": "embd", "clip_heads": "heads", "clip_vocab": "vocab",
             "clip_intermediate": "intermediate_expanded", "clip_embed_sequence": "embed_sequence"}

# Each mesh axis may split one dimension of a tensor: two would ask for a diagonal of slices.
TENSORS = {
    "the token table": ("vocab", "embd"),
    "the position table": ("embed_sequence", "embd"),
    "the axial position tables": ("axial_dim_0", "axial_dim_1", "embd"),
    "the query, key and value weights": ("embd", "qkv", "heads", "features_per_head"),
    "the attention output weights": ("heads", "features_per_head", "embd"),
    "the feed-forward weights": ("embd", "glu", "intermediate_expanded"),
    "the residual stream": ("batch", "sequence", "embd"),
    "the queries": ("batch", "sequence", "heads", "features_per_head"),
    "the keys and values": ("batch", "memory_length", "heads", "features_per_head"),
    "the learned memories": ("mem_kv", "heads", "features_per_head"),
    "the attention weights": ("batch", "heads", "sequence", "memory_length"),
    "the feed-forward activations": ("batch", "sequence", "intermediate_expanded"),
    "the logits": ("batch", "sequence", "vocab"),
    "the experts' weights": ("experts", "embd", "expert_hidden"),
    "the experts' activations": ("batch", "expert_hidden"),
    "CLIP's token table": ("clip_vocab", "clip_embd"),
    "CLIP's looked-up tokens": ("batch", "clip_sequence", "clip_vocab"),
    "CLIP's position table": ("clip_embed_sequence", "clip_embd"),
    "CLIP's query, key and value weights": ("clip_embd", "qkv", "clip_heads",
                                            "clip_features_per_head"),
    "CLIP's attention output weights": ("clip_heads", "clip_features_per_head", "clip_embd"),
    "CLIP's feed-forward weights": ("clip_embd", "clip_intermediate"),
    "CLIP's residual stream": ("batch", "clip_sequence", "clip_embd"),
    "CLIP's attention weights": ("batch", "clip_heads", "clip_sequence", "clip_memory_length"),
    "CLIP's feed-forward activations": ("batch", "clip_sequence", "clip_intermediate"),
    "CLIP's projection": ("clip_embd", "clip_out"),
    "CLIP's embeddings": ("batch", "clip_sequence", "clip_out"),
    "what a student says to the GPT": ("batch", "sequence", "clip_out"),
    "the projection between the GPT and its student": ("embd", "clip_out"),
    "the image tower's query, key and value weights": ("clip_image_embd", "clip_image_heads"),
    "the image tower's feed-forward weights": ("clip_image_embd", "clip_image_intermediate"),
    "the image tower's residual stream": ("batch", "clip_image_embd"),
    "the image tower's attention weights": ("batch", "clip_image_heads"),
    "the image tower's feed-forward activations": ("batch", "clip_image_intermediate"),
    "the image tower's projection": ("clip_image_embd", "clip_out"),
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

    The sizes of a tower that is another run's are not known here: see `check_tower`.

    Raises:
        UserError: an unknown mesh axis, a dimension that the kind of model does not have, a size
            that the axis does not divide, or two dimensions of one tensor on one axis.
    """
    mesh, rules = dict(config.mesh), dict(config.layout_rules)
    for name, axis in rules.items():
        _check_has(config, name, axis)
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


def check_tower(config: Any, key: str, tower: Any, out: int) -> None:
    """Refuses layout rules that the sizes of another run's tower cannot follow.

    Args:
        config: the run's config.
        key: the key that names the other run: clip.teacher or clip.student.
        tower: the other run's config.
        out: the width of its outputs.

    Raises:
        UserError: a size that the rule's mesh axis does not divide.
    """
    mesh = dict(config.mesh)
    for name, axis in config.layout_rules:
        sizes = [("the width of its outputs", out)] if name == "clip_out" else (
            _sizes(tower, name) if name in _OF_TOWER else [])
        for what, size in sizes:
            if size % mesh[axis]:
                raise UserError(f"layout: {name}:{axis} splits {what} = {size} of {key} over {axis}"
                                f":{mesh[axis]}, which does not divide it; change mesh_shape or "
                                "remove the rule")


def _check_has(config: Any, name: str, axis: str) -> None:
    """Refuses a rule for a dimension that no tensor of the kind of model has."""
    if config.model not in DIMENSIONS[name].models:
        other = {**_OF_TOWER, **{gpt: clip for clip, gpt in _OF_TOWER.items()}}.get(name)
        hint = (f" or write {other}:{axis}"
                if other and config.model in DIMENSIONS[other].models else "")
        raise UserError(f"layout: {name}:{axis}: model {config.model} has no {name}; remove the "
                        f"rule{hint}")
    if name in ("experts", "expert_hidden") and not config.moe_layers:
        raise UserError(f"layout: {name}:{axis}: only a model with moe_layers has it; remove the "
                        "rule")
    if name.startswith("clip_image_") and config.clip.image_tower != "vit":
        raise UserError(f"layout: {name}:{axis}: only clip.image_tower = \"vit\" has it; remove "
                        "the rule")


def _sizes(config: Any, dimension: str) -> list[tuple[str, int]]:
    """(key, size) of everything of this run that a rule for `dimension` has to divide."""
    if dimension in _OF_TOWER:
        has = config.model == "clip" or (
            config.model == "clip_student" and dimension != "clip_embed_sequence")
        return _sizes(config, _OF_TOWER[dimension]) if has else []
    clip = config.clip
    return {
        "clip_out": ([("clip.out", config.clip_out)]
                     if config.model == "clip" or config.text_only else []),
        "clip_image_embd": [("clip.image_width", clip.image_width)],
        "clip_image_heads": [("clip.image_heads", clip.image_heads)],
        "clip_image_intermediate": [("4 × clip.image_width", 4 * clip.image_width)],
        "batch": [("train_batch_size", config.train_batch_size),
                  ("eval_batch_size", config.eval_batch_size)],
        **dict.fromkeys(("sequence", "memory_length", "embed_sequence"),
                        [("n_ctx", config.n_ctx)]),
        "embd": [("n_embd", config.n_embd)],
        "vocab": [("the padded n_vocab", config.n_vocab_padded)],
        "heads": [("n_head", config.n_head)],
        "features_per_head": [("n_embd / n_head", config.head_size)],
        "intermediate_expanded": [("intermediate_size" if config.intermediate_size
                                   else "4 × n_embd", config.intermediate)],
        "experts": [("moe_params.num_experts", config.moe_params.num_experts)],
        "expert_hidden": [("moe_params.hidden_size",
                           config.moe_params.hidden_size or 4 * config.n_embd)],
    }[dimension]


def _remedy(dimension: str, key: str, size: int) -> str:
    if dimension in ("vocab", "clip_vocab"):
        return f"make pad_vocab_multiple a multiple of {size}"
    if dimension == "batch":
        return f"make {key} a multiple of {size}"
    return "change mesh_shape or remove the rule"


def idle_axes(config: Any) -> list[str]:
    """Mesh axes longer than 1 that no rule uses: their devices repeat each other's work."""
    used = {axis for _, axis in config.layout_rules}
    return [name for name, size in config.mesh if size > 1 and name not in used]


def pairs_text(pairs: list[tuple]) -> str:
    """Pairs as mtf writes them: "x:4,y:2"."""
    return ",".join(f"{first}:{second}" for first, second in pairs)
