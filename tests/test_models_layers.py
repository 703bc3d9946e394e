"""models/layers.py: variables, initialisers, layers and activations."""

import typing

import graphs
import numpy as np
import pytest
import tensorflow

from configs import keys
from configs.errors import UserError
from mesh.compat import mtf, tf
from models import layers

torch = pytest.importorskip("torch", reason="compares with torch")
functional = torch.nn.functional

BATCH, EMBD, VOCAB = graphs.dim("batch", 4), graphs.dim("embd", 8), graphs.dim("vocab", 6)
ACTIVATIONS = {
    "gelu": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_exact": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "relu6": functional.relu6,
    "squared_relu": lambda x: functional.relu(x) ** 2,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "elu": functional.elu,
    "selu": functional.selu,
    "silu": functional.silu,
    "swish": functional.silu,
    "mish": functional.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "linear": lambda x: x,
}


def test_the_configs_and_the_models_know_the_same_activations():
    assert set(layers.ACTIVATIONS) == set(typing.get_args(keys.Activation)) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activation_equals_torch(name):
    x = np.linspace(-8.0, 8.0, 32, dtype=np.float32).reshape(4, 8)

    def build(mesh):
        tensor = graphs.give(mesh, x, BATCH, EMBD)
        y = layers.activation(tensor, name)
        return graphs.with_gradients({"y": y}, {"x": tensor}, {"y": mtf.ones(mesh, y.shape)})

    result = graphs.run(build, "x:2", "embd:x")
    expected = torch.tensor(x, requires_grad=True)
    ACTIVATIONS[name](expected).sum().backward()
    np.testing.assert_allclose(result["y"], ACTIVATIONS[name](expected).detach(), atol=5e-6)
    np.testing.assert_allclose(result["d_x"], expected.grad, atol=5e-6)
    assert result.slice_shapes["y"] == [4, 4]


def test_an_unknown_activation_is_the_users_mistake():
    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        with pytest.raises(UserError, match="activation_function: 'gleu'"):
            layers.activation(graphs.give(mesh, np.ones([4, 8]), BATCH, EMBD), "gleu")


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


def test_activations_in_bfloat16_keep_their_type():
    x = tensorflow.cast(np.linspace(-4, 4, 16), tf.bfloat16)
    for name, function in layers.ACTIVATIONS.items():
        y = function(x)
        assert y.dtype == tf.bfloat16, name
        expected = ACTIVATIONS[name](torch.tensor(np.asarray(x, np.float32)))
        np.testing.assert_allclose(np.asarray(y, np.float32), expected, atol=6e-2, err_msg=name)
