"""UTF-8 bytes as ids 0 … 255, end of text 256. Lossless; needs no file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from encoders import bpe
from encoders.base import Encoder, digest, join_surrogates
from encoders.specials import EOS_NAMES

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class ByteEncoder(Encoder):
    """The bytes of the text; a lone surrogate becomes U+FFFD."""

    name = spec = "byte"
    n_vocab = 257
    eos_id = 256
    lossless = True
    hash = digest("byte", 257)

    def encode(self, text: str) -> list[int]:
        try:
            return list(text.encode("utf-8"))
        except UnicodeEncodeError:
            return list(join_surrogates(text).encode("utf-8"))

    def decode(self, ids: Sequence[int]) -> str:
        try:
            data = bytes([i for i in ids if i != self.eos_id])
        except ValueError:
            raise self._unknown_id(ids) from None
        return data.decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes]:
        return [*(bytes([byte]) for byte in range(256)), b""]

    def to_tokenizers(self) -> "Tokenizer":
        vocab = {symbol: byte for byte, symbol in enumerate(bpe.byte_symbols())}
        return bpe.byte_level({**vocab, EOS_NAMES[0]: self.eos_id}, [], EOS_NAMES[0], words=False)


def load(argument: str) -> ByteEncoder:
    """The byte encoder; it takes no argument."""
    return ByteEncoder()
