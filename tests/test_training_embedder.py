"""training/embedder.py against transformers, a student of known weights and training's own scores;
and what is looked at with it: zero-shot classes and the heat map of probe words."""

import io
import json

import clip_runs
import jobs
import numpy as np
import picture_shards
import projected
import pytest
import scalar_names
from PIL import Image

import encoders
from configs import schema
from configs.errors import UserError
from mesh.compat import tf
from training import embedder, heat_map, probe, zero_shot

BYTE = encoders.load("byte")
TEXTS = ["rose", "a", "", "red hoop", "é", "circle"]
WORDS = ["rose", "red", "hoop", "ring", "é"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# Embeddings.

@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A text tower of random weights: (its run's directory, the same of transformers)."""
    pytest.importorskip("torch", reason="compares with transformers")
    clip_models = pytest.importorskip("clip_models", reason="compares with transformers")
    directory = tmp_path_factory.mktemp("imported")
    model = clip_models.text_model(width=16, layers=2, heads=2, out=12, vocab=259, context=12,
                                   intermediate=64)
    tensors = {name: np.array(value.detach())
               for name, value in clip_models.openai_names(model).items()}
    return clip_runs.teacher(directory, 259, tensors, layers=2, context=12), model


def by_transformers(model, texts):
    """Embeddings of texts one by one, at unit length."""
    import clip_models

    found = []
    for text in texts:
        ids = [257, *text.encode(), 258]
        found.append(clip_models.embeddings(model, [ids], [len(ids) - 1]).detach().numpy()[0])
    return unit(np.stack(found))


@pytest.mark.parametrize(("length", "keys"), [
    (None, []), (8, ["eval_batch_size=4"]),
    (None, ["eval_batch_size=4", "train_batch_size=4", "mesh_shape=x:2,y:2",
            "layout=batch:x,clip_heads:y,clip_intermediate:y"])])
def test_texts_equal_transformers(imported, length, keys):
    path, model = imported
    config = schema.load(f"{path}/config.json", keys)
    made = embedder.Embedder(config, BYTE, length)
    found = made.texts(TEXTS)
    assert found.dtype == np.float32 and found.shape == (6, 12)
    np.testing.assert_allclose(found, by_transformers(model, TEXTS), atol=1e-5)
    assert made.texts([]).shape == (0, 12)
    with pytest.raises(UserError, match="'a text too long': has 15 tokens, and the model in .* "
                                        f"reads {length or 10} here"):
        made.texts(["a", "a text too long"])
    with pytest.raises(UserError, match="no image tower"):
        made.pictures(np.zeros([1, 32, 32, 3], np.uint8))
    with pytest.raises(UserError, match="says nothing at each token"):
        made.each_token(["a"])
    made.close()


def test_a_student_says_something_at_each_token(tmp_path):
    path, weights = clip_runs.student(tmp_path / "student")
    config = schema.load(f"{path}/config.json", ["eval_batch_size=2"])
    made = embedder.Embedder(config, BYTE, 9)
    texts = ["rose", "red hoop", "é"]
    found = made.each_token(texts)
    network = {name: value for name, value in weights.items() if "/target_" not in name}
    for text, rows in zip(texts, found, strict=True):
        said = clip_runs.said(config, [list(text.encode())], network)["y"][0]
        wanted = said * weights["clip_student/target_deviation"]
        np.testing.assert_allclose(rows, unit(wanted + weights["clip_student/target_mean"]),
                                   atol=1e-5)
    np.testing.assert_array_equal(made.texts(texts), [rows[-1] for rows in found])
    with pytest.raises(UserError, match="'': encoder byte finds no token in it"):
        made.texts(["a", ""])
    with pytest.raises(UserError, match="embeds texts alone"):
        made.pictures(np.zeros([1, 32, 32, 3], np.uint8))


def test_other_runs_are_refused(tmp_path):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path))
    with pytest.raises(UserError, match="a model of kind GPT has no embeddings"):
        embedder.Embedder(schema.load(path))
    config = clip_runs.student_config(tmp_path / "none")
    with pytest.raises(UserError, match="no checkpoint there"):
        embedder.Embedder(config)


# A CLIP run that is trained a little, with pictures of noise that captions number.

LABELS = {"parity": lambda n: ["even", "odd"][n % 2], "third": lambda n: f"{n % 3}"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The config's path of a CLIP run of 4 steps, evaluated at 2 and 4, and its Result."""
    directory = tmp_path_factory.mktemp("trained")
    inputs = picture_shards.inputs_of(directory, [16])
    val = picture_shards.inputs_of(directory, [10], "val", 100)
    picture_shards.encode(directory, "--input", inputs, "--val_input", val, "--group", 2)
    labelled(directory / "seen_0.tfrecords", range(100, 105))
    labelled(directory / "seen_1.tfrecords", range(105, 107))
    prompts = {"parity": {"even": ["100", "102x"], "odd": ["101"]},
               "third": {"0": ["102"], "1": ["100x", "103", "106"], "2": ["101"]}}
    (directory / "tasks.jsonl").write_text("\n".join(json.dumps(
        {"name": name, "pictures": "seen_*.tfrecords", "label": name, "prompts": texts})
        for name, texts in prompts.items()))
    path = jobs.config(
        directory, str(directory / "p.json"), model="clip", activation_function="quick_gelu",
        n_head=2, clip={"image_size": 8, "image_channels": [8, 16], "out": 12,
                        "zero_shot": str(directory / "tasks.jsonl"), "probe_words": WORDS},
        eval_batch_size=4, eval_steps=None, steps_per_checkpoint=2)
    return path, jobs.process(path), prompts


def labelled(path, numbers):
    """Writes pictures with their LABELS."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in numbers:
            example = tf.train.Example()
            values = {"image": picture_shards.picture(number),
                      **{name: label(number).encode() for name, label in LABELS.items()}}
            for name, value in values.items():
                example.features.feature[name].bytes_list.value.append(value)
            writer.write(example.SerializeToString())


def pixels(numbers):
    return np.stack([np.array(Image.open(io.BytesIO(picture_shards.picture(n)))) for n in numbers])


def test_pictures_and_texts_find_each_other_as_often_as_training_says(trained):
    path, result, _ = trained
    made = embedder.Embedder(schema.load(path))
    pictures = made.pictures(pixels(range(100, 110)))
    texts = made.texts([picture_shards.captions(n)[0] for n in range(100, 110)])
    assert pictures.shape == texts.shape == (10, 12)
    scale = np.exp(jobs.weights(made.config.model_path)["clip/logit_scale"])
    found, losses = {"caption_to_picture": 0, "picture_to_caption": 0}, []
    for first in (0, 4, 8):
        near = texts[first:first + 4] @ pictures[first:first + 4].T
        for name, matrix in zip(found, (near, near.T), strict=True):
            found[name] += np.sum(matrix.argmax(1) == np.arange(len(near)))
            log_p = matrix * scale - np.log(np.exp(matrix * scale).sum(1, keepdims=True))
            losses += list(-np.diag(log_p))
    for name, count in found.items():
        assert result.summary[name] == pytest.approx(count / 10)
    assert result.summary["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    with pytest.raises(UserError, match=r"reads pictures of \[8, 8, 3\], not \[9, 8, 3\]"):
        made.pictures(np.zeros([1, 9, 8, 3], np.uint8))


def test_names_of_scalars(trained, student):
    zero_shot = [f"zero_shot/{task}{of}" for task in LABELS for of in ("", "/chance")]
    scalar_names.check("clip", schema.load(trained[0]).model_path, zero_shot)
    scalar_names.check("student", schema.load(student[0]).model_path, ["probe/correlation"])


def test_zero_shot_equals_numpy(trained):
    path, result, prompts = trained
    made = embedder.Embedder(schema.load(path))
    pictures = made.pictures(pixels(range(100, 107)))
    for task, label in LABELS.items():
        classes = [unit(unit(made.texts(texts)).mean(0)) for texts in prompts[task].values()]
        chosen = [list(prompts[task])[i] for i in (pictures @ np.stack(classes).T).argmax(1)]
        share = np.mean([name == label(n) for name, n in zip(chosen, range(100, 107), strict=True)])
        assert result.summary[f"zero_shot/{task}"] == pytest.approx(share)
        assert result.summary[f"zero_shot/{task}/chance"] == pytest.approx(1 / len(classes))
    config = made.config
    lines = jobs.metrics(config.model_path)
    shown = jobs.scalars(f"{config.model_path}/eval")
    assert [line["step"] for line in lines] == [2, 4]
    for name in ("zero_shot/parity", "zero_shot/third", "zero_shot/parity/chance"):
        assert shown[name] == pytest.approx({line["step"]: line[name] for line in lines})
    assert "zero_shot/parity" in result.stderr.replace(" ", "_")


@pytest.mark.parametrize(("change", "message"), [
    ("no JSON", "tasks.jsonl:1: no JSON"),
    ("[1]", "tasks.jsonl:1: a task needs name and pictures"),
    ({"pictures": None}, "tasks.jsonl:1: a task needs name and pictures"),
    ({"classes": {}}, "tasks.jsonl:1: classes is no key of a task"),
    ({"prompts": {"even": ["a"]}}, "prompts needs two classes or more"),
    ({"prompts": {"even": ["a"], "odd": []}}, "prompts needs two classes or more"),
    ({"prompts": {"even": ["a"], "uneven": ["b"]}},
     r"seen_0.tfrecords: record 1: its parity 'odd' has no prompts in task t"),
    ({"label": "colour"}, "seen_0.tfrecords: record 0: needs the features image and colour"),
    ({"pictures": "none_*"}, "task t: no pictures .*none_\\*"),
    (None, "has no tasks")])
def test_zero_shot_refuses(tmp_path, change, message):
    labelled(tmp_path / "seen_0.tfrecords", range(3))
    values = {"name": "t", "pictures": "seen_*.tfrecords", "label": "parity",
              "prompts": {"even": ["a"], "odd": ["b"]}}
    text = change if isinstance(change, str) else "" if change is None else json.dumps(
        {**values, **change})
    (tmp_path / "tasks.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        zero_shot.ZeroShot(str(tmp_path / "tasks.jsonl"), 8)


@pytest.mark.parametrize("pictures", ["seen.tfrecords", "se*.tfrecords", "/seen.tfrecords",
                                      "file:///seen.tfrecords"])
def test_pictures_are_found_beside_the_tasks_or_anywhere(tmp_path, pictures):
    directory = tmp_path / ("plain" if "*" in pictures else "odd [1]")
    directory.mkdir()
    labelled(directory / "seen.tfrecords", range(3))
    absolute = pictures.replace("/seen", f"{directory}/seen") if "/" in pictures else pictures
    (directory / "tasks.jsonl").write_text(json.dumps(
        {"name": "t", "pictures": absolute, "label": "parity",
         "prompts": {"even": ["a"], "odd": ["b"]}}))
    made = zero_shot.ZeroShot(str(directory / "tasks.jsonl"), 8)
    assert made.prompts == ["a", "b"]


def test_zero_shot_refuses_what_lies_beside_it(tmp_path):
    path = tmp_path / "tasks.jsonl"
    with pytest.raises(UserError, match="clip.zero_shot: .* cannot be read"):
        zero_shot.ZeroShot(str(path), 8)
    labelled(tmp_path / "seen.tfrecords", range(3))
    line = json.dumps({"name": "t", "pictures": "seen.tfrecords", "label": "parity",
                       "prompts": {"even": ["a"], "odd": ["b"]}})
    path.write_text(f"{line}\n{line}\n")
    with pytest.raises(UserError, match="two tasks are called t"):
        zero_shot.ZeroShot(str(path), 8)
    path.write_text(line)
    with pytest.raises(UserError, match="a picture of 8 × 8 pixels, but clip.image_size is 16"):
        zero_shot.ZeroShot(str(path), 16)
    data = (tmp_path / "seen.tfrecords").read_bytes()
    (tmp_path / "seen.tfrecords").write_bytes(data[:-9])
    with pytest.raises(UserError, match="seen.tfrecords: damaged after record 1"):
        zero_shot.ZeroShot(str(path), 8)
    (tmp_path / "seen.tfrecords").write_bytes(b"")
    with pytest.raises(UserError, match="task t: no pictures .*seen.tfrecords"):
        zero_shot.ZeroShot(str(path), 8)


# Probe words.

def shown_picture(directory, tag):
    """A picture that TensorBoard shows: {step: (width, height, PNG)}."""
    events = jobs._events(directory)
    assert events.SummaryMetadata(tag).plugin_data.plugin_name == "images"
    return {event.step: tf.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)}


def test_a_clip_runs_probe_is_drawn(trained):
    path, result, _ = trained
    config = schema.load(path)
    pictures = shown_picture(f"{config.model_path}/eval", "probe")
    assert list(pictures) == [2, 4]
    for step, (width, height, png) in pictures.items():
        with open(f"{config.model_path}/probe_{step}.png", "rb") as file:
            assert file.read() == png
        assert Image.open(io.BytesIO(png)).size == (int(width), int(height))
    assert not any(name.startswith("probe") for name in result.summary)
    found = embedder.Embedder(config).texts(WORDS)
    found = unit(found - found.mean(0))
    assert values_of(pictures[4][2], {"CLIP's text tower": found @ found.T})


def values_of(png, panels):
    """Whether a heat map's cells have the colours of these values, in order.

    A cell is looked for where an own drawing of a map with as many words has it.
    """
    import matplotlib

    image = np.array(Image.open(io.BytesIO(png)).convert("RGB"))
    drawn = heat_map.figure(panels, WORDS, "step 4: cosines of embeddings less their mean")
    drawn.draw_without_rendering()
    colours = matplotlib.colormaps["RdBu_r"]
    for axes, values in zip(drawn.axes, panels.values(), strict=False):
        for row, column in np.ndindex(*values.shape):
            x, y = axes.transData.transform((column, row))
            wanted = np.array(colours((values[row, column] + 1) / 2)[:3]) * 255
            if np.abs(image[image.shape[0] - 1 - int(y), int(x)] - wanted).max() > 6:
                return False
    return True


def test_a_heat_map_shows_the_values_and_the_words():
    random = np.random.RandomState(0)
    panels = {"one": random.uniform(-1, 1, [5, 5]), "other": random.uniform(-1, 1, [5, 5])}
    drawn = heat_map.figure(panels, WORDS, "step 4")
    png = heat_map.png(drawn)
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.size == tuple(np.round(drawn.get_size_inches() * drawn.dpi).astype(int))
    assert values_of(png, panels)
    assert not values_of(png, {"one": panels["one"].T, "other": panels["other"]})
    assert not values_of(png, {"one": panels["one"], "other": panels["one"]})
    for axes, heading in zip(drawn.axes, panels, strict=False):
        assert axes.get_title() == heading
        assert [text.get_text() for text in axes.get_xticklabels()] == WORDS
        assert [text.get_text() for text in axes.get_yticklabels()] == WORDS


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The config's path of a student's run with probe words, its Result, and its teacher's."""
    directory = tmp_path_factory.mktemp("student")
    teacher = clip_runs.teacher(directory, 259)
    path = jobs.config(
        directory, jobs.dataset(directory), model="clip_student", n_head=2, position="rotary",
        n_ctx=12, activation_function="quick_gelu", eval_steps=1, train_steps=3,
        clip={"teacher": teacher, "window": 6, "positions": 2, "probe_words": WORDS})
    return path, jobs.process(path), teacher


def test_a_students_probe_is_compared_with_its_teachers(student):
    path, result, teacher = student
    config = schema.load(path)
    mean = jobs.weights(config.model_path)["clip_student/target_mean"]
    assert np.linalg.norm(mean) > 0.1
    panels = {}
    for name, made in (("teacher", embedder.Embedder(schema.load(f"{teacher}/config.json"), BYTE)),
                       ("student", embedder.Embedder(config))):
        found = unit(made.texts(WORDS) - mean)
        panels[name] = found @ found.T
    pairs = np.triu_indices(5, 1)
    wanted = np.corrcoef(panels["teacher"][pairs], panels["student"][pairs])[0, 1]
    assert result.summary["probe/correlation"] == pytest.approx(wanted, abs=1e-4)
    assert jobs.scalars(f"{config.model_path}/eval")["probe/correlation"] == pytest.approx(
        {3: wanted}, abs=1e-4)
    (_, _, png), = shown_picture(f"{config.model_path}/eval", "probe").values()
    assert values_of(png, panels)


def test_a_new_run_deletes_the_probes_of_the_old(student, tmp_path, capsys):
    path, _, teacher = student
    jobs.here(capsys, path, "--model_path", tmp_path / "run", "--set", "train_steps=1")
    assert (tmp_path / "run" / "probe_1.png").exists()
    jobs.here(capsys, path, "--model_path", tmp_path / "run", "--set", "eval_steps=0", "--new",
              "--yes")
    assert not (tmp_path / "run" / "probe_1.png").exists()


def test_the_projector_shows_a_student_beside_its_teacher(student):
    path, _, teacher = student
    config = schema.load(path)
    shown = projected.Space(config.model_path, "clip, step 3")
    wanted = [embedder.Embedder(schema.load(f"{run}/config.json"), BYTE).texts(WORDS)
              for run in (teacher, config.model_path)]
    np.testing.assert_allclose(shown.vectors, np.concatenate(wanted), atol=1e-4)
    assert shown.labels == [["text", "what"], *([word, kind] for kind in ("teacher", "student")
                                               for word in WORDS)]
    assert shown.pictures is None


def test_the_projector_shows_pictures_and_captions(trained):
    """Read as a browser asks TensorBoard for it."""
    path, _, _ = trained
    config = schema.load(path)
    shown = projected.Space(config.model_path, "clip, step 4")
    made = embedder.Embedder(config, BYTE)
    captions = [picture_shards.captions(n)[0] for n in range(100, 110)]
    wanted = [made.texts(WORDS), made.pictures(pixels(range(100, 110))), made.texts(captions)]
    np.testing.assert_allclose(shown.vectors, np.concatenate(wanted), atol=1e-4)
    assert shown.labels == [["text", "what"], *([word, "text"] for word in WORDS),
                            *([text, what] for what in ("picture", "text") for text in captions)]
    np.testing.assert_array_equal(shown.pictures[5:15], pixels(range(100, 110)))
    assert len(shown.pictures) == 25 and len(np.unique(shown.pictures[:5])) == 2
    tokens = projected.Space(config.model_path, "tokens, step 4")
    np.testing.assert_allclose(
        tokens.vectors, jobs.weights(config.model_path)["clip_text/wte"][:257], rtol=1e-4)


@pytest.mark.parametrize(("words", "message"), [
    (["a", "b"], "too few to compare"), (["a", "b", "a"], '"a" is listed twice'),
    ("red", "must be a list"), (["a", "b", " "], "must be a list"), ([1, 2, 3], "must be a list")])
def test_probe_words_are_checked(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        clip_runs.student_config(tmp_path, clip={"probe_words": words})


def test_a_probe_word_that_the_model_cannot_read_is_refused(student, tmp_path, capsys):
    path, _, _ = student
    result = jobs.here(capsys, path, "--model_path", tmp_path / "run", "--set",
                       'clip.probe_words=["a","b","rectangle"]')
    assert "clip.probe_words: 'rectangle' has 9 tokens, and the model reads 1 to 6" in result.error
    assert not (tmp_path / "run").exists()


def test_correlation_of_equal_and_of_constant_values():
    values = np.random.RandomState(0).randn(4, 4)
    assert probe.correlate(values, values) == pytest.approx(1)
    assert probe.correlate(values, -values) == pytest.approx(-1)
    assert probe.correlate(values, np.ones([4, 4])) == 0
