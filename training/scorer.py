"""Scoring rows of tokens with a run's newest checkpoint: one session for all of a run."""

import numpy as np

from mesh import devices, ops
from mesh.compat import mtf, tf
from models import layers
from training import checkpoints, language_models


class Scorer:
    """A language model that waits for rows to score.

    Args:
      config: the run's config.
      n_valid: how many ids the encoder has.
      lengths: how many ids the model may read of a row, at most n_ctx. There is a graph for each; a
        batch of short rows has so many more of them.
    """

    def __init__(self, config, n_valid, lengths):
        self._config, self._n_valid = config, n_valid
        with tf.Graph().as_default() as graph, tf.variable_scope("", reuse=tf.AUTO_REUSE):
            self._of_length = {length: self._build(length) for length in sorted(set(lengths))}
            # Frozen weights of other models are local variables, which no checkpoint of the run
            # holds.
            self._saver = tf.train.Saver(tf.global_variables())
            start = tf.local_variables_initializer()
            self._session = tf.Session(graph=graph, config=devices.session_config(config))
            graph.finalize()
        self._session.run(start)

    def reload(self):
        """Takes the weights of the run's newest checkpoint."""
        checkpoint = checkpoints.require_latest(self._config)
        checkpoints.restore(self._config, self._saver, self._session, checkpoint)
        self._session.run([start for *_, start in self._of_length.values()])

    def score(self, rows):
        """Scores rows: as many tokens at a time as `eval_batch_size` rows of n_ctx, or fewer.

        Args:
          rows: training.items.Row, in any number.

        Returns:
          (float64 [rows]: Σ log p of the scored ids in nats, bool [rows]: whether each of them is
          the likeliest one where it stands).
        """
        longest, found = max(len(row.ids) - 1 for row in rows), []
        length = next(length for length in self._of_length if length >= longest)
        feeds, scores, _ = self._of_length[length]
        shape = feeds[0].shape.as_list()
        for first in range(0, len(rows), shape[0]):
            values = _padded(rows[first:first + shape[0]], shape)
            found.append(self._session.run(scores, dict(zip(feeds, values, strict=True))))
        sums, wrong = (np.concatenate(parts)[:len(rows)] for parts in zip(*found, strict=True))
        return sums.astype(np.float64), wrong == 0

    def _build(self, length):
        """(placeholders, the scores of a batch, what copies the weights) for rows of a length."""
        config = self._config
        sizes = [config.eval_batch_size * max(1, config.n_ctx // length), length]
        mesh, impl = mtf.Mesh(mtf.Graph(), "mesh"), devices.mesh_impl(config)
        ctx = layers.Context(mesh, config, dropless=True)
        model = language_models.build(config, self._n_valid)
        names = ("batch", "sequence")
        shape = mtf.Shape([mtf.Dimension(*d) for d in zip(names, sizes, strict=True)])
        feeds = [tf.placeholder(kind, sizes) for kind in (tf.int32, tf.int32, tf.float32)]
        tokens, targets, mask = (mtf.import_tf_tensor(mesh, x, shape) for x in feeds)
        logits = model.logits(ctx, model.hidden(ctx, tokens))
        loss, _ = ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)
        likeliest = ops.argmax(logits, model.vocab, model.n_valid)
        wrong = mtf.cast(mtf.not_equal(likeliest, targets), tf.float32)
        sums = [mtf.reduce_sum(x * mask, output_shape=shape.dims[:1]) for x in (-loss, wrong)]
        lowering = mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)
        scores = [lowering.export_to_tf_tensor(x) for x in sums]
        return feeds, scores, tf.group(lowering.copy_masters_to_slices())


def _padded(rows, shape):
    """Token ids, their next ones, and 1 for those that count, each [batch, length]."""
    tokens, targets, mask = (np.zeros(shape, kind) for kind in (np.int32, np.int32, np.float32))
    for i, row in enumerate(rows):
        end = len(row.ids) - 1
        tokens[i, :end], targets[i, :end] = row.ids[:-1], row.ids[1:]
        mask[i, end - row.count:end] = 1.0
    return tokens, targets, mask
