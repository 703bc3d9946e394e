"""Samples as they grow on the host: their tokens, the window that the model sees, and their end."""

import dataclasses
import logging

from configs.errors import UserError


@dataclasses.dataclass
class Completion:
    """One sample.

    Attributes:
      prompt: token ids it begins with.
      number: which of the prompt's samples it is, from 0.
      head: the prompt's text.
      tokens: the new token ids, without the end of text, up to the end of a stop string.
      text: the new text, without the stop string.
      reason: why it ended: "eos", "stop" or "length"; "" while it goes on.
    """

    prompt: list
    number: int
    head: str
    tokens: list = dataclasses.field(default_factory=list)
    text: str = ""
    reason: str = ""


class Row:
    """A sample's row of a batch.

    Args:
      sample: the Completion to fill.
      limit: most new tokens.
      n_ctx: the model's window.

    Attributes:
      sample: the same.
      limit: the same.
      window: the tokens that the model sees, the newest last.
    """

    def __init__(self, sample, limit, n_ctx):
        self.sample, self.limit, self._n_ctx = sample, limit, n_ctx
        self.window = sample.prompt[-n_ctx:]
        if len(sample.prompt) > n_ctx:
            logging.warning("a prompt of %d tokens is longer than n_ctx = %d: the model sees its "
                            "last %d", len(sample.prompt), n_ctx, n_ctx)

    def slide(self):
        """Keeps the later half of a window that has overflown; returns whether it had."""
        full = len(self.window) > self._n_ctx
        if full:
            self.window = self.window[-max(1, self._n_ctx // 2):]
        return full

    def steps(self):
        """How many tokens it can take before it slides or ends."""
        return min(self._n_ctx + 1 - len(self.window), self.limit - len(self.sample.tokens))

    def take(self, new, encoder, stop):
        """Takes new tokens, of which the last may be the end of text, and sees whether it ends.

        Args:
          new: token ids, at most `steps()`.
          encoder: the encoder.
          stop: texts that end a sample.
        """
        sample, before = self.sample, self.sample.tokens
        if new and new[-1] == encoder.eos_id:
            sample.reason, new = "eos", new[:-1]
        self._set(before + new, encoder)
        if any(s in sample.text for s in stop):
            sample.reason = "stop"
            for end in range(1, len(new) + 1):
                self._set(before + new[:end], encoder)
                found = [sample.text.index(s) for s in stop if s in sample.text]
                if found:
                    sample.text = sample.text[:min(found)]
                    break
        self.window = self.window + new
        if not sample.reason and len(sample.tokens) >= self.limit:
            sample.reason = "length"

    def _set(self, tokens, encoder):
        """Sets the new tokens, and as text what they add to the prompt's.

        They are decoded together with the prompt: some encoders join tokens by spaces.
        """
        sample = self.sample
        sample.tokens = tokens
        whole = encoder.decode(sample.prompt + tokens)
        if whole.startswith(sample.head):
            sample.text = whole[len(sample.head):]
        else:
            sample.text = encoder.decode(tokens)


def encode_prompt(encoder, prompt):
    """Token ids of a prompt; never none.

    Raises:
      UserError: the encoder does not know a character, or finds nothing in the prompt.
    """
    if not prompt:
        start = "\n" if encoder.name == "char" else ""
        try:
            return encoder.encode(start) or [encoder.eos_id]
        except UserError:
            return [encoder.eos_id]
    try:
        tokens = encoder.encode(prompt)
    except UserError as error:
        raise UserError(f"prompt: {error}") from error
    if not tokens:
        raise UserError(f"prompt: encoder {encoder.spec} finds no token in {prompt[:40]!r}; give "
                        "some text, or no prompt at all")
    return tokens
