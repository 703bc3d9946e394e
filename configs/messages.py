"""One-line messages about mistakes in a config: what is wrong, what is allowed, what is near."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

# What other code bases call a key of ours: no spelling distance would find these.
SYNONYMS = {
    "batch_size": "train_batch_size",
    "block_size": "n_ctx",
    "d_model": "n_embd",
    "dropout": "embed_dropout, res_dropout, attn_dropout",
    "dtype": "precision",
    "end_lr": "lr_min_ratio",
    "eval_iters": "eval_steps",
    "grad_clip": "gradient_clipping",
    "hidden_act": "activation_function",
    "layer_norm_eps": "layer_norm_epsilon",
    "layers": "n_layer",
    "learning_rate": "lr",
    "log_interval": "iterations",
    "max_iters": "train_steps",
    "max_steps": "train_steps",
    "min_lr": "lr_min_ratio",
    "model_dir": "model_path",
    "n_heads": "n_head",
    "n_inner": "intermediate_size",
    "optimizer": "opt_name",
    "out_dir": "model_path",
    "pe_rotary_dims": "rotary_dims",
    "rms_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rotary_base",
    "seq": "n_ctx",
    "total_steps": "train_steps",
    "use_parallel_residual": "parallel_residual",
    "vocab_size": "n_vocab",
    "warmup_iters": "warmup_steps",
    "window_size": "local_attention_radius",
}


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most like `word`, or None when nothing resembles it."""
    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(str(word).lower(), by_lower, 1, 0.55)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """`(did you mean …?)` with a leading blank, or "" when nothing resembles the word."""
    names = list(names)
    synonym = SYNONYMS.get(word)
    if synonym and synonym.split(",")[0] in names:
        return f" (did you mean {synonym}?)"
    near = nearest(word, names)
    return f" (did you mean {near}?)" if near else ""


def unknown_key(key: str, names: Iterable[str]) -> str:
    """The sentence for a key that does not exist."""
    names = list(names)
    which = (f"there are {', '.join(names)}" if len(names) <= 12
             else "docs/configs.md lists them all")
    return f"unknown key{did_you_mean(key, names) or f'; {which}'}"


def shown(value: Any) -> str:
    """`value` as it is written in JSON, shortened to fit in a line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _keys_at(model: type[BaseModel], path: tuple) -> list[str]:
    """The keys that the (nested) model at `path` has."""
    for part in path:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(a for a in options if isinstance(a, type) and issubclass(a, BaseModel))
    return list(model.model_fields)


def _sentence(detail: Mapping[str, Any], model: type[BaseModel]) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return unknown_key(str(detail["loc"][-1]), _keys_at(model, detail["loc"][:-1]))
    if kind == "missing":
        field = model.model_fields.get(str(detail["loc"][0]))
        return f"missing and has no default: {field.description if field else 'give it'}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind == "literal_error":
        expected = detail["ctx"]["expected"]
        names = [name.strip(" '") for name in expected.replace(" or ", ",").split(",")]
        return f"must be {expected}, not {shown(value)}{did_you_mean(str(value), names)}"
    if kind == "model_type":
        return f"must be a section of keys, not {shown(value)}"
    allowed = detail["msg"].replace("Input should be", "must be", 1)
    return f"{allowed}, not {shown(value)}"


def first_mistake(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """The mistake to report out of pydantic's list.

    Misspelt keys come first, since a missing key is often the same mistake seen again.

    Returns:
        (top-level key, `key: sentence`), the sentence saying how many further mistakes there are.
    """
    details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
    detail = details[0]
    path = [str(part) for part in detail["loc"]] or ["config"]
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return path[0], f"{'.'.join(path)}: {_sentence(detail, model)}{more}"
