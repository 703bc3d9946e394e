"""What fills a core's memory when a compiled step needs most of it, by the compiler's own order.

The optimized program says in which order operations run, and how large what each makes is. A buffer
lives from the operation that makes it to the last one that reads it. What a loop passes on, and
results that take over an argument's memory, lie where they lay. How the compiler packs buffers it
does not say, so their sum differs a little from the temporaries that it reports.
"""

import math
from typing import NamedTuple

from tensorflow.compiler.xla import xla_data_pb2

from mesh import hlo
from mesh.optimized import size_of

# What has no buffer of its own: its result lies where that of an operand does.
_VIEWS = ("bitcast", "opt-barrier", "add-dependency", "domain", "all-reduce-done", "while")
# The part of an operation's beginning in which the result of its end lies.
_ENDS = {"copy-done": 0, "all-gather-done": 1, "collective-permute-done": 1, "async-done": 1}
# What is written into its first operand.
_IN_PLACE = ("dynamic-update-slice", "scatter")


class Buffer(NamedTuple):
    """Buffers that are alike.

    Attributes:
      bytes: of each. count: how many.
      shape: as XLA writes it: f32[8,2048].
      place: the operation of the model that they come from.
    """

    bytes: int
    count: int
    shape: str
    place: str


def at_peak(module):
    """The temporaries of a core when they need most memory: (bytes, a list of Buffer).

    Args:
      module: an optimized HloModuleProto.

    Returns:
      their sum, and those that live then, the largest (all of a kind together) first.
    """
    total, living = _Order(module).peak(module.entry_computation_id)
    counts = {}
    for instruction, shape in living:
        key = _padded(shape), _text(shape), instruction.metadata.op_name or instruction.name
        counts[key] = counts.get(key, 0) + 1
    found = [Buffer(size, count, shape, place) for (size, shape, place), count in counts.items()]
    return total, sorted(found, key=lambda buffer: -buffer.bytes * buffer.count)


def arguments(module, names):
    """The arguments of a program by name, the largest first: a list of Buffer.

    Args:
      module: an optimized HloModuleProto. names: of its parameters, in order.
    """
    entry = next(c for c in module.computations if c.id == module.entry_computation_id)
    found = [Buffer(_padded(i.shape), 1, _text(i.shape), names[i.parameter_number])
             for i in entry.instructions if i.opcode == "parameter"]
    return sorted(found, key=lambda buffer: -buffer.bytes)


class _Order:
    """The operations of a module in the order in which they run."""

    def __init__(self, module):
        self._module = module
        self._computations = {c.id: c for c in module.computations}

    def peak(self, number):
        """(bytes, [(instruction, shape)]) of what a computation keeps when it keeps most.

        What it is given is its caller's, and what it returns lies in its caller's memory, but for
        those results of the whole program that take over no argument's memory.
        """
        computation = self._computations[number]
        run, lies, made, last = self._in_order(computation), {}, {}, {}
        for time, instruction in enumerate(run):
            lies[instruction.id] = self._where(instruction, lies, made)
            for operand in instruction.operand_ids:
                last.update(dict.fromkeys(_flat(lies[operand]), time))
        last.update(dict.fromkeys(_flat(lies[computation.root_id]), len(run)))
        for buffer in self._elsewhere(computation, lies[computation.root_id]):
            made.pop(buffer, None)
        born, dies = {}, {}
        for buffer in made:
            born.setdefault(buffer[0], []).append(buffer)
        living, now, best = {}, 0, (0, [])
        for time, instruction in enumerate(run):
            for buffer in born.get(instruction.id, ()):
                living[buffer] = made[buffer]
                now += _padded(made[buffer][1])
                dies.setdefault(last.get(buffer, time), []).append(buffer)
            inner, inside = self._inside(instruction)
            if now + inner > best[0]:
                best = now + inner, [*living.values(), *inside]
            for buffer in dies.pop(time, ()):
                now -= _padded(living.pop(buffer)[1])
        return best

    def _in_order(self, computation):
        by_id = {i.id: i for i in computation.instructions}
        if computation.id in self._module.schedule.sequences:
            order = self._module.schedule.sequences[computation.id].instruction_ids
            return [by_id[number] for number in order]
        return list(computation.instructions)

    def _where(self, instruction, lies, made):
        """The buffers that a result lies in, a list for a tuple; new ones are noted in `made`."""
        operands, kind = [lies[number] for number in instruction.operand_ids], instruction.opcode
        if kind == "tuple":
            return operands
        if kind == "get-tuple-element":
            return operands[0][instruction.tuple_index]
        if kind in _VIEWS:
            return operands[0]
        if kind in _ENDS:
            return operands[0][_ENDS[kind]]
        given = self._written(instruction)
        if given is not None:
            return operands[given]

        def new(shape, path):
            if shape.tuple_shapes:
                return [new(part, (*path, i)) for i, part in enumerate(shape.tuple_shapes)]
            key = instruction.id, path
            if kind not in ("parameter", "constant") and _in_memory(shape):
                made[key] = instruction, shape
            return frozenset([key])

        return new(instruction.shape, ())

    def _written(self, instruction):
        """Which operand an operation writes its result into, or None."""
        if instruction.opcode in _IN_PLACE:
            return 0
        if instruction.opcode != "fusion":
            return None
        inside = self._computations[instruction.called_computation_ids[0]]
        by_id = {i.id: i for i in inside.instructions}
        at = by_id[inside.root_id]
        if at.opcode not in (*_IN_PLACE, "bitcast"):
            return None
        written = False
        while at.opcode in (*_IN_PLACE, "bitcast"):
            written |= at.opcode in _IN_PLACE
            at = by_id[at.operand_ids[0]]
        return at.parameter_number if written and at.opcode == "parameter" else None

    def _elsewhere(self, computation, root):
        """Buffers of results that lie in the memory of arguments, or of the caller."""
        if computation.id != self._module.entry_computation_id:
            return _flat(root)
        found = set()
        for entry in self._module.input_output_alias.entries:
            part = root
            for place in entry.output_shape_index:
                part = part[place]
            found |= _flat(part)
        return found

    def _inside(self, instruction):
        """The peak of the computations that an operation runs, one after the other."""
        if instruction.opcode not in ("while", "call", "conditional"):
            return 0, []
        return max((self.peak(number) for number in instruction.called_computation_ids),
                   key=lambda found: found[0])


def _flat(lies):
    """The buffers of a result, of all parts of a tuple."""
    return set().union(*map(_flat, lies)) if isinstance(lies, list) else lies


def _in_memory(shape):
    """Whether an array lies in the core's large memory, which is space 0."""
    return not shape.layout.memory_space and size_of(shape)


def _padded(shape):
    """Bytes of an array, whose last dimensions are stored in tiles."""
    dims = [shape.dimensions[number] for number in reversed(shape.layout.minor_to_major)]
    plain = math.prod(dims)
    if shape.layout.tiles and dims and plain:
        tile = shape.layout.tiles[0].dimensions[-len(dims):]
        for place, side in zip(range(len(dims) - len(tile), len(dims)), tile, strict=True):
            dims[place] = math.ceil(dims[place] / side) * side
    return size_of(shape) * math.prod(dims) // max(plain, 1)


def _text(shape):
    name = xla_data_pb2.PrimitiveType.Name(shape.element_type).lower()
    return f"{name}[{hlo.numbers_text([shape.dimensions])}]"
