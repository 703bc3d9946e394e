"""sample_token against probabilities computed by NumPy, and its independence of batch and mesh."""

import types

import numpy as np
import pytest

from mesh import devices
from mesh.compat import mtf, tf
from models import sampling

N_VALID = 11
LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -1.0, 0.5, 2.5, -4.0, 0.0, 1.5, 2.0, 90.0], np.float32)
DRAWS = 20000


def sampler(rows, vocab=12, n_valid=N_VALID, mesh_shape=(), layout=(), alpha=None):
    """A function (logits [rows, vocab], numbers [rows], settings…) → token ids [rows].

    With `alpha` it draws from the entmax of the logits.
    """
    size = int(np.prod([n for _, n in mesh_shape]))
    config = types.SimpleNamespace(mesh=list(mesh_shape), layout_rules=list(layout), gpu_ids=[],
                                   mesh_size=size)
    graph = tf.Graph()
    with graph.as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        batch = mtf.Dimension("batch", rows)
        feeds = {"logits": tf.placeholder(tf.float32, [rows, vocab]),
                 "number": tf.placeholder(tf.int32, [rows])}
        for name, dtype in [("count", tf.int32), ("temperature", tf.float32), ("top_k", tf.int32),
                            ("top_p", tf.float32), ("seed", tf.int32)]:
            feeds[name] = tf.placeholder(dtype, [])
        shapes = {"logits": [batch, mtf.Dimension("vocab", vocab)], "number": [batch]}
        on_mesh = {name: mtf.import_tf_tensor(mesh, feed, mtf.Shape(shapes.get(name, [])))
                   for name, feed in feeds.items()}
        settings = sampling.Settings(*(on_mesh[name] for name in
                                       ("temperature", "top_k", "top_p", "seed")))
        logits = on_mesh["logits"]
        if alpha:
            logits = sampling.entmax_logits(logits, n_valid, alpha)
        chosen = sampling.sample_token(logits, n_valid, settings, on_mesh["number"],
                                       on_mesh["count"])
        out = mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(config)},
                           autostack=False).export_to_tf_tensor(chosen)
        session = tf.Session(config=devices.session_config(config))

    def run(logits, numbers, temperature=1.0, top_k=0, top_p=1.0, seed=1, count=0):
        values = dict(logits=logits, number=numbers, temperature=temperature, top_k=top_k,
                      top_p=top_p, seed=seed, count=count)
        return session.run(out, {feeds[name]: value for name, value in values.items()})

    return run


def probabilities(logits, temperature=1.0, top_k=0, top_p=1.0):
    """What sampling should draw from, token by token in float64."""
    logits = np.asarray(logits[:N_VALID], np.float64) / temperature
    weights = np.exp(logits - logits.max())
    order = sorted(range(N_VALID), key=lambda i: (-weights[i], i))
    if top_k:
        order = order[:top_k]
    total = sum(weights[i] for i in order)
    nucleus, held = [], 0.0
    for i in order:
        nucleus.append(i)
        held += weights[i] / total
        if held >= top_p:
            break
    result = np.zeros(len(logits))
    result[nucleus] = weights[nucleus]
    return result / result.sum()


@pytest.mark.parametrize("settings", [
    {"temperature": 0.7}, {"top_k": 4}, {"top_p": 0.6}, {"top_p": 0.95, "temperature": 2.0},
    {"top_k": 6, "top_p": 0.8, "temperature": 1.4}], ids=str)
def test_the_probabilities_are_those_of_transformers_warpers(settings):
    torch = pytest.importorskip("torch", reason="the reference is transformers'")
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = np.random.RandomState(3).normal(size=12).astype(np.float32) * 2
    warped = torch.tensor(logits[None, :N_VALID])
    for name, warper in [("temperature", process.TemperatureLogitsWarper),
                         ("top_k", process.TopKLogitsWarper), ("top_p", process.TopPLogitsWarper)]:
        if name in settings:
            warped = warper(settings[name])(None, warped)
    np.testing.assert_allclose(probabilities(logits, **settings)[:N_VALID],
                               torch.softmax(warped, -1)[0].numpy(), atol=1e-6)


@pytest.fixture(scope="module")
def draw():
    run = sampler(DRAWS)
    logits = np.tile(LOGITS, (DRAWS, 1))
    return lambda **settings: run(logits, np.arange(DRAWS), **settings)


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 2}, {"top_k": 5},
    {"top_k": 100}, {"top_p": 0.3}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 1e-6},
    {"top_k": 4, "top_p": 0.7, "temperature": 1.7}, {"seed": 7, "count": 3}], ids=str)
def test_distribution(draw, settings):
    expected = probabilities(LOGITS, **{k: v for k, v in settings.items()
                                        if k not in ("seed", "count")})
    seen = np.bincount(draw(**settings), minlength=len(LOGITS))
    assert seen[N_VALID:].sum() == 0
    seen = seen[:N_VALID]
    assert set(np.flatnonzero(seen)) <= set(np.flatnonzero(expected))
    likely = expected * DRAWS > 1
    chi2 = np.sum((seen - expected * DRAWS)[likely] ** 2 / (expected * DRAWS)[likely])
    # 99.99 % quantile of chi-square with 10 degrees of freedom.
    assert chi2 < 35.6, (seen, expected * DRAWS)


def test_exactly_k_among_equals():
    """Of five equal logits, top_k 3 keeps the three lowest ids, id 0 among them."""
    rows = 2000
    logits = np.full((rows, 12), -5.0, np.float32)
    logits[:, [0, 2, 5, 7, 9]] = 1.0
    run = sampler(rows)
    assert set(run(logits, np.arange(rows), top_k=3)) == {0, 2, 5}
    # Each holds a fifth of nearly everything: 0.59 is reached by three.
    assert set(run(logits, np.arange(rows), top_p=0.59)) == {0, 2, 5}


def test_greedy_takes_the_largest_and_ignores_the_seed():
    rows = 64
    logits = np.random.RandomState(0).normal(size=(rows, 12)).astype(np.float32)
    run = sampler(rows)
    best = np.argmax(logits[:, :N_VALID], -1)
    for seed in (1, 2):
        assert np.array_equal(run(logits, np.arange(rows), temperature=0.0, seed=seed), best)
    assert np.array_equal(run(logits, np.arange(rows), top_k=1), best)
    # Greedy decoding is greedy whatever else is set.
    assert np.array_equal(run(logits, np.arange(rows), temperature=0.0, top_p=0.2, top_k=3), best)


def test_huge_logits_and_tiny_temperatures_stay_finite():
    logits = np.array([[3e4, -3e4] + [0.0] * 10], np.float32)
    assert sampler(1)(logits, [0], temperature=1e-30, top_p=0.5)[0] == 0


def test_draws_of_counts_and_seeds_are_independent(draw):
    """Equal tokens of two series are as frequent as chance has it."""
    chance = np.sum(probabilities(LOGITS) ** 2)
    tolerance = 4 * np.sqrt(chance * (1 - chance) / DRAWS)
    first = draw()
    assert np.array_equal(first, draw())
    for other in (draw(count=1), draw(seed=2), np.roll(first, 1)):
        assert abs(np.mean(first == other) - chance) < tolerance


def test_a_row_does_not_depend_on_its_batch():
    rows = 8
    logits = np.random.RandomState(1).normal(size=(rows, 12)).astype(np.float32)
    numbers = np.arange(rows) + 5
    together = sampler(rows)(logits, numbers)
    alone = sampler(1)
    assert [alone(logits[i:i + 1], numbers[i:i + 1])[0] for i in range(rows)] == list(together)


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"temperature": 0.0}], ids=str)
def test_mesh_samples_the_same(settings):
    rows = 32
    logits = np.random.RandomState(2).normal(size=(rows, 12)).astype(np.float32)
    one = sampler(rows)(logits, np.arange(rows), **settings)
    many = sampler(rows, mesh_shape=[("x", 2), ("y", 2)], layout=[("batch", "x"), ("vocab", "y")])
    assert np.array_equal(many(logits, np.arange(rows), **settings), one)


@pytest.mark.parametrize(("alpha", "power"), [(1.5, 2.0), (1.0, 1 / 0.3)])
def test_entmax_draws_from_its_few_tokens(alpha, power):
    """The probabilities are max(x - τ, 0)^power, x being the logits over the power."""
    x = LOGITS[:N_VALID].astype(np.float64) / power
    taus = np.linspace(x.max() - 1, x.max(), 200_001)
    sums = sum(np.maximum(v - taus, 0) ** power for v in x)
    p = np.maximum(x - taus[np.argmin(abs(sums - 1))], 0) ** power
    run = sampler(DRAWS, alpha=alpha, mesh_shape=[("x", 2)], layout=[("vocab", "x")])
    drawn = run(np.tile(LOGITS, (DRAWS, 1)), np.arange(DRAWS))
    frequencies = np.bincount(drawn, minlength=N_VALID) / DRAWS
    assert (p == 0).sum() >= 3 and frequencies[p == 0].sum() == 0
    np.testing.assert_allclose(frequencies, p, atol=4 * np.sqrt(0.25 / DRAWS))
    greedy = run(np.tile(LOGITS, (DRAWS, 1)), np.arange(DRAWS), temperature=0.0)
    assert set(greedy) == {1}
