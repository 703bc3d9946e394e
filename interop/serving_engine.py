"""A SavedModel that many requests sample from at once, on a thread of its own.

A batch has the rows that the model was exported with. A sample takes a row when one is free, and
all rows go on by a few ids at a time, each with its own settings: samples begin and end as they
come.
"""

import collections
import logging
import os
import threading
from typing import Any, NamedTuple

import tensorflow as tf

import encoders
from configs.errors import UserError
from encoders import files
from encoders.base import Encoder
from training import completions

# New ids of each row between looks at texts, at newcomers and at who has left.
_PIECE = 4


class Full(Exception):
    """More samples would wait than may."""


class State(NamedTuple):
    """What of a sample is made: its text, why it ended ("" while it goes on), its number of ids."""

    text: str
    reason: str
    tokens: int


class Sample:
    """A sample that is asked for.

    Args:
      prompt: ids, none empty.
      number: which of the prompt's samples it is, from 0.
      limit: most new ids; with the prompt's they fit into n_ctx.
      settings: temperature, top_k, top_p and seed, a dict: see models.sampling.Settings.
      stop: texts that end it.
      notify: called on the engine's thread whenever `state` has changed, and at the end.

    Attributes:
      row: its training.completions.Row, which is the engine's thread's alone.
      state: the State of what has been made, for other threads.
      failed: whether the engine could not go on with it.
      cancelled: set it to free its row.
    """

    def __init__(self, prompt, number, limit, settings, stop, notify):
        self.prompt, self.number, self.limit = prompt, number, limit
        self.settings, self.stop, self.notify = settings, stop, notify
        self.row: Any = None
        self.state = State("", "", 0)
        self.failed = self.cancelled = False

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.failed or self.cancelled or bool(self.state.reason)

    def begin(self, encoder: Encoder, n_ctx: int) -> None:
        """Makes its row."""
        self.row = completions.Row(completions.Completion(
            self.prompt, self.number, encoder.decode(self.prompt)), self.limit, n_ctx)

    def take(self, new: list[int], encoder: Encoder) -> None:
        """Takes new ids, of which those past its limit are left."""
        self.row.take(new[:self.row.steps()], encoder, self.stop)
        made = self.row.sample
        self.state = State(made.text, made.reason, len(made.tokens))


class Engine:
    """A SavedModel of interop.saved_model and the thread that runs it.

    Args:
      directory: the SavedModel's.
      max_waiting: most samples that wait for a row.

    Raises:
      UserError: it is no such SavedModel, or its encoder is not to be had.
    """

    def __init__(self, directory, max_waiting):
        self.facts = _facts(directory)
        self.encoder = _encoder(directory, self.facts)
        self.n_ctx, self._max_waiting = self.facts["n_ctx"], max_waiting
        try:
            loaded = tf.saved_model.load(directory)
            self._prefill, self._step = (loaded.signatures[name] for name in ("prefill", "step"))
        except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
            line = (str(error).splitlines() or ["unreadable"])[0]
            raise UserError(f"{directory}: cannot be loaded ({line}); export it anew") from None
        self._loaded = loaded  # its variables live as long as it does
        self._slots: list[Any] = [None] * self.facts["rows"]
        self._waiting: collections.deque[Sample] = collections.deque()
        self._more = threading.Condition()
        self._closed = False
        self._clear()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, samples: list[Sample]) -> None:
        """Has samples made, in the order in which they come.

        Raises:
          Full: too many wait already.
        """
        with self._more:
            self._waiting = collections.deque(s for s in self._waiting if not s.cancelled)
            if len(self._waiting) + len(samples) > self._max_waiting:
                raise Full
            self._waiting.extend(samples)
            self._more.notify()

    def load(self) -> tuple[int, int]:
        """(samples that have a row, samples that wait)."""
        return sum(slot is not None for slot in self._slots), len(self._waiting)

    def close(self) -> None:
        """Ends the thread; samples that are under way are not finished."""
        with self._more:
            self._closed = True
            self._more.notify()
        self._thread.join()

    def _clear(self):
        inputs = self._step.structured_input_signature[1]
        self._caches = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in inputs.items()
                        if name.startswith("cache_")}

    def _run(self):
        while True:
            with self._more:
                while not (self._closed or self._waiting or any(self._slots)):
                    self._more.wait()
                if self._closed:
                    return
                fresh = self._admit()
            try:
                if any(self._slots):
                    self._advance(fresh)
            except Exception:  # of one piece; the server goes on
                logging.exception("sampling failed")
                for sample in filter(None, self._slots):
                    sample.failed = True
                self._clear()
            for place, sample in enumerate(self._slots):
                if sample:
                    if sample.ended:
                        self._slots[place] = None
                    sample.notify()

    def _admit(self):
        """Gives free rows to those that wait; returns their places."""
        fresh = []
        for place, sample in enumerate(self._slots):
            while not sample and self._waiting:
                sample = self._waiting.popleft()
                if sample.cancelled:
                    sample = None
                else:
                    self._slots[place] = sample
                    fresh.append(place)
        return fresh

    def _advance(self, fresh):
        """Fills the caches of new rows, and takes a piece of every row."""
        for place in fresh:
            self._slots[place].begin(self.encoder, self.n_ctx)
        if fresh:
            self._fill(fresh)
        live = [(place, sample) for place, sample in enumerate(self._slots) if sample]
        # No row may pass n_ctx; what is made of a row past its own limit is left.
        steps = min(_PIECE, self.facts["piece"], max(s.row.steps() for _, s in live),
                    *(self.n_ctx + 1 - len(s.row.window) for _, s in live))
        state = {name: [usual] * len(self._slots) for name, usual in (
            ("token", 0), ("position", 0), ("done", 1), ("number", 0), ("count", 0), ("top_k", 0),
            ("seed", 0), ("temperature", 1.0), ("top_p", 1.0))}
        for place, sample in live:
            window = sample.row.window
            for name, value in dict(
                    sample.settings, token=window[-1], position=len(window) - 1, done=0,
                    number=sample.number, count=sample.state.tokens).items():
                state[name][place] = value
        found = dict(self._step(steps=tf.constant(steps), **self._caches, **{
            name: tf.constant(values, tf.float32 if name in ("temperature", "top_p") else tf.int32)
            for name, values in state.items()}))
        rows = found.pop("tokens").numpy()
        self._caches = found
        for place, sample in live:
            sample.take([int(token) for token in rows[place] if token >= 0], self.encoder)

    def _fill(self, fresh):
        tokens = [[0] * self.n_ctx for _ in self._slots]
        lengths, chosen = [0] * len(self._slots), [0] * len(self._slots)
        for place in fresh:
            prompt = self._slots[place].prompt
            tokens[place][:len(prompt)] = prompt
            lengths[place], chosen[place] = len(prompt) - 1, 1
        self._caches = dict(self._prefill(
            tokens=tf.constant(tokens), lengths=tf.constant(lengths), fresh=tf.constant(chosen),
            **self._caches))


def _facts(directory):
    """What assets.extra/model.json says."""
    path = os.path.join(directory, "assets.extra", "model.json")
    try:
        facts = files.parse_json(files.read_bytes(path), path)
    except UserError as error:
        raise UserError(f"{error}; give a directory that main.py --export has written") from None
    kinds = dict(encoder=str, n_vocab=int, n_ctx=int, rows=int, piece=int, name=str)
    for key, kind in kinds.items():
        if type(facts.get(key)) is not kind or kind is int and facts[key] < 1:
            raise UserError(f"{path}: {key}: {facts.get(key)!r} cannot be used; export the model "
                            "anew")
    return facts


def _encoder(directory, facts):
    """The encoder: of the SavedModel's own tokenizer.json where its kind needs a file."""
    spec = facts["encoder"]
    if spec not in encoders.KINDS and not spec.startswith("clip:"):  # CLIP's also mends texts
        end = "#" + spec.partition(".json#")[2] if ".json#" in spec else ""
        spec = os.path.join(directory, "assets.extra", "tokenizer.json") + end
    encoder = encoders.load(spec)
    if encoder.n_vocab != facts["n_vocab"]:
        raise UserError(f"{directory}: encoder {spec} has {encoder.n_vocab} ids, and the model "
                        f"{facts['n_vocab']}; they do not belong together")
    return encoder
