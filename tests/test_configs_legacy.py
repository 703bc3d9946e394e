"""Configs of other programs as they are: GPT-Neo's spellings, and ConnorJL/GPT2's keys."""

import json

import pytest

from configs import dataset_files, legacy, legacy_gpt2, legacy_neo, reading, schema
from configs.errors import UserError

BASE = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 16, "n_vocab": 100, "lr": 1e-3,
        "train_batch_size": 8, "train_steps": 50, "model_path": "runs/x"}
# The 117M of ConnorJL/GPT2, key by key.
CONNORJL = {
    "n_head": 12, "encoder_path": "gs://b/encoder", "n_vocab": 50257, "embed_dropout": 0.1,
    "lr": 0.00025, "warmup_steps": 2000, "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-9,
    "opt_name": "adam", "weight_decay": 0.01, "train_batch_size": 32, "attn_dropout": 0.1,
    "train_steps": 10000, "eval_steps": 10, "max_steps": 500000, "data_path": "gs://b/owt/",
    "res_dropout": 0.1, "predict_batch_size": 1, "eval_batch_size": 32, "iterations": 500,
    "n_embd": 768, "input": "openwebtext", "model": "GPT2", "model_path": "gs://b/GPT2-117M",
    "n_ctx": 1024, "predict_path": "logs/predictions.txt", "n_layer": 12, "scale_by_depth": True,
    "scale_by_in": True}


@pytest.fixture
def load(tmp_path):
    """Loads a config of these keys."""
    def load_config(values, *overrides):
        path = tmp_path / "old.json"
        path.write_text(json.dumps(values))
        return schema.load(str(path), overrides)
    return load_config


# GPT-Neo.

@pytest.mark.parametrize("old, key, value", [
    ({"n_heads": 2, "n_head": 2}, "n_head", 2), ({"precision": "bf16"}, "precision", "bfloat16"),
    ({"precision": "fp32"}, "precision", "float32"), ({"activation_fn": "selu"},
                                                      "activation_function", "selu"),
    ({"model_dir": "runs/x"}, "model_path", "runs/x"), ({"rotary_emb": True}, "position", "rotary"),
    ({"rotary_emb": False}, "position", "learned"), ({"input_fn": "sequential_input"}, "input_fn",
                                                     "datasets"),
    ({"input_fn": "generic_text"}, "input_fn", "datasets"), ({"lr_decay": None}, "lr_decay",
                                                            "constant"),
    ({"predict_steps": 1}, "lr_decay", "constant"),
    ({"predict_steps": 1, "lr_decay": "linear"}, "lr_decay", "linear"),
    ({"activation_function": "gelu_new"}, "activation_function", "gelu"),
    ({"top_k": 40}, "top_k", 40)])
def test_other_spellings(load, old, key, value):
    assert getattr(load({**BASE, **old}), key) == value


def test_gpt_neos_defaults_are_said_and_an_override_wins(load):
    config = load({**BASE, "predict_steps": 0}, "lr_decay=cosine")
    assert config.lr_decay == "cosine"
    assert any('GPT-Neo\'s own values for absent keys: lr_decay "constant"' in note
               for note in config.notes)


@pytest.mark.parametrize("mesh, layout, batch, count, tokens", [
    ("", "", 8, 4, 2 * 16), ("x:2", "batch:x", 8, 4, 16), ("x:2,y:2", "heads:y", 8, 2, 4 * 16)])
def test_microbatches_of_a_batch(load, mesh, layout, batch, count, tokens):
    config = load({**BASE, "microbatches_per_batch": count, "train_batch_size": batch,
                   "mesh_shape": mesh, "layout": layout})
    assert (config.tokens_per_mb_per_replica, config.num_microbatches) == (tokens, count)


@pytest.mark.parametrize("changes, wanted", [
    ({"microbatches_per_batch": 3}, "3 does not divide the 8 sequences of a replica"),
    ({"microbatches_per_batch": "2"}, "must be a whole number"),
    ({"microbatches_per_batch": 2, "tokens_per_mb_per_replica": 16}, "keep that one"),
    ({"local": "yes"}, 'must be true or false, not "yes"; attention_types says it'),
    ({"rotary_emb": "yes"}, 'must be true or false, not "yes"; the key is now position: "rotary"'),
    ({"n_heads": 8}, "n_heads: says 8 where n_head says 4")])
def test_what_cannot_be_meant(load, changes, wanted):
    with pytest.raises(UserError, match=r"old\.json: ") as error:
        load({**BASE, **changes})
    assert wanted in str(error.value)


@pytest.mark.parametrize("more, kinds, radius", [
    ({"local": True}, "local", 128), ({"local": False}, "global", 256),
    ({"local": True, "local_attention_radius": 64}, "local", 64),
    ({"local": True, "attention_types": [[["linear"], 2]]}, "linear", 256)])
def test_local_of_all_layers(load, more, kinds, radius):
    config = load({**BASE, **more, "dataset_ids": ["a"], "beta1_adam": 0.9, "layer_offset": 16,
                   "fixed_attn_block_size": 128})
    assert (config.attention_types, config.local_attention_radius) == ((kinds,) * 2, radius)
    note, = [note for note in config.notes if "not needed" in note]
    assert all(key in note for key in ("dataset_ids", "beta1_adam", "layer_offset"))


def test_older_dataset_entries(load):
    """[train glob, eval glob, stitch, mode, weight], as the README still has it."""
    config = load({**BASE, "n_vocab": 50257, "eos_id": 50256, "datasets": [
        ["data/bundestag_*.tfrecords", "", 10, "random_sample", 1.0],
        ["gs://b/bundestag_*.tfrecords", "gs://b/val_[0-9]*.tfrecords", 2, "chunks", 0.5],
        ["mails", 3, "document", 1.0]]})
    assert config.datasets == [("bundestag", 10, "documents_random", 1.0),
                               ("bundestag_2", 2, "chunks", 0.5),
                               ("mails", 3, "documents_fixed", 1.0)]
    first, second = config.inline_datasets.values()
    assert (first.path, first.eval_path, first.n_vocab) == ("data/bundestag_*.tfrecords", None,
                                                           50257)
    assert (second.eval_paths, second.eos_id) == (["gs://b/val_[0-9]*.tfrecords"], 50256)
    assert config.replace(train_steps=99).inline_datasets == config.inline_datasets


@pytest.mark.parametrize("mesh", [{}, {"mesh_shape": "x:8", "layout": "batch:x"}])
def test_configs_of_gpt_neos_first_weeks(load, mesh):
    """Globs in data_path, max_steps beside train_steps, local; at first as in ConnorJL/GPT2."""
    old = {**BASE, "train_steps": 100, "max_steps": 500, "warmup_steps": 10, "n_vocab": 50257,
           "data_path": "gs://b/bundestag/", "encoder_path": "gs://b/encoder", "datasets": [
               ["bundestag_*.tfrecords", "", 10, "random_sample", 1.0],
               ["gs://c/a_*.tfrecords", "val_*.tfrecords", 2, "chunk", 1.0]], **mesh}
    config = load(old)
    assert config.train_steps == (100 if mesh else 500)
    assert config.sources["steps_per_checkpoint"] == (
        "default" if mesh else "file (as train_steps)")
    first, second = config.inline_datasets.values()
    assert (first.path, first.separator, first.eos_id) == (
        "gs://b/bundestag/bundestag_*.tfrecords", 50256, 50256)
    assert (second.path, second.eval_path, second.separator) == (
        "gs://c/a_*.tfrecords", "gs://b/bundestag/val_*.tfrecords", None)
    assert first.encoder == second.encoder == "gpt2:gs://b/encoder"
    assert [entry.mode for entry in config.datasets] == ["documents_random", "chunks"]
    ignored = [note for note in config.notes if "ignored" in note]
    assert bool(ignored) == bool(mesh) and all("max_steps (train_steps is" in n for n in ignored)
    assert load({**old, "n_vocab": 32768}).inline_datasets["bundestag"].separator == 0


def test_inline_datasets_are_saved_and_checked(load, tmp_path):
    mine = {"path": "a_*.tfrecords", "tokenizer_path": "gpt2", "tokenizer_is_pretrained": True,
            "n_vocab": 90}
    config = load({**BASE, "datasets": ["mine"], "inline_datasets": {"mine": mine}})
    assert config.dataset_configs["mine"].encoder == "gpt2" and not config.notes
    (tmp_path / "saved.json").write_text(config.to_json())
    assert schema.load(str(tmp_path / "saved.json")).to_json() == config.to_json()
    with pytest.raises(UserError, match=r"old\.json: inline_datasets: mine: unknown key 'pth'"):
        load({**BASE, "inline_datasets": {"mine": {"pth": "a", "n_vocab": 9}}})
    with pytest.raises(UserError, match="n_vocab: 100 is less than the 200 ids"):
        load({**BASE, "datasets": ["mine"], "inline_datasets": {"mine": {**mine, "n_vocab": 200}}})


def test_gpt_neos_folder_of_dataset_configs(load, tmp_path, monkeypatch):
    """Its file as it is: eval_path, tokenizer and a padding_id that no model embeds."""
    monkeypatch.setattr(reading, "CONFIG_DIR", str(tmp_path))
    (tmp_path / "dataset_configs").mkdir()
    (tmp_path / "dataset_configs" / "neo.json").write_text(json.dumps({
        "n_vocab": 50257, "path": "gs://neo-datasets/pile/pile_*.tfrecords",
        "eval_path": "gs://neo-datasets/pile_val.tfrecords", "tokenizer_is_pretrained": True,
        "tokenizer_path": "gpt2", "eos_id": 50256, "padding_id": 50257}))
    found = load({**BASE, "n_vocab": 50304, "datasets": [["neo", 25, "documents_random", 1.0]]})
    assert found.dataset_configs["neo"].encoder == "gpt2" and not found.notes
    assert dataset_files.path("other").endswith("datasets/other.json")
    # Ours of the same name, as there is one of "pile", does not take its place.
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "neo.json").write_text('{"path": "x.tfrecords", "n_vocab": 9}')
    found = load({**BASE, "n_vocab": 50304, "datasets": ["neo"]})
    assert found.dataset_configs["neo"].encoder == "gpt2"
    assert "configs/dataset_configs is read, and not" in found.notes[0]


def test_gpt_neos_own_values():
    values, notes = legacy_neo.complete({"predict_steps": 0})
    assert values == {"predict_steps": 0, "lr_decay": "constant", "z_loss": 1e-4, "n_ctx": 2048,
                      "iterations": 500} and notes
    assert legacy_neo.complete({"predict_steps": 0, "n_ctx": 9})[0]["n_ctx"] == 9
    assert legacy_neo.complete({"n_layer": 1}) == ({"n_layer": 1}, [])
    experts = {"moe_layers": [1], "moe_params": {"moe_num_experts": 4}, "predict_steps": 0}
    assert legacy_neo.complete(experts)[0]["moe_params"] == {
        "moe_num_experts": 4, "hidden_size": 4096, "min_expert_capacity": 1}
    # Its Adafactor has no decay, and takes the key for something else.
    values, notes = legacy_neo.complete({"predict_steps": 0, "opt_name": "adafactor",
                                         "weight_decay": 0.8})
    assert values["weight_decay"] == 0 and "decay rate" in notes[-1]


def test_null_is_off_in_gpt_neo(load):
    off = dict.fromkeys(["mlm_training", "mlm_mask_prob", "no_weight_tie", "recompute_grad", "seed",
                         "scale_by_depth", "res_dropout", "iterations", "moe_layers", "z_loss",
                         "gradient_clipping", "lr_decay", "weight_decay"])
    config = load({**BASE, **off, "predict_steps": 0, "datasets": [["neo", None, None, None]]})
    assert config.datasets == [("neo", 1, None, 1.0)]
    assert (config.gradient_clipping, config.lr_decay, config.z_loss) == (0, "constant", 0)
    assert not config.mlm_training and config.mlm_mask_prob == 0.15
    with pytest.raises(UserError, match="no_weight_tie"):  # a config of today says what it means
        load({**BASE, "no_weight_tie": None})


@pytest.mark.parametrize("changes, wanted", [
    ({"inline_datasets": [1], "datasets": ["a"]}, "inline_datasets"),
    ({"model": "GPT2MOE", "n_layer": "12"}, "n_layer"),
    ({"max_steps": 5, "data_path": "d", "input": ["openwebtext"]}, "input")])
def test_values_of_wrong_types_have_one_line(load, changes, wanted):
    with pytest.raises(UserError, match=wanted) as caught:
        load({**{key: value for key, value in BASE.items() if key != "datasets"}, **changes})
    assert "\n" not in str(caught.value)


# ConnorJL/GPT2.

def test_a_connorjl_config_loads_as_it_is(load):
    config = load(CONNORJL)
    assert (config.train_steps, config.steps_per_checkpoint) == (500000, 10000)
    assert (config.opt_name, config.beta2, config.epsilon) == ("adamw", 0.98, 1e-9)
    assert (config.lr_decay, config.lr_min_ratio, config.lr_decay_end) == ("cosine", 0, 500000)
    assert (config.gradient_clipping, config.weight_decay) == (0, 0.01)
    assert (config.model, config.predict_path) == ("GPT", "logs/predictions.txt")
    assert config.datasets == [("openwebtext", 42, "documents_random", 1.0)]
    data = config.dataset_configs["openwebtext"]
    assert data.path == "gs://b/owt/openwebtext-newspaper_[0-9]*.tfrecords"
    assert (data.encoder, data.separator) == ("gpt2:gs://b/encoder", 50256)
    assert len(data.held_out_shards) == 13 and 83 in data.held_out_shards
    assert config.sources["train_steps"] == "file (as max_steps)"
    assert config.sources["steps_per_checkpoint"] == "file (as train_steps)"
    assert config.sources["datasets"] == "file (as input and data_path)"
    assert not any("not needed" in note for note in config.notes)


def test_connorjls_defaults(load):
    least = {"max_steps": 9000, "n_embd": 256, "n_layer": 2, "train_batch_size": 2,
             "model_path": "x", "data_path": "d"}
    config = load(least)
    assert (config.n_ctx, config.n_vocab, config.n_head, config.lr) == (1024, 50257, 4, 2.5e-4)
    assert (config.warmup_steps, config.beta1, config.beta2, config.epsilon) == (
        2000, 0.9, 0.98, 1e-9)
    assert (config.iterations, config.weight_decay, config.precision) == (100, 0, "float32")
    assert {config.embed_dropout, config.attn_dropout, config.res_dropout} == {0.1}
    assert config.scale_by_depth and config.scale_by_in
    note = next(note for note in config.notes if "own values" in note)
    assert all(key in note for key in ("n_ctx 1024", "beta1 0.9", "lr_min_ratio 0.0"))
    assert load({**least, "opt_name": "adafactor"}).beta1 == 0
    assert load({**least, "n_heads": 8}).n_head == 8
    assert load({**least, "max_steps": 5}).warmup_steps == 5
    assert load({**least, "n_ctx": 64, "lr_decay": "linear"}).lr_decay == "linear"


@pytest.mark.parametrize("name, entries", [
    ("openwebtext_long", [("openwebtext_long", 2, "documents_random", 1.0)]),
    ("openwebtext_longbiased", [("openwebtext", 42, "documents_random", 0.3),
                                ("openwebtext_long", 2, "documents_random", 0.7)])])
def test_connorjls_inputs(load, name, entries):
    config = load({**CONNORJL, "input": name})
    assert config.datasets == entries
    assert config.dataset_configs["openwebtext_long"].path.endswith(
        "owt/openwebtext-newspaper-long_[0-9]*.tfrecords")


def test_generic_text_and_own_inputs(load):
    values = {key: value for key, value in CONNORJL.items() if key != "data_path"}
    config = load({**values, "input": "generic_text", "stitch": 5,
                   "dataset": [[["a_0.tfrecords"], 0.2], [["b_0.tfrecords"], 0.8]]})
    assert config.datasets == [("dataset_0", 5, "documents_random", 0.2),
                               ("dataset_1", 5, "documents_random", 0.8)]
    assert config.dataset_configs["dataset_1"].paths == ["b_0.tfrecords"]
    assert config.eval_steps == 0 and any("eval_steps: 0" in note for note in config.notes)
    # Its comment calls the key datasets.
    parts = {"input": "generic_text", "datasets": [[["a_0.tfrecords"], 1]]}
    assert load({**values, **parts}).dataset_configs["dataset_0"].paths == ["a_0.tfrecords"]
    mine = load({**CONNORJL, "input": "mine"})  # the function is told where the shards are
    assert (mine.input_fn, mine.inline_datasets["data_path"].path) == ("mine", "gs://b/owt/*.tfrecords")
    assert mine.inline_datasets["data_path"].encoder == "gpt2:gs://b/encoder"
    assert load({**values, "input": "mine"}).input_fn == "mine"


def test_what_an_input_does_not_read_is_said(load):
    for changes, wanted in (
            ({"stitch": 5}, "ignored: stitch (only input generic_text reads it)"),
            ({"input": "generic_text", "dataset": [[["a"], 1]]}, "ignored: data_path (dataset"),
            ({"input": "mine", "data_path": None}, "ignored: encoder_path (without data_path")):
        assert any(wanted in note for note in load({**CONNORJL, **changes}).notes)


def test_null_is_absent_in_connorjl(load):
    optional = ["n_head", "n_ctx", "n_vocab", "lr", "warmup_steps", "beta1", "beta2", "epsilon",
                "opt_name", "weight_decay", "iterations", "train_steps", "precision", "top_k",
                "embed_dropout", "scale_by_in", "eval_batch_size", "eval_steps", "encoder_path"]
    nulls = load({**CONNORJL, **dict.fromkeys(optional)})
    absent = load({key: value for key, value in CONNORJL.items() if key not in optional})
    assert nulls.to_json() == absent.to_json() and nulls.beta2 == 0.98


def test_scale_of_older_versions(load):
    """It multiplied what scale_by_depth divides by √n_layer; scale_by_in there was none."""
    old = {key: value for key, value in CONNORJL.items() if not key.startswith("scale_by")}
    for scale, by_depth in ((12 ** -0.5, True), (1.0, False)):
        config = load({**old, "scale": scale})
        assert (config.scale_by_depth, config.scale_by_in) == (by_depth, False)
        assert any("scale_by_in false" in note for note in config.notes)
    config = load({**CONNORJL, "scale": 0.5})
    assert config.scale_by_in and any("ignored: scale" in note for note in config.notes)
    with pytest.raises(UserError, match="scale: 0.5 is neither 1 nor 1/√n_layer"):
        load({**old, "scale": 0.5})


@pytest.mark.parametrize("changes, wanted", [
    ({"max_steps": ...}, "max_steps: missing; in a ConnorJL/GPT2 config, which this is by its key "
                         "input, it is the total"),
    ({"input": "openwebtex"}, "did you mean openwebtext?"),
    ({"data_path": ...}, "data_path: missing"),
    ({"input": "generic_text"}, "dataset: input generic_text needs a list of [[files], weight]"),
    ({"n_vocab": "a"}, "n_vocab"),
    ({"datapath": "x"}, 'datapath: says "x" where data_path says "gs://b/owt/"; keep data_path'),
    ({"n_head": ..., "n_embd": 100}, "n_head: missing; it would be n_embd / 64, and n_embd 100"),
    # By the names that the file has.
    ({"max_steps": "9"}, 'max_steps (train_steps here): must be a valid integer, not "9"'),
    ({"train_steps": 0}, "train_steps (steps_per_checkpoint here): must be greater")])
def test_what_a_connorjl_config_lacks(load, changes, wanted):
    values = {**CONNORJL, **changes}
    with pytest.raises(UserError) as error:
        load({key: value for key, value in values.items() if value is not ...})
    assert "old.json: " in str(error.value) and wanted in str(error.value)


def test_which_program_a_config_is_of():
    assert legacy_gpt2.recognised(CONNORJL)
    assert not legacy_gpt2.recognised({**CONNORJL, "datasets": ["a"]})
    assert not legacy_gpt2.recognised(BASE)
    for name in reading.shipped_configs():
        values = reading.read_mapping(reading.find_config(name))
        assert not legacy_gpt2.recognised(values) and legacy_neo.TELL_TALE not in values


def test_tables_name_keys_that_exist():
    names = {*legacy.RENAMED.values(), *legacy_gpt2.DEFAULTS, *legacy_gpt2.FIXED}
    assert names <= set(schema.RunConfig.model_fields)
