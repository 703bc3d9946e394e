"""mesh/cloud.py: TPUs looked up by TensorFlow's client, at a loopback server for the TPU API."""

import json
import os
import subprocess
import sys
import time

import pytest
import tpu_api
import tpu_systems
from oauth2client import client

import main
from configs import flags
from configs.errors import UserError
from mesh import cloud, tpu_nodes

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


def test_what_is_wrong_at_the_first_look(tmp_path):
    worker, _ = tpu_systems.resolver()  # answers, and has no TPU
    host, _, port = worker.target.removeprefix("grpc://").partition(":")
    server, address = tpu_api.start(ready={
        **tpu_api.READY, "networkEndpoints": [{"ipAddress": host, "port": int(port)}]})
    said = lookups({**tpu_api.environment(address), "HOME": str(tmp_path)},
                   ["missing", None, None, 8], ["pod", None, None, 8], ["new", None, None, 8],
                   ["ready", "us-central1-f", None, 8], ["ready", None, "another", 8],
                   ["ready", None, None, 8])
    server.shutdown()
    server.server_close()
    for line, words in zip(said, [
            "--tpu missing: no such TPU in zone (this machine)",
            "--tpu pod: it has 32 cores, and mesh_shape 8 positions; try --set mesh_shape=x:32",
            "not on v5litepod; --preflight alone", "no such TPU in zone us-central1-f",
            "see no TPU in zone (this machine) of project another",
            "--tpu ready: no TPU cores in what answers there"], strict=True):
        assert words in line and "\n" not in line, line


@pytest.fixture
def world(monkeypatch):
    """A tpu_api.World that Google's libraries of this process ask; waiting takes no time."""
    server, address = tpu_api.start()
    for name, value in tpu_api.environment(address).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client.GoogleCredentials, "get_application_default",
                        lambda: client.AccessTokenCredentials(tpu_api.TOKEN, "tests"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cloud, "_count_cores", lambda name, resolver: 8)
    yield server.world
    server.shutdown()
    server.server_close()


def changed(world):
    return [change[:2] for change in world.changes]


@pytest.mark.parametrize(("states", "words"), [
    ([{"state": "CREATING"}, {}, tpu_api.READY], ["its state is CREATING; waiting"]),
    ([{"state": "READY", "health": "UNHEALTHY_MAINTENANCE"}, {}, tpu_api.READY],
     ["its health is UNHEALTHY_MAINTENANCE: make it anew, or stop this and give --recreate_tpu"]),
    ([{"state": "STOPPED"}, {"state": "STARTING"}, tpu_api.READY],
     ["its state is STOPPED; `gcloud compute tpus tpu-vm start ours`", "its state is STARTING"]),
    ([{"state": "REPAIRING"}, {"state": "TERMINATED"}, tpu_api.READY],
     ["its state is REPAIRING", "its state is TERMINATED, and it does not come back by itself"]),
    # Somebody makes it anew.
    ([{"state": "PREEMPTED"}, None, {"state": "CREATING"}, tpu_api.READY],
     ["its state is PREEMPTED, and it does not come back by itself: make it anew",
      "it is not there any more", "its state is CREATING"])],
    ids=["creating", "unhealthy", "stopped", "terminated", "preempted"])
def test_a_tpu_that_is_waited_for(world, caplog, states, words):
    world.nodes["ours"] = {"acceleratorType": "v3-8", "then": states}
    found = cloud.find("ours", None, None, 8)
    assert found.cores == 8 and found.resolver.master() == "grpc://192.0.2.1:8470"
    lines = [record.getMessage() for record in caplog.records]
    for each in words:
        assert any(each in line for line in lines), lines
    assert all(line.startswith("--tpu ours: ") and "looking again in" in line for line in lines)
    assert not world.changes


def test_looks_become_rarer(world, monkeypatch, caplog):
    world.nodes["ours"] = {"state": "CREATING", "then": [{}] * 8 + [tpu_api.READY]}
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    cloud.find("ours", None, None, 8)
    assert waited == [10, 20, 40, 80, 160, 300, 300, 300]


@pytest.mark.parametrize("state", [
    {"state": "PREEMPTED"}, {"state": "TERMINATED"},
    {"state": "READY", "health": "UNHEALTHY_TENSORFLOW"}],
    ids=["preempted", "terminated", "unhealthy"])
def test_a_tpu_that_is_made_anew_as_it_was(world, caplog, state):
    world.nodes["ours"] = {**tpu_api.SPECIAL, **state,
                           "acceleratorConfig": {"type": "V3", "topology": "2x2"},
                           "name": "projects/…/nodes/ours", "createTime": "2024-01-01T00:00:00Z"}
    world.shortages = 2
    found = cloud.find("ours", None, None, 8, "")
    assert found.resolver.master() == "grpc://192.0.2.1:8470"
    assert changed(world) == [("delete", "ours")] + [("create", "ours")] * 3
    assert all(body == tpu_api.SPECIAL for _, _, body in world.changes[1:])
    assert caplog.text.count("it could not be made (There is no more capacity in the zone)") == 2
    for words in ("deleting it, to make it anew", "its state is DELETING",
                  "making a v3-8 of this name", "its state is CREATING"):
        assert words in caplog.text


@pytest.mark.parametrize(("slice_", "image"), [("v3-8", "tpu-vm-tf-2.15.1-se"),
                                               ("v3-32", "tpu-vm-tf-2.15.1-pod-se")])
def test_a_tpu_that_is_not_there_is_made(world, monkeypatch, slice_, image):
    cores = int(slice_.partition("-")[2])
    monkeypatch.setattr(cloud, "_count_cores", lambda name, resolver: cores)
    cloud.find("ours", tpu_api.ZONE, tpu_api.PROJECT, cores, slice_)
    assert world.changes == [("create", "ours", {"acceleratorType": slice_,
                                                 "runtimeVersion": image})]


def test_a_slice_of_another_size_is_not_made(world):
    with pytest.raises(UserError, match="it has 32 cores, and mesh_shape 8 positions"):
        cloud.find("ours", None, None, 8, "v3-32")
    with pytest.raises(UserError, match="no such TPU .* --recreate_tpu SLICE makes one"):
        cloud.find("ours", None, None, 8, "")
    assert not world.changes


def test_what_cannot_be_made_is_said_at_once(world, monkeypatch):
    monkeypatch.setitem(tpu_api.SPECIAL, "runtimeVersion", "")
    world.nodes["ours"] = {**tpu_api.SPECIAL, "state": "PREEMPTED"}
    with pytest.raises(UserError, match="--tpu ours: the TPU API refuses it .*bad field"):
        cloud.find("ours", None, None, 8, "")


def test_the_tpu_that_the_program_runs_on_is_not_deleted(world):
    world.nodes["ours"] = {**tpu_api.SPECIAL, "state": "READY", "health": "UNHEALTHY_TENSORFLOW",
                           "networkEndpoints": [{"ipAddress": "127.0.0.1"}]}
    with pytest.raises(UserError, match="this machine, 127.0.0.1, is a worker of --tpu ours"):
        cloud.find("ours", None, None, 8, "")
    assert not world.changes


def test_an_api_that_is_out_of_order(world, caplog):
    world.outages = 3  # Google's client tries again
    cloud.find("ready", None, None, 8)
    world.outages = 100
    with pytest.raises(UserError, match="the TPU API is not able to answer now"):
        cloud.find("ready", None, None, 8)
    world.outages = 0
    search = cloud.Search("ready", None, None, 8, None)
    search.wait()
    world.outages = 12
    assert search.wait(lost=True)[2]
    assert "the TPU API is not able to answer now" in caplog.text


def test_a_worker_that_takes_long_to_start(world, monkeypatch, caplog):
    world.nodes["ours"] = {"state": "CREATING", "then": [{}, tpu_api.READY]}
    silent = [3]

    def count(name, resolver):
        if silent[0]:
            silent[0] -= 1
            raise cloud.Silent("nobody answers at …")
        return 8

    monkeypatch.setattr(cloud, "_count_cores", count)
    cloud.find("ours", None, None, 8)
    assert caplog.text.count("nobody answers") == 3
    monkeypatch.setattr(cloud, "_BOOT", -1)
    world.nodes["ours"] = {"state": "CREATING", "then": [{}, tpu_api.READY]}
    silent[0] = 3
    with pytest.raises(UserError, match="nobody answers"):
        cloud.find("ours", None, None, 8)


def test_a_tpu_is_made_of_what_google_lets_set():
    fields = tpu_api.description("v2")["schemas"]["Node"]["properties"]
    may = {name for name, field in fields.items() if not field.get("readOnly")}
    # The API fills in these, of which the slice's type and the network follow.
    assert set(tpu_nodes.MADE_OF) == may - {"acceleratorConfig", "cidrBlock", "health"}
    states = set(fields["state"]["enum"])
    assert set(cloud.GONE) < states and set(cloud.WELL) - {None} < set(fields["health"]["enum"])


def test_nothing_to_look_it_up_with(server, tmp_path):
    nobody = {**tpu_api.environment("127.0.0.1:1"), "HOME": str(tmp_path),
              "TPU_API_DISCOVERY_URL": tpu_api.environment(server)["TPU_API_DISCOVERY_URL"]}
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


def test_the_first_worker_reads_data(caplog):
    cloud.check_paths("ours", "gs://bucket/run", ["gs://bucket/a.tfrecords"])
    cloud.check_paths("local", "runs/demo", ["data/a.tfrecords"])
    assert not caplog.messages
    cloud.check_paths("ours", "gs://bucket/run", ["data/a.tfrecords"])
    [line] = caplog.messages
    assert line.startswith("warning: data/a.tfrecords: the first worker of --tpu ours reads it")


def test_no_tpu_in_this_machine():
    with pytest.raises(UserError, match="is it a TPU VM"):
        cloud.find("local", None, None, 4)


@pytest.mark.parametrize(("given", "words"), [
    (["--tpu_zone", "z"], "--tpu_zone: belongs to --tpu"),
    (["--gcp_project", "p"], "--gcp_project: belongs to --tpu"),
    (["--recreate_tpu"], "--recreate_tpu: belongs to --tpu"),
    (["--tpu", "local", "--recreate_tpu"], "--recreate_tpu: --tpu must be a name"),
    (["--tpu", "grpc://a:1", "--recreate_tpu", "v3-8"], "--recreate_tpu: --tpu must be a name"),
    (["--tpu", ""], "--tpu: must not be empty"),
    (["--tpu", "t", "--gpu_ids", "0"], "does not go with --gpu_ids"),
    (["--tpu", "t", "--preflight", "v3-8"], "--tpu: does not go with --preflight"),
    (["--tpu", "t", "--print_config"], "--tpu: does not go with --print_config")])
def test_flags(capsys, given, words):
    with pytest.raises(SystemExit):
        flags.parse(["--model", "gpt_125M", *given])
    assert words in capsys.readouterr().err
