"""Reads and edits XLA programs as protocol buffers.

Never by way of HLO text, which leaves out the values of large constants.
"""

from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.compiler.xla.service import hlo_pb2

# How the names of calls begin that stand for collectives.
MARK = "core_to_core."
_REDUCTIONS = {"SUM": "add", "MAX": "maximum", "MIN": "minimum"}
# What a call by name has, and a collective has not.
_OF_CALLS = ("custom_call_target", "backend_config", "custom_call_has_side_effect",
             "custom_call_schedule", "custom_call_api_version", "constrain_layout",
             "operand_shapes_with_layout", "literal", "precision_config", "padding_type")


def parse(serialized):
    """An HloModuleProto."""
    return hlo_pb2.HloModuleProto.FromString(serialized)


def numbers_text(rows):
    """"0,1;2,3" of [[0, 1], [2, 3]]."""
    return ";".join(",".join(map(str, row)) for row in rows)


def with_collectives(module):
    """Makes collectives of a module's marked calls, in place."""
    reducers = _Reducers(module)
    for computation in module.computations:
        for call in computation.instructions:
            if call.opcode == "custom-call" and call.custom_call_target.startswith(MARK):
                _replace(call, reducers)
    computations = list(module.computations)
    del module.computations[:]
    # A computation comes before those that call it.
    module.computations.extend(reducers.computations + computations)


def _replace(call, reducers):
    kind, argument = call.custom_call_target.removeprefix(MARK), call.backend_config.decode()
    call.opcode, call.name = kind, f"{kind}.{call.id}"
    for field in _OF_CALLS:
        call.ClearField(field)
    if kind != "collective-permute":
        first, argument = argument.split(";", 1)
    rows = [[int(number) for number in row.split(",")] for row in argument.split(";")]
    if kind == "collective-permute":
        for source, target in rows:
            call.source_target_pairs.add(source=source, target=target)
        return
    for row in rows:
        call.replica_groups.add(replica_ids=row)
    if kind == "all-to-all":
        call.dimensions.append(int(first))
    else:
        call.called_computation_ids.append(
            reducers.number(_REDUCTIONS[first], call.shape.element_type))


class _Reducers:
    """The computations of two scalars by which a module's all-reduces reduce.

    Attributes:
      computations: a list of HloComputationProto.
    """

    def __init__(self, module):
        self._next = 1 + max(max([c.id, *(i.id for i in c.instructions)])
                             for c in module.computations)
        self._known, self.computations = {}, []

    def number(self, opcode, element_type):
        """The id of the computation for a type."""
        if (opcode, element_type) not in self._known:
            self._known[opcode, element_type] = self._add(opcode, element_type)
        return self._known[opcode, element_type]

    def _add(self, opcode, element_type):
        scalar = xla_data_pb2.ShapeProto(element_type=element_type)
        scalar.layout.SetInParent()
        added = hlo_pb2.HloComputationProto(name=f"{opcode}_{element_type}")
        added.program_shape.result.CopyFrom(scalar)
        for number in range(2):
            added.instructions.add(name=f"{added.name}.{number}", opcode="parameter",
                                   id=self._new(), parameter_number=number, shape=scalar)
            added.program_shape.parameters.append(scalar)
            added.program_shape.parameter_names.append(f"p{number}")
        root = added.instructions.add(
            name=f"{added.name}.root", opcode=opcode, id=self._new(), shape=scalar,
            operand_ids=[i.id for i in added.instructions])
        added.root_id, added.id = root.id, self._new()
        self.computations.append(added)
        return added.id

    def _new(self):
        self._next += 1
        return self._next


def aliased(module, scalars, arguments):
    """The names of a module's results, in order.

    Args:
      module: an HloModuleProto, whose updated variables take over their arguments' memory.
      scalars: the names of its first results.
      arguments: the names of its arguments.

    Raises:
      ValueError: it has results that are neither.
    """
    shape = module.host_program_shape
    # One result alone is no tuple, and has no index.
    places = {(*entry.output_shape_index, 0)[0]: arguments[entry.parameter_number]
              for entry in module.input_output_alias.entries}
    several = shape.result.element_type == xla_data_pb2.TUPLE
    number = len(shape.result.tuple_shapes) if several else 1
    found = {**dict(enumerate(scalars)), **places}
    if len(shape.parameters) != len(arguments) or sorted(found) != list(range(number)):
        raise ValueError(f"the program has {len(shape.parameters)} arguments and {number} results; "
                         f"known are {len(arguments)} and {sorted(found)}")
    return [found[place] for place in range(number)]
