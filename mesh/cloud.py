"""Which TPU a run has: looked up by name with TensorFlow's own resolver, and checked."""

from typing import NamedTuple
from urllib.error import URLError

from oauth2client.client import ApplicationDefaultCredentialsError, HttpAccessTokenRefreshError

from configs.errors import UserError
from mesh.compat import tf, tpu_client

LOCAL, ADDRESS = "local", "grpc://"
# Devices are listed within this time, or nobody listens there.
_WAIT_MS = 60_000


class Tpu(NamedTuple):
    """A TPU that answers.

    Attributes:
      name: as the user gave it. resolver: TensorFlow's TPUClusterResolver.
      cores: how many devices it shows.
    """

    name: str
    resolver: tf.distribute.cluster_resolver.TPUClusterResolver
    cores: int


def find(name, zone, project, mesh_size):
    """The Tpu called `name`, which has a core for each position of the mesh.

    Args:
      name: of a Cloud TPU; "grpc://host:port" of its first worker; or "local" for the one that this
        machine is a host of.
      zone, project: where a named one is; None for those of this machine.
      mesh_size: how many positions the config's mesh has.

    Raises:
      UserError: it is not there, not ready, or has another number of cores.
    """
    if name != LOCAL and not name.startswith(ADDRESS):
        _check_state(name, zone, project, mesh_size)
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name, zone, project)
    cores = _count_cores(name, resolver)
    if not cores:
        where = ("this machine: is it a TPU VM, with the TensorFlow of its image (docs/cloud.md)?"
                 if name == LOCAL else "what answers there: give the address of a TPU worker")
        raise UserError(f"--tpu {name}: no TPU cores in {where}")
    _check_cores(name, mesh_size, cores)
    return Tpu(name, resolver, cores)


def check_path(name, model_path):
    """Refuses a run's directory that the workers of a TPU elsewhere do not see.

    Raises:
      UserError: asks for a path in a bucket.
    """
    elsewhere = name != LOCAL and not name.startswith((ADDRESS + "localhost", ADDRESS + "127."))
    if elsewhere and "://" not in model_path:
        raise UserError(f"model_path: {model_path} is on this machine, and the workers of --tpu "
                        f"{name} write checkpoints: give --model_path gs://BUCKET/…")


def _check_cores(name, mesh_size, cores):
    if mesh_size != cores:
        raise UserError(f"--tpu {name}: it has {cores} cores, and mesh_shape {mesh_size} "
                        f"positions; try --set mesh_shape=x:{cores} --set layout=batch:x")


def _check_state(name, zone, project, mesh_size):
    """Refuses a named TPU that is not there, not ready, not well, or has other cores."""
    where = f"in zone {zone or '(this machine)'} of project {project or '(this machine)'}"
    try:
        node = tpu_client.Client(tpu=name, zone=zone, project=project)
        state, health, kind = node.state(), node.health(), node.accelerator_type()
    except URLError as error:
        raise UserError(f"--tpu {name}: give --tpu_zone and --gcp_project; this machine's metadata "
                        f"server, which knows them on Google Cloud, does not answer ({error})"
                        ) from error
    except (ApplicationDefaultCredentialsError, HttpAccessTokenRefreshError) as error:
        raise UserError(f"--tpu {name}: no Google Cloud credentials here; `gcloud auth "
                        "application-default login` makes them, or GOOGLE_APPLICATION_CREDENTIALS "
                        "names a service account's key") from error
    except ValueError as error:
        raise UserError(f"--tpu {name}: {_explained(str(error), name, where)}") from error
    if state != "READY":
        wait = "wait until it is READY" if state in ("CREATING", "STARTING", "RESTARTING",
                                                     "REPAIRING") else "make it anew"
        raise UserError(f"--tpu {name}: its state is {state}; {wait}: `gcloud compute tpus tpu-vm "
                        f"describe {name}` tells")
    if health not in (None, "HEALTHY", "HEALTH_UNSPECIFIED"):
        raise UserError(f"--tpu {name}: its health is {health}; delete it and make it anew, or "
                        "take another")
    kind, _, cores = (kind or "").partition("-")
    if kind.startswith("v5"):
        raise UserError(f"--tpu {name}: TensorFlow 2.15's TPUEstimator runs on v2, v3 and v4, not "
                        f"on {kind}; --preflight alone knows v5e")
    # Of a v4 the name counts cores, of which TensorFlow may show a chip's two as one.
    if kind in ("v2", "v3") and cores.isdecimal():
        _check_cores(name, mesh_size, int(cores))


def _explained(message, name, where):
    """A line about what the TPU API answered."""
    if "HttpError 404" in message:
        return (f"no such TPU {where}; `gcloud compute tpus tpu-vm list --zone ZONE` lists those "
                "of a zone")
    if "HttpError 403" in message or "HttpError 401" in message:
        return (f"the TPU API lets these credentials see no TPU {where}: enable the API, and give "
                "the account the role TPU Viewer")
    return f"the TPU API did not answer ({message.partition('Exception: ')[2] or message})"


def _count_cores(name, resolver):
    cluster = resolver.cluster_spec().as_cluster_def()
    config = tf.ConfigProto(operation_timeout_in_ms=_WAIT_MS)
    config.cluster_def.CopyFrom(cluster)
    try:
        with tf.Graph().as_default(), tf.Session(resolver.master(), config=config) as session:
            return sum(device.device_type == "TPU" for device in session.list_devices())
    except (tf.errors.DeadlineExceededError, tf.errors.UnavailableError,
            tf.errors.NotFoundError) as error:
        raise UserError(f"--tpu {name}: nobody answers at {resolver.master()}; does the worker "
                        "run, and does the firewall let port 8470 through?") from error
