"""mesh/entmax.py against bisection and closed forms in numpy, on one device and on meshes."""

import graphs
import numpy as np
import pytest

from mesh import entmax
from mesh.compat import tf

BATCH, SEQUENCE, VOCAB = (graphs.dim(*item) for item in (
    ("batch", 4), ("sequence", 3), ("vocab", 16)))
MESHES = [("", ""), ("x:2,y:2", "batch:x,vocab:y")]
RANDOM = np.random.RandomState(0)
LOGITS = (RANDOM.randn(4, 3, 16) * np.array([0.1, 1.0, 3.0, 30.0])[:, None, None]).astype("f")
TARGETS = RANDOM.randint(0, 11, [4, 3]).astype(np.int32)


def bisected(z, alpha):
    """α-entmax over the last axis, float64: section 3.3 of the paper."""
    x = (alpha - 1) * (z.astype(np.float64) - z.max(-1, keepdims=True))
    low, high = -np.ones_like(x[..., :1]), np.zeros_like(x[..., :1])
    for _ in range(60):
        middle = (low + high) / 2
        above = (np.maximum(x - middle, 0) ** (1 / (alpha - 1))).sum(-1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    p = np.maximum(x - low, 0) ** (1 / (alpha - 1))
    return p / p.sum(-1, keepdims=True)


def in_closed_form(z, alpha):
    """Sparsemax (Martins and Astudillo 2016) and 1.5-entmax, by sorting."""
    x = np.sort((alpha - 1) * z.astype(np.float64), -1)[..., ::-1]
    k = np.arange(1, z.shape[-1] + 1)
    mean, squares = np.cumsum(x, -1) / k, np.cumsum(x ** 2, -1) / k
    if alpha == 2:
        tau = mean - 1 / k
    else:
        tau = mean - np.sqrt(np.maximum(1 / k - (squares - mean ** 2), 0))
    support = (tau <= x).sum(-1, keepdims=True)
    tau = np.take_along_axis(tau, support - 1, -1)
    return np.maximum((alpha - 1) * z - tau, 0) ** (1 / (alpha - 1))


def run(alpha, n_valid, mesh_shape, layout, dtype=None, logits=LOGITS, targets=TARGETS):
    def build(mesh):
        x = graphs.give(mesh, logits, BATCH, SEQUENCE, VOCAB, dtype=dtype)
        t = graphs.give(mesh, targets, BATCH, SEQUENCE)
        loss = entmax.entmax_loss(x, t, VOCAB, n_valid, alpha)
        assert loss.dtype == tf.float32
        weights = graphs.give(mesh, np.arange(12.0).reshape(4, 3), BATCH, SEQUENCE)
        return {"p": entmax.probabilities(x, VOCAB, n_valid, alpha),
                **graphs.with_gradients({"loss": loss}, {"x": x}, {"loss": weights})}

    result = graphs.run(build, mesh_shape, layout)
    assert result.slice_shapes["d_x"] == graphs.slice_shape(
        [BATCH, SEQUENCE, VOCAB], mesh_shape, layout)
    return result


def expected(p, alpha, logits=LOGITS, targets=TARGETS):
    """The Fenchel-Young loss of probabilities, and its gradient times the weights of `run`."""
    z = logits[..., :p.shape[-1]].astype(np.float64)
    hit = np.eye(p.shape[-1])[targets]
    entropy = (p - p ** alpha).sum(-1) / (alpha * (alpha - 1))
    loss = ((p - hit) * z).sum(-1) + entropy
    return loss, (p - hit) * np.arange(12.0).reshape(4, 3, 1)


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
@pytest.mark.parametrize(("alpha", "n_valid"), [(1.05, 16), (1.3, 11), (1.5, 16), (2.0, 11)])
def test_the_loss_and_its_gradient(mesh_shape, layout, alpha, n_valid):
    result = run(alpha, n_valid, mesh_shape, layout)
    p = bisected(LOGITS[..., :n_valid], alpha)
    if alpha in (1.5, 2.0):
        np.testing.assert_allclose(in_closed_form(LOGITS[..., :n_valid], alpha), p, atol=1e-7)
    loss, gradient = expected(p, alpha)
    np.testing.assert_allclose(result["p"][..., :n_valid], p, atol=2e-5)
    np.testing.assert_array_equal(result["p"][..., n_valid:], 0.0)
    np.testing.assert_allclose(result["loss"], loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["d_x"][..., :n_valid], gradient, atol=2e-4)
    np.testing.assert_array_equal(result["d_x"][..., n_valid:], 0.0)


def test_the_loss_is_finite_where_the_target_has_no_probability():
    logits = np.zeros([4, 3, 16], np.float32)
    logits[..., 0], logits[..., 15] = 1e4, 1e6
    result = run(1.3, 15, "x:2", "vocab:x", logits=logits, targets=np.ones([4, 3], np.int32))
    np.testing.assert_allclose(result["loss"], 1e4)
    np.testing.assert_array_equal(result["p"][0, 0, :2], [1.0, 0.0])
    # Right and certain: no loss, and nothing to learn.
    sure = run(1.3, 15, "", "", logits=logits, targets=np.zeros([4, 3], np.int32))
    np.testing.assert_array_equal(sure["loss"], 0.0)
    np.testing.assert_array_equal(sure["d_x"], 0.0)


def test_bfloat16_logits_are_computed_in_float32():
    result = run(1.5, 16, "", "", tf.bfloat16)
    rounded = np.asarray(tf.cast(tf.cast(LOGITS, tf.bfloat16), tf.float32))
    p = bisected(rounded, 1.5)
    loss, gradient = expected(p, 1.5, rounded)
    np.testing.assert_allclose(result["loss"], loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["d_x"].astype(np.float32), gradient, rtol=1e-2, atol=1e-3)
