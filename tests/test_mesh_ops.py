"""mesh/ops.py against TensorFlow's own operations and gradients, on one device and on meshes."""

import graphs
import numpy as np
import pytest
import tensorflow

from mesh import norms, ops
from mesh.compat import mtf, tf

BATCH, SEQUENCE, EMBD, VOCAB, HEADS, FEATURES = (graphs.dim(*item) for item in [
    ("batch", 4), ("sequence", 3), ("embd", 6), ("vocab", 16), ("heads", 4),
    ("features_per_head", 5)])
RANDOM = np.random.RandomState(0)


def normal(*dims):
    return RANDOM.randn(*(d.size for d in dims)).astype(np.float32)


def check(build, reference, inputs, mesh_shape, layout, dtype=None, used=None, tolerance=1e-5):
    """Compares values, gradients and slice shapes with those of TensorFlow on whole tensors.

    Args:
      build: from mtf tensors to a list of mtf tensors.
      reference: from tf tensors to a list of tf tensors.
      inputs: a list of (numpy array, its dims); integers get no gradient.
      dtype: the type that floating inputs are cast to; the reference stays in float32.
      used: which outputs have a gradient; all without it.
    """
    def kind(array):
        return dtype if array.dtype == np.float32 else None

    arrays = [array for array, _ in inputs]
    if dtype is not None:
        arrays = [np.asarray(tensorflow.cast(tensorflow.cast(a, kind(a) or a.dtype), a.dtype))
                  for a in arrays]
    floating = [i for i, a in enumerate(arrays) if a.dtype == np.float32]
    with tensorflow.GradientTape() as tape:
        xs = [tensorflow.constant(a) for a in arrays]
        tape.watch([xs[i] for i in floating])
        ys = reference(*xs)
        used = list(range(len(ys))) if used is None else used
        weights = [np.asarray(np.random.RandomState(i).randn(*ys[i].shape), np.float32)
                   for i in used]
        total = tensorflow.add_n([tensorflow.reduce_sum(ys[i] * w)
                                  for i, w in zip(used, weights, strict=True)])
    expected = {f"y{i}": y for i, y in enumerate(ys)}
    expected.update({f"d_x{i}": tensorflow.convert_to_tensor(g) for i, g in zip(
        floating, tape.gradient(total, [xs[i] for i in floating]), strict=True)})
    shapes = {}

    def graph(mesh):
        tensors = [graphs.give(mesh, a, *dims, dtype=kind(a))
                   for a, (_, dims) in zip(arrays, inputs, strict=True)]
        outputs = {f"y{i}": y for i, y in enumerate(build(*tensors))}
        cotangents = {f"y{i}": graphs.give(mesh, w, *outputs[f"y{i}"].shape.dims,
                                           dtype=outputs[f"y{i}"].dtype)
                      for i, w in zip(used, weights, strict=True)}
        result = graphs.with_gradients(outputs, {f"x{i}": tensors[i] for i in floating}, cotangents)
        shapes.update({name: x.shape.dims for name, x in result.items()})
        return result

    result = graphs.run(graph, mesh_shape, layout)
    most = max(np.size(array) for array in arrays)
    for name, value in expected.items():
        value = np.asarray(value)
        # A gradient of one number is a sum of many, which may cancel: its error goes by theirs.
        size = max(1.0, abs(value).max(), most ** 0.5 * (value.ndim == 0))
        np.testing.assert_allclose(result[name].astype(np.float32), value, atol=tolerance * size,
                                   err_msg=name)
        assert result.slice_shapes[name] == graphs.slice_shape(
            shapes[name], mesh_shape, layout), name
    return result


GATHER_MESHES = [("", ""), ("x:2", "batch:x"), ("x:2", "vocab:x"), ("x:2", "embd:x"),
                 ("x:2,y:2", "batch:x,vocab:y"), ("x:2,y:2", "batch:x,embd:y"),
                 ("x:2,y:2", "vocab:x,embd:y"), ("x:4", "vocab:x")]


@pytest.mark.parametrize(("mesh_shape", "layout"), GATHER_MESHES)
@pytest.mark.parametrize("dtype", [None, tf.bfloat16])
def test_gather(mesh_shape, layout, dtype):
    ids = np.array([[0, 15, 3], [3, 3, 1], [6, 5, 0], [12, 9, 15]], np.int32)
    result = check(lambda table, i: [ops.gather(table, i, VOCAB)],
                   lambda table, i: [tensorflow.gather(table, i)],
                   [(normal(VOCAB, EMBD), [VOCAB, EMBD]), (ids, [BATCH, SEQUENCE])],
                   mesh_shape, layout, dtype, tolerance=1e-6 if dtype is None else 1e-2)
    if dtype is None:
        assert not [op for op in result.operations if op.type in ("OneHot", "MatMul", "Einsum")]


def test_gather_of_a_bfloat16_table_sums_gradients_in_float32():
    # 1,000 times 1 is beyond the 256 at which a bfloat16 sum of ones stops to grow.
    many = graphs.dim("batch", 1000)

    def build(mesh):
        table = graphs.give(mesh, np.ones([16, 6]), VOCAB, EMBD, dtype=tf.bfloat16)
        rows = ops.gather(table, graphs.give(mesh, np.full(1000, 5, np.int32), many), VOCAB)
        ones = graphs.give(mesh, np.ones([1000, 6]), many, EMBD, dtype=tf.bfloat16)
        return graphs.with_gradients({"y": rows}, {"table": table}, {"y": ones})

    gradient = graphs.run(build)["d_table"].astype(np.float32)
    np.testing.assert_array_equal(gradient[5], np.full(6, 1000.0))
    np.testing.assert_array_equal(np.delete(gradient, 5, 0), 0.0)


def test_gather_of_the_positions_of_a_sequence():
    check(lambda table, i: [ops.gather(table, i, VOCAB)], lambda t, i: [tensorflow.gather(t, i)],
          [(normal(VOCAB, EMBD), [VOCAB, EMBD]), (np.array([0, 1, 2], np.int32), [SEQUENCE])],
          "x:2,y:2", "batch:x,embd:y")


DENSE_MESHES = [("", ""), ("x:2", "batch:x"), ("x:2", "embd:x"), ("x:2", "heads:x"),
                ("x:2,y:2", "batch:x,heads:y"), ("x:2,y:2", "batch:x,embd:y"),
                ("x:2,y:2", "embd:x,heads:y")]


@pytest.mark.parametrize(("mesh_shape", "layout"), DENSE_MESHES)
@pytest.mark.parametrize("dtype", [None, tf.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("outwards", [True, False])
def test_dense(mesh_shape, layout, dtype, with_bias, outwards):
    many, one, letters = [HEADS, FEATURES], [EMBD], ("hd", "e")
    (ins, outs), (i, o) = ((one, many), letters[::-1]) if outwards else ((many, one), letters)
    inputs = [(normal(BATCH, SEQUENCE, *ins), [BATCH, SEQUENCE, *ins]),
              (normal(*ins, *outs), [*ins, *outs])]
    if with_bias:
        inputs.append((normal(*outs), outs))
    check(lambda x, w, b=None: [ops.dense(x, w, b, ins)],
          lambda x, w, b=0.0: [tensorflow.einsum(f"bs{i},{i}{o}->bs{o}", x, w) + b],
          inputs, mesh_shape, layout, dtype, tolerance=1e-5 if dtype is None else 2e-2)


def test_dense_sums_a_bfloat16_biass_gradient_in_float32():
    many = graphs.dim("batch", 3000)

    def build(mesh):
        x, w, b, dy = (graphs.give(mesh, np.ones([d.size for d in dims]), *dims, dtype=tf.bfloat16)
                       for dims in ([many, EMBD], [EMBD, VOCAB], [VOCAB], [many, VOCAB]))
        y = ops.dense(x, w, b, [EMBD])
        return graphs.with_gradients({"y": y}, {"b": b}, {"y": dy})

    # Bfloat16's spacing is 16 there.
    np.testing.assert_allclose(graphs.run(build)["d_b"].astype(np.float32), 3000.0, atol=8.0)


CE_MESHES = [("", ""), ("x:2", "batch:x"), ("x:2", "vocab:x"), ("x:2,y:2", "batch:x,vocab:y"),
             ("x:4", "vocab:x")]


def cross_entropy(n_valid):
    def reference(logits, targets):
        valid = logits[..., :n_valid]
        return [tensorflow.nn.sparse_softmax_cross_entropy_with_logits(targets, valid),
                tensorflow.reduce_logsumexp(valid, -1)]
    return reference


@pytest.mark.parametrize(("mesh_shape", "layout"), CE_MESHES)
@pytest.mark.parametrize("dtype", [None, tf.bfloat16])
@pytest.mark.parametrize(("n_valid", "used"), [(16, [0]), (11, [0, 1]), (3, [0])])
def test_softmax_cross_entropy(mesh_shape, layout, dtype, n_valid, used):
    targets = np.random.RandomState(1).randint(0, n_valid, [4, 3]).astype(np.int32)
    result = check(
        lambda x, t: list(ops.softmax_cross_entropy(x, t, VOCAB, n_valid)), cross_entropy(n_valid),
        [(3 * normal(BATCH, SEQUENCE, VOCAB), [BATCH, SEQUENCE, VOCAB]),
         (targets, [BATCH, SEQUENCE])], mesh_shape, layout, dtype, used,
        tolerance=1e-5 if dtype is None else 1e-2)
    assert result["y0"].dtype == result["y1"].dtype == np.float32
    np.testing.assert_array_equal(result["d_x0"][..., n_valid:].astype(np.float32), 0.0)
    width = graphs.slice_shape([VOCAB], mesh_shape, layout)[0]
    for op in result.operations:
        assert op.type != "OneHot"
        for y in op.outputs:
            whole = y.shape.rank is not None and y.shape.rank >= 2 and y.shape[-1] == width
            assert not (whole and (y.dtype.is_integer or y.dtype.is_bool)), y


@pytest.mark.parametrize(("mesh_shape", "layout"), [
    ("", ""), ("x:2", "vocab:x"), ("x:4", "vocab:x"), ("x:2,y:2", "batch:x,vocab:y")])
@pytest.mark.parametrize("n_valid", [16, 11, 3])
@pytest.mark.parametrize("dtype", [None, tf.bfloat16])
def test_argmax(mesh_shape, layout, n_valid, dtype):
    # Small whole numbers, so that there are ties, also between slices.
    x = np.random.RandomState(3).randint(-3, 3, [4, 3, 16]).astype(np.float32)
    result = graphs.run(lambda mesh: {"y": ops.argmax(
        graphs.give(mesh, x, BATCH, SEQUENCE, VOCAB, dtype=dtype), VOCAB, n_valid)},
        mesh_shape, layout)
    expected = x[..., :n_valid].argmax(-1)  # the first of several
    np.testing.assert_array_equal(result["y"], expected)
    assert result["y"].dtype == np.int32
    assert (x == x[..., :n_valid].max(-1, keepdims=True)).sum() > 24, "there have to be ties"


def test_softmax_cross_entropy_of_large_logits_is_finite():
    logits = np.zeros([4, 3, 16], np.float32)
    logits[..., 0], logits[..., 1], logits[..., 15] = 1e4, -1e4, 1e6
    targets = np.tile(np.array([0, 1, 2], np.int32), [4, 1])
    result = check(lambda x, t: list(ops.softmax_cross_entropy(x, t, VOCAB, 5)), cross_entropy(5),
                   [(logits, [BATCH, SEQUENCE, VOCAB]), (targets, [BATCH, SEQUENCE])],
                   "x:2,y:2", "batch:x,vocab:y", used=[0])
    np.testing.assert_allclose(result["y0"][0], [0.0, 2e4, 1e4])


NORM_MESHES = [("", ""), ("x:2", "batch:x"), ("x:2", "embd:x"), ("x:2,y:2", "batch:x,embd:y")]


def layer_norm(x, gain, bias):
    mean, variance = tensorflow.nn.moments(x, -1, keepdims=True)
    return [(x - mean) / tensorflow.sqrt(variance + 1e-5) * gain + bias]


@pytest.mark.parametrize(("mesh_shape", "layout"), NORM_MESHES)
@pytest.mark.parametrize("dtype", [None, tf.bfloat16])
def test_layer_norm(mesh_shape, layout, dtype):
    # A large mean: statistics in bfloat16 or by E[x²] − E[x]² would be far off.
    x = normal(BATCH, SEQUENCE, EMBD) + (100.0 if dtype is None else 2.0)
    result = check(
        lambda x, g, b: [norms.layer_norm(x, g, b, EMBD, 1e-5)], layer_norm,
        [(x, [BATCH, SEQUENCE, EMBD]), (normal(EMBD), [EMBD]), (normal(EMBD), [EMBD])],
        mesh_shape, layout, dtype, tolerance=2e-4 if dtype is None else 2e-2)
    assert result["y0"].dtype == (np.float32 if dtype is None else tf.bfloat16.as_numpy_dtype)


@pytest.mark.parametrize(("mesh_shape", "layout", "compiled"), [
    ("", "", 2), ("x:2", "batch:x", 4), ("x:2", "embd:x", 0)])
def test_a_large_layer_norm_is_compiled_where_it_is_whole(mesh_shape, layout, compiled):
    dims = [graphs.dim("batch", 16), graphs.dim("sequence", 32), graphs.dim("embd", 96)]
    result = check(
        lambda x, g, b: [norms.layer_norm(x, g, b, dims[-1], 1e-5)], layer_norm,
        [(normal(*dims) + 10.0, dims), (normal(dims[-1]), dims[-1:]),
         (normal(dims[-1]), dims[-1:])], mesh_shape, layout, tolerance=2e-4)
    assert sum(op.type.endswith("PartitionedCall") for op in result.operations) == compiled


@pytest.mark.parametrize(("mesh_shape", "layout"), NORM_MESHES)
@pytest.mark.parametrize("dtype", [None, tf.bfloat16])
def test_rms_norm_and_norms_with_one_gain(mesh_shape, layout, dtype):
    def build(x, gains, gain):
        return [norms.rms_norm(x, gains, EMBD, 1e-5), norms.rms_norm(x, gain, EMBD, 1e-5),
                norms.layer_norm(x, gain, None, EMBD, 1e-5)]

    def reference(x, gains, gain):
        scaled = x / tensorflow.sqrt(tensorflow.reduce_mean(x ** 2, -1, keepdims=True) + 1e-5)
        return [scaled * gains, scaled * gain, *layer_norm(x, gain, 0.0)]

    check(build, reference, [(normal(BATCH, SEQUENCE, EMBD) + 2.0, [BATCH, SEQUENCE, EMBD]),
                             (normal(EMBD), [EMBD]), (np.float32(1.5), [])],
          mesh_shape, layout, dtype, tolerance=1e-4 if dtype is None else 2e-2)


def test_layer_norms_statistics_are_float32():
    # In bfloat16, 256 + {0, 1} is 256 and the variance would be 0.
    ones = np.ones(6, np.float32)
    x = 512.0 + 4.0 * np.arange(72).reshape(4, 3, 6) % 3
    check(lambda x, g, b: [norms.layer_norm(x, g, b, EMBD, 1e-5)], layer_norm,
          [(x.astype(np.float32), [BATCH, SEQUENCE, EMBD]), (ones, [EMBD]), (0 * ones, [EMBD])],
          "x:2", "embd:x", tf.bfloat16, tolerance=1e-2)


@pytest.mark.parametrize(("mesh_shape", "layout"), [("", ""), ("x:2,y:2", "batch:x,embd:y")])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_select(mesh_shape, layout, axis):
    dims = [BATCH, EMBD]
    dims.insert(axis, graphs.dim("microbatch", 3))
    check(lambda x, i: [ops.select(x, i, dims[axis])],
          lambda x, i: [tensorflow.gather(x, i, axis=axis)],
          [(normal(*dims), dims), (np.int32(2), [])], mesh_shape, layout)


def test_to_float32_sums_over_slices_in_float32():
    # 256 + 1 is 256 in bfloat16, so the sum over two slices has to be made after the cast.
    def build(mesh):
        table = graphs.give(mesh, np.ones([16, 6]), VOCAB, EMBD, dtype=tf.bfloat16)
        pair = graphs.dim("batch", 2)
        x = np.array([[256.0] * 16, [1.0] * 16])
        y = ops.dense(graphs.give(mesh, x, pair, VOCAB, dtype=tf.bfloat16), table, None, [VOCAB])
        ones = graphs.give(mesh, np.ones([2, 6]), pair, EMBD, dtype=tf.bfloat16)
        gradient = mtf.gradients([y], [table], grad_ys=[ones])[0]
        assert ops.to_float32(ops.to_float32(gradient)).dtype == tf.float32
        return {"gradient": ops.to_float32(gradient)}

    split = graphs.run(build, "x:2", "batch:x")["gradient"]
    assert split.dtype == np.float32
    np.testing.assert_array_equal(split, np.full([16, 6], 257.0))


@pytest.mark.parametrize("start", [None, 3])
def test_targets_are_found_alike_by_index_and_by_comparison(start):
    """`in_program` is what one program for all cores has: the same bits."""
    random = np.random.RandomState(0)
    x, value = random.randn(2, 5, 7).astype(np.float32), random.rand(2, 5).astype(np.float32)
    target = random.randint(0, 13 if start else 7, [2, 5]).astype(np.int32)
    expected, less = np.zeros_like(value), x.copy()
    for place in np.ndindex(2, 5):
        at = target[place] - (start or 0)
        if 0 <= at < 7:
            expected[place] = x[(*place, at)]
            less[(*place, at)] -= value[place]
    with tf.Graph().as_default(), tf.Session() as session:
        given = [tf.constant(v) for v in (x, target, value)]
        for in_program in (False, True):
            found, left = session.run([ops.at_target(*given[:2], start, in_program),
                                       ops.minus_at_target(*given, start, in_program)])
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(left, less)
