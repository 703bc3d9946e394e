"""mesh/random.py: dropout as a pure function of (key, site, element), and its quality."""

import os
import subprocess
import sys

import graphs
import numpy as np
import pytest
import tensorflow

from mesh import random
from mesh.compat import mtf, tf

BATCH, SEQUENCE, EMBD = (graphs.dim(*d) for d in [("batch", 8), ("sequence", 6), ("embd", 16)])
DIMS = [BATCH, SEQUENCE, EMBD]
MESHES = [("x:2", "batch:x"), ("x:2", "embd:x"), ("x:2,y:2", "batch:x,embd:y"),
          ("x:2,y:2", "embd:x"), ("x:4", "batch:x")]
ONES = np.ones([8, 6, 16], np.float32)


def dropout(rate, key=7, site=11, mesh_shape="", layout="", x=ONES, dtype=None):
    """dropout(x) and its gradient for cotangents of ones, as a Result with "y" and "d_x"."""
    def build(mesh):
        tensor = graphs.give(mesh, x, *DIMS, dtype=dtype)
        y = random.dropout(tensor, rate, graphs.give(mesh, np.int32(key)), site)
        ones = graphs.give(mesh, ONES, *DIMS, dtype=y.dtype)
        return graphs.with_gradients({"y": y}, {"x": tensor}, {"y": ones})
    return graphs.run(build, mesh_shape, layout)


def hash32(x):
    """The hash written in Python's integers, of a uint64 array of values below 2^32."""
    x = np.asarray(x, np.uint64)
    for shift, factor in [(16, 0x21F0AAAD), (15, 0x735A2D97)]:
        x ^= x >> np.uint64(shift)
        x = x * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return x ^ x >> np.uint64(15)


def mix32(key, value):
    """mesh.random.mix in Python's integers."""
    return hash32(np.uint64(key % 2**32) ^ hash32(np.uint64((value + 0x9E3779B9) % 2**32)))


def bits(key, n, site=None):
    """n hashes of one key as uint32, by the project's functions: the least rate that drops each."""
    index = tensorflow.range(n, dtype=tensorflow.int64)
    key = tensorflow.constant(key, tensorflow.int32)
    key = key if site is None else random.mix(key, site)
    found = random._hash(tensorflow.cast(index, tensorflow.uint32)
                         ^ tensorflow.bitcast(key, tensorflow.uint32))
    return found.numpy()


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_the_mask_is_the_same_on_every_mesh(mesh_shape, layout):
    one, split = dropout(0.3), dropout(0.3, mesh_shape=mesh_shape, layout=layout)
    np.testing.assert_array_equal(one["y"], split["y"])
    np.testing.assert_array_equal(one["d_x"], split["d_x"])
    assert split.slice_shapes["y"] == graphs.slice_shape(DIMS, mesh_shape, layout)


def test_the_mask_is_the_documented_hash():
    # Fixed for ever: a resumed run must drop what an unbroken one drops.
    key = mix32(-5, 11)
    expected = (hash32(np.arange(768, dtype=np.uint64) ^ key) >= 0.25 * 2**32).reshape(8, 6, 16)
    np.testing.assert_array_equal(dropout(0.25, key=-5)["y"] != 0, expected)
    np.testing.assert_array_equal(bits(123, 1000, site=9),
                                  hash32(np.arange(1000, dtype=np.uint64) ^ mix32(123, 9)))


@pytest.mark.parametrize("dtype", [None, tf.bfloat16])
def test_what_is_kept_is_scaled_and_the_gradient_has_the_same_mask(dtype):
    x = np.random.RandomState(0).randn(8, 6, 16).astype(np.float32)
    result = dropout(0.2, mesh_shape="x:2", layout="batch:x", x=x, dtype=dtype)
    y, dx = (result[name].astype(np.float32) for name in ("y", "d_x"))
    kept = dx != 0
    assert 0 < kept.sum() < kept.size
    tolerance = 1e-6 if dtype is None else 1e-2
    np.testing.assert_allclose(y, np.where(kept, x / 0.8, 0), rtol=tolerance, atol=1e-6)
    np.testing.assert_allclose(dx[kept], 1.25, rtol=tolerance)


def test_a_rate_of_zero_changes_nothing():
    np.testing.assert_array_equal(dropout(0.0)["y"], ONES)


def test_the_mask_differs_by_key_and_site():
    masks = [dropout(0.5, key=k, site=s)["y"] != 0
             for k, s in [(7, 11), (8, 11), (7, 12), (-7, 11)]]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            # Independent halves agree in half of the 768 places; 5 standard deviations are 69.
            assert abs((a == b).sum() - 384) < 69


def test_it_does_not_depend_on_pythons_hash_seed(root):
    code = ("import sys; sys.path.insert(0, 'tests')\n"
            "import test_mesh_random as t, zlib\n"
            "print(zlib.crc32(t.dropout(0.5, mesh_shape='x:2', layout='batch:x')['y'].tobytes()))")
    printed = [subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")]
    assert printed[0] == printed[1] != ""


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_keep_rate(rate):
    n = 2**20
    index = tensorflow.cast(tensorflow.range(n), tensorflow.uint32)
    for key in (0, 1, -1, 2**31 - 1):
        mask = random.keep_mask(index, random.mix(tensorflow.constant(key), 3), rate)
        dropped = n - np.count_nonzero(mask)
        assert abs(dropped - n * rate) < 5 * np.sqrt(n * rate * (1 - rate))


def chi_square(counts):
    """How far counts of equally likely bins are from equal, in standard deviations."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("key", [0, 1, 12345, -99])
def test_bits_are_uniform(key):
    values = bits(key, 2**18, site=5)
    for shift in (0, 8, 16, 24):
        assert abs(chi_square(np.bincount(values >> shift & 255, minlength=256))) < 5
    # Pairs of neighbours fill the plane evenly.
    high = (values >> 26).astype(int)
    assert abs(chi_square(np.bincount(high[::2] * 64 + high[1::2], minlength=4096))) < 5


def correlation(a, b):
    """Pearson's, in standard deviations of what independent sequences give."""
    a, b = (x / 2.0**32 - 0.5 for x in (a, b))
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) * np.sqrt(len(a))


def test_no_correlation_between_neighbours_keys_sites_and_microbatches():
    n = 2**17
    base = bits(1000, n, site=5)
    for lag in (1, 2, 16, 64, 1024):
        assert abs(correlation(base[:-lag], base[lag:])) < 5, lag
    for key in (1001, 1002, 1016, 999, -1000):
        assert abs(correlation(base, bits(key, n, site=5))) < 5, key
    for site in (4, 6, 7, 1000):
        assert abs(correlation(base, bits(1000, n, site=site))) < 5, site
    microbatches = [bits(int(random.mix(tensorflow.constant(1000), m)), n, site=5)
                    for m in range(3)]
    for i in range(3):
        assert abs(correlation(microbatches[i], microbatches[i - 1])) < 5
        # Nor is one's mask the other's, shifted.
        assert abs(correlation(microbatches[i][1:], microbatches[i - 1][:-1])) < 5


def test_one_bit_of_the_key_changes_half_of_the_bits():
    value = bits(77, 4096, site=5)
    for bit in range(31):
        changed = np.unpackbits((value ^ bits(77 ^ 1 << bit, 4096, site=5)).view(np.uint8))
        assert abs(changed.mean() - 0.5) < 0.01, bit


def test_keys_do_not_collide():
    keys = [int(k) for step in range(200)
            for k in random.mix(random.mix(tensorflow.constant(1), step),
                                tensorflow.range(20)).numpy()]
    # 4,000 of 2^32 random numbers: 0.002 pairs are expected.
    assert len(set(keys)) == len(keys)


def test_global_index_is_the_place_in_the_whole_tensor():
    index = random.global_index([2, 3, 4], [2, 0, 8], [6, 3, 12])
    expected = np.arange(6 * 3 * 12).reshape(6, 3, 12)[2:4, :, 8:12]
    np.testing.assert_array_equal(index, expected)


def test_global_index_wraps_at_32_bits():
    index = random.global_index([1, 2], [70000, 5], [2**17, 2**16])
    np.testing.assert_array_equal(index, [[(70000 * 2**16 + i) % 2**32 for i in (5, 6)]])


def test_uniform_numbers_are_uniform_and_the_same_on_every_mesh():
    dims = [graphs.dim("batch", 4), graphs.dim("embd", 4096)]

    def numbers(mesh_shape, layout, key=5, site=9):
        return graphs.run(lambda mesh: {"y": random.uniform(
            mtf.Shape(dims), graphs.give(mesh, np.int32(key)), site)}, mesh_shape, layout)["y"]

    y = numbers("", "")
    assert y.dtype == np.float32 and 0 <= y.min() and y.max() < 1
    # The largest deviation of 16,384 draws' distribution exceeds this once in 10,000 times.
    ranks = (np.arange(y.size) + 0.5) / y.size
    assert abs(np.sort(y.ravel()) - ranks).max() < 2.2 / np.sqrt(y.size)
    assert abs(np.corrcoef(y)[~np.eye(4, dtype=bool)]).max() < 4 / np.sqrt(4096)
    np.testing.assert_array_equal(numbers("x:2,y:2", "batch:x,embd:y"), y)
    for other in (numbers("", "", key=6), numbers("", "", site=8)):
        assert (other == y).mean() < 1e-3
