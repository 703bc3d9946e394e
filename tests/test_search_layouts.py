"""--search_layouts: what is listed, the arithmetic, and a whole search of a tiny model."""

import itertools
import json
import math

import graphs
import jobs
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import layout_choices, schema
from mesh import estimate, pjrt, preflight, tpus
from training import layout_model, layout_report, proxies, search_layouts

ABSENT = [["nowhere", 1, None, 1.0]]  # no data are needed
TINY = dict(n_vocab=60, n_embd=16, n_head=2, n_layer=1, n_ctx=16, mesh_shape="x:8",
            layout="batch:x", tokens_per_mb_per_replica=0)
compiled = pytest.mark.skipif(pjrt.library() is None,
                              reason="libtpu compiles: requirements-preflight.txt")
V3_8 = tpus.find("v3-8")


def test_all_layouts_are_those_that_the_checks_let_through():
    config = graphs.config(n_embd=24, n_head=6, n_ctx=8, train_batch_size=12, eval_batch_size=12,
                           position="rotary", rotary_dims=4)
    found = [changed.layout for changed in layout_choices.all_layouts(config, "x:3,y:2")]
    names = ("batch", "sequence", "memory_length", "embd", "vocab", "heads", "features_per_head",
             "intermediate_expanded")
    expected = set()
    for axes in itertools.product(("", "x", "y"), repeat=len(names)):
        rules = [f"{name}:{axis}" for name, axis in zip(names, axes, strict=True) if axis]
        used = {axis for axis in axes if axis}
        if used == {"x", "y"} and layout_choices.refusal(
                config, ",".join(rules), mesh_shape="x:3,y:2") is None:
            expected.add(frozenset(rules))
    assert {frozenset(layout.split(",")) for layout in found} == expected
    assert len(found) == len(expected) > 20


@pytest.mark.parametrize("layout", [
    "batch:x", "batch:x,heads:y,vocab:y,intermediate_expanded:y", "batch:x,embd:y",
    "batch:x,heads:y", "batch:y,vocab:x"])
def test_bytes_of_all_reduces_are_those_of_the_step(tmp_path, layout):
    """The arithmetic against the collectives that the real step is written with."""
    keys = {**TINY, "n_vocab": 512, "n_embd": 128, "n_head": 4, "n_ctx": 64}
    mesh = "x:8" if layout == "batch:x" else "x:4,y:2"
    config = schema.load(jobs.config(tmp_path, ABSENT, **{
        **keys, "mesh_shape": mesh, "layout": layout, "position": "none"}))
    impl = proxies.recorded(config, *proxies.facts_and_specs(config), None)
    real = sum(one.bytes for one in impl.noted if one.kind == "all-reduce")
    step = layout_model._Step(config, V3_8)
    model = sum(size * times for size, names, times in step.reduced()
                if {step.axis[name] for name in names if name in step.axis})
    assert model == pytest.approx(real, rel=0.35)


def test_weights_are_those_of_the_step(tmp_path):
    config = schema.load(jobs.config(tmp_path, ABSENT, **{
        **TINY, "n_embd": 128, "mesh_shape": "x:4,y:2",
        "layout": "batch:x,heads:y,vocab:y,intermediate_expanded:y"}))
    impl = proxies.recorded(config, *proxies.facts_and_specs(config), None)
    real = sum(math.prod(part.shape.as_list()) for v, part in impl.variables.values()
               if v.trainable)
    step = layout_model._Step(config, V3_8)
    assert sum(n * size for n, size, _ in step.weights()) == pytest.approx(real, rel=0.03)


def test_links_go_by_the_torus():
    """On a v3-8 of 2x2 chips the pairs of the last dimension are the cores of a chip."""
    config = graphs.config(mesh_shape="x:4,y:2", layout="batch:x,heads:y", n_head=2,
                           train_batch_size=8, eval_batch_size=8)
    step = layout_model._Step(config, V3_8)
    chip = V3_8.generation
    assert step.seconds_a_byte({"y"}) == pytest.approx(1 / chip.memory_rate)
    # Four chips, a ring in both directions along two axes, shared with the other cores'.
    assert step.seconds_a_byte({"x"}) == pytest.approx(2 * 3 / 4 / (2 * 2 * chip.link_rate / 2))
    assert estimate.axes_of([(0, 1)], config.mesh) == "y"


def test_the_front_is_what_nothing_beats():
    points = [(1, 9), (2, 5), (3, 6), (4, 4), (4, 5), (1, 10)]
    assert layout_report.front(points) == [
        p for p in sorted(points)
        if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]


def test_the_configs_own_mesh_grows_with_the_slice():
    config = graphs.config(mesh_shape="x:4,y:2", layout="batch:x", train_batch_size=16,
                           eval_batch_size=16)
    assert search_layouts.own_layout(config, 32).mesh_shape == "x:16,y:2"
    assert search_layouts.own_layout(config, 128) is None  # 64 rows are more than there are


def test_without_the_compiler_arithmetic_ranks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pjrt, "library", lambda: None)
    path = jobs.config(tmp_path, ABSENT, **TINY)
    assert "no such TPU slice" in jobs.here(capsys, path, "--search_layouts", "v3-9").error
    out = f"{tmp_path}/best.json"
    done = jobs.here(capsys, path, "--search_layouts", "v3-8", "--write", out)
    assert "make preflight-env" in done.stderr and done.summary["compiled"] == 0
    assert schema.load(out).layout == done.summary["layout"]
    assert "the config's own" in done.stdout and done.summary["valid"] > 20
    assert "is there already" in jobs.here(
        capsys, path, "--search_layouts", "v3-8", "--write", out).error
    again = jobs.here(capsys, path, "--search_layouts").summary  # for as many cores as the mesh has
    assert again == done.summary


@compiled
def test_a_search_that_was_killed_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search_layouts, "_COMPILED", 2)
    path = jobs.config(tmp_path, ABSENT, **TINY)
    real, seen = preflight.compile_for, []

    def killed(program, tpu, mesh):
        seen.append(mesh)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(program, tpu, mesh)

    monkeypatch.setattr(preflight, "compile_for", killed)
    assert jobs.here(capsys, path, "--search_layouts", "v3-8").status != 0
    done = jobs.here(capsys, path, "--search_layouts", "v3-8")
    found = done.summary
    assert len(seen) == found["compiled"] + 1  # the one that was cut short, twice
    assert found["fits"] and found["own"]["layout"] == "batch:x"
    assert found["step_seconds"] <= found["own"]["step_seconds"]
    page = open(found["html"], encoding="utf-8").read()
    assert found["layout"] in page and "data:image/png;base64" in page
    events = EventAccumulator(found["html"].rpartition("/")[0]).Reload()
    shown, = events.Tensors("layouts")
    assert shown.tensor_proto.string_val[2] == open(found["png"], "rb").read()
    # A model of one layer is compiled whole: what preflight says of it is the same.
    whole = jobs.here(capsys, path, "--preflight", "v3-8").summary
    assert found["own"]["hbm_gib"] == pytest.approx(whole["hbm_gib"], abs=1e-4)
    assert found["own"]["step_seconds"] == pytest.approx(whole["step_seconds"], abs=1e-6)
    lines = open(f"{found['html'].rpartition('/')[0]}/compiled.jsonl").read().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == found["compiled"]
