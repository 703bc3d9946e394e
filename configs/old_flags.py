"""Flags of GPT-Neo's and ConnorJL/GPT2's main.py that this one lacks or has by another name.

None of them is passed over in silence: each works, or is named in a note.
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
    for flag, (count, _) in UNNEEDED.items():
        parser.add_argument(flag, action=_Pass, nargs={1: None}.get(count, count),
                            dest=f"old{flag.replace('-', '_')}", default=argparse.SUPPRESS,
                            help=argparse.SUPPRESS)
