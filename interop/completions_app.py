"""The web application of interop.serve: a queue of requests before one engine."""

import asyncio
import contextlib
import dataclasses
import importlib.resources
import json
import secrets
import time
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from interop import completions_api as api
from interop.completions_api import ApiError
from interop.serving_engine import Engine, Full, Sample


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for, and for how long.

    Attributes:
      body: bytes of a request's body.
      samples: samples of one request: its prompts times `n`.
      waiting: samples that wait for a row, over all requests.
      seconds: how long a request may take, waiting included.
    """

    body: int
    samples: int
    waiting: int
    seconds: float


def make_app(engine: Engine, name: str, limits: Limits,
             hosts: Sequence[str] = ("*",)) -> Starlette:
    """The Starlette application.

    Args:
      engine: a serving_engine.Engine.
      name: the model's.
      limits: the Limits.
      hosts: the names by which browsers may call it; others could be another site's, which has
        its name lead here.
    """
    created = int(time.time())

    def reply(value, status=200):
        # ASCII, since lone surrogates of a request have no UTF-8.
        return Response(json.dumps(value), status, media_type="application/json")

    async def health(request):
        rows, waiting = engine.load()
        return reply({"status": "ok", "model": name, "running": rows, "waiting": waiting})

    async def models(request):
        model = {"id": name, "object": "model", "created": created, "owned_by": "user",
                 "max_model_len": engine.n_ctx}
        return reply({"object": "list", "data": [model]})

    async def page(request):
        return HTMLResponse(importlib.resources.files("interop").joinpath("page.html").read_text(
            encoding="utf-8"))

    async def completions(request):
        return await Answer(engine, name, limits).to(request, reply)

    async def refuse(request, error):
        if isinstance(error, HTTPException):
            error = ApiError(error.status_code, f"{request.url.path}: {error.detail}")
        elif isinstance(error, ClientDisconnect):
            error = ApiError(400, "the client left")
        return reply(error.body, error.status)

    return Starlette(
        routes=[Route("/", page), Route("/health", health), Route("/v1/models", models),
                Route("/v1/completions", completions, methods=["POST"])],
        exception_handlers=dict.fromkeys((ApiError, HTTPException, ClientDisconnect), refuse),
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts),
                               www_redirect=False)])


class Answer:
    """The answer to one request for completions."""

    def __init__(self, engine, name, limits):
        self._engine, self._name, self._limits = engine, name, limits
        self._frame = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion",
                       "created": int(time.time()), "model": name}
        self._until = time.monotonic() + limits.seconds
        self._changed = asyncio.Event()
        self._samples = []

    async def to(self, request: Request, reply: Callable) -> Response:
        """The response; `reply` makes one of JSON."""
        body = await self._in_time(self._body(request))
        try:
            asked = api.parse(json.loads(body))
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON ({str(error)[:80]})") from None
        if asked.model not in (None, self._name):
            raise ApiError(404, f"model: there is only {self._name!r}", "model",
                               "model_not_found")
        self._asked, self._stops = asked, asked.stops()
        encoder = self._engine.encoder
        self._prompts = await asyncio.to_thread(asked.prompts, encoder, self._engine.n_ctx,
                                                self._limits.samples)
        self._heads = [encoder.decode(prompt) if asked.echo else "" for prompt in self._prompts]
        self._submit()
        if asked.stream:
            return StreamingResponse(self._events(), media_type="text/event-stream",
                                     headers={"Cache-Control": "no-store"})
        try:
            await self._in_time(self._whole(request))
        finally:
            self._cancel()
        choices = [api.choice(i, self._head(i) + sample.state.text, sample.state.reason)
                   for i, sample in enumerate(self._samples)]
        return reply({**self._frame, "choices": choices,
                      "usage": api.usage(self._samples, self._prompts)})

    def _head(self, index):
        return self._heads[index // (self._asked.n or 1)]

    async def _in_time(self, work):
        try:
            return await asyncio.wait_for(work, max(self._until - time.monotonic(), 0.001))
        except asyncio.TimeoutError:
            raise ApiError(504, f"not done within {self._limits.seconds:g} seconds; ask for less, "
                                "or later", None, "timeout") from None

    async def _body(self, request):
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what another site's page may not send unasked
            raise ApiError(415, "the request needs Content-Type: application/json")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._limits.body:
                raise ApiError(413, f"the body is larger than {self._limits.body} bytes")
        return bytes(body)

    def _submit(self):
        asked, loop = self._asked, asyncio.get_running_loop()
        count = asked.n or 1
        if count * len(self._prompts) > self._limits.samples:
            raise ApiError(400, f"n: {count} samples of {len(self._prompts)} prompts are more "
                                    f"than {self._limits.samples}", "n")

        def notify():
            with contextlib.suppress(RuntimeError):  # the server is gone
                loop.call_soon_threadsafe(self._changed.set)

        settings = asked.settings(self._engine.facts["n_vocab"])
        self._samples = [Sample(prompt, i, asked.max_tokens or 16, settings, self._stops, notify)
                         for prompt in self._prompts for i in range(count)]
        try:
            self._engine.submit(self._samples)
        except Full:
            raise ApiError(429, "too many requests wait already; try again later", None,
                               "queue_full") from None

    def _cancel(self):
        for sample in self._samples:
            sample.cancelled = True

    async def _changes(self):
        """Waits until a sample has changed; whether all have ended."""
        await self._changed.wait()
        self._changed.clear()
        if any(sample.failed for sample in self._samples):
            raise ApiError(500, "sampling failed; the server's log says why")
        return all(sample.ended for sample in self._samples)

    async def _whole(self, request):
        """Waits until all samples have ended, or the client has left."""
        async def left():
            while (await request.receive())["type"] != "http.disconnect":
                pass

        async def done():
            while not await self._changes():
                pass

        tasks = [asyncio.ensure_future(left()), asyncio.ensure_future(done())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[1].done():
                raise ApiError(400, "the client left")
            tasks[1].result()
        finally:
            for task in tasks:
                task.cancel()

    async def _events(self):
        """Server-sent events: what each sample's text has grown by."""
        def event(value):
            return f"data: {json.dumps(value)}\n\n"

        sent: dict[int, str] = {}
        ended = set()
        try:
            for i in range(len(self._samples)):
                if self._head(i):
                    yield event({**self._frame, "choices": [api.choice(i, self._head(i), "")]})
            over = False
            while not over:
                over = await self._in_time(self._changes())
                for i, sample in enumerate(self._samples):
                    if i in ended:
                        continue
                    text, reason, _ = sample.state
                    old = sent.get(i, "")
                    new = text[:api.safe_length(text, self._stops, bool(reason))]
                    new = new[len(old):] if new.startswith(old) else ""
                    sent[i] = old + new
                    if reason:
                        ended.add(i)
                    if new or reason:
                        yield event({**self._frame, "choices": [api.choice(i, new, reason)]})
            options = self._asked.stream_options
            if options and options.include_usage:
                yield event({**self._frame, "choices": [],
                             "usage": api.usage(self._samples, self._prompts)})
        except ApiError as error:
            yield event(error.body)
        finally:
            self._cancel()
        yield "data: [DONE]\n\n"
