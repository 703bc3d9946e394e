"""Assembles a TPUEstimatorSpec: features → model → losses → gradients → updates."""

from mesh import devices, random
from mesh.compat import mtf, tf
from models import gpt, layers, losses
from training import hooks, optimizers, schedules, step


def model_fn(features, mode, params, config, n_valid, meter=None):
    """The Estimator's model function.

    Args:
      features: "tokens" int32 [batch, n_ctx + 1] and "valid" int32 [batch], the number of targets
        that count in each row.
      mode: tf.estimator.ModeKeys.TRAIN or EVAL.
      params: TPUEstimator's own; not used.
      config: the run's config.
      n_valid: how many ids the encoder has.
      meter: a training.metrics.Meter, for training.

    Returns:
      a TPUEstimatorSpec.
    """
    del params
    graph = mtf.Graph()
    mesh = mtf.Mesh(graph, "mesh")
    model = gpt.GPT(config, n_valid)
    inputs = _on_mesh(mesh, features, config.n_ctx)
    if mode == tf.estimator.ModeKeys.TRAIN:
        return _train_spec(config, model, mesh, inputs, features["valid"], meter)
    return _eval_spec(config, model, mesh, inputs, features["valid"])


def _on_mesh(mesh, features, n_ctx):
    """The features as mtf tensors: tokens, targets and mask, each [batch, sequence]."""
    tokens, valid = features["tokens"], features["valid"]
    shape = mtf.Shape([mtf.Dimension("batch", int(tokens.shape[0])),
                       mtf.Dimension("sequence", n_ctx)])
    mask = tf.sequence_mask(valid, n_ctx, tf.float32)
    parts = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "mask": mask}
    return {name: mtf.import_tf_tensor(mesh, x, shape) for name, x in parts.items()}


def _train_spec(config, model, mesh, inputs, valid, meter):
    graph = mesh.graph
    global_step = tf.train.get_or_create_global_step()
    # Known before any microbatch runs, so that microbatches of unequal size weigh what they hold.
    count = mtf.import_tf_tensor(mesh, tf.cast(tf.reduce_sum(valid), tf.float32), mtf.Shape([]))
    now = tf.cast(global_step, tf.int32)
    key = mtf.import_tf_tensor(mesh, random.mix(tf.constant(config.seed, tf.int32), now),
                               mtf.Shape([]))

    def loss_fn(features, microbatch_key):
        ctx = layers.Context(mesh, config, microbatch_key)
        lm = losses.language_model(model, ctx, **features) / count
        return {"loss": lm, "loss/lm": lm}

    values, gradients = step.losses_and_gradients(inputs, loss_fn, key, config.num_microbatches)
    variables = graph.trainable_variables
    gradients, norm = optimizers.clip_by_global_norm(gradients, config.gradient_clipping)
    rate = schedules.learning_rate(global_step, config)
    updates = optimizers.optimizer(config, rate, global_step + 1).apply_grads(gradients, variables)
    values["gradient_norm"] = norm
    values["parameter_norm"] = optimizers.global_norm([v.value for v in variables])

    lowering = lower(config, mesh)
    with tf.control_dependencies([lowering.lowered_operation(op) for op in updates]):
        train_op = tf.assign_add(global_step, 1).op
    scalars = {name: lowering.export_to_tf_tensor(x) for name, x in values.items()}
    scalars["learning_rate"] = rate
    return tf.estimator.tpu.TPUEstimatorSpec(
        tf.estimator.ModeKeys.TRAIN, loss=scalars["loss"], train_op=train_op,
        training_hooks=[mtf.MtfRestoreHook(lowering),
                        hooks.LogScalars(scalars, config, meter),
                        hooks.SaveAtEnd(lowering, config.model_path, config.keep)])


def _eval_spec(config, model, mesh, inputs, valid):
    ctx = layers.Context(mesh, config)
    total = losses.language_model(model, ctx, **inputs)
    lowering = lower(config, mesh)
    count = tf.cast(tf.reduce_sum(valid), tf.float32)
    mean = lowering.export_to_tf_tensor(total) / tf.maximum(count, 1.0)

    def metrics(means, counts):
        # The mean over all targets of all batches: batches weigh as many targets as they have.
        return {"lm": tf.metrics.mean(means, weights=counts)}

    return tf.estimator.tpu.TPUEstimatorSpec(
        tf.estimator.ModeKeys.EVAL, loss=mean,
        eval_metrics=(metrics, [tf.reshape(mean, [1]), tf.reshape(count, [1])]),
        evaluation_hooks=[mtf.MtfRestoreHook(lowering)])


def lower(config, mesh):
    """Lowers the graph of `mesh` onto the config's devices.

    mtf's stacking of small variables is off: it copies every weight at each step.
    """
    return mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(config)}, autostack=False)


