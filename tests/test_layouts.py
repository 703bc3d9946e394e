"""--auto_layout, --auto_layout_and_mesh_shape and --explain_layout, on tiny models."""

import itertools
import json
import math
import sys

import graphs
import jobs
import numpy as np
import pytest

from configs import layout_choices, schema
from mesh import auto_layout, recording
from mesh.compat import auto_mtf, mtf, tf
from training import placed, proxies

ABSENT = [["nowhere", 1, None, 1.0]]  # no data are needed
TINY = dict(n_vocab=60, n_embd=24, n_head=6, n_layer=1, train_batch_size=12, eval_batch_size=12)


@pytest.mark.parametrize("cores", [1, 6, 7, 12, 32])
def test_mesh_shapes_are_all_factorisations(cores):
    found = layout_choices.mesh_shapes(cores, 3)
    expected = {tuple(n for n in sizes if n > 1) or (1,)
                for sizes in itertools.product(range(1, cores + 1), repeat=3)
                if math.prod(sizes) == cores}
    assert {tuple(sizes) for sizes in found} == expected and len(found) == len(expected)


def test_refusals_name_dimension_and_reason():
    config = graphs.config(n_embd=24, n_head=6, train_batch_size=8)
    choices = layout_choices.by_dimension(config, "x:4,y:3")
    assert choices["heads"]["y"] is None and "n_head = 6 over x:4" in choices["heads"]["x"]
    assert "train_batch_size a multiple of 3" in choices["batch"]["y"]
    text = "\n".join(layout_choices.lines(choices))
    assert "heads                    can be split over y; heads:x splits n_head = 6" in text


def test_auto_layout_beats_every_other_layout(tmp_path):
    """auto_mtf's optimum against all layouts of a mesh, by its own measure of memory."""
    config = schema.load(jobs.config(tmp_path, ABSENT, **TINY))
    graph, outputs = proxies.graph_of(config, *proxies.facts_and_specs(config), None)
    shape = "x:3,y:2"
    allowed = layout_choices.by_dimension(config, shape)
    rules, peak = auto_layout.choose(graph, outputs, [("x", 3), ("y", 2)], allowed)
    assert layout_choices.refusal(config, ",".join(map(":".join, rules)), mesh_shape=shape) is None
    layout_optimizer, memory_estimator = auto_mtf()
    judge = layout_optimizer.LayoutOptimizer(memory_estimator.MemoryEstimator(
        graph, mtf.Shape([mtf.Dimension("x", 3), mtf.Dimension("y", 2)]), outputs))
    names = ("batch", "vocab", "embd", "heads", "intermediate_expanded")
    tried = 0
    for axes in itertools.product(("", "x", "y"), repeat=len(names)):
        layout = [f"{name}:{axis}" for name, axis in zip(names, axes, strict=True) if axis]
        if layout_choices.refusal(config, ",".join(layout), mesh_shape=shape) is None:
            assert judge.evaluate_layout(";".join(layout)) >= peak
            tried += 1
    assert tried > 20


def test_auto_layout_writes_a_config_for_any_number_of_cores(tmp_path, capsys, monkeypatch):
    path, out = jobs.config(tmp_path, ABSENT, **TINY), f"{tmp_path}/found.json"
    done = jobs.here(capsys, path, "--auto_layout_and_mesh_shape", 6, "--write", out)
    found = schema.load(out)
    assert found.mesh_size == 6
    assert (found.mesh_shape, found.layout) == (done.summary["mesh_shape"], done.summary["layout"])
    again = jobs.here(capsys, path, "--auto_layout_and_mesh_shape", 6, "--write", out)
    assert "is there already" in again.error
    assert "mesh_shape is empty" in jobs.here(capsys, path, "--auto_layout").error
    assert "no such TPU slice" in jobs.here(
        capsys, path, "--auto_layout_and_mesh_shape", "v3-9").error
    monkeypatch.setitem(sys.modules, "ortools.sat.python.cp_model", None)
    error = jobs.here(capsys, path, "--auto_layout", "--set", "mesh_shape=x:2").error
    assert "requirements-layouts.txt" in error


def test_explained_slices_are_the_weights_cut_up(tmp_path, capsys):
    """What the page says each core holds covers each weight exactly, copies counted."""
    config = schema.load(jobs.config(tmp_path, ABSENT, **TINY, mesh_shape="x:2,y:3",
                                     layout="batch:x,heads:y,vocab:y,intermediate_expanded:y",
                                     pad_vocab_multiple=4))
    graph, _ = proxies.graph_of(config, *proxies.facts_and_specs(config), None)
    with tf.Graph().as_default():
        found = placed.weights(graph, recording.mesh_of(config))
    for weight in found:
        count = np.zeros([size for _, size, _ in weight.dims], int)
        for begin, cores in weight.parts.items():
            count[tuple(slice(b, b + n) for b, n in zip(begin, weight.shape, strict=True))] += len(
                cores)
        copies = 6 // len(weight.parts)
        assert (count == copies).all() and weight.row()[-1] == str(copies)
    table = next(weight for weight in found if weight.name.endswith("wte"))
    assert table.row()[2] == "vocab:y" and table.bytes == 60 // 3 * 24 * 4
    assert list(table.places()) == ["vocab 0…19: cores 0, 3", "vocab 20…39: cores 1, 4",
                                    "vocab 40…59: cores 2, 5"]


def test_explain_layout_names_the_gradients_sums(tmp_path, capsys):
    path = jobs.config(tmp_path, ABSENT, **TINY, mesh_shape="x:2", layout="batch:x",
                       tokens_per_mb_per_replica=0)
    done = jobs.here(capsys, path, "--explain_layout", f"{tmp_path}/shown")
    html = (tmp_path / "shown" / "layout.html").read_text()
    assert (tmp_path / "shown" / "layout.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64" in html and "<script src" not in html
    assert "all-reduce" in done.stdout and "gpt/wte" in html
    # Data parallelism sums every gradient once, and nothing else of size.
    config = schema.load(path)
    impl = proxies.recorded(config, *proxies.facts_and_specs(config), None)
    weights = sum(v.shape.size * 4 for v, _ in impl.variables.values() if v.trainable)
    moved = sum(one.bytes for one in impl.noted)
    assert {one.axes for one in impl.noted} == {"x"}
    # The table's two gradients, of the look-up and of the head, are added before.
    assert weights <= moved < weights + 200
    assert done.summary["weight_bytes_per_core"] == weights
    assert json.loads(done.stdout.splitlines()[-1])["html"].endswith("layout.html")


def test_collectives_of_microbatches_count_in_the_loop(tmp_path):
    """The sums over heads are of activations, in each microbatch."""
    config = schema.load(jobs.config(
        tmp_path, ABSENT, **TINY, mesh_shape="x:2,y:2", layout="batch:x,heads:y",
        tokens_per_mb_per_replica=8))
    assert config.num_microbatches > 1
    noted = proxies.recorded(config, *proxies.facts_and_specs(config), None).noted
    large = [one for one in noted if one.axes == "y" and one.bytes > 100]
    assert large and all(one.looped for one in large)
