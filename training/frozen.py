"""Another run's weights inside of this one: a student's teacher, a GPT's student.

They are copied once into the run's directory, so that the run stays whole if the other one changes
or goes, and are read from there when a session starts. They are neither trained nor saved again.
"""

import dataclasses
import functools
import hashlib
import json
import os

import numpy as np

from configs import layouts, schema
from configs.errors import UserError
from mesh.compat import tf
from training import checkpoints, keeping, updates

# What is frozen, by kind of run: (key of the section clip, kind of run that it must be, scope).
SOURCES = {"clip_student": ("teacher", "clip", "clip_text"),
           "gpt_c": ("student", "clip_student", "clip_student")}


@dataclasses.dataclass
class Frozen:
    """Weights to be read from another run's checkpoint.

    Attributes:
      config: the RunConfig that they were trained with.
      record: its RunRecord.
      checkpoint: the path of its newest checkpoint.
      scope: of the weights' names.
    """

    config: schema.RunConfig
    record: checkpoints.RunRecord
    checkpoint: str
    scope: str

    @functools.cached_property
    def hash(self):
        """16 hexadecimal digits over names, shapes and values of the weights, which it reads."""
        return _hash(self.checkpoint, self.scope)

    def initializer(self, name):
        """An initialiser that reads the weight called `name`; see models.layers.Context.stored."""
        def initialise(shape, dtype=tf.float32, partition_info=None):
            value, = tf.raw_ops.RestoreV2(prefix=self.checkpoint, tensor_names=[name],
                                          shape_and_slices=[""], dtypes=[dtype])
            return tf.ensure_shape(value, shape)

        return initialise

    def value(self, name):
        """A weight as a numpy array."""
        return tf.train.NewCheckpointReader(self.checkpoint).get_tensor(name)


def of_run(config, new=False):
    """The Frozen weights that a kind of run needs, or None if it needs none.

    The own copy of a run that has a checkpoint comes before the run that the config names, unless
    it is about to begin anew.

    Raises:
      UserError: there is no such run, it is of another kind, it has no checkpoint, or the layout
        cannot split its weights.
    """
    if config.model not in SOURCES or config.text_only:
        return None
    key, kind, scope = SOURCES[config.model]
    own = os.path.join(config.model_path, key)
    begun = not new and checkpoints.latest(config.model_path) and checkpoints.latest(own)
    found = _load(own if begun else getattr(config.clip, key), f"clip.{key}", kind, scope)
    out = (found.config.clip_out if kind == "clip" else
           found.value("clip_student/target_mean").shape[0])
    layouts.check_tower(config, f"clip.{key}", found.config, out)
    return found


def _load(directory, key, kind, scope):
    config, record, checkpoint = run_at(directory, key, (kind,))
    return Frozen(config, record, checkpoint, scope)


def run_at(directory, key, kinds):
    """Another run: (its RunConfig, its RunRecord, the path of its newest intact checkpoint).

    Args:
      directory: where it is.
      key: the key that names it, for messages.
      kinds: the kinds of model that it may be.

    Raises:
      UserError: there is none, it has no checkpoint, or it is of another kind.
    """
    checkpoint = keeping.newest_intact(directory)
    path = os.path.join(directory, "config.json")
    if checkpoint is None or not tf.io.gfile.exists(path):
        raise UserError(f"{key}: {directory} holds no run with a checkpoint; train a model of kind "
                        f"{' or '.join(kinds)} there first, or give another directory")
    config = schema.load(path)
    if config.model not in kinds:
        raise UserError(f"{key}: {directory} is a run of model {config.model}, not "
                        f"{' or '.join(kinds)}")
    record = checkpoints.read_record(directory)
    if record is None:
        raise UserError(f"{key}: {directory} has no run.json; restore it from a copy of the run")
    config = config.replace(model_path=directory)
    checkpoints.check_fits(config, record)
    return config, record, checkpoint


def _hash(checkpoint, scope):
    reader = tf.train.NewCheckpointReader(checkpoint)
    slots = tuple(f"/{name}" for name in updates.SLOTS)
    digest = hashlib.sha256()
    for name, shape in sorted(reader.get_variable_to_shape_map().items()):
        if name.startswith(scope + "/") and not name.endswith(slots):
            digest.update(json.dumps([name, shape]).encode())
            digest.update(np.ascontiguousarray(reader.get_tensor(name)).tobytes())
    return digest.hexdigest()[:16]


def check_encoder(config, frozen, encoder):
    """Refuses frozen weights whose encoder is not the data's, or which know fewer ids.

    Args:
      config: the run's config.
      frozen: a Frozen.
      encoder: the data's encoder facts: a dict with spec, hash and n_vocab.

    Raises:
      UserError: names both.
    """
    known, key = frozen.record.encoder.get("hash"), SOURCES[config.model][0]
    if known and encoder["hash"] and known != encoder["hash"]:
        raise UserError(
            f"clip.{key}: reads ids of encoder {frozen.record.encoder['spec']} (hash {known}), but "
            f"the data were made with {encoder['spec']} (hash {encoder['hash']}); encode the data "
            f"alike, or train a {key} with their encoder")
    if encoder["n_vocab"] > frozen.config.n_vocab:
        raise UserError(
            f"clip.{key}: reads {frozen.config.n_vocab} ids, but the data have "
            f"{encoder['n_vocab']}; encode the data as for the {key}, or train another one")


def adopt(config, frozen):
    """Copies the frozen weights into the run's directory, if need be, to be read there.

    Raises:
      UserError: the directory cannot be written.
    """
    key, _, _ = SOURCES[config.model]
    target = os.path.join(config.model_path, key)
    if os.path.dirname(frozen.checkpoint) == target:
        return
    source = os.path.dirname(frozen.checkpoint)
    try:
        copied = checkpoints.copy(frozen.checkpoint, target)
        for name in ("config.json", "run.json"):
            tf.io.gfile.copy(os.path.join(source, name), os.path.join(target, name),
                             overwrite=True)
        # Last: without it there is no checkpoint, and the copy begins anew.
        checkpoints.write_text(
            os.path.join(target, "checkpoint"),
            f'model_checkpoint_path: "{os.path.basename(copied)}"\n')
    except tf.errors.OpError as error:
        raise UserError(f"{target} cannot be written ({error.message}); give another --model_path, "
                        "or see to its permissions") from error
    frozen.checkpoint = copied
