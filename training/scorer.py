"""Scoring rows of tokens with a run's newest checkpoint: one session for all of a run."""

from typing import NamedTuple

import numpy as np

from configs.progress import tqdm
from mesh import devices, ops
from mesh.compat import mtf, tf
from models import layers
from training import checkpoints, language_models


class Scorer:
    """A language model that waits for rows to score.

    Args:
      config: the run's config.
      n_valid: how many ids the encoder has.
      sizes: of each kind of rows that will come, what `size_of` says of it. There is a graph for
        each; a batch of short rows has so many more of them.
    """

    def __init__(self, config, n_valid, sizes):
        self._config, self._n_valid = config, n_valid
        with tf.Graph().as_default() as graph, tf.variable_scope("", reuse=tf.AUTO_REUSE):
            self._graphs = {size: self._build(*size) for size in sorted(set(sizes))}
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
        self._session.run([start for *_, start in self._graphs.values()])

    def score(self, rows):
        """Scores rows: as many tokens at a time as `eval_batch_size` rows of n_ctx, or fewer.

        Rows that differ in their last token alone, such as choices of one token, are read once.

        Args:
          rows: training.items.Row, in any number.

        Returns:
          (float64 [rows]: Σ log p of the scored ids in nats, bool [rows]: whether each of them is
          the likeliest one where it stands).
        """
        longest = max(len(row.ids) - 1 for row in rows)
        size = next(size for size in self._graphs if size.length >= longest)
        feeds, scores, _ = self._graphs[size]
        batch, read = feeds[0].shape[0], _read(rows, size)
        sums, likeliest = np.zeros(len(rows)), np.ones(len(rows), bool)
        for first in tqdm(range(0, len(read), batch), desc="scoring", unit="batch", leave=False):
            some = read[first:first + batch]
            *values, owners = _padded(some, batch, size)
            loss, wrong = self._session.run(scores, dict(zip(feeds, values, strict=True)))
            asked = owners >= 0
            np.subtract.at(sums, owners[asked], loss[asked])
            np.logical_and.at(likeliest, owners[asked], wrong[asked] == 0)
        return sums, likeliest

    def _build(self, length, targets):
        """(placeholders, the scores of a batch, what copies the weights) for rows of a size."""
        config = self._config
        rows = config.eval_batch_size * max(1, config.n_ctx // length)
        mesh, impl = mtf.Mesh(mtf.Graph(), "mesh"), devices.mesh_impl(config)
        ctx = layers.Context(mesh, config, dropless=True)
        model = language_models.build(config, self._n_valid)
        batch, sequence = mtf.Dimension("batch", rows), mtf.Dimension("sequence", length)
        asked = sequence if targets == length else mtf.Dimension("asked", targets)
        shapes = [mtf.Shape([batch, dim]) for dim in (sequence, asked, asked)]
        feeds = [tf.placeholder(tf.int32, shape.to_integer_list) for shape in shapes]
        tokens, positions, wanted = (mtf.import_tf_tensor(mesh, x, shape)
                                     for x, shape in zip(feeds, shapes, strict=True))
        hidden = model.hidden(ctx, tokens)
        if asked is not sequence:
            # The logits are much of the work, and of most rows few are asked for.
            picked = mtf.one_hot(positions, sequence, dtype=hidden.dtype)
            hidden = mtf.einsum([picked, hidden],
                                output_shape=[batch, asked, hidden.shape.dims[-1]])
        logits = model.logits(ctx, hidden)
        loss, _ = ops.softmax_cross_entropy(logits, wanted, model.vocab, model.n_valid)
        likeliest = ops.argmax(logits, model.vocab, model.n_valid)
        wrong = mtf.cast(mtf.not_equal(likeliest, wanted), tf.float32)
        lowering = mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)
        scores = [lowering.export_to_tf_tensor(x) for x in (loss, wrong)]
        return feeds, scores, tf.group(lowering.copy_masters_to_slices())


class Size(NamedTuple):
    """How large rows are.

    Attributes:
      length: the most ids that the model reads of one.
      targets: the most ids that are scored after one reading; `length` is all.
    """

    length: int
    targets: int


def size_of(config, rows):
    """The Size for rows, lists of training.items.Row, on a config's mesh."""
    length = language_models.row_length(config, max(len(row.ids) - 1 for row in rows))
    targets = max(map(len, _asked(rows).values()))
    return Size(length, targets if 2 * targets <= length else length)


def _asked(rows):
    """{what the model reads: [(number of the row, position, the id that is scored after it)]}."""
    found = {}
    for number, row in enumerate(rows):
        last = len(row.ids) - 1
        found.setdefault(tuple(row.ids[:-1]), []).extend(
            (number, position, row.ids[position + 1]) for position in range(last - row.count, last))
    return found


def _read(rows, size):
    """[(ids that are read at a time, as many as `size` allows of what is asked there)]."""
    if size.targets == size.length:
        # One id is asked for at a position, so that no two rows can share a reading.
        return [(row.ids[:-1], [(number, *rest) for _, *rest in next(iter(_asked([row]).values()))])
                for number, row in enumerate(rows)]
    return [(ids, asked[first:first + size.targets]) for ids, asked in _asked(rows).items()
            for first in range(0, len(asked), size.targets)]


def _padded(read, batch, size):
    """Ids [batch, length]; positions, targets and numbers of rows or −1, [batch, targets]."""
    tokens = np.zeros([batch, size.length], np.int32)
    positions, targets, owners = np.zeros([3, batch, size.targets], np.int32)
    owners -= 1
    for i, (ids, asked) in enumerate(read):
        tokens[i, :len(ids)] = ids
        for column, (number, position, target) in enumerate(asked):
            if size.targets == size.length:
                column = position
            positions[i, column], targets[i, column] = position, target
            owners[i, column] = number
    return tokens, positions, targets, owners
