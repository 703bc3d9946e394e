"""What a run keeps beside its weights, and whether a checkpoint fits a config.

A run's directory holds Estimator checkpoints (`model.ckpt-<step>`: masters alone), `config.json`
(the resolved config) and `run.json`: the architecture, the encoder and the positions in the data.
"""

import dataclasses
import json
import os
import re

import encoders
from configs.errors import UserError
from configs.redaction import hidden_values
from mesh.compat import tf
from training import keeping
from training.keeping import write_text

_FILE = "run.json"

# What run.json has for the run's directory, which may be moved, in the encoder's spec.
_HERE = "{model_path}"

# What a run writes into its directory.
_OWN_FILES = ("checkpoint", "model.ckpt-*", "graph.pbtxt", "events.out.tfevents.*", "eval",
              "wandb", "wandb.json",
              "metrics.jsonl", "bad_steps.jsonl", "config.json", keeping.SCORES, "teacher",
              "student", "encoder", "init", "probe_*.png", "embeddings",
              "projector_config.pbtxt", _FILE)


@dataclasses.dataclass
class RunRecord:
    """The contents of `run.json`.

    Attributes:
      architecture: what decides the shapes and the meaning of the weights.
      encoder: spec, hash, n_vocab and eos_id of the encoder.
      legs: where the run's data changed: from `step` on, steps of `batch_size` windows of `data`,
        the first of which is `window`.
      frozen: the hash of the weights taken from another run (see training.frozen), or None.
    """

    architecture: dict
    encoder: dict
    legs: list
    frozen: str | None = None

    def start_window(self, step):
        """How many windows of the present data were consumed before `step`."""
        leg = [leg for leg in self.legs if leg["step"] <= step][-1]
        return leg["window"] + (step - leg["step"]) * leg["batch_size"]

    def begin_leg(self, step, batch_size, data):
        """Notes that training goes on at `step`, with perhaps another batch size or other data.

        Args:
          step: the checkpoint's step; legs after it never happened.
          batch_size: windows a step from now on.
          data: what the order of windows follows from (JSON data).

        Returns:
          a sentence for the user if something changed, or None.
        """
        self.legs = [leg for leg in self.legs if leg["step"] <= step]
        if not self.legs:
            self.legs.append({"step": step, "window": 0, "batch_size": batch_size, "data": data})
            return None
        last = self.legs[-1]
        same_data = last["data"] == data
        if same_data and last["batch_size"] == batch_size:
            return None
        window = self.start_window(step) if same_data else 0
        self.legs.append({"step": step, "window": window, "batch_size": batch_size, "data": data})
        if same_data:
            return (f"train_batch_size was {last['batch_size']} and is {batch_size}: the data go "
                    f"on at window {window}, none skipped or repeated")
        return "the datasets, n_ctx or the seed changed: the data start again from their beginning"


def latest(model_path):
    """The newest checkpoint's path without its endings, perhaps damaged, or None."""
    return next(iter(keeping.candidates(model_path)), None)


def require_latest(config):
    """The checkpoint of the run that the config's key `checkpoint` names: the newest by default.

    A damaged one is left out, in favour of the one before it.

    Raises:
      UserError: if there is none.
    """
    checkpoint = keeping.chosen(config)
    if checkpoint is None:
        raise UserError(f"{config.model_path}: no checkpoint there; train first, or give another "
                        "--model_path")
    return checkpoint


def require_fitting(config):
    """The newest checkpoint of the run, whose weights are the config's.

    Raises:
      UserError: there is none, or run.json says that they are others.
    """
    checkpoint, record = require_latest(config), read_record(config.model_path)
    if record:
        check_fits(config, record)
    return checkpoint


def check_vocabulary(config, encoder):
    """Refuses an encoder with more ids than the model's table has rows.

    Raises:
      UserError: names the two numbers.
    """
    if encoder.n_vocab > config.n_vocab_padded:
        raise UserError(f"n_vocab: {config.n_vocab} is less than the {encoder.n_vocab} ids of "
                        f"encoder {encoder.spec}")


def explain_restore_error(model_path, error):
    """One line about a tf.errors.OpError met in reading the newest checkpoint, or None."""
    path, text = latest(model_path), str(error)
    missing = re.search(r"Key (\S+) not found in checkpoint", text)
    if missing:
        return (f"{path}: has no {missing[1]}; go on with the opt_name and model that it was "
                "trained with, or start again with --new or another --model_path")
    if "RestoreV2" not in text:
        return None
    return (f"{path}: the checkpoint is damaged or incomplete; copy its files anew, or name an "
            f"older one in {os.path.join(model_path, 'checkpoint')}")


def check_shapes(config, checkpoint, variables):
    """Refuses a checkpoint that lacks a variable or holds it in another shape.

    Args:
      config: the run's config.
      checkpoint: the checkpoint's path without its endings.
      variables: the shape of each variable that is needed, by name.

    Raises:
      UserError: with the first difference.
    """
    held = tf.train.NewCheckpointReader(checkpoint).get_variable_to_shape_map()
    remedy = f"use the config that it was trained with, {config.model_path}/config.json"
    for name, shape in variables.items():
        if name not in held:
            raise UserError(f"{checkpoint}: has no {name}; {remedy}")
        if held[name] != list(shape):
            raise UserError(f"{checkpoint}: {name} has shape {held[name]}, and the config makes it "
                            f"{list(shape)}; {remedy}")


def copy(checkpoint, folder):
    """Copies a checkpoint's files into a folder, which is made; returns the copy's path."""
    tf.io.gfile.makedirs(folder)
    for path in tf.io.gfile.glob(checkpoint + ".*"):
        tf.io.gfile.copy(path, os.path.join(folder, os.path.basename(path)), overwrite=True)
    return os.path.join(folder, os.path.basename(checkpoint))


def restore(config, saver, session, checkpoint):
    """Reads a checkpoint of the run into the variables of `saver`, a tf.train.Saver.

    Raises:
      UserError: the checkpoint is damaged, or lacks a variable.
    """
    try:
        with session.graph.as_default():
            saver.restore(session, checkpoint)
    except tf.errors.OpError as error:
        line = explain_restore_error(config.model_path, error)
        if line is None:
            raise
        raise UserError(line) from error


def is_run(model_path):
    """Whether a directory holds a run, perhaps one that has no checkpoint yet."""
    return bool(latest(model_path)) or tf.io.gfile.exists(os.path.join(model_path, _FILE))


def delete_run(model_path):
    """Deletes what a run wrote, and its directory unless something else is in it."""
    for pattern in _OWN_FILES:
        # Checkpoints' indices first: one that is cut off here leaves none without its data.
        for path in sorted(tf.io.gfile.glob(os.path.join(model_path, pattern)),
                           key=lambda name: not name.endswith(".index")):
            if tf.io.gfile.isdir(path):
                tf.io.gfile.rmtree(path)
            else:
                tf.io.gfile.remove(path)
    if not tf.io.gfile.listdir(model_path):
        tf.io.gfile.rmtree(model_path)


def read_record(model_path):
    """The RunRecord of a run, or None if it has none.

    Raises:
      UserError: if the file is damaged.
    """
    path = os.path.join(model_path, _FILE)
    if not tf.io.gfile.exists(path):
        return None
    try:
        with tf.io.gfile.GFile(path) as file:
            record = RunRecord(**json.loads(file.read()))
        return _moved(record, _HERE, model_path.rstrip("/"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it from a copy of the run, or start "
                        "again with --new") from error


def write_record(model_path, record):
    """Writes run.json, whole or not at all."""
    record = _moved(record, model_path.rstrip("/"), _HERE)
    write_text(os.path.join(model_path, _FILE),
               json.dumps(hidden_values(dataclasses.asdict(record)), indent=1) + "\n")


def _moved(record, old, new):
    """The record with an encoder that lies in one directory as one in another."""
    spec = record.encoder.get("spec")
    if spec is None:
        return record
    moved = re.sub(rf"^(\w+:)?{re.escape(old)}/", lambda match: f"{match[1] or ''}{new}/", spec)
    return dataclasses.replace(record, encoder={**record.encoder, "spec": moved})


def differences(config, record):
    """(key, what a record's architecture has, what the config's has) where they differ."""
    architecture = json.loads(json.dumps(config.architecture()))

    def fact(facts, key):
        # Some facts are there only for the models that have them, and a record from before a key
        # was there has what is now the key's default.
        field = type(config).model_fields.get(key)
        default = None if field is None or field.is_required() else field.default
        return facts.get(key, default)

    for key in dict.fromkeys([*architecture, *record.architecture]):
        before, value = (fact(facts, key) for facts in (record.architecture, architecture))
        if before != value:
            yield key, before, value


def check_fits(config, record, encoder=None):
    """Refuses weights of another architecture or encoder than the config's.

    Args:
      config: the run's config.
      record: the RunRecord of the weights.
      encoder: the data's encoder facts (a dict with spec and hash), if data are used.

    Raises:
      UserError: with the first difference.
    """
    for key, before, value in differences(config, record):
        raise UserError(
            f"{config.model_path}: its weights have {key} = {json.dumps(before)}, the config "
            f"{json.dumps(value)}; change the key, or start again with --new or another "
            "--model_path")
    known = record.encoder.get("hash")
    if encoder and encoder["hash"] and known and encoder["hash"] != known:
        raise UserError(
            f"{config.model_path}: trained with encoder {record.encoder['spec']} (hash {known}), "
            f"but the data were made with {encoder['spec']} (hash {encoder['hash']}); use data of "
            "that encoder, or another --model_path")


def encoder_of(config, facts=None, needed=True):
    """The encoder that the run's weights are trained with.

    Args:
      config: the run's config.
      facts: what is known of it, a dict with spec and hash; by default what run.json says.
      needed: otherwise None is returned instead of an error.

    Raises:
      UserError: if it is not known or has changed since.
    """
    try:
        return _encoder_of(config, facts)
    except UserError:
        if needed:
            raise
        return None


def _encoder_of(config, facts):
    if facts is None:
        record = read_record(config.model_path)
        facts = record.encoder if record else {}
    spec = facts.get("spec")
    if spec is None and config.datasets:
        spec = next(iter(config.dataset_configs.values())).encoder
    if spec is None:
        raise UserError(f"{config.model_path}: the encoder is not known; give the dataset's JSON "
                        "an \"encoder\" key")
    encoder = encoders.load(spec)
    if facts.get("hash") and encoder.hash != facts["hash"]:
        raise UserError(f"encoder {spec}: its hash is {encoder.hash}, but {config.model_path} is "
                        f"trained with {facts['hash']}; restore its files")
    return encoder
