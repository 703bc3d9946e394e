"""Flags of GPT-Neo's and ConnorJL/GPT2's main.py that this one lacks or has by another name.

None of them is passed over in silence: each works, is named in a note, or is refused with one line.
"""

import argparse

# Still taken: flag → (its value's name, what it is now).
TAKEN = {
    "--predict_text": ("TEXT", "--predict --prompt TEXT"),
    "--predict_file": ("FILE", "--predict --prompt FILE"),
}

# Taken and not needed: flag → (how many values follow, why).
UNNEEDED = {
    "--sacred_id": (1, "there is no Sacred here; runs are told apart by --model_path"),
}

# Refused: flag → (how many values follow: "?" for one or none, what to do).
REFUSED = {
    "--export": ("?", "this release has no export; checkpoints in model_path are TensorFlow's"),
}


class _Refuse(argparse.Action):
    """Ends with one line that says what to do without the flag."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"argument {option_string}: {REFUSED[option_string][1]}")


class _Pass(argparse.Action):
    """Adds a note that says why the flag is not needed."""

    def __call__(self, parser, namespace, values, option_string=None):
        note = f"{option_string}: not needed: {UNNEEDED[option_string][1]}"
        namespace.notes = [*(namespace.notes or []), note]


def add(parser: argparse.ArgumentParser) -> None:
    """Adds these flags to a parser that does not have them, without a word about them in its help.

    Those of TAKEN are lists in the parsed arguments; `notes` has the lines about UNNEEDED ones.
    """
    parser.set_defaults(notes=[])
    for flag in TAKEN:
        parser.add_argument(flag, action="append", default=[], help=argparse.SUPPRESS)
    for table, action in ((UNNEEDED, _Pass), (REFUSED, _Refuse)):
        for flag, (count, _) in table.items():
            if flag in parser._option_string_actions:
                continue
            parser.add_argument(flag, action=action, nargs={1: None}.get(count, count),
                                dest=f"old{flag.replace('-', '_')}", default=argparse.SUPPRESS,
                                help=argparse.SUPPRESS)
