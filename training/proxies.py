"""Stand-ins for what a training step is made of, where its shapes are all that is asked."""

import dataclasses
import os

import numpy as np

import inputs
from configs import layouts, reading, schema
from configs.errors import UserError
from mesh import recording
from mesh.compat import mtf, tf
from models import clip
from models import layers as model_layers
from training import checkpoints, contrastive, frozen, model_fn, objectives

VIT_B32 = "The text tower of OpenAI's ViT-B/32, imported."


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
    """The frozen weights of a run; those of no run by the config that would train it.

    That is the config in configs/ with such a model_path, or of the directory's name: so
    `clip.student = "runs/text_clip"` is what configs/text_clip.json says, before it is trained. A
    teacher that no config knows has the sizes of OpenAI's ViT-B/32, as an imported one.

    Raises:
      UserError: there is neither a run nor such a config, or the run cannot be used.
    """
    try:
        return frozen.of_run(config)
    except UserError:
        key, kind, _ = frozen.SOURCES[config.model]
        directory = getattr(config.clip, key).rstrip("/")
        other = None if checkpoints.latest(directory) else _would_train(directory, kind)
        if other is None:
            raise
    layouts.check_tower(config, f"clip.{key}", other, other.clip_out)
    return Unread(other)


def _would_train(directory, kind):
    """The config of a run of a kind, which is not there yet; None if it is not known."""
    for name in reading.shipped_configs():
        config = schema.load(name)
        if config.model == kind and (config.model_path == directory
                                     or name == os.path.basename(directory)):
            return config
    return contrastive.config_of(clip.ClipSizes(), VIT_B32, directory) if kind == "clip" else None


def objective(config, facts, taken):
    """A run's objective; of a student without asking for its validation data."""
    return objectives.of_run(config.replace(eval_steps=0), facts, taken)


def of_layers(config, kept):
    """A config of some of its layers alone; itself if they are all.

    Args:
      config: a RunConfig. kept: the numbers of the layers, from 0 on, in order.
    """
    kept = [layer for layer in kept if layer < config.n_layer]
    if len(kept) == config.n_layer:
        return config
    changes = {"n_layer": len(kept),
               "attention_types": [config.attention_types[layer] for layer in kept]}
    if config.moe_layers:
        changes["moe_layers"] = [place for place, layer in enumerate(kept)
                                 if layer in config.moe_layers]
    if config.model == "gpt_c":
        heard = [layer for layer in config.clip.layer if layer == "last" or layer <= len(kept)]
        changes["clip"] = {**config.clip.model_dump(exclude_unset=True), "layer": heard or ["last"]}
    return config.replace(**changes)


def facts_and_specs(config):
    """(an inputs.Facts, {name: tf.TensorSpec} of a batch of texts or pictures), as if of data."""
    facts = inputs.Facts(tokens=0, bytes=None, decoded_bytes=None, windows=0, encoder=None,
                         encoder_hash=None, n_vocab=config.n_vocab, eos_id=None, datasets=())
    batch = config.train_batch_size
    tokens = config.n_ctx if config.model == "clip" else config.window_size + 1
    specs = {"tokens": tf.TensorSpec([batch, tokens], tf.int32),
             "valid": tf.TensorSpec([batch], tf.int32)}
    if config.model == "clip":
        side = config.clip.image_size
        specs |= {"ends": specs["valid"],
                  "images": tf.TensorSpec([batch, side, side, 3], tf.uint8)}
    return facts, specs


def graph_of(config, facts, specs, taken):
    """A step's losses and gradients as a mtf graph, without microbatches, lowered on nothing.

    Returns:
      (the mtf.Graph, a list of mtf tensors that are kept to its end: losses and gradients).
    """
    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        features = {name: tf.placeholder(spec.dtype, spec.shape, name)
                    for name, spec in specs.items()}
        asked = objective(config, facts, taken)
        inputs, _ = asked.features(mesh, features, tf.constant(0))
        key = mtf.import_tf_tensor(mesh, tf.constant(0), mtf.Shape([]))
        ctx = model_layers.Context(mesh, config, key)
        terms = list(asked.terms(ctx, inputs).values())
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
        model_fn.train_step(config, objective(config, facts, taken),
                            mtf.Mesh(mtf.Graph(), "mesh"), features,
                            lambda _, mesh: mtf.Lowering(mesh.graph, {mesh: impl},
                                                         autostack=False))
    return impl
