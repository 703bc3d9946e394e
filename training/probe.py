"""How alike a model finds some words: a heat map of cosines, beside those of whom it learns from.
"""

import logging
import os

import numpy as np

from mesh.compat import tf
from training import heat_map, keeping, projector
from training.embedder import Embedder, unit

_HEADINGS = {"student": "student", "last": "GPT-C, final norm"}


class Probe:
    """The words of `clip.probe_words`.

    Args:
      config: the run's config.
      taken: a student's training.frozen.Frozen teacher, or None.
      encoder: the encoder of the run's weights.

    Attributes:
      drawn: the PNG of what `scores` has last compared, or None.
      points: the same as training.projector.Points.
    """

    def __init__(self, config, taken, encoder):
        self._config, self._words = config, config.clip.probe_words
        self.drawn, self.points = None, []
        student = config.model == "clip_student"
        self._teacher = self._of_teacher(taken, encoder) if student and taken else None

    def _of_teacher(self, taken, encoder):
        """The teacher's embeddings of the words, float32 [words, out], which never change."""
        # On one device, whatever its own run or this one splits: words are few.
        config = taken.config.replace(
            model_path=os.path.dirname(taken.checkpoint), mesh_shape="", layout="",
            gpu_ids=self._config.gpu_ids[:1], eval_batch_size=len(self._words))
        length = max(len(encoder.encode(word)) for word in self._words)
        teacher = Embedder(config, encoder, length)
        found = teacher.texts(self._words)
        teacher.close()
        return found

    def scores(self, embedder):
        """Compares and draws the words; of a student or GPT-C {"probe/correlation": …}, else {}.

        The correlation is that of its cosines and its teacher's, over all pairs of two words. Both
        are of embeddings less the mean of the student's targets: with what all texts share left in,
        any two words are alike. A CLIP model's are of embeddings less the words' own mean. A
        GPT-C's teacher is its student, whose outputs have a mean of 0; of several projections the
        correlation is the mean.

        The heat map is written to model_path as probe_<step>.png.

        Args:
          embedder: a training.embedder.Embedder of the run's newest checkpoint.
        """
        step = keeping.step_of(embedder.checkpoint)
        if self._config.model == "gpt_c":
            return self._projected(embedder.projections(self._words), step)
        found = embedder.texts(self._words)
        if self._teacher is None:
            scores = {}
            self.points = [projector.named("text", self._words, found)]
            self._draw({"CLIP's text tower": cosines(found - found.mean(axis=0))},
                       "cosines of embeddings less their mean", step)
        else:
            self.points = [projector.named("teacher", self._words, self._teacher),
                           projector.named("student", self._words, found)]
            mean = embedder.target_mean
            panels = {"teacher": cosines(self._teacher - mean), "student": cosines(found - mean)}
            correlation = correlate(*panels.values())
            scores = {"probe/correlation": correlation}
            self._draw(panels, "cosines of embeddings less the targets' mean; correlation "
                               f"{correlation:.3f}", step)
        return scores

    def _projected(self, found, step):
        """`scores` of a GPT-C, of what embedder.Embedder.projections gives."""
        headings = {name: _HEADINGS.get(name) or f"GPT-C, block {name}" for name in found}
        self.points = [projector.named(headings[name], self._words, x)
                       for name, x in found.items()]
        panels = {headings[name]: cosines(x) for name, x in found.items()}
        student, *others = panels.values()
        correlation = float(np.mean([correlate(student, other) for other in others]))
        self._draw(panels, f"cosines of outputs; correlation {correlation:.3f}", step)
        return {"probe/correlation": correlation}

    def _draw(self, panels, what, step):
        self.drawn = heat_map.png(heat_map.figure(panels, self._words, f"step {step}: {what}"))
        path = os.path.join(self._config.model_path, f"probe_{step}.png")
        try:
            heat_map.write(path, self.drawn)
        except tf.errors.OpError as error:
            # A picture is an extra.
            logging.warning("warning: %s cannot be written (%s)", path, error.message)


def cosines(embeddings):
    """Cosines of each row to each: [rows, features] -> float32 [rows, rows]."""
    embeddings = unit(embeddings)
    return embeddings @ embeddings.T


def correlate(one, other):
    """Pearson's correlation of two symmetric matrices' entries above the diagonal."""
    pairs = np.triu_indices(len(one), 1)
    one, other = (x[pairs] - x[pairs].mean() for x in (one.astype(np.float64), other))
    length = np.sqrt(np.sum(one ** 2) * np.sum(other ** 2))
    return float(np.sum(one * other) / length) if length else 0.0
