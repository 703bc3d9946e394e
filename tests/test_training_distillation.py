"""training/distillation.py: targets against transformers, statistics, scores against numpy."""

import clip_runs
import jobs
import numpy as np
import pytest
import shard_files

import inputs
from configs import schema
from configs.errors import UserError
from training import distillation, frozen, run

torch = pytest.importorskip("torch", reason="compares with transformers")
clip_models = pytest.importorskip("clip_models", reason="compares with transformers")

N_CTX, WINDOW, OUT = 20, 6, 12
KEYS = dict(model="clip_student", n_head=2, position="rotary", rotary_dims=4, n_ctx=N_CTX,
            activation_function="quick_gelu", train_batch_size=4, eval_batch_size=4)
CLIP = {"window": WINDOW, "windows": 2, "positions": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with data, a teacher, and the teacher as transformers has it."""
    directory = tmp_path_factory.mktemp("distillation")
    model = clip_models.text_model(width=16, layers=2, heads=2, out=OUT, vocab=259, context=10,
                                   intermediate=64)
    tensors = {name: np.array(value.detach())
               for name, value in clip_models.openai_names(model).items()}
    clip_runs.teacher(directory, 259, tensors, layers=2)
    return directory, jobs.dataset(directory), model


def objective(place, **keys):
    """The Distillation of a config, with statistics that are not 0 and 1."""
    directory, data, _ = place
    clip = {"teacher": f"{directory}/teacher", **CLIP, **keys.pop("clip", {})}
    config = schema.load(jobs.config(directory, data, clip=clip, **{**KEYS, **keys}))
    found = distillation.Distillation(config, inputs.dataset_facts(config, "train"),
                                      frozen.of_run(config))
    random = np.random.RandomState(5)
    found.mean = random.randn(OUT).astype(np.float32) * 0.3
    found.deviation = random.uniform(0.1, 0.4, OUT).astype(np.float32)
    return found


def rows(number=4, seed=0):
    return np.random.RandomState(seed).randint(0, 257, [number, N_CTX + 1])


def embedded(model, texts):
    """transformers' embedding of each text, [..., tokens], at unit length: float64 [..., out]."""
    texts = np.asarray(texts)
    flat = texts.reshape(-1, texts.shape[-1])
    with_ends = np.pad(np.pad(flat, [(0, 0), (1, 0)], constant_values=257), [(0, 0), (0, 1)],
                       constant_values=258)
    with torch.no_grad():
        found = clip_models.embeddings(model, with_ends, np.full(len(flat), texts.shape[-1] + 1))
    found = found.numpy().astype(np.float64)
    return (found / np.linalg.norm(found, axis=-1, keepdims=True)).reshape(*texts.shape[:-1], -1)


def prefixes(model, windows):
    """The embeddings of all prefixes of windows: [rows, tokens, out]."""
    return np.stack([embedded(model, windows[:, :k + 1]) for k in range(windows.shape[1])], 1)


def last_windows(tokens, at):
    """The last WINDOW tokens up to each position: [rows, positions, WINDOW]."""
    return np.stack([[row[p - WINDOW + 1:p + 1] for p in places]
                     for row, places in zip(tokens, at, strict=True)])


def expected(made, found, tokens, model):
    """{part: (what the student says, what it should), [rows, n, out] each}, float64."""
    config = made.config
    student = {name: value for name, value in found.weights.items()
               if name.startswith("clip_student/") and "target_" not in name}
    picked = found.given["positions"]
    windows = found.given["windows"]
    whole = clip_runs.said(config, tokens[:, :N_CTX], student)["y"].astype(np.float64)
    said = {"windows": clip_runs.said(config, windows, student)["y"].astype(np.float64),
            "beyond": np.take_along_axis(whole, picked[..., None], 1)}
    wanted = {"windows": prefixes(model, windows),
              "beyond": embedded(model, last_windows(tokens, picked))}
    return {part: (said[part], (wanted[part] - made.mean) / made.deviation) for part in said}


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def shaken(made, tokens):
    """Weights of a student that says something."""
    found = clip_runs.run_objective(made, tokens)
    return clip_runs.shaken({name: value.shape for name, value in found.weights.items()
                             if name.startswith("clip_student/") and "target_" not in name})


@pytest.fixture(scope="module")
def weights(place):
    return shaken(objective(place), rows())


def test_what_is_drawn(place):
    made, tokens = objective(place), rows()
    first, second = (clip_runs.run_objective(made, tokens, step=step).given for step in (0, 1))
    for given in (first, second):
        windows = given["windows"].reshape(4, 2, WINDOW)
        for row, cuts in zip(tokens[:, :N_CTX], windows, strict=True):
            there = np.lib.stride_tricks.sliding_window_view(row, WINDOW)
            assert all((there == cut).all(1).any() for cut in cuts)
        at = given["positions"]
        assert at.shape == (4, 3) and at.min() >= WINDOW and at.max() < N_CTX
    assert (first["windows"] != second["windows"]).any()
    assert (first["positions"] != second["positions"]).any()


@pytest.mark.parametrize("kinds", ["mse", "cosine", "mse+cosine"])
def test_terms_equal_transformers_and_numpy(place, weights, kinds):
    made, tokens = objective(place, clip={"distillation": kinds}), rows()
    found = clip_runs.run_objective(made, tokens, weights=weights, train=True)
    pairs = expected(made, found, tokens, place[2])
    wanted = {}
    for part, (said, target) in pairs.items():
        each = {"mse": ((said - target) ** 2).mean(-1), "cosine": 1 - cosine(said, target)}
        wanted.update({f"{part}_{kind}": each[kind].sum() for kind in kinds.split("+")})
    assert found.values.keys() == wanted.keys() <= found.counts.keys()
    for name, value in wanted.items():
        assert found.values[name] == pytest.approx(value, rel=1e-4), name
        assert found.counts[name] == (4 * 2 * WINDOW if "windows" in name else 4 * 3)
    assert {name.split("/")[0] for name in found.gradients} == {"clip_student"}
    assert not any("target_" in name for name in found.gradients)


def test_scores_and_report_equal_numpy_without_rows_that_fill_up(place, weights):
    """The third row is cut short, the fourth fills the batch up: neither counts."""
    made, tokens = objective(place, clip={"distillation": "mse+cosine"}), rows()
    found = clip_runs.run_objective(made, tokens, [N_CTX, N_CTX, N_CTX - 1, 0], weights=weights)
    report = made.report({**found.means(), "loss": np.float32(9), "global_step": np.int64(3)}, None)
    assert next(iter(report)) == "eval_loss" and not {"loss", "global_step"} & report.keys()
    total = 0
    for part, pair in expected(made, found, tokens, place[2]).items():
        said, target = (x[:4 if part == "windows" else 2] for x in pair)
        raw, brought_back = (x * made.deviation + made.mean for x in (target, said))
        np.testing.assert_allclose(np.linalg.norm(raw, axis=-1), 1, rtol=1e-6)
        mse = ((said - target) ** 2).mean()
        wanted = {
            f"mse_{part}": mse, f"loss/{part}_mse": mse,
            f"variance_{part}": (target ** 2).mean(), f"r2_{part}": 1 - mse / (target ** 2).mean(),
            f"cosine_{part}": cosine(said, target).mean(),
            f"loss/{part}_cosine": 1 - cosine(said, target).mean(),
            f"uncentred_cosine_{part}": cosine(brought_back, raw).mean(),
            f"mean_vector_cosine_{part}": cosine(made.mean, raw).mean()}
        total += mse + wanted[f"loss/{part}_cosine"]
        for name, value in wanted.items():
            assert report[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
        if part == "windows":
            np.testing.assert_allclose(report["mse_by_position"],
                                       ((said - target) ** 2).mean((0, 2)), rtol=1e-4)
            np.testing.assert_allclose(report["cosine_by_position"], cosine(said, target).mean(0),
                                       atol=1e-5)
            ends = cosine(said[:, None, -1], target[None, :, -1])
            right = (ends.argmax(1) == np.arange(len(ends))).mean()
            assert report["retrieval"] == pytest.approx(right)
    assert report["eval_loss"] == pytest.approx(total, rel=1e-4)


def test_a_good_student_is_found_good(place, weights):
    """r2 and cosine of 1, retrieval of all: the targets are what the student says."""
    made, tokens = objective(place), rows()
    pair = {}

    def echo(ctx, given, part):
        wanted = made._embeddings(ctx, given, part)
        mask = given["windows_mask" if part == "windows" else "rows_mask"]
        mean, deviation = made._statistics(ctx)
        pair[part] = (wanted - mean) / deviation
        return pair[part], pair[part], mask

    made._pair = echo
    report = made.report(clip_runs.run_objective(made, tokens).means(), None)
    for name in ("r2_windows", "r2_beyond", "cosine_windows", "cosine_beyond", "retrieval"):
        assert report[name] == pytest.approx(1, abs=1e-5), name
    assert report["mean_vector_cosine_windows"] < 0.99


def test_statistics_are_those_of_training_text(place, monkeypatch):
    """Two steps' targets; each part weighs the same, however many targets it has."""
    made = objective(place)
    per_step = 4 * 2 * WINDOW + 4 * 3
    monkeypatch.setattr(distillation, "_MEASURED", per_step + 1)
    made.prepare()
    moments = []
    for step in (0, 1):
        tokens = shard_files.rows(made.config, 4 * step, 4)
        given = clip_runs.run_objective(made, tokens, step=step).given
        for found in (prefixes(place[2], given["windows"]),
                      embedded(place[2], last_windows(tokens, given["positions"]))):
            flat = found.reshape(-1, OUT)
            moments.append([flat.mean(0), (flat ** 2).mean(0)])
    mean, square = np.mean(moments, 0)
    np.testing.assert_allclose(made.mean, mean, atol=2e-6)
    np.testing.assert_allclose(made.deviation, np.sqrt(square - mean ** 2), rtol=1e-4)


def test_statistics_stay_exact_in_bfloat16(place):
    """A rounded mean would shift all that it is taken from."""
    class Bare(distillation.Distillation):
        def scores(self, ctx, given):
            mean, deviation = self._statistics(ctx)
            return {"mean": (mean, "windows"), "deviation": (deviation, "windows")}

    made = objective(place, precision="bfloat16")
    bare = Bare(made.config, made.facts, made.frozen)
    bare.mean, bare.deviation = made.mean, made.deviation
    found = clip_runs.run_objective(bare, rows())
    for name in ("mean", "deviation"):
        np.testing.assert_array_equal(found.values[name][0], getattr(made, name))


def test_microbatches_add_up_to_the_batch(place, weights):
    """Microbatch m has rows i · 2 + m, with the windows and texts of just these rows."""
    made, tokens = objective(place), rows()
    whole = clip_runs.run_objective(made, tokens, weights=weights, train=True)
    given = whole.given
    for m in (0, 1):
        at, texts = (given[name][m::2] for name in ("positions", "texts"))
        np.testing.assert_array_equal(texts[..., 1:-1], last_windows(tokens[m::2], at))
        assert (texts[..., 0] == 257).all() and (texts[..., -1] == 258).all()
    assert all(len(x) % 4 == 0 for x in given.values())


@pytest.mark.parametrize(("keys", "part", "gone"), [
    ({"windows": 0}, "beyond", "windows"), ({"positions": 0}, "windows", "beyond")])
def test_one_part_alone(place, keys, part, gone):
    made = objective(place, clip=keys)
    terms = clip_runs.run_objective(made, rows(), train=True).values
    assert list(terms) == [f"{part}_mse"]
    report = made.report(clip_runs.run_objective(made, rows()).means(), None)
    assert f"r2_{part}" in report and f"r2_{gone}" not in report


def test_a_run_of_windows_alone(place, monkeypatch):
    """What is not distilled is neither reported nor missed."""
    monkeypatch.setattr(distillation, "_MEASURED", 100)
    made = objective(place, name="alone", clip={"positions": 0}, eval_steps=None, train_steps=1)
    run.train(made.config)
    line, = jobs.metrics(made.config.model_path)
    assert line["eval_loss"] == pytest.approx(line["mse_windows"])
    assert len(line["cosine_by_position"]) == WINDOW and "r2_beyond" not in line


def test_a_window_longer_than_the_teacher_reads(place):
    with pytest.raises(UserError, match="clip.window: 9 is longer than what the teacher reads, "
                                        "8 tokens; lower it"):
        objective(place, clip={"window": 9})


def test_a_validation_split_without_a_whole_row(place):
    with pytest.raises(UserError, match="n_ctx: the validation split has no row of 3000 tokens"):
        objective(place, n_ctx=3000, eval_steps=None)


def test_rows_of_several_sets_are_not_joined(place, monkeypatch):
    """Each is shorter than a row, and together they are not."""
    size = inputs.EvalSize(windows=2, batches=1, targets=2 * N_CTX - 2, longest=N_CTX - 1)
    monkeypatch.setattr(inputs, "eval_windows", lambda config: size)
    with pytest.raises(UserError, match="n_ctx: the validation split has no row of"):
        objective(place, eval_steps=None)
