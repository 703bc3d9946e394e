"""Run configs: mistakes in every key, sources of values, legacy keys, layouts, shipped configs."""

import fnmatch
import json
import os
import re
import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from configs import dataset_files, layouts, legacy, messages, reading, schema
from configs.errors import UserError

BASE = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 16, "n_vocab": 100, "lr": 1e-3,
        "train_batch_size": 8, "train_steps": 50, "model_path": "runs/x"}
KEYS = sorted(schema.RunConfig.model_fields)


@pytest.fixture
def write(tmp_path):
    """Writes a config and returns its path. Keyword arguments change BASE."""
    def write_config(**changes):
        path = tmp_path / "run.json"
        path.write_text(json.dumps({**BASE, **changes}))
        return str(path)
    return write_config


def refused(path, overrides=()):
    """The message with which a config is refused."""
    with pytest.raises(UserError) as error:
        schema.load(path, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


# Mistakes in every key.

@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("misspell", [lambda key: key[:-1] + key[-1] * 2,
                                      lambda key: key[:1] + key[2:] if len(key) > 4 else key + "_",
                                      str.upper])
def test_misspelt_key_names_the_nearest(write, key, misspell):
    wrong = misspell(key)
    message = refused(write(**{wrong: 1}))
    assert "run.json: " in message
    assert f"{wrong}: unknown key (did you mean {key}?)" in message


@pytest.mark.parametrize("key", KEYS)
def test_wrong_type_names_file_key_and_what_is_allowed(write, key):
    message = refused(write(**{key: {"a": 1} if key not in ("clip", "moe_params") else 1}))
    assert re.search(rf"run\.json: {key}: must be .*not [{{1]", message), message


@pytest.mark.parametrize("key", [key for key, field in schema.RunConfig.model_fields.items()
                                 if field.annotation in (int, float, bool, int | None)])
def test_text_is_not_a_number(write, key):
    assert f"{key}: must be a valid" in refused(write(**{key: "1"}))


@pytest.mark.parametrize("key", [key for key, field in schema.RunConfig.model_fields.items()
                                 if field.annotation in (int, int | None)])
def test_neither_true_nor_a_fraction_is_a_whole_number(write, key):
    assert f"{key}: must be a valid integer, not true" in refused(write(**{key: True}))
    assert f"{key}: must be a valid integer, not 1.5" in refused(write(**{key: 1.5}))


@pytest.mark.parametrize("key", sorted(BASE))
def test_missing_key_is_named(tmp_path, key):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({name: value for name, value in BASE.items() if name != key}))
    message = refused(str(path))
    assert f"run.json: {key}: missing" in message


@pytest.mark.parametrize("key, value", [
    ("n_layer", 0), ("lr", -1.0), ("beta1", 1.0), ("beta2", 1.0), ("beta2", -0.1),
    ("embed_dropout", 1.0), ("res_dropout", -0.1), ("attn_dropout", 1.5), ("lr_min_ratio", 1.1),
    ("train_steps", 0), ("warmup_steps", -1), ("eval_steps", -1), ("keep", 0), ("iterations", 0),
    ("pad_vocab_multiple", 0), ("weight_decay", -0.1), ("gradient_clipping", -1), ("epsilon", 0),
    ("seed", -1), ("seed", 2**31), ("predict_max_steps", 0), ("layer_norm_epsilon", 0),
    ("initializer_range", 0), ("model_path", ""), ("tokens_per_mb_per_replica", -1)])
def test_values_out_of_range_are_refused(write, key, value):
    assert f"run.json: {key}: " in refused(write(**{key: value}))


@pytest.mark.parametrize("key, value, near", [
    ("precision", "bfloat", "bfloat16"), ("lr_decay", "cosin", "cosine"),
    ("opt_name", "adamm", "adamw"), ("position", "rotry", "rotary"),
    ("activation_function", "glu", "gelu")])
def test_wrong_choice_lists_choices_and_the_nearest(write, key, value, near):
    message = refused(write(**{key: value}))
    assert f"{key}: must be '" in message and f"did you mean {near}?" in message


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_numbers_have_to_be_finite(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(BASE).replace("0.001", text))
    assert "lr: must be a finite number" in refused(str(path))


def test_other_code_bases_names_lead_to_ours(write):
    for word, key in [("learning_rate", "lr"), ("block_size", "n_ctx"), ("d_model", "n_embd"),
                      ("max_iters", "train_steps"), ("dropout", "embed_dropout, res_dropout")]:
        assert f"{word}: unknown key (did you mean {key}" in refused(write(**{word: 1}))
    for names in messages.SYNONYMS.values():
        assert set(names.split(", ")) <= set(KEYS)


def test_nested_unknown_keys_get_their_own_sections_names():
    class Section(BaseModel, extra="forbid"):
        weight: float = 0.0

    class Config(BaseModel, extra="forbid"):
        clip: Section | None = None

    with pytest.raises(ValidationError) as error:
        Config.model_validate({"clip": {"wieght": 1.0}})
    key, sentence = messages.first_mistake(error.value, Config)
    assert (key, sentence) == ("clip", "clip.wieght: unknown key (did you mean weight?)")


# Reading.

def test_whole_numbers_are_accepted_for_fractions(write):
    assert schema.load(write(lr=1)).lr == 1.0


def test_yaml_and_json_give_the_same(tmp_path, write):
    path = tmp_path / "run.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in BASE.items() if key != "lr")
                    + "lr: 1e-3\n")
    assert schema.load(str(path)).to_json() == schema.load(write()).to_json()


@pytest.mark.parametrize("name, text, wanted", [
    ("a.json", '{"lr": 1, "lr": 2}', "a.json: lr: given twice"),
    ("a.yaml", "lr: 1\nlr: 2\n", "a.yaml: lr: given twice"),
    ("a.json", '{"lr": 1,}', "a.json: not JSON: "),
    ("a.yaml", "lr: [1\n", "a.yaml: not YAML: "),
    ("a.yaml", "!!python/object/apply:os.getcwd []\n", "a.yaml: not YAML: "),
    ("a.json", "[1]", "a.json: must hold one mapping"),
    ("a.json", "\xff", "a.json: cannot be read")])
def test_unreadable_files_are_named(tmp_path, name, text, wanted):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert wanted in refused(str(tmp_path / name))


def test_names_of_shipped_configs_with_and_without_ending(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert schema.load("demo").to_json() == schema.load("demo.json").to_json()
    assert "did you mean shakespeare_char?" in refused("shakespear_char.json")


# Overrides and sources.

def test_overrides_and_where_values_come_from(write):
    path = write(activation_fn="relu", datasets=[["/nowhere/a.json", 1, "chunks", 1.0]])
    config = schema.load(path,
                         ["lr=1e-4", "datasets.0.3=0.25", "about=yes", "rotary_emb=true",
                          "mesh_shape=x:2", "layout=[[batch, x]]"],
                         {"model_path": "elsewhere", "gpu_ids": None})
    assert config.lr == 1e-4
    assert config.datasets[0] == ("/nowhere/a.json", 1, "chunks", 0.25)
    assert config.about == "yes"
    assert (config.mesh, config.layout_rules) == ([("x", 2)], [("batch", "x")])
    assert config.model_path == "elsewhere"
    expected = {"lr": "--set", "n_layer": "file", "keep": "default", "model_path": "--model_path",
                "activation_function": "file (as activation_fn)", "datasets": "file, --set",
                "position": "--set (as rotary_emb)", "gpu_ids": "default",
                "eval_batch_size": "default (from train_batch_size)",
                "lr_decay_end": "default (from train_steps)"}
    assert {key: config.sources[key] for key in expected} == expected
    assert set(config.sources) == set(KEYS)


def test_description_shows_each_key_value_and_source(write):
    lines = schema.load(write(), ["keep=3"]).describe().splitlines()
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in lines}
    assert set(KEYS) - {"about", "clip"} <= set(rows)
    assert rows["keep"] == ["3", "--set"]
    assert rows["n_layer"] == ["2", "file"]
    assert rows["epsilon"] == ["1e-08", "default"]
    assert rows["beta1"] == ["0.9", "default (from opt_name)"]
    assert rows["head_size"][0] == "8"


@pytest.mark.parametrize("text, value", [
    ("1e-3", 1e-3), ("3", 3), ("true", True), ("null", None), ("[a, b]", ["a", "b"]), (".1", 0.1),
    ("x:4,y:2", "x:4,y:2"), ("runs/1", "runs/1"), ("2024-01-01", "2024-01-01"), ("1:30", "1:30"),
        ("010", "010"), ("-2", -2), ("1.", 1.0), ("+1.5E+3", 1500.0), ("e3", "e3"),
    ('"3"', "3"), ("a: b: c", "a: b: c"), ("{a: 1}", {"a": 1})])
def test_values_of_overrides(text, value):
    parsed = reading.parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_overrides_reach_into_sections_that_are_absent():
    values = {"a": 1}
    assert reading.overridden(values, ["clip", "weight"], 0.1) == {"a": 1, "clip": {"weight": 0.1}}
    assert values == {"a": 1}


@pytest.mark.parametrize("override, wanted", [
    ("lr", "--set lr: write --set key=value"), ("=3", "write --set key=value"),
    ("lr.x=3", "--set lr.x: lr is a single value"), ("lr=abc", "--set: lr: must be a valid number"),
    ("n_heads=3", "--set (as n_heads): n_head: 3 does not divide n_embd = 32"),
    ("max_steps=3", "--set: max_steps: unknown key (did you mean train_steps?)"),
    ("clipp.weight=.1", "clipp: unknown key"),
    ("auto_layout=true", "--set: auto_layout: not supported"),
    ("attention_types.9=global", "attention_types is a list of 1")])
def test_mistakes_in_overrides_name_the_override(write, override, wanted):
    assert wanted in refused(write(attention_types=[[["global"], 2]]), [override])


def test_saved_config_loads_again_and_changes_nothing(write, tmp_path):
    config = schema.load(write(mesh_shape="x:2,y:2", layout="batch:x,heads:y", seed=7,
                               about=["a", "b"], datasets=["/nowhere/b.json"]))
    path = tmp_path / "saved.json"
    path.write_text(config.to_json())
    again = schema.load(str(path))
    assert again.model_dump() == config.model_dump()
    assert again.about == "a\nb"


def test_replace_fills_dependent_values_in_again_and_checks(write):
    config = schema.load(write(eval_batch_size=None))  # a null is as good as an absent key
    config = config.replace(train_steps=20, train_batch_size=4, n_layer=3)
    assert (config.lr_decay_end, config.eval_batch_size) == (20, 4)
    assert config.attention_types == ("global",) * 3
    with pytest.raises(UserError, match="n_head: 5"):
        config.replace(n_head=5)


def test_configs_do_not_change(write):
    with pytest.raises(ValidationError):
        schema.load(write()).lr = 2.0


# Checks between keys.

@pytest.mark.parametrize("changes, wanted", [
    ({"n_head": 3}, "n_head: 3 does not divide n_embd = 32"),
    ({"rotary_dims": 10, "position": "rotary"}, "rotary_dims: 10 is more than the size of a head"),
    ({"rotary_dims": 3, "position": "rotary"}, "rotary_dims: 3 is odd"),
    ({"n_embd": 36, "position": "rotary"}, "rotary_dims: the size of a head, 9, is odd"),
    ({"axial_dims": [4, 4]}, 'axial_dims: position is "learned", which has none; remove it'),
    ({"axial_dims": [4, 8], "position": "axial"},
     "axial_dims: 4 × 8 is 32 and not n_ctx = 16"),
    ({"axial_dims": [16], "position": "axial"}, "axial_dims: must be two sizes such as [32, 64]"),
    ({"axial_dims": [-4, -4], "position": "axial"}, "axial_dims: must be two sizes"),
    ({"mlp_glu": True, "activation_function": "softmax"},
     "activation_function: softmax is no gate"),
    ({"parallel_residual": "one_nrom"}, "did you mean one_norm?"),
    ({"intermediate_size": 30, "mesh_shape": "x:4", "layout": "intermediate_expanded:x"},
     "intermediate_expanded:x splits intermediate_size = 30 over x:4"),
    ({"attention_types": [[["global"], 3]]},
     "attention_types: expands to 3 layers where n_layer is 2"),
    ({"attention_types": [[["global", "sparse"], 1]]},
     '"sparse" is not supported by this release; known: global, local, linear, none'),
    ({"local_attention_radius": 0}, "local_attention_radius: must be"),
    ({"num_mem_kv": -1}, "num_mem_kv: must be"),
    ({"num_mem_kv": 2, "attention_types": [[["linear", "none"], 1]]},
     "num_mem_kv: no layer of attention_types is global or local"),
    ({"position": "alibi", "attention_types": [[["global", "linear"], 1]]},
     "position: alibi changes scores, which linear attention does not have"),
    ({"model": "clip", "activation_function": "quick_gelu",
      "attention_types": [[["global", "local"], 1]]},
     "attention_types: model clip has attention of its own"),
    ({"model": "clip", "activation_function": "quick_gelu", "num_mem_kv": 1},
     "attention_types: model clip has attention of its own"),
    ({"model": "gpt_c", "clip": {"student": "s", "layer": []}}, "clip.layer: [] must name"),
    ({"model": "gpt_c", "clip": {"student": "s", "layer": [1, 1]}}, "clip.layer: [1, 1] must name"),
    ({"model": "gpt_c", "clip": {"student": "s", "mode": "input", "control": "shuffled"}},
     'clip.control: belongs to the supervision of clip.mode "loss"'),
    ({"model": "gpt_c", "clip": {"student": "s", "mode": "input", "weight": 0.2}},
     'clip.weight: belongs to the supervision of clip.mode "loss"'),
    ({"mesh_shape": "x:2", "layout": "mem_kv:x"}, "layout: mem_kv cannot be split"),
    ({"attention_types": [["globl", 2]]}, "did you mean global?"),
    ({"attention_types": [[["global"], "2"]]}, "is no [[kinds], times]"),
    ({"warmup_steps": 51}, "warmup_steps: 51 is more than train_steps = 50"),
    ({"warmup_steps": 20, "lr_decay_end": 10}, "lr_decay_end: 10 is before the end of warm-up"),
    ({"gpu_ids": ["0", "1"]}, "gpu_ids: names 2 where mesh_shape (one device) needs 1"),
    ({"gpu_ids": ["0", "GPU:0"], "mesh_shape": "x:2"}, "gpu_ids: one GPU is named twice"),
    ({"gpu_ids": ["cpu"]}, 'gpu_ids: "cpu" is no GPU'),
    ({"n_vocab": 0}, "n_vocab: missing, and there are no datasets"),
    ({"datasets": [["a", 0]]}, "datasets: a: stitch must be a whole number"),
    ({"datasets": [["a", 1, "chunky"]]}, "did you mean chunks?"),
    ({"datasets": [["a", 1, "chunks", 0]]}, "datasets: a: weight must be above 0"),
    ({"datasets": ["a", "a"]}, "datasets: a is listed twice"),
    ({"datasets": [[]]}, "datasets: [] is neither an id nor"),
    ({"mesh_shape": "4,2"}, "mesh_shape: 4 is no pair"),
    ({"mesh_shape": "x:0"}, "mesh_shape: x:0: the size must be"),
    ({"mesh_shape": "x:2,x:2"}, "mesh_shape: x is given twice"),
    ({"mesh_shape": "x:2", "layout": "head:x"},
     "layout: head is no dimension of the model (did you mean heads?)"),
    ({"mesh_shape": "x:2", "layout": "batch:y"}, "layout: batch:y names a mesh axis that does not "
                                                 "exist; mesh_shape has x"),
    ({"layout": "batch:x"}, "mesh_shape is empty"),
    ({"mesh_shape": "x:2", "layout": "batch:x,batch:x"}, "layout: batch is given twice")])
def test_contradictions_are_refused_in_one_line(write, changes, wanted):
    message = refused(write(**changes))
    assert "run.json: " in message and wanted in message


def test_queries_keys_and_values_cannot_be_parted(write):
    message = refused(write(mesh_shape="x:2", layout="qkv:x"))
    assert "layout: qkv cannot be split in this release" in message


@pytest.mark.parametrize("layout", [
    "batch:x,memory_length:y,embd:y", "batch:x,sequence:y,embed_sequence:y",
    "batch:x,heads:y,embed_sequence:y", "features_per_head:y,vocab:y"])
def test_layouts_along_the_dimensions_of_attention(write, layout):
    assert schema.load(write(mesh_shape="x:2,y:2", layout=layout)).layout == layout


@pytest.mark.parametrize("rule, changes, key", [
    ("batch", {"train_batch_size": 9}, "train_batch_size = 9"),
    ("batch", {"eval_batch_size": 3}, "eval_batch_size = 3"),
    ("heads", {"n_embd": 27, "n_head": 9}, "n_head = 9"),
    ("embd", {"n_embd": 45, "n_head": 9}, "n_embd = 45"),
    ("vocab", {"pad_vocab_multiple": 5}, "padded n_vocab = 100"),
    ("embed_sequence", {"n_ctx": 17}, "n_ctx = 17"),
    ("sequence", {"n_ctx": 17}, "n_ctx = 17"),
    ("memory_length", {"n_ctx": 17}, "n_ctx = 17"),
    ("features_per_head", {"n_embd": 48}, "n_embd / n_head = 12"),
    ("intermediate_expanded", {"n_embd": 34, "n_head": 1}, "4 × n_embd = 136")])
def test_a_size_that_the_mesh_does_not_divide_names_both(write, rule, changes, key):
    size = 16 if rule in ("intermediate_expanded",) else 8
    message = refused(write(mesh_shape=f"x:{size}", layout=f"{rule}:x", **changes))
    assert f"layout: {rule}:x splits" in message
    assert key in message and f"x:{size}, which does not divide it; " in message


def test_two_dimensions_of_one_tensor_cannot_share_an_axis(write):
    """All pairs of dimensions that can be split; those that clash are written out here."""
    clashing = {("batch", "embd"), ("batch", "vocab"), ("batch", "heads"), ("batch", "sequence"),
                ("batch", "memory_length"), ("batch", "features_per_head"),
                ("batch", "intermediate_expanded"), ("embed_sequence", "embd"), ("embd", "vocab"),
                ("embd", "heads"), ("embd", "features_per_head"), ("embd", "intermediate_expanded"),
                ("sequence", "memory_length"), ("sequence", "embd"), ("sequence", "vocab"),
                ("sequence", "heads"), ("sequence", "features_per_head"),
                ("sequence", "intermediate_expanded"), ("memory_length", "heads"),
                ("memory_length", "features_per_head"), ("heads", "features_per_head"),
                ("embd", "experts"), ("embd", "expert_hidden"), ("batch", "expert_hidden"),
                ("experts", "expert_hidden")}
    able = [name for name, dim in layouts.DIMENSIONS.items()
            if dim.splittable and "GPT" in dim.models]
    found = set()
    for number, first in enumerate(able):
        for second in able[number + 1:]:
            path = write(mesh_shape="x:2", layout=f"{first}:x,{second}:x", moe_layers=[1])
            try:
                assert dict(schema.load(path).layout_rules) == {first: "x", second: "x"}
            except UserError as error:
                assert f"layout: {first}:x and {second}:x would split two" in str(error).replace(
                    f"{second}:x and {first}:x", f"{first}:x and {second}:x")
                found.add((first, second))
    assert found == clashing


@pytest.mark.parametrize("blocks", [{}, {"mlp_glu": True, "intermediate_size": 24, "norm": "rms"},
                                    {"rezero": True, "macaron": True},
                                    {"activation_function": "crelu", "moe_activation": "aria"}])
@pytest.mark.parametrize("position", ["learned", "rotary", "axial", "alibi"])
@pytest.mark.parametrize("untied", [False, True])
def test_the_models_own_tensors_are_those_of_the_table(write, position, untied, blocks):
    """Builds the model: its weights' dimensions and sizes are what layouts.py says they are."""
    compat = pytest.importorskip("mesh.compat")
    gpt, layers = pytest.importorskip("models.gpt"), pytest.importorskip("models.layers")
    mtf, tf = compat.mtf, compat.tf
    config = schema.load(write(position=position, no_weight_tie=untied, num_mem_kv=3,
                               moe_layers=[1], **blocks))
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        ctx = layers.Context(mesh, config)
        shape = mtf.Shape([mtf.Dimension("batch", 8), mtf.Dimension("sequence", 16)])
        model = gpt.GPT(config, config.n_vocab)
        model.logits(ctx, model.hidden(ctx, mtf.zeros(mesh, shape, tf.int32)))
        tensors = [set(dims) for dims in layouts.TENSORS.values()]
        tensors.append({"embd", "all_experts"})
        sizes = {"features_per_head": config.head_size, "qkv": 3, "mem_kv": 3, "glu": 2,
                 "axial_dim_0": 4, "axial_dim_1": 4, "all_experts": 16}
        for name, dim in layouts.DIMENSIONS.items():
            if dim.splittable and "GPT" in dim.models:
                [(_, sizes[name]), *_] = layouts._sizes(config, name)
        assert graph.all_variables
        for variable in graph.all_variables:
            dims = {dim.name: dim.size for dim in variable.shape.dims}
            assert any(set(dims) <= tensor for tensor in tensors), variable
            assert {name: sizes[name] for name in dims} == dims


def test_parsing_agrees_with_mesh_tensorflow():
    mtf = pytest.importorskip("mesh.compat").mtf
    for text in ("", "x:4", "x:4,y:2", "x:4;y:2", "x:4 y:2", "rows:1, cols:8"):
        theirs = [(dim.name, dim.size) for dim in mtf.convert_to_shape(text).dims]
        assert layouts.parse_mesh_shape(text) == theirs


@pytest.mark.parametrize("batch, ctx, tokens, layout", [
    (256, 2048, 2048, "batch:x"), (256, 2048, 16384, "batch:x"), (12, 64, 300, ""),
    (12, 64, 64 * 5, ""), (12, 64, 1, ""), (8, 16, 10**9, "batch:x"), (24, 16, 16 * 5, "batch:x")])
def test_microbatches_as_mesh_tensorflow_counts_them(write, batch, ctx, tokens, layout):
    """Against the rule itself: the largest divisor of a replica's batch that fits the limit."""
    config = schema.load(write(train_batch_size=batch, n_ctx=ctx, tokens_per_mb_per_replica=tokens,
                               mesh_shape="x:4", layout=layout))
    replica = batch // (4 if layout else 1)
    fitting = [size for size in range(1, replica + 1)
               if replica % size == 0 and (size * ctx <= tokens or size == 1)]
    assert config.num_microbatches == replica // max(fitting)


def test_an_axis_that_no_rule_uses_is_noted(write):
    assert any("axis y" in note for note in
               schema.load(write(mesh_shape="x:2,y:2", layout="batch:x")).notes)


def test_derived_values(write):
    config = schema.load(write(mesh_shape="x:2;y:2", layout="batch:x,heads:y", position="rotary",
                               rotary_dims=4, gradient_clipping=None))
    assert (config.head_size, config.rotary_size, config.n_vocab_padded) == (8, 4, 128)
    assert (config.mesh, config.mesh_size, config.batch_split) == ([("x", 2), ("y", 2)], 4, 2)
    assert config.layout_rules == [("batch", "x"), ("heads", "y")]
    assert config.gradient_clipping == 0 and config.num_microbatches == 1
    assert config.attention_types == ("global", "global")
    assert schema.load(write()).mesh_size == 1


def test_architecture_is_what_decides_weights(write):
    base = schema.load(write()).architecture()
    json.dumps(base)
    for change in ({"lr": 1.0}, {"mesh_shape": "x:2", "layout": "batch:x"}, {"res_dropout": 0.5},
                   {"precision": "bfloat16"}, {"model_path": "b"}):
        assert schema.load(write(**change)).architecture() == base
    for change in ({"n_layer": 3}, {"n_ctx": 8}, {"no_weight_tie": True}, {"position": "rotary"},
                   {"activation_function": "relu"}, {"pad_vocab_multiple": 100}, {"n_vocab": 99},
                   {"norm": "rms"}, {"rezero": True}, {"parallel_residual": True},
                   {"macaron": True}, {"mlp_glu": True}, {"share_parameters": True},
                   {"intermediate_size": 64}, {"position": "axial"}, {"position": "none"},
                   {"position": "alibi"}, {"num_mem_kv": 1},
                   {"attention_types": [[["global", "local"], 1]]}):
        assert schema.load(write(**change)).architecture() != base
    assert schema.load(write(intermediate_size=128)).architecture() == base
    rotary = schema.load(write(position="rotary")).architecture()
    for change in ({"rotary_base": 500.0}, {"rotary_style": "interleaved"}, {"rotary_dims": 4}):
        assert schema.load(write(position="rotary", **change)).architecture() != rotary
    axial = schema.load(write(position="axial")).architecture()
    assert axial["axial_dims"] == [4, 4]
    assert schema.load(write(position="axial", axial_dims=[2, 8])).architecture() != axial
    assert schema.load(write(position="axial", axial_dims=[4, 4])).architecture() == axial
    # The window is a fact of the weights where a layer has one.
    assert schema.load(write(local_attention_radius=8)).architecture() == base
    near, far = (schema.load(write(attention_types=["local", "none"],
                                   local_attention_radius=radius)).architecture()
                 for radius in (8, 9))
    assert near != far
    assert schema.load(write(pad_vocab_multiple=64)).architecture() == base  # 128 rows either way


# Datasets.

def test_datasets_give_the_vocabulary(write, tmp_path):
    path = tmp_path / "set.json"
    path.write_text(json.dumps({"path": "a_*.tfrecords", "encoder": "byte", "n_vocab": 257}))
    config = schema.load(write(n_vocab=0, datasets=[str(path)]))
    assert config.n_vocab == 257
    assert config.sources["n_vocab"] == f"dataset {path}"
    assert config.datasets == [(str(path), 1, None, 1.0)]
    assert "n_vocab: 100 is less than the 257 ids" in refused(write(datasets=[str(path)]))


def test_datasets_of_different_encoders_do_not_mix(write, tmp_path):
    for name, encoder in (("a", "byte"), ("b", "clip")):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"path": "a_*.tfrecords", "encoder": encoder, "n_vocab": 90}))
    names = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert "were made by different encoders (byte, clip)" in refused(write(datasets=names))


def test_missing_dataset_is_named_when_it_is_needed(write):
    config = schema.load(write(datasets=["dmo"]))
    assert any("dmo.json" in note for note in config.notes)
    with pytest.raises(UserError, match=r"datasets: dmo has no .*\(did you mean demo\?\)"):
        _ = config.dataset_configs
    assert "did you mean demo?" in refused(write(n_vocab=0, datasets=["dmo"]))


# Legacy keys.

@pytest.mark.parametrize("key", sorted(legacy.UNNEEDED))
def test_keys_that_nothing_needs_are_noted_once(write, key):
    notes = [note for note in schema.load(write(datasets=[], **{key: 1})).notes if key in note]
    assert len(notes) == 1 and "ignored" in notes[0]


@pytest.mark.parametrize("key", legacy.UNSUPPORTED)
def test_keys_whose_meaning_would_be_lost_are_refused_unless_off(write, key):
    for off in (False, 0, None, []):
        assert schema.load(write(**{key: off})).notes == []
    assert f"run.json: {key}: not supported by this release" in refused(write(**{key: True}))


def test_legacy_names_and_values(write):
    config = schema.load(write(activation_fn="relu", rotary_emb=True, opt_name="adam",
                               lr_decay=None, weight_decay=None, model="GPT2"))
    assert (config.activation_function, config.position, config.opt_name, config.lr_decay,
            config.weight_decay, config.model) == ("relu", "rotary", "adamw", "constant", 0, "GPT")
    assert "activation_fn: says" in refused(write(activation_function="gelu", activation_fn="relu"))
    assert not set(KEYS) & (set(legacy.UNNEEDED) | set(legacy.UNSUPPORTED) | set(legacy.RENAMED))


def test_the_blocks_of_a_gpt_neo_config_are_honoured(write):
    on = schema.load(write(axial_pos_emb=[2, 8], rotary_emb=False, scalenorm=True, rezero=True,
                           macaron=True, mlp_glu=True, share_parameters=True))
    assert on.notes == []
    assert (on.position, on.axial_shape, on.norm) == ("axial", (2, 8), "centred_scale")
    assert on.rezero and on.macaron and on.mlp_glu and on.share_parameters
    assert on.sources["norm"] == "file (as scalenorm)"
    assert on.sources["axial_dims"] == "file (as axial_pos_emb)"
    squarest = schema.load(write(axial_pos_emb=True, n_ctx=24))
    assert (squarest.position, squarest.axial_shape) == ("axial", (4, 6))
    off = dict.fromkeys(("rotary_emb", "axial_pos_emb", "scalenorm", "rezero", "macaron", "mlp_glu",
                         "share_parameters"))
    for value in (None, False):
        config = schema.load(write(**dict.fromkeys(off, value)))
        assert config.architecture() == schema.load(write()).architecture()
    assert "axial_pos_emb: says \"axial\" where position says" in refused(
        write(position="rotary", axial_pos_emb=[2, 8]))
    assert 'scalenorm: must be true or false, not "no"' in refused(write(scalenorm="no"))
    assert schema.load(write(scalenorm=True), ["scalenorm=false"]).norm == "layer"


@pytest.mark.parametrize("value, meant", [(True, "one_norm"), (False, "none"), (None, "none"),
                                          ("two_norms", "two_norms")])
def test_parallel_residual_is_also_a_switch(write, value, meant):
    assert schema.load(write(parallel_residual=value)).parallel_residual == meant


@pytest.mark.parametrize("kind, keys", [
    ("clip", {"activation_function": "quick_gelu"}),
    ("clip_student", {"position": "rotary", "clip": {"teacher": "t", "window": 5}})])
def test_towers_have_blocks_of_their_own(write, kind, keys):
    schema.load(write(model=kind, **keys))
    for change in ({"norm": "rms"}, {"rezero": True}, {"parallel_residual": True},
                   {"macaron": True}, {"mlp_glu": True}, {"share_parameters": True},
                   {"intermediate_size": 64}, {"rotary_base": 500.0},
                   {"rotary_style": "interleaved"}):
        key, = change
        assert f"{key}: model {kind} has none of it; remove it" in refused(
            write(model=kind, **keys, **change))


def gpt_neo_config(tmp_path, **changes):
    """The keys of GPT-Neo's 125M config as it ships, with those in which another one differs."""
    path = tmp_path / "gpt3.json"
    path.write_text(json.dumps({
        "n_head": 12, "n_vocab": 50304, "embed_dropout": 0, "lr": 0.0006, "lr_decay": "cosine",
        "warmup_steps": 3000, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "opt_name": "adam",
        "weight_decay": 0.10, "train_batch_size": 256, "attn_dropout": 0, "train_steps": 572300,
        "eval_steps": 0, "predict_steps": 1, "res_dropout": 0, "eval_batch_size": 64,
        "predict_batch_size": 1, "iterations": 2500, "n_embd": 768,
        "datasets": [["openwebtext-documents", 25, "documents_random", 1.0]],
        "model_path": "gs://neo-models/GPT3_SMALL", "n_ctx": 2048, "n_layer": 12,
        "scale_by_depth": True, "scale_by_in": False, "attention_types": [[["global"], 12]],
        "mesh_shape": "x:64,y:4", "layout": "batch:x,heads:y,vocab:y,intermediate_expanded:y",
        "activation_function": "gelu", "recompute_grad": False, "gradient_clipping": 1.0,
        **changes}))
    return schema.load(str(path))


def test_a_gpt_neo_config_loads(tmp_path):
    config = gpt_neo_config(tmp_path)
    assert config.datasets == [("openwebtext-documents", 25, "documents_random", 1.0)]
    assert (config.n_vocab_padded, config.mesh_size, config.opt_name) == (50304, 256, "adamw")
    assert [("predict_steps" in note) for note in config.notes].count(True) == 1


def test_gpt_neo_configs_with_other_attention_load(tmp_path):
    """gpt3_PAR_small_256 and gpt3_13B_256 as they ship, and keys that the README has."""
    par = gpt_neo_config(tmp_path, n_layer=19,
                         attention_types=[[["global", "none", "none"], 5], [["none"], 4]])
    assert [i for i, kind in enumerate(par.attention_types) if kind != "none"] == [0, 3, 6, 9, 12]
    large = gpt_neo_config(
        tmp_path, n_layer=40, n_head=40, n_embd=5120, n_vocab=50257, mesh_shape="x:16,y:16",
        attention_types=[[["global", "local"], 20]], layout="batch:x,embd:y,memory_length:y",
        precision="bfloat16", tokens_per_mb_per_replica=2048, recompute_grad=True)
    assert large.attention_types == ("global", "local") * 20
    assert (large.local_attention_radius, large.num_mem_kv) == (256, 0)
    given = gpt_neo_config(tmp_path, num_mem_kv=None, local_attention_radius=None)
    assert (given.local_attention_radius, given.num_mem_kv) == (256, 0)
    given = gpt_neo_config(tmp_path, num_mem_kv=4, local_attention_radius=64)
    assert (given.local_attention_radius, given.num_mem_kv) == (64, 4)


# What ships.

def test_every_shipped_config_loads(root):
    names = reading.shipped_configs()
    assert {"demo", "gpt_125M", "shakespeare_char", "shakespeare_char_large"} <= set(names)
    for name in names:
        config = schema.load(name)
        assert config.notes == [], name
        assert config.dataset_configs
        for word in ("Command: ", "Expected"):
            assert word in config.about, name
        assert config.eval_steps != 0, name


def test_every_shipped_dataset_loads_and_keeps_validation_out_of_training(root):
    folder = os.path.join(root, "configs", "datasets")
    for file in os.listdir(folder):
        dataset, = dataset_files.load([os.path.join(folder, file)], 0).values()
        shards = {split: [pattern.replace("[0-9]*", "0_164596") for pattern in patterns]
                  for split, patterns in (("train", dataset.paths), ("val", dataset.eval_paths))}
        for split, patterns in (("train", dataset.paths), ("val", dataset.eval_paths)):
            other = "val" if split == "train" else "train"
            for pattern in patterns:
                assert "[0-9]*" in pattern
                assert any(fnmatch.fnmatch(shard, pattern) for shard in shards[split])
                assert not any(fnmatch.fnmatch(shard, pattern) for shard in shards[other])


def test_shakespeare_is_nanogpts_recipe():
    config = schema.load("shakespeare_char")
    assert (config.n_layer, config.n_head, config.n_embd, config.n_ctx) == (4, 4, 128, 64)
    assert (config.train_batch_size, config.train_steps, config.n_vocab) == (12, 2000, 66)
    assert (config.lr, config.lr * config.lr_min_ratio, config.beta2) == (2e-3, 2e-4, 0.99)
    assert (config.embed_dropout, config.res_dropout, config.attn_dropout) == (0, 0, 0)
    large = schema.load("shakespeare_char_large")
    assert (large.n_layer, large.n_head, large.n_embd, large.n_ctx) == (6, 6, 384, 256)
    assert "1.4697" in large.about and "not been run here" in large.about


def test_the_reference_page_is_the_schemas(root):
    from configs import reference

    with open(os.path.join(root, "docs", "configs.md"), encoding="utf-8") as file:
        assert file.read() == reference.page(), "run: python -m configs.reference > docs/configs.md"
    for key in KEYS:
        assert f"| `{key}` |" in reference.page()


def test_every_key_has_one_sentence():
    for key, field in schema.RunConfig.model_fields.items():
        assert field.description and field.description.endswith("."), key


def test_schema_needs_no_tensorflow(root):
    code = ("import sys; from configs import schema, reference; schema.load('gpt_125M').describe();"
            "print('tensorflow' in sys.modules, 'mesh_tensorflow' in sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True,
                            check=True)
    assert result.stdout.strip() == "False False"
