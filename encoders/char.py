"""Characters as ids: a tokenizer.json whose vocabulary is single characters.

Lossless for texts of its characters; any other character is refused. The ids follow the
characters' code points, and the end of text comes last.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from configs.errors import UserError
from encoders import files
from encoders.base import Encoder, digest, join_surrogates

EOS = "<|endoftext|>"

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class CharEncoder(Encoder):
    """One id per character; the end of text decodes to nothing.

    Args:
        spec: what `encoders.load` was given.
        vocab: character → id, with one longer entry, the end of text.
        source: the file's name, for messages.
    """

    name = "char"
    lossless = True

    def __init__(self, spec: str, vocab: dict[str, int], source: str):
        longer = [symbol for symbol in vocab if len(symbol) != 1]
        if longer != [EOS]:
            raise UserError(f"{source} is no vocabulary of characters and {EOS}: make one with "
                            "datasets/train_tokenizer.py --tokenizer char")
        self.spec = spec
        self.eos_id = vocab[EOS]
        self.n_vocab = max(vocab.values()) + 1
        self.hash = digest("char", vocab)
        self._source = source
        self._ids = {symbol: number for symbol, number in vocab.items() if symbol != EOS}
        self._chars = {number: symbol for symbol, number in self._ids.items()}
        self._chars[self.eos_id] = ""

    def encode(self, text: str) -> list[int]:
        try:
            return list(map(self._ids.__getitem__, text))
        except KeyError as error:
            char = error.args[0]
            raise UserError(f"character {char!r} (U+{ord(char):04X}) is not among the "
                            f"{len(self._ids)} of {self._source}: train it on this text too, or "
                            "use the byte encoder") from None

    def decode(self, ids: Sequence[int]) -> str:
        try:
            return "".join([self._chars[i] for i in ids])
        except KeyError:
            raise self._unknown_id(ids) from None


    def token_bytes(self) -> list[bytes]:
        return [self._chars.get(number, "").encode("utf-8") for number in range(self.n_vocab)]

    def to_tokenizers(self) -> "Tokenizer":
        return _tokenizer({**self._ids, EOS: self.eos_id})


def _tokenizer(vocab: dict[str, int]) -> "Tokenizer":
    """A vocabulary of characters and the end of text as Hugging Face's library has it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))  # absent: unknown is an error
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True, normalized=False)])
    return tokenizer


def train(texts: Iterable[str]) -> "Tokenizer":
    """A `tokenizers.Tokenizer` of all characters that occur in the texts.

    Raises:
        UserError: the texts are empty.
    """
    chars: set[str] = set()
    for text in texts:
        chars.update(text)
    if any(0xD800 <= ord(char) < 0xE000 for char in chars):  # JSON can hold them, UTF-8 cannot
        chars = set(join_surrogates("".join(sorted(chars))))
    if not chars:
        raise UserError("there is no text to take characters from")
    return _tokenizer({symbol: number for number, symbol in enumerate([*sorted(chars), EOS])})


def is_char(parsed: dict) -> bool:
    """Whether a parsed tokenizer.json is a vocabulary of characters."""
    model = parsed.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    return (isinstance(model, dict) and isinstance(vocab, dict) and model.get("type") == "WordLevel"
            and parsed.get("normalizer") is None
            and [symbol for symbol in vocab if len(symbol) != 1] == [EOS])


def load(argument: str) -> CharEncoder:
    """The encoder of a file that `train` made.

    Raises:
        UserError: no file is named, or it is of another kind.
    """
    if not argument:
        raise UserError("encoder char needs its vocabulary: char:FILE.json, made by "
                        "datasets/train_tokenizer.py --tokenizer char")
    model = files.parse_json(files.read_bytes(argument), argument).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict):
        raise UserError(f"{argument} is no tokenizer.json with a vocabulary of characters")
    return CharEncoder(f"char:{argument}", vocab, argument)
