"""What older GPT-Neo configs write in other ways: datasets, microbatches, defaults of a whole run.

`configs/legacy.py` has the tables of single keys; here are those rewritings that need several keys.
"""

import os
import re
import typing
from typing import Any

from pydantic import BeforeValidator

from configs import keys, layouts
from configs.errors import UserError
from configs.messages import shown

# Other spellings of a mode. GPT-Neo's "documents" starts at the first token, as documents_fixed.
MODES = {"random_sample": "documents_random", "document": "documents_fixed",
         "documents": "documents_fixed", "sample": "documents_fixed", "chunk": "chunks"}
# Modes of the time when the code put an end of text between documents, which had none.
UNENDED = ("random_sample", "sample")

# GPT-Neo cannot run without this key, and nothing here has it.
TELL_TALE = "predict_steps"
# What GPT-Neo takes for absent keys where that is not this project's default.
DEFAULTS = {"lr_decay": "constant", "z_loss": 1e-4}
# The same of its README; its code fails without them.
ADVISED = {"n_ctx": 2048, "iterations": 500}
# The same of its experts: mesh-tensorflow's hidden width, and a capacity of its own.
EXPERTS = {"hidden_size": 4096, "min_expert_capacity": 1}

# How far local layers saw where the switch `local` made them: Mesh TensorFlow's own value.
LOCAL_RADIUS = 128

# mesh-tensorflow's hyperparameters of experts that neither top_1 nor top_2 reads.
UNREAD_BY_EXPERTS = {
    "capacity_factor_second_level": "experts have one level",
    "ntlb_top_k": "another gating's",
    "switch_dropout": "that of policy input_dropout, which is refused",
    "switch_temperature": "that of policy sample, which is refused",
    "top_n_num_experts_per_token": "another gating's",
}
# The same, of what is off when it is null or false.
OFF_IN_EXPERTS = ("output_dim", "use_experts_attention", "word_embed_mode",
                  "use_second_place_expert_prob", "use_second_place_expert_prob_temp")


def complete(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Adds GPT-Neo's defaults to a whole config that has its tell-tale key.

    Returns:
        (values, notes).
    """
    notes = []
    if named_by_globs(values) and {"max_steps", "train_steps"} <= set(values):
        values = {key: value for key, value in values.items() if key != "max_steps"}
        notes.append("not needed and ignored: max_steps (train_steps is the total of steps)")
    if TELL_TALE not in values:
        return values, notes
    # The code's own, in configs that it has saved.
    values = {key: value for key, value in values.items() if key != "batch_size"}
    absent = {key: value for key, value in DEFAULTS.items() if key not in values}
    absent.update({key: value for key, value in ADVISED.items() if values.get(key) is None})
    experts = values.get("moe_params") or {}
    if values.get("moe_layers") and isinstance(experts, dict):
        given = {key.removeprefix("moe_") for key in experts}
        usual = {key: value for key, value in EXPERTS.items() if key not in given}
        absent.update({"moe_params": {**experts, **usual}} if usual else {})
    if absent:
        listed = ", ".join(f"{key} {shown(value)}" for key, value in absent.items())
        notes.append(f"GPT-Neo's own values for absent keys: {listed}")
    if str(values.get("opt_name")).lower() == "adafactor" and values.get("weight_decay"):
        absent["weight_decay"] = 0.0
        notes.append("weight_decay: GPT-Neo gives it to Adafactor as its decay rate, and nothing "
                     "decays; it is 0 here, and decay_exponent says the rate")
    # null is off there, and off is the default of what has one and takes no null.
    values = {key: value for key, value in values.items()
              if value is not None or key in DEFAULTS or not _is_off_by_default(key)}
    return {**values, **absent}, notes


def experts(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Leaves out of moe_params what nothing here needs.

    Returns:
        (values, by key left out: why).
    """
    section = values.get("moe_params")
    if not isinstance(section, dict):
        return values, {}
    kept: dict[str, Any] = {}
    why: dict[str, str] = {}
    for key, value in section.items():
        name = key.removeprefix("moe_")
        if name in UNREAD_BY_EXPERTS:
            why[f"moe_params.{key}"] = UNREAD_BY_EXPERTS[name]
        elif name in OFF_IN_EXPERTS and not value:
            why[f"moe_params.{key}"] = "it is off"
        else:
            kept[key] = value
    return {**values, "moe_params": kept}, why


def _is_off_by_default(key: str) -> bool:
    """Whether a key has a default and no meaning for null."""
    field = next((group.model_fields[key] for group in keys.GROUPS if key in group.model_fields),
                 None)
    return field is not None and not field.is_required() and not (
        type(None) in typing.get_args(field.annotation)
        or any(isinstance(part, BeforeValidator) for part in field.metadata))


def local(values: dict[str, Any]) -> dict[str, Any]:
    """`local`, GPT-Neo's switch for all layers before there was `attention_types`, as that key."""
    if "local" not in values:
        return values
    values = dict(values)
    on = values.pop("local")
    if on not in (True, False, None):
        raise UserError(f"local: must be true or false, not {shown(on)}; attention_types says it "
                        'for each layer, as in [[["local"], 12]]')
    # A config that has both is of the time after the switch, when nothing read it.
    if on and values.get("attention_types") is None:
        layers = values.get("n_layer")
        values["attention_types"] = ["local"] * (layers if type(layers) is int else 1)
        values.setdefault("local_attention_radius", LOCAL_RADIUS)
    return values


def microbatches(values: dict[str, Any]) -> dict[str, Any]:
    """`microbatches_per_batch` as tokens_per_mb_per_replica, which depends on batch and mesh.

    Raises:
        UserError: the batch of a replica is not divided by it, or both keys are given.
    """
    if "microbatches_per_batch" not in values:
        return values
    values = dict(values)
    count = values.pop("microbatches_per_batch")
    if count is None:
        return values
    if type(count) is not int or count < 1:
        raise UserError("microbatches_per_batch: must be a whole number, 1 or more, not "
                        f"{shown(count)}")
    if values.get("tokens_per_mb_per_replica"):
        raise UserError("microbatches_per_batch: tokens_per_mb_per_replica is given as well; keep "
                        "that one")
    batch, length = values.get("train_batch_size"), values.get("n_ctx")
    if type(batch) is not int or type(length) is not int:
        raise UserError("microbatches_per_batch: needs train_batch_size and n_ctx beside it; or "
                        "give tokens_per_mb_per_replica")
    try:
        rules = dict(layouts.parse_layout(values.get("layout")))
        axes = dict(layouts.parse_mesh_shape(values.get("mesh_shape")))
        replicas = axes.get(rules.get("batch", ""), 1)
    except ValueError:
        replicas = 1  # the key at fault is refused later, by its name
    rows = batch // replicas
    if rows % count:
        raise UserError(f"microbatches_per_batch: {count} does not divide the {rows} sequences of "
                        "a replica")
    values["tokens_per_mb_per_replica"] = rows // count * length
    return values


def datasets(values: dict[str, Any]) -> dict[str, Any]:
    """Entries of `datasets` in today's form.

    Older ones are [train_glob, eval_glob, stitch, mode, weight], which become datasets of the run
    config itself (`inline_datasets`), and modes of other names. The globs are those of files in
    `data_path`, if the config has it.
    """
    entries = values.get("datasets")
    inline = values.get("inline_datasets") or {}
    if not isinstance(entries, list) or not isinstance(inline, dict):
        return values
    inline = dict(inline)
    new = [_entry(entry, values, inline) for entry in entries]
    if any(map(has_globs, entries)):  # read with them
        values = {key: value for key, value in values.items()
                  if key not in ("data_path", "datapath", "encoder_path")}
    if new == entries and inline == (values.get("inline_datasets") or {}):
        return values
    return {**values, "datasets": new, **({"inline_datasets": inline} if inline else {})}


def has_globs(entry: Any) -> bool:
    """Whether an entry of `datasets` is an older one, with globs of shards."""
    return (isinstance(entry, list) and len(entry) == 5
            and all(isinstance(part, str) for part in entry[:2]))


def named_by_globs(values: dict[str, Any]) -> bool:
    """Whether a config's `datasets` are older entries, all of them."""
    entries = values.get("datasets")
    return isinstance(entries, list) and bool(entries) and all(map(has_globs, entries))


def _entry(entry: Any, values: dict[str, Any], inline: dict[str, Any]) -> Any:
    """One entry; its globs, if it has them, go into `inline`."""
    if not isinstance(entry, list) or len(entry) < 3:
        return entry
    if has_globs(entry):
        train, validation, *rest = entry
        name, ids = _name(train, inline), values.get("n_vocab")
        inline[name] = {"path": _placed(train, values), "eval_path": _placed(validation, values),
                        "encoder": _encoder(values), "n_vocab": ids, "eos_id": values.get("eos_id")}
        if entry[3] in UNENDED and inline[name]["eos_id"] is None:
            # GPT-2's vocabulary was told by its size; others had their end of text first.
            inline[name]["eos_id"] = inline[name]["separator"] = 50256 if ids == 50257 else 0
        inline[name] = {key: value for key, value in inline[name].items() if value is not None}
        entry = [name, *rest]
    mode = entry[2]
    if isinstance(mode, str):
        entry = [*entry[:2], MODES.get(mode, mode), *entry[3:]]
    return entry


def _placed(glob: str, values: dict[str, Any]) -> str:
    """A glob in `data_path`, as os.path.join puts it there."""
    folder = values.get("data_path") or values.get("datapath")
    if not isinstance(folder, str) or not glob or "://" in glob:
        return glob
    return os.path.join(folder, glob)


def _encoder(values: dict[str, Any]) -> str | None:
    """The encoder that a run config of that time names, if it does."""
    path = values.get("encoder_path")
    return f"gpt2:{path}" if path and not str(path).endswith(".json") else path


def _name(glob: str, taken: dict[str, Any]) -> str:
    """A dataset's id made from the name of its shards: "a/bundestag_*.tfrecords" is bundestag."""
    stem = os.path.basename(glob).removesuffix(".tfrecords")
    base = re.sub(r"[^A-Za-z0-9_-]+", "", re.sub(r"\[[^]]*\]", "", stem)).strip("_-") or "dataset"
    names = [base, *(f"{base}_{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)
