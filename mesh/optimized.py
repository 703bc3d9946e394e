"""Reads what the TPU compiler made of a program: cycles, collectives, gathers and scatters."""

import json
import math
from typing import NamedTuple

import numpy as np
from tensorflow.compiler.xla import xla_data_pb2

from mesh import hlo

_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_GROUPS = 87  # the field of an instruction that newer compilers put groups into
_BITS = {"PRED": 8, "BF16": 16, "F8E5M2": 8, "F8E4M3FN": 8, "C64": 64, "C128": 128, "TOKEN": 0}


class Collective(NamedTuple):
    """A collective of a step.

    Attributes:
      kind: "all-reduce", "all-gather", "all-to-all", "reduce-scatter" or "collective-permute".
      bytes: that one core puts in, each time.
      groups: the cores that talk to each other, none if they all do together; of a permutation,
        pairs of source and target.
      times: how often it runs in a step.
      place: the operation of the model that it comes from.
    """

    kind: str
    bytes: int
    groups: tuple
    times: int
    place: str


class Moved(NamedTuple):
    """A gather or scatter: `bytes` of the rows that it moves each time; see Collective."""

    kind: str
    bytes: int
    times: int
    place: str


class Schedule:
    """A step on one core, as the compiler has planned it.

    Args:
      serialized: an HloModuleProtoWithConfig.

    Attributes:
      cycles: that computation and memory take, by the compiler's estimate, loops counted in full.
      collectives: a list of Collective. moved: a list of Moved.
      module: the HloModuleProto.
    """

    def __init__(self, serialized):
        module = hlo.parse(next(value for number, value in _fields(serialized) if number == 1))
        self.module, self._computations = module, {c.id: c for c in module.computations}
        self.cycles, self.collectives, self.moved = 0, [], []
        self._walk(module.entry_computation_id, 1)

    def _walk(self, computation, times):
        instructions = self._computations[computation].instructions
        by_id = {i.id: i for i in instructions}
        for instruction in instructions:
            operands = [by_id[number].shape for number in instruction.operand_ids]
            kind = instruction.opcode.removesuffix("-start")
            if kind in _COLLECTIVES:
                self.collectives.append(Collective(
                    kind, sum(map(size_of, operands)), groups_of(instruction), times,
                    instruction.metadata.op_name))
                continue
            if kind in ("gather", "scatter"):
                shape = instruction.shape if kind == "gather" else operands[-1]
                self.moved.append(Moved(kind, size_of(shape), times, instruction.metadata.op_name))
            self.cycles += times * _cycles(instruction)
            if instruction.opcode in ("while", "call", "conditional", "fusion"):
                rounds = self._rounds(instruction) if instruction.opcode == "while" else 1
                for called in instruction.called_computation_ids:
                    self._walk(called, times * rounds)

    def _rounds(self, loop):
        """How often a loop's body runs: its counter begins at 0, and goes up to a constant."""
        limits = [1]
        for number in loop.called_computation_ids:
            condition = self._computations[number]
            if condition.program_shape.result.element_type == xla_data_pb2.PRED:
                limits += self._constants(condition)
        return max(limits)

    def _constants(self, computation):
        for instruction in computation.instructions:
            yield from instruction.literal.s32s
            yield from instruction.literal.s64s
            for number in instruction.called_computation_ids:
                yield from self._constants(self._computations[number])


def size_of(shape):
    """Bytes of a ShapeProto; of a tuple, of all that is in it."""
    name = xla_data_pb2.PrimitiveType.Name(shape.element_type)
    if name == "TUPLE":
        return sum(map(size_of, shape.tuple_shapes))
    bits = _BITS.get(name) or int("".join(filter(str.isdigit, name)) or 0)
    return math.prod(shape.dimensions) * bits // 8


def _cycles(instruction):
    """The compiler's estimate for an instruction; 0 where it has none."""
    try:
        known = json.loads(instruction.backend_config)
    except ValueError:
        return 0
    return int(known.get("window_config", {}).get("estimated_cycles")
               or known.get("estimated_cycles") or 0)


def groups_of(instruction):
    """The groups of a collective, or the pairs of a permutation: a tuple of tuples of cores."""
    if instruction.source_target_pairs:
        return tuple((pair.source, pair.target) for pair in instruction.source_target_pairs)
    if instruction.replica_groups:
        return tuple(tuple(group.replica_ids) for group in instruction.replica_groups)
    found = []
    for number, value in _fields(instruction.SerializeToString()):
        if number == _GROUPS:
            for part, group in _fields(value):
                found += [_numbers(group, 1)] if part == 1 else _regular_groups(group)
    return tuple(map(tuple, found))


def _regular_groups(message):
    """Groups in short: the numbers from 0 on, as an array that is transposed and cut anew."""
    (number,), (size,) = _numbers(message, 1), _numbers(message, 2)
    dims, order = _numbers(message, 3), _numbers(message, 4)
    cores = np.arange(math.prod(dims)).reshape(dims)
    return cores.transpose(order or range(len(dims))).reshape(number, size).tolist()


def _numbers(message, field):
    """The integers of a repeated field, packed or not."""
    found = []
    for number, value in _fields(message):
        if number == field:
            place = 0
            while isinstance(value, bytes) and place < len(value):
                one, place = _varint(value, place)
                found.append(one)
            found += [value] if isinstance(value, int) else []
    return found


def _fields(message):
    """(number, an int or bytes) of each field of a serialised protocol buffer."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(message, place)
        else:
            size, place = _varint(message, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            value, place = message[place:place + size], place + size
        yield tag >> 3, value


def _varint(message, place):
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
