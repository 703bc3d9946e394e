"""TensorFlow 2.15 and mesh-tensorflow 0.1.21 made to work together.

The only module that changes anything inside these libraries. Everybody else writes

    from mesh.compat import mtf, tf

`tf` is `tensorflow.compat.v1`. TensorFlow 2's behaviour stays switched on: `tf.get_variable` then
makes resource variables, which placement on CPU meshes, TPUs and fused updates all need. Eager
execution does no harm, as every graph is built inside a `tf.Graph` or by an Estimator.
"""

import contextlib
import functools
import os
import threading
import warnings

# Read once, when TensorFlow's library is loaded. Level 3 hides its greetings (oneDNN, missing CUDA,
# factories registered twice), which it logs up to level "error"; an operation's failure is a Python
# exception all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with warnings.catch_warnings():
    # google.api_core and pkg_resources announce which versions they will stop to support.
    warnings.simplefilter("ignore")

    import tensorflow.compat.v1 as tf
    from tensorflow.python.framework import ops, tensor_conversion_registry
    from tensorflow.python.tpu.client import client as tpu_client
    from tensorflow.python.training import monitored_session

    if not hasattr(ops, "register_tensor_conversion_function"):
        # TensorFlow 2.13 moved it; mesh_tensorflow/tpu_variables.py calls it at import.
        ops.register_tensor_conversion_function = (
            tensor_conversion_registry.register_tensor_conversion_function)

    import mesh_tensorflow as mtf
    from tensorflow_estimator.python.estimator.tpu import error_handling, tpu_estimator

__all__ = ["auto_mtf", "mtf", "tf", "no_recovery", "quiet_xla", "tpu_client", "tpu_loops"]


@contextlib.contextmanager
def tpu_loops():
    """Within it TensorFlow builds loops as nodes of one graph, not as functions.

    TPUEstimator puts the model function into a loop, and Mesh TensorFlow makes variables there,
    which it can only if it gets out of the loop.
    """
    enabled = tf.control_flow_v2_enabled()
    tf.disable_control_flow_v2()
    try:
        yield
    finally:
        if enabled:
            tf.enable_control_flow_v2()


# Seconds that a session on several hosts may take to close.
_CLOSING = 10


@contextlib.contextmanager
def no_recovery():
    """Within it a session that is lost is an error.

    Otherwise an Estimator makes it anew by itself, and for that waits without end, and without a
    word, for a worker that has gone; and closing the session waits for it too, so that a session
    which does not close in time is left.
    """
    errors, close = monitored_session._PREEMPTION_ERRORS, tf.Session.close

    def close_in_time(session):
        closing = threading.Thread(target=close, args=[session], daemon=True)
        closing.start()
        closing.join(_CLOSING)

    monitored_session._PREEMPTION_ERRORS, tf.Session.close = (), close_in_time
    try:
        yield
    finally:
        monitored_session._PREEMPTION_ERRORS, tf.Session.close = errors, close


@functools.cache
def quiet_xla():
    """Has XLA say its "Compiled cluster" now, into the void, where TensorFlow is to be quiet.

    XLA logs that line at a process's first compilation whatever TF_CPP_MIN_LOG_LEVEL says, under a
    warning of its own. What is said while this compiles x + 1 is lost, and nothing else is.
    """
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "3":
        return
    graph = tf.Graph()
    with graph.as_default(), tf.device("/cpu:0"):
        x = tf.placeholder(tf.float32, [])  # a constant would be folded, and nothing compiled
        y = tf.function(lambda x: x + 1.0, autograph=False, jit_compile=True)(x)
    stderr, void = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 2)
    try:
        with tf.Session(graph=graph, config=tf.ConfigProto(device_count={"GPU": 0})) as session:
            session.run(y, {x: 0.0})
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(void)


def _read_variables_once():
    """Makes a variable's mtf tensor one read of it, rather than a new read by every consumer.

    `mtf.Variable` lowers to `tf.cast(variable, activation_dtype)`, which returns a variable
    of the same dtype as it is. Each consumer would then read it when it happens to run, and a
    backward matmul might see weights that this very step has updated. With one read, all of them
    see the values from before the update.
    """
    lower = mtf.Variable.lower

    def lower_and_read(self, lowering):
        lower(self, lowering)
        lowering.set_tensor_lowering(
            self.value,
            lowering.mesh_impl(self).slicewise(tf.convert_to_tensor, lowering.tensors[self.value]))

    mtf.Variable.lower = lower_and_read


_read_variables_once()


def _leave_interruptions_to_us():
    """Takes from TPUEstimator what it does by itself when a run on TPUs is cut off.

    Before a worker is serviced it would save the masters, which are older than the step that it
    writes down; where a TPU is preempted it would end the process without a word, or with a
    traceback where the TPU is gone; and it gives SIGINT its first meaning back in each loop. Of
    storage or a device that is out of reach it would say nothing, and return as if all were done.
    """
    error_handling._IGNORED_ERRORS = ()
    os.environ["TF_TPU_GRACEFUL_SHUTDOWN_MODE"] = ""
    tpu_estimator._check_add_preemption_hook = lambda cluster: False
    for name in ("before_run", "end"):
        setattr(tpu_estimator.InstallSignalHandlerHook, name,
                getattr(tf.train.SessionRunHook, name))


_leave_interruptions_to_us()


def auto_mtf():
    """mesh-tensorflow's modules (layout_optimizer, memory_estimator), which import ortools."""
    from mesh_tensorflow.auto_mtf import layout_optimizer, memory_estimator

    return layout_optimizer, memory_estimator
