"""What mesh/compat.py changes in TensorFlow and mesh-tensorflow."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tensorflow_estimator.python.estimator.tpu import error_handling, tpu_estimator

from mesh.compat import mtf, tf


def test_importing_it_says_nothing(root):
    done = subprocess.run(
        [sys.executable, "-W", "default::FutureWarning", "-c", "from mesh.compat import mtf, tf"],
        cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(("level", "lines"), [("3", 0), ("0", 1)])
def test_xla_says_nothing_unless_asked(root, level, lines):
    code = """
from mesh.compat import quiet_xla, tf
quiet_xla()
with tf.Graph().as_default():
    y = tf.function(lambda x: x * 2.0, autograph=False, jit_compile=True)(
        x := tf.placeholder(tf.float32, [2]))
    with tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        print(len(session.list_devices()), session.run(y, {x: [1.0, 1.0]}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True,
                          check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": level})
    assert done.stdout == "2 [2. 2.]\n"
    assert done.stderr.count("Compiled cluster using XLA") == lines
    assert lines or done.stderr == ""


@pytest.mark.parametrize(("mesh_shape", "devices"), [("x:1", [""]), ("x:2", ["cpu:0", "cpu:1"])])
def test_the_model_sees_the_values_from_before_the_update(mesh_shape, devices):
    rows = mtf.Dimension("rows", 4)
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        weight = mtf.get_variable(mesh, "w", mtf.Shape([rows]),
                                  initializer=tf.ones_initializer())
        impl = mtf.placement_mesh_impl.PlacementMeshImpl(
            mtf.convert_to_shape(mesh_shape), mtf.convert_to_layout_rules("rows:x"), devices)
        double = weight * 2.0
        update = mtf.assign(weight, double)
        lowering = mtf.Lowering(graph, {mesh: impl})
        with tf.control_dependencies([lowering.lowered_operation(update)]):
            # A consumer that happens to run late.
            late = tf.identity(lowering.export_to_tf_tensor(weight))
        with tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
            session.run(tf.global_variables_initializer())
            session.run(lowering.copy_masters_to_slices())
            np.testing.assert_array_equal(session.run(late), np.full(4, 1.0))
            np.testing.assert_array_equal(session.run(late), np.full(4, 2.0))


def test_variables_are_resources_and_the_mesh_runs_them():
    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        variable = mtf.get_variable(mesh, "w", mtf.Shape([mtf.Dimension("rows", 2)]),
                                    initializer=tf.zeros_initializer()).operation
        assert variable.get_master().handle.dtype == tf.resource


def test_interruptions_of_runs_on_tpus_are_left_to_us():
    """TPUEstimator would set SIGINT back, end the process, and save what is older than its step."""
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver("local")
    resolver._cloud_tpu_client.api_available = lambda: True
    assert not tpu_estimator._check_add_preemption_hook(resolver)
    assert os.environ["TF_TPU_GRACEFUL_SHUTDOWN_MODE"] == ""
    before = signal.signal(signal.SIGINT, ours := lambda *_: None)
    try:
        hook = tpu_estimator.InstallSignalHandlerHook()
        hook.before_run(None)
        assert signal.getsignal(signal.SIGINT) is ours
        signal.signal(signal.SIGINT, before)
        hook.end(None)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def test_storage_out_of_reach_is_no_end_of_a_job():
    """TPUEstimator collects what its threads raise, and would leave such errors out."""
    collected = error_handling.ErrorRendezvous(1)
    with pytest.raises(tf.errors.UnavailableError, match="out of reach"):
        with collected.catch_errors("training_loop"):
            raise tf.errors.UnavailableError(None, None, "out of reach")
        collected.raise_errors()
