"""Where each of our variables is in another system's files: one table a family, for both ways.

A table is a list of `Rule`s. Its patterns are einops': the other system's dimensions, an arrow, and
ours. Our dimensions in them: embd, qkv, heads, features (features_per_head), hidden
(intermediate_expanded), vocab, positions (embed_sequence).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

import einops
import numpy as np

from configs.schema import RunConfig


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of our variables, or one for each layer.

    Attributes:
      ours: its name without "gpt/"; {} is the layer's number.
      theirs: the other system's name of it, or three names, of queries, keys and values, which are
        stacked; () where it has none, and ours is 0.
      pattern: "theirs -> ours" as einops reads it. Stacked tensors have a first dimension `qkv`.
      queries: what queries are multiplied by on their way to us, as a function of the layer.
    """

    ours: str
    theirs: str | tuple
    pattern: str
    queries: Callable | None = None

    @property
    def dims(self) -> list[str]:
        """Names of our variable's dimensions."""
        return self.pattern.partition("->")[2].split()

    def names(self, layer: int | None) -> list[str]:
        """The other system's names, a list."""
        names = (self.theirs,) if isinstance(self.theirs, str) else self.theirs
        return [name.format(layer) for name in names]

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape of one of the other system's tensors."""
        groups = re.findall(r"\(([^)]*)\)|(\S+)", self.pattern.partition("->")[0])
        shape = tuple(math.prod(_size(name, sizes) for name in (inner or single).split())
                      for inner, single in groups)
        return shape if isinstance(self.theirs, str) else shape[1:]

    def turned(self) -> str:
        """The pattern from ours to theirs."""
        theirs, ours = map(str.strip, self.pattern.split("->"))
        return f"{ours} -> {theirs}"


def _size(name, sizes):
    return int(name) if name.isdigit() else sizes[name]


def sizes(config: RunConfig) -> dict[str, int]:
    """The sizes of the dimensions in patterns, for a run's config."""
    return {"embd": config.n_embd, "qkv": 3, "heads": config.n_head, "features": config.head_size,
            "hidden": config.intermediate, "vocab": config.n_vocab, "positions": config.n_ctx}


def dense(ours: str, theirs: str | tuple, pattern: str, weight: str = ".weight",
          bias: str | None = ".bias", queries: Callable | None = None) -> list[Rule]:
    """Rules of a dense layer: `pattern` is the kernel's, and the bias has its outputs.

    Args:
      ours, theirs, queries: see Rule, without the endings.
      pattern: of the kernel; the dimensions of its inputs are those that `_inputs` names.
      weight, bias: the endings of the other system's names; bias is None where there is none.
    """
    def named(ending):
        return (f"{theirs}{ending}" if isinstance(theirs, str)
                else tuple(f"{name}{ending}" for name in theirs))

    inputs = _inputs(ours)
    right = [name for name in pattern.partition("->")[2].split() if name not in inputs]
    left = re.findall(r"\([^)]*\)|\S+", pattern.partition("->")[0])
    left = [part for part in left if not set(part.strip("()").split()) & {*inputs, "1"}]
    bias_pattern = f"{' '.join(left)} -> {' '.join(right)}"
    return [Rule(f"{ours}/kernel", named(weight), pattern, queries),
            Rule(f"{ours}/bias", () if bias is None else named(bias), bias_pattern, queries)]


def _inputs(ours):
    """Dimensions of a dense layer's inputs."""
    part = ours.rpartition("}/")[2]
    return {"attn/out": {"heads", "features"}, "mlp/out": {"hidden"}}.get(part, {"embd"})


def norm(ours: str, theirs: str, gain: str = ".weight",
         bias: str | None = ".bias") -> list[Rule]:
    """Rules of a layer norm; bias is None where there is none."""
    return [Rule(f"{ours}/gain", f"{theirs}{gain}", "embd -> embd"),
            Rule(f"{ours}/bias", () if bias is None else f"{theirs}{bias}", "embd -> embd")]


def names(rules: list[Rule], config: RunConfig) -> Iterator[tuple[Rule, int | None, str]]:
    """(Rule, layer, our variable's full name) of each variable of a model, in its order."""
    single = [rule for rule in rules if "{}" not in rule.ours]
    layered = [rule for rule in rules if "{}" in rule.ours]
    for rule in single:
        yield rule, None, f"gpt/{rule.ours}"
    for layer in range(config.n_layer):
        for rule in layered:
            yield rule, layer, f"gpt/{rule.ours.format(layer)}"


def to_ours(rules: list[Rule], config: RunConfig,
            take: Callable) -> Iterator[tuple[str, np.ndarray]]:
    """Our variables, one after the other, as they are taken from a file.

    Args:
      rules: a family's table.
      config: the RunConfig of the model that is made of them.
      take: (name, *shape) -> float32 values.

    Yields:
      (our variable's name, float32 values); the vocabulary is padded with zeros.
    """
    known = sizes(config)
    for rule, layer, name in names(rules, config):
        if not rule.theirs:
            values = np.zeros([known[dim] for dim in rule.dims], np.float32)
        else:
            parts = [take(their, *rule.shape(known)) for their in rule.names(layer)]
            values = einops.rearrange(parts[0] if isinstance(rule.theirs, str) else parts,
                                      rule.pattern, **_needed(rule, known))
        if rule.queries:
            values = _scaled(values, rule, np.multiply, rule.queries(layer))
        yield name, np.ascontiguousarray(_padded(values, rule, config))


def without_place(rules: list[Rule], config: RunConfig, get: Callable) -> list[str]:
    """Names of our variables that are not 0, and for which the other system has no place.

    Args:
      rules: a family's table.
      config: the RunConfig of the model.
      get: our variable's name -> its values.
    """
    return [name for rule, _, name in names(rules, config)
            if not rule.theirs and np.any(get(name))]


def to_theirs(rules: list[Rule], config: RunConfig,
              get: Callable) -> Iterator[tuple[str, np.ndarray]]:
    """The other system's tensors, one after the other: the inverse of `to_ours`.

    Args:
      rules, config, get: see `without_place`.

    Yields:
      (the other system's name, float32 values); padded ids are left out.
    """
    known = sizes(config)
    for rule, layer, name in names(rules, config):
        if not rule.theirs:
            continue
        values = get(name)
        if "vocab" in rule.dims:
            values = np.take(values, range(config.n_vocab), rule.dims.index("vocab"))
        if rule.queries:
            values = _scaled(values, rule, np.divide, rule.queries(layer))
        # Of a tensor that the other system has twice, copies are made.
        values = einops.repeat(values, rule.turned(), **_needed(rule, known))
        parts = [values] if isinstance(rule.theirs, str) else values
        for their, part in zip(rule.names(layer), parts, strict=True):
            yield their, np.ascontiguousarray(part)


def _needed(rule, known):
    """The sizes of those dimensions that a pattern has."""
    return {name: size for name, size in known.items()
            if re.search(rf"\b{name}\b", rule.pattern)}


def _scaled(values, rule, operation, factor):
    """The values with their queries multiplied, or divided, by a factor."""
    values = np.array(values)
    index: list[slice | int] = [slice(None)] * values.ndim
    index[rule.dims.index("qkv")] = 0
    values[tuple(index)] = operation(values[tuple(index)], np.float32(factor))
    return values


def _padded(values, rule, config):
    """The values with zeros for the ids that the stored table has beyond the vocabulary."""
    widths = [(0, config.n_vocab_padded - config.n_vocab if dim == "vocab" else 0)
              for dim in rule.dims]
    return np.pad(values, widths) if any(map(any, widths)) else values
