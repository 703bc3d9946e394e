"""Which hosts share one mesh: a cluster's file, or the environment variable TF_CONFIG."""

import ipaddress
import json
import re
from typing import Any, NamedTuple

from configs import reading
from configs.errors import UserError

KEYS = ("worker", "device")


class Cluster(NamedTuple):
    """The hosts of a mesh.

    Attributes:
        hosts: their addresses, "host:port"; the first is the chief's.
        task: which of them this process is, or None where TF_CONFIG does not say.
        device: "CPU" or "GPU", what each host has of the mesh.
        source: where this was read.
    """

    hosts: tuple[str, ...]
    task: int | None
    device: str
    source: str


def read(path: str | None, environment: dict[str, str]) -> Cluster | None:
    """The cluster of `--cluster`, or else of TF_CONFIG; None where neither names one.

    Raises:
        UserError: names the key that is wrong.
    """
    if path:
        return _cluster(reading.read_mapping(path), path, None)
    if not environment.get("TF_CONFIG"):
        return None
    try:
        given = json.loads(environment["TF_CONFIG"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"TF_CONFIG: no JSON ({error})") from error
    jobs = given.get("cluster") if isinstance(given, dict) else given
    if isinstance(given, dict) and not jobs:
        return None
    if not isinstance(jobs, dict):
        raise UserError("TF_CONFIG: cluster: must be {\"worker\": [\"host:port\", …]}")
    chiefs = jobs.get("chief", [])
    if not isinstance(chiefs, list):
        raise UserError('TF_CONFIG: cluster: chief: must be a list of "host:port"')
    others = {name: hosts for name, hosts in jobs.items() if name != "chief"}
    if isinstance(others.get("worker"), list):
        others["worker"] = chiefs + others["worker"]
    return _cluster(others, "TF_CONFIG", _index(given.get("task"), chiefs))


def _index(task: Any, chiefs: list) -> int | None:
    """The host that TF_CONFIG's task is."""
    if task is None:
        return None
    kind, index = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
    if kind not in ("chief", "worker") or type(index) is not int or index < 0:
        raise UserError('TF_CONFIG: task: must be {"type": "worker", "index": N}, or of type '
                        '"chief"')
    return index if kind == "chief" else index + len(chiefs)


def _cluster(given: Any, source: str, index: int | None) -> Cluster:
    """Checks a cluster as a file has it."""
    if not isinstance(given, dict):
        raise UserError(f'{source}: must be {{"worker": ["host:port", …]}}')
    for key in given:
        if key not in KEYS:
            raise UserError(f"{source}: {key}: no such key; there are {' and '.join(KEYS)}")
    hosts, device = given.get("worker"), given.get("device", "CPU")
    if not isinstance(hosts, list) or not hosts:
        raise UserError(f'{source}: worker: must be a list of "host:port", the chief\'s first')
    for place, host in enumerate(hosts):
        match = re.fullmatch(r"(?:[\w.-]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", str(host))
        if not isinstance(host, str) or not match or not 0 < int(match[1]) < 65536:
            raise UserError(f'{source}: worker[{place}]: {json.dumps(host)} is no "host:port"')
        if host in hosts[:place]:
            raise UserError(f"{source}: worker[{place}]: {host} is there twice")
    if device not in ("CPU", "GPU"):
        raise UserError(f'{source}: device: {json.dumps(device)} is neither "CPU" nor "GPU"')
    if index is not None and index >= len(hosts):
        raise UserError(f"{source}: task: there is no host {index} among {len(hosts)}")
    return Cluster(tuple(hosts), index, device, source)


def of_flags(path: str | None, worker: int | None, allow_remote: bool,
             environment: dict[str, str]) -> Cluster | None:
    """The cluster that flags and TF_CONFIG ask for, and which host of it this process is.

    Args:
        path: of `--cluster`. worker: of `--worker`; -1 is the one that TF_CONFIG names, and None
            the chief. allow_remote: whether ports may be open to other machines.
        environment: os.environ. TF_CONFIG is taken out of it: the Estimator would read it too, and
            make of it another kind of cluster.

    Raises:
        UserError: names the flag or key.
    """
    cluster = read(path, environment)
    environment.pop("TF_CONFIG", None)
    if cluster is None:
        if worker is not None:
            raise UserError("--worker: no cluster; give --cluster FILE, or set TF_CONFIG")
        return None
    if worker is None:
        if cluster.task:
            raise UserError(f"{cluster.source}: task: this is host {cluster.task}, no chief; give "
                            "--worker")
        cluster = cluster._replace(task=0)
    else:
        index = cluster.task if worker < 0 else worker
        if not index or index >= len(cluster.hosts):
            raise UserError(f"--worker: must be a number from 1 to {len(cluster.hosts) - 1} of "
                            f"{cluster.source}; host 0 is the chief, without --worker")
        cluster = cluster._replace(task=index)
    remote = [host for host in cluster.hosts if not _is_loopback(host)]
    if 0 < len(remote) < len(cluster.hosts):
        raise UserError(f"{cluster.source}: worker: some of the addresses are this machine's own, "
                        f"for itself alone, and some, as {remote[0]}, are not; give all hosts "
                        "addresses at which the others reach them")
    if remote and not allow_remote:
        raise UserError(f"{cluster.source}: {remote[0]} is reached from other machines, and "
                        "TensorFlow's server has no password: fence its port (docs/clusters.md), "
                        "and give --allow_remote")
    return cluster


def _is_loopback(host):
    name = host.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
