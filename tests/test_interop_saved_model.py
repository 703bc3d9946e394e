"""SavedModels: loaded by plain TensorFlow elsewhere, they say what --predict and scores say."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf2
import test_predictor
from test_configs_progress import Terminal

import encoders
from configs import progress
from configs.errors import UserError
from interop import saved_model, saved_text
from mesh.compat import tf
from training import items, predictor, scorer

PROMPTS = [[5], [10, 20, 30, 40, 50], [7, 8, 9]]
SETTINGS = [dict(temperature=0.0, top_k=0, top_p=1.0, seed=1),
            dict(temperature=0.8, top_k=20, top_p=0.9, seed=5)]

# Nothing of this project is on its path.
CLIENT = """
import json, sys
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
prompts, settings = json.loads(sys.argv[2])
rows = np.zeros([len(prompts), max(map(len, prompts))], np.int32)
for row, prompt in zip(rows, prompts):
    row[:len(prompt)] = prompt
given = dict(tokens=tf.constant(rows), lengths=tf.constant([len(p) for p in prompts]))
found = {"score": model.signatures["score"](**given)["log_probs"].numpy().tolist(), "generate": []}
for one in settings:
    made = model.signatures["generate"](
        **given, number=tf.constant([0] * len(prompts)), max_new_tokens=tf.constant(8),
        temperature=tf.constant(one["temperature"]), top_k=tf.constant(one["top_k"]),
        top_p=tf.constant(one["top_p"]), seed=tf.constant(one["seed"]),
        stop=tf.constant([], tf.string))["tokens"].numpy()
    found["generate"].append([[int(t) for t in row if t >= 0] for row in made])
try:
    model.signatures["score"](tokens=tf.constant([[300]]), lengths=tf.constant([1]))
except tf.errors.InvalidArgumentError as error:
    found["refusal"] = error.message
print(json.dumps(found))
"""


def ask(directory, tmp_path):
    """What a process without this project gets of a SavedModel."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, directory, json.dumps([PROMPTS, SETTINGS])], cwd=tmp_path,
        env={"PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("changes", "mesh"), [
    ({"position": "rotary", "attention_types": ("local", "linear"), "local_attention_radius": 5},
     {}), ({}, {**test_predictor.MESH, "eval_batch_size": 4})], ids=["one device", "mesh"])
def test_equals_predictions_and_scores(tmp_path, monkeypatch, changes, mesh):
    config = test_predictor.save_run(test_predictor.make_config(
        tmp_path / "run", predict_batch_size=4, **changes)).replace(**mesh)
    directory = str(tmp_path / "saved")
    monkeypatch.setattr(progress.tqdm, "silent", False)  # --quiet of another test
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", shown := Terminal())
        saved_model.export(config, directory)
    assert re.search(r"building the graph: .*reading the weights: .*writing: ", shown.getvalue())
    found = ask(directory, tmp_path)
    model = predictor.Predictor(config, encoders.load("byte"))
    for settings, tokens in zip(SETTINGS, found["generate"], strict=True):
        # Predictions leave the end-of-text id out.
        expected = [list(sample.tokens) for sample in model.generate(PROMPTS, 1, 8, **settings)]
        assert [[t for t in row if t != 256] for row in tokens] == expected
    assert found["generate"][0] != found["generate"][1]
    rows = [items.Row(prompt, len(prompt) - 1) for prompt in PROMPTS if len(prompt) > 1]
    scores = scorer.Scorer(config, 257, [scorer.size_of(config, rows)])
    scores.reload()
    sums = [sum(row) for row, prompt in zip(found["score"], PROMPTS, strict=True)
            if len(prompt) > 1]
    np.testing.assert_allclose(sums, scores.score(rows)[0], atol=1e-4)
    assert np.count_nonzero(found["score"]) == sum(len(prompt) - 1 for prompt in PROMPTS)
    assert "ids must be from 0 to 256" in found["refusal"]
    facts = json.loads((tmp_path / "saved" / "assets.extra" / "model.json").read_text())
    assert facts["encoder"] == "byte" and facts["n_ctx"] == test_predictor.N_CTX


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a run's config, its SavedModel)."""
    folder = tmp_path_factory.mktemp("saved")
    config = test_predictor.save_run(test_predictor.make_config(folder / "run",
                                                                predict_batch_size=4))
    saved_model.export(config, str(folder / "out"))
    return config, tf2.saved_model.load(str(folder / "out"))


def test_text_comes_in_and_out_and_stops_as_predictions_do(saved):
    config, loaded = saved
    texts = ["a", "b\u00e9", "xyz"]
    prompts = [list(text.encode()) for text in texts]
    model = predictor.Predictor(config, encoders.load("byte"))
    settings = dict(temperature=1.5, top_k=30, top_p=1.0, seed=3)
    asked = dict(number=[0, 1, 2], max_new_tokens=10, **settings)
    asked = {name: tf2.constant(value) for name, value in asked.items()}
    whole = model.generate(prompts, 3, 10, **settings)
    whole = [sample for sample in whole if sample.number == prompts.index(sample.prompt)]
    inner = [sample.text.encode("utf-8", "surrogatepass") for sample in whole]
    letters = [chr(t) for t in whole[1].tokens if t < 128]
    hard = "".join(chr(t) for t in whole[0].tokens[2:4] if t < 128) or "."
    for stop in ([], [hard, "$^"], [letters[-1], "none of them ("], ["\\E.*", letters[0]]):
        expected = [sample for sample in model.generate(prompts, 3, 10, stop=stop, **settings)
                    if sample.number == prompts.index(sample.prompt)]
        given = {**asked, "stop": tf2.constant(stop, tf2.string)}
        found = loaded.signatures["generate_text"](text=tf2.constant(texts), **given)
        rows = np.zeros([3, 3], np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            row[:len(prompt)] = prompt
        by_ids = loaded.signatures["generate"](
            tokens=tf2.constant(rows), lengths=tf2.constant([1, 3, 3]), **given)
        for name in ("tokens", "text"):
            assert (found[name].numpy() == by_ids[name].numpy()).all()
        tokens = [[t for t in row if t not in (-1, 256)] for row in found["tokens"].numpy()]
        assert tokens == [list(sample.tokens) for sample in expected]
        assert [text.decode("utf-8", "replace") for text in found["text"].numpy()] == [
            sample.text for sample in expected]
        assert all(inner[i].startswith(expected[i].text.encode()) for i in range(3))
    assert any(sample.reason == "stop" for sample in expected)
    scores = loaded.signatures["score_text"](text=tf2.constant(texts))["log_probs"].numpy()
    by_ids = loaded.signatures["score"](tokens=tf2.constant(rows), lengths=tf2.constant([1, 3, 3]))
    np.testing.assert_array_equal(scores, by_ids["log_probs"].numpy())
    with pytest.raises(tf.errors.InvalidArgumentError, match="stop: must not be empty"):
        loaded.signatures["generate_text"](text=tf2.constant(texts), **{
            **given, "stop": tf2.constant([""])})


def test_a_stop_that_ends_first_wins_over_one_that_begins_first():
    table = [b"a", b"b", b"cd", b"\xc3", b"\xa9"]
    cases = [([[0, 1, 2]], ["abcd", "b"], b"a", [0, 1, -1]),
             ([[0, 1, 2]], ["d", "bc"], b"a", [0, 1, 2]),  # both by one id
             ([[3, 4, 0]], ["a"], "\u00e9".encode(), [3, 4, 0]),
             ([[3, 0, 1]], ["b"], b"\xc3a", [3, 0, 1]), ([[0, 1, -1]], ["x"], b"ab", [0, 1, -1]),
             ([[2, 3, 4]], ["\u00e9"], b"cd", [2, 3, 4])]
    for tokens, stop, text, kept in cases:
        found, cut = saved_text.cut_at_stops(table, tf2.constant(tokens), tf2.constant(stop))
        assert cut.numpy().tolist() == [text] and found.numpy().tolist() == [kept]


def test_texts_become_the_encoders_ids(tmp_path):
    from encoders import char

    char.train(["ab\u00e9\U0001f469 c"]).save(str(tmp_path / "char.json"))
    for spec in ("byte", f"char:{tmp_path}/char.json"):
        encoder = encoders.load(spec)
        texts = ["ab", "\u00e9a\U0001f469", "c b"]
        rows, lengths = saved_text.ids(encoder, tf2.constant(texts))
        assert [row[:n].tolist() for row, n in zip(rows.numpy(), lengths.numpy(), strict=True)] == [
            encoder.encode(text) for text in texts]
    with pytest.raises(tf.errors.InvalidArgumentError, match="does not know"):
        saved_text.ids(encoder, tf2.constant(["z"]))


def test_what_is_there_is_kept(tmp_path):
    config = test_predictor.save_run(test_predictor.make_config(tmp_path / "run"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken is there already; name another"):
        saved_model.export(config, str(tmp_path / "taken"))
    with pytest.raises(UserError, match="checkpoint"):
        saved_model.export(config.replace(model_path=str(tmp_path / "none")), str(tmp_path / "new"))
    assert not tf.io.gfile.exists(str(tmp_path / "new"))
