"""Writes a config of another program as one of this project, and says what changed.

    python configs/convert.py 6B_roto_256.json --out my_6B.json

Takes configs of mesh-transformer-jax and gpt-c, GPT-Neo and ConnorJL/GPT2. The last two main.py
reads as they are; converted, they have today's keys.
"""

import json
import os
import sys
from typing import TYPE_CHECKING

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs.command_line import Parser, quiet_libraries, status_of  # noqa: E402
from configs.errors import UserError  # noqa: E402

if TYPE_CHECKING:
    from configs.legacy_jax import Converted


def make_parser() -> Parser:
    """The parser of the flags."""
    parser = Parser(description=__doc__)
    parser.add_argument("old", metavar="OLD", help="the config to convert: a JSON or YAML file")
    parser.add_argument("--out", required=True, metavar="NEW.json", help="the file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    return parser


def converted(old: dict) -> "Converted":
    """A legacy_jax.Converted of a config's keys and values, whatever program it was written for."""
    from configs import legacy, legacy_jax

    if legacy_jax.TELL_TALE in old:
        return legacy_jax.convert(old)
    lost = [f"{key} {json.dumps(old[key])}: not supported by this release"
            for key in legacy.UNSUPPORTED if old.get(key)]
    kept = {key: value for key, value in old.items() if key not in legacy.UNSUPPORTED}
    values, former, notes = legacy.translate(kept, whole=True)
    changed = [f"{former[key]} → {key} {json.dumps(value)}" for key, value in values.items()
               if key in former]
    changed += [f"{key} {json.dumps(old[key])} → {json.dumps(value)}"
                for key, value in values.items()
                if key in old and key not in former and old[key] != value]
    return legacy_jax.Converted(values, changed + notes, lost)


def convert(path: str, out: str, overwrite: bool = False) -> None:
    """Converts a file; prints what changed and what could not be carried over.

    Raises:
        UserError: the old config cannot be read or makes no config of this project, or the new file
            exists and is not to be replaced.
    """
    import tensorflow.compat.v1 as tf

    from configs import reading, schema

    old = reading.read_mapping(path)
    if tf.io.gfile.exists(out) and not overwrite:
        raise UserError(f"--out: {out} exists; give another, or --overwrite")
    if not out.endswith(".json"):
        raise UserError(f"--out: {out} does not end in .json")
    try:
        found = converted(old)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
             for key, value in found.values.items()]
    draft = f"{out}.draft.json"
    tf.io.gfile.makedirs(os.path.dirname(out) or ".")
    try:
        with tf.io.gfile.GFile(draft, "w") as file:
            file.write("{\n" + ",\n".join(lines) + "\n}\n")
        try:
            config = schema.load(draft)
        except UserError as error:
            raise UserError(str(error).replace(draft, path)) from error
        tf.io.gfile.rename(draft, out, overwrite=True)
    finally:
        if tf.io.gfile.exists(draft):
            tf.io.gfile.remove(draft)
    print("changed:", *found.changed, sep="\n  ")
    if found.lost:
        print("not carried over:", *found.lost, sep="\n  ")
    for note in config.notes:
        print(f"note: {note.replace(draft, out)}")
    print(f"wrote {out}; python main.py --model {out} --print_config shows every key")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    args = make_parser().parse_args(argv)
    quiet_libraries()
    return status_of(convert, args.old, args.out, args.overwrite)


if __name__ == "__main__":
    sys.exit(main())
