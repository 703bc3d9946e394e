"""A run's configuration: `load` reads it, `RunConfig` is what the rest of the program is given.

Order of precedence: flags, then --set, then the file, then defaults. Nothing here imports
TensorFlow, save for reading a config from a remote path.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import PrivateAttr, ValidationError, model_validator

from configs import checks, clip_keys, dataset_files, keys, layouts, legacy, messages, reading
from configs.dataset import DatasetConfig, tower_vocabulary
from configs.errors import UserError
from configs.moe_keys import MoeSection
from configs.moe_keys import architecture as moe_architecture
from configs.optimizers import usual
from configs.redaction import MARK, hidden, hidden_values, is_hidden

# What --print_config shows besides keys.
DERIVED = ("head_size", "rotary_size", "n_vocab_padded", "mesh_size", "batch_split",
           "num_microbatches")


# pydantic lists the last base's keys first.
class RunConfig(clip_keys.ClipSection, MoeSection, keys.RunKeys, keys.PredictKeys, keys.DataKeys,
                keys.MeshKeys, keys.OptimizerKeys, keys.MaskedKeys, keys.LossKeys,
                keys.TrainingKeys, keys.InitKeys, keys.ModelKeys):
    """All keys of a run, checked against each other; immutable.

    Values that default to those of another key (eval_batch_size, lr_decay_end, attention_types,
    n_vocab, beta1, beta2) are filled in. Constructing one directly takes current key names and
    raises pydantic's ValidationError on wrong types; `load` also understands legacy keys and says
    things in one line.

    Attributes:
        notes: lines that the user should see, such as ignored legacy keys.
        sources: where each key's value came from: "file", "--set", a flag, "default", …
    """

    _notes: list[str] = PrivateAttr(default_factory=list)
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _resolve_and_check(self) -> "RunConfig":
        resolved: dict[str, Any] = usual(self)
        if self.attention_types is None:
            resolved["attention_types"] = ("global",) * self.n_layer
        if self.eval_batch_size is None:
            resolved["eval_batch_size"] = self.train_batch_size
        if self.lr_decay_end is None:
            resolved["lr_decay_end"] = self.train_steps
        if not self.n_vocab:
            resolved["n_vocab"] = self._vocabulary_of_datasets()
        if self.mlm_training and self.mlm_mask_id is None:
            resolved["mlm_mask_id"] = resolved.get("n_vocab", self.n_vocab)
        for key, value in resolved.items():
            # The frozen model completes itself before anyone sees it. The key stays "not given",
            # so that `replace` fills it in again.
            self.__dict__[key] = value
            self.__pydantic_fields_set__.discard(key)
        self._notes.extend(checks.check(self))
        return self

    def _vocabulary_of_datasets(self) -> int:
        if not self.datasets:
            raise UserError("n_vocab: missing, and there are no datasets to take it from")
        ids = max(dataset.n_vocab for dataset in self.dataset_configs.values())
        encoder = next(iter(self.dataset_configs.values())).encoder
        return tower_vocabulary(encoder, ids) if self.model == "clip" else ids

    @property
    def notes(self) -> list[str]:
        """Lines that the user should see."""
        return list(self._notes)

    @property
    def sources(self) -> dict[str, str]:
        """Where each key's value came from."""
        return {key: self._sources.get(key, "default") for key in type(self).model_fields}

    @property
    def head_size(self) -> int:
        """Features of one attention head."""
        return self.n_embd // self.n_head

    @property
    def rotary_size(self) -> int:
        """Features of a head that rotate; 0 with other positions than rotary ones."""
        return (self.rotary_dims or self.head_size) if self.position == "rotary" else 0

    @property
    def axial_shape(self) -> tuple[int, int]:
        """(rows, columns) of the grid of axial positions."""
        if self.axial_dims:
            return self.axial_dims[0], self.axial_dims[1]
        rows = next(n for n in range(math.isqrt(self.n_ctx), 0, -1) if self.n_ctx % n == 0)
        return rows, self.n_ctx // rows

    @property
    def intermediate(self) -> int:
        """Hidden width of the feed-forward part."""
        return self.intermediate_size or 4 * self.n_embd

    @property
    def speaks(self) -> bool:
        """Whether the model predicts next tokens, so that it can be sampled and scored on text."""
        return self.model in ("GPT", "gpt_c") and not self.mlm_training

    @property
    def window_size(self) -> int:
        """Targets of a window of text: n_ctx, less mlm_cls_token_id if it begins each row."""
        return self.n_ctx - (self.mlm_training and self.mlm_cls_token_id is not None)

    @property
    def text_only(self) -> bool:
        """Whether it is a student that learns from texts alone, with no teacher: a control."""
        return self.model == "clip_student" and self.clip.control == "text_only"

    @property
    def supervised(self) -> bool:
        """Whether it is a GPT-C that learns to say what its student says."""
        return self.model == "gpt_c" and self.clip.mode == "loss" and self.clip.weight > 0

    @property
    def experts_travel(self) -> bool:
        """Whether the layout splits batch and experts over one axis: tokens go to other devices."""
        rules = dict(self.layout_rules)
        return "experts" in rules and rules["experts"] == rules.get("batch")

    @property
    def clip_out(self) -> int:
        """Width of a CLIP model's embeddings, or of what a student of texts alone says."""
        return self.clip.out or self.n_embd

    @property
    def n_vocab_padded(self) -> int:
        """Rows of the stored token table. It does not depend on the mesh: checkpoints fit any."""
        return math.ceil(self.n_vocab / self.pad_vocab_multiple) * self.pad_vocab_multiple

    @property
    def mesh(self) -> list[tuple[str, int]]:
        """(axis, size) of the mesh's axes; empty for one device."""
        return layouts.parse_mesh_shape(self.mesh_shape)

    @property
    def layout_rules(self) -> list[tuple[str, str]]:
        """(tensor dimension, mesh axis) of the layout's rules."""
        return layouts.parse_layout(self.layout)

    @property
    def mesh_size(self) -> int:
        """Number of devices."""
        return math.prod(size for _, size in self.mesh)

    @property
    def batch_split(self) -> int:
        """Number of replicas: the size of the mesh axis that splits the batch, or 1."""
        return dict(self.mesh).get(dict(self.layout_rules).get("batch", ""), 1)

    @property
    def num_microbatches(self) -> int:
        """Microbatches of a step, by the rule of mtf's serialize_num_microbatches.

        The fewest that divide a replica's batch evenly and hold at most
        `tokens_per_mb_per_replica` tokens each (but at least one sequence).
        """
        if not self.tokens_per_mb_per_replica:
            return 1
        replica_batch = self.train_batch_size // self.batch_split
        size = min(max(1, self.tokens_per_mb_per_replica // self.n_ctx), replica_batch)
        while replica_batch % size:
            size -= 1
        return replica_batch // size

    @cached_property
    def dataset_configs(self) -> dict[str, DatasetConfig]:
        """The dataset configs by id, in the order of `datasets`.

        Raises:
            UserError: there are none, or one is missing or wrong, needs more ids than n_vocab has,
                or was made by another encoder than the first.
        """
        return dataset_files.load([entry.id for entry in self.datasets], self.n_vocab,
                                  self.inline_datasets)

    def architecture(self) -> dict[str, Any]:
        """What decides the shapes and the meaning of the weights, for checkpoints' fingerprints."""
        names = ["model", "n_layer", "n_head", "n_embd", "n_vocab", "n_vocab_padded", "pad_masked",
                 "position", "activation_function", "no_weight_tie", "layer_norm_epsilon",
                 "norm", "rezero", "parallel_residual", "macaron", "mlp_glu", "share_parameters"]
        facts = {name: getattr(self, name) for name in names}
        kinds = list(self.attention_types or ())
        facts["attention_types"] = kinds
        facts["num_mem_kv"] = self.num_mem_kv
        if "local" in kinds:
            facts["local_attention_radius"] = self.local_attention_radius
        facts.update(moe_architecture(self))
        parts = {"clip": clip_keys.TOWER_KEYS, "clip_student": ["window"],
                 "gpt_c": ["mode", "layer"]}.get(self.model, [])
        facts.update({f"clip.{key}": getattr(self.clip, key) for key in parts})
        if self.model == "clip" or self.text_only:
            facts["clip.out"] = self.clip_out
        # 0, as in the keys, where it is the usual width: checkpoints agree however it was written.
        usual = self.intermediate == 4 * self.n_embd
        facts["intermediate_size"] = 0 if usual else self.intermediate
        if self.mlm_training:
            facts.update({name: getattr(self, name) for name in
                          ("mlm_training", "mlm_mask_id", "mlm_cls_token_id")})
        # The window is a property of the weights only where they hold a row for each position.
        if self.position == "learned":
            facts["n_ctx"] = self.n_ctx
        elif self.position == "axial":
            facts["axial_dims"] = list(self.axial_shape)
        elif self.position == "rotary":
            facts.update(rotary_size=self.rotary_size, rotary_base=self.rotary_base,
                         rotary_style=self.rotary_style)
        return facts

    def replace(self, **changes: Any) -> "RunConfig":
        """A copy with some keys changed, checked as a whole again."""
        copy = type(self).model_validate({**self.model_dump(exclude_unset=True), **changes})
        copy._sources.update({**self._sources, **dict.fromkeys(changes, "changed by the program")})
        return copy

    def to_json(self) -> str:
        """The resolved config as JSON text that `load` takes again, if it holds no secrets."""
        lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
                 for key, value in self._values().items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def _values(self) -> dict[str, Any]:
        """Every key that this kind of model has, as JSON data without secrets."""
        values = hidden_values(self.model_dump(mode="json"))
        values["clip"] = {key: values["clip"][key] for key in clip_keys.keys_of(self)}
        if not values["clip"]:
            del values["clip"]
        return values

    def _facts(self) -> dict[str, str]:
        """Every key, those of sections by dotted names, and what follows from them, as JSON."""
        values = self._values()
        clip = values.pop("clip", {})
        del values["about"]
        values.update({f"clip.{key}": value for key, value in clip.items()})
        values.update({key: getattr(self, key) for key in DERIVED})
        return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}

    def difference(self, other: "RunConfig") -> str:
        """The keys whose values differ from another config's, as lines of key, value, the other's.

        "-" stands for a key that a config's kind of model lacks.
        """
        facts, others = self._facts(), other._facts()
        rows = [(key, facts.get(key, "-"), others.get(key, "-")) for key in {**facts, **others}
                if facts.get(key) != others.get(key)]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        return "\n".join(f"{key:{widths[0]}}  {mine:{widths[1]}}  {theirs}"
                         for key, mine, theirs in rows)

    def describe(self) -> str:
        """Every key, its value and where it came from, and what follows from them, as text."""
        rows = self.rows()
        width = max(len(key) for key, _, _ in rows)
        value_width = min(50, max(len(value) for _, value, _ in rows))
        lines = [f"{key:{width}}  {value:{value_width}}  {source}" for key, value, source in rows]
        return "\n".join([*(f"# {line}" for line in hidden(self.about).splitlines()), *lines])

    def rows(self) -> list[tuple[str, str, str]]:
        """(key, value as JSON, where it came from) of every key and what follows from them."""
        facts, sources = self._facts(), self.sources
        sources.update(dict.fromkeys(DERIVED, "follows from the keys above"))
        given = self.clip.model_fields_set
        sources.update({f"clip.{key}": sources["clip"] if key in given else "default"
                        for key in type(self.clip).model_fields})
        return [(key, value, sources[key]) for key, value in facts.items()]


def load(path_or_name: str, overrides: Sequence[str] = (),
         flags: Mapping[str, Any] | None = None) -> RunConfig:
    """Reads, overrides and checks a run config.

    Args:
        path_or_name: a JSON or YAML file, a run's directory, or a name in configs/ with or
            without its ending.
        overrides: "key=value" texts as --set takes them; dotted keys reach into sections and lists.
        flags: values of keys that flags of the command line give; None is a flag not given.

    Raises:
        UserError: one line naming the file or flag, the key, and what is allowed.
    """
    path = reading.find_config(path_or_name)
    values, sources, notes = _translated(path, reading.read_mapping(path), "file", whole=True)
    for override in overrides:
        values = _overridden(values, override, sources, notes)
    for key, value in (flags or {}).items():
        if value is not None:
            values[key], sources[key] = value, f"--{key}"
    try:
        config = RunConfig.model_validate(values)
        # Not before: what a stranger's YAML refers to itself by has no end.
        for key in values:
            if key != "about" and is_hidden(values[key]):
                raise UserError(f"{key}: a secret was left out of it ({MARK}) when it was written; "
                                "give it again by --set")
        _check_present_datasets(config, notes)
    except ValidationError as error:
        key, sentence = messages.first_mistake(error, RunConfig)
        raise UserError(f"{_place(key, sources, path)}: {_as_written(key, sources)}"
                        f"{sentence.removeprefix(key)}") from error
    except UserError as error:
        key = str(error).partition(":")[0]
        raise UserError(f"{_place(key, sources, path)}: {error}") from error
    config._sources.update(_resolved_sources(config, values), **sources)
    if not values.get("n_vocab"):
        config._sources["n_vocab"] = "dataset " + ", ".join(config.dataset_configs)
    config._notes.extend(f"{path}: {note}" for note in notes)
    return config


def _place(key: str, sources: dict[str, str], path: str) -> str:
    """Where a wrong value of a key has to be mended: a flag, or the file."""
    source = sources.get(key, "file")
    return source if source.startswith("--") else path


def _as_written(key: str, sources: dict[str, str]) -> str:
    """A key as the file has it: `max_steps (train_steps here)` where it was renamed."""
    source, _, former = sources.get(key, "").partition(" (as ")
    return f"{former.removesuffix(')')} ({key} here)" if former and source == "file" else key


def _translated(place: str, values: dict, source: str,
                whole: bool = False) -> tuple[dict, dict[str, str], list[str]]:
    """(values under current names, sources by key, notes)."""
    try:
        values, former, notes = legacy.translate(values, whole)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    sources = {key: f"{source} (as {former[key]})" if key in former else source for key in values}
    return values, sources, notes


def _overridden(values: dict, override: str, sources: dict[str, str], notes: list[str]) -> dict:
    """`values` with one --set applied; extends `sources` and `notes`."""
    path, text = reading.split_override(override)
    if len(path) > 1:
        sources[path[0]] = "--set" if path[0] not in sources else f"{sources[path[0]]}, --set"
        return reading.overridden(values, path, reading.parse_value(text))
    value = text if _is_text(path[0]) and text != "null" else reading.parse_value(text)
    new, new_sources, new_notes = _translated("--set", {path[0]: value}, "--set")
    sources.update(new_sources)
    notes.extend(new_notes)
    return {**values, **new}


def _is_text(key: str) -> bool:
    """Whether a key holds text, so that `--set about=yes` stays text."""
    field = RunConfig.model_fields.get(key)
    return field is not None and field.annotation in (str, str | None) and key not in (
        "mesh_shape", "layout")


def _resolved_sources(config: RunConfig, values: dict) -> dict[str, str]:
    origins = {"eval_batch_size": "train_batch_size", "lr_decay_end": "train_steps",
               "attention_types": "n_layer", "beta1": "opt_name", "beta2": "opt_name"}
    if config.mlm_training:
        origins["mlm_mask_id"] = "n_vocab"
    return {key: f"default (from {origin})" for key, origin in origins.items()
            if values.get(key) is None}


def _check_present_datasets(config: RunConfig, notes: list[str]) -> None:
    """Checks the datasets if they are there; a model can be described or sampled without them."""
    missing = [entry.id for entry in config.datasets if entry.id not in config.inline_datasets
               and "://" not in entry.id and not os.path.isfile(dataset_files.path(entry.id))]
    if missing:
        notes.append(f"datasets: no {', '.join(map(dataset_files.path, missing))}; training and "
                     "evaluation need it")
    elif config.datasets:
        _ = config.dataset_configs  # loads and checks them
    covered = [entry.id for entry in config.datasets if entry.id not in config.inline_datasets
               and dataset_files.covered(entry.id)]
    if covered:
        notes.append(f"datasets: {', '.join(covered)}: the file in configs/dataset_configs is "
                     "read, and not that of the same name in configs/datasets")
