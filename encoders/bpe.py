"""Byte-level BPE for encoders that cut text into words with a regular expression.

The words of a text repeat, so a dictionary from words to ids answers nearly all of them; the
`tokenizers` library merges a word when it is first seen. This is several times faster than
sending whole texts through the library, which builds offsets and an object per token.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from configs.errors import UserError
from encoders.base import Encoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A word's entry takes some 250 bytes, so the dictionary stays under about 64 MB.
MAX_WORDS = 1 << 18
# Longer words (base64, DNA, rules of dashes) hardly repeat and would fill the memory.
MAX_WORD_LENGTH = 64


def byte_symbols() -> list[str]:
    """The character that stands for each byte 0 … 255 in the files of byte-level BPEs.

    Bytes that Latin-1 prints stand for themselves; the 68 others, which would be blanks or
    control characters, are U+0100, U+0101, … in order of the byte.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class Words(dict):
    """Ids of words: a dictionary that fills itself.

    Args:
        vocab: symbol → id.
        merges: pairs of symbols, best first.
        end_of_word: suffix of the last symbol of a word; "" if there is none.
        fixed: words whose ids are given rather than merged.
        source: the files' name in error messages.

    Raises:
        UserError: a merge or a byte is not in the vocabulary.
    """

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], *,
                 end_of_word: str = "", fixed: dict[str, tuple[int, ...]] | None = None,
                 source: str):
        from tokenizers import models

        super().__init__(fixed or {})
        self._fixed = dict(self)
        symbols = byte_symbols()
        # The library drops a symbol it does not know; here every byte must have an id.
        missing = [byte for byte, symbol in enumerate(symbols) if symbol + end_of_word not in vocab]
        if missing:
            raise UserError(f"{source}: the vocabulary has no symbol for byte {missing[0]}: "
                            "not a byte-level BPE")
        try:
            suffix = {"end_of_word_suffix": end_of_word} if end_of_word else {}
            self._bpe = models.BPE(vocab=vocab, merges=merges, cache_capacity=0, **suffix)
        except Exception as error:  # the library raises bare exceptions
            raise UserError(f"{source}: vocabulary and merges do not fit: {error}") from None
        self._symbols = dict(enumerate(symbols))

    def __missing__(self, word: str) -> tuple[int, ...]:
        symbols = word.encode("utf-8").decode("latin-1").translate(self._symbols)
        ids = tuple([token.id for token in self._bpe.tokenize(symbols)])
        if len(word) <= MAX_WORD_LENGTH:
            self[word] = ids
        return ids

    def trim(self) -> None:
        """Forgets all words if there are too many; to be called now and then."""
        if len(self) > MAX_WORDS:
            self.clear()
            self.update(self._fixed)


def token_bytes(vocab: dict[str, int], n_vocab: int, *, end_of_word: str = "",
                silent: Sequence[str] = ()) -> list[bytes]:
    """The bytes of each id 0 … n_vocab - 1.

    Args:
        vocab: symbol → id.
        n_vocab: number of ids; those with no symbol have no bytes.
        end_of_word: suffix that is decoded to a blank.
        silent: symbols that are decoded to nothing.
    """
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    table = [b""] * n_vocab
    for symbol, number in vocab.items():
        if symbol in silent:
            continue
        ends = bool(end_of_word) and symbol.endswith(end_of_word)
        body = symbol[:-len(end_of_word)] if ends else symbol
        if all(char in byte_of for char in body):
            table[number] = bytes(byte_of[char] for char in body) + (b" " if ends else b"")
        else:  # a special token: shown as it is written
            table[number] = symbol.encode("utf-8")
    return table


def byte_level(vocab: dict[str, int], merges: list[tuple[str, str]], eos: str,
               words: bool = True) -> "Tokenizer":
    """A byte-level BPE as Hugging Face's library has it.

    Args:
        vocab: symbol → id.
        merges: pairs of symbols, best first.
        eos: the end-of-text token.
        words: whether GPT-2's pattern cuts text into words.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(eos, special=True, normalized=False)])
    return tokenizer


class WordEncoder(Encoder):
    """What CLIP's and GPT-2's encoders share: words by a pattern, ids by a dictionary.

    Args:
        words: ids of words.
        table: bytes of ids.
        ascii_words: the pattern that cuts ASCII text; no pattern may skip or join what the
            general one does not.
        find_words: gives `findall` of the general pattern; called when first needed.
    """

    def __init__(self, words: Words, table: list[bytes], ascii_words: re.Pattern,
                 find_words: Callable[[], Callable[[str], list[str]]]):
        self._words = words
        self._bytes = table
        self._ascii_words = ascii_words.findall
        self._find_words = find_words

    def _ids(self, text: str) -> list[int]:
        find = self._ascii_words if text.isascii() else self._find_words()
        self._words.trim()
        return list(chain.from_iterable(map(self._words.__getitem__, find(text))))

    def token_bytes(self) -> list[bytes]:
        return self._bytes

    def decode(self, ids: Sequence[int]) -> str:
        try:
            if min(ids, default=0) >= 0:
                return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")
        except IndexError:
            pass
        raise self._unknown_id(ids)
