"""Flags of GPT-Neo's and ConnorJL/GPT2's programs that ours lack or have by another name.

None of them is passed over in silence: each works, or is named in a note or an error.
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
    "--experiment_name": (1, "there is no Sacred here; runs are told apart by --model_path"),
    "--autostack": (0, "variables are not stacked"),
    "--no_delete_tpu": (0, "a TPU is deleted only with --recreate_tpu"),
}

# Refused, with what each is here: flag → these words, where backquotes are for pages.
_HEARTBEAT = ("none: nothing ends a run that has stalled; `--recreate_tpu` makes a preempted or "
              "unhealthy TPU anew, and the run goes on from its last checkpoint")
MAIN = {
    "--initial_heartbeat_timeout": _HEARTBEAT, "--heartbeat_timeout": _HEARTBEAT,
    "--test": "none: `--dry_run` trains some steps and writes nothing",
}
CREATE_TFRECORDS = {
    "--encoder_path": "`--encoder`", "--use_gpt2_tokenizer": "`--encoder` gpt2",
    "--base_dir": "`--input_dir`",
    "--wikitext-detokenize": "`--wikitext_detokenize`, which turns it on; it is off by default",
    "--normalize-with-ftfy": "`--ftfy`",
    "--normalize-with-wikitext-detokenize": "`--wikitext_detokenize`",
}
TRAIN_TOKENIZER = {
    "--base_dir": "the corpus: the first arguments, without a flag",
    "--output_dir": "`--out`, a file that is not replaced without `--overwrite`",
    "--file_type": "none: a file's name says what it is",
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
