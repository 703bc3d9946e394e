"""Encoders: text to token ids and back, from local files or from what a package ships.

`load` takes a spec:

    byte                        UTF-8 bytes
    char:FILE.json              characters, trained by datasets/train_tokenizer.py
    clip, clip:MERGES.txt.gz    CLIP's BPE, exactly OpenAI's
    gpt2, gpt2:DIR              GPT-2's BPE
    FILE.json, FILE.json#TOKEN  any Hugging Face tokenizer.json; TOKEN ends a text

An encoder is one file here with a function `load(argument)`, and a line in `KINDS`.
"""

import difflib
import importlib

from configs.errors import UserError
from encoders.base import Encoder

# kind: (module, whether the spec may go on after a colon)
KINDS = {"byte": ("encoders.byte", False), "char": ("encoders.char", True),
         "clip": ("encoders.clip", True), "gpt2": ("encoders.gpt2", True)}

__all__ = ["Encoder", "KINDS", "load"]


def load(spec: str) -> Encoder:
    """The encoder of a spec (see above).

    Raises:
        UserError: the spec or a file it names cannot be used.
    """
    kind, colon, argument = spec.partition(":")
    if kind in KINDS:
        module, takes_argument = KINDS[kind]
        if colon and not (argument and takes_argument):
            raise UserError(f"encoder {spec!r}: write {kind}" +
                            (f" or {kind}:PATH" if takes_argument else ", with nothing after it"))
        return importlib.import_module(module).load(argument)
    if spec.endswith(".json") or ".json#" in spec:
        return importlib.import_module("encoders.tokenizer_json").load(spec)
    near = difflib.get_close_matches(kind, KINDS, 1)
    raise UserError(f"unknown encoder {spec!r}: " + (f"did you mean {near[0]!r}? " if near else "")
                    + f"there are {', '.join(KINDS)}, and paths that end in .json")
