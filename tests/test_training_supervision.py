"""training/supervision.py: each loss against numpy, its weight, and runs without it."""

import clip_runs
import graphs
import jobs
import numpy as np
import projected as shown_points
import pytest
import tensorflow

import inputs
from configs import schema
from configs.errors import UserError
from mesh.compat import tf
from models import gpt, layers, losses
from training import frozen, language, model_fn, objectives, run, supervision

N_CTX, ROWS, OUT, EOS = 12, 4, clip_runs.SIZES["out"], 256
DIMS = [graphs.dim("batch", 4), graphs.dim("clip_samples", 3), graphs.dim("clip_out", 8)]
RANDOM = np.random.RandomState(0)
SAID, WANTED = RANDOM.randn(2, 4, 3, 8).astype(np.float32)
MASK = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]], np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def contrastive(said, wanted, mask, temperature):
    """The sum over valid samples of −log of the softmax over valid candidates."""
    there = mask.reshape(-1) > 0
    said, wanted = (unit(x.reshape(-1, x.shape[-1])[there].astype(np.float64))
                    for x in (said, wanted))
    logits = said @ wanted.T / temperature
    return (np.log(np.exp(logits).sum(1)) - np.diag(logits)).sum()


def relational(said, wanted, mask):
    there = mask.reshape(-1) > 0
    said, wanted = (unit(x.reshape(-1, x.shape[-1])[there].astype(np.float64))
                    for x in (said, wanted))
    return ((said @ said.T - wanted @ wanted.T) ** 2).mean(1).sum()


def position_loss(kind, said, wanted):
    """[..., out] twice -> [...]."""
    said, wanted = said.astype(np.float64), wanted.astype(np.float64)
    return (((said - wanted) ** 2).mean(-1) if kind == "mse"
            else 1 - (unit(said) * unit(wanted)).sum(-1))


def of_samples(kind, said, wanted, mask):
    return (contrastive(said, wanted, mask, 0.2) if kind == "contrastive"
            else relational(said, wanted, mask))


@pytest.mark.parametrize(("mesh_shape", "layout"), [("", ""), ("x:2,y:2", "batch:x,clip_out:y")])
@pytest.mark.parametrize("kind", ["contrastive", "relational"])
def test_losses_over_samples_and_their_gradients(kind, mesh_shape, layout):
    def build(mesh):
        said, wanted = (graphs.give(mesh, x, *DIMS) for x in (SAID, WANTED))
        mask = graphs.give(mesh, MASK, *DIMS[:2])
        y = (losses.contrastive(said, wanted, mask, 0.2) if kind == "contrastive"
             else losses.relational(said, wanted, mask))
        return graphs.with_gradients({"y": y}, {"said": said},
                                     {"y": graphs.give(mesh, np.float32(1))})

    result = graphs.run(build, mesh_shape, layout)
    assert result["y"] == pytest.approx(of_samples(kind, SAID, WANTED, MASK), rel=1e-4)
    rows, there = SAID.reshape(12, 8).astype(np.float64), np.flatnonzero(MASK.reshape(-1))
    for row in range(12):
        for feature in (0, 5):
            step = np.zeros_like(rows)
            step[row, feature] = 1e-5
            above, below = (of_samples(kind, (rows + sign * step).reshape(4, 3, 8), WANTED, MASK)
                            for sign in (1, -1))
            slope = result["d_said"].reshape(12, 8)[row, feature]
            assert slope == pytest.approx((above - below) / 2e-5, abs=1e-4)
            assert (slope != 0) == (row in there)


def test_samples_of_which_none_is_valid_are_worth_nothing():
    def build(mesh):
        said, wanted = (graphs.give(mesh, x, *DIMS) for x in (SAID, WANTED))
        mask = graphs.give(mesh, MASK * 0, *DIMS[:2])
        return {"contrastive": losses.contrastive(said, wanted, mask, 0.2),
                "relational": losses.relational(said, wanted, mask)}

    result = graphs.run(build)
    assert result["contrastive"] == 0 and result["relational"] == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with data and a student of random weights; and these weights."""
    directory = tmp_path_factory.mktemp("supervision")
    path, weights = clip_runs.student(directory / "student")
    return directory, jobs.dataset(directory), path, weights


def config_of(place, **keys):
    directory, data, student, _ = place
    clip = {"student": student, **keys.pop("clip", {})}
    return schema.load(jobs.config(directory, data, **{**dict(
        model="gpt_c", n_layer=2, n_ctx=N_CTX, train_batch_size=ROWS, eval_batch_size=ROWS,
        clip=clip), **keys}))


def objective(place, **keys):
    config = config_of(place, **keys)
    return objectives.of_run(config, inputs.dataset_facts(config, "train"), frozen.of_run(config))


def rows(seed=0):
    tokens = np.random.RandomState(seed).randint(0, 256, [ROWS, N_CTX + 1])
    # Documents end at some places, two of them one after the other.
    for row, column in [(0, 0), (0, 5), (1, 3), (1, 4), (2, 11)]:
        tokens[row, column] = EOS
    return tokens


VALID = np.array([N_CTX, N_CTX, 7, 0])


def pairs_in_one_document(tokens, valid, ahead):
    """bool [rows, n_ctx], counted by hand: an end of text begins what comes after it."""
    found = np.zeros([ROWS, N_CTX], bool)
    for row in range(ROWS):
        for t in range(N_CTX):
            reached = t + ahead
            found[row, t] = reached < valid[row] and not any(
                tokens[row, i] == EOS for i in range(t + 1, reached + 1))
    return found


def states_of(config, tokens, weights):
    """The GPT's states after each block, and after the final norm."""
    def build(mesh):
        model, ctx = gpt.GPT(config, 257), layers.Context(mesh, config)
        dims = graphs.dim("batch", ROWS), graphs.dim("sequence", N_CTX)
        given = graphs.give(mesh, tokens[:, :N_CTX].astype(np.int32), *dims)
        return {str(i): x for i, x in enumerate(model.states(ctx, given))}

    mine = {name: value for name, value in weights.items() if name.startswith("gpt/")}
    result = graphs.run(build, weights=mine)
    return [result[str(i)].astype(np.float64) for i in range(config.n_layer + 1)]


def projected(states, layer, weights):
    """What the head of a supervised layer says: [rows, n_ctx, out]."""
    head = f"clip_head/{layer}/"
    x = states[-1] if layer == "last" else states[layer - 1]
    if layer != "last":
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * weights[head + "norm/gain"] + weights[head + "norm/bias"]
    return x @ weights[head + "projection/kernel"] + weights[head + "projection/bias"]


@pytest.fixture(scope="module")
def known(place):
    """(weights of a GPT with heads at all places, its states, what the student says) of rows()."""
    made, tokens = objective(place, clip={"layer": ["last", 1, 2]}), rows()
    names = {name: value.shape for name, value in
             clip_runs.run_objective(made, tokens).weights.items()
             if not name.startswith("clip_student/")}
    weights = clip_runs.shaken(names, 1)
    said = clip_runs.said(made.frozen.config, tokens[:, :N_CTX], {
        name: value for name, value in place[3].items() if "target_" not in name})["y"]
    return weights, states_of(made.config, tokens, weights), said


@pytest.mark.parametrize("kind", ["mse", "cosine", "contrastive", "relational"])
@pytest.mark.parametrize(("layer", "ahead"), [("last", 0), (1, 0), (["last", 1, 2], 3)])
def test_supervision_equals_numpy(place, known, kind, layer, ahead):
    made = objective(place, clip={"loss": kind, "layer": layer, "target": ahead, "samples": 20,
                                  "temperature": 0.2})
    tokens, (weights, states, said_by_student) = rows(), known
    layer = layer if isinstance(layer, list) else [layer]
    heads = tuple(f"clip_head/{name}/" for name in layer)
    weights = {name: value for name, value in weights.items()
               if not name.startswith("clip_head/") or name.startswith(heads)}
    if layer == ["last"]:
        assert "clip_head/last/norm/gain" not in weights
    found = clip_runs.run_objective(made, tokens, VALID, step=5, weights=weights, train=True)

    wanted = np.ones_like(said_by_student)
    wanted[:, :N_CTX - ahead] = said_by_student[:, ahead:]
    good = pairs_in_one_document(tokens, VALID, ahead)
    assert 0 < good.sum() < VALID.sum() or not ahead
    total = 0
    for name in layer:
        said = projected(states, name, found.weights)
        if kind in ("mse", "cosine"):
            np.testing.assert_array_equal(found.given["clip_mask"], good)
            total += (position_loss(kind, said, wanted) * good).sum()
            continue
        at = found.given["clip_positions"]
        # 20 of 4 rows are 5 a row, no position twice, and valid ones first.
        assert at.shape == (ROWS, 5) and all(len(set(row)) == 5 for row in at)
        mask = np.take_along_axis(good, at, 1)
        np.testing.assert_array_equal(found.given["clip_positions_mask"], mask)
        assert (mask.sum(1) == np.minimum(good.sum(1), 5)).all()
        picked = [np.take_along_axis(x, at[..., None], 1) for x in (said, wanted)]
        total += of_samples(kind, *picked, mask)
        good_count = mask.sum()
    total /= len(layer)
    assert found.values["clip"] == pytest.approx(total, rel=1e-4)
    assert found.counts["clip"] == (good.sum() if kind in ("mse", "cosine") else good_count)
    assert found.counts["lm"] == VALID.sum()
    assert not any(name.startswith("clip_student") for name in found.gradients)
    heads = {name.split("/")[1] for name in found.gradients if name.startswith("clip_head")}
    assert heads == {str(name) for name in layer}


def test_language_models_loss_is_the_plain_gpts(place):
    made = objective(place, clip={"loss": "mse"})
    plain = language.Language(made.config, made.facts)
    found, wanted = (clip_runs.run_objective(x, rows(), VALID) for x in (made, plain))
    assert found.values["lm"][0] == wanted.values["lm"][0]
    report = made.report(found.means(), inputs.dataset_facts(made.config, "validation"))
    assert report["eval_loss"] == report["loss/lm"] == pytest.approx(
        wanted.values["lm"][0] / VALID.sum())
    total, count = found.values["clip"]
    assert count == "clip" and report["loss/clip"] == pytest.approx(total / VALID.sum())


def test_samples_change_from_step_to_step(place):
    made = objective(place, clip={"samples": 20})
    at = [clip_runs.run_objective(made, rows(), step=step).given["clip_positions"]
          for step in (0, 0, 1)]
    assert (at[0] == at[1]).all() and (at[0] != at[2]).any()


def test_the_control_changes_targets_alone(place):
    given = {}
    for control in ("none", "shuffled"):
        for kind in ("mse", "contrastive"):
            made = objective(place, clip={"control": control, "loss": kind})
            given[control, kind] = clip_runs.run_objective(made, rows(), VALID).given
    for kind in ("mse", "contrastive"):
        own, other = given["none", kind], given["shuffled", kind]
        assert own.keys() == other.keys()
        for name, value in own.items():
            if name != "clip_tokens":
                np.testing.assert_array_equal(other[name], value)
        np.testing.assert_array_equal(own["clip_tokens"], rows()[:, :N_CTX])
        np.testing.assert_array_equal(other["clip_tokens"], rows()[[3, 0, 1, 2], :N_CTX])


def test_weight_rises_and_falls(place):
    def curve(**keys):
        made = objective(place, clip={"weight": 0.4, **keys})
        with tf.Graph().as_default(), tf.Session() as session:
            return session.run([made.weights(tf.constant(step))["clip"] for step in range(12)])

    np.testing.assert_allclose(curve(), [0.4] * 12, rtol=1e-6)
    np.testing.assert_allclose(curve(weight_warmup=4), [0.1, 0.2, 0.3, *[0.4] * 9], rtol=1e-6)
    np.testing.assert_allclose(curve(weight_end=8),
                               [0.4 * max(0, 1 - step / 8) for step in range(12)], atol=1e-7)
    np.testing.assert_allclose(
        curve(weight_warmup=4, weight_end=8),
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1, 0, 0, 0, 0], atol=1e-7)


@pytest.mark.parametrize("kind", ["mse", "contrastive"])
def test_a_target_that_no_position_has_is_no_nan(place, monkeypatch, kind):
    """Each token ends a document: nothing lies 3 ahead in the same one."""
    made = objective(place, clip={"target": 3, "loss": kind})
    tokens = np.full([ROWS, N_CTX + 1], EOS, np.int32)
    found = clip_runs.run_objective(made, tokens)
    assert found.counts["clip"] == 0 and found.values["clip"][0] == 0
    lower, kept = model_fn.lower, []
    monkeypatch.setattr(model_fn, "lower", lambda *args: kept.append(lower(*args)) or kept[0])
    with tf.Graph().as_default(), tf.Session() as session:
        tf.train.create_global_step()
        features = {"tokens": tf.constant(tokens), "valid": tf.fill([ROWS], N_CTX)}
        spec = model_fn.model_fn(features, tf.estimator.ModeKeys.TRAIN, {}, made.config, made,
                                     clip_runs.METER)
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        session.run(kept[0].copy_masters_to_slices())
        losses_of_steps = [session.run([spec.loss, spec.train_op])[0] for _ in range(2)]
    assert np.isfinite(losses_of_steps).all()


def test_too_few_samples_are_refused(place):
    with pytest.raises(UserError, match="clip.samples: relational compares positions with each "
                                        "other, and a microbatch has but one"):
        objective(place, clip={"loss": "relational", "samples": 2}, train_batch_size=4,
                  tokens_per_mb_per_replica=N_CTX)
    assert isinstance(objective(place, clip={"loss": "mse", "samples": 2},
                                tokens_per_mb_per_replica=N_CTX), supervision.Supervision)


def test_one_row_cannot_be_shuffled(place):
    with pytest.raises(UserError, match='clip.control: "shuffled" takes another row'):
        config_of(place, clip={"control": "shuffled"}, train_batch_size=1)


def test_weight_0_is_the_plain_gpt_to_the_bit(place):
    """And a weight of more than 0 is not."""
    directory, data, student, _ = place
    weights, curves = {}, {}
    for name, keys in {"gpt": {"model": "GPT"},
                       "none": {"model": "gpt_c", "clip": {"student": student, "weight": 0}},
                       "some": {"model": "gpt_c", "clip": {"student": student, "weight": 0.1}}
                       }.items():
        config = schema.load(jobs.config(directory, data, name=name, train_steps=3, n_ctx=N_CTX,
                                         **jobs.DROPOUT, **keys))
        run.train(config)
        weights[name] = jobs.weights(config.model_path)
        curves[name] = jobs.scalars(config.model_path)
    jobs.assert_same_bits(weights["gpt"], weights["none"])
    assert curves["gpt"]["loss"] == curves["none"]["loss"]
    assert {"loss/clip", "loss/lm", "weight/clip"} <= curves["some"].keys()
    for step, loss in curves["some"]["loss"].items():
        parts = [curves["some"][tag][step] for tag in ("loss/lm", "loss/clip", "weight/clip")]
        assert loss == pytest.approx(parts[0] + parts[1] * parts[2], rel=1e-6)
    # The first step's dropout, data and weights are the same, the update is another.
    assert curves["some"]["loss/lm"][1] == curves["gpt"]["loss"][1]
    assert curves["some"]["loss/lm"][3] != curves["gpt"]["loss"][3]


def test_float32_losses_in_bfloat16(place):
    exact, rounded = (clip_runs.run_objective(
        objective(place, clip={"loss": "mse"}, precision=precision), rows(), VALID).means()["clip"]
        for precision in ("float32", "bfloat16"))
    assert rounded.dtype == np.float32 and rounded == pytest.approx(exact, rel=3e-2)
    assert float(rounded) != float(tensorflow.cast(rounded, tf.bfloat16))


@pytest.mark.parametrize("kind", ["mse", "cosine", "contrastive"])
@pytest.mark.parametrize("layer", ["last", ["last", 1]])
def test_the_reported_cosine_equals_numpy(place, known, kind, layer):
    made = objective(place, clip={"loss": kind, "layer": layer, "samples": 20})
    tokens, (weights, states, wanted) = rows(), known
    there = clip_runs.run_objective(made, tokens).weights
    found = clip_runs.run_objective(made, tokens, VALID, weights={
        name: value for name, value in weights.items() if name in there})
    mask = pairs_in_one_document(tokens, VALID, 0)
    cosines = []
    for name in layer if isinstance(layer, list) else [layer]:
        said = projected(states, name, found.weights)
        lengths = np.linalg.norm(said, axis=-1) * np.linalg.norm(wanted, axis=-1)
        cosine = (said * wanted).sum(-1) / lengths
        if kind == "contrastive":
            at = found.given["clip_positions"]
            cosine, there = (np.take_along_axis(x, at, 1) for x in (cosine, mask))
            assert there.sum() < mask.sum()
        else:
            there = mask
        cosines.append((cosine * there).sum() / there.sum())
    report = made.report(found.means(), inputs.dataset_facts(made.config, "validation"))
    assert report["clip_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
    if kind == "cosine":
        assert report["loss/clip"] == pytest.approx(1 - report["clip_cosine"], abs=1e-5)


@pytest.mark.parametrize(("layer", "ahead"), [(["last"], 0), (["last", 1], 2)])
def test_the_projector_shows_projections_beside_the_student(place, tmp_path, capsys, layer, ahead):
    words = ["red", "scarlet", "a box", "blue"]
    config = config_of(place, clip={"layer": layer, "target": ahead, "probe_words": words},
                       eval_steps=1, train_steps=2, name=f"projected_{ahead}")
    result = jobs.here(capsys, f"{config.model_path}.json")
    weights = {name: value for name, value in jobs.weights(config.model_path).items()
               if "adam" not in name}
    tokens, last = np.zeros([4, N_CTX + 1], int), [len(word) - 1 for word in words]
    for row, word in zip(tokens, words, strict=True):
        row[:len(word)] = list(word.encode())
    states = states_of(config, tokens, weights)
    student = clip_runs.said(schema.load(f"{place[2]}/config.json"), tokens[:, :N_CTX], {
        name: value for name, value in place[3].items() if "target_" not in name})["y"]
    wanted = {"student": unit(student[range(4), last])}
    for of in layer:
        rows = projected(states, of, weights)[range(4), np.subtract(last, ahead)]
        wanted["GPT-C, final norm" if of == "last" else "GPT-C, block 1"] = unit(rows)
    shown = shown_points.Space(config.model_path, "clip, step 2")
    np.testing.assert_allclose(shown.vectors, np.concatenate(list(wanted.values())), atol=1e-4)
    assert shown.labels == [["text", "what"], *([word, kind] for kind in wanted for word in words)]
    pairs = np.triu_indices(4, 1)
    cosines = [(x @ x.T)[pairs] for x in wanted.values()]
    assert result.summary["probe/correlation"] == pytest.approx(
        np.mean([np.corrcoef(cosines[0], other)[0, 1] for other in cosines[1:]]), abs=1e-4)
    assert jobs.scalars(f"{config.model_path}/eval")["probe/correlation"].keys() == {2}
    # Without the supervision there is nothing to compare.
    plain = jobs.here(capsys, f"{config.model_path}.json", "--model_path", tmp_path / "plain",
                      "--set", "clip.weight=0")
    assert "probe/correlation" not in plain.summary
