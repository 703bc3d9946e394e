"""Tiny CLIP runs that others are trained with, of random weights, and objectives run once."""

import dataclasses
import json
import types

import graphs
import numpy as np
import safetensors.numpy

import encoders
from configs import schema
from interop import import_clip
from mesh.compat import mtf, tf
from models import layers
from training import checkpoints, language_models, model_fn

SIZES = dict(width=16, layers=1, heads=2, out=12, context=10)
# A meter that measures nothing, for a model function that no Estimator runs.
METER = types.SimpleNamespace(watch=None, built=lambda *lowered: None)
BYTES = {"spec": "byte", "hash": encoders.load("byte").hash, "n_vocab": 257, "eos_id": 256}


def tower(width, layers, heads, out, context, vocab, seed=0):
    """Random weights of a text tower under OpenAI's names: {name: numpy}."""
    del heads
    random = np.random.RandomState(seed)

    def noise(*shape):
        return (random.randn(*shape) * shape[-1] ** -0.5).astype(np.float32)

    tensors = {"token_embedding.weight": noise(vocab, width),
               "positional_embedding": noise(context, width),
               "text_projection": noise(width, out), "ln_final.weight": np.ones(width, np.float32),
               "ln_final.bias": noise(width)}
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"{block}{norm}.weight": np.ones(width, np.float32),
                        f"{block}{norm}.bias": noise(width)}
        for name, dims in {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width),
                           "mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)
                           }.items():
            tensors |= {f"{block}{name}weight": noise(*dims), f"{block}{name}bias": noise(dims[0])}
    return tensors


def teacher(directory, vocab, tensors=None, **changes):
    """Imports a tower of random weights; returns the path of its run.

    Args:
      directory: a pathlib directory; the run is in `teacher` below it.
      vocab: how many ids it reads, start and end included.
      tensors: its weights, as `tower` gives them; by default random ones.
      changes: to SIZES.
    """
    sizes = {**SIZES, **changes}
    source = directory / "tower"
    source.mkdir()
    safetensors.numpy.save_file(tensors or tower(vocab=vocab, **sizes),
                                source / "model.safetensors")
    (source / "open_clip_config.json").write_text(json.dumps(
        {"model_cfg": {"text_cfg": {"heads": sizes["heads"]}, "quick_gelu": True}}))
    import_clip.import_clip(str(source), str(directory / "teacher"))
    return str(directory / "teacher")


def student_config(directory, **keys):
    """The config of a student of bytes, whose run is in `directory`."""
    section = {"teacher": "unused", "window": 5, **keys.pop("clip", {})}
    return schema.RunConfig(**{**dict(
        model="clip_student", n_layer=2, n_head=2, n_embd=16, n_ctx=16, n_vocab=257,
        pad_vocab_multiple=8, position="rotary", rotary_dims=4, activation_function="quick_gelu",
        train_batch_size=8, train_steps=10, lr=1e-3, model_path=str(directory)), **keys},
        clip=section)


def said(config, tokens, weights=None, out=SIZES["out"]):
    """What a student says: a graphs.Result whose "y" is [batch, sequence, out]."""
    def build(mesh):
        ctx = layers.Context(mesh, config)
        dims = [graphs.dim(*d) for d in zip(("batch", "clip_sequence"), np.shape(tokens),
                                            strict=True)]
        return {"y": language_models.student(config, out).outputs(
            ctx, graphs.give(mesh, np.asarray(tokens, np.int32), *dims))}

    return graphs.run(build, weights=weights)


def shaken(shapes, seed=0):
    """Random weights of a size that makes every one of them matter: {name: numpy}."""
    random = np.random.RandomState(seed)
    return {name: np.float32(random.randn(*shape) * 0.3 + name.endswith(("gain", "deviation")))
            for name, shape in sorted(shapes.items())}


def student(directory, seed=0, encoder=None, out=SIZES["out"], **keys):
    """Writes a run of a student of random weights, step 3; returns (its path, its weights)."""
    config = student_config(directory, **keys)
    shapes = {name: value.shape for name, value in said(config, np.zeros([1, 2]),
                                                        out=out).weights.items()}
    weights = shaken({**shapes, "clip_student/target_mean": [out],
                      "clip_student/target_deviation": [out]}, seed)
    save(config, {**weights, "clip_student/wte/adam_m": weights["clip_student/wte"]}, 3,
         encoder or BYTES)
    return str(directory), weights


def save(config, weights, step, encoder):
    """Writes a run's checkpoint, config.json and run.json."""
    path = config.model_path
    tf.io.gfile.makedirs(path)
    with tf.Graph().as_default(), tf.Session() as session:
        for name, value in weights.items():
            tf.get_variable(name, initializer=value)
        session.run(tf.global_variables_initializer())
        tf.train.Saver(save_relative_paths=True).save(session, f"{path}/model.ckpt",
                                                       global_step=step)
    checkpoints.write_text(f"{path}/config.json", config.to_json())
    checkpoints.write_record(path, checkpoints.RunRecord(config.architecture(), encoder, legs=[]))


@dataclasses.dataclass
class Found:
    """What an objective made of some rows.

    Attributes:
      given: what its `features` gave, numpy.
      counts: its counts.
      values: of each term or score, the sum.
      gradients: of the sum of all terms, by variable.
      weights: {variable name: numpy}.
    """

    given: dict
    counts: dict
    values: dict
    gradients: dict
    weights: dict

    def means(self):
        """Each term or score over its count, as an evaluation passes them to `report`."""
        return {name: np.asarray(total / self.counts[count])
                for name, (total, count) in self.values.items()}


def run_objective(objective, tokens, valid=None, step=0, weights=None, train=False, features=None):
    """Runs an objective once on rows.

    Args:
      objective: a training.objective.Objective.
      tokens: [rows, n_ctx + 1]; valid: int [rows], by default all targets.
      step: the training step.
      weights: {variable name: numpy} to start from.
      train: its terms and gradients; otherwise its scores.
      features: instead of tokens and valid.

    Returns:
      a Found. `values` holds (sum, name of the count) where not `train`.
    """
    config = objective.config
    if features is None:
        tokens = np.asarray(tokens, np.int32)
        valid = np.full(len(tokens), config.n_ctx) if valid is None else valid
        features = {"tokens": tokens, "valid": np.asarray(valid, np.int32)}
    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        given, counts = objective.features(
            mesh, {name: tf.constant(x) for name, x in features.items()}, tf.constant(step))
        key = mtf.constant(mesh, 1, dtype=tf.int32) if train else None
        ctx = layers.Context(mesh, config, key)
        values = (objective.terms if train else objective.scores)(ctx, given)
        sums = values if train else {name: total for name, (total, _) in values.items()}
        variables = mesh.graph.trainable_variables if train else []
        slopes = mtf.gradients([mtf.add_n(list(sums.values()))], [v.value for v in variables])
        lowering = model_fn.lower(config, mesh)
        fetches = [counts, *({name: lowering.export_to_tf_tensor(x) for name, x in group.items()}
                             for group in (given, sums, {v.name: g for v, g in zip(
                                 variables, slopes, strict=True) if g is not None})),
                   {v.name: v.get_master() for v in mesh.graph.all_variables}]
        with tf.Session(config=tf.ConfigProto(device_count={"CPU": 4})) as session:
            session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
            for name, value in (weights or {}).items():
                fetches[-1][name].load(value, session)
            session.run(lowering.copy_masters_to_slices())
            counts, given, sums, slopes, masters = session.run(fetches)
    if not train:
        sums = {name: (total, values[name][1]) for name, total in sums.items()}
    return Found(given, counts, sums, slopes, masters)
