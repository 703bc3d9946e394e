"""Byte-level BPE for encoders that cut text into words with a regular expression.

The words of a text repeat, so dictionaries answer nearly all of them. A text is cut at blanks,
several times faster than by the expression; a dictionary has the ids of such a piece, as bytes that
are only joined. A new piece is cut into words by the expression, another dictionary has the ids of
words, and the `tokenizers` library merges a word when it is first seen. Sending whole texts through
the library would build offsets and an object per token.
"""

import functools
import re
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from configs.errors import UserError
from encoders.base import Encoder

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

# A word's or piece's entry takes some 250 bytes, so each dictionary stays under about 64 MB.
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


class Remembered(dict):
    """What is found for texts: a dictionary that fills itself, as far as it has room.

    Args:
        find: from a text to what the dictionary has for it.
        fixed: what is given rather than found, and never forgotten.
    """

    def __init__(self, find: Callable[[str], Any], fixed: dict[str, Any] | None = None):
        super().__init__(fixed or {})
        self._find, self._fixed = find, dict(self)

    def __missing__(self, text: str) -> Any:
        found = self._find(text)
        if len(text) <= MAX_WORD_LENGTH and len(self) < MAX_WORDS:
            self[text] = found
        return found

    def trim(self) -> None:
        """Forgets all that was found if there is no room for more; to be called now and then."""
        if len(self) >= MAX_WORDS:
            self.clear()
            self.update(self._fixed)


class Words(Remembered):
    """Ids of words.

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

        super().__init__(self._merged, fixed)
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

    def _merged(self, word: str) -> tuple[int, ...]:
        symbols = word.encode("utf-8").decode("latin-1").translate(self._symbols)
        return tuple([token.id for token in self._bpe.tokenize(symbols)])


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
        self._pieces = Remembered(self._bytes_of_piece)

    def encode(self, text: str) -> list[int]:
        self._trim()
        return array(self.typecode, self._packed(text)).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return list(map(self.encode, texts))

    def encode_packed(self, texts: Sequence[str]) -> tuple[array, list[int]]:
        self._trim()
        packed = list(map(self._packed, texts))
        ids = array(self.typecode, b"".join(packed))
        return ids, [len(piece) // ids.itemsize for piece in packed]

    def decoded_sizes(self, ids: "np.ndarray", lengths: Sequence[int]) -> list[int]:
        import numpy as np

        ends = np.cumsum([0, *lengths])
        totals = np.concatenate([[0], np.cumsum(self._sizes[ids])])[ends]
        found = np.diff(totals).tolist()
        for number, size in enumerate(found):
            if size >= 1 << 40:
                text = self.decode(ids[ends[number]:ends[number + 1]].tolist())
                found[number] = len(text.encode("utf-8"))
        return found

    @functools.cached_property
    def _sizes(self) -> "np.ndarray":
        """The size of the text of each id, huge where it is not one by itself: int64 [n_vocab]."""
        import numpy as np

        # Bytes that are not ASCII may join others, or come to U+FFFD.
        return np.array([len(b) if b.isascii() else 1 << 40 for b in self._bytes])

    def _packed(self, text: str) -> bytes:
        """The ids of a text as the bytes of an array."""
        raise NotImplementedError

    def _bytes_of_piece(self, piece: str) -> bytes:
        """The ids of one of `_pieces`, as the bytes of an array."""
        return self._of_piece(piece).tobytes()

    def _of_piece(self, piece: str) -> array:
        """The ids of one of `_pieces`."""
        return self._ids(piece)

    def _ids(self, text: str) -> array:
        find = self._ascii_words if text.isascii() else self._find_words()
        return array(self.typecode,
                     chain.from_iterable(map(self._words.__getitem__, find(text))))

    def _trim(self) -> None:
        """Forgets pieces or words if there is no room for more; to be called now and then."""
        self._words.trim()
        self._pieces.trim()

    def token_bytes(self) -> list[bytes]:
        return self._bytes

    def decode(self, ids: Sequence[int]) -> str:
        try:
            if min(ids, default=0) >= 0:
                return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")
        except IndexError:
            pass
        raise self._unknown_id(ids)
