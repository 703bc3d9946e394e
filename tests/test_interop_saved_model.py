"""SavedModels: loaded by plain TensorFlow elsewhere, they say what --predict and scores say."""

import json
import subprocess
import sys

import numpy as np
import pytest
import test_predictor

import encoders
from configs.errors import UserError
from interop import saved_model
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
        top_p=tf.constant(one["top_p"]), seed=tf.constant(one["seed"]))["tokens"].numpy()
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
def test_equals_predictions_and_scores(tmp_path, changes, mesh):
    config = test_predictor.save_run(test_predictor.make_config(
        tmp_path / "run", predict_batch_size=4, **changes)).replace(**mesh)
    directory = str(tmp_path / "saved")
    saved_model.export(config, directory)
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


def test_what_is_there_is_kept(tmp_path):
    config = test_predictor.save_run(test_predictor.make_config(tmp_path / "run"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken is there already; name another"):
        saved_model.export(config, str(tmp_path / "taken"))
    with pytest.raises(UserError, match="checkpoint"):
        saved_model.export(config.replace(model_path=str(tmp_path / "none")), str(tmp_path / "new"))
    assert not tf.io.gfile.exists(str(tmp_path / "new"))
