"""models/similarity.py against numpy, on one device and on meshes."""

import graphs
import numpy as np
import pytest

from models import similarity

DIMS = [graphs.dim("batch", 4), graphs.dim("clip_samples", 3), graphs.dim("clip_out", 8)]
RANDOM = np.random.RandomState(0)
QUERIES, CANDIDATES = RANDOM.randn(2, 4, 3, 8).astype(np.float32) * [[[[1.0]]], [[[30.0]]]]
MASK = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]], np.float32)
MESHES = [("", ""), ("x:4", "batch:x"), ("x:2,y:2", "batch:x,clip_out:y")]


def cosines(queries, candidates):
    """[rows, rows] of flattened rows, float64."""
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (queries, candidates))
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (
        b / np.linalg.norm(b, axis=1, keepdims=True)).T


def run(fn, *arrays, mesh_shape="", layout="", dims=None):
    """fn of mtf tensors -> {name: mtf tensor}; a float array's last dimension is clip_out."""
    dims = dims or DIMS
    return graphs.run(lambda mesh: fn(*(graphs.give(mesh, x, *dims[:x.ndim]) for x in arrays)),
                      mesh_shape, layout)


def test_unit_vectors():
    result = run(lambda x: {"y": similarity.unit(x, DIMS[-1])}, QUERIES)
    wanted = QUERIES / np.linalg.norm(QUERIES, axis=-1, keepdims=True)
    np.testing.assert_allclose(result["y"], wanted, atol=1e-6)
    nothing = run(lambda x: {"y": similarity.unit(x, DIMS[-1])}, np.zeros([4, 3, 8], np.float32))
    assert not nothing["y"].any()


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_cosines_of_all_slices(mesh_shape, layout):
    def both(queries, candidates, mask):
        free = similarity.cosines(queries, candidates)
        assert [d.name for d in free.shape.dims] == ["batch", "clip_samples", "clip_candidates"]
        return {"free": free, "masked": similarity.cosines(queries, candidates, mask)}

    result = run(both, QUERIES, CANDIDATES, MASK, mesh_shape=mesh_shape, layout=layout)
    wanted = cosines(QUERIES, CANDIDATES).reshape(4, 3, 12)
    np.testing.assert_allclose(result["free"], wanted, atol=1e-6)
    there = MASK.reshape(-1) > 0
    np.testing.assert_allclose(result["masked"][..., there], wanted[..., there], atol=1e-6)
    assert result["masked"][..., ~there].max() < -1000
    rows = 4 // (int(mesh_shape[2]) if mesh_shape else 1)
    assert result.slice_shapes["masked"] == [rows, 3, 12], "queries are split, candidates are not"


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES[:2])
def test_own_index_counts_in_the_order_of_the_candidates(mesh_shape, layout):
    result = run(lambda mask: {"y": similarity.own_index(mask.mesh, mask.shape.dims)}, MASK,
                 mesh_shape=mesh_shape, layout=layout)
    np.testing.assert_array_equal(result["y"], np.arange(12).reshape(4, 3))


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_found_counts_whose_own_is_nearest(mesh_shape, layout):
    # Some lie near to their candidates, one nearer to a candidate that is none.
    queries = np.where(np.arange(12).reshape(4, 3, 1) % 3, QUERIES + 0.3 * CANDIDATES, QUERIES)
    queries[3, 0] = 1.3 * CANDIDATES[2, 2] + CANDIDATES[3, 0]
    near, own, there = cosines(queries, CANDIDATES), np.arange(12), MASK.reshape(-1) > 0
    found = np.where(there, near, -9).argmax(1) == own
    assert near[9].argmax() == 8 and found[9] and not found[there].all()
    wanted = (found & there).sum()
    result = run(lambda q, c, m: {"y": similarity.found(q, c, m)}, queries.astype(np.float32),
                 CANDIDATES, MASK, mesh_shape=mesh_shape, layout=layout)
    assert result["y"] == wanted


def test_a_tie_is_no_find():
    same = np.broadcast_to(QUERIES[:1, :1], [4, 3, 8]).astype(np.float32)
    every = np.ones([4, 3], np.float32)
    run_found = run(lambda q, c, m: {"y": similarity.found(q, c, m)}, same, same, every)
    assert run_found["y"] == 0
    one = every * 0
    one[2, 1] = 1
    assert run(lambda q, c, m: {"y": similarity.found(q, c, m)}, same, same, one)["y"] == 1
