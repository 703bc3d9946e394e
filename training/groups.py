"""Groups of weights, whose norms say where a run goes wrong."""

import re

from training.optimizers import global_norm

# The first that fits a variable's name. A supervision's norm belongs to its projection.
_GROUPS = {
    "clip_projection": r"^clip_head/|/clip_input/",
    "embeddings": r"/(wte|wpe|class|patch)$|/wpe",
    "norms": r"/norm_?\w*/|/rezero$",
    "attention": r"/attn/",
    "experts": r"/moe/",
    "mlp": r"/mlp\w*/(in|out|gate|activation)",
    "convolutions": r"/conv\d+/",
    "head": r"/head/|^text_head/|/projection",
}
NAMES = (*_GROUPS, "other")


def group_of(name):
    """The group, one of NAMES, of a variable by its name."""
    return next((group for group, pattern in _GROUPS.items() if re.search(pattern, name)), "other")


def each(prefix, tensors, variables):
    """√ of the sum of squares of each: {"<prefix>/<variable's name>": mtf float32 scalar}.

    Args are those of `norms`.
    """
    return {f"{prefix}/{variable.name}": global_norm([tensor])
            for tensor, variable in zip(tensors, variables, strict=True)}


def norms(prefix, tensors, variables):
    """√ of the sum of squares of each group: {"<prefix>/<group>": mtf float32 scalar}.

    Args:
      prefix: what is measured.
      tensors: a list of mtf.Tensor, one for each variable.
      variables: a list of mtf.Variable.
    """
    found = {}
    for tensor, variable in zip(tensors, variables, strict=True):
        found.setdefault(group_of(variable.name), []).append(tensor)
    return {f"{prefix}/{group}": global_norm(found[group]) for group in NAMES if group in found}
