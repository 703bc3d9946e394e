"""TPU slices that Google Cloud has: their shapes, and what is published of their speed.

Sources: Google Cloud's pages of system architecture; Norrie et al. 2021, "The Design Process for
Google's Training Chips: TPUv2 and TPUv3"; Jouppi et al. 2023, "TPU v4", table 4. Memory is what
libtpu 0.0.20 lets a program have of it.
"""

import difflib
import itertools
import math
import re
from typing import NamedTuple

from configs.errors import UserError


class Generation(NamedTuple):
    """A generation of TPUs: of one core, but for the links.

    Attributes:
      peak: FLOP/s of bfloat16 products.
      clock: Hz. memory: bytes. memory_rate: bytes/s.
      link_rate: bytes/s of one link between chips, in one direction.
      shapes: {number that names a slice: libtpu's topology}.
    """

    peak: float
    clock: float
    memory: int
    memory_rate: float
    link_rate: float
    shapes: dict


_GIB = 2 ** 30
_FLAT = {8: "2x2", 32: "4x4", 128: "8x8", 256: "8x16", 512: "16x16"}
GENERATIONS = {
    "v2": Generation(22.5e12, 700e6, int(7.48 * _GIB), 350e9, 62e9, _FLAT),
    "v3": Generation(61.5e12, 940e6, int(15.48 * _GIB), 450e9, 70e9,
                     {**_FLAT, 64: "4x8", 1024: "16x32", 2048: "32x32"}),
    "v4": Generation(137.5e12, 1050e6, int(15.25 * _GIB), 614e9, 50e9,
                     {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4",
                      256: "4x4x8", 512: "4x8x8", 1024: "8x8x8"}),
    "v5e": Generation(197e12, 1500e6, int(15.75 * _GIB), 819e9, 50e9,
                      {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16",
                       256: "16x16"})}


class Slice(NamedTuple):
    """A TPU slice.

    Attributes:
      name: such as "v3-8". cores: how many programs run on it side by side.
      topology: libtpu's name of it. generation: its Generation.
    """

    name: str
    cores: int
    topology: str
    generation: Generation

    @property
    def torus(self):
        """[x, y, z, cores on a chip]."""
        sides = [int(size) for size in self.topology.split(":")[1].split("x")]
        sides += [1] * (3 - len(sides))
        return [*sides, self.cores // math.prod(sides)]

    @property
    def coordinates(self):
        """(x, y, z, number on its chip) of each core, as mesh/pjrt.py lists them."""
        x, y, z, on_chip = map(range, self.torus)
        return [(a, b, c, core) for c, b, a, core in itertools.product(z, y, x, on_chip)]


def find(name, flag="--preflight"):
    """The Slice called `name`, which a flag names.

    Raises:
      UserError: there is none; names those that are near.
    """
    match = re.fullmatch(r"(v\d+e?)-(\d+)", name)
    if match and match[1] in GENERATIONS:
        generation, cores = GENERATIONS[match[1]], int(match[2])
        if cores in generation.shapes:
            return Slice(name, cores, f"{match[1]}:{generation.shapes[cores]}", generation)
        known = [f"{match[1]}-{number}" for number in generation.shapes]
    else:
        known = [f"{kind}-{number}" for kind, generation in GENERATIONS.items()
                 for number in generation.shapes]
        known = difflib.get_close_matches(name, known, 3, 0.5) or known
    raise UserError(f"{flag} {name}: no such TPU slice; there are {', '.join(known)}")
