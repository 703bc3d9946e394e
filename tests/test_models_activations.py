"""models/activations.py against torch and the formulas of their sources."""

import typing

import graphs
import numpy as np
import pytest

from configs import keys
from configs.errors import UserError
from mesh.compat import mtf, tf
from models import activations

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
            y = activations.activation(x, name)
            outputs.update(graphs.with_gradients({name: y}, {name: x}, {
                name: graphs.give(mesh, WEIGHTS, BATCH, EMBD, dtype=dtype)}))
        return outputs

    return graphs.run(build, "x:2", layout)


def test_the_configs_and_the_models_know_the_same_activations():
    known = [*activations.ACTIVATIONS, *activations.OVER_FEATURES]
    assert set(known) == set(typing.get_args(keys.Activation)) == set(EXPECTED)
    # GPT-Neo's names, save for those with a random slope or with weights.
    neo = """gelu relu sigmoid tanh selu elu abs sin cos sign silu softplus lrelu001 lrelu020 id
        triangle_relax square_relax spike spike2 tanhshrink softsign softmax logsoftmax
        bipolarsigmoid elish arcsinh maxsig cosid minsin maxtanh mish tanhexp lisht seagull snake
        roottanh softplusmone"""
    assert set(neo.split()) <= set(known)


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
            activations.activation(graphs.give(mesh, VALUES, BATCH, EMBD), "gleu")


def test_gates_equal_torch():
    packed = np.random.RandomState(1).randn(4, 2, 8).astype(np.float32)

    def build(mesh):
        outputs = {}
        for name in ("gelu_exact", "silu", "relu", "sigmoid"):
            x = graphs.give(mesh, packed, BATCH, GLU, EMBD)
            y = activations.gated(x, GLU, name)
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
