"""What a kind of run optimises, and what its evaluation reports: the base of all objectives.

An objective is made once for a run and used by every graph of it. It has

- `features(mesh, features, step)`: the input function's features as mtf tensors with `batch` as
  their first dimension, and for each loss term the count that its sum is divided by, a float32
  tf scalar of the whole batch;
- `eval_features(mesh, features)`: the same for evaluation;
- `terms(ctx, inputs)`: for training, each loss term's sum over valid positions, a float32 mtf
  scalar; the sums of microbatches add up to the batch's;
- `weights(step)`: by term, the weight in the total loss where it is not 1;
- `scores(ctx, inputs)`: for evaluation, by name a (sum, name of its count);
- `report(means, facts)`: the evaluation's results from the scores' means over the whole split,
  with `eval_loss` first;
- `shown`: the results that a line on the terminal names;
- `prepare()`: what has to be measured before the first step of a new run.
"""

from mesh.compat import mtf, tf


class Objective:
    """What the objectives share.

    Args:
      config: the run's config.
      facts: an inputs.Facts of the run's data.
      frozen: the training.frozen.Frozen weights of another run, where the kind needs them.
    """

    shown = ()

    def __init__(self, config, facts, frozen=None):
        self.config, self.facts, self.frozen = config, facts, frozen

    def eval_features(self, mesh, features):
        """What `features` gives at the first step; a kind that draws at random may differ."""
        return self.features(mesh, features, tf.constant(0))

    def weights(self, step):
        """By loss term, its weight at a step (an integer tf scalar); absent is 1."""
        del step
        return {}

    def prepare(self):
        """Measures what the first graph of a new run needs; most kinds need nothing."""

    def import_rows(self, mesh, tensors):
        """tf tensors as mtf tensors: {name: (tensor, names of its dimensions)} -> {name: …}."""
        return {name: mtf.import_tf_tensor(mesh, x, mtf.Shape([
            mtf.Dimension(dim, int(size)) for dim, size in zip(dims, x.shape, strict=True)]))
            for name, (x, dims) in tensors.items()}
