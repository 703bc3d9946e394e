"""TPU systems that are not there: what TensorFlow is told of them, and a server in their place."""

import contextlib
import math

import numpy as np
from tensorflow.python.tpu import tpu_system_metadata
from tensorflow.python.tpu.topology import Topology

from mesh.compat import tf


def topology(shape, hosts=1):
    """A Topology of [x, y, z, cores on a chip], whose cores are shared out among hosts along y."""
    x, y, z, cores = shape
    places = [(i, j, k, core) for j in range(y) for k in range(z) for i in range(x)
              for core in range(cores)]
    return Topology(mesh_shape=np.array(shape, np.int32),
                    device_coordinates=np.array(places, np.int32).reshape(hosts, -1, 4))


def assignment(shape):
    """TPUEstimator's device assignment of such a slice, each core a replica."""
    return tf.tpu.experimental.DeviceAssignment.build(
        topology(shape), num_replicas=math.prod(shape))


def resolver():
    """TensorFlow's own TPUClusterResolver of a server of this process, which has no TPU."""
    server = tf.train.Server.create_local_server()
    return server, tf.distribute.cluster_resolver.TPUClusterResolver(server.target)


@contextlib.contextmanager
def pretended(monkeypatch, shape, hosts=1):
    """TensorFlow finds this slice behind every address."""
    cores = math.prod(shape)
    metadata = tpu_system_metadata.TPUSystemMetadata(
        cores, hosts, cores // hosts, topology(shape, hosts), ())
    with monkeypatch.context() as patch:
        patch.setattr(tpu_system_metadata, "_query_tpu_system_metadata",
                      lambda *args, **kwargs: metadata)
        yield


class Stop(Exception):
    """What stands in place of the first step, which needs a TPU."""
