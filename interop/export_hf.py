"""A run as a directory that transformers loads: GPT-2, GPT-Neo, GPT-J or GPT-NeoX."""

import json
import logging
import os

import numpy as np
import safetensors.numpy

from configs.errors import UserError
from configs.progress import tqdm
from configs.schema import RunConfig
from interop import folders, hf_gpt2, hf_gpt_neo, hf_gpt_neox, hf_gptj, mapping
from mesh.compat import tf
from training import checkpoints

_FLAG = "--export hf"

# What every model of theirs is, by key.
_NEEDS = {"norm": "layer", "rezero": False, "macaron": False, "mlp_glu": False,
          "share_parameters": False, "num_mem_kv": 0, "mlm_training": False, "moe_layers": []}

# Most bytes of a file of weights.
_SHARD = 5 * 10**9


def export(config: RunConfig, directory: str) -> None:
    """Writes the checkpoint that the config names, in float32.

    Everything is checked before anything is written.

    Args:
      config: the run's config.
      directory: to write, which must not be there.

    Raises:
      UserError: there is no such model at Hugging Face, no checkpoint that fits, or the directory
        is taken or cannot be written.
    """
    directory = directory.rstrip("/")
    family = _family(config)
    folders.check_free(directory, _FLAG)
    checkpoint = checkpoints.require_fitting(config)
    if not config.pad_masked:  # padded ids are ids like others
        config = config.replace(n_vocab=config.n_vocab_padded)
    keys, rules = family.write(config)
    get = _reader(config, checkpoint, rules)
    for name in mapping.without_place(rules, config, get):
        key = next((key for part, key in family.NO_PLACE.items() if name.endswith(part)), "model")
        raise _no_twin(config, key, f"{keys['architectures'][0]} has no place for {name}, which is "
                                    "not 0")
    encoder = _encoder(config)
    ids = {} if encoder is None else {"bos_token_id": encoder.eos_id,
                                      "eos_token_id": encoder.eos_id}
    keys = {**keys, "vocab_size": config.n_vocab, "initializer_range": config.initializer_range,
            "dtype": "float32", **ids}
    with folders.written(directory, _FLAG) as partial:
        tf.io.gfile.makedirs(partial)
        _write_json(partial, "config.json", keys)
        _write_weights(partial, mapping.to_theirs(rules, config, get), family.full)
        if encoder is not None:
            _write_encoder(partial, encoder, config.n_ctx)


def _no_twin(config, key, why):
    """The UserError of a key for whose value there is no model at Hugging Face."""
    return UserError(f"{_FLAG}: {key}: {getattr(config, key)!r}: {why}; --export saved_model takes "
                     "such a model")


def _family(config):
    """The module of the family that a config is one of."""
    if not config.speaks and not config.mlm_training:
        raise _no_twin(config, "model", "is no language model that speaks")
    if config.model == "gpt_c" and config.clip.mode == "input":
        raise UserError(f"{_FLAG}: clip.mode: 'input': its student is part of the model, and no "
                        "model at Hugging Face has one; --export saved_model takes such a model")
    kinds = set(config.attention_types)
    if config.position == "learned":
        family = hf_gpt_neo if "local" in kinds else hf_gpt2
    elif config.position == "rotary":
        family = hf_gptj if config.rotary_style == "interleaved" else hf_gpt_neox
    else:
        raise _no_twin(config, "position", "only learned and rotary positions can be exported")
    if kinds - ({"global", "local"} if family is hf_gpt_neo else {"global"}):
        raise UserError(f"{_FLAG}: attention_types: {', '.join(sorted(kinds))}: with position "
                        f"{config.position!r} there are models of global"
                        f"{' and local' if config.position == 'learned' else ''} attention alone; "
                        "--export saved_model takes such a model")
    for key, value in {**_NEEDS, **family.NEEDS}.items():
        if getattr(config, key) != value:
            kind = family.__name__.rpartition("hf_")[2]
            raise _no_twin(config, key, f"the nearest kind of model, {kind}, has {value!r}")
    return family


def _reader(config, checkpoint, rules):
    """A function from our variable's name to its values, whose shapes have been checked."""
    known = {**mapping.sizes(config), "vocab": config.n_vocab_padded}
    checkpoints.check_shapes(config, checkpoint, {
        name: [known[dim] for dim in rule.dims] for rule, _, name in mapping.names(rules, config)})
    return tf.train.load_checkpoint(checkpoint).get_tensor


def _encoder(config):
    """The run's encoder, or None if it has none."""
    record = checkpoints.read_record(config.model_path)
    if record and not record.encoder.get("spec") and not config.datasets:
        logging.info("note: %s: the run has no encoder: no tokenizer files are written",
                     config.model_path)
        return None
    encoder = checkpoints.encoder_of(config)
    checkpoints.check_vocabulary(config, encoder)
    return encoder


def _write_json(folder, name, value):
    checkpoints.write_text(os.path.join(folder, name),
                           json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _write_weights(folder, tensors, full):
    """Writes model.safetensors, or shards of it with an index."""
    shards: list[tuple[str, list[str]]] = []
    held: dict[str, np.ndarray] = {}
    size = total = 0

    def flush():
        path = os.path.join(folder, f"{len(shards)}.partial")
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(safetensors.numpy.save(held, {"format": "pt"}))
        shards.append((path, list(held)))
        held.clear()

    for name, values in tqdm(tensors, desc="tensors", unit="", leave=False):
        if held and size + values.nbytes > _SHARD:
            flush()
            size = 0
        held[full(name)] = values
        size, total = size + values.nbytes, total + values.nbytes
    flush()
    count = len(shards)
    names = ["model.safetensors"] if count == 1 else [
        f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for name, (path, _) in zip(names, shards, strict=True):
        tf.io.gfile.rename(path, os.path.join(folder, name))
    if count > 1:
        _write_json(folder, "model.safetensors.index.json", {
            "metadata": {"total_size": total},
            "weight_map": {tensor: name for name, (_, held) in zip(names, shards, strict=True)
                           for tensor in held}})


def _write_encoder(folder, encoder, n_ctx):
    """Writes the files that AutoTokenizer reads."""
    tokenizer = encoder.to_tokenizers()
    if encoder.name == "clip":
        logging.info("note: encoder %s mends texts with ftfy, and tokenizer.json does not: ids of "
                     "texts that need it differ", encoder.spec)
    checkpoints.write_text(os.path.join(folder, "tokenizer.json"), tokenizer.to_str(pretty=True))
    end = tokenizer.id_to_token(encoder.eos_id)
    _write_json(folder, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
        "model_max_length": n_ctx, "clean_up_tokenization_spaces": False})
