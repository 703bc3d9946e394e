"""models/losses.py: numerators that add up, over valid positions alone."""

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
