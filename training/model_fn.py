"""Assembles a TPUEstimatorSpec: features → objective → gradients → updates."""

import functools
import operator
from typing import NamedTuple

from mesh import devices, random
from mesh.compat import mtf, tf
from models import layers
from training import groups, hooks, optimizers, schedules, step


def model_fn(features, mode, params, config, objective, meter=None, start=None,
             hosts=None):
    """The Estimator's model function.

    Args:
      features: what the input function of the config's kind of model gives.
      mode: tf.estimator.ModeKeys.TRAIN or EVAL.
      params: TPUEstimator's own; on a TPU its context is in it.
      config: the run's config.
      objective: a training.objective.Objective.
      meter: a training.metrics.Meter, for training.
      start: see train_step.
      hosts: the mesh.cluster.Hosts that share the mesh.

    Returns:
      a TPUEstimatorSpec.
    """
    context = params.get("context")
    if context is None:
        mesh, lowers = mtf.Mesh(mtf.Graph(), "mesh"), lower
        if hosts:
            lowers = functools.partial(lower_on_hosts, hosts.devices)
    else:
        mesh = mtf.Mesh(mtf.Graph(), "mesh", devices.master_placer(context))
        lowers = functools.partial(lower_on_tpu, context.device_assignment)
    if mode == tf.estimator.ModeKeys.TRAIN:
        return _train_spec(config, objective, mesh, features, meter, lowers, context, start)
    return _eval_spec(config, objective, mesh, features, lowers, context)


def _train_spec(config, objective, mesh, features, meter, lowers, context, start):
    step = train_step(config, objective, mesh, features, lowers, start)
    host_call = None
    meter.built(mesh.graph, step.lowering.mesh_impl(mesh))
    if context is None:
        log = hooks.LogScalars(step.scalars, config, meter)
    else:
        with tf.control_dependencies([step.update]):  # what it reads is the step just made
            log = hooks.LogFromTpu(step.scalars, meter, config.iterations)
        host_call = log.host_call
    # What hooks run is no part of the program that a TPU repeats.
    with mtf.utils.outside_all_rewrites():
        save = hooks.SaveAtEnd(step.lowering, config.model_path,
                               sharded=context is not None and context.num_hosts > 1,
                               keep=config.keep, keep_every=config.keep_every,
                               keep_best=config.keep_best)
    # Estimator stops at a loss that is not finite; here training.watching decides.
    loss = step.scalars["loss"]
    loss = tf.where(tf.math.is_finite(loss), loss, tf.zeros_like(loss))
    return tf.estimator.tpu.TPUEstimatorSpec(
        tf.estimator.ModeKeys.TRAIN, loss=loss, train_op=step.update,
        host_call=host_call, training_hooks=[mtf.MtfRestoreHook(step.lowering), log,
                                               hooks.Recoveries(), save])


class TrainStep(NamedTuple):
    """A lowered training step.

    Attributes:
      lowering: the mtf.Lowering.
      update: the operation that updates the weights and the global step.
      scalars: {name: tensor}, "loss" among them.
    """

    lowering: mtf.Lowering
    update: tf.Operation
    scalars: dict


def train_step(config, objective, mesh, features, lower, start=None):
    """The training step of a run: losses, gradients and updates, lowered.

    Args:
      config: the run's config.
      objective: a training.objective.Objective.
      mesh: an mtf.Mesh, of which nothing is built yet.
      features: what the input function gives.
      lower: (config, mesh) -> an mtf.Lowering of all that is built.
      start: see models.layers.Context; None is the usual start, or a run that goes on.

    Returns:
      a TrainStep.
    """
    graph = mesh.graph
    global_step = tf.train.get_or_create_global_step()
    now = tf.cast(global_step, tf.int32)
    inputs, counts = objective.features(mesh, features, now)
    # Known before any microbatch runs, so that microbatches of unequal size weigh what they hold.
    # A term without a valid position is 0, not 0 / 0.
    counts = {name: _scalar(mesh, tf.maximum(count, 1.0)) for name, count in counts.items()}
    counts["tokens"] = _scalar(mesh, config.train_batch_size * config.n_ctx)
    weights = {name: _scalar(mesh, w) for name, w in objective.weights(now).items()}
    key = mtf.import_tf_tensor(mesh, random.mix(tf.constant(config.seed, tf.int32), now),
                               mtf.Shape([]))

    def loss_fn(inputs, microbatch_key):
        ctx = layers.Context(mesh, config, microbatch_key, start=start)
        terms = objective.terms(ctx, inputs)
        means = {name: total / counts[name] for name, total in terms.items()}
        weighted = [mean * weights[name] if name in weights else mean
                    for name, mean in means.items()]
        for name, term in ctx.terms.items():
            means[name] = term.total / counts[term.count]
            weighted.append(means[name] * term.weight)
        return {"loss": functools.reduce(operator.add, weighted),
                **{f"loss/{name}": mean for name, mean in means.items()}}

    values, gradients = step.losses_and_gradients(inputs, loss_fn, key, config.num_microbatches)
    variables = graph.trainable_variables
    of_groups = groups.norms("gradient_norm", gradients, variables)
    of_weights = groups.each("gradient_norms", gradients, variables) if config.log_grads else {}
    gradients, norm = optimizers.clip_by_global_norm(gradients, config.gradient_clipping)
    rate = schedules.learning_rate(global_step, config)
    finite = optimizers.finite([values["loss"], norm]) if config.on_nan == "skip" else None
    updates = optimizers.optimizer(config, rate, global_step + 1).apply_grads(gradients, variables,
                                                                             finite)
    values["gradient_norm"] = norm
    values.update(of_groups)
    values.update(of_weights)
    weights_now = [v.value for v in variables]
    values["parameter_norm"] = optimizers.global_norm(weights_now)
    values.update(groups.norms("parameter_norm", weights_now, variables))

    lowering = lower(config, mesh)
    with tf.control_dependencies([lowering.lowered_operation(op) for op in updates]):
        update = tf.assign_add(global_step, 1).op
    scalars = {name: lowering.export_to_tf_tensor(x) for name, x in values.items()}
    scalars["learning_rate"] = rate
    scalars.update({f"weight/{name}": lowering.export_to_tf_tensor(weight)
                    for name, weight in weights.items()})
    return TrainStep(lowering, update, scalars)


def _scalar(mesh, value):
    return mtf.import_tf_tensor(mesh, tf.cast(value, tf.float32), mtf.Shape([]))


def _eval_spec(config, objective, mesh, features, lowers, context):
    inputs, counts = objective.eval_features(mesh, features)
    scores = objective.scores(layers.Context(mesh, config), inputs)
    lowering = lowers(config, mesh)
    tensors = {}
    for name, (total, counted) in scores.items():
        count = counts[counted]
        mean = lowering.export_to_tf_tensor(total) / tf.maximum(count, 1.0)
        # TPUEstimator wants tensors with a first dimension of examples.
        tensors[name] = mean[tf.newaxis]
        tensors[f"{name}/count"] = tf.reshape(count, [1])

    def metrics(**tensors):
        # The mean over all that counts in all batches: batches weigh as much as they hold.
        found = {name: tf.metrics.mean_tensor(mean[0], weights=tensors[f"{name}/count"][0])
                 for name, mean in tensors.items() if not name.endswith("/count")}
        return found if context is None else hooks.counted(found)

    first = next(iter(scores))
    return tf.estimator.tpu.TPUEstimatorSpec(
        tf.estimator.ModeKeys.EVAL, loss=tensors[first][0], eval_metrics=(metrics, tensors),
        evaluation_hooks=[mtf.MtfRestoreHook(lowering)])


def lower(config, mesh):
    """Lowers the graph of `mesh` onto the config's devices.

    mtf's stacking of small variables is off: it copies every weight at each step.
    """
    return mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(config)}, autostack=False)


def lower_on_hosts(names, config, mesh):
    """Lowers the graph of `mesh` onto the named devices of a cluster."""
    return mtf.Lowering(mesh.graph, {mesh: devices.hosts_mesh_impl(config, names)},
                        autostack=False)


def lower_on_tpu(assignment, config, mesh):
    """Lowers the graph of `mesh` onto the TPU cores of a device assignment."""
    return mtf.Lowering(mesh.graph, {mesh: devices.tpu_mesh_impl(config, assignment)},
                        autostack=False)
