"""mesh/head_loss.py against TensorFlow's own cross-entropy and gradients, on meshes, in blocks."""

import graphs
import numpy as np
import pytest
import tensorflow
from test_mesh_ops import check

from mesh import head_loss
from mesh.compat import tf

BATCH, SEQUENCE, EMBD, VOCAB = (graphs.dim(*item) for item in [
    ("batch", 4), ("sequence", 6), ("embd", 8), ("vocab", 16)])
RANDOM = np.random.RandomState(0)
X, KERNEL, BIAS = (RANDOM.randn(*shape).astype(np.float32) for shape in [(4, 6, 8), (8, 16), (16,)])
TARGETS = RANDOM.randint(0, 13, [4, 6]).astype(np.int32)
WEIGHTS = (RANDOM.rand(4, 6) < 0.7).astype(np.float32)
MESHES = [("", ""), ("x:2", "batch:x"), ("x:2", "sequence:x"), ("x:2", "vocab:x"),
          ("x:2", "embd:x"), ("x:2,y:2", "batch:x,vocab:y"), ("x:2,y:2", "vocab:x,embd:y")]


def compare(mesh_shape, layout, n_valid=16, tied=False, bias=True, dtype=None, tolerance=1e-5):
    """Loss and gradients against those of TensorFlow on whole tensors in float32."""
    def ours(x, kernel, *b):
        given = [graphs.give(x.mesh, value, BATCH, SEQUENCE) for value in (TARGETS, WEIGHTS)]
        return [head_loss.linear_cross_entropy(x, kernel, b[0] if b else None, *given, VOCAB,
                                               n_valid)]

    def reference(x, kernel, *b):
        logits = tensorflow.tensordot(x, tensorflow.transpose(kernel) if tied else kernel, 1)
        logits = (logits + b[0] if b else logits)[..., :n_valid]
        each = tensorflow.nn.sparse_softmax_cross_entropy_with_logits(TARGETS, logits)
        return [tensorflow.reduce_sum(each * WEIGHTS)]

    kernel = (KERNEL.T.copy(), [VOCAB, EMBD]) if tied else (KERNEL, [EMBD, VOCAB])
    inputs = [(X, [BATCH, SEQUENCE, EMBD]), kernel] + ([(BIAS, [VOCAB])] if bias else [])
    return check(ours, reference, inputs, mesh_shape, layout, dtype, tolerance=tolerance)


@pytest.mark.parametrize("blocks", [1, 5])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mesh_shape, layout", MESHES)
def test_it_is_tensorflows(monkeypatch, mesh_shape, layout, tied, blocks):
    monkeypatch.setattr(head_loss, "_BLOCK_BYTES", 1 if blocks > 1 else 1 << 30)
    monkeypatch.setattr(head_loss, "_MOST_BLOCKS", blocks)
    compare(mesh_shape, layout, 13, tied, bias=not tied)


@pytest.mark.parametrize("mesh_shape, layout", [("", ""), ("x:2", "vocab:x")])
def test_bfloat16(monkeypatch, mesh_shape, layout):
    monkeypatch.setattr(head_loss, "_BLOCK_BYTES", 600)
    result = compare(mesh_shape, layout, dtype=tf.bfloat16, tolerance=2e-2)
    assert result["y0"].dtype == np.float32


def test_large_logits_and_sure_ones_are_finite():
    def build(mesh):
        x = graphs.give(mesh, np.array([[1e4, 0.0], [0.0, 1e4]]), BATCH2, TWO)
        kernel = graphs.give(mesh, np.array([[1.0, -1.0, 0.0], [-1.0, 0.0, 1.0]]), TWO, THREE)
        loss = head_loss.linear_cross_entropy(
            x, kernel, None, graphs.give(mesh, np.array([0, 0], np.int32), BATCH2),
            graphs.give(mesh, np.ones([2]), BATCH2), THREE, 3)
        return graphs.with_gradients({"loss": loss}, {"x": x},
                                     {"loss": graphs.give(mesh, np.float32(1))})

    BATCH2, TWO, THREE = graphs.dim("batch", 2), graphs.dim("embd", 2), graphs.dim("vocab", 3)
    result = graphs.run(build)
    # The first token is sure and right, the second sure and wrong, by 2e4 nats.
    np.testing.assert_allclose(result["loss"], 2e4, rtol=1e-6)
    np.testing.assert_allclose(result["d_x"], [[0, 0], [-1, 2]], atol=1e-6)


def test_no_tensor_has_the_logits_of_all_tokens(monkeypatch):
    monkeypatch.setattr(head_loss, "_BLOCK_BYTES", 600)
    result = compare("", "")
    sizes = [x.shape.num_elements() for operation in result.operations
             for x in operation.outputs if x.shape.rank is not None and x.shape.rank
             and x.shape[-1] == VOCAB.size and x.shape.is_fully_defined()]
    assert 0 < max(sizes) < BATCH.size * SEQUENCE.size * VOCAB.size
