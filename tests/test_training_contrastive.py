"""training/contrastive.py: CLIP's loss and retrieval against numpy, with rows that fill up."""

import clip_runs
import numpy as np
import picture_shards
import pytest

import inputs
from training import contrastive

ROWS, N_CTX = 6, 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The Contrastive of a tiny config."""
    directory = tmp_path_factory.mktemp("contrastive")
    picture_shards.encode(directory, "--input", picture_shards.inputs_of(directory, [8]))
    config = picture_shards.config(
        directory, clip={"image_size": picture_shards.SIZE, "image_channels": [8], "out": 12},
        n_ctx=N_CTX, train_batch_size=ROWS, eval_steps=0)
    return contrastive.Contrastive(config, inputs.dataset_facts(config, "train"))


def rows(valid):
    """Features as the input function gives them."""
    random = np.random.RandomState(0)
    tokens = random.randint(0, 250, [ROWS, N_CTX]).astype(np.int32)
    ends = random.randint(2, N_CTX, ROWS).astype(np.int32)
    size = picture_shards.SIZE
    return {"images": random.randint(0, 256, [ROWS, size, size, 3]).astype(np.uint8),
            "tokens": tokens, "ends": ends, "valid": np.asarray(valid, np.int32)}


def unit(x):
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def weights(made):
    features = rows([1] * ROWS)
    names = {name: value.shape for name, value in clip_runs.run_objective(
        made, None, features=features).weights.items()}
    return {**clip_runs.shaken(names), "clip/logit_scale": np.float32(np.log(3.0))}


def embedded(made, features, weights):
    """What each tower makes of each row: unit [rows, out], float64."""
    class Bare(contrastive.Contrastive):
        def scores(self, ctx, given):
            pictures, texts = self._embeddings(ctx, given)
            return {"pictures": (pictures, "contrastive"), "texts": (texts, "contrastive")}

    bare = Bare(made.config, made.facts)
    weights = {name: value for name, value in weights.items() if name != "clip/logit_scale"}
    found = clip_runs.run_objective(bare, None, features=features, weights=weights)
    return [unit(found.values[name][0]) for name in ("pictures", "texts")]


def cross_entropies(logits):
    return np.log(np.exp(logits).sum(1)) - np.diag(logits)


@pytest.mark.parametrize("valid", [[1] * 6, [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
def test_loss_and_retrieval_equal_numpy(made, weights, valid):
    features, there = rows(valid), np.array(valid, bool)
    pictures, texts = (x[there] for x in embedded(made, features, weights))
    near = pictures @ texts.T
    loss = (cross_entropies(3 * near) + cross_entropies(3 * near.T)).mean() / 2
    own = np.arange(there.sum())
    found = clip_runs.run_objective(made, None, features=features, weights=weights)
    report = made.report(found.means(), None)
    assert report == pytest.approx({
        "eval_loss": loss, "loss/contrastive": loss,
        "picture_to_caption": (near.argmax(1) == own).mean(),
        "caption_to_picture": (near.argmax(0) == own).mean()}, rel=1e-4, abs=1e-5)
    assert list(report)[0] == "eval_loss"
    assert found.counts == {"contrastive": there.sum()}
    terms = clip_runs.run_objective(made, None, features=features, weights=weights, train=True)
    assert terms.values["contrastive"] == pytest.approx(loss * there.sum(), rel=1e-4, abs=1e-5)
    assert {name.split("/")[0] for name in terms.gradients} == {"clip", "clip_text", "clip_image"}


def test_what_fills_a_batch_up_does_not_matter(made, weights):
    features = rows([1, 1, 1, 0, 0, 0])
    other = {name: value.copy() for name, value in features.items()}
    other["images"][3:], other["tokens"][3:], other["ends"][3:] = 7, 9, 1
    one, two = (clip_runs.run_objective(made, None, features=x, weights=weights).means()
                for x in (features, other))
    assert {name: float(value) for name, value in one.items()} == pytest.approx(
        {name: float(value) for name, value in two.items()}, rel=1e-6)


def test_some_are_found_and_some_are_not(made, weights):
    """So that the retrieval of the first test could go wrong: texts that lie near pictures."""
    features = rows([1] * ROWS)
    pictures, texts = embedded(made, features, weights)
    near = pictures @ texts.T
    assert abs(near - near.mean()).max() > 0.05
    assert len({int(i) for i in near.argmax(1)} | {int(i) for i in near.argmax(0)}) > 1


def test_pixels_lie_between_minus_one_and_one(made):
    features = rows([1] * ROWS)
    features["images"][0], features["images"][1] = 0, 255
    given = clip_runs.run_objective(made, None, features=features).given["images"]
    assert given[0].min() == given[0].max() == -1 and given[1].min() == given[1].max() == 1
    np.testing.assert_allclose(given, features["images"] / 127.5 - 1, atol=1e-6)
