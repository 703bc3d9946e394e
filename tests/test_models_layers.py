"""models/layers.py: variables, initialisers, layers and dropout."""

import graphs
import numpy as np
import pytest

from mesh.compat import tf
from models import layers

torch = pytest.importorskip("torch", reason="compares with torch")
functional = torch.nn.functional

BATCH, EMBD, VOCAB = graphs.dim("batch", 4), graphs.dim("embd", 8), graphs.dim("vocab", 6)


def normal_variable(name, seed=1, before=(), mesh_shape="", layout="", size=8):
    """The initial value of a variable, with others created before it."""
    def build(mesh):
        ctx = layers.Context(mesh, graphs.config(seed=seed))
        for other in before:
            ctx.variable(other, [VOCAB, EMBD], layers.normal(1.0))
        with tf.variable_scope("scope"):
            value = ctx.variable(name, [VOCAB, graphs.dim("embd", size)], layers.normal(0.02))
        return {"value": value}

    return graphs.run(build, mesh_shape, layout).weights[f"scope/{name}"]


def test_an_initial_value_is_a_function_of_seed_and_name():
    value = normal_variable("w")
    np.testing.assert_array_equal(value, normal_variable("w", before=["a", "b"]))
    np.testing.assert_array_equal(
        value, normal_variable("w", mesh_shape="x:2,y:2", layout="vocab:x,embd:y"))
    for other in (normal_variable("v"), normal_variable("w", seed=2)):
        assert abs(np.corrcoef(value.ravel(), other.ravel())[0, 1]) < 0.5


def test_initial_values_are_normal():
    value = normal_variable("w", size=10000)
    # 60,000 samples: the mean is known to 1/245 and the deviation to 1/346 of it.
    assert abs(value.mean()) < 5 * 0.02 / 245
    assert abs(value.std() / 0.02 - 1) < 5 / 346
    # A normal's kurtosis, which a truncated normal's tails lack.
    assert abs(((value / value.std()) ** 4).mean() - 3) < 5 * np.sqrt(24 / 60000)


def test_variables_are_float32_and_read_in_the_activations_type():
    def build(mesh):
        ctx = layers.Context(mesh, graphs.config(precision="bfloat16"))
        value = ctx.variable("w", [EMBD], layers.constant(0.1))
        assert ctx.dtype == value.dtype == tf.bfloat16
        return {"value": value}

    result = graphs.run(build)
    assert result.weights["w"].dtype == np.float32
    np.testing.assert_array_equal(result.weights["w"], np.full(8, 0.1, np.float32))
    assert result["value"].dtype == tf.bfloat16.as_numpy_dtype


def test_dense_and_layer_norm_equal_torch():
    random = np.random.RandomState(3)
    x, w = random.randn(4, 8), random.randn(8, 6)
    b, gain, bias = random.randn(6), random.randn(8), random.randn(8)

    def build(mesh):
        ctx = layers.Context(mesh, graphs.config(layer_norm_epsilon=1e-2))
        tensor = graphs.give(mesh, x, BATCH, EMBD)
        return {"dense": layers.dense(ctx, tensor, [EMBD], [VOCAB], "dense", 0.02),
                "norm": layers.layer_norm(ctx, tensor, EMBD, "norm")}

    weights = {"dense/kernel": w, "dense/bias": b, "norm/gain": gain, "norm/bias": bias}
    fresh = graphs.run(build).weights
    assert set(fresh) == set(weights)
    for name, value in [("dense/bias", 0), ("norm/gain", 1), ("norm/bias", 0)]:
        np.testing.assert_array_equal(fresh[name], np.full(weights[name].shape, value))
    result = graphs.run(build, "x:2,y:2", "batch:x,embd:y",
                        {n: v.astype(np.float32) for n, v in weights.items()})
    t = {name: torch.tensor(value) for name, value in weights.items()}
    expected = functional.linear(torch.tensor(x), t["dense/kernel"].T, t["dense/bias"])
    np.testing.assert_allclose(result["dense"], expected, atol=1e-5)
    expected = functional.layer_norm(torch.tensor(x), [8], t["norm/gain"], t["norm/bias"], 1e-2)
    np.testing.assert_allclose(result["norm"], expected, atol=1e-5)


def test_dropout_only_in_training_and_differs_by_site():
    def build(mesh):
        x = graphs.give(mesh, np.ones([4, 8]), BATCH, EMBD)
        key = graphs.give(mesh, np.int32(5))
        train = layers.Context(mesh, graphs.config(), key)
        test = layers.Context(mesh, graphs.config())
        assert train.train and not test.train
        assert layers.dropout(test, x, 0.5, "a") is x
        assert layers.dropout(train, x, 0.0, "a") is x
        return {site: layers.dropout(train, x, 0.5, site) for site in ("a", "b")}

    result = graphs.run(build)
    assert set(np.unique(result["a"])) == {0.0, 2.0}
    assert not np.array_equal(result["a"], result["b"])


def test_site_numbers_are_fixed_and_distinct():
    # CRC-32, as any run before this one had it: "h0/attn/residual" is 31 bits of zlib's.
    sites = [f"h{i}/{part}" for i in range(200)
             for part in ("attn/residual", "mlp/residual", "attn/probabilities")]
    numbers = {layers.site_number(site) for site in sites}
    assert len(numbers) == len(sites)
    assert all(0 <= number < 2**31 for number in numbers)
    assert layers.site_number("123456789") == 0xCBF43926 % 2**31


def test_the_kinds_of_norms_equal_torch_and_their_formulas():
    random = np.random.RandomState(4)
    x, gain, one = random.randn(4, 8) + 1, random.randn(8), np.float32(1.7)

    def build(mesh):
        ctx = layers.Context(mesh, graphs.config(layer_norm_epsilon=1e-2))
        tensor = graphs.give(mesh, x, BATCH, EMBD)
        return {kind: layers.norm(ctx, tensor, EMBD, kind, kind)
                for kind in ("rms", "scale", "centred_scale")}

    fresh = graphs.run(build).weights
    weights = {"rms/gain": gain.astype(np.float32), "scale/gain": one, "centred_scale/gain": one}
    assert set(fresh) == set(weights)
    for name, value in fresh.items():
        np.testing.assert_array_equal(value, np.ones(weights[name].shape))
    result = graphs.run(build, "x:2,y:2", "batch:x,embd:y", weights)
    expected = functional.rms_norm(torch.tensor(x), [8], torch.tensor(gain), 1e-2)
    np.testing.assert_allclose(result["rms"], expected, atol=1e-5)
    # Nguyen & Salazar: g · x / ‖x‖, where g is √8 times the gain.
    length = np.sqrt((x ** 2).sum(-1, keepdims=True) + 8 * 1e-2)
    np.testing.assert_allclose(result["scale"], 1.7 * np.sqrt(8) * x / length, atol=1e-5)
    expected = functional.layer_norm(torch.tensor(x), [8], eps=1e-2) * 1.7
    np.testing.assert_allclose(result["centred_scale"], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, tf.bfloat16])
def test_rezero_starts_at_0_and_sums_its_gradient_in_float32(dtype):
    many = graphs.dim("batch", 4096)

    def build(mesh):
        ctx = layers.Context(mesh, graphs.config(
            precision="bfloat16" if dtype else "float32"))
        x = graphs.give(mesh, np.full([4096, 8], 3.0), many, EMBD, dtype=dtype)
        y = layers.rezero(ctx, x)
        scale = mesh.graph.all_variables[0].value
        return graphs.with_gradients({"y": y}, {"x": x, "scale": scale}, {
            "y": graphs.give(mesh, np.ones([4096, 8]), many, EMBD, dtype=dtype)})

    fresh = graphs.run(build)
    assert fresh.weights == {"rezero": 0.0} and not fresh["y"].any() and not fresh["d_x"].any()
    result = graphs.run(build, "x:2,y:2", "batch:x,embd:y", {"rezero": np.float32(0.5)})
    np.testing.assert_array_equal(result["y"].astype(np.float32), np.full([4096, 8], 1.5))
    np.testing.assert_array_equal(result["d_x"].astype(np.float32), np.full([4096, 8], 0.5))
    # In bfloat16 a sum of 3s would stand still at 512 or so.
    assert result["d_scale"] == 3.0 * 4096 * 8 and result["d_scale"].dtype == np.float32
