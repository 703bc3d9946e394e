"""benchmarks/preflight_table.py: which rows it has."""

from benchmarks import preflight_table
from configs import schema
from mesh import tpus


def test_a_config_has_the_mesh_that_its_header_lists():
    def mesh(name, tpu):
        moved = preflight_table.on_slice(schema.load(name), tpus.find(tpu))
        return moved and moved.mesh_shape

    assert mesh("gpt_1.3B", "v4-128") == "x:32,y:4" and mesh("gpt_1.3B", "v3-8") == "x:2,y:4"
    assert mesh("gpt2_345M", "v3-32") is None  # its batch has eight rows
