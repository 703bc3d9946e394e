"""LAMBADA from local files: what counts as the last word, its scores, and what is refused."""

import json

import numpy as np
import pytest
from test_training_tasks import ENCODER, continuation, gpt2, make_config, write  # noqa: F401

import encoders
from configs import dataset_files
from configs.errors import UserError
from training import items, lambada, tasks

TEXTS = ["she said it was only an old hat", "he did not like the dog", "the end"]
AS_ITEMS = [(text.rpartition(" ")[0], " " + text.rpartition(" ")[2]) for text in TEXTS]


def test_the_last_word_with_its_space_is_the_completion(tmp_path):
    """As the harness splits: text.split(' '), whatever else is in the last part."""
    path = write(tmp_path / "lambada_test.jsonl", [{"text": "a  b\nc.\td"}, {"text": "x y z"}])
    for entry in (path, f"lambada:{path}"):
        found = lambada.read(make_config(tmp_path), entry, ENCODER)
        assert [(i.kind, i.prefix, i.texts) for i in found] == [
            ("completion", "a ", (" b\nc.\td",)), ("completion", "x y", (" z",))]
    other = write(tmp_path / "texts.jsonl", [{"text": "a b"}])
    assert lambada.read(make_config(tmp_path), other, ENCODER)[0].kind == "text"
    assert lambada.read(make_config(tmp_path), f"lambada:{other}", ENCODER)[0].texts == (" b",)
    given = write(tmp_path / "lambada_items.jsonl", [{"context": "a b", "completion": " c"}])
    assert lambada.read(make_config(tmp_path), given, ENCODER)[0].prefix == "a b"


def test_all_tokens_of_the_last_word_count():
    """With GPT-2's encoder a word may be several tokens, of which GPT-Neo scored the last."""
    encoder = encoders.load("gpt2")
    item = items.Item("completion", "x:1", "he was called", (" Xenophontes",), 0, ())
    [row] = items.rows(item, encoder, 64)
    assert row.ids == encoder.encode("he was called Xenophontes")
    assert row.count == len(encoder.encode(" Xenophontes")) > 1


def test_scores_equal_transformers(gpt2, tmp_path):  # noqa: F811
    directory, log_likelihoods = gpt2
    tokens = tmp_path / "lambada.json"
    tokens.write_text(json.dumps([ENCODER.encode(text) for text in TEXTS]))
    config = make_config(directory, eval_tasks=[
        write(tmp_path / "lambada_test.jsonl", [{"text": text} for text in TEXTS]),
        f"lambada:{tokens}"])
    found = tasks.Tasks(config, ENCODER).scores()
    assert list(found) == ["lambada_test", "lambada"]
    assert found["lambada_test"] == found["lambada"]
    expected = [continuation(log_likelihoods, *item) for item in AS_ITEMS]
    scores = found["lambada"]
    assert scores["acc"] == np.mean([right for _, right in expected])
    assert scores["perplexity"] == pytest.approx(
        np.exp(-np.mean([total for total, _ in expected])), rel=1e-4)
    assert scores["items"] == 3 and scores["cut"] == 2
    assert tasks.phrases(found)[0].startswith("lambada_test acc ")
    assert f"perplexity {scores['perplexity']:.2f}" in tasks.phrases(found)[0]


@pytest.fixture
def with_dataset(tmp_path, monkeypatch):
    """make(lambada_tokens_path) -> a config whose dataset's JSON says so, with "lambada"."""
    def make(path):
        place = tmp_path / "data.json"
        place.write_text(json.dumps({"path": "x.tfrecords", "n_vocab": 61, **(
            {"lambada_tokens_path": str(path)} if path else {})}))
        assert dataset_files.path(str(place)) == str(place)
        return make_config(tmp_path, datasets=[[str(place), 1, "chunks", 1.0]],
                           eval_tasks=["lambada"])
    return make


def test_lambada_is_what_the_dataset_says(with_dataset, tmp_path):
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps([ENCODER.encode("a b c")]))
    texts = write(tmp_path / "any.jsonl", [{"text": "a b c"}])
    for path in (tokens, texts):
        config = with_dataset(path)
        assert config.eval_tasks == ["lambada"]
        [item] = lambada.read(config, "lambada", ENCODER)
        assert (item.prefix, item.texts) == ("a b", (" c",))
    assert list(tasks.Tasks(config, ENCODER)._files) == ["lambada"]


@pytest.mark.parametrize(("name", "content", "wanted"), [
    (None, None, 'lambada has no file; write "lambada:PATH"'),
    ("none.json", None, "none.json cannot be read .* nothing is downloaded"),
    ("a.json", '{"text": "a b"}\n{"text": "c d"}', "a.json: no JSON .* has to end in .jsonl"),
    ("a.json", '{"text": "a b"}', "no list of lists of token ids"),
    ("a.json", "[]", "no list of lists of token ids"),
    ("a.json", "[[1, 2], [true]]", "no list of lists of token ids"),
    ("a.json", "[[1], [99]]", "a.json: text 1: token id 99 is not one of"),
    ("a.json", "[[1, 2]]", "a.json: text 0: 'bc' has no last word"),
    ("a.jsonl", '{"text": "a b "}', "a.jsonl:1: 'a b ' has no last word"),
    ("a.jsonl", '{"text": " b"}', "a.jsonl:1: ' b' has no last word")])
def test_files_that_are_not_lambada(with_dataset, tmp_path, name, content, wanted):
    if content:
        (tmp_path / name).write_text(content)
    config = with_dataset(tmp_path / name if name else None)
    with pytest.raises(UserError, match=wanted) as caught:
        tasks.Tasks(config, ENCODER)
    assert str(caught.value).startswith("eval_tasks: ") and "\n" not in str(caught.value)
