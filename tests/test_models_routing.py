"""models/routing.py against loops over tokens in numpy, with capacities that bind."""

import numpy as np
import pytest
import tensorflow

from models import routing

RANDOM = np.random.RandomState(0)
GROUPS, TOKENS, EXPERTS = 3, 10, 4
# The first expert is loved by most: capacities bind.
LOGITS = (RANDOM.randn(2, GROUPS, TOKENS, EXPERTS) * 1.5 + [1.0, 0, 0, -1]).astype(np.float32)
NOISE = RANDOM.rand(2, GROUPS, TOKENS).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def looped(logits, capacity, top, asked):
    """GShard's algorithm 1 for one group, [tokens, experts] -> [tokens, experts, capacity].

    Args:
      asked: from (token, weight of its second choice) to whether the second expert is asked.
    """
    combine = np.zeros([*logits.shape, capacity])
    taken = np.zeros(logits.shape[1], int)
    seconds = []
    for token, row in enumerate(logits.astype(np.float64)):
        p = softmax(row)
        order = np.argsort(-p)
        weight = p[order[0]] if top == 1 else p[order[0]] / (p[order[0]] + p[order[1]])
        if taken[order[0]] < capacity:
            combine[token, order[0], taken[order[0]]] = weight
        taken[order[0]] += 1
        seconds.append((token, order[1], 1 - weight))
    for token, expert, weight in seconds if top == 2 else []:
        if asked(token, weight):
            if taken[expert] < capacity:
                combine[token, expert, taken[expert]] = weight
            taken[expert] += 1
    return combine


POLICIES = {"all": lambda token, weight, noise: True, "none": lambda token, weight, noise: False,
            "threshold": lambda token, weight, noise: weight > 0.2,
            "random": lambda token, weight, noise: noise[token] < weight / 0.2}


# 2 and 4 experts leave room for 8 of 10 tokens.
@pytest.mark.parametrize("capacity", [2, 4, 10])
@pytest.mark.parametrize(("gating", "policy"), [("top_1", "all")] + [
    ("top_2", policy) for policy in POLICIES])
def test_routes_are_those_of_a_loop(gating, policy, capacity):
    combine, _, _ = routing.route(LOGITS, capacity, gating, policy, 0.2, NOISE)
    expected = np.stack([[looped(group, capacity, int(gating[-1]),
                                 lambda t, w, n=noise: POLICIES[policy](t, w, n))
                          for group, noise in zip(*pair, strict=True)]
                         for pair in zip(LOGITS, NOISE, strict=True)])
    np.testing.assert_allclose(combine, expected, atol=1e-6)
    places = (expected > 0).sum(2)
    assert places.max() == 1, "no two tokens at one place"


@pytest.mark.parametrize("gating", ["top_1", "top_2"])
@pytest.mark.parametrize("second", [False, True])
def test_losses_are_those_of_the_papers(gating, second):
    _, balance, z = routing.route(LOGITS, 4, gating, "all", 0.2, second_place_loss=second)
    p = np.apply_along_axis(softmax, -1, LOGITS.astype(np.float64))
    expected = np.zeros([2, GROUPS])
    for b in range(2):
        for g in range(GROUPS):
            ranks = np.argsort(-p[b, g], -1)
            share = np.bincount(ranks[:, 0], minlength=EXPERTS) / TOKENS
            expected[b, g] = EXPERTS * (share * p[b, g].mean(0)).sum()
            if second and gating == "top_2":
                rest = p[b, g].copy()
                rest[np.arange(TOKENS), ranks[:, 0]] = 0
                rest /= rest.sum(-1, keepdims=True)
                share = np.bincount(ranks[:, 1], minlength=EXPERTS) / TOKENS
                expected[b, g] += 0.5 * EXPERTS * (share * rest.mean(0)).sum()
    np.testing.assert_allclose(balance, expected.sum(1) * TOKENS, rtol=1e-5)
    log_z = np.log(np.exp(LOGITS.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(z, (log_z ** 2).sum((1, 2)), rtol=1e-5)


def test_balance_is_one_where_all_experts_are_used_alike():
    logits = 1e-3 * np.eye(EXPERTS, dtype=np.float32)[np.arange(8) % EXPERTS][None, None]
    _, balance, _ = routing.route(logits, 2, "top_1", "all", 0.2)
    np.testing.assert_allclose(balance, [8.0], rtol=1e-5)


def test_weights_have_the_gradient_of_the_chosen_probability():
    with tensorflow.GradientTape() as tape:
        logits = tensorflow.constant(LOGITS[:1, :1, :1])
        tape.watch(logits)
        combine, _, _ = routing.route(logits, 1, "top_1", "all", 0.2)
        total = tensorflow.reduce_sum(combine)
    p = softmax(LOGITS[0, 0, 0])
    top = p.argmax()
    np.testing.assert_allclose(tape.gradient(total, logits)[0, 0, 0],
                               p[top] * (np.eye(EXPERTS)[top] - p), atol=1e-6)
