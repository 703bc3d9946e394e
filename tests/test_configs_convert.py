"""configs/convert.py: other programs' configs to ones that load, with an account of the changes."""

import json

import pytest

from configs import convert, legacy, legacy_jax, schema
from configs.errors import UserError

# mesh-transformer-jax's GPT-J, 6B on a v3-256.
GPT_J = {
    "layers": 28, "d_model": 4096, "n_heads": 16, "n_vocab": 50400, "norm": "layernorm",
    "pe": "rotary", "pe_rotary_dims": 64, "seq": 2048, "cores_per_replica": 8,
    "per_replica_batch": 1, "gradient_accumulation_steps": 16, "warmup_steps": 3000,
    "anneal_steps": 300000, "lr": 1.2e-4, "end_lr": 1.2e-5, "weight_decay": 0.1,
    "total_steps": 350000, "tpu_size": 256, "bucket": "neo-models", "model_dir": "6B_rotary",
    "train_set": "pile.train.index",
    "val_set": {"pile": "pile.val.index", "owt": "openwebtext2_new_inputs.val.index"},
    "eval_harness_tasks": ["lambada", "piqa"], "val_batches": 100, "val_every": 500,
    "ckpt_every": 500, "keep_every": 10000, "name": "GPT3_6B_pile_rotary",
    "wandb_project": "mesh-transformer-jax", "comment": ""}
STUDENT = {
    "layers": 12, "d_model": 512, "n_heads": 8, "rotary_dims": 16, "batch_size": 32,
    "gradient_accumulation_steps": 2, "warmup_steps": 3000, "anneal_steps": 300000, "lr": 1.2e-3,
    "end_lr": 1.2e-4, "weight_decay": 0.1, "total_steps": 350000, "bucket": "", "model_dir": "t",
    "train_set": "pile_clip.train.index", "val_set": {}, "val_batches": 100, "val_every": 250,
    "ckpt_every": 500, "keep_every": 10000, "name": "text_clip", "wandb_project": "gpt-c"}


@pytest.fixture
def run(tmp_path, capsys):
    """Converts a config; returns (the new one, loaded, what was printed)."""
    def convert_config(values, *flags):
        (tmp_path / "old.json").write_text(json.dumps(values))
        out = tmp_path / "new" / "new.json"
        status = convert.main([str(tmp_path / "old.json"), "--out", str(out), *flags])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        assert [path.name for path in out.parent.iterdir()] == ["new.json"]
        return schema.load(str(out)), printed.out
    return convert_config


def test_gpt_j(run):
    config, printed = run(GPT_J)
    assert (config.n_layer, config.n_head, config.n_embd, config.n_ctx) == (28, 16, 4096, 2048)
    assert (config.position, config.rotary_size) == ("rotary", 64)
    assert (config.mesh, config.batch_split) == ([("x", 32), ("y", 8)], 32)
    # A row at a time, 16 times, on each of 32 replicas.
    assert (config.train_batch_size, config.num_microbatches) == (512, 16)
    assert (config.warmup_steps, config.lr_decay_end, config.train_steps) == (3000, 303000, 350000)
    assert config.lr * config.lr_min_ratio == pytest.approx(1.2e-5)
    assert (config.beta2, config.epsilon, config.gradient_clipping) == (0.999, 1e-8, 1)
    assert (config.model_path, config.steps_per_checkpoint, config.eval_steps) == (
        "gs://neo-models/6B_rotary", 500, 100)
    data = config.dataset_configs["pile"]
    assert (data.path, data.eval_path) == ("data/pile.train.index", "data/pile.val.index")
    assert data.encoder == "gpt2" and config.n_vocab_padded == 50400 and not config.pad_masked
    assert config.no_weight_tie and config.precision == "bfloat16" and config.z_loss == 1e-4
    changed, lost = printed.split("not carried over:")
    assert "layers 28 → n_layer 28" in changed and "n_vocab 50400 →" not in changed
    for word in ("val_set owt", "--set inline_datasets.pile.eval_path=data/openwebtext2_new_inputs"
                 ".val.index", "eval_harness_tasks", "wandb_project: --wandb PROJECT logs"):
        assert word in lost
    assert "wrote " in lost and "GPT3_6B_pile_rotary" in config.about


def test_every_key_is_accounted_for():
    for old in (GPT_J, STUDENT):
        found = legacy_jax.convert(old)
        for key in old:
            text = "\n".join([*found.changed, *found.lost])
            assert key in text or key in found.values, key


def test_norms_and_blocks():
    found = legacy_jax.convert({**GPT_J, "norm": "rmsnorm-bias"})
    assert (found.values["norm"], found.values["parallel_residual"],
            found.values["rotary_style"]) == ("rms", True, "interleaved")
    assert any("bias" in line for line in found.lost if line.startswith("norm"))
    found = legacy_jax.convert({**GPT_J, "norm": "scalenorm"})
    assert found.values["norm"] == "scale"
    assert any(line == 'norm "scalenorm" → norm "scale"' for line in found.changed)
    assert not any(line.startswith("norm") for line in found.lost)


def test_the_student_and_gpt_c(run):
    config, printed = run(STUDENT)
    assert (config.model, config.rotary_dims, config.clip.window) == ("clip_student", 16, 75)
    assert (config.train_batch_size, config.eval_steps, config.model_path) == (64, 0, "t")
    assert config.dataset_configs["pile_clip"].encoder == "clip"
    assert "val_every 250" in printed
    config, printed = run({**GPT_J, "clip": False}, "--overwrite")  # its presence counts there
    assert (config.model, config.clip.mode, config.clip.student) == (
        "gpt_c", "input", "runs/text_clip")


@pytest.mark.parametrize("changes, wanted", [
    ({"pe": "t5"}, "the relative bias"), ({"norm": "layernorm-nobias"}, "norms without bias"),
    ({"d_head": 128}, "d_head 128: the size of a head is n_embd / n_head")])
def test_what_is_lost_is_said(run, changes, wanted):
    assert wanted in run({**GPT_J, **changes})[1].split("not carried over:")[1]


@pytest.mark.parametrize("changes, wanted", [
    ({"layrs": 1}, "layrs: no key of mesh-transformer-jax"),
    ({"norm": "batchnorm"}, 'norm: "batchnorm" is none of layernorm'),
    ({"cores_per_replica": 7}, "cores_per_replica: 7 does not divide tpu_size 256"),
    ({"per_replica_batch": "1"}, "per_replica_batch: must be a whole number"),
    ({"norm": ["rmsnorm"]}, 'norm: ["rmsnorm"] is none of'),
    ({"d_head": "256"}, 'd_head: must be a whole number, 1 or more, not "256"'),
    ({"val_set": "pile.val.index"}, "val_set: must be index files by name, not"),
    ({"n_heads": 12}, "n_head: 12 does not divide n_embd")])
def test_mistakes_leave_nothing_behind(tmp_path, capsys, changes, wanted):
    old, out = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps({**GPT_J, **changes}))
    assert convert.main([str(old), "--out", str(out)]) == 2
    error, = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {old}: ") and wanted in error
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_nothing_is_replaced_unasked(tmp_path, capsys):
    old, out = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(GPT_J))
    out.write_text("mine")
    assert convert.main([str(old), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err and out.read_text() == "mine"
    assert convert.main([str(old), "--out", str(out), "--overwrite"]) == 0
    assert schema.load(str(out)).n_layer == 28
    assert convert.main([str(old), "--out", str(tmp_path / "new.yaml")]) == 2


def test_gpt_neo_and_connorjl(run, monkeypatch):
    """What main.py reads as it is reads the same when converted, and has no notes left."""
    monkeypatch.setattr(legacy, "UNSUPPORTED", ("macaron",))
    neo = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 16, "n_vocab": 100, "lr": 1e-3,
           "train_batch_size": 8, "train_steps": 50, "model_path": "runs/x", "opt_name": "adam",
           "activation_fn": "relu", "predict_steps": 1, "rotary_emb": True, "macaron": True,
           "datasets": [["b_*.tfrecords", "", 10, "random_sample", 1.0]]}
    config, printed = run(neo)
    assert (config.activation_function, config.lr_decay, config.position) == (
        "relu", "constant", "rotary")
    assert config.datasets == [("b", 10, "documents_random", 1.0)] and config.notes == []
    assert "activation_fn → activation_function" in printed
    assert 'opt_name "adam" → "adamw"' in printed
    assert "macaron true: not supported" in printed.split("not carried over:")[1]
    config, printed = run({
        "model": "GPT2", "input": "openwebtext", "data_path": "d", "n_embd": 64, "n_layer": 2,
        "train_batch_size": 4, "train_steps": 10, "max_steps": 5000, "model_path": "m"},
        "--overwrite")
    assert (config.train_steps, config.steps_per_checkpoint, config.beta2) == (5000, 10, 0.98)
    assert "max_steps → train_steps 5000" in printed and config.notes == []


def test_a_config_that_cannot_be_read():
    with pytest.raises(UserError, match="no key of"):
        legacy_jax.convert({"d_model": 3, "x": 1})
