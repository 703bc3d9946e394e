"""models/attention.py against softmax attention written out, in full and incremental form."""

import graphs
import numpy as np
import pytest
import tensorflow
from attention_formulas import keep_factors
from attention_formulas import softmax_attention as naive

from mesh import devices
from mesh.compat import mtf, tf
from models import attention, full, layers, local, positions

HEADS, FEATURES, QKV = (graphs.dim(*d) for d in [
    ("heads", 2), ("features_per_head", 8), ("qkv", 3)])
# Layouts that split what attention works along.
SPLIT = [("x:2", "sequence:x"), ("x:2", "memory_length:x"), ("x:2", "features_per_head:x"),
         ("x:4", "memory_length:x"), ("x:2,y:2", "batch:x,sequence:y"),
         ("x:2,y:2", "heads:y,memory_length:x"), ("x:2,y:2", "batch:x,features_per_head:y"),
         ("x:2,y:2", "sequence:x,memory_length:y"), ("x:2,y:2", "sequence:x,features_per_head:y"),
         ("x:2,y:2", "memory_length:x,features_per_head:y")]
RATE, KEY, SITE = 0.3, 42, "h0/attn/probabilities"


def packed(length, batch=2, seed=0):
    """Queries, keys and values [batch, sequence, qkv, heads, features], and their dims."""
    x = np.random.RandomState(seed).randn(batch, length, 3, 2, 8).astype(np.float32)
    return x, [graphs.dim("batch", batch), graphs.dim("sequence", length), QKV, HEADS, FEATURES]


def kept(batch, length):
    """Dropout's factors for the whole [b, h, s, s] tensor."""
    return keep_factors([batch, 2, length, length], RATE, KEY, SITE)


def attend(x, dims, rotary_dims=0, dropout=False, mesh_shape="", layout="", dtype=None):
    """full() and its gradient for random cotangents, which are returned too."""
    dy = np.random.RandomState(9).randn(*x.shape[:2], *x.shape[3:]).astype(np.float32)

    def build(mesh):
        key = graphs.give(mesh, np.int32(KEY)) if dropout else None
        ctx = layers.Context(mesh, graphs.config(), key)
        qkv = graphs.give(mesh, x, *dims, dtype=dtype)
        y = attention.full(ctx, qkv, rotary_dims, RATE, SITE)
        assert y.dtype == qkv.dtype and y.shape.dims == [*dims[:2], *dims[3:]]
        result = graphs.with_gradients(
            {"y": y}, {"x": qkv}, {"y": graphs.give(mesh, dy, *y.shape.dims, dtype=y.dtype)})
        for op in mesh.graph.operations:
            for tensor in op.outputs:
                lengths = [d for d in tensor.shape.dims if d.size == x.shape[1] > 8]
                assert len(lengths) < 2, f"{tensor} is kept for the backward pass"
        return result

    return graphs.run(build, mesh_shape, layout), dy


def check(x, dims, rotary_dims=0, dropout=False, tolerance=2e-5, **options):
    result, dy = attend(x, dims, rotary_dims, dropout, **options)
    if options.get("dtype"):
        x = np.asarray(tensorflow.cast(tensorflow.cast(x, options["dtype"]), tf.float32))
    with tensorflow.GradientTape() as tape:
        x = tensorflow.constant(x)
        tape.watch(x)
        y = naive(x, rotary_dims=rotary_dims,
                  keep=kept(x.shape[0], x.shape[1]) if dropout else None)
        total = tensorflow.reduce_sum(y * dy)
    for name, expected in [("y", y), ("d_x", tape.gradient(total, x))]:
        expected = expected.numpy()
        np.testing.assert_allclose(result[name].astype(np.float32), expected,
                                   atol=tolerance * max(1, abs(expected).max()), err_msg=name)
    return result


def continued(qkv, cache, at, rotary_dims, window=None):
    """causal_incremental() of new tokens after `at` others of each row."""
    mesh, (batch, new_tokens) = qkv.mesh, qkv.shape.dims[:2]
    index = graphs.give(mesh, at, batch)
    angles = positions.angles_of(layers.Context(mesh, graphs.config(n_ctx=MEMORY)),
                                 index + mtf.range(mesh, new_tokens, tf.int32), rotary_dims)
    return attention.causal_incremental(qkv, cache, index, rotary_dims, angles, window)


# 300 queries are two blocks of 150, 389 are 129 and two of 130.
@pytest.mark.parametrize("length", [1, 7, 64, 300, 389])
@pytest.mark.parametrize(("rotary_dims", "dropout"), [(0, False), (8, False), (4, True)])
def test_causal_equals_the_formula(length, rotary_dims, dropout):
    check(*packed(length), rotary_dims, dropout)


@pytest.mark.parametrize("most", [0, 2 * 2 * 300 * 300 + 1])
def test_many_scores_are_made_again_in_the_backward_pass(most, monkeypatch):
    """TensorFlow would find them in the forward pass and keep them; the numbers are the same."""
    monkeypatch.setattr(full, "_MANY_SCORES", most)
    x, dims = packed(300)
    check(x, dims, 4, dropout=True)
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    with tf.Graph().as_default(), tf.Session() as session:
        given = tf.placeholder(tf.float32, x.shape)
        qkv = mtf.import_tf_tensor(mesh, given, mtf.Shape(dims))
        y = attention.full(layers.Context(mesh, graphs.config()), qkv, 0, 0.0, SITE)
        gradient, = mtf.gradients([mtf.reduce_sum(mtf.square(y))], [qkv])
        lowering = mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(graphs.config())})
        nodes = graphs.executed(session, lowering.export_to_tf_tensor(gradient), {given: x})
    # Of two blocks of queries.
    assert sum("Softmax" in node.op for node in nodes) == (4 if most == 0 else 2)


def test_query_blocks():
    for length in (1, 127, 128, 255, 256, 300, 389, 1024, 2047, 5000):
        blocks = full._query_blocks(length)
        covered = [i for first, end in blocks for i in range(first, end)]
        assert covered == list(range(length))
        assert len(blocks) == 1 or min(end - first for first, end in blocks) >= 128
    assert len(full._query_blocks(300)) == 2
    assert len({end - first for first, end in full._query_blocks(389)}) == 2


@pytest.mark.parametrize(("mesh_shape", "layout"), [
    ("x:2", "batch:x"), ("x:2", "heads:x"), ("x:2,y:2", "batch:x,heads:y"), ("x:4", "batch:x"),
    *SPLIT])
@pytest.mark.parametrize("rotary_dims", [0, 4])
def test_meshes_give_the_same_with_dropout(mesh_shape, layout, rotary_dims):
    x, dims = packed(12, batch=4)
    result = check(x, dims, rotary_dims, True, tolerance=1e-5, mesh_shape=mesh_shape,
                   layout=layout)
    for name, shape in [("y", [*dims[:2], *dims[3:]]), ("d_x", dims)]:
        assert result.slice_shapes[name] == graphs.slice_shape(shape, mesh_shape, layout)
    scores = graphs.slice_shape([dims[0], HEADS, dims[1], graphs.dim("memory_length", 12)],
                                mesh_shape, layout)
    exponentials = "Exp" if "memory_length" in layout else "Softmax"
    shapes = [op.outputs[0].shape.as_list() for op in result.operations if op.type == exponentials]
    assert shapes == [scores] * len(shapes)
    # Forward and backward; slices that hold the same scores, summed over parts of features, may
    # share them.
    sizes = dict(item.split(":") for item in mesh_shape.split(","))
    rules = dict(item.split(":") for item in layout.split(","))
    shared = int(sizes.get(rules.get("features_per_head"), 1))
    slices = int(np.prod([int(size) for size in sizes.values()]))
    assert 2 * slices // shared <= len(shapes) <= 2 * slices


@pytest.mark.parametrize(("mesh_shape", "layout"), SPLIT[:3] + SPLIT[7:8])
def test_split_slices_go_through_blocks_of_queries_too(mesh_shape, layout):
    check(*packed(512), 8, True, mesh_shape=mesh_shape, layout=layout)


@pytest.mark.parametrize(("mesh_shape", "layout"), SPLIT[:3])
def test_bfloat16_on_split_slices(mesh_shape, layout):
    check(*packed(300), 8, True, dtype=tf.bfloat16, tolerance=3e-2, mesh_shape=mesh_shape,
          layout=layout)


@pytest.mark.parametrize("dropout", [False, True])
def test_bfloat16(dropout):
    check(*packed(300), 8, dropout, dtype=tf.bfloat16, tolerance=3e-2)


def test_large_scores_are_finite():
    x, dims = packed(7)
    check(8 * x, dims, tolerance=2e-4)  # the exponential of the scores would overflow


def test_the_future_does_not_matter():
    x, dims = packed(300)
    changed = x.copy()
    changed[:, 170:] = 7.0
    a, b = (attend(v, dims, 8)[0]["y"] for v in (x, changed))
    np.testing.assert_array_equal(a[:, :170], b[:, :170])
    assert not np.allclose(a[:, 170:], b[:, 170:])


def test_no_dropout_outside_of_training():
    x, dims = packed(7)
    np.testing.assert_allclose(attend(x, dims)[0]["y"], naive(x), atol=1e-5)
    assert not np.allclose(attend(x, dims, dropout=True)[0]["y"], naive(x), atol=1e-3)


MEMORY = 16


@pytest.mark.parametrize(("mesh_shape", "layout", "rotary_dims", "dtype"), [
    *[("", "", dims, dtype) for dims in (0, 8, 4) for dtype in (None, tf.bfloat16)],
    *[("x:2,y:2", "batch:x,heads:y", dims, None) for dims in (0, 8)],
    *[(*mesh, dims, None) for mesh in SPLIT for dims in (0, 4)],
    *[(*mesh, 8, tf.bfloat16) for mesh in SPLIT[:3]]])
def test_incremental_equals_full(mesh_shape, layout, rotary_dims, dtype):
    x, dims = packed(12, batch=4)
    batch, held = dims[0], np.array([5, 3, 1, 4], np.int32)
    steps = [1, 1, 2, 1]  # new tokens of each call after the prompts

    def pieces():
        """(where each row's new tokens begin, their qkv), as numpy."""
        # Prompts of different lengths: a row's surplus is overwritten by what follows.
        yield np.zeros(4, np.int32), x[:, :5]
        at = held
        for n in steps:
            yield at, np.stack([x[row, a:a + n] for row, a in enumerate(at)])
            at = at + np.int32(n)

    def build(mesh):
        shape = [batch, HEADS, graphs.dim("memory_length", MEMORY), FEATURES]
        # Whatever lies in the cache beyond the tokens has no effect.
        cache = tuple(graphs.give(mesh, np.full([4, 2, MEMORY, 8], value), *shape, dtype=dtype)
                      for value in (3.0, -50.0))
        outputs = {}
        for i, (at, new) in enumerate(pieces()):
            qkv = graphs.give(mesh, new, batch, graphs.dim("new_tokens", new.shape[1]), *dims[2:],
                              dtype=dtype)
            outputs[f"y{i}"], cache = continued(qkv, cache, at, rotary_dims)
        return {**outputs, "keys": cache[0], "values": cache[1]}

    result = graphs.run(build, mesh_shape, layout)
    full = attend(x, dims, rotary_dims, dtype=dtype)[0]["y"].astype(np.float32)
    tolerance = 1e-5 if dtype is None else 3e-2
    for i, (at, new) in enumerate(pieces()):
        for row in range(4):
            n = held[row] if i == 0 else new.shape[1]
            np.testing.assert_allclose(
                result[f"y{i}"][row, :n].astype(np.float32), full[row, at[row]:at[row] + n],
                atol=tolerance, err_msg=f"call {i}, row {row}")
    for row, end in enumerate(held + sum(steps)):
        written = result["values"][row, :, :end].astype(np.float32)
        np.testing.assert_allclose(written, x[row, :end, 2].transpose(1, 0, 2),
                                   atol=1e-6 if dtype is None else 3e-2)
    assert result.slice_shapes["keys"] == graphs.slice_shape(
        [batch, HEADS, graphs.dim("memory_length", MEMORY), FEATURES], mesh_shape, layout)


@pytest.mark.parametrize(("length", "window", "rotary_dims"),
                         [(1, 4, 0), (4, 4, 8), (11, 4, 4), (12, 3, 0), (5, 8, 8), (6, 1, 0)])
@pytest.mark.parametrize(("mesh_shape", "layout"), [("", ""), ("x:2,y:2", "batch:x,heads:y")])
def test_windowed_attention_sees_the_last_tokens(length, window, rotary_dims, mesh_shape, layout):
    x, dims = packed(length)
    dy = np.random.RandomState(9).randn(2, length, 2, 8).astype(np.float32)

    def build(mesh):
        qkv = graphs.give(mesh, x, *dims)
        ctx = layers.Context(mesh, graphs.config())
        y = local.windowed(ctx, qkv, window, rotary_dims, RATE, SITE)
        return graphs.with_gradients({"y": y}, {"x": qkv},
                                     {"y": graphs.give(mesh, dy, *y.shape.dims)})

    result = graphs.run(build, mesh_shape, layout)
    shape = graphs.slice_shape([*dims[:2], *dims[3:]], mesh_shape, layout)
    assert result.slice_shapes["y"] == shape
    with tensorflow.GradientTape() as tape:
        source = tensorflow.constant(x)
        tape.watch(source)
        y = naive(source, rotary_dims=rotary_dims, window=window)
    np.testing.assert_allclose(result["y"], y, atol=2e-5)
    np.testing.assert_allclose(result["d_x"], tape.gradient(y, source, dy), atol=2e-5)


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize(("mesh_shape", "layout", "rotary_dims", "dtype"), [
    ("", "", 0, None), ("", "", 4, None), ("", "", 4, tf.bfloat16),
    ("x:2,y:2", "batch:x,heads:y", 4, None), ("x:2", "memory_length:x", 4, None),
    ("x:2", "features_per_head:x", 4, None)])
def test_incremental_sees_no_further_than_a_window(mesh_shape, layout, rotary_dims, dtype, window):
    """Prompts shorter and longer than the window, then tokens one by one, and two at once."""
    x, dims = packed(14, batch=4)
    batch, held = dims[0], np.array([9, 3, 1, 6], np.int32)
    pieces, at = [(np.zeros(4, np.int32), x[:, :9])], held
    for n in (1, 1, 2, 1):
        pieces.append((at, np.stack([x[row, a:a + n] for row, a in enumerate(at)])))
        at = at + np.int32(n)

    def build(mesh):
        shape = [batch, HEADS, graphs.dim("memory_length", MEMORY), FEATURES]
        cache = tuple(graphs.give(mesh, np.full([4, 2, MEMORY, 8], value), *shape, dtype=dtype)
                      for value in (3.0, -50.0))
        outputs = {}
        for i, (at, new) in enumerate(pieces):
            qkv = graphs.give(mesh, new, batch, graphs.dim("new_tokens", new.shape[1]), *dims[2:],
                              dtype=dtype)
            outputs[f"y{i}"], cache = continued(qkv, cache, at, rotary_dims, window)
        return outputs

    result = graphs.run(build, mesh_shape, layout)
    full = naive(x, rotary_dims=rotary_dims, window=window).numpy()
    assert np.abs(full - naive(x, rotary_dims=rotary_dims)).max() > 0.1, "the window hides nothing"
    for i, (at, new) in enumerate(pieces):
        for row in range(4):
            n = held[row] if i == 0 else new.shape[1]
            np.testing.assert_allclose(
                result[f"y{i}"][row, :n].astype(np.float32), full[row, at[row]:at[row] + n],
                atol=1e-5 if dtype is None else 4e-2, err_msg=f"call {i}, row {row}")
