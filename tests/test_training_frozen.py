"""training/frozen.py: where another run's weights come from, and that they stay what they are."""

import json
import os
import shutil

import clip_runs
import jobs
import numpy as np
import pytest

import inputs
from configs import schema
from configs.errors import UserError
from mesh.compat import tf
from training import checkpoints, frozen, model_fn, objectives

GPTC = dict(model="gpt_c", train_steps=2, n_ctx=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with data and two students, of the same sizes and other weights."""
    directory = tmp_path_factory.mktemp("frozen")
    for name, seed in (("one", 0), ("other", 1)):
        clip_runs.student(directory / name, seed)
    return directory, jobs.dataset(directory)


def config_path(place, tmp_path, student="one", **keys):
    directory, data = place
    clip = {"student": str(student if os.path.isabs(student) else directory / student),
            "loss": "mse", **keys.pop("clip", {})}
    return jobs.config(tmp_path, data, **{**GPTC, "clip": clip, **keys})


def contents(directory):
    """{name: bytes} of a run's checkpoint and its descriptions."""
    found = {}
    for name in tf.io.gfile.listdir(str(directory)):
        if name.startswith("model.ckpt") or name in ("config.json", "run.json"):
            with tf.io.gfile.GFile(f"{directory}/{name}", "rb") as file:
                found[name] = file.read()
    return found


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """A run of two steps with the student `one`, whose source is gone since: its config's path."""
    directory = tmp_path_factory.mktemp("trained")
    source = directory / "source"
    shutil.copytree(place[0] / "one", source)
    path = config_path(place, directory, source, weight_decay=0.1)
    assert jobs.process(path).summary["step"] == 2
    shutil.rmtree(source)
    return path


@pytest.fixture
def run_copy(trained, tmp_path):
    """A copy of `trained` that a test may spoil: (its config's path, its directory)."""
    config = schema.load(trained)
    shutil.copytree(config.model_path, tmp_path / "run")
    with open(trained, encoding="utf-8") as file:
        values = {**json.load(file), "model_path": str(tmp_path / "run")}
    (tmp_path / "run.json").write_text(json.dumps(values))
    return str(tmp_path / "run.json"), tmp_path / "run"


def test_it_is_copied_whole_into_the_run(place, trained):
    run = schema.load(trained).model_path
    own = contents(f"{run}/student")
    assert own == contents(place[0] / "one") and len(own) == 4 + ("model.ckpt-3.meta" in own)
    assert frozen.of_run(schema.load(trained)).checkpoint == f"{run}/student/model.ckpt-3"


def test_no_checkpoint_holds_it(trained):
    """Nor a slot for it; the GPT and its head are there, with slots."""
    names = jobs.weights(schema.load(trained).model_path).keys()
    assert not [name for name in names if "clip_student" in name]
    assert {"gpt/wte", "gpt/wte/adam_m", "clip_head/last/projection/kernel",
            "clip_head/last/projection/kernel/adam_v", "global_step"} <= names


def test_it_works_after_its_source_is_gone(run_copy, capsys):
    path, directory = run_copy
    went_on = jobs.here(capsys, path, "--set", "train_steps=4")
    assert went_on.summary["step"] == 4 and "going on from step 2" in went_on.stderr
    assert 0 < jobs.here(capsys, path, "--eval").summary["eval_loss"] < 10
    # To begin anew it takes the source that the config names.
    before = contents(directory)
    refused = jobs.here(capsys, path, "--new", "--yes").error
    assert "clip.student:" in refused and "holds no run with a checkpoint" in refused
    assert contents(directory) == before


def test_new_takes_what_the_config_names(place, run_copy, capsys):
    path, directory = run_copy
    result = jobs.here(capsys, path, "--new", "--yes", "--set", f"clip.student={place[0]}/other")
    assert result.summary["step"] == 2 and "going on" not in result.stderr
    assert contents(directory / "student") == contents(place[0] / "other")
    record = checkpoints.read_record(str(directory))
    assert record.frozen == frozen.of_run(schema.load(path)).hash


def test_another_student_is_refused_on_resume(place, run_copy, capsys):
    """Where its own copy was replaced, and where that is gone and the config names another."""
    path, directory = run_copy
    before = contents(directory)
    shutil.rmtree(directory / "student")
    shutil.copytree(place[0] / "other", directory / "student")
    refused = jobs.here(capsys, path, "--set", "train_steps=4").error
    assert f"{directory}/student: its weights (hash " in refused
    assert f"not those that {directory} was trained with" in refused
    assert "hash" in jobs.here(capsys, path, "--eval").error
    shutil.rmtree(directory / "student")
    refused = jobs.here(capsys, path, "--set", "train_steps=4", "--set",
                        f"clip.student={place[0]}/other").error
    assert f"{place[0]}/other: its weights (hash " in refused
    assert contents(directory) == before and not (directory / "student").exists()
    # The same one is taken, wherever it lies.
    assert jobs.here(capsys, path, "--set", "train_steps=4", "--set",
                     f"clip.student={place[0]}/one").summary["step"] == 4
    assert contents(directory / "student") == contents(place[0] / "one")


def test_an_own_copy_counts_only_once_the_run_has_begun(place, tmp_path):
    """What a run left that was stopped before its first checkpoint does not hide the config's."""
    config = schema.load(config_path(place, tmp_path))
    frozen.adopt(config, frozen.of_run(config))
    changed = config.replace(clip={"student": str(place[0] / "other")})
    taken = frozen.of_run(changed)
    assert os.path.dirname(taken.checkpoint) == str(place[0] / "other")
    frozen.adopt(changed, taken)
    assert contents(tmp_path / "run" / "student") == contents(place[0] / "other")


@pytest.mark.parametrize("where", ["local", "ram"])
def test_adopting(place, tmp_path, where, monkeypatch):
    """Copies once, reads from the copy, and leaves the optimizer's slots out of the hash."""
    base = {"local": str(tmp_path), "ram": f"ram://{tmp_path.name}"}[where]
    source = f"{base}/source"
    tf.io.gfile.makedirs(source)
    for name in tf.io.gfile.listdir(str(place[0] / "one")):
        tf.io.gfile.copy(str(place[0] / "one" / name), f"{source}/{name}")
    config = schema.load(config_path(place, tmp_path)).replace(
        model_path=f"{base}/run", clip={"student": source})
    taken = frozen.of_run(config)
    assert taken.checkpoint == f"{source}/model.ckpt-3"
    frozen.adopt(config, taken)
    assert taken.checkpoint == f"{base}/run/student/model.ckpt-3"
    assert contents(f"{base}/run/student") == contents(source)

    monkeypatch.setattr(tf.io.gfile, "copy", None)
    frozen.adopt(config, taken)
    # The run's own comes first as soon as it has a checkpoint of its own.
    checkpoints.write_text(f"{base}/run/checkpoint", 'model_checkpoint_path: "model.ckpt-1"\n')
    checkpoints.write_text(f"{base}/run/model.ckpt-1.index", "")
    own = frozen.of_run(config)
    assert own.checkpoint == taken.checkpoint and own.hash == taken.hash
    frozen.adopt(config, own)
    assert frozen.of_run(config, new=True).checkpoint == f"{source}/model.ckpt-3"


def test_a_copy_that_was_cut_short_begins_anew(place, tmp_path, monkeypatch):
    config = schema.load(config_path(place, tmp_path))
    copy, done = tf.io.gfile.copy, []

    def fail_later(*args, **keys):
        if len(done) == 2:
            raise tf.errors.ResourceExhaustedError(None, None, "no space left")
        done.append(copy(*args, **keys))

    monkeypatch.setattr(tf.io.gfile, "copy", fail_later)
    with pytest.raises(UserError, match=r"run/student cannot be written \(no space left\)"):
        frozen.adopt(config, frozen.of_run(config))
    monkeypatch.undo()
    assert checkpoints.latest(str(tmp_path / "run" / "student")) is None
    frozen.adopt(config, frozen.of_run(config))
    assert contents(tmp_path / "run" / "student") == contents(place[0] / "one")


def test_the_hash_is_of_the_weights_alone(place, tmp_path):
    """Neither of slots, nor of the step; and of every weight, its name and its shape."""
    config = clip_runs.student_config(tmp_path / "x")
    _, weights = clip_runs.student(tmp_path / "a")
    changed = {"clip_student/projection/bias": weights["clip_student/projection/bias"] + 1e-3}
    renamed = {"clip_student/projection/bia": weights["clip_student/projection/bias"]}
    hashes = []
    for number, (changes, step) in enumerate([({}, 3), ({}, 9), (changed, 3), (renamed, 3), (
            {"clip_student/wte/adam_v": weights["clip_student/wte"]}, 3)]):
        path = str(tmp_path / str(number))
        kept = dict(weights)
        if changes is renamed:
            del kept["clip_student/projection/bias"]
        clip_runs.save(config.replace(model_path=path), {**kept, **changes}, step,
                       clip_runs.BYTES)
        hashes.append(frozen._hash(tf.train.latest_checkpoint(path), "clip_student"))
    assert hashes[0] == hashes[1] == hashes[4] and len(set(hashes[1:4])) == 3
    assert len(hashes[0]) == 16 and int(hashes[0], 16)


def test_training_does_not_change_it(place, tmp_path, monkeypatch):
    """Its masters and its slices are the same after steps that change the GPT."""
    config = schema.load(config_path(place, tmp_path, clip={"weight": 1.0, "student": str(
        place[0] / "one")}))
    facts = inputs.dataset_facts(config, "train")
    taken = frozen.of_run(config)
    lower, kept = model_fn.lower, []
    monkeypatch.setattr(model_fn, "lower", lambda *args: kept.append(lower(*args)) or kept[0])
    tokens = np.random.RandomState(0).randint(0, 257, [8, 9]).astype(np.int32)
    with tf.Graph().as_default():
        tf.train.create_global_step()
        features = {"tokens": tf.constant(tokens), "valid": tf.fill([8], 8)}
        spec = model_fn.model_fn(features, tf.estimator.ModeKeys.TRAIN, {}, config,
                                 objectives.of_run(config, facts, taken), clip_runs.METER)
        lowering, = kept
        variables = {v.name: v for v in lowering.variables}
        pieces = {name: lowering.variables[v].laid_out_tensor.all_slices[0]
                  for name, v in variables.items()}
        masters = {name: v.get_master() for name, v in variables.items()}
        with tf.Session() as session:
            session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
            session.run(lowering.copy_masters_to_slices())
            before = session.run([pieces, masters])
            for _ in range(2):
                session.run(spec.train_op)
            session.run(lowering.copy_slices_to_masters())
            after = session.run([pieces, masters])
    student = [name for name in variables if name.startswith("clip_student/")]
    assert len(student) > 20 and not [name for name in student if "adam_" in name]
    source = jobs.weights(place[0] / "one")
    for one, other in zip(before, after, strict=True):
        for name in student:
            np.testing.assert_array_equal(one[name], source[name])
            assert one[name].tobytes() == other[name].tobytes(), name
        assert (one["gpt/wte"] != other["gpt/wte"]).any()


def refusal(place, tmp_path, capsys, student, *flags, **keys):
    """The line with which a run refuses, having made nothing."""
    path = config_path(place, tmp_path, student, **keys)
    line = jobs.here(capsys, path, *flags).error
    assert not (tmp_path / "run").exists()
    return line


def test_what_is_no_student(place, trained, tmp_path, capsys):
    """Nothing there, no checkpoint, another kind of run, no record."""
    line = refusal(place, tmp_path, capsys, "absent")
    assert line.endswith(f"clip.student: {place[0]}/absent holds no run with a checkpoint; train a "
                         "model of kind clip_student there first, or give another directory")
    empty = tmp_path / "empty"
    shutil.copytree(place[0] / "one", empty)
    os.remove(empty / "checkpoint")
    for file in empty.glob("model.ckpt-*"):
        os.remove(file)
    assert "holds no run with a checkpoint" in refusal(place, tmp_path, capsys, empty)
    gpt = schema.load(trained).model_path
    assert f"clip.student: {gpt} is a run of model gpt_c, not clip_student" in refusal(
        place, tmp_path, capsys, gpt)
    shutil.copytree(place[0] / "one", tmp_path / "bare")
    os.remove(tmp_path / "bare" / "run.json")
    assert f"clip.student: {tmp_path}/bare has no run.json" in refusal(
        place, tmp_path, capsys, tmp_path / "bare")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(place, tmp_path, capsys):
    path = tmp_path / "both"
    shutil.copytree(place[0] / "one", path)
    newest, = path.glob("model.ckpt-*.index")
    stem = newest.name.removesuffix(".index")
    step = int(stem.rpartition("-")[2])
    for file in path.glob(f"{stem}.*"):
        shutil.copy(file, path / file.name.replace(stem, f"model.ckpt-{step + 1}"))
    damaged = path / f"model.ckpt-{step + 1}.data-00000-of-00001"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (path / "checkpoint").write_text(f'model_checkpoint_path: "model.ckpt-{step + 1}"\n')
    config = schema.load(config_path(place, tmp_path, path))
    assert frozen.of_run(config).checkpoint == str(path / stem)
    for file in path.glob("*.data-*"):
        file.write_bytes(b"")
    assert f"in {path} is whole; copy" in refusal(place, tmp_path, capsys, path)


def test_weights_that_do_not_fit_their_own_config(place, tmp_path, capsys):
    """rotary_dims is in no weight's shape."""
    shutil.copytree(place[0] / "one", tmp_path / "odd")
    changed = clip_runs.student_config(tmp_path / "odd", rotary_dims=8)
    (tmp_path / "odd" / "config.json").write_text(changed.to_json())
    line = refusal(place, tmp_path, capsys, tmp_path / "odd")
    assert f"{tmp_path}/odd: its weights have rotary_size = 4, the config 8" in line


def test_another_encoder_or_more_ids(place, tmp_path, capsys):
    clip_runs.student(tmp_path / "foreign", encoder={**clip_runs.BYTES, "spec": "gpt2",
                                                     "hash": "0123456789abcdef"})
    line = refusal(place, tmp_path, capsys, tmp_path / "foreign")
    assert "clip.student: reads ids of encoder gpt2 (hash 0123456789abcdef), but the data were " \
           f"made with byte (hash {clip_runs.BYTES['hash']})" in line
    clip_runs.student(tmp_path / "small", encoder={"spec": None, "hash": None}, n_vocab=250)
    line = refusal(place, tmp_path, capsys, tmp_path / "small")
    assert "clip.student: reads 250 ids, but the data have 257" in line


def test_a_layout_that_its_sizes_cannot_follow(place, tmp_path, capsys):
    line = refusal(place, tmp_path, capsys, "one", mesh_shape="x:4", layout="clip_heads:x")
    assert "layout: clip_heads:x splits n_head = 2 of clip.student over x:4" in line


def test_other_kinds_need_none(place, tmp_path):
    assert frozen.of_run(schema.load(jobs.config(tmp_path, place[1]))) is None
