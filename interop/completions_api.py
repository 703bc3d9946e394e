"""OpenAI's request for completions, checked, and the shapes of answers and errors."""

import secrets
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.errors import UserError
from encoders.base import Encoder
from training.completions import encode_prompt

# What is refused unless it says that nothing is wanted of it.
_UNSUPPORTED: dict[str, tuple] = {
    "logprobs": (None,), "best_of": (None, 1), "suffix": (None, ""), "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0), "logit_bias": (None, {})}

_MOST_STOPS = 4


class ApiError(Exception):
    """An error as OpenAI has them.

    Args:
      status: of HTTP.
      message: one line for the user.
      param: the key of the request that it is about, or None.
      code: OpenAI's name for it, or None.
    """

    def __init__(self, status, message, param=None, code=None):
        super().__init__(message)
        self.status, kind = status, "invalid_request_error"
        if status >= 429:
            kind = "rate_limit_error" if status == 429 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Options(BaseModel):
    """stream_options."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool = False


class Request(BaseModel):
    """The body of POST /v1/completions: OpenAI's keys, and vLLM's top_k."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = None
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    max_tokens: int | None = Field(16, ge=1)
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=0, lt=2**31)
    n: int | None = Field(1, ge=1)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = False
    stream_options: Options | None = None
    echo: bool | None = False
    user: str | None = None

    def stops(self) -> list[str]:
        """The texts of `stop`."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MOST_STOPS or "" in stops:
            raise ApiError(400, f"stop: at most {_MOST_STOPS} texts, none of them empty", "stop")
        return stops

    def settings(self, n_vocab: int) -> dict[str, Any]:
        """temperature, top_k, top_p and seed; a seed of chance where none is given."""
        def given(value, usual):
            return usual if value is None else value

        seed = secrets.randbelow(2**31) if self.seed is None else self.seed % 2**31
        return dict(temperature=given(self.temperature, 1.0), top_p=given(self.top_p, 1.0),
                    top_k=min(given(self.top_k, 0), n_vocab), seed=seed)

    def prompts(self, encoder: Encoder, n_ctx: int, max_prompts: int) -> list[list[int]]:
        """The ids of each prompt."""
        given: Any = self.prompt
        if isinstance(given, str) or given and isinstance(given[0], int):
            given = [given]
        if not 1 <= len(given) <= max_prompts:
            raise ApiError(400, f"prompt: {len(given)} prompts; from 1 to {max_prompts} can be "
                                "given", "prompt")
        found = [_ids(prompt, encoder) for prompt in given]
        limit = self.max_tokens or 16
        longest = max(map(len, found))
        if longest + limit > n_ctx:
            raise ApiError(400, f"This model's maximum context length is {n_ctx} tokens, and "
                                f"{longest} of the prompt and {limit} of max_tokens are "
                                f"{longest + limit}", "prompt", "context_length_exceeded")
        return found


def _ids(prompt, encoder):
    if isinstance(prompt, str):
        try:
            return encode_prompt(encoder, prompt)
        except UserError as error:
            raise ApiError(400, str(error), "prompt") from None
    if not prompt or not all(0 <= token < encoder.n_vocab for token in prompt):
        raise ApiError(400, f"prompt: token ids must be from 0 to {encoder.n_vocab - 1}, at least "
                            "one", "prompt")
    return prompt


def parse(values: Any) -> Request:
    """The request in a body's JSON.

    Raises:
      ApiError: it is none.
    """
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    for key, allowed in _UNSUPPORTED.items():
        if not any(type(values.get(key)) is not bool and values.get(key) == value
                   for value in allowed):
            raise ApiError(400, f"{key}: is not supported; leave it out", key, "unsupported")
    values = {key: value for key, value in values.items() if key not in _UNSUPPORTED}
    try:
        return Request.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise ApiError(400, f"{key[:80]}: {first['msg']}", key[:80]) from None


def safe_length(text: str, stops: list[str], ended: bool) -> int:
    """How much of a text will stay as it is: no beginning of a stop, no half of a character."""
    if ended:
        return len(text)
    length = len(text.rstrip("\ufffd"))
    for stop in stops:
        for size in range(min(len(stop) - 1, length), 0, -1):
            if stop.startswith(text[length - size:length]):
                length -= size
                break
    return length


def choice(index: int, text: str, reason: str) -> dict:
    """One of an answer's choices; `reason` is that of a Completion, "" while it goes on."""
    finish = {"": None, "eos": "stop", "stop": "stop", "length": "length"}[reason]
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish}


def usage(samples: list, prompts: list[list[int]]) -> dict:
    """The counts of ids."""
    made = sum(sample.state.tokens for sample in samples)
    asked = sum(map(len, prompts))
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
