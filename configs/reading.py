"""Reads JSON and YAML configs and applies `key=value` overrides. Knows no key by name."""

import copy
import json
import os
import re
from typing import Any

import yaml

from configs.errors import UserError
from configs.messages import did_you_mean

CONFIG_DIR = os.path.dirname(os.path.abspath(__file__))
ENDINGS = (".json", ".yaml", ".yml")
# In a run's directory, the config that it was trained with.
RUN_CONFIG = "config.json"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with JSON's numbers, no dates, and duplicate keys refused."""

    # YAML 1.1 reads 1e-3 as text, 1:30 as 90 and 010 as 8: numbers are JSON's instead.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules
                if tag.rsplit(":", 1)[1] not in ("int", "float", "timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_duplicates([str(key) for key in keys])
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"), list("-+.0123456789"))


def _refuse_duplicates(keys: list[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"{key}: given twice; keep one")


def _unique_mapping(pairs: list[tuple[str, Any]]) -> dict:
    _refuse_duplicates([key for key, _ in pairs])
    return dict(pairs)


def find_config(path_or_name: str) -> str:
    """The file meant by a path, by a run's directory, or by a name in configs/.

    A name may lack its ending; a run's config is its config.json.

    Raises:
        UserError: there is none; names the nearest shipped config.
    """
    if os.path.isfile(path_or_name):
        return path_or_name
    if "://" in path_or_name:
        return path_or_name if path_or_name.endswith(ENDINGS) else f"{path_or_name}/{RUN_CONFIG}"
    if os.path.isfile(os.path.join(path_or_name, RUN_CONFIG)):
        return os.path.join(path_or_name, RUN_CONFIG)
    for ending in ("", *ENDINGS):
        path = os.path.join(CONFIG_DIR, path_or_name + ending)
        if os.path.isfile(path):
            return path
    names = shipped_configs()
    hint = did_you_mean(os.path.splitext(os.path.basename(path_or_name))[0], names)
    raise UserError(f"{path_or_name}: no such config"
                    f"{hint or '; give a path or one of ' + ', '.join(names)}")


def shipped_configs() -> list[str]:
    """Names (no ending) of the run configs in configs/."""
    files = sorted(os.listdir(CONFIG_DIR))
    return [os.path.splitext(file)[0] for file in files if file.endswith(ENDINGS)]


def read_text(path: str) -> str:
    """A file's text, local or remote.

    Raises:
        UserError: it cannot be read.
    """
    try:
        if "://" in path:
            import tensorflow.compat.v1 as tf  # only remote paths need it

            with tf.io.gfile.GFile(path) as file:
                return file.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except Exception as error:  # TensorFlow's file errors share no base class with OSError
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def read_mapping(path: str) -> dict[str, Any]:
    """The mapping in a JSON or YAML file.

    Raises:
        UserError: unreadable, not JSON or YAML, not a mapping, or a key given twice.
    """
    text = read_text(path)
    try:
        if path.endswith((".yaml", ".yml")):
            values = yaml.load(text, Loader=_Loader)
        else:
            values = json.loads(text, object_pairs_hook=_unique_mapping)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON: {error.msg} at line {error.lineno}, "
                        f"column {error.colno}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold one mapping of keys to values")
    return values


def parse_value(text: str) -> Any:
    """A JSON or YAML value; text that is neither stands for itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UserError, ValueError, RecursionError):
        return text


def split_override(override: str) -> tuple[list[str], str]:
    """`a.b=c` as (["a", "b"], "c").

    Raises:
        UserError: no `=`, or an empty part in the key.
    """
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"--set {override}: write --set key=value")
    return path, value.strip()


def overridden(values: dict, path: list[str], value: Any) -> dict:
    """A copy of `values` with the value at `path` replaced; absent sections are made.

    A part that is a number picks an entry of a list: `datasets.0.3=0.5`.

    Raises:
        UserError: the path leads through something that is neither a section nor a list.
    """
    values = copy.deepcopy(values)
    section: Any = values
    for depth, part in enumerate(path):
        where = ".".join(path[:depth]) or "the config"
        key: Any = part
        if isinstance(section, list):
            if not part.isdecimal() or int(part) >= len(section):
                raise UserError(f"--set {'.'.join(path)}: {where} is a list of {len(section)}; "
                                f"give a number below that, not {part}")
            key = int(part)
        elif not isinstance(section, dict):
            raise UserError(f"--set {'.'.join(path)}: {where} is a single value and has no {part}")
        if depth == len(path) - 1:
            section[key] = value
        elif isinstance(section, dict):
            section = section.setdefault(key, {})
        else:
            section = section[key]
    return values


