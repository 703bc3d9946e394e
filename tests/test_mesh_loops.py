"""mesh/loops.py: a compiled loop, beside NumPy."""

import graphs
import numpy as np
import pytest

from mesh import loops
from mesh.compat import mtf, tf

ROWS, COLUMNS = graphs.dim("rows", 3), graphs.dim("columns", 3)
X = np.random.RandomState(0).randn(3, 3).astype(np.float32)
W = np.random.RandomState(1).randn(3, 3).astype(np.float32) * 0.5


def build(compiled):
    def graph(mesh):
        w, step = graphs.give(mesh, W, ROWS, COLUMNS), mtf.constant(mesh, 0, dtype=tf.int32)

        def body(step, x):
            turned = mtf.transpose(w, mtf.Shape([COLUMNS, ROWS]))
            y = mtf.einsum([x, mtf.rename_dimension(turned, "rows", "others")],
                           output_shape=[ROWS, graphs.dim("others", 3)])
            return [step + 1, mtf.rename_dimension(y, "others", "columns") + x]

        steps, x = loops.while_loop(lambda step, x: mtf.less(step, 5), body,
                                    [step, graphs.give(mesh, X, ROWS, COLUMNS)], compiled)
        return {"steps": steps, "x": x}
    return graph


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loop_is_that_of_numpy(compiled):
    result, expected = graphs.run(build(compiled)), X
    for _ in range(5):
        expected = expected @ W.T + expected
    assert result["steps"] == 5
    np.testing.assert_allclose(result["x"], expected, rtol=1e-5)
    assert any(op.type.endswith("While") for op in result.operations) != compiled
    # What each turn would do alike is outside of it.
    assert any(op.type == "Transpose" for op in result.operations) == compiled


def test_a_loop_is_compiled_for_one_device_alone():
    with pytest.raises(ValueError, match="one device"):
        graphs.run(build(True), "x:3", "rows:x")
