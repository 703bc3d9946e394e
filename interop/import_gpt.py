"""Makes a run of a published language model, whatever its family."""

import json
import logging
import os

import pydantic

import encoders
from configs.errors import UserError
from configs.progress import tqdm
from configs.schema import RunConfig
from encoders.gpt2 import NAMES
from interop import mapping, runs, sources, weight_files
from mesh.compat import tf
from training import checkpoints, starting


def import_gpt(source: sources.Source, model_path: str, new: bool = False,
               yes: bool = False) -> None:
    """Writes a language model as a run at step 0, with a config that --model takes.

    Everything is read and checked before anything is written. The last line on stdout is a JSON
    summary.

    Args:
      source: a sources.Source; tokenizer files beside it are taken along.
      model_path, new, yes: see runs.make_room.

    Raises:
      UserError: the model cannot be used, or the directory holds a run or cannot be written.
    """
    *run, _ = _read(source, model_path)
    config, record, weights, _ = run
    parameters = sum(values.size for values in weights.values())
    runs.make_room(model_path, new, yes)
    runs.write(*run)
    logging.info("%s: written; --model %s/config.json takes it", model_path, model_path)
    print(json.dumps(dict(
        model_path=model_path, parameters=parameters, n_layer=config.n_layer, n_embd=config.n_embd,
        n_head=config.n_head, n_ctx=config.n_ctx, n_vocab=config.n_vocab,
        encoder=record.encoder["spec"])), flush=True)


def start(path: str, model_path: str) -> starting.Start:
    """A training.starting.Start from a published language model, read and checked.

    Args:
      path: what --import_from takes.
      model_path: where the Start will be saved as a run.

    Raises:
      UserError: there is no language model, or it cannot be used.
    """
    source = sources.find(path)
    if source is None:
        raise UserError(f"init_from: {path} holds no run, nor a language model that --import_from "
                        "takes")
    *run, encoder = _read(source, model_path)
    return starting.Start(run[0], run[1], lambda: encoder, save=lambda: runs.write(*run))


def _read(source, model_path):
    """What runs.write takes, and the encoders.Encoder or None."""
    family, settings = source.family, source.settings
    keys, rules = family.read(source)
    if keys["n_layer"] > len(source.tensors):
        raise UserError(f"{source.path}: holds {len(source.tensors)} tensors, and {settings.path} "
                        f"describes a model of {keys['n_layer']} layers")
    config = _config(source, keys, model_path)
    tensors = {family.short(name): tensor for name, tensor in source.tensors.items()}
    if len(tensors) < len(source.tensors):
        raise UserError(f"{source.path}: holds the same tensor under two names, with a prefix and "
                        "without; delete one")
    checked = weight_files.Checked(source.path, tensors, family.IGNORED)
    weights = dict(tqdm(mapping.to_ours(rules, config, checked.take), desc="reading",
                        total=len(list(mapping.names(rules, config))), unit="tensor",
                        leave=False))
    checked.end(f"a model that {settings.path} describes")
    source.tensors.clear()  # they hold what was read of the file
    facts, copies, encoder = _encoder(source, config)
    record = checkpoints.RunRecord(config.architecture(), facts, legs=[])
    return config, record, weights, copies, encoder


def _config(source, keys, model_path):
    """The RunConfig; its keys of training are there because they have to be."""
    config_path = source.settings.path
    try:
        return RunConfig(about=f"Imported from {source.path}.", model="GPT", train_batch_size=1,
                         train_steps=1, lr=1e-4, model_path=model_path, **keys)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{config_path}: as our {key or 'config'}: {first['msg']}") from None
    except UserError as error:
        raise UserError(f"{config_path}: as our {error}") from None


def _encoder(source, config):
    """(what run.json says of the encoder, [(file, its copy in the run)], the Encoder or None)."""
    folder, kept = source.folder, os.path.join(config.model_path, "encoder")
    kinds: list[tuple[str, str, tuple]] = [("gpt2:", "", names) for names in NAMES]
    # What tokenizer.json adds to GPT-2's encoder are ids that no text gives; others need it.
    kinds.insert(len(kinds) if source.family.GPT2_VOCABS else 0,
                 ("", "/tokenizer.json", ("tokenizer.json",)))
    kind, end, names = next((kind for kind in kinds if all(
        tf.io.gfile.exists(os.path.join(folder, name)) for name in kind[2])), ("", "", ()))
    if names:
        encoder, spec = encoders.load(f"{kind}{folder}{end}"), f"{kind}{kept}{end}"
    elif config.n_vocab in source.family.GPT2_VOCABS:
        encoder, spec = encoders.load("gpt2"), "gpt2"
    else:
        logging.info("note: %s holds no tokenizer.json, nor vocab.json and merges.txt, nor "
                     "encoder.json and vocab.bpe: the run has no encoder", folder)
        return {"spec": None, "hash": None, "n_vocab": None, "eos_id": None}, [], None
    if encoder.n_vocab > config.n_vocab_padded:
        raise UserError(f"{folder}: its encoder has {encoder.n_vocab} ids, and the model "
                        f"{config.n_vocab}; they do not belong together")
    copies = [(os.path.join(folder, name), os.path.join(kept, name)) for name in names]
    return {"spec": spec, "hash": encoder.hash, "n_vocab": encoder.n_vocab,
            "eos_id": encoder.eos_id}, copies, encoder
