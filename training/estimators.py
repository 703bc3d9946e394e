"""The Estimator of a run: what it is told of the machines, and what its errors mean to the user."""

import contextlib
import functools
import re

import inputs
from configs.command_line import refusal
from configs.errors import UserError
from mesh import devices
from mesh.compat import tf, tpu_loops
from records import retrying
from training import checkpoints, model_fn


def make(config, objective, meter, tpu=None, start=None, hosts=None):
    """The TPUEstimator of a run.

    Args:
      config: the run's config.
      objective: a training.objective.Objective.
      meter: a training.metrics.Meter, for training alone.
      tpu: a mesh.cloud.Tpu, or None for the devices of this machine.
      start: where weights start that no checkpoint has: see models.layers.Context.
      hosts: the mesh.cluster.Hosts that share the mesh.
    """
    on_tpu = {}
    if tpu:
        # Every core is given the whole batch, and cuts out its own rows.
        on_tpu = dict(cluster=tpu.resolver, tpu_config=tf.estimator.tpu.TPUConfig(
            iterations_per_loop=config.iterations, num_shards=tpu.cores, num_cores_per_replica=1,
            per_host_input_for_training=tf.estimator.tpu.InputPipelineConfig.BROADCAST))
    proto = None if tpu else devices.session_config(config)
    if hosts:
        on_tpu["master"] = hosts.target
        # Or a server would keep one session's variables for the next.
        proto.isolate_session_state = True
    run_config = tf.estimator.tpu.RunConfig(
        model_dir=config.model_path, session_config=proto,
        tf_random_seed=config.seed, save_checkpoints_steps=None, save_checkpoints_secs=None,
        save_summary_steps=None, log_step_count_steps=None, **on_tpu)
    estimator = tf.estimator.tpu.TPUEstimator(
        functools.partial(model_fn.model_fn, config=config, objective=objective, meter=meter,
                          start=start, hosts=hosts),
        config=run_config, use_tpu=bool(tpu), params={}, train_batch_size=config.train_batch_size,
        eval_batch_size=config.eval_batch_size)
    # It writes scores of its own, among them an unweighted mean over batches, beside ours. They
    # shall not last.
    estimator.eval_dir = lambda name=None: "ram://estimator"
    return estimator


class Estimators:
    """The Estimator of a run, which is made anew when the TPU has become another.

    Its arguments are those of make.
    """

    def __init__(self, config, objective, meter, tpu=None, start=None, hosts=None):
        self._config, self._tpu, self._machines = config, tpu, tpu or hosts
        self._make = functools.lru_cache(maxsize=1)(
            lambda resolver: make(config, objective, meter, tpu, start, hosts))

    def run(self, job, *args, around=contextlib.nullcontext, **kwargs):
        """Has an Estimator "train" or "evaluate", again where lost machines have come back.

        Args:
          job: the Estimator's method, whose arguments follow.
          around: makes a context for each try.
        """
        def once():
            with around():
                estimator = self._make(self._tpu and self._tpu.resolver)
                return run(self._config, estimator, job, *args, **kwargs)
        return self._machines.call(once) if self._machines else once()


def run(config, estimator, job, *args, **kwargs):
    """Has the Estimator "train" or "evaluate"; says what went wrong in the user's terms."""
    on_tpu = estimator.config.cluster is not None
    try:
        # Outside of all graphs TPUEstimator would take this process's devices for the TPU's.
        with tf.Graph().as_default(), tpu_loops() if on_tpu else contextlib.nullcontext():
            return getattr(estimator, job)(*args, **kwargs)
    except tf.errors.ResourceExhaustedError as error:
        if re.search(r"No space left|quota exceeded|Too many open files", str(error)):
            raise
        raise UserError(f"{refusal(error)}; lower the batch size or n_ctx, or set "
                        "tokens_per_mb_per_replica or recompute_grad") from error
    except retrying.TRANSIENT:
        raise
    except tf.errors.OpError as error:
        transient = retrying.unwrapped(error)
        if transient:
            raise transient from error
        line = (checkpoints.explain_restore_error(config.model_path, error)
                or inputs.explain_data_error(config, error))
        if line is None:
            raise
        raise UserError(line) from error
