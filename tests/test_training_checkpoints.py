"""What a run keeps beside its weights: positions in the data, and what fits what."""

import json

import jobs
import pytest

import encoders
from configs import schema
from configs.errors import UserError
from mesh.compat import tf
from training import checkpoints, keeping

DATA = {"n_ctx": 8, "seed": 1, "datasets": []}


def record(**changes):
    values = {"architecture": {}, "encoder": {}, "legs": [], **changes}
    return checkpoints.RunRecord(**values)


@pytest.fixture
def config(tmp_path):
    return schema.load(jobs.config(tmp_path, jobs.dataset(tmp_path)))


def test_windows_add_up_over_changes_of_the_batch_size():
    run = record()
    assert run.begin_leg(0, 8, DATA) is None
    assert run.begin_leg(100, 8, DATA) is None
    assert [run.start_window(step) for step in (0, 1, 100)] == [0, 8, 800]
    assert "train_batch_size was 8 and is 3" in run.begin_leg(100, 3, DATA)
    assert [run.start_window(step) for step in (99, 100, 110)] == [792, 800, 830]
    assert "window 830" in run.begin_leg(110, 5, DATA)
    assert run.start_window(112) == 840


def test_a_leg_after_the_checkpoint_never_happened():
    """Killed before the first checkpoint with the new batch size: it is counted as it was."""
    run = record()
    run.begin_leg(0, 8, DATA)
    run.begin_leg(100, 3, DATA)
    assert run.begin_leg(60, 8, DATA) is None
    assert run.start_window(120) == 960


def test_other_data_start_from_their_beginning():
    run = record()
    run.begin_leg(0, 8, DATA)
    assert "from their beginning" in run.begin_leg(10, 8, {**DATA, "seed": 2})
    assert [run.start_window(step) for step in (9, 10, 12)] == [72, 0, 16]


def test_a_record_is_read_as_written(tmp_path):
    run = record(architecture={"n_layer": 1}, encoder={"spec": "byte"})
    run.begin_leg(0, 8, DATA)
    checkpoints.write_record(str(tmp_path), run)
    assert checkpoints.read_record(str(tmp_path)) == run
    assert checkpoints.read_record(str(tmp_path / "none")) is None


@pytest.mark.parametrize("spec", ["gpt2:{}/encoder", "{}/encoder/tokenizer.json#EOS"])
def test_an_encoder_in_a_run_moves_with_it(tmp_path, spec):
    old, new = (str(tmp_path / name) for name in ("old", "new"))
    tf.io.gfile.makedirs(old)
    checkpoints.write_record(old + "/", record(encoder={"spec": spec.format(old), "hash": "7"}))
    tf.io.gfile.rename(old, new)
    assert checkpoints.read_record(new).encoder == {"spec": spec.format(new), "hash": "7"}


@pytest.mark.parametrize("spec", ["gpt2:/other/encoder", "other/runs/a/x.json", "byte", None])
def test_an_encoder_elsewhere_stays_there(tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tf.io.gfile.makedirs("runs/a")
    checkpoints.write_record("runs/a", record(encoder={"spec": spec}))
    assert checkpoints.read_record("runs/a").encoder == {"spec": spec}
    assert "model_path" not in (tmp_path / "runs/a/run.json").read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"architecture": {}}', '{"layers": 3}',
                                  '{"architecture": {}, "encoder": [], "legs": []}'])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: damaged .*--new"):
        checkpoints.read_record(str(tmp_path))


def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    checkpoints.write_text(str(path), "old")

    def crash(*args, **kwargs):
        raise OSError("the machine went off")

    monkeypatch.setattr(tf.io.gfile, "rename", crash)
    with pytest.raises(OSError):
        checkpoints.write_text(str(path), "new")
    assert path.read_text() == "old"


def test_a_directory_is_a_run_once_it_has_a_record_or_weights(tmp_path):
    assert not checkpoints.is_run(str(tmp_path / "none"))
    (tmp_path / "notes.txt").write_text("mine")
    assert not checkpoints.is_run(str(tmp_path))
    checkpoints.write_record(str(tmp_path), record())
    assert checkpoints.is_run(str(tmp_path))


def test_newest_checkpoint(tmp_path, config):
    assert checkpoints.latest(str(tmp_path)) is None
    with pytest.raises(UserError, match="no checkpoint there; train first"):
        checkpoints.require_latest(config)
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.get_variable("w", []).initializer)
        saver = tf.train.Saver()
        for step in (9, 10):
            saver.save(session, f"{tmp_path}/model.ckpt", step)
    assert checkpoints.latest(str(tmp_path)) == f"{tmp_path}/model.ckpt-10"
    assert keeping.step_of(checkpoints.latest(str(tmp_path))) == 10


@pytest.mark.parametrize("key, value", [
    ("n_layer", 2), ("n_embd", 32), ("n_head", 2), ("n_ctx", 4), ("n_vocab", 300),
    ("position", "rotary"), ("activation_function", "relu"), ("no_weight_tie", True),
    ("layer_norm_epsilon", 1e-6), ("norm", "rms"), ("mlp_glu", True), ("intermediate_size", 7),
    ("pad_vocab_multiple", 128), ("num_mem_kv", 2)])
def test_each_changed_part_of_the_architecture_is_named(config, key, value):
    run = record(architecture=json.loads(json.dumps(config.architecture())))
    checkpoints.check_fits(config, run)
    with pytest.raises(UserError) as error:
        checkpoints.check_fits(config.replace(attention_types=None, **{key: value}), run)
    named = "n_vocab_padded" if key == "pad_vocab_multiple" else key
    assert f"have {named} = {json.dumps(run.architecture[named])}, the config" in str(error.value)
    assert "\n" not in str(error.value) and config.model_path in str(error.value)


def test_memories_that_the_config_has_not_are_named_and_old_records_have_none(config):
    config = config.replace(num_mem_kv=2)
    run = record(architecture=config.architecture())
    with pytest.raises(UserError, match="have num_mem_kv = 2, the config 0"):
        checkpoints.check_fits(config.replace(num_mem_kv=0), run)
    del run.architecture["num_mem_kv"]
    checkpoints.check_fits(config.replace(num_mem_kv=0), run)
    with pytest.raises(UserError, match="have num_mem_kv = 0, the config 2"):
        checkpoints.check_fits(config, run)


def test_a_record_from_before_a_key_has_its_default(config):
    older = {key: value for key, value in json.loads(json.dumps(config.architecture())).items()
             if key not in ("norm", "rezero", "intermediate_size")}
    checkpoints.check_fits(config, record(architecture=older))
    with pytest.raises(UserError, match='have norm = "layer", the config "rms"'):
        checkpoints.check_fits(config.replace(norm="rms"), record(architecture=older))


@pytest.mark.parametrize("key, value", [
    ("lr", 1.0), ("train_batch_size", 4), ("res_dropout", 0.5), ("precision", "bfloat16"),
    ("mesh_shape", "x:2"), ("recompute_grad", True), ("seed", 7)])
def test_what_is_no_part_of_the_weights_may_change(config, key, value):
    run = record(architecture=json.loads(json.dumps(config.architecture())))
    checkpoints.check_fits(config.replace(**{key: value}), run)


def test_encoder_of_a_run(config, tmp_path):
    assert checkpoints.encoder_of(config).spec == "byte"  # the dataset's: there is no run yet
    facts = {"spec": "byte", "hash": encoders.load("byte").hash, "n_vocab": 257, "eos_id": 256}
    tf.io.gfile.makedirs(config.model_path)
    checkpoints.write_record(config.model_path, record(encoder=facts))
    assert checkpoints.encoder_of(config).name == "byte"
    checkpoints.write_record(config.model_path, record(encoder={**facts, "hash": "0" * 16}))
    with pytest.raises(UserError, match="trained with 0000000000000000"):
        checkpoints.encoder_of(config)
