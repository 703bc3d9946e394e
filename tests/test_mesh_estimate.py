"""mesh/tpus.py, mesh/optimized.py and mesh/estimate.py: by numbers worked out by hand."""

import types

import pytest
from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.compiler.xla.service import hlo_pb2

from configs.errors import UserError
from mesh import estimate, optimized, tpus

V3 = tpus.GENERATIONS["v3"]
# 2x2 chips of two cores.
COORDINATES = [(x, y, 0, core) for y in range(2) for x in range(2) for core in range(2)]


def test_slices_by_name():
    assert tpus.find("v3-32") == ("v3-32", 32, "v3:4x4", V3)
    assert tpus.find("v4-16").topology == "v4:2x2x2"
    for generation in tpus.GENERATIONS.values():
        per_chip = 1 if generation is tpus.GENERATIONS["v5e"] else 2
        for cores, shape in generation.shapes.items():
            chips = 1
            for size in shape.split("x"):
                chips *= int(size)
            assert chips * per_chip == cores
    assert tpus.find("v3-8").coordinates == COORDINATES
    assert tpus.find("v4-16").torus == [2, 2, 2, 2] and tpus.find("v5e-8").torus == [2, 4, 1, 1]
    for name, hint in (("v3-9", "v3-8"), ("v4-12", "v4-16"), ("v6-8", "v5e-8|v3-8"), ("", "v2-8")):
        with pytest.raises(UserError, match=f"--preflight {name}: no such TPU slice.*({hint})"):
            tpus.find(name)


@pytest.mark.parametrize(("groups", "axes"), [
    ([(0, 1), (2, 3), (4, 5), (6, 7)], "y"), ([(0, 2, 4, 6), (1, 3, 5, 7)], "x"),
    ([tuple(range(8))], "x+y"), ([(0,), (1,)], ""), ([(0, 2), (2, 4), (4, 6), (6, 0)], "x")])
def test_groups_have_mesh_dimensions(groups, axes):
    assert estimate.axes_of(groups, [("x", 4), ("y", 2)]) == axes


@pytest.mark.parametrize(("kind", "groups", "seconds"), [
    # Both cores of a chip: through memory.
    ("all-reduce", [(0, 1), (2, 3)], 900e6 / 450e9),
    # All of a 2x2: three quarters twice, on rings along two axes, each with two directions.
    ("all-reduce", [tuple(range(8))], 2 * 900e6 * 3 / 4 / (4 * 70e9)),
    # One core of each chip: the other cores' ring shares the links.
    ("all-reduce", [(0, 2, 4, 6), (1, 3, 5, 7)], 2 * 900e6 * 3 / 4 / (4 * 70e9 / 2)),
    ("all-gather", [(0, 1, 2, 3), (4, 5, 6, 7)], 4 * 900e6 / 2 / (2 * 70e9)),
    ("all-to-all", [(0, 1, 2, 3), (4, 5, 6, 7)], 900e6 / 2 / (2 * 70e9)),
    ("collective-permute", [(0, 2), (2, 0)], 900e6 / 70e9),
    ("collective-permute", [(0, 1), (1, 0)], 900e6 / 450e9)])
def test_seconds_of_collectives(kind, groups, seconds):
    one = optimized.Collective(kind, 900 * 10**6, tuple(groups), 1, "")
    assert estimate.seconds_of(one, COORDINATES, V3) == pytest.approx(seconds)


def test_a_collective_without_groups_is_of_all_cores():
    """So compilers write it where there would be one group."""
    mesh, whole = [("x", 8)], (tuple(range(8)),)
    found = [estimate.traffic(types.SimpleNamespace(collectives=[
        optimized.Collective("all-reduce", 900 * 10**6, groups, 3, "")]), mesh, COORDINATES, V3)
        for groups in ((), whole)]
    [row] = found[0]
    assert found[0] == found[1] and row.axes == "x" and row.count == 3 and row.seconds > 0


def shape(element_type, *dims):
    return xla_data_pb2.ShapeProto(element_type=element_type, dimensions=dims)


def wire(*fields):
    """A serialised message of (number, an int below 128 or bytes)."""
    return b"".join(bytes([number << 3, value]) if isinstance(value, int)
                    else bytes([number << 3 | 2, len(value)]) + value for number, value in fields)


def scheduled_module():
    """A loop of 4 rounds with a fusion and an all-reduce; outside, a gather and an all-to-all."""
    f32, bf16, s32, pred = (xla_data_pb2.PrimitiveType.Value(n)
                            for n in ("F32", "BF16", "S32", "PRED"))
    module = hlo_pb2.HloModuleProto(entry_computation_id=3)
    body = module.computations.add(id=1)
    body.program_shape.result.CopyFrom(shape(f32, 8))
    body.instructions.add(id=10, opcode="parameter").shape.CopyFrom(shape(f32, 8))
    body.instructions.add(id=11, opcode="fusion", operand_ids=[10],
                          backend_config=b'{"window_config":{"estimated_cycles":"100"}}')
    reduce = body.instructions.add(id=12, opcode="all-reduce-start", operand_ids=[10, 10])
    reduce.metadata.op_name = "gpt/h0"
    # In short: the numbers 0 to 7 as 4 × 2, turned round, in 2 groups of 4.
    short = wire((1, 2), (2, 4), (3, b"\x04\x02"), (4, b"\x01\x00"))
    encoded = reduce.SerializeToString() + wire_high(87, wire((2, short)))
    reduce.ParseFromString(encoded)
    condition = module.computations.add(id=2)
    condition.program_shape.result.CopyFrom(shape(pred))
    condition.instructions.add(id=20, opcode="constant").literal.s32s.append(4)
    entry = module.computations.add(id=3)
    entry.instructions.add(id=30, opcode="parameter").shape.CopyFrom(shape(bf16, 16, 2))
    entry.instructions.add(id=31, opcode="while", operand_ids=[30], called_computation_ids=[1, 2])
    gather = entry.instructions.add(id=32, opcode="gather", operand_ids=[30])
    gather.shape.CopyFrom(shape(s32, 3))
    exchange = entry.instructions.add(id=33, opcode="all-to-all", operand_ids=[30])
    encoded = exchange.SerializeToString() + wire_high(
        87, wire((1, wire((1, b"\x00\x02"))), (1, wire((1, b"\x01\x03")))))
    exchange.ParseFromString(encoded)
    return module


def wire_high(number, value):
    """A field of a number above 15."""
    tag = number << 3 | 2
    return bytes([tag & 127 | 128, tag >> 7, len(value)]) + value


def test_loops_count_in_full_and_groups_are_read_in_every_form():
    module = scheduled_module().SerializeToString()
    size = len(module)
    found = optimized.Schedule(bytes([10, size & 127 | 128, size >> 7]) + module)
    assert found.cycles == 4 * 100
    assert found.collectives == [
        ("all-reduce", 2 * 8 * 4, ((0, 2, 4, 6), (1, 3, 5, 7)), 4, "gpt/h0"),
        ("all-to-all", 16 * 2 * 2, ((0, 2), (1, 3)), 1, "")]
    assert found.moved == [("gather", 3 * 4, 1, "")]
    traffic = estimate.traffic(found, [("x", 4), ("y", 2)], COORDINATES, V3)
    assert {(row.axes, row.kind): (row.count, row.bytes) for row in traffic} == {
        ("x", "all-reduce"): (4, 4 * 64), ("x", "all-to-all"): (1, 64)}
    seconds = estimate.step_seconds(found, traffic, V3)
    assert seconds["compute"] == pytest.approx(400 / 940e6)
    assert seconds["gathers"] == pytest.approx(3 * 12 / 450e9)
    assert seconds["links"] == pytest.approx(sum(row.seconds for row in traffic))
