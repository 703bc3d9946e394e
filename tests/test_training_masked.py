"""Masked language models: which tokens are masked, the loss, whole runs, and what is refused."""

import json
import math
import types

import graphs
import jobs
import numpy as np
import pytest
import scalar_names

from configs import schema
from configs.errors import UserError
from mesh.compat import mtf, tf
from models import layers
from training import language_models, masked

CLS, MASK, IGNORED, N_VOCAB = 60, 61, 7, 60


def make_config(**changes):
    """60 ids of an encoder, a token that begins rows and a mask in a table of 64."""
    keys = dict(mlm_training=True, n_vocab=N_VOCAB, mlm_mask_id=MASK, n_layer=1, n_embd=16)
    return graphs.config(**{**keys, **changes})


def draw(config, tokens, keys):
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(masked.mask(config, N_VOCAB, tf.constant(tokens, tf.int32),
                                       tf.constant(keys, tf.int32)))


def fed(config, tokens, valid, step=None):
    """{name: numpy} of the features of a batch, in training at a step or in evaluation; counts."""
    objective = masked.Masked(config, types.SimpleNamespace(n_vocab=N_VOCAB))
    kept = {}
    objective.import_rows = lambda mesh, rows: kept.update({k: x for k, (x, _) in rows.items()})
    with tf.Graph().as_default(), tf.Session() as session:
        rows = {"tokens": tf.constant(tokens, tf.int32), "valid": tf.constant(valid, tf.int32)}
        _, counts = (objective.eval_features(None, rows) if step is None else
                     objective.features(None, rows, tf.constant(step)))
        return session.run([kept, counts])


def test_shares_are_berts():
    """15 % are chosen; of these 80 % are masked, 10 % are other tokens, 10 % stay."""
    config = make_config(mlm_random_token_prob=0.1, mlm_mask_ignore_ids=[IGNORED, 3])
    tokens = np.random.RandomState(0).randint(0, N_VOCAB, [64, 4096])
    hidden, chosen = draw(config, tokens, np.arange(64) * 77)
    may = (tokens != IGNORED) & (tokens != 3)
    assert not chosen[~may].any() and (hidden == tokens)[~chosen].all()
    n = chosen.sum()
    assert abs(n / may.sum() - 0.15) < 4 * math.sqrt(0.15 * 0.85 / may.sum())
    by_position = chosen.sum(0)[:, None].reshape(16, -1).mean(1) / (64 * may.mean())
    assert (abs(by_position - 0.15) < 0.02).all()
    other = chosen & (hidden != MASK) & (hidden != tokens)
    # One in 58 of the random tokens is what was there.
    for share, expected in [((hidden == MASK) & chosen, 0.8), (other, 0.1 * 57 / 58),
                            (chosen & (hidden == tokens), 0.1 + 0.1 / 58)]:
        assert abs(share.sum() / n - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    counts = np.bincount(hidden[other], minlength=64)
    assert counts[[IGNORED, 3, CLS, MASK]].sum() == 0
    ordinary = counts[[i for i in range(N_VOCAB) if i not in (IGNORED, 3)]]
    assert abs(ordinary - ordinary.mean()).max() < 5 * math.sqrt(ordinary.mean())


def test_gpt_neos_defaults_mask_nine_tenths_and_shares_may_be_all():
    tokens = np.random.RandomState(0).randint(0, N_VOCAB, [16, 4096])
    hidden, chosen = draw(make_config(), tokens, np.arange(16))
    masks = (hidden == MASK)[chosen]
    assert abs(masks.mean() - 0.9) < 0.02 and ((hidden == tokens) | (hidden == MASK)).all()
    hidden, chosen = draw(make_config(mlm_same_token_prob=1.0), tokens, np.arange(16))
    assert (hidden == tokens).all() and chosen.any()
    hidden, chosen = draw(make_config(mlm_same_token_prob=0.0, mlm_random_token_prob=1.0), tokens,
                          np.arange(16))
    assert not (hidden == MASK).any() and (hidden < N_VOCAB).all()
    assert (hidden != tokens)[chosen].mean() > 0.95


def test_training_draws_by_seed_step_and_row():
    tokens, valid = np.tile(np.random.RandomState(0).randint(0, N_VOCAB, 17), [8, 1]), [16] * 8
    config = make_config(mlm_mask_prob=0.4)
    first, counts = fed(config, tokens, valid, 3)
    again, _ = fed(config, tokens, valid, 3)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    np.testing.assert_array_equal(first["targets"], tokens[:, 1:])
    assert counts["mlm"] == first["mask"].sum() > 0
    others = [fed(config, tokens, valid, 4), fed(config.replace(seed=2), tokens, valid, 3)]
    drawn = [m for f, _ in [(first, 0), *others] for m in f["mask"]]
    assert len({m.tobytes() for m in drawn}) == len(drawn)


def test_evaluation_draws_by_content_alone():
    tokens = np.random.RandomState(0).randint(0, N_VOCAB, [4, 17])
    config = make_config(mlm_mask_prob=0.4)
    first, _ = fed(config, tokens, [16] * 4)
    turned, _ = fed(config.replace(seed=9), tokens[::-1][:2], [16] * 2)
    for name in first:
        np.testing.assert_array_equal(first[name][::-1][:2], turned[name])
    assert len({m.tobytes() for m in first["mask"]}) == 4


def test_rows_that_are_not_full_and_rows_that_begin_with_a_token():
    tokens = np.random.RandomState(0).randint(0, N_VOCAB, [3, 16])
    config = make_config(mlm_cls_token_id=CLS, mlm_mask_prob=0.9)
    assert config.window_size == 15
    for step in (None, 0):
        found, counts = fed(config, tokens, [15, 4, 0], step)
        assert (found["tokens"][:, 0] == CLS).all() and not found["mask"][:, 0].any()
        np.testing.assert_array_equal(found["targets"][:, 1:], tokens[:, 1:])
        assert (found["tokens"][1, 5:] == MASK).all() and (found["tokens"][2, 1:] == MASK).all()
        assert not found["mask"][1, 5:].any() and not found["mask"][2].any()
        assert found["mask"][0].sum() > 8 and counts["mlm"] == found["mask"].sum()


@pytest.mark.parametrize(("mesh_shape", "layout"), [
    ("", ""), ("x:2,y:2", "batch:x,vocab:y,heads:y")])
def test_loss_and_accuracy_equal_torch(mesh_shape, layout):
    torch = pytest.importorskip("torch", reason="compares with torch")
    config = make_config(mlm_mask_prob=0.4, train_batch_size=4, mesh_shape=mesh_shape,
                         layout=layout)
    tokens = np.random.RandomState(0).randint(0, N_VOCAB, [4, 17])
    given, counts = fed(config, tokens, [16, 16, 9, 16])
    objective = masked.Masked(config, types.SimpleNamespace(n_vocab=N_VOCAB))

    def build(mesh):
        ctx = layers.Context(mesh, config)
        dims = [graphs.dim("batch", 4), graphs.dim("sequence", 16)]
        inputs = {name: graphs.give(mesh, value, *dims) for name, value in given.items()}
        model = language_models.build(config, N_VOCAB)
        logits = model.logits(ctx, model.hidden(ctx, inputs["tokens"]))
        scores = {name: total for name, (total, _) in objective.scores(ctx, inputs).items()}
        return {"logits": mtf.replace_dimensions(logits, model.vocab, graphs.dim("all", 64)),
                "term": objective.terms(ctx, inputs)["mlm"], **scores}

    found = graphs.run(build, mesh_shape, layout)
    logits = torch.tensor(found["logits"])[..., :N_VOCAB]
    labels = torch.tensor(np.where(given["mask"] > 0, given["targets"], -100)).long()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(),
                                             ignore_index=-100).item()
    right = (logits.argmax(-1) == labels).sum().item()
    assert found["term"] / counts["mlm"] == pytest.approx(loss, rel=1e-5)
    assert found["mlm"] / counts["mlm"] == pytest.approx(loss, rel=1e-5)
    assert found["mlm_accuracy"] == right
    report = objective.report({"mlm": np.float32(loss), "mlm_accuracy": np.float32(0.5)}, None)
    assert report == {"eval_loss": pytest.approx(loss), "loss/mlm": pytest.approx(loss),
                      "mlm_perplexity": pytest.approx(math.exp(loss)), "mlm_accuracy": 0.5}


# Configs.

@pytest.mark.parametrize(("changes", "wanted"), [
    ({"model": "gpt_c", "clip": {"student": "s"}}, "mlm_training: model gpt_c has no masked"),
    ({"eval_tasks": ["a.jsonl"]}, "eval_tasks: a masked language model"),
    ({"mlm_mask_id": 64}, "mlm_mask_id: 64 is past the token table, whose last id is 63"),
    ({"n_vocab": 64, "mlm_mask_id": None}, "mlm_mask_id: 64 is past .* raise n_vocab by 1"),
    ({"mlm_cls_token_id": 64}, "mlm_cls_token_id: 64 is no id"),
    ({"mlm_cls_token_id": MASK}, "mlm_cls_token_id: 61 is the mask's id"),
    ({"mlm_cls_token_id": 1, "n_ctx": 1}, "n_ctx: 1 has room"),
    ({"mlm_mask_ignore_ids": [1, -1]}, "mlm_mask_ignore_ids: -1 is no id"),
    ({"mlm_random_token_prob": 0.95}, "mlm_random_token_prob: 0.95 and mlm_same_token_prob = 0.1")])
def test_configs_that_contradict_themselves(changes, wanted):
    with pytest.raises(UserError, match=wanted) as caught:
        make_config(**changes)
    assert "\n" not in str(caught.value)


def test_keys_as_gpt_neo_writes_them(tmp_path):
    path = tmp_path / "run.json"
    keys = dict(n_layer=1, n_head=1, n_embd=8, n_ctx=8, n_vocab=60, train_batch_size=1, lr=1e-3,
                train_steps=1, model_path="unused", mlm_training=True)
    path.write_text(json.dumps({**keys, "mlm_mask_ignore_ids": None, "mlm_cls_token_id": None}))
    config = schema.load(str(path))
    assert (config.mlm_mask_id, config.mlm_mask_prob, config.mlm_same_token_prob,
            config.mlm_random_token_prob, config.mlm_mask_ignore_ids) == (60, 0.15, 0.1, 0.0, [])
    assert config.sources["mlm_mask_id"] == "default (from n_vocab)" and not config.notes
    assert not config.speaks and config.architecture()["mlm_mask_id"] == 60


# In runs.

KEYS = dict(mlm_training=True, mlm_mask_prob=0.3, mlm_random_token_prob=0.1)


def test_meshes_and_microbatches_and_resuming_give_the_same(tmp_path, capsys):
    data = jobs.dataset(tmp_path)
    names = {"one": dict(eval_steps=1), "mesh": dict(mesh_shape="x:2", layout="batch:x"),
             "micro": dict(tokens_per_mb_per_replica=16, mesh_shape="x:2", layout="heads:x"),
             "stopped": dict(steps_per_checkpoint=2)}
    for name, keys in names.items():
        path = jobs.config(tmp_path, data, name=name, **KEYS, **keys)
        assert jobs.here(capsys, path).summary["step"] == 4
    scalar_names.check("masked", str(tmp_path / "one"))
    one = jobs.losses(tmp_path / "one")
    for name in ("mesh", "micro"):
        np.testing.assert_allclose(jobs.losses(tmp_path / name), one, rtol=1e-5)
    assert len(set(one)) == 4
    jobs.assert_same_bits(jobs.weights(tmp_path / "one"), jobs.weights(tmp_path / "stopped"))


def test_experts_and_other_losses(tmp_path, capsys):
    """What is minimised is the sum of the terms that TensorBoard shows, by their weights."""
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), train_steps=2, steps_per_checkpoint=2,
                       iterations=1, moe_layers=[0], moe_params={"num_experts": 2, "z_loss": 0.1},
                       z_loss=0.01, **KEYS)
    jobs.here(capsys, path)
    shown = jobs.scalars(str(tmp_path / "run"))
    for step in (1, 2):
        total = sum(weight * shown[f"loss/{name}"][step] for name, weight in
                    [("mlm", 1), ("z", 0.01), ("moe_z", 0.1), ("moe_balance", 0.01)])
        assert shown["loss"][step] == pytest.approx(total, rel=1e-5)
        assert shown["loss/z"][step] > 0 and shown["loss/moe_balance"][step] > 0


def test_weights_of_one_kind_are_not_taken_for_the_other(tmp_path, capsys):
    data = jobs.dataset(tmp_path)
    for name, keys, other in [("plain", {}, "true"), ("masked", KEYS, "false")]:
        path = jobs.config(tmp_path, data, name=name, train_steps=1, **keys)
        assert jobs.here(capsys, path).status == 0
        error = jobs.here(capsys, path, "--set", f"mlm_training={other}").error
        assert "its weights have mlm_training = " in error
