"""UTF-8 bytes as ids 0 … 255, end of text 256. Lossless; needs no file."""

from collections.abc import Sequence

from encoders.base import Encoder, digest, join_surrogates


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


def load(argument: str) -> ByteEncoder:
    """The byte encoder; it takes no argument."""
    return ByteEncoder()
