"""mesh/cloud.py: TPUs looked up by TensorFlow's client, at a loopback server for the TPU API."""

import json
import os
import subprocess
import sys

import pytest
import tpu_api
import tpu_systems

import main
from configs import flags
from configs.errors import UserError
from mesh import cloud

HERE = os.path.dirname(os.path.abspath(__file__))


def lookups(environment, *requests):
    """What each look-up says, made in a process of its own."""
    kept = {key: value for key, value in os.environ.items()
            if not key.startswith(("GOOGLE_", "GCE_", "TPU_", "CLOUDSDK_"))}
    done = subprocess.run(
        [sys.executable, os.path.join(HERE, "tpu_api.py"), json.dumps(requests)],
        env={**kept, **environment}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def server():
    running, address = tpu_api.start()
    yield address
    running.shutdown()
    running.server_close()


def test_states_of_a_tpu(server, tmp_path, monkeypatch):
    worker, _ = tpu_systems.resolver()  # answers, and has no TPU
    host, _, port = worker.target.removeprefix("grpc://").partition(":")
    monkeypatch.setitem(tpu_api.NODES, "ready", {
        **tpu_api.NODES["ready"], "networkEndpoints": [{"ipAddress": host, "port": int(port)}]})
    said = lookups({"TPU_API_DISCOVERY_URL": f"http://{server}/discovery",
                    "GCE_METADATA_IP": server, "GCE_METADATA_HOST": server,
                    "GCE_METADATA_ROOT": server,
                    "HOME": str(tmp_path)},
                   ["missing", None, None, 8], ["creating", None, None, 8],
                   ["preempted", None, None, 8], ["sick", None, None, 8],
                   ["pod", None, None, 8], ["new", None, None, 8],
                   ["ready", "us-central1-f", None, 8], ["ready", None, "another", 8],
                   ["ready", None, None, 8])
    for line, words in zip(said, [
            "--tpu missing: no such TPU in zone (this machine)", "its state is CREATING; wait",
            "its state is PREEMPTED; make it anew", "its health is UNHEALTHY_MAINTENANCE",
            "--tpu pod: it has 32 cores, and mesh_shape 8 positions; try --set mesh_shape=x:32",
            "not on v5litepod; --preflight alone", "no such TPU in zone us-central1-f",
            "see no TPU in zone (this machine) of project another",
            "--tpu ready: no TPU cores in what answers there"], strict=True):
        assert words in line and "\n" not in line, line


def test_nothing_to_look_it_up_with(server, tmp_path):
    nobody = {"GCE_METADATA_IP": "127.0.0.1:1", "GCE_METADATA_HOST": "127.0.0.1:1",
              "TPU_API_DISCOVERY_URL": f"http://{server}/discovery", "HOME": str(tmp_path)}
    no_zone, no_credentials = lookups(nobody, ["ready", None, None, 8],
                                      ["ready", tpu_api.ZONE, tpu_api.PROJECT, 8])
    assert "give --tpu_zone and --gcp_project" in no_zone
    assert "no Google Cloud credentials" in no_credentials


def test_a_server_without_tpu_cores():
    server, _ = tpu_systems.resolver()
    with pytest.raises(UserError, match="no TPU cores in what answers there"):
        cloud.find(server.target, None, None, 4)


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr(cloud, "_WAIT_MS", 2000)
    with pytest.raises(UserError, match="nobody answers at grpc://127.0.0.1:1;"):
        cloud.find("grpc://127.0.0.1:1", None, None, 4)


def test_workers_elsewhere_do_not_see_this_machine(capsys):
    assert main.main(["--model", "demo", "--tpu", "ours"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "runs/demo/gpt is on this machine" in line and "--model_path gs://" in line
    cloud.check_path("ours", "gs://bucket/run")
    cloud.check_path("local", "runs/demo")


def test_no_tpu_in_this_machine():
    with pytest.raises(UserError, match="is it a TPU VM"):
        cloud.find("local", None, None, 4)


@pytest.mark.parametrize(("given", "words"), [
    (["--tpu_zone", "z"], "--tpu_zone: belongs to --tpu"),
    (["--gcp_project", "p"], "--gcp_project: belongs to --tpu"),
    (["--tpu", ""], "--tpu: must not be empty"),
    (["--tpu", "t", "--gpu_ids", "0"], "does not go with --gpu_ids"),
    (["--tpu", "t", "--preflight", "v3-8"], "--tpu: does not go with --preflight"),
    (["--tpu", "t", "--print_config"], "--tpu: does not go with --print_config")])
def test_flags(capsys, given, words):
    with pytest.raises(SystemExit):
        flags.parse(["--model", "gpt_125M", *given])
    assert words in capsys.readouterr().err
