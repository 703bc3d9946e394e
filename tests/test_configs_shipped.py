"""What the headers of shipped configs say: sizes, meshes, memory and cost."""

import os
import re

import pytest
from test_preflight_table import stored

from configs import reading, schema

# Parameters that the names of the families promise.
SIZES = {"gpt_125M": 125e6, "gpt_350M": 350e6, "gpt_760M": 760e6, "gpt_1.3B": 1.3e9,
         "gpt_2.7B": 2.7e9, "gpt_6.7B": 6.7e9, "gpt_13B": 13e9, "gpt2_117M": 124e6,
         "gpt2_345M": 354e6, "gpt2_PrettyBig": 367e6, "gpt2_774M": 774e6, "gpt2_1.5B": 1.558e9}
# These have the cost of what a token passes.
VARIANTS = ["gpt_par_125M", "gpt_moe_125M"]


@pytest.fixture(params=[*SIZES, *VARIANTS])
def shipped(request):
    """(name, config) of each of them."""
    return request.param, schema.load(request.param)


def passed(config):
    """Parameters that a token passes: 4·d² of attention, 8·d² of a feed-forward part, the table."""
    width = config.n_embd
    blocks = sum((12 if kind != "none" else 8) * width**2 for kind in config.attention_types)
    return blocks + config.n_vocab * width


def test_sizes_are_what_names_say(shipped):
    name, config = shipped
    if name in SIZES:
        table = config.n_ctx * config.n_embd
        assert passed(config) + table == pytest.approx(SIZES[name], rel=0.03)


def test_meshes_that_are_listed_work(shipped):
    name, config = shipped
    listed, = re.findall(r"Meshes for mesh_shape: (.*)\.", config.about)
    meshes = dict(item.split() for item in listed.split("; "))
    assert meshes and list(meshes) == sorted(meshes, key=lambda kind: int(kind[3:]))
    for kind, mesh in meshes.items():
        moved = config.replace(mesh_shape=mesh)
        assert moved.mesh_size == int(kind[3:])
        # Weights, their gradients and two moments in float32, and the slices in bfloat16.
        split = moved.mesh_size // moved.batch_split
        assert 18 * passed(moved) / split < 16e9 or config.opt_name == "adafactor"
    told = re.search(r"that of a (v3-\d+), (?:a core )?of which", config.about)
    assert name == "gpt_125M" or meshes[told[1]] == config.mesh_shape


def test_the_cost_is_the_compilers_estimate(shipped):
    """What docs/tpu.md's table has for the slice: seconds of a step, times steps and cores."""
    name, config = shipped
    told = re.search(r"Cost: about ([\d,]+) core-hours of TPU v3, (\d+) (days|hours) on a "
                     r"v3-(\d+): the TPU compiler's estimate\n\(docs/tpu.md\), not measured",
                     config.about)
    seconds = float(stored()[name, f"v3-{told[4]}"][5]) * config.train_steps
    cores = config.mesh_size
    assert cores == int(told[4])
    assert int(told[1].replace(",", "")) == pytest.approx(seconds * cores / 3600, rel=0.05)
    unit = 86400 if told[3] == "days" else 3600
    assert int(told[2]) == pytest.approx(seconds / unit, abs=0.55)


def test_times_elsewhere_are_the_compilers_too():
    """Those of runs with a student, and of gpt-c's own."""
    found = 0
    for (name, _), row in stored().items():
        config = schema.load(name)
        told = re.search(r"by the TPU compiler's estimate (\d+) (days|hours)", config.about)
        if told:
            unit = 86400 if told[2] == "days" else 3600
            assert int(told[1]) == pytest.approx(float(row[5]) * config.train_steps / unit,
                                                 abs=0.55), name
            found += 1
    assert found == 3


def test_commands_for_a_tpus_mesh_ask_for_one():
    for name, _ in stored():
        command, = re.findall(rf"^Command: python main.py --model {name} .*", schema.load(
            name).about, re.MULTILINE)
        assert "--tpu NAME" in command


def test_gpt_neos_and_connorjls_recipes():
    """Batches of half a million to two million tokens, 300 billion of them, as GPT-3's."""
    for name in SIZES:
        config = schema.load(name)
        tokens = config.train_batch_size * config.n_ctx * config.train_steps
        if name.startswith("gpt_"):
            assert tokens == pytest.approx(300e9, rel=0.01)
            assert (config.beta2, config.gradient_clipping, config.lr_min_ratio) == (0.95, 1, 0.1)
        else:
            assert (config.n_ctx, config.lr, config.lr_min_ratio) == (1024, 2.5e-4, 0)
            assert config.gradient_clipping == 0 and config.scale_by_in
    assert {name[:-5] for name in os.listdir(reading.CONFIG_DIR)} > {*SIZES, *VARIANTS}
