"""Makes a run of a published language model: Hugging Face's GPT-2 and GPT-Neo."""

import json
import logging
import os

import pydantic

import encoders
from configs.errors import UserError
from configs.schema import RunConfig
from encoders.gpt2 import NAMES
from interop import hf_gpt2, hf_gpt_neo, mapping, runs, tensor_files, weight_files
from interop.settings import Settings
from mesh.compat import tf
from training import checkpoints

# By the `model_type` of their config.json.
FAMILIES = {"gpt2": hf_gpt2, "gpt_neo": hf_gpt_neo}

# The ids of GPT-2's own encoder, which all published models of these families have.
_GPT2_VOCAB = 50257


def model_type(path):
    """The `model_type` that a config.json at or beside a path states, or None.

    Raises:
      UserError: there is one that is no JSON object.
    """
    kind = tensor_files.read_json(_config_path(path)).get("model_type")
    return kind if isinstance(kind, str) else None


def import_gpt(path, model_path, new=False, yes=False):
    """Reads a language model and writes it as a run at step 0, with a config that --model takes.

    Everything is read and checked before anything is written. The last line on stdout is a JSON
    summary.

    Args:
      path: a directory that transformers has saved, or a file of weights with config.json beside
        it; tokenizer files are taken along.
      model_path, new, yes: see runs.make_room.

    Raises:
      UserError: the model cannot be used, or the directory holds a run or cannot be written.
    """
    family = FAMILIES[model_type(path)]
    config_path, weights_path = _config_path(path), weight_files.find(path)
    keys, queries = family.config_keys(Settings(config_path,
                                                tensor_files.read_json(config_path)))
    config = _config(path, config_path, keys, model_path)
    tensors = {name.removeprefix(family.PREFIX): tensor
               for name, tensor in weight_files.read(weights_path).tensors.items()}
    checked = weight_files.Checked(weights_path, tensors, family.IGNORED)
    weights = dict(mapping.to_ours(family.rules(queries), config, checked.take))
    checked.end(f"this kind of model ({model_type(path)})")
    encoder, copies = _encoder(os.path.dirname(config_path), config)
    runs.make_room(model_path, new, yes)
    for source, target in copies:
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.copy(source, target, overwrite=True)
    runs.write(config, checkpoints.RunRecord(config.architecture(), encoder, legs=[]), weights)
    logging.info("%s: written; --model %s/config.json takes it", model_path, model_path)
    print(json.dumps(dict(
        model_path=model_path, parameters=sum(values.size for values in weights.values()),
        n_layer=config.n_layer, n_embd=config.n_embd, n_head=config.n_head, n_ctx=config.n_ctx,
        n_vocab=config.n_vocab, encoder=encoder["spec"])), flush=True)


def _config_path(path):
    folder = path if tf.io.gfile.isdir(path) else os.path.dirname(path)
    return os.path.join(folder, "config.json")


def _config(path, config_path, keys, model_path):
    """The RunConfig; its keys of training are there because they have to be."""
    if keys["n_embd"] % keys["n_head"]:
        raise UserError(f"{config_path}: {keys['n_head']} heads do not divide the width "
                        f"{keys['n_embd']}")
    try:
        return RunConfig(about=f"Imported from {path}.", model="GPT", train_batch_size=1,
                         train_steps=1, lr=1e-4, model_path=model_path, **keys)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{config_path}: as our {key or 'config'}: {first['msg']}") from None


def _encoder(folder, config):
    """(what run.json says of the encoder, [(file, its copy in the run)])."""
    names = next((pair for pair in NAMES if all(
        tf.io.gfile.exists(os.path.join(folder, name)) for name in pair)), ())
    if names:
        encoder = encoders.load(f"gpt2:{folder}")
        kept = os.path.join(config.model_path, "encoder")
        spec = f"gpt2:{kept}"
        copies = [(os.path.join(folder, name), os.path.join(kept, name)) for name in names]
    elif config.n_vocab == _GPT2_VOCAB:
        encoder, spec, copies = encoders.load("gpt2"), "gpt2", []
    else:
        logging.info("note: %s holds neither vocab.json and merges.txt nor encoder.json and "
                     "vocab.bpe: the run has no encoder", folder)
        return {"spec": None, "hash": None, "n_vocab": None, "eos_id": None}, []
    if encoder.n_vocab > config.n_vocab_padded:
        raise UserError(f"{folder}: its encoder has {encoder.n_vocab} ids, and the model "
                        f"{config.n_vocab}; they do not belong together")
    return {"spec": spec, "hash": encoder.hash, "n_vocab": encoder.n_vocab,
            "eos_id": encoder.eos_id}, copies
