"""Clusters: one mesh over several processes, on this machine's loopback."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import jobs
import numpy as np
import pytest
from tfrecord_runs import ROOT

from configs import cluster
from configs.errors import UserError

MESH = dict(mesh_shape="x:2,y:2", layout="batch:x,heads:y,vocab:y,intermediate_expanded:y")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return jobs.dataset(tmp_path_factory.mktemp("data"))


def free_ports(count):
    """Ports that nobody has."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def cluster_file(directory, count):
    path = directory / f"cluster{count}.json"
    path.write_text(json.dumps({"worker": [f"127.0.0.1:{p}" for p in free_ports(count)]}))
    return str(path)


@contextlib.contextmanager
def workers(path, hosts, indices):
    """Workers in processes of their own, by index; a caller may add more, and all are killed."""
    running = {i: worker(path, hosts, i) for i in indices}
    try:
        yield running
    finally:
        for each in running.values():
            each.kill()
            each.wait()


def worker(path, hosts, index):
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "main.py"), "--model", path, "--cluster", hosts,
         "--worker", str(index)], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def assert_same_losses(one, other, steps=20):
    np.testing.assert_allclose(jobs.losses(other)[:steps], jobs.losses(one)[:steps], atol=1e-4)


@pytest.mark.slow
def test_four_processes_train_as_one(tmp_path, dataset, capsys):
    keys = dict(MESH, train_steps=6, steps_per_checkpoint=3, eval_steps=1, **jobs.DROPOUT)
    one = jobs.config(tmp_path, dataset, name="one", **keys)
    many = jobs.config(tmp_path, dataset, name="many", **keys)
    hosts = cluster_file(tmp_path, 4)
    with workers(many, hosts, range(1, 4)):
        together = jobs.process(many, "--cluster", hosts)
        alone = jobs.here(capsys, one)
        again = jobs.process(many, "--eval", "--cluster", hosts)
    assert_same_losses(tmp_path / "one", tmp_path / "many")
    assert together.summary["eval_loss"] == pytest.approx(alone.summary["eval_loss"], abs=1e-4)
    assert again.summary["eval_loss"] == together.summary["eval_loss"]
    first, other = jobs.weights(tmp_path / "one"), jobs.weights(tmp_path / "many")
    assert first.keys() == other.keys()


@pytest.mark.slow
def test_two_processes_that_lose_workers_train_as_one_that_does_not(tmp_path, dataset, capsys):
    """A chief stops at the loss of its worker, the next one waits, and a signal ends that one."""
    keys = dict(MESH, **jobs.DROPOUT, train_steps=100_000, lr_decay="constant")
    hosts = cluster_file(tmp_path, 2)
    straight = jobs.config(tmp_path, dataset, name="straight", **keys)
    broken = jobs.config(tmp_path, dataset, name="broken", steps_per_checkpoint=20, **keys)
    saved = tmp_path / "broken"

    def start(*flags):
        running["chief"] = chief = jobs.start(broken, "--cluster", hosts, *flags)
        stuck = threading.Timer(500, chief.kill)  # which ends what waits for its words
        stuck.daemon = True
        stuck.start()
        return chief

    def lose_a_worker(chief, step):
        jobs.wait_for(chief, f"step {step:6d}/")
        running[1].kill()
        running[1].wait()

    with workers(broken, hosts, [1]) as running:
        chief = start()
        lose_a_worker(chief, 25)
        _, stderr = chief.communicate(timeout=300)
        assert chief.returncode == 2, stderr
        line = stderr.splitlines()[-1]
        assert line.startswith(f"error: {hosts}: ") and "worker 1 (127.0.0.1:" in line, stderr
        assert " was lost (" in line and "Traceback" not in stderr
        first = jobs.steps(saved)[-1]
        assert first >= 20

        running[1] = worker(broken, hosts, 1)
        chief = start("--wait_for_workers")
        lose_a_worker(chief, first + 5)
        jobs.wait_for(chief, "going on from the last checkpoint")
        jobs.wait_for(chief, "waiting for worker 1")
        running[1] = worker(broken, hosts, 1)
        jobs.wait_for(chief, "step ")
        chief.send_signal(signal.SIGTERM)
        _, stderr = chief.communicate(timeout=300)
        assert chief.returncode == 75, stderr
        last = jobs.steps(saved)[-1]
        assert last > first
        assert jobs.process(straight, "--cluster", hosts, "--set", f"train_steps={last}",
                            "--set", f"steps_per_checkpoint={last}").status == 0
    jobs.assert_same_bits(jobs.weights(tmp_path / "straight", last), jobs.weights(saved, last))
    alone = jobs.config(tmp_path, dataset, name="alone", **{**keys, "train_steps": 20})
    assert jobs.here(capsys, alone).status == 0
    assert_same_losses(tmp_path / "alone", tmp_path / "straight")


TWO = ["a:1", "b:2"]


@pytest.mark.parametrize(("given", "words"), [
    ([1], "c.json: "), ({}, "c.json: worker: must be a list"),
    ({"worker": []}, "worker: must be a list"), ({"worker": ["a"]}, 'worker[0]: "a" is no'),
    ({"worker": ["a:1", "b:99999"]}, "worker[1]: "), ({"worker": [7]}, "worker[0]: 7 is no"),
    ({"worker": ["a:1", "a:1"]}, "worker[1]: a:1 is there twice"),
    ({"worker": TWO, "device": "TPU"}, 'device: "TPU" is neither'),
    ({"worker": TWO, "ps": []}, "ps: no such key")])
def test_bad_files(tmp_path, given, words):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(given))
    with pytest.raises(UserError) as error:
        cluster.read(str(path), {})
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "words"), [
    ("{", "TF_CONFIG: no JSON"), ('{"cluster": 3}', "cluster: must be"),
    ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}}', "ps: no such key"),
    ('{"cluster": {"worker": ["a:1"], "chief": "b:1"}}', "chief: must be a list"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "task: must be"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "no host 1")])
def test_bad_tf_configs(given, words):
    with pytest.raises(UserError, match="TF_CONFIG: ") as error:
        cluster.of_flags(None, None, True, {"TF_CONFIG": given})
    assert words in str(error.value)


def test_tf_config_names_hosts_and_tasks():
    def found(task, worker=None):
        environment = {"TF_CONFIG": json.dumps(
            {"cluster": {"chief": ["a:1"], "worker": ["b:2", "c:3"]}, "task": task})}
        result = cluster.of_flags(None, worker, True, environment)
        assert not environment
        return result.hosts, result.task

    hosts = ("a:1", "b:2", "c:3")
    assert found({"type": "chief", "index": 0}) == (hosts, 0)
    assert found({"type": "worker", "index": 1}, -1) == (hosts, 2)
    with pytest.raises(UserError, match="this is host 1, no chief; give --worker"):
        found({"type": "worker", "index": 0})
    assert cluster.of_flags(None, None, False, {"TF_CONFIG": '{"task": {}}'}) is None


def test_flags_of_a_cluster(tmp_path):
    path = cluster_file(tmp_path, 2)
    assert cluster.of_flags(path, 1, False, {}).task == 1
    for index in (-1, 0, 2):
        with pytest.raises(UserError, match="--worker: must be a number from 1 to 1"):
            cluster.of_flags(path, index, False, {})
    with pytest.raises(UserError, match="--worker: no cluster"):
        cluster.of_flags(None, 1, True, {})


@pytest.mark.parametrize(("hosts", "words"), [
    (["10.0.0.2:1", "10.0.0.3:1"], "10.0.0.2:1 is reached from other machines, .* no password"),
    (["host:1", "other:1"], "host:1 is reached from other machines"),
    (["127.0.0.1:1", "10.0.0.3:1"], "some, as 10.0.0.3:1, are not"),
    (["localhost:1", "[::1]:2", "127.0.0.7:3"], None)])
def test_only_loopback_without_a_flag(tmp_path, hosts, words):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"worker": hosts}))
    if words is None:
        assert cluster.of_flags(str(path), None, False, {}).hosts == tuple(hosts)
        return
    with pytest.raises(UserError, match=words):
        cluster.of_flags(str(path), None, False, {})


def test_a_mesh_that_cannot_be_shared_out(tmp_path, dataset, capsys):
    path = jobs.config(tmp_path, dataset, mesh_shape="x:2", layout="batch:x")
    refused = jobs.here(capsys, path, "--cluster", cluster_file(tmp_path, 3))
    assert "mesh_shape: 2 positions cannot be shared out evenly among the 3 hosts" in refused.error


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9"])
def test_a_taken_port(tmp_path, dataset, capsys, address):
    path = jobs.config(tmp_path, dataset, mesh_shape="x:2", layout="batch:x")
    with socket.create_server((address, 0)) as taken:
        hosts = tmp_path / "c.json"
        hosts.write_text(json.dumps(
            {"worker": [f"127.0.0.1:{taken.getsockname()[1]}", "127.0.0.1:1"]}))
        refused = jobs.here(capsys, path, "--cluster", hosts)
    assert "does something listen there already?" in refused.error


def test_an_address_of_another_machine(tmp_path, dataset, capsys):
    path = jobs.config(tmp_path, dataset, mesh_shape="x:2", layout="batch:x")
    hosts = tmp_path / "c.json"
    hosts.write_text(json.dumps({"worker": ["192.0.2.77:2222", "192.0.2.78:2222"]}))
    refused = jobs.here(capsys, path, "--cluster", hosts, "--allow_remote")
    assert "worker[0]: 192.0.2.77 is no address of this machine" in refused.error
