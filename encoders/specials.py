"""Which token of a vocabulary ends a text."""

from collections.abc import Callable

from configs.errors import UserError

# Usual names, the clearest first: BERT's [SEP] also stands between sentences.
EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<EOS>",
             "<|im_end|>", "<end_of_text>", "[SEP]")


def find_eos(lookup: Callable[[str], int | None], source: str, override: str = "") -> str:
    """The end-of-text token's spelling.

    Args:
        lookup: gives a token's id, or None.
        source: the file's name, for messages.
        override: the token to take instead of a usual one.

    Raises:
        UserError: the vocabulary has no such token.
    """
    if override:
        if lookup(override) is None:
            raise UserError(f"{source} has no token {override!r} to end a text with")
        return override
    for name in EOS_NAMES:
        if lookup(name) is not None:
            return name
    raise UserError(f"{source} has no end-of-text token of a usual name ({', '.join(EOS_NAMES)}): "
                    "name it after the path, as in tokenizer.json#TOKEN")
