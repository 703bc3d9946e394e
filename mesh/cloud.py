"""Which TPU a run has: looked up, waited for, made anew where that is asked, and checked."""

import itertools
import logging
import time

from configs.errors import UserError
from mesh import fence
from mesh.compat import no_recovery, tf
from mesh.tpu_nodes import Nodes, Silent

LOCAL, ADDRESS = "local", "grpc://"
# Of what TensorFlow says when a TPU goes away.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
        tf.errors.DeadlineExceededError)
# A TPU in one of these states is there no more; of all others it comes back, or is started.
GONE = ("PREEMPTED", "TERMINATED")
WELL = (None, "HEALTHY", "HEALTH_UNSPECIFIED")
# Devices are listed within this time, or nobody listens there.
_WAIT_MS = 60_000
# Seconds between looks, which double, and that a TPU which is READY may take to answer.
_FIRST, _LONGEST, _BOOT = 10, 300, 900
# The images of TPU VMs that have TensorFlow 2.15.1, of one machine and of several.
_IMAGE, _POD_IMAGE = "tpu-vm-tf-2.15.1-se", "tpu-vm-tf-2.15.1-pod-se"


class Tpu:
    """A TPU that answers.

    Args:
      name: as the user gave it.
      resolver: TensorFlow's TPUClusterResolver.
      cores: how many devices it shows.
      search: the Search that found it, where it can be looked for again.
    """

    def __init__(self, name, resolver, cores, search=None):
        self.name, self.resolver, self.cores, self._search = name, resolver, cores, search

    def call(self, function, *args, **kwargs):
        """Calls a function that runs sessions on the TPU; again after it was lost and is back.

        The function has to take `resolver` anew each time: the TPU may come back elsewhere.

        Raises:
          tf.errors.UnavailableError: the TPU is there, and something was out of reach.
          UserError: it does not come back.
        """
        if not self._search:
            return function(*args, **kwargs)
        while True:
            try:
                with no_recovery():
                    return function(*args, **kwargs)
            except LOST as error:
                reason = (error.message or type(error).__name__).partition("\n")[0]
                logging.warning("warning: --tpu %s: %s; looking what has become of it", self.name,
                                reason)
                self.resolver, _, waited = self._search.wait(lost=True)
                if not waited:
                    raise tf.errors.UnavailableError(error.node_def, error.op, reason) from error
                logging.warning("warning: --tpu %s was lost, and is there again; going on from the "
                                "last checkpoint", self.name)


def find(name, zone, project, mesh_size, recreate=None):
    """The Tpu called `name`, which has a core for each position of the mesh; waits for it.

    Args:
      name: of a Cloud TPU; "grpc://host:port" of its first worker; or "local" for the one that this
        machine is a host of.
      zone, project: where a named one is; None for those of this machine.
      mesh_size: how many positions the config's mesh has.
      recreate: delete and make anew one that is gone or not well, as it was; one that is not there
        at all as a slice of this type ("v3-8"), or not if that is "". None only waits.

    Raises:
      UserError: it is not there, or has another number of cores.
    """
    search = Search(name, zone, project, mesh_size, recreate)
    resolver, cores, _ = search.wait()
    return Tpu(name, resolver, cores, None if name == LOCAL else search)


class Search:
    """A look-out for one TPU. Arguments: see find."""

    def __init__(self, name, zone, project, mesh_size, recreate):
        self._name, self._place, self._mesh_size = name, (zone, project), mesh_size
        by_address = name == LOCAL or name.startswith(ADDRESS)
        self._nodes = None if by_address else Nodes(name, zone, project)
        self._recreate = recreate is not None
        self._seen = self._operation = None  # what it is made of, and its making
        if recreate:
            large = recreate.partition("-")[2]
            pod = large.isdecimal() and int(large) > 8
            self._seen = {"acceleratorType": recreate,
                          "runtimeVersion": _POD_IMAGE if pod else _IMAGE}
            self._check_kind(self._seen)

    def wait(self, lost=False):
        """Looks until the TPU is ready and answers, and says what it waits for.

        Args:
          lost: it has answered before.

        Returns:
          (TensorFlow's resolver, number of cores, whether it had to wait).

        Raises:
          UserError: see find.
        """
        began, booted, said, waited = time.monotonic(), None, None, lost
        seconds = _FIRST
        for number in itertools.count():
            problem = self._nodes and self._look(waited)
            if not problem:
                try:
                    return *self._connect(), number > 0
                except Silent as error:
                    booted = booted or time.monotonic()
                    if not waited or time.monotonic() > booted + _BOOT:
                        raise
                    problem = str(error)
            else:
                booted = None
            seconds = min(2 * seconds, _LONGEST) if problem == said else _FIRST
            said, waited = problem, True
            logging.warning("%s; waiting for %d min, looking again in %d s", problem,
                            (time.monotonic() - began) / 60, seconds)
            time.sleep(seconds)

    def _look(self, patient):
        """Looks at the TPU once, and makes it anew where that is due.

        Args:
          patient: an API that does not answer is waited for.

        Returns:
          what is to be waited for, or None.
        """
        try:
            node = self._nodes.get()
            return self._missing() if node is None else self._there(node)
        except Silent as error:
            if not patient:
                raise
            return str(error)

    def _missing(self):
        """Looks where no TPU is."""
        if not self._seen:
            raise UserError(f"--tpu {self._name}: no such TPU {self._nodes.where}; `gcloud compute "
                            "tpus tpu-vm list --zone ZONE` lists those of a zone, and "
                            "--recreate_tpu SLICE makes one")
        if not self._recreate:
            return (f"--tpu {self._name}: it is not there any more; make it anew, or stop this and "
                    "give --recreate_tpu")
        if self._operation:
            failure = self._nodes.failure(self._operation)
            if failure is None:
                return f"--tpu {self._name}: it is being made"
            self._operation = None
            return f"--tpu {self._name}: it could not be made ({failure})"
        self._operation = self._nodes.create(self._seen)
        return (f"--tpu {self._name}: it is not there; making a {self._seen['acceleratorType']} of "
                "this name")

    def _there(self, node):
        """Looks at what the API says of the TPU."""
        self._seen, self._operation = node, None
        state, health = node.get("state"), node.get("health")
        self._check_kind(node)
        if state == "READY" and health in WELL:
            return None
        what = f"its health is {health}" if state == "READY" else f"its state is {state}"
        line = f"--tpu {self._name}: {what}"
        if state in GONE or state == "READY":
            if self._recreate:
                self._check_elsewhere(node)
                self._nodes.delete()
                return f"{line}; deleting it, to make it anew"
            return (f"{line}{', and it does not come back by itself' * (state in GONE)}: make it "
                    "anew, or stop this and give --recreate_tpu")
        if state == "STOPPED":
            line += f"; `gcloud compute tpus tpu-vm start {self._name}` starts it"
        return line

    def _check_elsewhere(self, node):
        """Refuses to delete the TPU that this program runs on."""
        for endpoint in node.get("networkEndpoints", ()):
            address = endpoint.get("ipAddress")
            try:
                here = address and fence.addresses(address)
            except OSError:
                continue
            if here:
                raise UserError(f"--recreate_tpu: this machine, {address}, is a worker of --tpu "
                                f"{self._name}, and would be deleted with it; start the program on "
                                "another machine")

    def _check_kind(self, node):
        kind, _, cores = node.get("acceleratorType", "").partition("-")
        if kind.startswith(("v5", "v6")):
            raise UserError(f"--tpu {self._name}: TensorFlow 2.15's TPUEstimator runs on v2, v3 "
                            f"and v4, not on {kind}; --preflight alone knows v5e")
        # Of a v4 the name counts cores, of which TensorFlow may show a chip's two as one.
        if kind in ("v2", "v3") and cores.isdecimal():
            self._check_cores(int(cores))

    def _check_cores(self, cores):
        if self._mesh_size != cores:
            raise UserError(f"--tpu {self._name}: it has {cores} cores, and mesh_shape "
                            f"{self._mesh_size} positions; try --set mesh_shape=x:{cores} --set "
                            "layout=batch:x")

    def _connect(self):
        """(TensorFlow's resolver, number of cores) of a TPU that is ready."""
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(self._name, *self._place)
        cores = _count_cores(self._name, resolver)
        if not cores:
            where = ("this machine: is it a TPU VM, with the TensorFlow of its image "
                     "(docs/cloud.md)?" if self._name == LOCAL else
                     "what answers there: give the address of a TPU worker")
            raise UserError(f"--tpu {self._name}: no TPU cores in {where}")
        self._check_cores(cores)
        return resolver, cores


def check_paths(name, model_path, data=()):
    """Refuses a run's directory that the workers of a TPU elsewhere do not see.

    Args:
      name: the TPU's. model_path: the run's directory.
      data: paths of datasets, of which a warning says that the first worker will read them.

    Raises:
      UserError: asks for a path in a bucket.
    """
    elsewhere = name != LOCAL and not name.startswith((ADDRESS + "localhost", ADDRESS + "127."))
    if elsewhere and "://" not in model_path:
        raise UserError(f"model_path: {model_path} is on this machine, and the workers of --tpu "
                        f"{name} write checkpoints: give --model_path gs://BUCKET/…")
    for path in data:
        if elsewhere and "://" not in path:
            logging.warning("warning: %s: the first worker of --tpu %s reads it, so it has to be "
                            "on that machine, under this path; or give gs://BUCKET/…", path, name)


def _count_cores(name, resolver):
    try:
        cluster = resolver.cluster_spec().as_cluster_def()
    except (ValueError, RuntimeError) as error:  # it was there a moment ago
        reason = str(error).rpartition("Exception: ")[2]
        raise Silent(f"--tpu {name}: the TPU API did not answer ({reason})") from error
    config = tf.ConfigProto(operation_timeout_in_ms=_WAIT_MS)
    config.cluster_def.CopyFrom(cluster)
    try:
        with tf.Graph().as_default(), tf.Session(resolver.master(), config=config) as session:
            return sum(device.device_type == "TPU" for device in session.list_devices())
    except (tf.errors.DeadlineExceededError, tf.errors.UnavailableError,
            tf.errors.NotFoundError) as error:
        raise Silent(f"--tpu {name}: nobody answers at {resolver.master()}; does the worker run, "
                     "and does the firewall let port 8470 through?") from error
