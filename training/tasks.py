"""Scores of a language model on files of items, at each evaluation of a run.

All is scored as EleutherAI's lm-evaluation-harness does. Of choices, the one with the largest
log-likelihood (`acc`), the largest one per character (`acc_norm`) or per byte (`acc_bytes`) is the
model's; of completions, LAMBADA's last words among them, `perplexity` is exp of the mean loss.
"""

import logging
import math

import numpy as np

from configs.values import probe_of, task_name
from training import checkpoints, items, lambada, probes, scorer


class Tasks:
    """The files of `eval_tasks`, read and encoded at once, and a model to score them.

    The model's graph and session are made when scores are first asked for, and last.

    Args:
      config: the run's config.
      encoder: the encoder of its weights.

    Raises:
      UserError: a file cannot be read, or one of its lines is no item.
    """

    def __init__(self, config, encoder):
        checkpoints.check_vocabulary(config, encoder)
        self._config, self._n_valid, self._scorer = config, encoder.n_vocab, None
        self._files = {
            task_name(entry): (probes.File if probe_of(entry)[0] else _File)(entry, encoder, config)
            for entry in config.eval_tasks}

    def scores(self):
        """Scores of the newest checkpoint.

        Returns:
          {file's name: {"items": …, "acc": …, …}}: see docs/evaluation.md. Where items say so, the
          parts "told", "untold" and "about" hold the scores of some of them.
        """
        if self._scorer is None:
            self._scorer = scorer.Scorer(self._config, self._n_valid, [
                scorer.size_of(self._config, file.rows) for file in self._files.values()])
        self._scorer.reload()
        return {name: file.scores(*self._scorer.score(file.rows))
                for name, file in self._files.items()}


class _File:
    """A file of items and its rows."""

    def __init__(self, entry, encoder, config):
        self._items, n_ctx = lambada.read(config, entry, encoder), config.n_ctx
        of_items = [items.rows(item, encoder, n_ctx, config.eval_tasks_bos)
                    for item in self._items]
        self.rows = [row for of_item in of_items for row in of_item]
        self._ends = np.cumsum([len(of_item) for of_item in of_items])
        self._bytes = [_sizes(item, encoder) for item in self._items]
        self._cut = sum(any(row.cut for row in of_item) for of_item in of_items)
        if self._cut:
            logging.info("note: %s: %d of %d items are longer than n_ctx = %d and lose their "
                         "beginning", entry, self._cut, len(self._items), n_ctx)

    def scores(self, sums, likeliest):
        """Scores from Scorer.score's results for all rows."""
        counts = np.array([row.count for row in self.rows])
        score = {"choices": _choices, "completion": _completion, "text": _text}
        found = [score[item.kind](item, *values) for item, *values in zip(
            self._items, self._bytes,
            *(np.split(x, self._ends[:-1]) for x in (sums, likeliest, counts)), strict=True)]
        documents = self._items[0].kind == "text"
        mean = _of_texts if documents else _of_answers
        result = items.with_parts(mean, found, [item.parts for item in self._items])
        return result if documents else {**result, "cut": self._cut}


def _sizes(item, encoder):
    """Bytes of an item's texts; of a document also those of decode(encode(text))."""
    texts = list(item.texts)
    if item.kind == "text":
        texts.append(encoder.decode(encoder.encode(texts[0])))
    return [len(text.encode()) for text in texts]


def _choices(item, sizes, sums, likeliest, counts):
    right, lengths = item.answer, [len(text) for text in item.texts]
    return {"acc": np.argmax(sums) == right, "acc_norm": np.argmax(sums / lengths) == right,
            "acc_bytes": np.argmax(sums / sizes) == right,
            "answer_loss": -sums[right],
            "choice_loss": np.logaddexp.reduce(sums) - sums[right],
            "tokens": counts[right], "chance": 1 / len(item.texts)}


def _completion(item, sizes, sums, likeliest, counts):
    return {"acc": likeliest[0], "answer_loss": -sums[0], "tokens": counts[0]}


def _text(item, sizes, sums, likeliest, counts):
    return {"loss": -np.sum(sums), "tokens": np.sum(counts), "bytes": sizes[0],
            "decoded_bytes": sizes[1]}


def _of_answers(found):
    """Means over items, and of the loss also over the answers' tokens."""
    totals = _totals(found)
    tokens = totals.pop("tokens")
    means = {name: total / len(found) for name, total in totals.items()}
    if "chance" not in means:  # completions
        means["perplexity"] = math.exp(min(means["answer_loss"], 700.0))
    return {"items": len(found), **means, "answer_loss_per_token": totals["answer_loss"] / tokens}


def _of_texts(found):
    """Documents' loss per token and bits per byte, over all of them together."""
    totals = _totals(found)
    bits = totals["loss"] / math.log(2)
    return {"items": len(found), "tokens": int(totals["tokens"]),
            "loss": totals["loss"] / totals["tokens"], "bits_per_byte": bits / totals["bytes"],
            "bits_per_decoded_byte": bits / totals["decoded_bytes"]}


def _totals(found):
    return {name: float(sum(value[name] for value in found)) for name in found[0]}


def scalars(scores, path="tasks"):
    """Scores by name for TensorBoard, "tasks/<file>/acc" and so on, without counts."""
    found = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            found.update(scalars(value, f"{path}/{name}"))
        elif isinstance(value, float):
            found[f"{path}/{name}"] = value
    return found


def phrases(scores):
    """Each file's main score in a few words, for the terminal."""
    found = []
    for name, values in scores.items():
        if "loss" in values:
            found.append(f"{name} {values['bits_per_byte']:.4f} bits per byte")
        elif "spearman" in values:
            found.append(f"{name} spearman {values['spearman']:.3f} acc {values['acc']:.3f}")
        elif "chance" in values:
            found.append(f"{name} acc {values['acc']:.3f} (chance {values['chance']:.3f})")
        else:
            found.append(f"{name} acc {values['acc']:.3f} perplexity {values['perplexity']:.2f}")
    return found
