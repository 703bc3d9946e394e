"""models/activations.py against torch and the formulas of their sources."""

import re
import typing

import graphs
import numpy as np
import pytest

from configs import keys
from configs.errors import UserError
from mesh.compat import mtf, tf
from models import activations, layers, trained_activations

torch = pytest.importorskip("torch", reason="compares with torch")
functional = torch.nn.functional

BATCH, EMBD = graphs.dim("batch", 4), graphs.dim("embd", 8)
GLU = graphs.dim("glu", 2)
EXPECTED = {
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
    # TensorFlow's, which is steeper than 1/6.
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "log_sigmoid": functional.logsigmoid,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "exponential": torch.exp,
    "linear": lambda x: x,
    # GPT-Neo's, in its words.
    "id": lambda x: x,
    "abs": torch.abs,
    "sign": torch.sign,
    "sin": torch.sin,
    "cos": torch.cos,
    "lrelu001": lambda x: functional.leaky_relu(x, 0.01),
    "lrelu020": lambda x: functional.leaky_relu(x, 0.20),
    "triangle_relax": lambda x: torch.sin(x) - torch.sin(3 * x) / 9 + torch.sin(5 * x) / 25
    - torch.sin(7 * x) / 49,
    "square_relax": lambda x: torch.cos(x) - torch.cos(3 * x) / 3 + torch.cos(5 * x) / 5
    - torch.cos(7 * x) / 7,
    "spike": lambda x: 1 / (1 + x ** 2),
    "spike2": lambda x: torch.exp(-x ** 2),
    "tanhshrink": functional.tanhshrink,
    "bipolarsigmoid": lambda x: torch.sigmoid(x) * 2 - 1,
    # Basirat & Roth 2018: x / (1 + e⁻ˣ), and below 0 (eˣ − 1) / (1 + e⁻ˣ).
    "elish": lambda x: torch.where(x > 0, x, torch.exp(x) - 1) / (1 + torch.exp(-x)),
    "arcsinh": torch.asinh,
    "maxsig": lambda x: torch.maximum(x, torch.sigmoid(x)),
    "maxtanh": lambda x: torch.maximum(x, torch.tanh(x)),
    "minsin": lambda x: torch.minimum(x, torch.sin(x)),
    "cosid": lambda x: torch.cos(x) - x,
    "tanhexp": lambda x: x * torch.tanh(torch.exp(x)),
    "lisht": lambda x: x * torch.tanh(x),
    "seagull": lambda x: torch.log(1 + x ** 2),
    "snake": lambda x: x + torch.sin(x) ** 2,
    "roottanh": lambda x: (x ** 2 + 1) ** (1 / 3) * torch.tanh(x),
    "softplusmone": lambda x: functional.softplus(x) - 1,
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "logsoftmax": lambda x: torch.log_softmax(x, -1),
}
VALUES = np.linspace(-8.0, 8.0, 32, dtype=np.float32).reshape(4, 8)
WEIGHTS = np.random.RandomState(0).randn(4, 8).astype(np.float32)


def run(dtype=None, layout="embd:x"):
    """{name: value} and {d_name: gradient of Σ value · WEIGHTS} of all activations."""
    def build(mesh):
        outputs = {}
        for name in EXPECTED:
            x = graphs.give(mesh, VALUES, BATCH, EMBD, dtype=dtype)
            y = activations.activation(None, x, name, "")
            outputs.update(graphs.with_gradients({name: y}, {name: x}, {
                name: graphs.give(mesh, WEIGHTS, BATCH, EMBD, dtype=dtype)}))
        return outputs

    return graphs.run(build, "x:2", layout)


def test_the_configs_and_the_models_know_the_same_activations():
    plain = {*activations.ACTIVATIONS, *activations.OVER_FEATURES}
    known = plain | {*trained_activations.NAMES, "crelu"}
    assert known == set(typing.get_args(keys.Activation)) and plain == set(EXPECTED)
    neo = """gelu relu sigmoid tanh selu elu abs sin cos sign silu softplus lrelu001 lrelu020 id
        triangle_relax square_relax spike spike2 tanhshrink softsign softmax logsoftmax
        bipolarsigmoid elish arcsinh maxsig cosid minsin maxtanh mish tanhexp lisht seagull snake
        roottanh softplusmone rrelu aria prelu parcsinh psoftplus proottanh"""
    assert set(neo.split()) <= known


def test_each_name_that_tensorflow_has_is_known():
    keras = {name for name in dir(tf.keras.activations)
             if not name.startswith("_")} - {"get", "serialize", "deserialize"}
    pattern = r".*elu6?|soft(plus|sign)|si(lu|gmoid)|swish|tanh|(log_)?softmax"
    plain = {name for name in dir(tf.nn) if re.fullmatch(pattern, name)}
    assert len(keras) > 12 and len(plain) > 12
    assert keras | plain <= set(typing.get_args(keys.Activation))


def test_activations_and_their_gradients_equal_torch():
    result = run()
    for name, function in EXPECTED.items():
        x = torch.tensor(VALUES, requires_grad=True)
        y = function(x)
        (y * torch.tensor(WEIGHTS)).sum().backward()
        np.testing.assert_allclose(result[name], y.detach(), rtol=2e-6, atol=5e-6, err_msg=name)
        np.testing.assert_allclose(result[f"d_{name}"], x.grad, rtol=2e-6, atol=1e-5, err_msg=name)
        assert result.slice_shapes[name] == [4, 4]


def test_activations_in_bfloat16_keep_their_type_and_are_near():
    result = run(tf.bfloat16)
    x = torch.tensor(VALUES).bfloat16().float()
    for name, function in EXPECTED.items():
        assert result[name].dtype == tf.bfloat16.as_numpy_dtype, name
        np.testing.assert_allclose(result[name].astype(np.float32), function(x), rtol=2e-2,
                                   atol=6e-2, err_msg=name)


def test_an_unknown_activation_is_the_users_mistake():
    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        with pytest.raises(UserError, match="activation_function: 'gleu'"):
            activations.activation(None, graphs.give(mesh, VALUES, BATCH, EMBD), "gleu", "")


def test_gates_equal_torch():
    packed = np.random.RandomState(1).randn(4, 2, 8).astype(np.float32)

    def build(mesh):
        outputs = {}
        for name in ("gelu_exact", "silu", "relu", "sigmoid"):
            x = graphs.give(mesh, packed, BATCH, GLU, EMBD)
            y = activations.gated(None, x, GLU, name, "")
            outputs.update(graphs.with_gradients(
                {name: y}, {name: x}, {name: graphs.give(mesh, WEIGHTS, BATCH, EMBD)}))
        return outputs

    result = graphs.run(build, "x:2,y:2", "batch:x,embd:y")
    for name in ("gelu_exact", "silu", "relu", "sigmoid"):
        x = torch.tensor(packed, requires_grad=True)
        y = x[:, 0] * EXPECTED[name](x[:, 1])
        (y * torch.tensor(WEIGHTS)).sum().backward()
        np.testing.assert_allclose(result[name], y.detach(), atol=2e-6, err_msg=name)
        np.testing.assert_allclose(result[f"d_{name}"], x.grad, atol=2e-6, err_msg=name)
        assert result.slice_shapes[name] == [2, 4]
    # torch's own gated linear unit has a sigmoid gate in the second half.
    halves = torch.tensor(packed).reshape(4, 16)
    np.testing.assert_allclose(result["sigmoid"], functional.glu(halves), atol=2e-6)


def softplus(weight, least):
    return functional.softplus(weight) + least


# GPT-Neo's, in its words, but for powers of what may be negative.
TRAINED = {
    "prelu": lambda x, a: functional.prelu(x, a.reshape(1)),
    "aria": lambda x, a, b, c, q, r, s: x * (a + b / (
        softplus(c, 0) + q * torch.exp(r * x) ** (1 / softplus(s, 1)))),
    "parcsinh": lambda x, a, b: a * torch.asinh(x * softplus(b, 1)),
    "psoftplus": lambda x, a, b, c: a * functional.softplus(x * b) + c,
    "proottanh": lambda x, a, b, c: (torch.abs(x) ** softplus(a, 2) + softplus(b, 1)) ** (
        1 / softplus(c, 3)) * torch.tanh(x),
}
INITIAL = {"prelu": [0.2], "aria": [0, 1, 0, 1, -1, 0], "parcsinh": [1, 0], "psoftplus": [1, 1, 0],
           "proottanh": [0, 0, 0]}


def test_activations_with_weights_equal_torch_and_so_do_the_weights_gradients():
    random = np.random.RandomState(2)
    weights = {name: np.float32(value) + 0.3 * random.randn(len(value)).astype(np.float32)
               for name, value in INITIAL.items()}
    packed = random.randn(4, 2, 8).astype(np.float32)

    def scalars(name):
        return [f"{name}/activation/{letter}" for letter in "abcdef"[:len(INITIAL[name])]]

    def build(mesh):
        ctx, outputs = layers.Context(mesh, graphs.config()), {}
        for name in TRAINED:
            x = graphs.give(mesh, VALUES, BATCH, EMBD)
            both = graphs.give(mesh, packed, BATCH, GLU, EMBD)
            with tf.variable_scope(name):
                y = activations.activation(ctx, x, name, "h0/mlp")
                gated = activations.gated(ctx, both, GLU, name, "h0/mlp")
            own = [v for v in mesh.graph.all_variables if v.name.startswith(f"{name}/")]
            assert [v.name for v in own] == scalars(name)
            outputs.update(graphs.with_gradients(
                {name: y}, {name: x, **{v.name: v.value for v in own}},
                {name: graphs.give(mesh, WEIGHTS, BATCH, EMBD)}))
            outputs[f"gated {name}"] = gated
        return outputs

    values = {full: value for name in TRAINED
              for full, value in zip(scalars(name), weights[name], strict=True)}
    result = graphs.run(build, "x:2,y:2", "batch:x,embd:y", values)
    for name, function in TRAINED.items():
        x = torch.tensor(VALUES, requires_grad=True)
        given = [torch.tensor(value, requires_grad=True) for value in weights[name]]
        y = function(x, *given)
        (y * torch.tensor(WEIGHTS)).sum().backward()
        np.testing.assert_allclose(result[name], y.detach(), rtol=2e-5, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(result[f"d_{name}"], x.grad, rtol=2e-5, atol=2e-5, err_msg=name)
        for full, weight in zip(scalars(name), given, strict=True):
            np.testing.assert_allclose(result[f"d_{full}"], weight.grad, rtol=1e-4, atol=1e-4,
                                       err_msg=full)
        halves = torch.tensor(packed)
        wanted = halves[:, 0] * function(halves[:, 1], *given).detach()
        np.testing.assert_allclose(result[f"gated {name}"], wanted, atol=1e-5, err_msg=name)


def test_initial_weights_of_activations_are_gpt_neos():
    def build(mesh):
        ctx = layers.Context(mesh, graphs.config())
        for name in INITIAL:
            with tf.variable_scope(name):
                activations.activation(ctx, graphs.give(mesh, VALUES, BATCH, EMBD), name, "h0/mlp")
        return {"nothing": graphs.give(mesh, VALUES, BATCH, EMBD)}

    found = graphs.run(build).weights
    for name, initial in INITIAL.items():
        ours = [found[f"{name}/activation/{letter}"] for letter in "abcdef"[:len(initial)]]
        np.testing.assert_allclose(ours, initial, rtol=1e-6)


def test_rrelu_draws_slopes_in_training_and_takes_their_mean_after():
    wide = np.full((4, 1000), -2.0, np.float32)

    def build(mesh, key=None):
        ctx = layers.Context(mesh, graphs.config(), key and graphs.give(mesh, np.int32(key)))
        x = graphs.give(mesh, wide, BATCH, graphs.dim("embd", 1000))
        y = {"x": activations.activation(ctx, x, "rrelu", "h0/mlp"),
             "above": activations.activation(ctx, -x, "rrelu", "h0/mlp"),
             "elsewhere": activations.activation(ctx, x, "rrelu", "h1/mlp")}
        return graphs.with_gradients(y, {"x": x}, {"x": mtf.ones(mesh, x.shape)})

    calm = graphs.run(build)
    drawn = np.linspace(0.0, 1.0, 100001)
    np.testing.assert_allclose(calm["x"], -2.0 * ((1 - drawn) / (1 + drawn)).mean(), atol=1e-4)
    noisy = graphs.run(lambda mesh: build(mesh, 7), "x:2,y:2", "batch:x,embd:y")
    np.testing.assert_array_equal(noisy["x"], graphs.run(lambda mesh: build(mesh, 7))["x"])
    slopes = noisy["x"] / -2.0
    chance = (1 - slopes) / (1 + slopes)  # the inverse of the same function
    assert chance.min() < 0.01 and chance.max() > 0.99 and abs(chance.mean() - 0.5) < 0.02
    np.testing.assert_allclose(noisy["d_x"], slopes, rtol=1e-6)
    np.testing.assert_array_equal(noisy["above"], -wide)
    assert (noisy["elsewhere"] != noisy["x"]).mean() > 0.99
    assert (graphs.run(lambda mesh: build(mesh, 8))["x"] != noisy["x"]).mean() > 0.99


def test_crelu_has_both_signs():
    def build(mesh):
        x = graphs.give(mesh, VALUES, BATCH, EMBD)
        return graphs.with_gradients({"y": activations.crelu(x, GLU)}, {"x": x}, {
            "y": graphs.give(mesh, np.stack([WEIGHTS, 2 * WEIGHTS], 1), BATCH, GLU, EMBD)})

    result = graphs.run(build, "x:2,y:2", "batch:x,embd:y")
    with tf.Graph().as_default(), tf.Session() as session:
        wanted = session.run(tf.nn.crelu(VALUES))
    np.testing.assert_array_equal(result["y"].reshape(4, 16), wanted)
    np.testing.assert_allclose(result["d_x"], np.where(VALUES > 0, WEIGHTS, -2 * WEIGHTS))
