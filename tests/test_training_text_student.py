"""training/text_student.py: its loss against numpy, and a GPT-C that it supervises."""

import clip_runs
import jobs
import numpy as np
import pytest
import scalar_names

import inputs
from configs import schema
from configs.errors import UserError
from training import embedder, frozen, objectives

OUT, N_CTX = 12, 16
KEYS = dict(model="clip_student", n_layer=2, n_head=2, position="rotary", rotary_dims=4,
            n_ctx=N_CTX, activation_function="quick_gelu", train_batch_size=4, eval_batch_size=4)
CLIP = {"control": "text_only", "out": OUT, "window": 6}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text_student")
    return directory, jobs.dataset(directory)


def config_path(place, directory=None, **keys):
    return jobs.config(directory or place[0], place[1], **{
        **KEYS, **keys, "clip": {**CLIP, **keys.get("clip", {})}})


def objective(place, **keys):
    config = schema.load(config_path(place, **keys))
    assert frozen.of_run(config) is None
    return objectives.of_run(config, inputs.dataset_facts(config, "train"))


def cross_entropy(outputs, tokens, weights, n_valid=257):
    """−log p of each next token, float64 [rows, n_ctx], from the student's outputs."""
    head = {name.rpartition("/")[2]: value.astype(np.float64) for name, value in weights.items()
            if name.startswith("text_head/")}
    scores = (outputs @ head["kernel"] + head["bias"]) @ weights["clip_student/wte"].T[:, :n_valid]
    scores -= scores.max(-1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, tokens[:, 1:, None], -1)[..., 0]


def test_terms_and_report_equal_numpy(place):
    """The third row is cut short, the fourth fills the batch up."""
    made, valid = objective(place), [N_CTX, N_CTX, 5, 0]
    tokens = np.random.RandomState(0).randint(0, 257, [4, N_CTX + 1])
    fresh = clip_runs.run_objective(made, tokens).weights
    np.testing.assert_array_equal(fresh["clip_student/target_mean"], np.zeros(OUT))
    np.testing.assert_array_equal(fresh["clip_student/target_deviation"], np.ones(OUT))
    weights = clip_runs.shaken({name: value.shape for name, value in fresh.items()
                                if "target_" not in name})
    found = clip_runs.run_objective(made, tokens, valid, weights=weights, train=True)
    student = {name: value for name, value in weights.items() if name.startswith("clip_student/")}
    outputs = clip_runs.said(made.config, tokens[:, :-1], student)["y"].astype(np.float64)
    counted = np.arange(N_CTX) < np.array(valid)[:, None]
    losses = cross_entropy(outputs, tokens, weights)[counted]
    said = outputs[counted]
    off = (said.mean(0) ** 2 + (said.var(0) - 1) ** 2).mean()
    assert found.counts == {"lm": counted.sum(), "moments": counted.sum()}
    assert found.values["lm"] == pytest.approx(losses.sum(), rel=1e-4)
    assert found.values["moments"] == pytest.approx(off * counted.sum(), rel=1e-4)
    assert found.gradients.keys() == weights.keys()
    scored = clip_runs.run_objective(made, tokens, valid, weights=weights)
    report = made.report(scored.means(), inputs.dataset_facts(made.config, "validation"))
    assert next(iter(report)) == "eval_loss"
    assert report["eval_loss"] == report["loss/lm"] == pytest.approx(losses.mean(), rel=1e-4)
    assert report["loss/moments"] == pytest.approx(off, rel=1e-4)
    assert report["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-3)


def test_layouts_give_the_losses_of_one_device(place):
    """Splits the batch, the width of the outputs and the vocabulary."""
    tokens = np.random.RandomState(0).randint(0, 257, [4, N_CTX + 1])
    one = objective(place)
    weights = clip_runs.shaken({name: value.shape for name, value in clip_runs.run_objective(
        one, tokens).weights.items() if "target_" not in name})
    wanted = clip_runs.run_objective(one, tokens, weights=weights, train=True)
    for mesh, layout in (("x:2,y:2", "batch:x,clip_out:y"), ("x:2,y:2", "batch:x,clip_vocab:y")):
        found = clip_runs.run_objective(objective(place, mesh_shape=mesh, layout=layout), tokens,
                                        weights=weights, train=True)
        for name, value in wanted.values.items():
            assert found.values[name] == pytest.approx(value, rel=1e-4), (layout, name)
        for name, value in wanted.gradients.items():
            np.testing.assert_allclose(found.gradients[name], value, rtol=2e-3,
                                       atol=2e-4 * np.abs(value).max(), err_msg=name)


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """A run of 60 steps: (its config's path, its summary)."""
    path = config_path(place, tmp_path_factory.mktemp("run"), train_steps=60, eval_steps=2,
                       n_embd=32)
    return path, jobs.process(path).summary


def test_it_trains_without_a_teacher_to_outputs_of_mean_0_and_variance_1(trained):
    path, summary = trained
    line, = jobs.metrics(summary["model_path"])
    scalar_names.check("text_student", summary["model_path"])
    assert line["eval_loss"] < 4 < np.log(257)
    assert line["loss/moments"] < 0.15
    assert not {"r2_windows", "probe/correlation", "retrieval"} & line.keys()
    # The config that it wrote is one that it takes, with neither teacher nor windows.
    config = schema.load(f"{summary['model_path']}/config.json")
    assert config.text_only and config.clip_out == OUT
    assert config.clip.model_fields_set == {"control", "out", "window"}
    made = embedder.Embedder(config)
    assert made.texts(["abc"]).shape == (1, OUT)
    made.close()


@pytest.mark.parametrize("mode", ["loss", "input"])
def test_a_gpt_c_takes_it_without_its_head(place, trained, tmp_path, capsys, mode):
    student = trained[1]["model_path"]
    assert "text_head/projection/kernel" in jobs.weights(student)
    path = jobs.config(tmp_path, place[1], model="gpt_c", train_steps=2, n_ctx=8, eval_steps=1,
                       clip={"student": student, "mode": mode})
    assert jobs.here(capsys, path).summary["step"] == 2
    scalar_names.check("gpt_c" if mode == "loss" else "gpt_c input", str(tmp_path / "run"))
    taken = frozen.of_run(schema.load(path))
    assert taken.checkpoint.startswith(str(tmp_path / "run" / "student"))
    own = jobs.weights(str(tmp_path / "run"))
    assert not [name for name in own if name.startswith(("text_head", "clip_student"))]


@pytest.mark.parametrize("keys, said", [
    ({**CLIP, "teacher": "runs/clip"}, 'clip.teacher: a student with clip.control "text_only" '
                                       "learns from texts alone and has none of it; remove it"),
    ({**CLIP, "positions": 3}, "clip.positions: a student with"),
    ({**CLIP, "probe_words": ["a", "b", "c"]}, "clip.probe_words: a student with"),
    ({"control": "shuffled"}, "clip.control: \"shuffled\" is for model gpt_c"),
    ({**CLIP, "window": 17}, "n_ctx: 16 is less than clip.window = 17"),
    ({**CLIP, "control": "none"}, "clip.out: belongs to model clip, not clip_student; remove it")])
def test_what_contradicts_it(place, keys, said):
    with pytest.raises(UserError) as refused:
        schema.load(jobs.config(*place, **{**KEYS, "clip": keys}))
    assert said in str(refused.value)


def test_a_gpt_c_is_no_student_of_texts(place, tmp_path):
    path = jobs.config(tmp_path, place[1], model="gpt_c",
                       clip={"student": "x", "control": "text_only"})
    with pytest.raises(UserError, match='clip.control: "text_only" is for model clip_student'):
        schema.load(path)


def test_a_layout_has_to_divide_its_outputs(place):
    with pytest.raises(UserError, match="layout: clip_out:x splits clip.out = 12 over x:8"):
        schema.load(config_path(place, mesh_shape="x:8", layout="clip_out:x"))
