"""Keeps secrets out of whatever is written: logs, error lines, saved configs, TensorBoard.

All text that a run writes of itself goes through `hidden`; what counts as a secret is here alone.
"""

import logging
import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any

MARK = "[hidden]"

# Variables of the environment that hold a secret, by the end of their name (HF_TOKEN,
# WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, …). Shorter values are words, and not secrets.
_VARIABLE = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|ACCESS_KEY_ID|"
                       r"PRIVATE_KEY|CREDENTIALS_JSON)$", re.IGNORECASE)
_LEAST = 8

_NAMES = (r"[\w.-]*(?:token|secret|passw(?:or)?d|signature|credential|api[_-]?key|access[_-]?key|"
          r"session)[\w.-]*|sig|key|pwd|auth")
# (what is a secret, what is written for it); \1 is what stays in front of it.
_RULES = [(re.compile(pattern, re.IGNORECASE | re.DOTALL), rf"\1{MARK}") for pattern in (
    # https://user:password@host/…
    r"(\b[a-z][a-z0-9+.-]*://)[^/?#\s\"']+(?=@)",
    # …?token=… and the signatures of signed URLs
    rf"([?&;](?:{_NAMES})=)[^&#\s\"']+",
    r"((?:api[_-]?key|(?:access|auth|bearer)[_-]?token|client[_-]?secret|secret[_-]?key|password)"
    r"[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+",
    # headers
    r"((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?)[^\s\"',}]+",
    r"(\bbearer\s+)[\w.~+/=-]{8,}",
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END|$)")]
# Hugging Face's, GitHub's, Google's, Amazon's and others' tokens, by their shape.
_RULES += [(re.compile(rf"()(?<![\w-])(?:{pattern})"), MARK) for pattern in (
    r"hf_\w{20,}", r"gh[pousr]_\w{20,}", r"github_pat_\w{20,}", r"sk-[\w-]{20,}",
    r"ya29\.[\w.-]{10,}", r"AIza[\w-]{30,}", r"(?:AKIA|ASIA)[A-Z0-9]{16}", r"xox[abp]-[\w-]{10,}",
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}")]


def hidden(text: str) -> str:
    """A text with MARK for each secret in it: of the environment, or told by its form.

    Those forms are passwords and tokens in URLs, signatures of signed URLs, authorization headers,
    private keys, and tokens of services that mark theirs.
    """
    for name, value in os.environ.items():
        if len(value) >= _LEAST and value in text and _VARIABLE.search(name):
            text = text.replace(value, MARK)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def hidden_values(data: Any) -> Any:
    """JSON data with all its texts, keys of mappings among them, hidden."""
    if isinstance(data, str):
        return hidden(data)
    if isinstance(data, dict):
        return {hidden_values(key): hidden_values(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [hidden_values(value) for value in data]
    return data


def is_hidden(data: Any) -> bool:
    """Whether something was left out of JSON data."""
    if isinstance(data, dict):
        return any(map(is_hidden, data.values()))
    if isinstance(data, list | tuple):
        return any(map(is_hidden, data))
    return isinstance(data, str) and MARK in data


class Formatter(logging.Formatter):
    """A formatter of log records, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return hidden(super().format(record))


def print_traceback(kind: type[BaseException], error: BaseException,
                    trace: TracebackType | None) -> None:
    """Prints an error as Python does: a sys.excepthook."""
    print(hidden("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
