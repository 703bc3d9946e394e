"""Attention with a window, learned memories, ALiBi and both ways, and linear attention.

Each is compared with its formula over all pairs of tokens, values and gradients, on meshes.
"""

import attention_formulas
import graphs
import numpy as np
import pytest
import tensorflow

from mesh.compat import tf
from models import attention, layers, linear, local, scores

HEADS, FEATURES, QKV = (graphs.dim(*d) for d in [
    ("heads", 4), ("features_per_head", 4), ("qkv", 3)])
MEMORIES = graphs.dim("mem_kv", 3)
SLOPES = scores.alibi_slopes(4)
RATE, KEY, SITE = 0.3, 42, "h0/attn/probabilities"

MESHES = [("", ""), ("x:2", "sequence:x"), ("x:2", "memory_length:x"),
          ("x:2", "features_per_head:x"), ("x:2,y:2", "batch:x,heads:y"),
          ("x:2,y:2", "sequence:x,memory_length:y"),
          ("x:2,y:2", "sequence:x,features_per_head:y")]

# name: (sequence, window, further settings; "memories" and "drops" stand for tensors)
SOFTMAX = {
    "both_ways": (12, None, dict(causal=False, rotary_dims=4)),
    "both_ways_with_all": (12, None, dict(causal=False, slopes=SLOPES, memories=True, drops=True)),
    "alibi": (12, None, dict(slopes=SLOPES)),
    "memories": (12, None, dict(memories=True, drops=True)),
    "memories_and_alibi": (12, None, dict(memories=True, slopes=SLOPES)),
    "window": (12, 4, dict(rotary_dims=2, drops=True)),
    "window_of_1": (12, 1, dict(memories=True)),
    "window_with_all": (12, 5, dict(memories=True, slopes=SLOPES, drops=True)),
    "window_both_ways": (12, 5, dict(causal=False, slopes=SLOPES)),
    "window_both_ways_with_memories": (12, 3, dict(causal=False, memories=True, drops=True)),
    "window_of_everything": (12, 12, dict(memories=True, drops=True)),
}


def given(sequence, seed):
    """Queries, keys and values, memories, and a gradient of the output, as numpy."""
    rng = np.random.RandomState(seed)
    shapes = [(4, sequence, 3, 4, 4), (3, 4, 4), (3, 4, 4), (4, sequence, 4, 4)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def add_softmax(mesh, name, seed):
    """Tensors of a case of SOFTMAX: (outputs, inputs, cotangents), as graphs.with_gradients."""
    sequence, window, settings = SOFTMAX[name]
    settings = dict(settings)
    x, *memories, dy = given(sequence, seed)
    dims = [graphs.dim("batch", 4), graphs.dim("sequence", sequence), QKV, HEADS, FEATURES]
    inputs = {f"{name}/x": graphs.give(mesh, x, *dims)}
    if settings.pop("memories", False):
        for kind, value in zip("kv", memories, strict=True):
            inputs[f"{name}/{kind}"] = graphs.give(mesh, value, MEMORIES, HEADS, FEATURES)
    drops = settings.pop("drops", False)
    ctx = layers.Context(mesh, graphs.config(), graphs.give(mesh, np.int32(KEY)) if drops else None)
    settings = {"rotary_dims": 0, **settings, "rate": RATE, "site": SITE,
                "learned": tuple(inputs.values())[1:]}
    if window is None:
        y = attention.full(ctx, inputs[f"{name}/x"], **settings)
    else:
        y = local.windowed(ctx, inputs[f"{name}/x"], window, **settings)
    return {name: y}, inputs, {name: graphs.give(mesh, dy, *y.shape.dims)}


def softmax_formula(name, seed):
    """{name of a value or gradient: numpy} of a case of SOFTMAX."""
    sequence, window, settings = SOFTMAX[name]
    settings = dict(settings)
    *sources, dy = map(tensorflow.constant, given(sequence, seed))
    sources = sources if settings.pop("memories", False) else sources[:1]
    if settings.pop("drops", False):
        shape = [4, 4, sequence, sequence + (3 if len(sources) > 1 else 0)]
        settings["keep"] = attention_formulas.keep_factors(shape, RATE, KEY, SITE)
    with tensorflow.GradientTape() as tape:
        tape.watch(sources)
        y = attention_formulas.softmax_attention(sources[0], sources[1:], window=window, **settings)
    grads = tape.gradient(y, sources, dy)
    return {name: y, **{f"d_{name}/{kind}": g for kind, g in zip("xkv", grads, strict=False)}}


@pytest.fixture(scope="module")
def formulas():
    return {k: np.asarray(v) for seed, name in enumerate(SOFTMAX)
            for k, v in softmax_formula(name, seed).items()}


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_softmax_attention_equals_the_formula(formulas, mesh_shape, layout):
    def build(mesh):
        result = {}
        for seed, name in enumerate(SOFTMAX):
            result |= graphs.with_gradients(*add_softmax(mesh, name, seed))
        return result

    result = graphs.run(build, mesh_shape, layout)
    assert set(result.values) == set(formulas)
    for name, expected in formulas.items():
        np.testing.assert_allclose(result[name], expected, atol=1e-5, err_msg=name)
        assert abs(expected).max() > 0.1, name
    shape = [graphs.dim("batch", 4), graphs.dim("sequence", 12), HEADS, FEATURES]
    for name in SOFTMAX:
        assert result.slice_shapes[name] == graphs.slice_shape(shape, mesh_shape, layout)


def test_the_cases_are_different(formulas):
    """A setting that did nothing would make no difference: each formula without one of them."""
    for name, (sequence, window, settings) in SOFTMAX.items():
        for absent in settings:
            fewer = {key: value for key, value in settings.items() if key != absent}
            SOFTMAX["fewer"] = (sequence, window, fewer)
            other = np.asarray(softmax_formula("fewer", list(SOFTMAX).index(name))["fewer"])
            del SOFTMAX["fewer"]
            assert np.abs(other - formulas[name]).max() > 1e-2, (name, absent)


def test_no_tensor_of_all_pairs_with_a_window():
    """48 tokens that see 4: nothing has 48 × 48 elements a head, or as many in other shapes."""
    x = np.zeros([1, 48, 3, 4, 4], np.float32)
    dims = [graphs.dim("batch", 1), graphs.dim("sequence", 48), QKV, HEADS, FEATURES]

    def build(mesh):
        qkv = graphs.give(mesh, x, *dims)
        y = local.windowed(layers.Context(mesh, graphs.config(), graphs.give(mesh, np.int32(1))),
                           qkv, 4, 0, RATE, SITE, slopes=SLOPES)
        return graphs.with_gradients({"y": y}, {"x": qkv}, {"y": y})

    for op in graphs.run(build).operations:
        for y in op.outputs:
            assert y.shape.rank is None or y.shape.num_elements() < 4 * 48 * 48, y


def test_bfloat16_is_near():
    sources = given(12, 0)
    dims = [graphs.dim("batch", 4), graphs.dim("sequence", 12), QKV, HEADS, FEATURES]

    def build(mesh):
        ctx = layers.Context(mesh, graphs.config())
        qkv = graphs.give(mesh, sources[0], *dims, dtype=tf.bfloat16)
        learned = tuple(graphs.give(mesh, m, MEMORIES, HEADS, FEATURES, dtype=tf.bfloat16)
                        for m in sources[1:3])
        return {"local": local.windowed(ctx, qkv, 5, 4, 0.0, SITE, learned=learned),
                "full": attention.full(ctx, qkv, 4, 0.0, SITE, learned=learned),
                "linear": linear.full(qkv, 4)}

    result = graphs.run(build)
    for name, expected in [
            ("local", attention_formulas.softmax_attention(sources[0], sources[1:3], 4, window=5)),
            ("full", attention_formulas.softmax_attention(sources[0], sources[1:3], 4)),
            ("linear", attention_formulas.linear_attention(sources[0], 4))]:
        assert result[name].dtype == tf.bfloat16.as_numpy_dtype
        np.testing.assert_allclose(result[name].astype(np.float32), expected, atol=3e-2,
                                   err_msg=name)


# 300 tokens are three chunks, the last one not full.
@pytest.mark.parametrize(("mesh_shape", "layout", "length"), [
    *[(*mesh, 12) for mesh in MESHES], ("", "", 300), ("", "", 1)])
def test_linear_attention_equals_the_formula(mesh_shape, layout, length):
    x, _, _, dy = given(length, 3)
    dims = [graphs.dim("batch", 4), graphs.dim("sequence", length), QKV, HEADS, FEATURES]
    cases = {"causal": (0, True), "rotated": (4, True), "both_ways": (2, False)}

    def build(mesh):
        result = {}
        for name, settings in cases.items():
            qkv = graphs.give(mesh, x, *dims)
            y = linear.full(qkv, *settings)
            result |= graphs.with_gradients({name: y}, {name: qkv},
                                            {name: graphs.give(mesh, dy, *y.shape.dims)})
        return result

    result = graphs.run(build, mesh_shape, layout)
    for name, settings in cases.items():
        with tensorflow.GradientTape() as tape:
            source = tensorflow.constant(x)
            tape.watch(source)
            y = attention_formulas.linear_attention(source, *settings)
        np.testing.assert_allclose(result[name], y, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(result[f"d_{name}"], tape.gradient(y, source, dy), atol=1e-5,
                                   err_msg=name)
        assert result.slice_shapes[name] == graphs.slice_shape([*dims[:2], *dims[3:]], mesh_shape,
                                                               layout)


def test_linear_attention_of_large_keys_is_finite():
    x = 200 * given(12, 0)[0]
    dims = [graphs.dim("batch", 4), graphs.dim("sequence", 12), QKV, HEADS, FEATURES]

    def build(mesh):
        qkv = graphs.give(mesh, x, *dims)
        y = linear.full(qkv, 0)
        return graphs.with_gradients({"y": y}, {"x": qkv}, {"y": y})

    result = graphs.run(build)
    assert np.isfinite(result["y"]).all() and np.isfinite(result["d_x"]).all()
    assert np.abs(result["y"]).max() <= np.abs(x).max()


def test_alibis_slopes_are_those_of_transformers_bloom():
    """Its bias grows with the key's position: a softmax does not feel what is added to a row."""
    torch = pytest.importorskip("torch", reason="compares with transformers' BLOOM")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom",
                                reason="compares with its ALiBi")
    for heads in (1, 2, 3, 4, 6, 8, 12, 16, 20, 25, 40):
        bias = bloom.build_alibi_tensor(torch.ones([1, 5]), heads, torch.float32).numpy()
        falls = [slope * np.arange(5) for slope in scores.alibi_slopes(heads)]
        np.testing.assert_allclose(np.array(falls), bias[:, 0], rtol=1e-6, err_msg=str(heads))
