"""Scoring rows of tokens with a run's newest checkpoint: one graph and session for all of a run."""

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
      length: the most ids that the model reads of a row, at most n_ctx.
    """

    def __init__(self, config, n_valid, length):
        self._config = config
        self._shape = [config.eval_batch_size, length]
        with tf.Graph().as_default() as graph:
            self._build(n_valid)
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
        self._session.run(self._start_op)

    def score(self, rows):
        """Scores rows, `eval_batch_size` at a time.

        Args:
          rows: training.items.Row, in any number.

        Returns:
          (float64 [rows]: Σ log p of the scored ids in nats, bool [rows]: whether each of them is
          the likeliest one where it stands).
        """
        size, found = self._shape[0], []
        for first in range(0, len(rows), size):
            found.append(self._session.run(self._scores, self._batch(rows[first:first + size])))
        sums, wrong = (np.concatenate(parts)[:len(rows)] for parts in zip(*found, strict=True))
        return sums.astype(np.float64), wrong == 0

    def _batch(self, rows):
        tokens, targets, mask = (np.zeros(self._shape, kind) for kind in
                                 (np.int32, np.int32, np.float32))
        for i, row in enumerate(rows):
            end = len(row.ids) - 1
            tokens[i, :end], targets[i, :end] = row.ids[:-1], row.ids[1:]
            mask[i, end - row.count:end] = 1.0
        return dict(zip(self._feeds, (tokens, targets, mask), strict=True))

    def _build(self, n_valid):
        config = self._config
        mesh, impl = mtf.Mesh(mtf.Graph(), "mesh"), devices.mesh_impl(config)
        ctx = layers.Context(mesh, config, dropless=True)
        model = language_models.build(config, n_valid)
        names = ("batch", "sequence")
        shape = mtf.Shape([mtf.Dimension(*d) for d in zip(names, self._shape, strict=True)])
        self._feeds = [tf.placeholder(kind, self._shape) for kind in
                       (tf.int32, tf.int32, tf.float32)]
        tokens, targets, mask = (mtf.import_tf_tensor(mesh, x, shape) for x in self._feeds)
        logits = model.logits(ctx, model.hidden(ctx, tokens))
        loss, _ = ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)
        likeliest = ops.argmax(logits, model.vocab, model.n_valid)
        wrong = mtf.cast(mtf.not_equal(likeliest, targets), tf.float32)
        sums = [mtf.reduce_sum(x * mask, output_shape=shape.dims[:1]) for x in (-loss, wrong)]
        lowering = mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)
        self._scores = [lowering.export_to_tf_tensor(x) for x in sums]
        self._start_op = tf.group(lowering.copy_masters_to_slices())
