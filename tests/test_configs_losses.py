"""Keys of the loss: what is refused, and GPT-Neo's names."""

import graphs
import pytest

from configs import legacy
from configs.errors import UserError


@pytest.mark.parametrize(("changes", "message"), [
    ({"entmax_alpha": 1.3, "label_smoothing": 0.1}, "label_smoothing: the loss of entmax_alpha"),
    ({"entmax_alpha": 1.001}, "entmax_alpha: 1.001 is too near to the softmax"),
    ({"model": "clip", "z_loss": 1e-4}, "z_loss: model clip is no language model")])
def test_contradictions(changes, message):
    with pytest.raises(UserError, match=message):
        graphs.config(**changes)


@pytest.mark.parametrize(("old", "new"), [
    ({"entmax_loss": True}, {"entmax_alpha": 1.3}), ({"entmax_loss": False}, {"entmax_alpha": 1.0}),
    ({"entmax_loss": None, "z_loss": None}, {"z_loss": 0.0}), ({"z_loss": 1e-4}, {"z_loss": 1e-4})])
def test_older_names(old, new):
    assert legacy.translate(old)[0] == new


def test_an_older_value_that_is_neither_true_nor_false():
    with pytest.raises(UserError, match="entmax_loss: must be true or false, not 1.5"):
        legacy.translate({"entmax_loss": 1.5})


def test_keys_of_masked_language_models_are_named_where_there_is_none():
    keys = dict(mlm_mask_prob=0.2, mlm_mask_id=60, mlm_same_token_prob=0.1)  # the last as always
    assert graphs.config(**keys).notes == [
        "mlm_training: false does not read mlm_mask_id, mlm_mask_prob"]
    assert graphs.config(mlm_training=True, **keys).notes == []
