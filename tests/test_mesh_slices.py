"""mesh/slices.py: operations written as functions over slices, and their gradients."""

import graphs
import numpy as np
import pytest

from mesh import slices
from mesh.compat import mtf, tf

ROWS, COLUMNS = graphs.dim("rows", 4), graphs.dim("columns", 6)
X = np.random.RandomState(0).randn(4, 6).astype(np.float32)
W = np.random.RandomState(1).randn(6).astype(np.float32)
DY = np.random.RandomState(2).randn(4, 6).astype(np.float32)
MESHES = [("", ""), ("x:2", "rows:x"), ("x:2", "columns:x"), ("x:2,y:2", "rows:x,columns:y")]


def gradients_of(build, mesh_shape, layout):
    """Runs `build(x, w) -> (y, other outputs)` and the gradients of y with respect to both."""
    def graph(mesh):
        x, w = graphs.give(mesh, X, ROWS, COLUMNS), graphs.give(mesh, W, COLUMNS)
        y, others = build(x, w)
        return graphs.with_gradients({"y": y, **others}, {"x": x, "w": w},
                                     {"y": graphs.give(mesh, DY, ROWS, COLUMNS)})
    return graphs.run(graph, mesh_shape, layout)


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_local_uses_tensorflows_gradient_and_sums_it_over_the_mesh(mesh_shape, layout):
    # w is whole where rows are split: each slice sees only a part of its gradient.
    result = gradients_of(lambda x, w: (slices.local(
        lambda a, b: tf.sin(a) * b, [x, w], (x.shape, x.dtype)), {}), mesh_shape, layout)
    np.testing.assert_allclose(result["y"], np.sin(X) * W, rtol=1e-6)
    np.testing.assert_allclose(result["d_x"], np.cos(X) * W * DY, rtol=1e-5)
    np.testing.assert_allclose(result["d_w"], (np.sin(X) * DY).sum(0), rtol=1e-5, atol=1e-6)
    for name, dims in [("y", [ROWS, COLUMNS]), ("d_x", [ROWS, COLUMNS]), ("d_w", [COLUMNS])]:
        assert result.slice_shapes[name] == graphs.slice_shape(dims, mesh_shape, layout)


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_local_knows_where_a_slice_begins(mesh_shape, layout):
    def weigh(a, b, row, column):
        rows = tf.cast(row + tf.range(a.shape[0]), tf.float32)
        return a * rows[:, None] + b * tf.cast(column + tf.range(a.shape[1]), tf.float32)

    result = gradients_of(lambda x, w: (slices.local(
        weigh, [x, w], (x.shape, x.dtype), starts=[ROWS, COLUMNS]), {}), mesh_shape, layout)
    rows, columns = np.arange(4.0)[:, None], np.arange(6.0)
    np.testing.assert_allclose(result["y"], X * rows + W * columns, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result["d_x"], DY * rows, rtol=1e-5)
    np.testing.assert_allclose(result["d_w"], (DY * columns).sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_local_with_integers_several_outputs_and_a_given_gradient(mesh_shape, layout):
    seen = []

    def grad(inputs, outputs, grads):
        seen.append((len(inputs), len(outputs), len(grads)))
        return [grads[0] * 10.0, None, tf.reduce_sum(grads[0] + outputs[0], 0)]

    def build(x, w):
        shift = graphs.give(x.mesh, np.int32(3))
        y, z = slices.local(
            lambda a, i, b: (a + tf.cast(i, a.dtype) + b, tf.cast(i, tf.int32) * 2),
            [x, shift, w], [(x.shape, x.dtype), (mtf.Shape([]), tf.int32)], grad=grad)
        return y, {"z": z}

    result = gradients_of(build, mesh_shape, layout)
    np.testing.assert_allclose(result["y"], X + 3 + W, rtol=1e-6)
    assert result["z"] == 6
    np.testing.assert_allclose(result["d_x"], 10 * DY, rtol=1e-6)
    np.testing.assert_allclose(result["d_w"], (DY + X + 3 + W).sum(0), rtol=1e-5, atol=1e-5)
    assert set(seen) == {(3, 2, 2)}


def test_an_input_that_does_not_matter_has_a_zero_gradient():
    result = gradients_of(lambda x, w: (slices.local(
        lambda a, b: a + 0.0, [x, w], (x.shape, x.dtype)), {}), "x:2", "rows:x")
    np.testing.assert_array_equal(result["d_w"], np.zeros(6))


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES[:2])
def test_a_sparse_gradient_becomes_dense(mesh_shape, layout):
    result = gradients_of(lambda x, w: (slices.local(
        lambda a, b: a + tf.gather(b, [0, 0, 0, 1, 1, 5]), [x, w], (x.shape, x.dtype)), {}),
        mesh_shape, layout)
    at = DY.sum(0)
    np.testing.assert_allclose(
        result["d_w"], [at[:3].sum(), at[3:5].sum(), 0, 0, 0, at[5]], rtol=1e-5, atol=1e-6)


def test_a_chain_of_locals_multiplies_gradients():
    # TensorFlow's gradient of the second must stop at its own inputs, or the first counts twice:
    # x reaches it directly and through h.
    def build(x, w):
        h = slices.local(lambda a: a * a, [x], (x.shape, x.dtype))
        return slices.local(lambda a, b, c: a * b + 3 * c, [h, w, x], (x.shape, x.dtype)), {}

    for mesh_shape, layout in MESHES:
        result = gradients_of(build, mesh_shape, layout)
        np.testing.assert_allclose(result["d_x"], (2 * X * W + 3) * DY, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_collectives_and_starts(mesh_shape, layout):
    def forward(s, x, w):
        starts = [s.start(d) for d in (ROWS, COLUMNS)]
        total = s.sum(s.map(lambda v: tf.reduce_sum(v, 1), x), COLUMNS)
        top = s.max(s.map(lambda v: tf.reduce_max(v, 1), x), COLUMNS)
        # Each element's index in the whole tensor, from where its slice begins.
        index = s.map(lambda v, r, c: (r + tf.range(v.shape[0]))[:, None] * 6
                      + c + tf.range(v.shape[1]), x, *starts)
        rules = dict(item.split(":") for item in layout.split(",") if item)
        assert s.is_split(ROWS) == ("rows" in rules)
        assert s.is_split(COLUMNS) == ("columns" in rules)
        return total, top, index

    def graph(mesh):
        x, w = graphs.give(mesh, X, ROWS, COLUMNS), graphs.give(mesh, W, COLUMNS)
        outputs = [([ROWS], tf.float32), ([ROWS], tf.float32), ([ROWS, COLUMNS], tf.int32)]
        op = slices.SliceOperation(forward, None, [x, w], outputs, "probe")
        assert not op.has_gradient
        return dict(zip(["total", "top", "index"], op.outputs, strict=True))

    result = graphs.run(graph, mesh_shape, layout)
    np.testing.assert_allclose(result["total"], X.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result["top"], X.max(1))
    np.testing.assert_array_equal(result["index"], np.arange(24).reshape(4, 6))


def test_an_output_without_a_gradient_counts_as_zero():
    def build(x, w):
        y, z = slices.local(lambda a, b: (a * b, a - b), [x, w], [(x.shape, x.dtype)] * 2)
        return y, {"z": z}

    result = gradients_of(build, "x:2,y:2", "rows:x,columns:y")
    np.testing.assert_allclose(result["z"], X - W, rtol=1e-6)
    np.testing.assert_allclose(result["d_w"], (X * DY).sum(0), rtol=1e-5, atol=1e-6)
