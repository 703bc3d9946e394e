"""Which meshes a number of cores can make, and which layout rules a config lets through."""

from collections.abc import Iterator
from typing import Any

from configs import layouts
from configs.errors import UserError

AXES = "xyzw"


def mesh_shapes(cores: int, most: int = 2) -> list[list[int]]:
    """Ways to write `cores` as a product of up to `most` axes longer than 1, the order counted.

    Any number of cores will do, not only powers of two. One core is [[1]].
    """
    if cores == 1:
        return [[1]]
    found = [[cores]]
    if most > 1:
        for first in range(2, cores // 2 + 1):
            if cores % first == 0:
                found += [[first, *rest] for rest in mesh_shapes(cores // first, most - 1)]
    return found


def mesh_text(sizes: list[int]) -> str:
    """[4, 2] as "x:4,y:2"."""
    return layouts.pairs_text(list(zip(AXES, sizes, strict=False)))


def splittable(config: Any) -> list[str]:
    """Names of the dimensions that layout rules of the config's kind of model may split."""
    return [name for name, dim in layouts.DIMENSIONS.items()
            if dim.splittable and config.model in dim.models]


def refusal(config: Any, layout: str, **changes: Any) -> str | None:
    """Why the config cannot have a layout, in one line; None if it can.

    Args:
        config: a RunConfig. layout: such as "batch:x,heads:y".
        changes: other keys to change with it, such as mesh_shape.
    """
    try:
        config.replace(layout=layout, **changes)
    except UserError as error:
        return str(error)
    return None


def by_dimension(config: Any, mesh_shape: str) -> dict[str, dict[str, str | None]]:
    """{dimension: {axis: why that rule alone cannot be, or None if it can}} of a mesh shape."""
    axes = [name for name, _ in layouts.parse_mesh_shape(mesh_shape)]
    return {name: {axis: refusal(config, f"{name}:{axis}", mesh_shape=mesh_shape)
                   for axis in axes} for name in splittable(config)}


def all_layouts(config: Any, mesh_shape: str) -> Iterator[Any]:
    """The config with each layout that the checks let through, and that leaves no axis idle.

    A GPT-C's student is small and frozen: dimensions of its own stay whole.

    Args:
        config: a RunConfig of a language model. mesh_shape: such as "x:4,y:2".
    """
    axes = [name for name, size in layouts.parse_mesh_shape(mesh_shape) if size > 1]
    able = {name: [axis for axis in axes if found[axis] is None]
            for name, found in by_dimension(config, mesh_shape).items()
            if not name.startswith("clip_")
            and (name != "embed_sequence" or config.position == "learned")}
    apart: dict[str, set[str]] = {name: set() for name in able}
    for dims in layouts.TENSORS.values():
        for name in apart.keys() & set(dims):
            apart[name] |= set(dims) - {name}
    rules: list[dict[str, str]] = [{}]
    for name, found in able.items():
        rules += [{**chosen, name: axis} for chosen in rules for axis in found
                  if all(chosen.get(other) != axis for other in apart[name])]
    for chosen in rules:
        if set(chosen.values()) == set(axes):
            try:
                yield config.replace(layout=layouts.pairs_text(list(chosen.items())),
                                     mesh_shape=mesh_shape)
            except UserError:  # what only several rules together break
                continue


def lines(choices: dict[str, dict[str, str | None]]) -> list[str]:
    """What `by_dimension` found, as lines for the terminal: a dimension each."""
    found = []
    for name, axes in choices.items():
        able = [axis for axis, why in axes.items() if why is None]
        why = dict.fromkeys(why.removeprefix("layout: ") for why in axes.values() if why)
        found.append(f"  {name:24} {'can be split over ' + ', '.join(able) if able else 'whole'}"
                     f"{''.join('; ' + reason for reason in why)}")
    return found
