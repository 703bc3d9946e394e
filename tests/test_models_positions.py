"""models/positions.py: rotary embeddings against transformers' and against their definition."""

import numpy as np
import pytest
import tensorflow

from mesh.compat import tf
from models import positions


def rotated(x, position, rotary_dims):
    """rotate() of [..., s, d] at positions [s], as numpy."""
    cos, sin = positions.rotary_angles(tensorflow.constant(position), rotary_dims)
    return positions.rotate(tensorflow.constant(x), cos, sin, rotary_dims).numpy()


def test_2048_positions_are_distinct():
    # In bfloat16 only 641 are.
    cos, sin = positions.rotary_angles(tensorflow.range(2048), 64)
    assert cos.dtype == sin.dtype == tf.float32
    assert cos.shape == sin.shape == (2048, 32)
    # The fastest pair turns by one radian a position; the slowest has to tell all apart alone.
    for part in (slice(0, 1), slice(31, 32)):
        angles = np.concatenate([cos[:, part], sin[:, part]], 1)
        assert len(np.unique(angles, axis=0)) == 2048


def test_angles_equal_their_definition_in_float64():
    position = np.array([0, 1, 255, 256, 2047], np.int32)
    cos, sin = positions.rotary_angles(tensorflow.constant(position), 16)
    angles = position[:, None] * 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(cos, np.cos(angles), atol=3e-4)
    np.testing.assert_allclose(sin, np.sin(angles), atol=3e-4)


def test_any_shape_of_positions():
    position = np.array([[0, 5], [3, 9]], np.int32)
    cos, _ = positions.rotary_angles(tensorflow.constant(position), 8)
    flat, _ = positions.rotary_angles(tensorflow.constant(position.ravel()), 8)
    np.testing.assert_array_equal(cos, np.reshape(flat, [2, 2, 4]))


@pytest.mark.parametrize("rotary_dims", [16, 8, 4])
def test_rotation_equals_transformers_gpt_neox(rotary_dims):
    torch = pytest.importorskip("torch", reason="compares with transformers")
    neox = pytest.importorskip("transformers.models.gpt_neox.modeling_gpt_neox",
                               reason="compares with transformers")
    random = np.random.RandomState(0)
    q, k = random.randn(2, 2, 3, 300, 16).astype(np.float32)
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, rotary_dims, 2).float() / rotary_dims)
    angles = torch.arange(300).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)[None]
    expected = neox.apply_rotary_pos_emb(
        torch.tensor(q), torch.tensor(k), angles.cos(), angles.sin())
    for x, y in zip((q, k), expected, strict=True):
        np.testing.assert_allclose(rotated(x, np.arange(300), rotary_dims), y, atol=2e-5)


@pytest.mark.parametrize("rotary_dims", [16, 8])
def test_interleaved_rotation_equals_transformers_gptj(rotary_dims):
    torch = pytest.importorskip("torch", reason="compares with transformers")
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj",
                               reason="compares with transformers")
    x = np.random.RandomState(0).randn(2, 3, 300, 16).astype(np.float32)
    sin, cos = gptj.create_sinusoidal_positions(300, rotary_dims)[None].chunk(2, -1)
    # GPT-J's has heads after positions.
    head = torch.tensor(x[..., :rotary_dims]).transpose(1, 2)
    expected = gptj.apply_rotary_pos_emb(head, sin, cos).transpose(1, 2)
    y = rotated(x, np.arange(300), positions.Rotary(rotary_dims, style="interleaved"))
    np.testing.assert_allclose(y[..., :rotary_dims], expected, atol=2e-5)
    np.testing.assert_array_equal(y[..., rotary_dims:], x[..., rotary_dims:])


def test_the_base_sets_the_longest_wavelength():
    cos, _ = positions.rotary_angles(tensorflow.constant([7]), positions.Rotary(8, 500.0))
    np.testing.assert_allclose(cos[0], np.cos(7 * 500.0 ** -np.array([0, .25, .5, .75])), atol=1e-6)


def test_scores_depend_on_distance_alone():
    q, k = np.random.RandomState(1).randn(2, 1, 32).astype(np.float32)
    scores = [(rotated(q, [p + 7], 32) * rotated(k, [p], 32)).sum() for p in (0, 1, 100, 1000)]
    np.testing.assert_allclose(scores, scores[0], atol=1e-3)
    assert abs(scores[0] - (q * k).sum()) > 1e-2


def test_bfloat16_is_rotated_in_float32():
    x = tensorflow.cast(np.random.RandomState(2).randn(2048, 16), tf.bfloat16)
    cos, sin = positions.rotary_angles(tensorflow.range(2048), 16)
    y = positions.rotate(x, cos, sin, 16)
    assert y.dtype == tf.bfloat16
    exact = positions.rotate(tensorflow.cast(x, tf.float32), cos, sin, 16)
    np.testing.assert_array_equal(y, tensorflow.cast(exact, tf.bfloat16))
