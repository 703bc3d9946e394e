"""A run whose loss has several parts: what is optimised, shown, evaluated and sampled."""

import clip_runs
import jobs
import numpy as np
import pytest

from configs import schema
from training import checkpoints, items, predictor, run, scorer

TERMS = dict(z_loss=0.1, label_smoothing=0.1, moe_layers=[1],
             moe_params={"num_experts": 4, "loss_coef": 0.5, "z_loss": 0.2})


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The scalars of one config's runs on one device and on two, and where they are."""
    directory = tmp_path_factory.mktemp("terms")
    data, result = jobs.dataset(directory), {}
    for name, keys in {
            "one": dict(TERMS, eval_steps=2, sample_tokens=4, steps_per_checkpoint=3),
            "two": dict(TERMS, mesh_shape="x:2", layout="batch:x,experts:x")}.items():
        path = jobs.config(directory, data, name=name, n_layer=2, train_steps=3, opt_name="lion",
                           lr=1e-3, tokens_per_mb_per_replica=8 * (4 if name != "two" else 2),
                           **keys)
        config = schema.load(path)
        assert config.num_microbatches == 2
        run.train(config)
        result[name] = jobs.scalars(config.model_path)
    return result, directory


def test_the_loss_is_the_sum_of_its_weighted_parts(shown):
    curves = shown[0]["one"]
    parts = {"loss/lm": 1.0, "loss/z": 0.1, "loss/moe_balance": 0.5, "loss/moe_z": 0.2}
    assert set(parts) == {tag for tag in curves if tag.startswith("loss/")}
    for step in (1, 2, 3):
        total = sum(weight * curves[part][step] for part, weight in parts.items())
        assert curves["loss"][step] == pytest.approx(total, rel=1e-5)
    # 264 - 257 ids are padding: log²(257) at first, and one layer of experts, nearly balanced.
    assert curves["loss/z"][1] == pytest.approx(np.log(257) ** 2, rel=0.01)
    assert 1.0 <= curves["loss/moe_balance"][1] < 1.5
    assert curves["loss/moe_z"][1] == pytest.approx(np.log(4) ** 2, rel=0.05)


def test_a_supervised_run_has_these_terms_too(tmp_path, capsys):
    student, _ = clip_runs.student(tmp_path / "student", n_layer=1, n_head=4)
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), model="gpt_c", n_layer=2, train_steps=2,
                       clip={"student": student, "weight": 0.3, "samples": 16}, **TERMS)
    jobs.here(capsys, path)
    curves = jobs.scalars(schema.load(path).model_path)
    for step in (1, 2):
        weights = {"lm": 1.0, "z": 0.1, "moe_balance": 0.5, "moe_z": 0.2,
                   "clip": curves["weight/clip"][step]}
        total = sum(weight * curves[f"loss/{name}"][step] for name, weight in weights.items())
        assert curves["loss"][step] == pytest.approx(total, rel=1e-5)
        assert 0 < weights["clip"] < 0.31 and curves["loss/clip"][step] > 0


def test_two_devices_show_what_one_does(shown):
    one, two = (shown[0][name] for name in ("one", "two"))
    for tag in ("loss", "loss/lm", "loss/z", "loss/moe_balance", "loss/moe_z", "gradient_norm"):
        np.testing.assert_allclose(list(two[tag].values()), list(one[tag].values()), rtol=1e-4,
                                   err_msg=tag)


def test_evaluation_knows_the_cross_entropy_alone(shown):
    [line] = jobs.metrics(f"{shown[1]}/one")
    assert line["eval_loss"] == line["loss/lm"]
    assert line["perplexity"] == pytest.approx(np.exp(line["eval_loss"]), rel=1e-5)
    assert not [key for key in line if "moe" in key or key == "loss/z"]
    assert "gpt/h1/moe/in/kernel/lion_m" in jobs.weights(f"{shown[1]}/one")
    assert 4.0 < line["eval_loss"] < 5.6


def test_samples_of_experts_and_of_entmax(shown):
    """The mesh changes nothing, and entmax draws otherwise."""
    config = schema.load(f"{shown[1]}/one.json")

    def sampled(**changes):
        run = config.replace(predict_batch_size=2, **changes)
        model = predictor.Predictor(run, checkpoints.encoder_of(run))
        samples = [s.tokens for s in model.generate([[1, 2, 3], [4]], max_new_tokens=40)]
        model.close()
        return samples

    plain = sampled()
    assert sampled(mesh_shape="x:2", layout="batch:x,experts:x") == plain
    assert sampled(entmax_sampling=True) != plain


def test_scores_of_texts_drop_no_token(shown):
    config = schema.load(f"{shown[1]}/one.json")
    rows = [items.Row(list(range(60, 69)), 8), items.Row([1, 1, 1, 1, 2], 4)]

    def scores(**params):
        run = config.replace(moe_params={"num_experts": 4, "min_expert_capacity": 1, **params})
        model = scorer.Scorer(run, 257, [scorer.Size(run.n_ctx, run.n_ctx)])
        model.reload()
        return model.score(rows)[0]

    np.testing.assert_allclose(scores(capacity_factor_eval=0.1), scores(capacity_factor_eval=4.0),
                               rtol=1e-6)
