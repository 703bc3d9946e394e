"""What every encoder offers, and the hash that datasets and checkpoints carry."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from configs.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer


class Encoder:
    """Text to token ids and back.

    Subclasses set the attributes and define `encode` and `decode`. An encoder is pickled as its
    spec, so a worker process builds its own from the same files.

    Attributes:
        spec: what `encoders.load` takes to get this encoder again.
        name: the kind: "byte", "char", "clip", "gpt2" or "tokenizers".
        n_vocab: ids are 0 … n_vocab - 1, the end-of-text id among them.
        eos_id: the end-of-text id.
        lossless: whether decode(encode(text)) == text for every text that is valid Unicode.
        hash: 16 hexadecimal digits over everything in the encoder's files that decides ids.
    """

    spec: str
    name: str
    n_vocab: int
    eos_id: int
    lossless: bool
    hash: str

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with no special ids around it."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        encode = self.encode
        return [encode(text) for text in texts]

    @property
    def typecode(self) -> str:
        """Of an array.array that holds ids in few bytes: "H", two of them, or "i", four."""
        return "H" if self.n_vocab <= 1 << 16 else "i"

    def encode_packed(self, texts: Sequence[str]) -> tuple[array, list[int]]:
        """The ids of all texts one after the other, and how many each has.

        Returns:
            (an array.array of `typecode`, a number for each text).
        """
        ids = self.encode_batch(texts)
        return array(self.typecode, chain.from_iterable(ids)), list(map(len, ids))

    def decoded_sizes(self, ids: "np.ndarray", lengths: Sequence[int]) -> list[int]:
        """The bytes of decode(ids) as UTF-8 of each of some texts; the arguments' are packed."""
        sizes, begin = [], 0
        for length in lengths:
            sizes.append(len(self.decode(ids[begin:begin + length].tolist()).encode("utf-8")))
            begin += length
        return sizes

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; the end-of-text id gives nothing, invalid UTF-8 gives U+FFFD.

        Raises:
            UserError: an id is outside the vocabulary.
        """
        raise NotImplementedError

    def token_bytes(self) -> list[bytes] | None:
        """The UTF-8 of each id, where a text is that of its ids one after the other; else None."""
        return None

    def to_tokenizers(self) -> "Tokenizer":
        """The encoder as Hugging Face's library has it, which a tokenizer.json holds.

        Its ids are the same, but for a text that spells a special token, which is that token there.
        """
        raise NotImplementedError

    def __repr__(self):
        return f"encoders.load({self.spec!r})"

    def __reduce__(self):
        from encoders import load

        return load, (self.spec,)

    def _unknown_id(self, ids: Iterable[int]) -> UserError:
        """The error for ids of which at least one is outside the vocabulary."""
        bad = next((int(i) for i in ids if not 0 <= i < self.n_vocab), None)
        return UserError(f"token id {bad} is not one of the {self.n_vocab} ids of encoder "
                         f"{self.spec!r}: decode with the encoder the tokens were made with")


def digest(*parts: Any) -> str:
    """16 hexadecimal digits of a SHA-256 over JSON-like parts, the same on every machine."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def join_surrogates(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates as U+FFFD, so UTF-8 can hold it.

    JSON escapes such as "\\ud83d" put surrogates into Python strings; they are no characters.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
