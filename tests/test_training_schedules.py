"""Learning rates against transformers' schedules and plain arithmetic."""

import math
import types

import numpy as np
import pytest

from configs.errors import UserError
from mesh.compat import tf
from training import schedules

DECAYS = ["cosine", "linear", "constant", "inverse_sqrt"]


def config(**settings):
    """Schedule settings as a run config has them."""
    return types.SimpleNamespace(**{
        "lr": 1e-3, "lr_decay": "cosine", "lr_decay_end": None, "lr_min_ratio": 0.1,
        "warmup_steps": 10, "train_steps": 100, **settings})


def rates(steps, **settings):
    """The learning rate at each step, evaluated in a graph as in training."""
    with tf.Graph().as_default(), tf.Session() as session:
        step = tf.placeholder(tf.int64, [])
        rate = schedules.learning_rate(step, config(**settings))
        assert rate.dtype == tf.float32 and rate.shape == []
        return np.array([session.run(rate, {step: s}) for s in steps])


@pytest.mark.parametrize("decay", DECAYS)
def test_warmup_starts_above_zero_and_meets_the_decay(decay):
    ours = rates(range(13), lr_decay=decay)
    np.testing.assert_allclose(ours[:10], [1e-4 * (s + 1) for s in range(10)], rtol=1e-6)
    np.testing.assert_allclose(ours[10], 1e-3, rtol=1e-6)
    assert np.all(np.abs(np.diff(ours[9:])) < 6e-5)


@pytest.mark.parametrize("decay", DECAYS)
def test_without_warmup_the_first_step_has_the_full_rate(decay):
    np.testing.assert_allclose(rates([0], lr_decay=decay, warmup_steps=0), 1e-3, rtol=1e-6)


@pytest.mark.parametrize(("decay", "middle"), [
    ("cosine", 0.1 + 0.9 * 0.5), ("linear", 0.1 + 0.9 * 0.5), ("constant", 1.0),
    ("inverse_sqrt", math.sqrt(10 / 55))])
def test_the_middle_and_the_end(decay, middle):
    last = {"cosine": 0.1, "linear": 0.1, "constant": 1.0, "inverse_sqrt": math.sqrt(0.1)}[decay]
    ours = rates([55, 100, 101, 5000], lr_decay=decay)
    np.testing.assert_allclose(ours, [1e-3 * f for f in (middle, last, last, last)], rtol=1e-5)


def test_the_floor_holds_for_the_inverse_root():
    ours = rates([39, 41, 5000], lr_decay="inverse_sqrt", lr_min_ratio=0.5, train_steps=10_000)
    np.testing.assert_allclose(ours, [1e-3 * math.sqrt(10 / 39), 5e-4, 5e-4], rtol=1e-6)


def test_the_decay_ends_where_it_is_told():
    ours = rates([30, 50, 99], lr_decay="linear", lr_decay_end=50, lr_min_ratio=0.0)
    np.testing.assert_allclose(ours, [5e-4, 0.0, 0.0], atol=1e-9)


@pytest.mark.parametrize("decay", DECAYS)
def test_transformers_schedules_after_the_warmup(decay):
    optimization = pytest.importorskip(
        "transformers.optimization", reason="the reference schedules are transformers'")
    torch = pytest.importorskip("torch", reason="transformers' schedules drive torch optimizers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    make, more = {
        "cosine": (optimization.get_cosine_schedule_with_warmup, {"num_training_steps": 100}),
        "linear": (optimization.get_linear_schedule_with_warmup, {"num_training_steps": 100}),
        "constant": (optimization.get_constant_schedule_with_warmup, {}),
        "inverse_sqrt": (optimization.get_inverse_sqrt_schedule, {})}[decay]
    schedule = make(optimizer, num_warmup_steps=10, **more)
    theirs = []
    for _ in range(100):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = rates(range(10, 100), lr_decay=decay, lr_min_ratio=0.0)
    np.testing.assert_allclose(ours, theirs[10:], rtol=1e-5, atol=1e-10)


def test_a_million_steps_fall_without_a_jump():
    steps = np.array([0, 2999, 3000, 3001, 250_000, 999_998, 999_999, 1_000_000])
    ours = rates(steps, warmup_steps=3000, train_steps=1_000_000, lr_min_ratio=0.0)
    progress = (steps[2:] - 3000) / 997_000
    expected = 1e-3 * 0.5 * (1 + np.cos(np.pi * progress.astype(np.float64)))
    np.testing.assert_allclose(ours[2:], expected, rtol=1e-6, atol=1e-10)
    assert np.all(ours >= 0.0)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_warmup_that_outlasts_the_run_only_climbs(decay):
    ours = rates(range(50), lr_decay=decay, warmup_steps=200, train_steps=50)
    np.testing.assert_allclose(ours, [1e-3 * (s + 1) / 200 for s in range(50)], rtol=1e-6)


def test_an_unknown_decay_is_an_error():
    with pytest.raises(UserError, match="lr_decay: 'cosin' is not known; use one of cosine"):
        rates([0], lr_decay="cosin")
