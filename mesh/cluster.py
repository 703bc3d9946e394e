"""One mesh over several hosts: TensorFlow's own servers, and what is done when one is lost."""

import logging
import math
import socket
import threading
import time

from configs.errors import UserError
from mesh import devices, fence
from mesh.compat import no_recovery, tf

JOB = "worker"
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
# Seconds that the chief gives workers to come up when it starts, and between looks.
PATIENCE, LOOK = 300, 1


class Hosts:
    """The running hosts of a cluster, as the chief sees them.

    Args:
      cluster: a configs.cluster.Cluster; its task is this process's.
      config: the run's config, whose mesh they share evenly.
      wait: wait for lost workers as long as it takes.

    Attributes:
      target: what a session connects to.
      devices: the names of the mesh's devices, in the mesh's order.

    Raises:
      UserError: the mesh cannot be shared out, or the port is taken.
    """

    def __init__(self, cluster, config, wait=False):
        count = len(cluster.hosts)
        if config.gpu_ids:
            raise UserError("--gpu_ids: does not go with a cluster; write \"device\": \"GPU\" in "
                            f"{cluster.source}")
        if config.mesh_size % count:
            raise UserError(f"mesh_shape: {config.mesh_size} positions cannot be shared out evenly "
                            f"among the {count} hosts of {cluster.source}")
        self._cluster, self._wait, self._begun = cluster, wait, False
        each = config.mesh_size // count
        self.devices = [f"/job:{JOB}/replica:0/task:{host}/device:{cluster.device}:{number}"
                        for host in range(count) for number in range(each)]
        devices.prepare(config)
        self._server = _serve(cluster, each, devices.session_config(config))
        self.target = self._server.target

    def serve(self):
        """Does what the chief asks, until a signal ends this process."""
        index = self._cluster.task
        logging.info("worker %d serves at %s", index, self._cluster.hosts[index])
        threading.Event().wait()

    def call(self, function, *args, **kwargs):
        """Calls a function that runs sessions on all hosts; again, if that is asked, after a loss.

        Raises:
          UserError: names the worker that is lost.
          tf.errors.UnavailableError: all workers are there, and something was out of reach.
        """
        while True:
            self._await()
            try:
                with no_recovery():
                    return function(*args, **kwargs)
            except LOST as error:
                gone = self._gone()
                reason = (error.message or type(error).__name__).partition("\n")[0]
                if not gone:  # storage, or a worker that has come again: the caller tries again
                    raise tf.errors.UnavailableError(error.node_def, error.op, reason) from error
                who = self._names(gone)
                if not self._wait:
                    raise UserError(self._lost(who, reason)) from error
                logging.warning("warning: %s was lost; going on from the last checkpoint", who)

    def _await(self):
        """Returns when all workers listen."""
        until, said = time.monotonic() + (math.inf if self._wait else PATIENCE), None
        while gone := self._gone():
            if self._begun and not self._wait:
                raise UserError(self._lost(self._names(gone), "nobody answers"))
            if gone != said:
                logging.info("waiting for %s", self._names(gone))
                said = gone
            if time.monotonic() > until:
                raise UserError(f"{self._cluster.source}: {self._names(gone)} does not answer; "
                                "start it with --worker, or see to the firewall")
            time.sleep(LOOK)
        self._begun = True

    def _lost(self, who, reason):
        return (f"{self._cluster.source}: {who} was lost ({reason}); the last checkpoint is good: "
                "start it again, and give the same command, or --wait_for_workers to wait for it")

    def _gone(self):
        """The indices of the workers that do not listen."""
        return [index for index, address in enumerate(self._cluster.hosts)
                if index and not _listens(address)]

    def _names(self, indices):
        return ", ".join(f"worker {i} ({self._cluster.hosts[i]})" for i in indices)


def _listens(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _serve(cluster, each, proto):
    """Starts the server of this host, with `each` devices of the mesh."""
    where = f"{cluster.source}: {JOB}[{cluster.task}]"
    host, _, port = cluster.hosts[cluster.task].rpartition(":")
    if cluster.device == "GPU":
        there = len(tf.config.list_physical_devices("GPU"))
        if there < each:
            raise UserError(f"{cluster.source}: device: the mesh needs {each} GPUs of each host, "
                            f"and TensorFlow sees {there or 'none'} here")
        del proto.device_count["GPU"]
    proto.device_count["CPU"] = each if cluster.device == "CPU" else 1
    try:
        own = fence.addresses(host.strip("[]"))
    except OSError as error:
        raise UserError(f"{where}: {host} is no address of this machine ({error.strerror})"
                        ) from error
    try:
        # A port that others listen on is no error to TensorFlow: it shares it, and loses calls.
        socket.create_server(("", int(port))).close()
        server = tf.train.Server(tf.train.ClusterSpec({JOB: list(cluster.hosts)}), JOB,
                                 cluster.task, config=proto, start=False)
    except (OSError, tf.errors.OpError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        raise UserError(f"{where}: no server at port {port} ({reason}); does something listen "
                        "there already?") from error
    try:
        fence.close(int(port), own)
    except OSError as error:
        raise UserError(f"{where}: the port cannot be kept to {host} ({error}), and TensorFlow "
                        "would open it on all addresses of this machine") from error
    server.start()
    return server
