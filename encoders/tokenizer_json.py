"""Any Hugging Face tokenizer.json, through the `tokenizers` library."""

import json
import multiprocessing
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from configs.errors import UserError
from encoders import bpe, char, files
from encoders.base import Encoder, digest, join_surrogates
from encoders.specials import find_eos

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Texts that tokenizers are known to change: blanks at either end and in runs, line breaks,
# capitals, accents (composed and not), digits, other scripts, emoji, control characters.
PROBES = ("a", " a", "  a  b ", "\n", "a\n\n b\r\n\tc ", "The QUICK, brown!? don't 12345 3.14",
          "caf\u00e9 cafe\u0301 \ufb01 \u00bd \u212b", "\u4f60\u597d\uff0c\u0434\u0430 \u0639",
          "\U0001f469\u200d\U0001f4bb\ufe0f \U00013000", "\u00a0x\u2003y\u3000\u200b",
          "\x00\x01\x7f\x85",
          "\u2581_\u0120\u010a <s> </s> [SEP] [UNK] <|endoftext|> ##a</w> @@", "")


class TokenizersEncoder(Encoder):
    """A tokenizer.json without truncation, padding, BPE dropout and added start or end tokens.

    Special tokens spelled in a text are text. They decode to nothing. A lone surrogate becomes
    U+FFFD. `lossless` is true only for byte-level BPEs that change nothing on the way, as far
    as the file's parts and a set of hard strings tell.

    Args:
        spec: what `encoders.load` was given.
        parsed: the file's JSON.
        source: the file's name, for messages.
        eos: the end-of-text token; "" looks for one of a usual name.
    """

    name = "tokenizers"

    def __init__(self, spec: str, parsed: dict, source: str, eos: str = ""):
        # A worker process has siblings on the other cores.
        if multiprocessing.parent_process() is not None:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        self.spec = spec
        parsed = _plain(parsed)
        try:
            tokenizer = Tokenizer.from_str(json.dumps(parsed))
            end = find_eos(tokenizer.token_to_id, source, eos)
            self.eos_id = cast(int, tokenizer.token_to_id(end))
            if eos or not tokenizer.get_added_tokens_decoder().get(self.eos_id):
                tokenizer.add_special_tokens([tokenizer.id_to_token(self.eos_id)])
        except UserError:
            raise
        except Exception as error:  # the library raises bare exceptions
            raise UserError(f"{source} is no tokenizer.json the tokenizers library can read: "
                            f"{error}") from None
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._set_specials()
        self._joins_bytes = (parsed.get("decoder") or {}).get("type") == "ByteLevel"
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.n_vocab = max(vocab.values()) + 1
        self.hash = digest("tokenizers", _deciding(parsed), self.eos_id)
        self.lossless = _keeps_everything(parsed, vocab) and all(
            self.decode(self.encode(probe)) == probe for probe in PROBES)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # which of them depends on the release
            texts = [join_surrogates(text) for text in texts]
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # such as an unknown word without a token for it
            raise UserError(f"encoder {self.spec}: {error}") from None
        batch = [encoding.ids for encoding in encodings]
        for i, text in enumerate(texts):
            if self._spelled(text) and not self._special_ids.isdisjoint(batch[i]):
                batch[i] = self._encode_apart(text)
        return batch

    def decode(self, ids: Sequence[int]) -> str:
        ids = [int(i) for i in ids]
        if ids and not (min(ids) >= 0 and max(ids) < self.n_vocab):
            raise self._unknown_id(ids)
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def token_bytes(self) -> list[bytes] | None:
        if not self._joins_bytes:
            return None
        return bpe.token_bytes(
            self._tokenizer.get_vocab(with_added_tokens=True), self.n_vocab,
            silent=[token.content for token in self._tokenizer.get_added_tokens_decoder().values()
                    if token.special])

    def to_tokenizers(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self._tokenizer.to_str())

    def _set_specials(self):
        """Notes the tokens that no text may give; the unknown word's token is none of them."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        tokens = {number: token.content
                  for number, token in self._tokenizer.get_added_tokens_decoder().items()
                  if token.special and token.content != unknown}
        self._special_ids = frozenset(tokens)
        self._spelled = re.compile("|".join(map(re.escape, tokens.values()))).search

    def _encode_apart(self, text: str) -> list[int]:
        """Ids of a text in which a special token's spelling is a word of the model's own.

        Unigram and word models have such entries. The spelling is cut in two.
        """
        ids, rest = [], text
        while match := self._spelled(rest):
            cut = match.start() + max(1, len(match.group()) // 2)
            ids += self._tokenizer.encode(rest[:cut], add_special_tokens=False).ids
            rest = rest[cut:]
        return ids + self._tokenizer.encode(rest, add_special_tokens=False).ids


def _plain(parsed: dict) -> dict:
    """The JSON without what has no place in a stream of tokens."""
    model = parsed.get("model")
    if not isinstance(model, dict):
        return parsed
    if model.get("dropout"):  # random merges: ids must be a function of the text
        model = model | {"dropout": None}
    return parsed | {"model": model, "truncation": None, "padding": None, "post_processor": None}


def _deciding(parsed: dict) -> dict:
    """The parts of the JSON that decide ids, in one spelling of those that have two."""
    model = dict(parsed["model"])
    if isinstance(model.get("merges"), list):
        model["merges"] = [pair.split(" ") if isinstance(pair, str) else pair
                           for pair in model["merges"]]
    return {"model": model, "normalizer": parsed.get("normalizer"),
            "pre_tokenizer": parsed.get("pre_tokenizer"),
            "added_tokens": parsed.get("added_tokens")}


def _keeps_everything(parsed: dict, vocab: dict[str, int]) -> bool:
    """Whether the file is a byte-level BPE none of whose parts changes or drops text."""
    steps = parsed.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    splits, last = steps[:-1], steps[-1] if steps else {}
    return (parsed["model"].get("type") == "BPE"
            and not parsed["model"].get("end_of_word_suffix")
            and not parsed["model"].get("continuing_subword_prefix")
            and parsed.get("normalizer") is None
            and last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
            and all(step.get("type") in ("Split", "Digits", "Punctuation")
                    and step.get("behavior", "Isolated") != "Removed" for step in splits)
            and (parsed.get("decoder") or {}).get("type") == "ByteLevel"
            and all(symbol in vocab for symbol in bpe.byte_symbols())
            and not any(token.get("lstrip") or token.get("rstrip")
                        for token in parsed.get("added_tokens") or ()))


def load(argument: str) -> Encoder:
    """The encoder of `path.json` or `path.json#TOKEN`; a file of characters gives `char`'s.

    Raises:
        UserError: the file cannot be read or has no end-of-text token.
    """
    path, mark, eos = argument.partition(".json#")
    path += ".json" if mark else ""
    parsed = files.parse_json(files.read_bytes(path), path)
    if char.is_char(parsed) and eos in ("", char.EOS):
        return char.CharEncoder(argument, parsed["model"]["vocab"], path)
    return TokenizersEncoder(argument, parsed, path, eos)
