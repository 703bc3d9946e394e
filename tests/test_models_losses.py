"""models/losses.py: numerators that add up, over valid positions alone."""

import functools

import graphs
import numpy as np
import pytest
import tensorflow

from mesh.compat import tf
from models import gpt, layers, losses

CONFIG = graphs.config(n_layer=1)
TOKENS = np.random.RandomState(0).randint(0, 61, [8, 17]).astype(np.int32)
MASK = (np.arange(16) < np.array([16, 9, 1, 0, 16, 12, 3, 7])[:, None]).astype(np.float32)


def loss(tokens=TOKENS, mask=MASK, config=CONFIG, n_valid=61):
    """The numerator and the logits."""
    batch, sequence = graphs.dim("batch", len(tokens)), graphs.dim("sequence", 16)

    def build(mesh):
        model, ctx = gpt.GPT(config, n_valid), layers.Context(mesh, config)
        given = [graphs.give(mesh, x, batch, sequence)
                 for x in (tokens[:, :-1], tokens[:, 1:], mask)]
        value = losses.language_model(model, ctx, model.hidden(ctx, given[0]), *given[1:])
        assert value.dtype == tf.float32 and value.shape.dims == []
        return {"loss": value, "logits": model.logits(ctx, model.hidden(ctx, given[0]))}

    weights = {"gpt/wte": np.random.RandomState(1).randn(64, 32).astype(np.float32)}
    return graphs.run(build, config.mesh_shape, config.layout, weights)


@pytest.mark.parametrize("n_valid", [61, 64])
def test_it_is_the_sum_over_valid_positions(n_valid):
    result = loss(n_valid=n_valid)
    logits = result["logits"][..., :n_valid].astype(np.float64)
    each = tensorflow.nn.sparse_softmax_cross_entropy_with_logits(TOKENS[:, 1:], logits)
    np.testing.assert_allclose(result["loss"], (each * MASK).numpy().sum(), rtol=1e-5)


def test_padded_ids_count_where_they_are_not_masked():
    config = CONFIG.replace(pad_masked=False)
    result = loss(config=config)
    logits = result["logits"].astype(np.float64)
    each = tensorflow.nn.sparse_softmax_cross_entropy_with_logits(TOKENS[:, 1:], logits)
    np.testing.assert_allclose(result["loss"], (each * MASK).numpy().sum(), rtol=1e-5)


def test_parts_of_a_batch_add_up():
    parts = sum(loss(TOKENS[i:i + 4], MASK[i:i + 4])["loss"] for i in (0, 4))
    np.testing.assert_allclose(parts, loss()["loss"], rtol=1e-5)


def test_invalid_positions_do_not_matter():
    tokens = TOKENS.copy()
    tokens[3] = 5  # its mask is 0 throughout
    np.testing.assert_allclose(loss(tokens)["loss"], loss()["loss"], rtol=1e-6)


def test_it_is_float32_in_bfloat16_models():
    exact, rounded = loss()["loss"], loss(config=CONFIG.replace(precision="bfloat16"))["loss"]
    np.testing.assert_allclose(rounded, exact, rtol=2e-2)
    # A bfloat16 sum of some hundreds would be a multiple of 2.
    assert rounded.dtype == np.float32 and rounded != np.round(rounded)


@functools.cache
def trained(train=True, mesh_shape="", layout="", **changes):
    """The loss that is trained, its terms and the gradient by the logits, as a graphs.Result."""
    config = CONFIG.replace(mesh_shape=mesh_shape, layout=layout, **changes)
    batch, sequence = graphs.dim("batch", 8), graphs.dim("sequence", 16)

    def build(mesh):
        key = graphs.give(mesh, np.int32(1)) if train else None
        ctx, model = layers.Context(mesh, config, key), gpt.GPT(config, 61)
        hidden = graphs.give(mesh, HIDDEN, batch, sequence, model.embd)
        targets, mask = (graphs.give(mesh, x, batch, sequence) for x in (TOKENS[:, 1:], MASK))
        loss = losses.language_model(model, ctx, hidden, targets, mask)
        total = loss
        for term in ctx.terms.values():
            assert term.count == "lm"
            total += term.total * term.weight
        terms = {name: term.total for name, term in ctx.terms.items()}
        return {**terms, **graphs.with_gradients({"loss": loss, "total": total}, {"hidden": hidden},
                                                 {"total": graphs.give(mesh, np.float32(1))})}

    weights = {"gpt/wte": TABLE}
    return graphs.run(build, mesh_shape, layout, weights)


HIDDEN = np.random.RandomState(2).randn(8, 16, 32).astype(np.float32)
TABLE = np.random.RandomState(1).randn(64, 32).astype(np.float32) * 0.3


@pytest.mark.parametrize("mesh", [{}, {"mesh_shape": "x:2,y:2", "layout": "batch:x,vocab:y"}])
@pytest.mark.parametrize("changes", [{"label_smoothing": 0.2}, {"z_loss": 0.1},
                                     {"z_loss": 0.1, "label_smoothing": 0.3}])
def test_smoothing_and_z_loss_are_torchs(mesh, changes):
    torch = pytest.importorskip("torch", reason="the reference is its cross-entropy")
    hidden = torch.tensor(HIDDEN, requires_grad=True)
    logits = (hidden @ torch.tensor(TABLE).T)[..., :61].reshape(-1, 61)
    mask = torch.tensor(MASK.reshape(-1))
    loss = (mask * torch.nn.functional.cross_entropy(
        logits, torch.tensor(TOKENS[:, 1:].reshape(-1).astype(np.int64)), reduction="none",
        label_smoothing=changes.get("label_smoothing", 0.0))).sum()
    z = (mask * torch.logsumexp(logits, -1) ** 2).sum()
    (loss + changes.get("z_loss", 0.0) * z).backward()
    ours = trained(**mesh, **changes)
    np.testing.assert_allclose(ours["loss"], loss.item(), rtol=1e-5)
    assert ("z" in ours.values) == ("z_loss" in changes)
    np.testing.assert_allclose(ours.values.get("z", z.item()), z.item(), rtol=1e-5)
    np.testing.assert_allclose(ours["d_hidden"], hidden.grad.numpy(), atol=2e-5)


def test_entmax_takes_the_softmaxs_place_and_leaves_the_z_loss():
    plain, both = trained(z_loss=0.1), trained(z_loss=0.1, entmax_alpha=1.5)
    assert both["z"] == plain["z"]
    assert both["loss"] < 0.9 * plain["loss"]
    np.testing.assert_allclose(both["total"], both["loss"] + 0.1 * both["z"], rtol=1e-6)


def test_evaluation_is_the_plain_cross_entropy():
    changes = {"z_loss": 0.1, "label_smoothing": 0.2}
    evaluated, entmax = trained(False, **changes), trained(False, entmax_alpha=1.3)
    assert evaluated["loss"] == entmax["loss"] == trained()["loss"] == trained()["total"]
    assert evaluated["total"] == evaluated["loss"]
