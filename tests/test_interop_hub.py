"""interop/hub.py: published models by name, from a server on loopback that answers as the hub."""

import hashlib
import json
import os

import numpy as np
import pytest
import test_import_clip
import test_import_gpt
import test_models_gpt
import web

import downloads
from configs.errors import UserError
from interop import hub

pytest.importorskip("transformers", reason="compares with transformers")

NAME, COMMIT = "someone/tiny-gpt2", "0123456789abcdef0123456789abcdef01234567"
FOLDER = f"data/published/{NAME}"


def answer(files):
    """What the hub says of a model with these files, weights in LFS."""
    siblings = []
    for name, content in files.items():
        siblings.append({"rfilename": name, "size": len(content), "blobId": "0"})
        if name.endswith((".safetensors", ".bin")):
            siblings[-1]["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(),
                                   "size": len(content), "pointerSize": 1}
    return json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode()


@pytest.fixture(scope="module", params=["whole", "shards"])
def published(request, tmp_path_factory):
    """(a GPT-2 of random weights, {file's name: bytes} as transformers writes them)."""
    directory, module = tmp_path_factory.mktemp("published"), test_import_gpt.gpt2()
    module.save_pretrained(directory, **({"max_shard_size": 9000} if request.param == "shards"
                                         else {}))
    return module, {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def served(published, tmp_path, monkeypatch):
    """A server that is the hub, in a new working directory and with an empty cache."""
    _, files = published
    paths = {f"/{NAME}/resolve/{COMMIT}/{name}": content for name, content in files.items()}
    said = answer({**files, "README.md": b"", "pytorch_model.bin": b"1", "../up.bin": b"2"})
    with web.serving({**paths, f"/api/models/{NAME}": said,
                      f"/api/models/{NAME}/revision/step1": said}) as server:
        at(monkeypatch, server.url, tmp_path)
        yield server


def at(monkeypatch, url, directory):
    """Makes an address the hub's, with an empty cache, and a directory the working directory."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(downloads, "WAITS", (0.0,))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    # What the variable HF_ENDPOINT sets.
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                        url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(directory / "cache"))


def fetched(server):
    """The files that were asked for, and from where on."""
    return [(path.rpartition("/")[2], begin) for path, begin in server.asked if "resolve" in path]


def test_a_name_is_downloaded_once_and_imported(published, served, tmp_path, capsys):
    module, files = published
    for run in ("first", "second"):
        result = test_import_clip.do_import(capsys, NAME, tmp_path / run)
        assert result.status == 0, result.stderr
    np.testing.assert_allclose(test_import_gpt.logits_of(tmp_path / "second"),
                               test_models_gpt.reference(module)[0], atol=1e-4)
    wanted = {name for name in files if name != "generation_config.json"}
    assert {name for name, _ in fetched(served)} == wanted == set(os.listdir(FOLDER))
    assert len(fetched(served)) == len(wanted) and fetched(served)[-1][0] == "config.json"


def test_a_revision_has_a_folder_of_its_own(served):
    assert hub.local(f"{NAME}@step1") == f"{FOLDER}@step1"
    # The hub's library may ask for more than the model, at a process's first use of it.
    assert f"/api/models/{NAME}/revision/step1" in [path for path, _ in served.asked]


def test_a_download_that_broke_off_goes_on(served, tmp_path, capsys):
    config = served.files.pop(f"/{NAME}/resolve/{COMMIT}/config.json")
    first = test_import_clip.do_import(capsys, NAME, tmp_path / "run")
    assert "404" in first.error and "give the same command again" in first.error
    assert not os.path.exists(tmp_path / "run")
    served.files[f"/{NAME}/resolve/{COMMIT}/config.json"], served.asked = config, []
    assert test_import_clip.do_import(capsys, NAME, tmp_path / "run").status == 0
    assert fetched(served) == [("config.json", None)]


def test_wrong_weights_are_refused_and_removed(published, served, tmp_path, capsys):
    _, files = published
    weights = next(name for name in files if name.endswith(".safetensors"))
    served.files[f"/{NAME}/resolve/{COMMIT}/{weights}"] = files[weights][:-1] + b"?"
    result = test_import_clip.do_import(capsys, NAME, tmp_path / "run")
    assert "came as another file: its SHA-256" in result.error
    assert weights not in os.listdir(FOLDER) and not os.path.exists(tmp_path / "run")


@pytest.mark.parametrize("name", ["gpt2", "EleutherAI/pythia-160m"])
def test_without_a_network_one_line_says_what_to_fetch(tmp_path, monkeypatch, capsys, name):
    url = web.closed_port()
    at(monkeypatch, url, tmp_path)
    result = test_import_clip.do_import(capsys, name, tmp_path / "run")
    full = hub.SHORT.get(name, name)
    assert len(result.stderr.splitlines()) == 1
    assert (f"fetch config.json, the weights (model.safetensors or pytorch_model.bin) and the "
            f"files of the tokenizer from {url}/{full} and put them into data/published/{full}"
            ) in result.error
    assert os.listdir(tmp_path) == []


def test_what_was_put_there_by_hand_is_taken(published, tmp_path, monkeypatch, capsys):
    at(monkeypatch, web.closed_port(), tmp_path)
    folder = tmp_path / "data" / "published" / "openai-community" / "gpt2"
    folder.mkdir(parents=True)
    for name, content in published[1].items():
        (folder / name).write_bytes(content)
    assert test_import_clip.do_import(capsys, "gpt2", tmp_path / "run").status == 0


def test_what_other_programs_have_downloaded_is_taken(published, tmp_path, monkeypatch, capsys):
    """The layout of huggingface_hub's cache, as its documentation has it."""
    at(monkeypatch, web.closed_port(), tmp_path)
    cache = tmp_path / "cache" / "models--someone--tiny-gpt2"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    (cache / "snapshots" / COMMIT).mkdir(parents=True)
    for name, content in published[1].items():
        (cache / "snapshots" / COMMIT / name).write_bytes(content)
    assert test_import_clip.do_import(capsys, NAME, tmp_path / "run").status == 0


def test_a_model_that_is_not_there_is_one_line(served):
    served.refusals = [401]
    with pytest.raises(UserError, match="no such model on"):
        hub.local("nobody/nothing")
    served.files["/api/models/nobody/empty"] = answer({"README.md": b""})
    with pytest.raises(UserError, match="has no config.json with weights"):
        hub.local("nobody/empty")


def test_paths_are_no_names(tmp_path, monkeypatch):
    at(monkeypatch, web.closed_port(), tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "model.ckpt-7.index").write_text("")  # TensorFlow names it without .index
    for path in ("gpt2", "gpt2/", "gpt2/model.ckpt-7", "a/b/c", "a/tower.pt",
                 "a/model.safetensors", "nowhere", "gs://bucket/model"):
        assert hub.local(path) == path
