"""configs/moe_keys.py: GPT-Neo's names, what is refused, and what a checkpoint remembers."""

import json

import graphs
import pytest

from configs import legacy, schema
from configs.errors import UserError


def test_names_with_and_without_their_prefix(tmp_path):
    path = tmp_path / "run.json"
    keys = {"moe_num_experts": 4, "moe_gating": "switch", "hidden_size": 64, "moe_z_loss": None,
            "moe_switch_policy_train": "argmax", "moe_switch_policy_eval": "input_jitter"}
    path.write_text(json.dumps({
        "model": "GPT2", "n_layer": 4, "n_head": 4, "n_embd": 32, "n_ctx": 16, "n_vocab": 61,
        "train_batch_size": 8, "train_steps": 10, "lr": 1e-3, "model_path": "unused",
        "moe_layers": [2, 4], "moe_params": keys, "moe_activation": None}))
    config = schema.load(str(path), ["moe_params.group_size=8"])
    params = config.moe_params
    assert (params.num_experts, params.gating, params.hidden_size, params.z_loss,
            params.switch_jitter, params.group_size) == (4, "top_1", 64, 0.0, 0.0, 8)
    assert config.moe_activation == "relu"
    # GPT-Neo's own config names a layer beyond the last one.
    assert config.notes == ["moe_layers: there is no layer 4; they are counted from 0"]
    again = tmp_path / "saved.json"
    again.write_text(config.to_json())
    assert schema.load(str(again)).moe_params == params


def test_hyperparameters_of_mesh_tensorflow_that_nothing_reads_are_named(tmp_path):
    """All that version 0.1.21 has, at their defaults there, are taken."""
    defaults = dict(
        gating="top_2", num_experts=16, loss_coef=0.01, hidden_size=4096, group_size=1024,
        min_expert_capacity=4, capacity_factor_train=1.25, capacity_factor_eval=2.0,
        capacity_factor_second_level=1.0, use_second_place_loss=0, second_policy_train="random",
        second_policy_eval="random", second_threshold_train=0.2, second_threshold_eval=0.2,
        dropout_rate=0.0, switch_policy_train="input_jitter", switch_policy_eval="input_jitter",
        switch_dropout=0.1, switch_temperature=1.0, switch_jitter=0.01, output_dim=None,
        ntlb_top_k=4, use_experts_attention=False, z_loss=None, word_embed_mode=None,
        use_second_place_expert_prob=None, use_second_place_expert_prob_temp=None,
        top_n_num_experts_per_token=3)
    defaults = {f"moe_{name}": value for name, value in defaults.items()}
    path = tmp_path / "run.json"
    plain = json.loads(graphs.config(moe_layers=[1]).to_json())
    path.write_text(json.dumps({**plain, "moe_params": defaults}))
    config = schema.load(str(path))
    assert config.moe_params.hidden_size == 4096 and not config.moe_params.use_second_place_loss
    note, = config.notes
    assert note.startswith(f"{path}: not needed and ignored: ")
    assert "moe_params.moe_switch_dropout (that of policy input_dropout, which is re" in note
    assert "moe_params.moe_output_dim (it is off)" in note and "group_size" not in note
    path.write_text(json.dumps({**plain, "moe_params": {"moe_output_dim": 8}}))
    with pytest.raises(UserError, match="moe_params.output_dim: unknown key"):
        schema.load(str(path))


@pytest.mark.parametrize(("changes", "message"), [
    ({"moe_layers": [2]}, r"moe_layers: none of \[2\] is a layer; .* n_layer is 2"),
    ({"moe_layers": [-1]}, "moe_layers: layers are counted from 0"),
    ({"moe_layers": [0], "model": "clip", "activation_function": "quick_gelu"},
     "moe_layers: model clip is no language model"),
    ({"moe_layers": [0], "moe_activation": "crelu"}, "moe_activation: experts have no crelu"),
    ({"mlp_glu": True, "activation_function": "crelu"}, "crelu is no gate, since it gives two"),
    ({"moe_layers": [0], "moe_params": {"num_experts": 1}}, "moe_params.num_experts: top_2 needs"),
    ({"moe_params": {"moe_switch_policy_train": "sample"}},
     "moe_params.moe_switch_policy_train: must be argmax or input_jitter"),
    ({"mesh_shape": "x:2", "layout": "experts:x"}, "layout: experts:x: only a model with moe_la"),
    ({"mesh_shape": "x:3", "layout": "experts:x", "moe_layers": [1]},
     "layout: experts:x splits moe_params.num_experts = 16 over x:3"),
    ({"mesh_shape": "x:2", "layout": "experts:x,embd:x", "moe_layers": [1]},
     "layout: experts:x and embd:x would split two dimensions of the experts' weights")])
def test_contradictions(changes, message):
    with pytest.raises(UserError, match=message):
        graphs.config(**changes)


def test_a_misspelt_key_of_the_section_is_named(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(graphs.config().to_json()),
                                "moe_params": {"num_expert": 4}}))
    with pytest.raises(UserError, match=r"moe_params.num_expert: unknown key \(did you mean num_e"):
        schema.load(str(path))


def test_random_second_choices_are_all_taken_outside_of_training():
    params = graphs.config(moe_params={"moe_second_policy_eval": "random",
                                       "second_threshold_train": 0.5}).moe_params
    assert params.second_policy(True) == ("random", 0.5)
    assert params.second_policy(False) == ("all", 0.2)
    chosen = graphs.config(moe_params={"second_policy_eval": "threshold"}).moe_params
    assert chosen.second_policy(False) == ("threshold", 0.2)


def test_gpt2moe_has_experts_in_every_other_layer():
    assert legacy.translate({"model": "GPT2MOE", "n_layer": 6}, whole=True)[0] == {
        "model": "GPT", "n_layer": 6, "moe_layers": [1, 3, 5]}
    assert legacy.translate({"model": "GPT2MOE", "n_layer": 6, "moe_layers": [2]}, whole=True)[0] \
        == {"model": "GPT", "n_layer": 6, "moe_layers": [2]}
    assert legacy.translate({"model": "GPT2MOE"})[0] == {"model": "GPT"}  # as --set gives it


def test_the_architecture_has_what_decides_the_experts_weights():
    plain = graphs.config().architecture()
    assert not [key for key in plain if key.startswith("moe")]
    one = graphs.config(moe_layers=[1]).architecture()
    assert {key for key in one if key not in plain} == {
        "moe_layers", "moe_activation", "moe_params.num_experts", "moe_params.hidden_size",
        "moe_params.gating", "moe_params.glu"}
    for same in [{"loss_coef": 0.0}, {"hidden_size": 4 * graphs.config().n_embd}]:
        assert graphs.config(moe_layers=[1], moe_params=same).architecture() == one
    assert graphs.config(moe_layers=[1, 9]).architecture() == one  # there is no layer 9


@pytest.mark.parametrize(("layout", "travel"), [
    ("batch:x,experts:x", True), ("batch:x,experts:y", False), ("batch:x", False)])
def test_tokens_travel_where_batch_and_experts_share_an_axis(layout, travel):
    config = graphs.config(moe_layers=[1], mesh_shape="x:2,y:2", layout=layout)
    assert config.experts_travel is travel
