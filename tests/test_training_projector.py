"""Tokens in TensorBoard's projector, as its plugin serves them."""

import jobs
import numpy as np
import projected
import pytest

import encoders
from configs import schema
from mesh.compat import tf
from training import projector


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The path of a run with evaluations at 2 and 4."""
    directory = tmp_path_factory.mktemp("run")
    path = jobs.config(directory, jobs.dataset(directory), eval_steps=1, steps_per_checkpoint=2)
    with jobs.quiet():
        assert jobs.process(path).status == 0
    return path


def test_tokens_are_those_of_the_newest_checkpoint(run):
    config = schema.load(run)
    shown = projected.Space(config.model_path, "tokens, step 4")
    assert "tokens, step 2" not in shown.listed
    np.testing.assert_allclose(shown.vectors, jobs.weights(config.model_path)["gpt/wte"][:257],
                               rtol=1e-4)
    heads, *labels = shown.labels
    assert heads == ["token", "id"] and [row[1] for row in labels] == list(map(str, range(257)))
    names = [row[0] for row in labels]
    assert (names[97], names[32], names[10], names[9], names[0xc3], names[256]) == (
        "a", "␣", "\\n", "\\t", "c3", "end of text (256)")
    assert shown.pictures is None


def test_a_run_without_evaluations_has_them_at_its_end(tmp_path, capsys):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), steps_per_checkpoint=2)
    assert jobs.here(capsys, path).summary["step"] == 4
    assert len(projected.Space(tmp_path / "run", "tokens, step 4").vectors) == 257
    # A new run leaves nothing of it.
    jobs.here(capsys, path, "--new", "--yes", "--set", "train_steps=1")
    assert "tokens, step 4" not in projected.Space(tmp_path / "run", "tokens, step 1").listed


def test_a_large_table_is_cut_and_unknown_tokens_are_numbers(run, tmp_path):
    made = schema.load(run).replace(model_path=str(tmp_path), n_vocab=9000, n_embd=4)
    with tf.Graph().as_default(), tf.Session() as session:
        table = tf.get_variable("gpt/wte", initializer=np.float32(np.arange(36000).reshape(-1, 4)))
        session.run(table.initializer)
        checkpoint = tf.train.Saver().save(session, f"{tmp_path}/model.ckpt", global_step=7)
    points = projector.tokens(made, checkpoint, None)
    assert points.vectors.shape == (projector.MOST_POINTS, 4)
    assert points.labels["token"][:2] == ["(0)", "(1)"]
    projector.write(made, checkpoint, None)
    shown = projected.Space(tmp_path, "tokens, step 7")
    np.testing.assert_allclose(shown.vectors, points.vectors, rtol=1e-4)


@pytest.mark.parametrize("text, shown", [
    (" the", "␣the"), ("  ", "␣␣"), ("a b ", "a b␣"), ("\t\n", "\\t\\n"), ("x\u2028", "x\\u2028"),
    ("é", "é")])
def test_what_is_white_is_seen(text, shown):
    assert projector._visible(text) == shown


def test_pictures_are_made_small_and_texts_are_pages():
    pictures = np.random.RandomState(0).randint(0, 256, [2, 130, 130, 3]).astype(np.uint8)
    both = projector.joined([projector.named("picture", ["a", "b"], np.eye(2), pictures),
                             projector.named("text", ["c"], np.ones([1, 2]))])
    assert both.pictures.shape == (3, 43, 43, 3)
    np.testing.assert_allclose(both.pictures[1, 0, 0], pictures[1, :3, :3].mean((0, 1)), atol=1)
    assert both.labels == {"text": ["a", "b", "c"], "what": ["picture", "picture", "text"]}


def test_a_directory_that_cannot_be_written_is_a_warning(run, tmp_path, caplog):
    config = schema.load(run)
    (tmp_path / "embeddings").write_text("a file")
    checkpoint = tf.train.latest_checkpoint(config.model_path)
    projector.write(config.replace(model_path=str(tmp_path)), checkpoint, encoders.load("byte"))
    assert "cannot be written for TensorBoard's projector" in caplog.text
