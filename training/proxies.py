"""Stand-ins for what a training step is made of, where its shapes are all that is asked."""

import dataclasses
import os

import numpy as np

import inputs
from configs import layouts, schema
from configs.errors import UserError
from mesh import recording
from mesh.compat import mtf, tf
from models import layers as model_layers
from training import frozen, model_fn, objectives


@dataclasses.dataclass
class Unread:
    """What training.frozen.Frozen is, of a run that is not there: a config, and weights of zeros.

    Attributes:
      config: the RunConfig that would have made the weights.
    """

    config: schema.RunConfig

    def initializer(self, name):
        """Zeros, of any name and shape."""
        del name
        return tf.zeros_initializer()

    def value(self, name):
        """The mean of targets, zeros; no other value is asked for to know shapes."""
        del name
        return np.zeros([self.config.clip_out], np.float32)


def frozen_of(config):
    """The frozen weights of a run; those of no run by the config in configs/ of the run's name.

    So `clip.student = "runs/text_clip"` is what configs/text_clip.json says, before it is trained.

    Raises:
      UserError: there is neither a run nor such a config.
    """
    try:
        return frozen.of_run(config)
    except UserError:
        if config.model != "gpt_c":
            raise
        name = os.path.basename(config.clip.student.rstrip("/"))
        try:
            student = schema.load(name)
        except UserError:
            student = None
        if student is None or student.model != "clip_student":
            raise
    layouts.check_tower(config, "clip.student", student, student.clip_out)
    return Unread(student)


def of_layers(config, number):
    """A config of `number` layers, the first ones of a config; itself if it has no more."""
    if number >= config.n_layer:
        return config
    changes = {"n_layer": number, "attention_types": list(config.attention_types[:number])}
    if config.moe_layers:
        changes["moe_layers"] = [layer for layer in config.moe_layers if layer < number]
    if config.model == "gpt_c":
        kept = [layer for layer in config.clip.layer if layer == "last" or layer <= number]
        changes["clip"] = {**config.clip.model_dump(exclude_unset=True), "layer": kept or ["last"]}
    return config.replace(**changes)


def facts_and_specs(config):
    """(an inputs.Facts, {name: tf.TensorSpec} of a batch of texts), as if there were data."""
    facts = inputs.Facts(tokens=0, bytes=None, decoded_bytes=None, windows=0, encoder=None,
                         encoder_hash=None, n_vocab=config.n_vocab, eos_id=None, datasets=())
    batch = config.train_batch_size
    return facts, {"tokens": tf.TensorSpec([batch, config.window_size + 1], tf.int32),
                   "valid": tf.TensorSpec([batch], tf.int32)}


def graph_of(config, facts, specs, taken):
    """A step's losses and gradients as a mtf graph, without microbatches, lowered on nothing.

    Returns:
      (the mtf.Graph, a list of mtf tensors that are kept to its end: losses and gradients).
    """
    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        features = {name: tf.placeholder(spec.dtype, spec.shape, name)
                    for name, spec in specs.items()}
        objective = objectives.of_run(config, facts, taken)
        inputs, _ = objective.features(mesh, features, tf.constant(0))
        key = mtf.import_tf_tensor(mesh, tf.constant(0), mtf.Shape([]))
        ctx = model_layers.Context(mesh, config, key)
        terms = list(objective.terms(ctx, inputs).values())
        terms += [term.total for term in ctx.terms.values()]
        variables = [v.outputs[0] for v in mesh.graph.trainable_variables]
        gradients = mtf.gradients([mtf.add_n(terms)], variables)
        return mesh.graph, [*terms, *(g for g in gradients if g is not None)]


def recorded(config, facts, specs, taken):
    """The whole training step lowered onto a mesh.recording.RecordingMesh, which it returns."""
    with tf.Graph().as_default():
        features = {name: tf.placeholder(spec.dtype, spec.shape, name)
                    for name, spec in specs.items()}
        impl = recording.mesh_of(config)
        model_fn.train_step(config, objectives.of_run(config, facts, taken),
                            mtf.Mesh(mtf.Graph(), "mesh"), features,
                            lambda _, mesh: mtf.Lowering(mesh.graph, {mesh: impl},
                                                         autostack=False))
    return impl
