"""CLIP's byte-pair encoding: the ids of OpenAI's SimpleTokenizer, text for text.

What the original does: ftfy mends each line, HTML entities are resolved twice, blanks are
squeezed, everything is lower-cased, a pattern cuts words (blanks vanish), and each word's UTF-8
bytes are merged, with "</w>" at its end. So it is lossy: case, blanks and line breaks are gone.

What is done here differently, with the same ids: lines of plain ASCII skip ftfy, blanks are left
as they are, ASCII text is cut by a simpler pattern, what was cut is remembered (see `bpe`). Letters
and digits are those of the installed `regex`, small letters Python's, mending ftfy's; the hash
covers the merges and these rules, not the Unicode tables of the installed versions.

Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision.
"""

import functools
import html
import re
from typing import TYPE_CHECKING

from configs.errors import UserError
from encoders import bpe, files
from encoders.base import digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

N_VOCAB = 49408
N_MERGES = N_VOCAB - 2 * 256 - 2  # a symbol for each byte, inside and at the end of a word; 2 ends
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = {"open_clip": "open_clip_torch", "clip": "clip-anytorch"}  # import name: distribution

# ftfy may change a line that holds anything but these: non-ASCII, "&", control characters.
_DIRTY = re.compile(r"[^\t\n\x0c\r -%'-~]").search
# What Python's split takes for blanks, and the patterns do not.
_NO_BLANKS = re.compile("[\x1c-\x1f]").search
# The words of clean, lower-cased text. A special token's spelling is one word, as in the original.
_ENDS = re.escape(START) + "|" + re.escape(END)
_SHORT = "'(?:[stmd]|re|ve|ll)"
_ASCII_WORDS = re.compile(rf"[a-z]+|{_ENDS}|{_SHORT}|[0-9]|[^\sa-z0-9]+", re.ASCII)


@functools.cache
def _find_words():
    """`findall` of the pattern for text that is not ASCII."""
    import regex

    # The brackets matter: with IGNORECASE a bracketed class has other members (U+0345).
    return regex.compile(rf"{_ENDS}|{_SHORT}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+",
                         regex.IGNORECASE).findall


class ClipEncoder(bpe.WordEncoder):
    """Exactly OpenAI's ids; n_vocab 49408, start of text 49406, end of text 49407.

    `encode` adds neither start nor end; but a text that spells "<|startoftext|>" or
    "<|endoftext|>", in any case, gets their ids there, because the original does so.
    `decode` gives a blank after each word, as the original does; start and end give nothing.

    Args:
        spec: what `encoders.load` was given.
        merges: CLIP's merges, best first.
        source: where they are from, for messages.
    """

    name = "clip"
    n_vocab = N_VOCAB
    sot_id = N_VOCAB - 2
    eos_id = N_VOCAB - 1
    lossless = False

    def __init__(self, spec: str, merges: list[tuple[str, str]], source: str):
        if len(merges) < N_MERGES:
            raise UserError(f"{source} holds {len(merges)} merges, CLIP's file "
                            f"{MERGES_FILE} more than {N_MERGES}: give that one")
        merges = merges[:N_MERGES]  # the file goes on; the original stops here
        self.spec = spec
        self.hash = digest("clip", merges)
        # Ids follow the symbols' code points, but those that stand for themselves come first.
        symbols = sorted(bpe.byte_symbols())
        ordered = symbols + [symbol + "</w>" for symbol in symbols]
        ordered += [first + second for first, second in merges] + [START, END]
        vocab = {symbol: number for number, symbol in enumerate(ordered)}
        self._files = vocab, merges
        words = bpe.Words(vocab, merges, end_of_word="</w>", source=source,
                          fixed={START: (self.sot_id,), END: (self.eos_id,)})
        table = bpe.token_bytes(vocab, N_VOCAB, end_of_word="</w>", silent=(START, END))
        super().__init__(words, table, _ASCII_WORDS, _find_words)

    def _packed(self, text: str) -> bytes:
        # What Python's strings know of themselves is found faster than by the pattern.
        clean_line = text.isascii() and text.isprintable() and "&" not in text
        if not clean_line and _DIRTY(text):
            text = clean(text)
            if _NO_BLANKS(text):
                return self._ids(text.lower()).tobytes()
        # No word has a blank, nor looks beyond one.
        return b"".join(map(self._pieces.__getitem__, text.lower().split()))

    def to_tokenizers(self) -> "Tokenizer":
        """As Hugging Face's CLIPTokenizer: ftfy's mending and HTML entities are left out."""
        from tokenizers import (
            AddedToken,
            Regex,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
        )

        vocab, merges = self._files
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(rf"{_SHORT}|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"),
                                 "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        # The symbol of a blank.
        tokenizer.decoder = decoders.Sequence([
            decoders.Replace("</w>", bpe.byte_symbols()[ord(" ")]), decoders.ByteLevel()])
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)
                                      for token in (START, END)])
        return tokenizer


def clean(text: str) -> str:
    """Mends a text with ftfy and resolves HTML entities twice; blanks stay as they are.

    ftfy works line by line and carries one thing on: once a line holds "<", the text may be
    HTML, and ftfy leaves entities alone from there. So only lines that need it are given to it.
    """
    if not _DIRTY(text):
        return text
    import ftfy

    markup = ftfy.TextFixerConfig(unescape_html=False, explain=False)
    lines = text.split("\n")
    in_markup = False
    for number, line in enumerate(lines):
        if _DIRTY(line):
            lines[number] = ftfy.fix_text(line, markup) if in_markup else ftfy.fix_text(line)
        in_markup = in_markup or "<" in line  # ftfy itself looks for it within the line
    text = "\n".join(lines)
    if "&" in text:
        text = html.unescape(html.unescape(text))
    return text


def load(argument: str) -> ClipEncoder:
    """CLIP's encoder, from a merges file or from an installed package that holds one.

    Raises:
        UserError: no merges are found; says how to get them.
    """
    if argument:
        return ClipEncoder(f"clip:{argument}",
                           files.parse_merges(files.read_bytes(argument), argument), argument)
    for package in PACKAGES:
        data = files.package_bytes(package, MERGES_FILE)
        if data is not None:
            source = f"{package}/{MERGES_FILE}"
            return ClipEncoder("clip", files.parse_merges(data, source), source)
    raise UserError(f"encoder clip needs {MERGES_FILE}: pip install --no-deps "
                    f"{PACKAGES['open_clip']} (or {PACKAGES['clip']}), or give clip:PATH "
                    "(datasets/download.py clip fetches it)")
