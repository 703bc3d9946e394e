"""Where a run's numbers go: TensorBoard, `metrics.jsonl` and the summary line."""

import json
import logging
import math
import os
import struct
import time

from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from configs.errors import UserError
from configs.layouts import LANGUAGE_MODELS
from configs.progress import tqdm
from configs.redaction import hidden, hidden_values
from mesh.compat import tf
from records import retrying
from training import board, flops, keeping

EVALUATIONS = "metrics.jsonl"


class Writer:
    """Writes scalars, texts and pictures for TensorBoard into a directory.

    Args:
      directory: the run's directory, or one below it for another curve on the same axes.
      also: a function of (dict of numbers, step) that is given the scalars as well.
    """

    def __init__(self, directory, also=None):
        self._also = also
        with tf.Graph().as_default():  # TensorFlow 1's writer refuses to be made eagerly
            # Two files of the same second would overwrite each other.
            self._writer = tf.summary.FileWriter(directory,
                                                 filename_suffix=f".{time.time_ns()}")

    def start(self, step):
        """Tells TensorBoard to forget what an earlier process wrote of steps after `step`."""
        log = tf.SessionLog(status=tf.SessionLog.START)
        self._writer.add_session_log(log, step + 1)

    def scalars(self, values, step):
        """Writes a dict of numbers at a step."""
        for name, value in values.items():
            self._writer.add_summary(scalar_pb(name, value).SerializeToString(), step)
        self._writer.flush()
        if self._also:
            self._also(values, step)

    def text(self, name, markdown, step):
        """Writes a text, which TensorBoard shows as Markdown."""
        self._writer.add_summary(text_pb(name, hidden(markdown)).SerializeToString(), step)
        self._writer.flush()

    def picture(self, name, png, step):
        """Writes a picture, given as the bytes of a PNG."""
        # Bytes 16 to 23 of a PNG are its width and height.
        content = [b"%d" % size for size in struct.unpack(">II", png[16:24])]
        value = tf.Summary.Value(tag=name, tensor=tf.make_tensor_proto([*content, png], tf.string))
        # TensorBoard may bring definitions of its own of the same message.
        value.metadata.ParseFromString(
            create_summary_metadata(display_name=name, description="").SerializeToString())
        self._writer.add_summary(tf.Summary(value=[value]), step)
        self._writer.flush()

    def summary(self, summary):
        """Writes a Summary of one of TensorBoard's plugins, of the whole run."""
        self._writer.add_summary(summary.SerializeToString())
        self._writer.flush()

    def close(self):
        """Closes the file."""
        self._writer.close()


def fenced(text):
    """`text` as a Markdown code block, so that it is shown as it is."""
    return "\n".join("    " + line for line in text.splitlines())


def language_scores(loss, facts):
    """What a mean loss means, whatever the tokenizer.

    Args:
      loss: mean negative log-likelihood of a token, in nats.
      facts: an inputs.Facts of the split: its tokens and bytes.

    Returns:
      perplexity = exp(loss), and bits per byte of the original text and of decode(encode(text)):
      the whole text's nats / (its bytes · ln 2). None where the bytes are not known.
    """
    def per_byte(count):
        return loss * facts.tokens / (count * math.log(2)) if count else None

    return {"perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": per_byte(facts.bytes),
            "bits_per_decoded_byte": per_byte(facts.decoded_bytes)}


@retrying.patient
def append_line(model_path, values, name=EVALUATIONS):
    """Appends one JSON line to a file of the run's directory."""
    path = os.path.join(model_path, name)
    lines, cut_off = _lines(path)
    if cut_off:  # the next line would be joined to it
        _write_lines(path, lines)
    with tf.io.gfile.GFile(path, "a") as file:
        file.write(json.dumps(hidden_values(values)) + "\n")


def _lines(path):
    """(the lines of a file, whether it ends with one that a kill cut off, which is left out)."""
    if not tf.io.gfile.exists(path):
        return [], False
    with tf.io.gfile.GFile(path, "rb") as file:
        *lines, rest = file.read().split(b"\n")
    return lines, bool(rest)


def _write_lines(path, lines):
    keeping.write_text(path, "".join(line.decode() + "\n" for line in lines))


@retrying.patient
def read_lines(path):
    """The values of a file's JSON lines, [] if there is none.

    Raises:
      UserError: a line is no JSON.
    """
    values = []
    for number, line in enumerate(_lines(path)[0], 1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is no JSON ({error}); remove it") from error
    return values


@retrying.patient
def forget_after(path, step):
    """Takes lines about steps after `step`, which never happened, out of a run's JSON lines."""
    lines, cut_off = _lines(path)
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            logging.warning("warning: %s: line %d is damaged, and is left out", path, number)
    if cut_off or len(kept) < len(lines):
        _write_lines(path, kept)


class Meter:
    """Keeps time, and shows a training run's progress on the terminal and in TensorBoard.

    Args:
      config: the run's config.
      facts: the training split's inputs.Facts.
      writer: a Writer.
      watch: the training.watching.Watch that hooks show each step's loss, or None.
      peak: FLOP/s that the mesh could do, or None where it is not known.
    """

    def __init__(self, config, facts, writer, watch=None, peak=None):
        self._config, self._facts, self._writer, self._peak = config, facts, writer, peak
        self.watch = watch
        self._flops, self._drawn = None, False
        self._step = self._time = None
        self._measured_steps = self._measured_seconds = 0
        self.loss = None
        self._bar = tqdm(total=config.train_steps, unit="step", leave=False)

    @property
    def tokens_per_second(self):
        """Over all steps measured, without building, evaluating and saving; None before any."""
        if not self._measured_seconds:
            return None
        return self._tokens(self._measured_steps) / self._measured_seconds

    def built(self, graph, mesh_impl):
        """Takes the step's mtf graph and the mesh that it is laid out on."""
        config = self._config
        # The formula is a language model's.
        if self._peak and config.model in LANGUAGE_MODELS:
            self._flops = flops.of_token(config, graph.trainable_variables)
        if config.mesh_size > 1 and not self._drawn:
            self._writer.picture("layout", board.layout(config, graph, mesh_impl), 0)
            self._drawn = True

    def start_clock(self, step):
        """From the end of `step` on, time counts as training's."""
        self._step, self._time = step, time.monotonic()

    def log(self, step, values):
        """Takes the scalars of the step that has just ended."""
        now, rate = time.monotonic(), None
        steps, seconds = step - self._step, now - self._time
        if steps:
            self._measured_steps += steps
            self._measured_seconds += seconds
            rate = self._tokens(steps) / seconds
        self._step, self._time = step, now
        if math.isfinite(values["loss"]):
            self.loss = values["loss"]
        shown = {**values, **self._meaning(values)}
        if self.watch and self._config.on_nan == "skip":
            shown["skipped_steps"] = self.watch.skipped
        if self._facts.windows:  # an input function of the user's own has no epochs
            shown["epoch"] = step * self._config.train_batch_size / self._facts.windows
        if rate:
            shown["tokens_per_second"] = rate
            if self._flops:
                shown["mfu"] = rate * self._flops / self._peak
        self._writer.scalars(shown, step)
        self._bar.n = step
        self._bar.refresh()
        self._bar.clear()
        logging.info(self._line(step, values, rate))

    def close(self):
        """Removes the progress bar."""
        self._bar.close()

    def _meaning(self, values):
        """What the training loss means, in the terms of an evaluation."""
        config = self._config
        # Only the cross-entropy is a likelihood.
        if "loss/lm" not in values or config.label_smoothing or config.entmax_alpha != 1:
            return {}
        scores = language_scores(values["loss/lm"], self._facts)
        return {name: value for name, value in scores.items() if value is not None}

    def _tokens(self, steps):
        return steps * self._config.train_batch_size * self._config.n_ctx

    def _line(self, step, values, rate):
        total = self._config.train_steps
        parts = [f"step {step:>{len(str(total))}}/{total}", f"loss {values['loss']:.4f}",
                 f"lr {values['learning_rate']:.2e}"]
        if rate:
            left = self._tokens(total - step) / rate
            parts += [f"{rate:,.0f} tokens/s", f"{tqdm.format_interval(left)} left"]
        return "  ".join(parts)
