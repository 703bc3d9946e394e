"""Dataset configs and manifests: what is read, mapped and refused."""

import json

import pytest

from configs.dataset import DatasetConfig, Manifest
from configs.errors import UserError

# The three that GPT-Neo's repository ships (configs/dataset_configs), verbatim.
GPT_NEO = {
    "example": {"n_vocab": 32768, "path": "./tfrecords/openwebtext_*.tfrecords", "eval_path": "",
                "tokenizer_path": "./datasets/openwebtext/byte-level-bpe.tokenizer.json",
                "eos_id": 1, "padding_id": 0},
    "openwebtext2_new_inputs": {
        "n_vocab": 50257, "path": "gs://neo-datasets/openwebtext2_new_inputs/train/*.tfrecords",
        "eval_path": "gs://neo-datasets/openwebtext2_new_inputs/eval/*.tfrecords",
        "tokenizer_is_pretrained": True, "tokenizer_path": "gpt2", "eos_id": 50256,
        "padding_id": 50257},
    "pile": {"n_vocab": 50257, "path": "gs://neo-datasets/pile/pile_*.tfrecords",
             "eval_path": "gs://neo-datasets/pile_val.tfrecords", "tokenizer_is_pretrained": True,
             "tokenizer_path": "gpt2", "eos_id": 50256, "padding_id": 50257},
}


def config(**keys):
    return DatasetConfig.from_json(json.dumps({"n_vocab": 10, "path": "a", **keys}), "d.json")


@pytest.mark.parametrize("name", GPT_NEO)
def test_gpt_neo_configs(name):
    neo = GPT_NEO[name]
    ours = DatasetConfig.from_json(json.dumps(neo), name)
    assert ours.encoder == neo["tokenizer_path"]
    assert ours.paths == [neo["path"]]
    assert ours.eval_paths == ([neo["eval_path"]] if neo["eval_path"] else [])
    assert (ours.n_vocab, ours.eos_id, ours.padding_id) == (
        neo["n_vocab"], neo["eos_id"], neo["padding_id"])


def test_what_is_written_is_read_back():
    one = config(path=["a", "b"], eval_path="c", encoder="byte", encoder_hash="0" * 16,
                 eos_id=9, about="ümlaut")
    assert DatasetConfig.from_json(one.to_json(), "x") == one
    assert "padding_id" not in json.loads(one.to_json())


@pytest.mark.parametrize("keys, message", [
    ({"n_vcab": 3}, "unknown key 'n_vcab'; did you mean 'n_vocab'"),
    ({"tokenizer_pth": "x"}, "did you mean 'tokenizer_path'"),
    ({"qqq": 3}, "unknown key 'qqq'; known keys: about, encoder"),
    ({"n_vocab": "10"}, "key 'n_vocab' is \"10\": input should be a valid integer"),
    ({"n_vocab": 0}, "key 'n_vocab' is 0"),
    ({"path": 3}, "key 'path' is 3"),
    ({"path": ""}, "key 'path' is \"\": an empty path"),
    ({"path": []}, "key 'path' is .*empty list"),
    ({"eos_id": 10}, "key 'eos_id' is 10, and ids end at n_vocab - 1 = 9"),
    ({"encoder_hash": "xyz"}, "key 'encoder_hash'"),
    ({"encoder": "byte", "tokenizer_path": "t.json"}, "remove 'tokenizer_path'"),
    ({"tokenizer_path": "bert", "tokenizer_is_pretrained": True}, "'tokenizer_path' is 'bert'"),
    ({"tokenizer_is_pretrained": True}, "needs 'tokenizer_path'"),
])
def test_mistakes_name_file_key_and_remedy(keys, message):
    with pytest.raises(UserError, match=message) as error:
        config(**keys)
    assert str(error.value).startswith("d.json: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text, message", [
    ("{", "not JSON"), ("[]", "JSON object"), ('{"path": "a"}', "'n_vocab' is missing"),
    ('{"n_vocb": 1, "path": "a"}', "did you mean 'n_vocab'"),
])
def test_bad_files(text, message):
    with pytest.raises(UserError, match=f"d.json: .*{message}"):
        DatasetConfig.from_json(text, "d.json")


def manifest(**shard):
    facts = {"file": "a_0_300.tfrecords", "records": 300, "documents": 7, "tokens": 900,
             "bytes": 2000, "decoded_bytes": 1990, "shortest": 3, "longest": 3,
             "encoder_hash": "ab", "index": [[0, 0], [5000, 768]]}
    return json.dumps({
        "format": 1, "name": "a", "mode": "chunks", "chunk_size": 3, "separator": [1], "seed": 1,
        "encoder": {"spec": "byte", "hash": "ab", "n_vocab": 3, "eos_id": 1, "lossless": True},
        "dropped": {}, "splits": {"train": [{**facts, **shard}, facts], "validation": []}})


def test_manifest_survives_writing():
    one = Manifest.from_json(manifest(), "m.json")
    assert Manifest.from_json(one.to_json(), "m.json") == one
    assert json.loads(one.to_json())["splits"] == json.loads(manifest())["splits"]
    assert one.total("train", "tokens") == 1800 and one.total("validation", "tokens") == 0
    assert one.splits["train"][0].index[1] == (5000, 768)


@pytest.mark.parametrize("keys, message", [
    ({"recrds": 1}, "did you mean 'records'"),
    ({"tokens": -1}, "splits.train.0.tokens"),
    ({"index": [[0, 0]]}, "has 1 entries, and 300 records need 2"),
])
def test_damaged_manifests(keys, message):
    with pytest.raises(UserError, match=f"m.json: .*{message}"):
        Manifest.from_json(manifest(**keys), "m.json")


def test_manifest_of_another_format():
    with pytest.raises(UserError, match="key 'format' is 2: format 1"):
        Manifest.from_json(manifest().replace('"format": 1', '"format": 2'), "m.json")
