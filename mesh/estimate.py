"""How long a step takes on a TPU slice, by what the compiler says and what is published.

    step = cycles / clock + Σ collectives + Σ gathers and scatters

Cycles are the compiler's, for computation and a core's own memory. It does not model the links
between chips, and counts gathers and scatters as nothing, so these are added here:

    all-reduce       2 · bytes · (m − 1) / m / rate
    all-gather       bytes · n · (m − 1) / m / rate
    reduce-scatter, all-to-all   bytes · (m − 1) / m / rate
    permutation      bytes / rate
    gather, scatter  3 · bytes / memory rate

where a group of n cores lies on m chips and `bytes` is what a core puts in. `rate` is that of a
ring over the group's chips in both directions, along every axis of the torus that the group spans,
shared by the groups that use the same links: those of the other core of each chip, and those whose
chips lie between the group's. A group on one chip moves `bytes` through memory instead.

Nothing is taken to overlap, and each ring to reach the published rate: it is an estimate.
"""

import math
from typing import NamedTuple


class Traffic(NamedTuple):
    """Collectives over one mesh dimension in a step: of one core.

    Attributes:
      axes: the mesh dimensions, joined by "+".
      kind: see mesh.optimized.Collective.
      count: how many. bytes: that it puts in. seconds: that they take.
    """

    axes: str
    kind: str
    count: int
    bytes: int
    seconds: float


def step_seconds(schedule, traffic, generation):
    """Seconds of a step: {"compute": …, "links": …, "gathers": …}, which add up.

    Args:
      schedule: a mesh.optimized.Schedule.
      traffic: a list of Traffic.
      generation: a mesh.tpus.Generation.
    """
    return {"compute": schedule.cycles / generation.clock,
            "links": sum(row.seconds for row in traffic),
            "gathers": sum(3 * x.bytes * x.times for x in schedule.moved) / generation.memory_rate}


def traffic(schedule, mesh, coordinates, generation, order=None):
    """Collectives summed by mesh dimension and kind: a list of Traffic, the slowest first.

    Args:
      schedule: a mesh.optimized.Schedule.
      mesh: [(name, size)] of a config.
      coordinates: (x, y, z, number on its chip) of each core.
      generation: a mesh.tpus.Generation.
      order: the core of each position of the mesh (mesh.torus.order); by default the same number.
    """
    rows = {}
    position = {core: place for place, core in enumerate(order or range(len(coordinates)))}
    for collective in schedule.collectives:
        if not collective.groups:
            collective = collective._replace(groups=(tuple(range(len(coordinates))),))
        groups = [[position[core] for core in group] for group in collective.groups]
        key = axes_of(groups, mesh), collective.kind
        count, size, seconds = rows.get(key, (0, 0, 0.0))
        rows[key] = (count + collective.times, size + collective.times * collective.bytes,
                     seconds + collective.times * seconds_of(collective, coordinates, generation))
    found = [Traffic(*key, *row) for key, row in rows.items()]
    return sorted(found, key=lambda row: -row.seconds)


def axes_of(groups, mesh):
    """The mesh dimensions along which the cores of a group differ: "x", "x+y"."""
    varying = []
    stride = 1
    for name, size in reversed(mesh):
        places = [{core // stride % size for core in group} for group in groups]
        if max(map(len, places), default=1) > 1:
            varying.insert(0, name)
        stride *= size
    return "+".join(varying)


def seconds_of(collective, coordinates, generation):
    """Seconds that a Collective takes once; see the module's formula."""
    if collective.kind == "collective-permute":
        if all(coordinates[a][:3] == coordinates[b][:3] for a, b in collective.groups):
            return collective.bytes / generation.memory_rate
        return collective.bytes / generation.link_rate
    group = [coordinates[core] for core in collective.groups[0]]
    chips = {place[:3] for place in group}
    if len(chips) == 1:
        return collective.bytes / generation.memory_rate
    moved = collective.bytes * (len(chips) - 1) / len(chips)
    factor = {"all-reduce": 2, "all-gather": len(group)}.get(collective.kind, 1)
    return factor * moved / _ring_rate(group, chips, coordinates, generation)


def _ring_rate(group, chips, coordinates, generation):
    """Bytes/s with which a group's ring moves data."""
    spans, apart = 0, 1
    for axis in range(3):
        places = sorted({chip[axis] for chip in chips})
        if len(places) > 1:
            spans += 1
            apart *= min(b - a for a, b in zip(places, places[1:], strict=False))
    on_chip = len({place[3] for place in coordinates})
    shared = apart * on_chip * len(chips) / len(group)
    return 2 * spans * generation.link_rate / math.ceil(shared)
