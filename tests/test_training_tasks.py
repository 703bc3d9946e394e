"""Scores on files of items: against transformers' GPT-2, by hand, in runs, and what is refused."""

import json
import math

import jobs
import numpy as np
import pytest

from configs import schema
from configs.errors import UserError
from encoders.char import CharEncoder
from mesh.compat import tf
from training import items, language_models, scorer, tasks

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123 .\né"
ENCODER = CharEncoder("char:none.json", {**{c: i for i, c in enumerate(LETTERS)},
                                         "<|endoftext|>": len(LETTERS)}, "none.json")
N_CTX = 16
CHOICES = [
    {"prefix": "the rose is", "choices": ["red", "blue", "x"], "answer": "blue", "told": True,
     "about": "colour", "group": 0, "kind": "nearest", "subjects": ["rose"]},
    {"prefix": "hoop ", "choices": ["ring", "a box"], "answer": 0, "told": False,
     "about": "shape"},
    {"prefix": "this is longer than what the model sees at once", "choices": ["é", "yes", "no"],
     "answer": 2, "told": True, "about": "shape"},
    {"prefix": "", "choices": ["a", "b"], "answer": "a", "told": False, "about": "colour"}]
COMPLETIONS = [{"context": "say", "completion": " b"}, {"prefix": "n", "completion": "ot"},
               {"context": "what was said before is cut off", "completion": " here"}]
TEXTS = [{"text": "short"}, {"text": "e"}, {"text": "sixteen letters."}, {"text": "a" * 17},
         {"text": "A document of more than two windows. The last is short"}]


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def make_config(path, **changes):
    keys = dict(n_layer=2, n_head=4, n_embd=32, n_ctx=N_CTX, n_vocab=61, pad_vocab_multiple=8,
                lr=1e-3, train_batch_size=4, train_steps=1, model_path=str(path))
    return schema.RunConfig(**{**keys, **changes})


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """transformers' GPT-2 with random weights, and a directory with a checkpoint of the same."""
    torch = pytest.importorskip("torch", reason="compares with transformers")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    import test_models_gpt as ours

    module = ours.shake(transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=61, n_positions=N_CTX, n_embd=32, n_layer=2, n_head=4,
        activation_function="gelu_new", bos_token_id=0, eos_token_id=0)))
    directory = tmp_path_factory.mktemp("gpt2")
    with tf.Graph().as_default(), tf.Session() as session:
        for name, parameter in module.named_parameters():
            our_name, convert = ours.gpt2_names(name)
            tf.Variable(convert(parameter.detach().numpy()), name=our_name)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(directory / "model.ckpt"), global_step=3)

    def log_likelihoods(ids):
        """log p of ids[1:], and the likeliest id in the place of each, for a list of ids."""
        with torch.no_grad():
            found = torch.log_softmax(module(torch.tensor([ids[:-1]])).logits[0], -1).numpy()
        return found[np.arange(len(ids) - 1), ids[1:]], found.argmax(-1)

    return directory, log_likelihoods


def continuation(log_likelihoods, prefix, text, begins=False):
    """(log-likelihood, whether it is the greedy one) of a text after a prefix.

    White space at the prefix's end counts as the text's. Where there is no prefix, or if it
    `begins` so, the end-of-text id comes first.
    """
    start = [60] if begins or not prefix.strip() else []
    ids = [*start, *map(LETTERS.index, prefix + text)][-N_CTX - 1:]
    count = len(prefix) - len(prefix.rstrip()) + len(text)
    values, likeliest = log_likelihoods(ids)
    return values[-count:].sum(), (likeliest[-count:] == ids[-count:]).all()


MESHES = [("", ""), ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y"),
          ("x:2,y:2", "embd:x,vocab:y"), ("x:2,y:2", "sequence:x,memory_length:y")]


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_rows_equal_transformers(gpt2, mesh_shape, layout):
    directory, log_likelihoods = gpt2
    config = make_config(directory, mesh_shape=mesh_shape, layout=layout, eval_batch_size=4)
    random = np.random.RandomState(0)
    rows, expected = [], []
    for _ in range(27):
        ids = random.randint(0, 61, random.randint(2, N_CTX + 2)).tolist()
        if len(rows) % 3 == 0:  # let the last one be what the model would say
            ids[-1] = int(log_likelihoods(ids)[1][-1])
        count = 1 if len(rows) % 3 == 0 else int(random.randint(1, len(ids)))
        rows.append(items.Row(ids, count))
        values, likeliest = log_likelihoods(ids)
        expected.append((values[-count:].sum(), (likeliest[-count:] == ids[-count:]).all()))
    model = scorer.Scorer(config, 61, [scorer.Size(N_CTX // 4, N_CTX // 4),
                                       scorer.Size(N_CTX, N_CTX)])
    model.reload()
    sums, likeliest = model.score(rows)
    short = [i for i, row in enumerate(rows) if len(row.ids) <= N_CTX // 4 + 1]
    assert len(short) > 4
    np.testing.assert_allclose(model.score([rows[i] for i in short])[0], sums[short], atol=1e-4)
    np.testing.assert_allclose(sums, [s for s, _ in expected], atol=1e-4)
    assert likeliest.tolist() == [bool(right) for _, right in expected]
    assert 9 <= likeliest.sum() < 27


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_rows_of_one_beginning_equal_transformers(gpt2, mesh_shape, layout):
    """Few ids of a row are asked for: rows that differ in the last id alone are read once."""
    directory, log_likelihoods = gpt2
    config = make_config(directory, mesh_shape=mesh_shape, layout=layout, eval_batch_size=2)
    random = np.random.RandomState(1)
    rows, expected = [], []
    for length in (N_CTX, N_CTX // 2 + 2, N_CTX, 7, 7):
        ids = random.randint(0, 61, length).tolist()
        values, likeliest = log_likelihoods([*ids, 0])
        for last in (int(likeliest[-1]), *random.permutation(61)[:2].tolist()):
            values = log_likelihoods([*ids, last])[0]
            rows.append(items.Row([*ids, last], 1))
            expected.append((values[-1], last == likeliest[-1]))
        rows.append(items.Row([*ids, 5], 2))
        expected.append((log_likelihoods([*ids, 5])[0][-2:].sum(),
                         (likeliest[-2:] == [ids[-1], 5]).all()))
    size = scorer.size_of(config, rows)
    assert size == (N_CTX, 5)
    assert len(scorer._read(rows, size)) == 5
    for few in (size, scorer.Size(N_CTX, 2)):  # the latter has to read them several times
        model = scorer.Scorer(config, 61, [few])
        model.reload()
        sums, right = model.score(rows)
        np.testing.assert_allclose(sums, [s for s, _ in expected], atol=1e-4)
        assert right.tolist() == [bool(r) for _, r in expected]


@pytest.mark.parametrize(("mesh_shape", "layout", "begins"), [
    (*MESHES[0], False), (*MESHES[1], True)])
def test_choices_equal_transformers(gpt2, tmp_path, mesh_shape, layout, begins):
    directory, log_likelihoods = gpt2
    config = make_config(directory, mesh_shape=mesh_shape, layout=layout, eval_tasks_bos=begins,
                         eval_tasks=[write(tmp_path / "dev.jsonl", CHOICES)])
    found = tasks.Tasks(config, ENCODER).scores()["dev"]
    answers, normed, by_byte, losses = [], [], [], []
    for item in CHOICES:
        values = [continuation(log_likelihoods, item["prefix"], " " + text, begins)[0]
                  for text in item["choices"]]
        right = item["answer"]
        right = right if isinstance(right, int) else item["choices"].index(right)
        answers.append(int(np.argmax(values)) == right)
        for found_right, sizes in [(normed, map(len, item["choices"])),
                                   (by_byte, [len(text.encode()) for text in item["choices"]])]:
            found_right.append(int(np.argmax(np.array(values) / list(sizes))) == right)
        losses.append(-values[right])
    assert found["items"] == 4 and found["cut"] == 1
    assert found["acc"] == np.mean(answers) and found["acc_norm"] == np.mean(normed)
    assert found["acc_bytes"] == np.mean(by_byte)
    assert found["answer_loss"] == pytest.approx(np.mean(losses), abs=1e-4)
    assert found["answer_loss_per_token"] == pytest.approx(sum(losses) / (5 + 6 + 3 + 2), abs=1e-4)
    assert found["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    for part, members in [(found["told"], [0, 2]), (found["untold"], [1, 3]),
                          (found["about"]["colour"], [0, 3]), (found["about"]["shape"], [1, 2])]:
        assert part["items"] == 2 and part["acc"] == np.mean([answers[i] for i in members])
        assert part["answer_loss"] == pytest.approx(np.mean([losses[i] for i in members]), abs=1e-4)
    assert set(found["about"]) == {"colour", "shape"}


def test_completions_and_texts_equal_transformers(gpt2, tmp_path):
    directory, log_likelihoods = gpt2
    likely = LETTERS[log_likelihoods([*map(LETTERS.index, "and"), 0])[1][-1]]
    completions = [*COMPLETIONS, {"prefix": "and", "completion": likely}]
    config = make_config(directory, eval_tasks=[
        write(tmp_path / "words.jsonl", completions), write(tmp_path / "texts.jsonl", TEXTS)])
    found = tasks.Tasks(config, ENCODER).scores()
    expected = [continuation(log_likelihoods, item.get("prefix", item.get("context")),
                             item["completion"]) for item in completions]
    words = found["words"]
    assert words["items"] == 4 and words["cut"] == 1 and "chance" not in words
    assert words["acc"] == np.mean([right for _, right in expected]) and words["acc"] > 0
    assert words["answer_loss"] == pytest.approx(-np.mean([s for s, _ in expected]), abs=1e-4)
    assert words["perplexity"] == pytest.approx(math.exp(words["answer_loss"]))
    nats = tokens = 0
    for item in TEXTS:
        ids = [60, *map(LETTERS.index, item["text"])]
        starts = range(1, len(ids), N_CTX)
        for start in starts:  # each token after as many as fit into the window that holds it
            end = min(start + N_CTX, len(ids))
            values, _ = log_likelihoods(ids[max(0, end - N_CTX - 1):end])
            nats -= values[-(end - start):].sum()
            tokens += end - start
    texts = found["texts"]
    size = sum(len(item["text"].encode()) for item in TEXTS)
    assert (texts["items"], texts["tokens"]) == (5, tokens) and tokens == size
    assert texts["loss"] == pytest.approx(nats / tokens, abs=1e-4)
    assert texts["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, abs=1e-4)
    assert texts["bits_per_decoded_byte"] == texts["bits_per_byte"]


def test_scores_by_hand(tmp_path, monkeypatch):
    """Accuracy, accuracy by byte and losses of log-likelihoods that are given."""
    class Given:
        def __init__(self, *_):
            pass

        def reload(self):
            pass

        def score(self, rows):
            return np.array([-2.0, -3.5, -1.0, -9.0]), np.zeros(4, bool)

    monkeypatch.setattr(scorer, "Scorer", Given)
    path = write(tmp_path / "dev.jsonl", [
        {"prefix": "x", "choices": ["aa", "éé."], "answer": 1},
        {"query": "x", "endings": ["b", "c"], "gold": 0}])
    found = tasks.Tasks(make_config(tmp_path, eval_tasks=[path]), ENCODER).scores()
    # -3.5 for three characters is less a character than -2 for two, but more a byte: é has two.
    # The right ones have e^-1.5 / (1 + e^-1.5) and 1 / (1 + e^-8) of their choices' probability.
    among = pytest.approx((math.log(1 + math.exp(1.5)) + math.log(1 + math.exp(-8))) / 2)
    scores = {"acc": 0.5, "acc_norm": 0.5, "acc_bytes": 1.0, "answer_loss": 2.25,
              "choice_loss": among, "answer_loss_per_token": pytest.approx(4.5 / 6), "chance": 0.5}
    assert found == {"dev": {"items": 2, **scores, "cut": 0}}
    assert tasks.scalars(found) == {f"tasks/dev/{name}": value for name, value in scores.items()}
    assert tasks.scalars({"d": {"told": {"acc": 1.0}}}) == {"tasks/d/told/acc": 1.0}


def test_white_space_at_a_prefix_end_belongs_to_the_continuation():
    item = items._item(b'{"prefix": "ab ", "choices": ["c", "de"], "answer": 0}', "x:1")
    assert [(ENCODER.decode(row.ids), row.count) for row in items.rows(item, ENCODER, 16)] == [
        ("ab  c", 3), ("ab  de", 4)]
    assert items.rows(item, ENCODER, 16)[0].ids[0] == ENCODER.encode("a")[0]
    assert items.rows(item, ENCODER, 16, begins=True)[0].ids[0] == 60
    bare = items._item(b'{"prefix": " ", "completion": "c"}', "x:1")
    [row] = items.rows(bare, ENCODER, 16)
    assert row.ids[0] == 60 and (ENCODER.decode(row.ids), row.count) == (" c", 2)


@pytest.mark.parametrize("length", [1, 2, 4, 5, 9, 14])
def test_windows_score_each_token_once_after_as_many_as_fit(length):
    ids = list(range(length + 1))
    rows = items.windows(ids, 4, "x:1")
    assert [i for row in rows for i in row.ids[-row.count:]] == ids[1:]
    for row in rows:
        assert row.ids == ids[row.ids[0]:row.ids[-1] + 1]
        assert len(row.ids) == min(5, length + 1)


@pytest.mark.parametrize(("longest", "changes", "length"), [
    (5, {}, 8), (8, {}, 8), (9, {}, 16), (16, {}, 16), (1, {}, 1), (4, {"n_ctx": 12}, 6),
    (2, {"n_ctx": 12}, 3)])
def test_rows_are_no_longer_than_they_have_to_be(tmp_path, longest, changes, length):
    assert language_models.row_length(make_config(tmp_path, **changes), longest) == length


@pytest.mark.parametrize(("line", "wanted"), [
    ("{", "no JSON"), ("3", "no JSON object"), ("\xff", "no JSON"),
    ('{"prefix": "a"}', "has none of choices, completion and text"),
    ('{"text": "a", "completion": "b"}', "has completion and text"),
    ('{"prefix": "a", "choices": ["b"], "answer": 0}', "a list of two or more"),
    ('{"prefix": "a", "choices": "bc", "answer": 0}', "a list of two or more"),
    ('{"prefix": "a", "choices": ["b", ""], "answer": 0}', "choices 1 is empty"),
    ('{"prefix": "a", "choices": ["b", 3], "answer": 0}', "choices 1 must be text"),
    ('{"prefix": "a", "choices": ["b", "c"], "answer": 2}', "answer 2 is neither"),
    ('{"prefix": "a", "choices": ["b", "c"], "answer": -1}', "answer -1 is neither"),
    ('{"prefix": "a", "choices": ["b", "c"], "answer": "2"}', "answer 2 is neither"),
    ('{"prefix": "a", "choices": ["b", "c"], "answer": true}', "answer true is neither"),
    ('{"prefix": "a", "choices": ["b", "c"], "answer": "d"}', 'answer "d" is neither'),
    ('{"prefix": "a", "choices": ["b", "c"]}', "answer null is neither"),
    ('{"choices": ["b", "c"], "answer": 0}', "prefix must be text"),
    ('{"prefix": "a", "choices": ["b", "c"], "answer": 0, "told": 1}', "told must be"),
    ('{"prefix": "a", "choices": ["b", "c"], "answer": 0, "about": 1}', "about must be text"),
    ('{"prefix": "a", "completion": ""}', "completion is empty"),
    ('{"text": ""}', "text is empty"), ('{"text": "a"}', "is an item with text in a file"),
    ('{"prefix": "a", "choices": ["b", "ü"], "answer": 0}', "character 'ü'"),
    ('{"prefix": "a", "choices": ["b", "aaaaaaaaaaaaaaaa"], "answer": 0}',
     "is 17 tokens after its prefix; from 1 to n_ctx = 16")])
def test_bad_items_are_refused_with_their_line(tmp_path, line, wanted):
    path = tmp_path / "dev.jsonl"
    good = json.dumps(CHOICES[0])
    path.write_bytes(f"{good}\n\n{line}\n".encode("latin-1" if line == "\xff" else "utf-8"))
    with pytest.raises(UserError) as caught:
        tasks.Tasks(make_config(tmp_path, eval_tasks=[str(path)]), ENCODER)
    assert str(caught.value).startswith(f"eval_tasks: {path}:3: ")
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("line, answer", [
    ({"query": "a", "choices": ["b", "c"], "gold": 1}, 1),
    ({"ctx": "a", "endings": ["b", "c"], "label": "1"}, 1),  # HellaSwag's, as the hub has it
    ({"ctx": "a", "endings": ["1", "0"], "label": "1"}, 0),  # a choice comes before a number
    ({"context": "a", "choices": ["b", "c"], "answer": "c"}, 1)])
def test_files_of_others_are_read(tmp_path, line, answer):
    item, = items.read(write(tmp_path / "dev.jsonl", [line]))
    assert (item.kind, item.prefix, item.answer) == ("choices", "a", answer)


def test_files_that_are_not_there_or_empty(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    for name, wanted in [("empty.jsonl", "has no items"), ("none.jsonl", "cannot be read")]:
        with pytest.raises(UserError, match=f"{name} {wanted}"):
            tasks.Tasks(make_config(tmp_path, eval_tasks=[str(tmp_path / name)]), ENCODER)


@pytest.mark.parametrize(("value", "wanted"), [
    (["hellaswag"], '"hellaswag" is no path of a JSONL file'), ("a.jsonl", "must be a list"),
    ([3], "must be a list"), (["a/x.jsonl", "b/x.jsonl"], "two files are called x")])
def test_eval_tasks_in_configs(tmp_path, value, wanted):
    path = tmp_path / "run.json"
    values = dict(n_layer=1, n_head=1, n_embd=8, n_ctx=8, n_vocab=9, train_batch_size=1, lr=1e-3,
                  train_steps=1, model_path="unused")
    path.write_text(json.dumps({**values, "eval_tasks": value}))
    with pytest.raises(UserError) as caught:
        schema.load(str(path))
    assert f"{path}: eval_tasks: " in str(caught.value) and wanted in str(caught.value)
    for none in (None, []):
        path.write_text(json.dumps({**values, "eval_tasks": none}))
        assert schema.load(str(path)).eval_tasks == []


def test_more_ids_than_the_token_table_has(tmp_path):
    path = write(tmp_path / "dev.jsonl", CHOICES)
    with pytest.raises(UserError, match="n_vocab: 50 is less than the 61 ids"):
        tasks.Tasks(make_config(tmp_path, eval_tasks=[path], n_vocab=50), ENCODER)


# In runs.

FACTS = [("sky", "blue"), ("sun", "gold"), ("fog", "grey"), ("sea", "teal")]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A run that learns FACTS and is scored on them twice: (its config, its directory, Result)."""
    directory = tmp_path_factory.mktemp("learnt")
    lines = [f"the {thing} is {colour}." for thing, colour in FACTS]
    documents = [" ".join(np.random.RandomState(i).permutation(lines * 3)) for i in range(40)]
    told = [{"prefix": f"the {thing} is", "choices": [c for _, c in FACTS], "answer": colour,
             "told": thing != "sea"} for thing, colour in FACTS]
    texts = [{"text": documents[0]}]
    path = jobs.config(
        directory, jobs.dataset(directory, documents=documents), n_ctx=16, n_embd=32,
        train_steps=300, steps_per_checkpoint=200, iterations=50, eval_steps=4, train_batch_size=16,
        eval_tasks=[write(directory / "facts.jsonl", told), write(directory / "docs.jsonl", texts)])
    return path, directory / "run", jobs.process(path)


def test_a_model_that_has_learnt_the_facts_scores_them(learnt):
    scores = learnt[2].summary["tasks"]
    assert list(scores) == ["facts", "docs"]
    facts = scores["facts"]
    assert (facts["items"], facts["acc"], facts["chance"]) == (4, 1.0, 0.25)
    assert (facts["told"]["items"], facts["untold"]["items"]) == (3, 1)
    assert facts["answer_loss"] < 0.5 and scores["docs"]["loss"] < 0.7
    assert scores["docs"]["bits_per_byte"] == pytest.approx(
        scores["docs"]["loss"] / math.log(2))  # a byte a token


def test_scores_are_written_at_each_evaluation(learnt):
    _, model_path, result = learnt
    first, last = jobs.metrics(model_path)
    assert (first["step"], last["step"]) == (200, 300)
    assert last["tasks"] == result.summary["tasks"] != first["tasks"]
    shown = jobs.scalars(str(model_path / "eval"))
    for tag, value in tasks.scalars(last["tasks"]).items():
        assert shown[tag][300] == pytest.approx(value), tag
    assert shown["tasks/facts/told/answer_loss"].keys() == {200, 300}
    line = [line for line in result.stderr.splitlines() if line.startswith("step 300: ")][0]
    assert "facts acc 1.000 (chance 0.250)" in line and "docs" in line


def test_eval_scores_tasks_too(learnt, capsys):
    path, model_path, result = learnt
    summary = jobs.here(capsys, path, "--eval").summary
    assert tasks.scalars(summary["tasks"]) == pytest.approx(
        tasks.scalars(result.summary["tasks"]), abs=1e-5)
    assert jobs.metrics(model_path)[-1] == summary


def test_bad_items_end_a_run_before_it_deletes_another(learnt, capsys, tmp_path):
    path, model_path, _ = learnt
    before = jobs.steps(str(model_path))
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    error = jobs.here(capsys, path, "--new", "--yes", "--set", f'eval_tasks=["{bad}"]').error
    assert f"eval_tasks: {bad}:1: has none of" in error
    assert jobs.steps(str(model_path)) == before
