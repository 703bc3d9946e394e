"""Samples of text for TensorBoard, while a model trains."""

import logging

from configs.errors import UserError
from training import checkpoints, completions, metrics, predictor

_TEMPERATURE, _TOP_K = 0.8, 200


class Samples:
    """Samples from each checkpoint, always with the same random numbers.

    One graph and one session serve the whole run; they are made at the first checkpoint.

    Args:
      config: the run's config; `sample_tokens` of 0 turns it off.
      writer: a training.metrics.Writer.
    """

    def __init__(self, config, writer):
        self._config, self._writer = config, writer
        self._predictor, self._prompt = None, None
        self._wanted = config.sample_tokens > 0 and config.speaks

    def write(self, step):
        """Samples from the newest checkpoint, which is `step`'s."""
        if not self._wanted:
            return
        if self._predictor:
            self._predictor.reload()
        else:
            self._start()
        if self._predictor:
            sample, = self._predictor.generate([self._prompt], 1, self._config.sample_tokens,
                                               _TEMPERATURE, _TOP_K, seed=self._config.seed)
            self._writer.text("sample", metrics.fenced(sample.text), step)

    def _start(self):
        try:
            encoder = checkpoints.encoder_of(self._config)
        except UserError as error:
            # Training needs no encoder: samples are an extra.
            logging.info("note: no samples of text in TensorBoard: %s", error)
            self._wanted = False
            return
        self._predictor = predictor.Predictor(self._config, encoder)
        self._prompt = completions.encode_prompt(encoder, "")

    def close(self):
        """Frees the weights."""
        if self._predictor:
            self._predictor.close()
