"""Secrets in flags, configs and the environment are in nothing that runs write or say."""

import contextlib
import json
import logging
import os
import sys

import jobs
import pytest
from tfrecord_runs import ROOT

import main
from configs import command_line, redaction, schema
from configs.errors import UserError
from configs.redaction import MARK, hidden

# Planted in the environment; none has a form that tells.
VARIABLES = {name: f"{name.lower().replace('_', '-')}-3f9c" for name in (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID", "GITHUB_TOKEN", "MY_PASSWORD")}
# (text, the secrets in it)
TEXTS = [
    ("https://me:s3cr/et@host/x", []),  # no URL: a slash ends the host
    ("error: https://me:s3cret-w0rd@host.org:80/a/b?c=d: 403", ["me", "s3cret-w0rd"]),
    ("see https://hf_oneTokenWithoutAName@huggingface.co/gpt2", ["hf_oneTokenWithoutAName"]),
    ("a s3://a%40b:p%2Fw@bucket/x and gs://bucket/a@b", ["a%40b", "p%2Fw"]),
    ("https://h/x?a=1&access_token=t0k&b=2", ["t0k"]),
    ("https://h/x?X-Goog-Signature=5ee5&X-Goog-Credential=a%40b%2F2024&X-Goog-Expires=60",
     ["5ee5", "a%40b%2F2024"]),
    ("https://h/x?X-Amz-Security-Token=Fwo/+=&X-Amz-Signature=ab12", ["Fwo/+=", "ab12"]),
    ("https://a.blob/x?sv=2020&sig=aZ%2B9", ["aZ%2B9"]),
    ('{"Authorization": "Bearer ab.cd-ef"}', ["ab.cd-ef"]),
    ("Authorization: Basic dXNlcjpwYXNz", ["dXNlcjpwYXNz"]),
    ("sent Bearer 0123456789abcdef", ["0123456789abcdef"]),
    ("api_key=k123, client_secret: 'c45'", ["k123", "c45"]),
    ("ya29.a0AfH6SMBx-yz_0123", ["ya29.a0AfH6SMBx-yz_0123"]),
    ("hf_abcdefghijklmnopqrstuvwxyz", ["hf_abcdefghijklmnopqrstuvwxyz"]),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123", ["ghp_abcdefghijklmnopqrstuvwxyz0123"]),
    ("AKIAABCDEFGHIJKLMNOP", ["AKIAABCDEFGHIJKLMNOP"]),
    ("-----BEGIN PRIVATE KEY-----\nMIIEv\nQIBA\n-----END PRIVATE KEY-----", ["MIIEv", "QIBA"])]
HARMLESS = [
    "step     10/100  loss 2.3456", "data/openwebtext_*.tfrecords", "gs://bucket/runs/a@1/x",
    "n_vocab: must be 50257 or more; set n_vocab", "tokens_per_mb_per_replica = 2048",
    '"layout": "batch:x,heads:y"', "sha256 " + "0a" * 32, "http://127.0.0.1:8000/v1?stop=a&n=2",
    "eos_token: <|endoftext|>", "it has 32 cores: try --set mesh_shape=x:32"]


@pytest.mark.parametrize(("text", "secrets"), TEXTS, ids=range(len(TEXTS)))
def test_what_counts_as_a_secret(text, secrets):
    found = hidden(text)
    assert all(secret not in found for secret in secrets), found
    assert (MARK in found) == bool(secrets) and hidden(found) == found
    assert json.loads(hidden(json.dumps(text))) == found


@pytest.mark.parametrize("text", HARMLESS)
def test_what_does_not(text):
    assert hidden(text) == text


def test_variables_of_the_environment(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
        assert hidden(f"a {value} b") == f"a {MARK} b"
    monkeypatch.setenv("HF_TOKEN", "short")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "a-long-value")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    for text in ("short", "a-long-value", "/home/me/key.json"):
        assert hidden(text) == text


def test_shipped_configs_hold_none():
    from configs import reading

    for name in reading.shipped_configs():
        with open(os.path.join(ROOT, "configs", f"{name}.json"), encoding="utf-8") as file:
            text = file.read()
        assert hidden(text) == text


def test_error_lines_logs_and_tracebacks(capsys, caplog):
    url = "https://me:planted-word@host/x"

    def refuse():
        raise UserError(f"{url}: no such file")

    def fail():
        raise RuntimeError(url)

    hook = sys.excepthook
    try:
        assert command_line.status_of(refuse) == 2
        with pytest.raises(RuntimeError) as error:
            command_line.status_of(fail)
        sys.excepthook(error.type, error.value, error.tb)
    finally:
        sys.excepthook = hook
    with pytest.raises(SystemExit):
        main.main(["--model", "demo", f"--{url}"])
    with jobs.quiet():
        command_line.set_loudness(False, False)
        try:
            fail()
        except RuntimeError:
            logging.exception("cannot read %s", url)
    said = capsys.readouterr()
    assert "planted-word" not in said.out + said.err
    assert said.err.count(f"https://{MARK}@host/x") >= 5 and "Traceback" in said.err


def test_a_secret_that_was_left_out_is_asked_for(tmp_path):
    config = schema.load(jobs.config(tmp_path, [], n_vocab=16, init_from="https://me:pw@host/x"))
    assert config.init_from == "https://me:pw@host/x"  # what runs use
    (tmp_path / "again.json").write_text(config.to_json())
    with pytest.raises(UserError, match="again.json: init_from: a secret was left out of it"):
        schema.load(str(tmp_path / "again.json"))
    assert schema.load(str(tmp_path / "again.json"), ["init_from=x"]).init_from == "x"


def run_here(capsys, argv):
    """Runs main.py in this process, whatever comes of it."""
    capsys.readouterr()
    with jobs.quiet(), contextlib.suppress(SystemExit):
        main.main(argv)
    return capsys.readouterr()


@pytest.mark.slow
def test_nothing_that_jobs_write_or_say_holds_a_secret(tmp_path, monkeypatch, capsys):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    planted = [*VARIABLES.values(), "planted-word", "hf_plantedPlantedPlanted123", "planted-sig",
               "planted-key"]
    url = "https://me:planted-word@host/x?X-Goog-Signature=planted-sig"
    about = f"from {url} with hf_plantedPlantedPlanted123, api_key=planted-key"
    for value in VARIABLES.values():
        about += f" {value}"
    data = jobs.dataset(tmp_path / "data")
    path = jobs.config(tmp_path, data, eval_steps=1, steps_per_checkpoint=2, about=about,
                       sample_tokens=4)
    said = []
    for flags in ([], ["--print_config"], ["--dry_run"], ["--eval", "--set", f"about={about}"],
                  ["--set", f"init_from={url}", "--new", "--yes"],
                  ["--set", f"datasets={url}"], ["--set", f"lr={url}"], ["--checkpoint", url],
                  ["--report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")],
                  ["--tpu", "ours", "--tpu_zone", url, "--gcp_project", "planted-word@x"]):
        model = [] if "--report" in flags else ["--model", path]
        result = run_here(capsys, [*model, *flags])
        said.append(result.out + result.err)
    written = {os.path.join(where, name): open(os.path.join(where, name), "rb").read()
               for where, _, names in os.walk(tmp_path) for name in names}
    del written[path]  # the user's own
    assert any(name.endswith("report.html") for name in written)
    assert any(MARK.encode() in text for text in written.values())
    assert MARK in said[1]
    for secret in planted:
        assert not [name for name, text in written.items() if secret.encode() in text], secret
        assert not [text for text in said if secret in text], secret
    assert redaction.is_hidden(json.loads(written[str(tmp_path / "run/config.json")]))
