"""Makes a run of an imported CLIP text tower: the teacher that a student's `clip.teacher` names."""

import dataclasses
import json
import logging

import numpy as np

import encoders
from configs.errors import UserError
from encoders.clip import N_VOCAB
from interop import clip_weights, runs
from training import checkpoints
from training.contrastive import config_of, text_sizes

_TOKEN_TABLE = "clip_text/wte"
_NAMES = {"intermediate": "feed-forward width", "start_id": "start token's id",
          "end_id": "end token's id"}


def import_clip(path: str, model_path: str, new: bool = False, yes: bool = False) -> None:
    """Reads a CLIP text tower and writes it as a run of `model: "clip"` at step 0.

    Everything is read and checked before anything is written. The last line on stdout is a JSON
    summary.

    Args:
      path: what `clip_weights.read` takes.
      model_path: the run's directory.
      new: replace the run that is there, if any; asks, unless `yes`.
      yes: the answer to that question.

    Raises:
      UserError: the weights cannot be used, the directory holds a run and `new` is not given, or it
        cannot be written.
    """
    sizes, weights = clip_weights.read(path)
    config = _config(path, sizes, model_path)
    record = checkpoints.RunRecord(config.architecture(), _encoder_facts(sizes), legs=[])
    runs.make_room(model_path, new, yes)
    parameters = sum(values.size for values in weights.values())
    weights[_TOKEN_TABLE] = _padded(weights[_TOKEN_TABLE], config.n_vocab_padded)
    runs.write(config, record, weights)
    logging.info("%s: written; a student takes it as its clip.teacher", model_path)
    print(json.dumps(dict(
        model_path=model_path, parameters=parameters, width=sizes.width, layers=sizes.layers,
        heads=sizes.heads, context=sizes.context, vocab=sizes.vocab, out=sizes.out,
        activation=config.activation_function, encoder=record.encoder["spec"])), flush=True)


def _config(path, sizes, model_path):
    """The RunConfig of a tower.

    Raises:
      UserError: a run config cannot say what the tower is.
    """
    config = config_of(sizes, f"The text tower of {path}, imported to teach a student. It has no "
                              "image tower.", model_path)
    told = text_sizes(config)
    for name, value in dataclasses.asdict(sizes).items():
        if name != "vocab" and getattr(told, name) != value:
            raise UserError(f"{path}: the text tower's {_NAMES.get(name, name)} is {value}; this "
                            f"release takes only such towers where it is {getattr(told, name)}")
    return config


def _encoder_facts(sizes):
    """What is known of the encoder. Of towers with CLIP's number of ids it is CLIP's."""
    if sizes.vocab != N_VOCAB:
        return {"spec": None, "hash": None, "n_vocab": None, "eos_id": None}
    facts = {"spec": "clip", "hash": None, "n_vocab": N_VOCAB, "eos_id": sizes.end_id}
    try:
        return {**facts, "hash": encoders.load("clip").hash}
    except UserError as error:
        logging.info("note: %s; without it, the encoder's hash is not noted", error)
        return facts


def _padded(table, rows):
    """The table [vocab, width] with rows of zeros after its own, which no token has."""
    return np.concatenate([table, np.zeros([rows - len(table), table.shape[1]], table.dtype)])
