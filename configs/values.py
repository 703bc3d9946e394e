"""Reads values that can be written in several ways: layers, datasets, devices, text, "off".

Each function takes what JSON gave and raises ValueError with a sentence on what is allowed.
"""

import json
import re
from typing import Any, NamedTuple

from configs.dataset import DatasetConfig
from configs.messages import did_you_mean, shown

MOST_LAYERS = 1000
ATTENTION_TYPES = ("global", "local", "linear", "none")
LAMBADA = "lambada"
# Visual-knowledge probes among eval_tasks, "coda:PATH" and so on.
PROBES = ("coda", "color", "shape", "material", "size_larger", "size_smaller")
MODES = ("chunks", "documents_random", "documents_fixed")


class DatasetEntry(NamedTuple):
    """One dataset of a mix. `mode` None is the mode in which the dataset was written."""

    id: str
    stitch: int = 1
    mode: str | None = None
    weight: float = 1.0


def attention_types(value: Any) -> tuple[str, ...] | None:
    """The kind of each layer from [[["global"], 12]] or ["global", …]; None stays None."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise ValueError(f'must be a list such as [[["global"], 12]], not {shown(value)}')
    layers = [kind for item in value for kind in _repeated(item)]
    for kind in layers:
        if kind not in ATTENTION_TYPES:
            raise ValueError(f"{shown(kind)} is not supported by this release"
                             f"{did_you_mean(str(kind), ATTENTION_TYPES)}; "
                             f"known: {', '.join(ATTENTION_TYPES)}")
    return tuple(layers)


def _repeated(item: Any) -> list:
    """["a", "b", "a", "b"] from [["a", "b"], 2], and ["a"] from "a"."""
    if isinstance(item, str):
        return [item]
    if isinstance(item, list | tuple) and len(item) == 2:
        kinds, times = item
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if (isinstance(kinds, list | tuple) and type(times) is int
                and 0 <= times * len(kinds) <= MOST_LAYERS):
            return list(kinds) * times
    raise ValueError(f"{shown(item)} is no [[kinds], times] of up to {MOST_LAYERS} layers; "
                     "write e.g. [[[\"global\"], 12]]")


def attention_runs(layers: tuple[str, ...] | None) -> list | None:
    """[[["global"], 12]]: runs of equal layers, as short as GPT-Neo writes them."""
    if layers is None:
        return None
    runs: list[list] = []
    for kind in layers:
        if runs and runs[-1][0] == [kind]:
            runs[-1][1] += 1
        else:
            runs.append([[kind], 1])
    return runs


def axial_dims(value: Any) -> list[int] | None:
    """Two sizes, each 1 or more; None stays None."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(
            type(size) is int and size > 0 for size in value):
        raise ValueError(f"must be two sizes such as [32, 64], not {shown(value)}")
    return list(value)


def parallel_residual(value: Any) -> Any:
    """true as "one_norm", false and null as "none"; anything else as it is."""
    if value is None or isinstance(value, bool):
        return "one_norm" if value else "none"
    return value


def datasets(value: Any) -> list[DatasetEntry]:
    """Entries from ids and [id, stitch, mode, weight]; a list's later items may be left out."""
    if not isinstance(value, list | tuple):
        raise ValueError(f'must be a list such as ["pile"] or [["pile", 1, "chunks", 1.0]], '
                         f"not {shown(value)}")
    entries = [_dataset(item) for item in value]
    names = [entry.id for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is listed twice; keep one")
    return entries


def _dataset(item: Any) -> DatasetEntry:
    parts = [item] if isinstance(item, str) else item
    if not isinstance(parts, list | tuple) or not 1 <= len(parts) <= 4:
        raise ValueError(f"{shown(item)} is neither an id nor [id, stitch, mode, weight]")
    # null is GPT-Neo's way to leave a part out.
    usual = DatasetEntry._field_defaults
    values: list[Any] = [usual.get(name) if part is None else part
                         for name, part in zip(DatasetEntry._fields, parts, strict=False)]
    entry = DatasetEntry(*values)
    if not isinstance(entry.id, str) or not entry.id:
        raise ValueError(f"{shown(item)} does not begin with a dataset's id")
    if type(entry.stitch) is not int or entry.stitch < 1:
        raise ValueError(f"{entry.id}: stitch must be a whole number, 1 or more, "
                         f"not {shown(entry.stitch)}")
    if entry.mode is not None and entry.mode not in MODES:
        raise ValueError(f"{entry.id}: mode must be one of {', '.join(MODES)}, "
                         f"not {shown(entry.mode)}{did_you_mean(str(entry.mode), MODES)}")
    if type(entry.weight) not in (int, float) or not 0 < entry.weight < float("inf"):
        raise ValueError(f"{entry.id}: weight must be above 0, not {shown(entry.weight)}")
    return entry._replace(weight=float(entry.weight))


def inline_datasets(value: Any) -> dict[str, DatasetConfig]:
    """Dataset configs by id; null is none."""
    value = {} if value is None else value
    if not isinstance(value, dict) or not all(
            isinstance(part, dict | DatasetConfig) for part in value.values()):
        raise ValueError('must be sections of dataset configs by id, such as {"mine": {"path": '
                         f'"mine_*.tfrecords", "n_vocab": 257}}}}, not {shown(value)}')
    return {name: part if isinstance(part, DatasetConfig) else
            DatasetConfig.from_json(json.dumps(part), f"inline_datasets: {name}")
            for name, part in value.items()}


def supervised_layers(value: Any) -> Any:
    """One layer as a list of one."""
    return value if isinstance(value, list) else [value]


def probe_words(value: Any) -> list[str]:
    """Different texts, none or at least three; null is none."""
    value = [] if value is None else value
    if not isinstance(value, list | tuple) or not all(
            isinstance(word, str) and word.strip() for word in value):
        raise ValueError(f'must be a list such as ["red", "rose", "blue"], not {shown(value)}')
    for word in value:
        if list(value).count(word) > 1:
            raise ValueError(f"{shown(word)} is listed twice; keep one")
    if 0 < len(value) < 3:
        raise ValueError(f"{shown(value)} is too few to compare; give three or more")
    return list(value)


def eval_tasks(value: Any) -> list[str]:
    """Paths of JSONL files, "lambada:" and a path, or "lambada" itself; null is none."""
    value = [] if value is None else value
    if not isinstance(value, list | tuple) or not all(isinstance(path, str) for path in value):
        raise ValueError(f'must be a list such as ["cloze_dev.jsonl"], not {shown(value)}')
    for path in value:
        if path != LAMBADA and "." not in path.rpartition("/")[2]:
            raise ValueError(f'{shown(path)} is no path of a JSONL file; no task but "lambada" is '
                             "built in: give a file of its items")
    names = [task_name(path) for path in value]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two files are called {name}, which names their scores; rename one")
    return list(value)


def task_name(path: str) -> str:
    """The name of an entry of `eval_tasks` in scores: a file's without directory and ending.

    Probes' files have what they are about before it, "color_test": ViComTe's are called alike.
    """
    if path == LAMBADA:
        return path
    probe, path = probe_of(path)
    name = lambada_path(path).rpartition("/")[2].rpartition(".")[0]
    return f"{probe}_{name}" if probe else name


def probe_of(entry: str) -> tuple[str | None, str]:
    """What of PROBES an entry of `eval_tasks` begins with, or None, and the path after it."""
    probe, colon, path = entry.partition(":")
    return (probe, path) if colon and probe in PROBES else (None, entry)


def lambada_path(path: str) -> str:
    """The path in an entry of `eval_tasks`, which may begin with "lambada:"."""
    return path.removeprefix(f"{LAMBADA}:")


def devices(value: Any) -> list[str]:
    """TensorFlow's names of GPUs from numbers, "gpu:0" or "device:GPU:0"."""
    if not isinstance(value, list | tuple):
        raise ValueError(f'must be a list such as ["0", "1"], not {shown(value)}')
    names = []
    for item in value:
        number = str(item).lower().removeprefix("device:").removeprefix("gpu:")
        if isinstance(item, bool) or not number.isdecimal():
            raise ValueError(f"{shown(item)} is no GPU; write 0 or device:GPU:0")
        names.append(f"device:GPU:{int(number)}")
    return names


def text(value: Any) -> Any:
    """A list of lines as one text; anything else as it is."""
    lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
    return "\n".join(value) if lines else value


def list_or_none(value: Any) -> Any:
    """null as an empty list."""
    return [] if value is None else value


def number_or_off(value: Any) -> Any:
    """null as 0: two ways to write off."""
    return 0.0 if value is None else value


def checkpoint(value: Any) -> str:
    """Which checkpoint: "latest", "best", or a step as text."""
    text = str(value)
    if isinstance(value, bool) or not (text in ("latest", "best") or re.fullmatch(r"\d+", text)):
        raise ValueError(f"must be latest, best or a step, not {shown(value)}")
    return text
