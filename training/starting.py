"""Fine-tuning: a run's first weights are another run's, its optimizer is fresh and its step 0.

They are read while the run has no checkpoint of its own. From then on it goes on from that.
"""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable

from configs import schema
from configs.errors import UserError
from configs.layouts import LANGUAGE_MODELS
from mesh.compat import tf
from training import checkpoints, frozen, keeping

_FOLDER = "init"  # of a run's directory: weights from elsewhere, until its first checkpoint

# Variables with a row, or column, for each id or each position: {name: which dimension it is}.
_VOCAB = {"gpt/wte": 0, "gpt/head/kernel": 1, "gpt/head/bias": 0}
_CONTEXT = {"gpt/wpe": 0}

# What may differ: the kind of language model, and what init_resize is about.
_FREE = ("model", "clip.mode", "clip.layer", "n_vocab", "n_vocab_padded", "n_ctx")


@dataclasses.dataclass
class Start:
    """Weights that a run starts from.

    Attributes:
      config: the RunConfig that they were made with.
      record: their checkpoints.RunRecord.
      encoder: returns their encoders.Encoder; raises UserError if it cannot be had.
      checkpoint: their checkpoint's path; None until `adopt`, where they are no run.
      save: writes them as a run into `config.model_path`, where they are no run.
    """

    config: schema.RunConfig
    record: checkpoints.RunRecord
    encoder: Callable
    checkpoint: str | None = None
    save: Callable | None = None

    def adopt(self, config):
        """Puts the weights where all of the run's devices can read them, if they are not there.

        Raises:
          UserError: the run's directory cannot be written.
        """
        forget(config)
        folder = os.path.join(config.model_path, _FOLDER)
        try:
            if self.save:
                self.save()
                self.checkpoint = checkpoints.latest(self.config.model_path)
            elif "://" in folder and "://" not in self.checkpoint:
                # The workers of a TPU do not see this machine's files.
                self.checkpoint = checkpoints.copy(self.checkpoint, folder)
        except tf.errors.OpError as error:
            raise UserError(f"{folder} cannot be written ({error.message}); give another "
                            "--model_path, or see to its permissions") from error
        logging.info("starting from %s", self.checkpoint)

    @functools.cached_property
    def _shapes(self):
        return tf.train.NewCheckpointReader(self.checkpoint).get_variable_to_shape_map()

    def initializer(self, name):
        """An initialiser that reads the weight called `name`; None for one that is new.

        Raises:
          UserError: a language model's weight is missing.
        """
        held = self._shapes
        if name not in held:
            if name.startswith("gpt/"):
                raise UserError(f"{self.checkpoint}: has no {name}; it is another model's than "
                                f"{self.config.model_path}/run.json says")
            return None

        def initialise(shape, dtype=tf.float32, partition_info=None):
            value, = tf.raw_ops.RestoreV2(prefix=self.checkpoint, tensor_names=[name],
                                          shape_and_slices=[""], dtypes=[dtype])
            value = self._resized(name, tf.ensure_shape(value, held[name]), list(shape))
            if value.shape != shape:
                raise UserError(f"{self.checkpoint}: {name} has shape {held[name]}, and the config "
                                f"makes it {list(shape)}")
            return value

        return initialise

    def _resized(self, name, value, shape):
        """The value with rows, or columns, for the ids and positions that the run has."""
        if name in _VOCAB and value.shape != shape:
            return _with_mean(value, _VOCAB[name], self.config.n_vocab, shape[_VOCAB[name]])
        if name in _CONTEXT and value.shape[0] < shape[0]:
            # As Longformer does (Beltagy et al. 2020, section 5): what lies near looks as before.
            value = tf.tile(value, [-(-shape[0] // value.shape[0]), 1])
        return value[:shape[0]] if name in _CONTEXT else value


def _with_mean(value, axis, ids, size):
    """The value's first `ids` rows along an axis, and then their mean up to `size` rows."""
    known = tf.gather(value, tf.range(min(ids, size)), axis=axis)
    if size <= ids:
        return known
    # Hewitt 2021, "Initializing new word embeddings for pretrained language models": new words
    # then change little of what the others' probabilities were.
    new = tf.repeat(tf.reduce_mean(known, axis, keepdims=True), size - ids, axis)
    return tf.concat([known, new], axis)


def of_run(config, facts, new=False, elsewhere=None):
    """The Start of a run, checked, or None where it has none or has a checkpoint of its own.

    Args:
      config: the run's config.
      facts: an inputs.Facts of its data.
      new: whether the run that is there will be deleted.
      elsewhere: (path or name, directory) -> a Start that can be saved there, for an `init_from`
        that is no run.

    Raises:
      UserError: the weights cannot be used, or are another model's; names the first difference.
    """
    source = config.init_from
    if source is None or not new and checkpoints.latest(config.model_path):
        return None
    if elsewhere is None or tf.io.gfile.exists(os.path.join(source, "run.json")):
        theirs, record, _ = frozen.run_at(source, "init_from", LANGUAGE_MODELS)
        start = Start(theirs, record, lambda: checkpoints.encoder_of(theirs),
                      keeping.newest_intact(source))
    else:
        start = elsewhere(source, os.path.join(config.model_path, _FOLDER))
    _check_architecture(config, start.record)
    _check_vocabulary(config, start, facts)
    return start


def forget(config):
    """Deletes the weights that `adopt` saved; the run has a checkpoint, or will save them anew."""
    folder = os.path.join(config.model_path, _FOLDER)
    if tf.io.gfile.exists(folder):
        tf.io.gfile.rmtree(folder)


def _check_architecture(config, record):
    theirs, ours = record.architecture, json.loads(json.dumps(config.architecture()))
    for key, before, value in checkpoints.differences(config, record):
        if key not in _FREE:
            raise UserError(f"init_from: {config.init_from} has {key} = {json.dumps(before)}, and "
                            f"the config {json.dumps(value)}; change the key, or start from "
                            "another model")
    if theirs.get("clip.mode") == "input" != ours.get("clip.mode"):
        raise UserError(f"init_from: {config.init_from} hears a student (clip.mode is input), and "
                        "is not the same without it; set model and clip as it has them")
    before, wanted = theirs.get("n_ctx"), ours.get("n_ctx")
    if before != wanted and "context" not in config.init_resize:
        raise UserError(f"n_ctx: {wanted}, and init_from {config.init_from} has learned positions "
                        f"for {before}; set it to {before}, or init_resize to [\"context\"]")


def _check_vocabulary(config, start, facts):
    """Refuses another number of ids, or ids of another encoder."""
    resized = "vocab" in config.init_resize
    # Ids that pad the table count where they are not masked.
    for key in ["n_vocab"] if config.pad_masked else ["n_vocab", "pad_vocab_multiple"]:
        before, wanted = getattr(start.config, key), getattr(config, key)
        if wanted != before and not resized:
            raise UserError(f"{key}: {wanted}, and init_from {config.init_from} has {before}; set "
                            f"it to {before}, or init_resize to [\"vocab\"]")
    known, given = start.record.encoder.get("hash"), facts.encoder_hash
    if not known or not given or known == given:
        return
    said = (f"init_from: {config.init_from} was trained with encoder "
            f"{start.record.encoder['spec']} (hash {known}), but the data were made with "
            f"{facts.encoder} (hash {given})")
    if not resized:
        raise UserError(f"{said}; use data of that encoder")
    first = _first_difference(start.encoder(), checkpoints.encoder_of(
        config, {"spec": facts.encoder, "hash": given}))
    if first is not None:
        raise UserError(f"{said}, where id {first} is another text: only ids at the end may be "
                        "new or gone; use data of that encoder")


def _first_difference(one, other):
    """The first id that both encoders have and that is not the same text, or None.

    What ends a text has none, and may be another id.
    """
    for number in range(min(one.n_vocab, other.n_vocab)):
        if (number not in (one.eos_id, other.eos_id)
                and one.decode([number]) != other.decode([number])):
            return number
    return None
