"""CLIP's kinds of runs on meshes, in microbatches, stopped and gone on with: the same losses."""

import shutil
import signal

import clip_runs
import graphs
import jobs
import numpy as np
import picture_shards
import pytest

from configs import schema
from training import distillation, keeping, run

STEPS = 20
TOWER = dict(n_layer=1, n_head=4, n_embd=16, activation_function="quick_gelu")
STUDENT = dict(model="clip_student", position="rotary", rotary_dims=4, n_ctx=16, **TOWER)
STUDENT_CLIP = {"window": 6, "windows": 2, "positions": 3}
GPTC = dict(model="gpt_c", n_ctx=16, position="rotary", **jobs.DROPOUT)
MICROBATCHES = dict(tokens_per_mb_per_replica=32)  # two rows of 16 tokens
GPT_AND_STUDENT = ("batch:x,heads:y,vocab:y,intermediate_expanded:y,clip_heads:y,"
                   "clip_intermediate:y")

# name: (kind, mesh_shape, layout, more keys, the run on one device that it has to equal)
MESHES = {
    "student, heads": ("student", "x:2,y:2", "clip_heads:y,clip_intermediate:y,batch:x", {},
                       "student"),
    "student, width": ("student", "x:2", "clip_embd:x", {}, "student"),
    "student, vocabulary and outputs": (
        "student", "x:2,y:2", "clip_vocab:x,clip_out:y", dict(recompute_grad=True), "student"),
    # Dropout is off: microbatches of the rows with their windows and texts are the whole batch.
    "student, microbatches": (
        "student", "x:2,y:2", "batch:x,clip_heads:y,clip_vocab:y,clip_out:y", MICROBATCHES,
        "student"),
    "gpt_c": ("gpt_c", "x:2,y:2", GPT_AND_STUDENT, {}, "gpt_c"),
    "gpt_c, mse": ("gpt_c", "x:2,y:2", GPT_AND_STUDENT, dict(clip={"loss": "mse"}), "gpt_c, mse"),
    "gpt_c, microbatches": (
        "gpt_c", "x:2,y:2", GPT_AND_STUDENT, dict(recompute_grad=True, **MICROBATCHES),
        "gpt_c, two microbatches"),
    "gpt_c, positions": (
        "gpt_c", "x:2,y:2", "batch:x,sequence:y",
        dict(clip={"loss": "relational", "layer": ["last", 1], "target": 2}), "gpt_c, relational"),
    "gpt_c, input": ("gpt_c", "x:2,y:2", GPT_AND_STUDENT + ",clip_vocab:y,clip_out:y",
                     dict(clip={"mode": "input"}), "gpt_c, input"),
}
REFERENCES = {
    "student": ("student", {}), "gpt_c": ("gpt_c", {}),
    "gpt_c, mse": ("gpt_c", dict(clip={"loss": "mse"})),
    "gpt_c, two microbatches": ("gpt_c", dict(tokens_per_mb_per_replica=64)),
    "gpt_c, relational": ("gpt_c", dict(clip={"loss": "relational", "layer": ["last", 1],
                                              "target": 2})),
    "gpt_c, input": ("gpt_c", dict(clip={"mode": "input"})),
}

# The first slice of some weights, written down by hand.
SLICES = {
    "student, heads": {"clip_student/h0/attn/qkv/kernel": [16, 3, 2, 4],
                       "clip_student/h0/mlp/in/kernel": [16, 32],
                       "clip_text/h0/mlp/in/kernel": [16, 32], "clip_student/wte": [264, 16],
                       "clip_student/h0/mlp/in/kernel/adam_v": [16, 32]},
    "student, width": {"clip_student/wte": [264, 8], "clip_text/wpe": [10, 8],
                       "clip_student/projection/kernel": [8, 12]},
    "student, vocabulary and outputs": {
        "clip_student/wte": [132, 16], "clip_text/wte": [192, 16], "clip_text/projection": [16, 6],
        "clip_student/target_mean": [6]},
    "gpt_c": {"gpt/wte": [132, 16], "clip_student/h0/attn/qkv/kernel": [16, 3, 2, 4],
              "clip_head/last/projection/kernel": [16, 12], "clip_student/wte": [264, 16]},
    "gpt_c, input": {"clip_student/wte": [132, 16], "gpt/clip_input/projection/kernel": [6, 16]},
}


class Runner:
    """Trains, and keeps the loss curves and how the graphs were lowered."""

    def __init__(self, directory, monkeypatch):
        self.directory, self._data, self._curves = directory, jobs.dataset(directory), {}
        self.lowered = {}
        self._name = None
        monkeypatch.setattr(distillation, "_MEASURED", 1000)
        student, _ = clip_runs.student(directory / "student", n_layer=1, n_head=4)
        self.sources = {"student": {"teacher": clip_runs.teacher(directory, 259, heads=4)},
                        "gpt_c": {"student": student}}

        def note(mesh, lowering):
            self.lowered[self._name] = jobs.slice_shapes(mesh, lowering)

        jobs.watch_lowerings(monkeypatch, note)

    def config(self, name, kind, **keys):
        """The path of a run's config."""
        base, own = {"student": (STUDENT, STUDENT_CLIP), "gpt_c": (GPTC, {"weight": 0.5})}[kind]
        clip = keys.pop("clip", {})
        if clip.get("mode") != "input":  # which has no supervision that would weigh
            clip = {**own, **clip}
        clip = {**self.sources[kind], **clip}
        return jobs.config(self.directory, self._data, name=name.replace(" ", "_"), **{
            **base, "train_steps": STEPS, "clip": clip, **keys})

    def losses(self, name, kind, **keys):
        """The loss of each step of a run; runs of the same name are the same run."""
        if name not in self._curves:
            self._name = name
            config = schema.load(self.config(name, kind, **keys))
            run.train(config)
            self._curves[name] = jobs.scalars(config.model_path)
        return np.array(list(self._curves[name]["loss"].values()))


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Runner(tmp_path_factory.mktemp("clip"), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_loss_curve_equals_one_devices(runner, name):
    kind, mesh_shape, layout, keys, reference = MESHES[name]
    wanted = runner.losses(f"one device, {reference}", REFERENCES[reference][0],
                           **REFERENCES[reference][1])
    found = runner.losses(name, kind, mesh_shape=mesh_shape, layout=layout, **keys)
    assert len(found) == STEPS and found[-3:].mean() < found[0] - 0.05, "nothing was learnt"
    np.testing.assert_allclose(found, wanted, atol=1e-4)

    devices = int(np.prod([int(axis.split(":")[1]) for axis in mesh_shape.split(",")]))
    for variable, slices in runner.lowered[name].values():
        dims = graphs.slice_shape(variable.shape.dims, mesh_shape, layout)
        assert slices == [dims] * devices, variable.name
    for variable, dims in SLICES.get(name, {}).items():
        assert runner.lowered[name][variable][1][0] == dims, variable


@pytest.mark.slow
def test_microbatches_of_mse_change_nothing_but_negatives(runner):
    """A loss by position adds up over microbatches; a contrastive one has fewer candidates."""
    off = dict.fromkeys(jobs.DROPOUT, 0.0)
    for loss in ("mse", "contrastive"):
        keys = dict(clip={"loss": loss}, train_steps=5, **off)
        whole = runner.losses(f"no dropout, {loss}", "gpt_c", **keys)
        parts = runner.losses(f"no dropout, {loss}, microbatches", "gpt_c", **keys, **MICROBATCHES)
        difference = abs(whole - parts).max()
        assert difference < 1e-4 if loss == "mse" else difference > 1e-2


@pytest.mark.slow
def test_bfloat16_is_near(runner):
    mesh = dict(zip(("mesh_shape", "layout"), MESHES["gpt_c"][1:3], strict=True))
    one = runner.losses("gpt_c, bfloat16", "gpt_c", precision="bfloat16")
    many = runner.losses("gpt_c, bfloat16 on a mesh", "gpt_c", precision="bfloat16", **mesh)
    plain = runner.losses("one device, gpt_c", "gpt_c")
    assert 0 < abs(one - plain).max() < 0.15
    np.testing.assert_allclose(many, one, atol=0.1)


def pictures(directory):
    """A dataset of 24 pictures: the path of its JSON."""
    picture_shards.encode(directory, "--input", picture_shards.inputs_of(directory, [24]))
    return str(directory / "p.json")


def keys_of(kind, directory):
    """(dataset, keys) of a run of a kind."""
    if kind == "clip":
        return pictures(directory), dict(
            model="clip", n_ctx=10, **TOWER, clip={
                "image_size": picture_shards.SIZE, "image_channels": [8, 16], "out": 12})
    if kind == "clip_student":
        teacher = clip_runs.teacher(directory, 259)
        return jobs.dataset(directory), {**STUDENT, "clip": {**STUDENT_CLIP, "teacher": teacher}}
    student, _ = clip_runs.student(directory / "student")
    mode = {"mode": "input"} if kind == "gpt_c, input" else {"layer": [1, "last"],
                                                            "weight_warmup": 3, "weight_end": 8}
    return jobs.dataset(directory), {**GPTC, "clip": {"student": student, **mode}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "clip_student", "gpt_c", "gpt_c, input"])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path, capsys, kind, monkeypatch):
    """One run straight; one that stopped at a checkpoint, and the graph was built anew.

    Then that checkpoint goes on on two devices, within float error.
    """
    monkeypatch.setattr(distillation, "_MEASURED", 1000)
    data, keys = keys_of(kind, tmp_path)
    keys |= {"train_steps": 8, "weight_decay": 0.1}
    straight = jobs.config(tmp_path, data, name="straight", **keys)
    stopped = jobs.config(tmp_path, data, name="stopped", steps_per_checkpoint=5, **keys)
    for path in (straight, stopped):
        assert jobs.here(capsys, path).summary["step"] == 8
    assert jobs.steps(tmp_path / "stopped") == [5, 8]
    weights = jobs.weights(tmp_path / "straight")
    jobs.assert_same_bits(weights, jobs.weights(tmp_path / "stopped"))
    assert jobs.losses(tmp_path / "straight").tobytes() == jobs.losses(
        tmp_path / "stopped").tobytes()
    start = jobs.weights(tmp_path / "stopped", 5)
    still = {name for name, value in weights.items() if (start[name] == value).all()}
    assert still == ({"clip_student/target_mean", "clip_student/target_deviation"}
                     if kind == "clip_student" else set())
    shutil.copytree(tmp_path / "stopped", tmp_path / "moved")
    keeping.name_newest(str(tmp_path / "moved"), f"{tmp_path}/moved/model.ckpt-5")
    moved = jobs.config(tmp_path, data, name="moved", mesh_shape="x:2", layout="batch:x", **keys)
    assert "going on from step 5" in jobs.here(capsys, moved).stderr
    np.testing.assert_allclose(jobs.losses(tmp_path / "moved"), jobs.losses(tmp_path / "straight"),
                               atol=1e-4)


@pytest.mark.slow
def test_a_killed_student_goes_on_to_the_bit(tmp_path):
    """In processes of their own; its statistics are measured once, and kept with its weights."""
    data, keys = keys_of("clip_student", tmp_path)
    keys |= {"train_steps": 30}
    straight = jobs.config(tmp_path, data, name="straight", **keys)
    broken = jobs.config(tmp_path, data, name="broken", steps_per_checkpoint=10, **keys)
    killed = jobs.start(broken, hash_seed=1)
    jobs.wait_for(killed, "step 15/30")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert jobs.steps(tmp_path / "broken") == [10]
    resumed = jobs.process(broken, hash_seed=2)
    assert "going on from step 10" in resumed.stderr
    assert "teacher's embeddings: mean of length" not in resumed.stderr
    assert "teacher's embeddings: mean of length" in jobs.process(straight, hash_seed=3).stderr
    jobs.assert_same_bits(jobs.weights(tmp_path / "straight"), jobs.weights(tmp_path / "broken"))
