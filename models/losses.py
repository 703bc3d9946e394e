"""Loss terms. Each returns a numerator: a sum over valid positions, float32, on the mesh.

Its denominator is the number of valid positions of the whole batch, which the training step knows
before any microbatch runs: numerators of microbatches then add up to the batch's mean.
"""

from mesh import ops
from mesh.compat import mtf, tf
from models import similarity


def language_model(model, ctx, hidden, targets, mask):
    """−Σ log p(target) of a causal language model.

    Args:
      model: a models.gpt.GPT.
      ctx: a models.layers.Context.
      hidden: its final hidden states, [batch, sequence, embd].
      targets: int32 [batch, sequence]: the tokens that follow.
      mask: float32 [batch, sequence]: 1 at positions that count, 0 elsewhere.

    Returns:
      a float32 scalar, in nats.
    """
    logits = model.logits(ctx, hidden)
    loss, _ = ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)
    return mtf.reduce_sum(loss * mask)


def squared_error(predicted, target, dim):
    """The mean over `dim` of (predicted − target)². [..., dim] -> float32 [...]."""
    error = mtf.cast(predicted, tf.float32) - mtf.cast(target, tf.float32)
    return mtf.reduce_sum(mtf.square(error), reduced_dim=dim) / dim.size


def cosine(predicted, target, dim):
    """The cosine of the angle between them along `dim`. [..., dim] -> float32 [...]."""
    return mtf.reduce_sum(similarity.unit(predicted, dim) * similarity.unit(target, dim),
                          reduced_dim=dim)


def moments(x, mask, dim):
    """How far the features along `dim` are from a mean of 0 and a variance of 1 over positions.

    Args:
      x: [..., dim].
      mask: float32 [...]: 1 at positions that count, 0 elsewhere.
      dim: the features.

    Returns:
      a float32 scalar: mean² + (variance − 1)², averaged over `dim`, times the valid positions of
      the microbatch.
    """
    x, count = mtf.cast(x, tf.float32), mtf.reduce_sum(mask)

    def mean(values):
        return mtf.reduce_sum(values * mask, output_shape=[dim]) / (count + 1e-9)

    centre = mean(x)
    each = mtf.square(centre) + mtf.square(mean(mtf.square(x - centre)) - 1.0)
    return mtf.reduce_sum(each) / dim.size * count


def contrastive(predicted, targets, mask, temperature):
    """InfoNCE: each prediction has to find its own target among those of all slices.

    van den Oord et al. 2018, section 2.3, with cosines over a temperature as scores.

    Args:
      predicted, targets: [batch, clip_samples, clip_out].
      mask: float32 [batch, clip_samples]: 0 for those that neither ask nor are candidates.
      temperature: a number.

    Returns:
      a float32 scalar, in nats: the sum over valid samples.
    """
    logits = similarity.cosines(predicted, targets, mask) / temperature
    *rows, everyone = logits.shape.dims
    loss, _ = ops.softmax_cross_entropy(logits, similarity.own_index(logits.mesh, rows), everyone,
                                        everyone.size)
    return mtf.reduce_sum(loss * mask)


def relational(predicted, targets, mask):
    """The mean squared difference between the cosines among predictions and among targets.

    Park et al. 2019, Relational Knowledge Distillation, with cosines as the relation.

    Args:
      predicted, targets, mask: as in `contrastive`.

    Returns:
      a float32 scalar: the sum over valid samples of the mean over valid ones.
    """
    difference = similarity.cosines(predicted, predicted) - similarity.cosines(targets, targets)
    everyone = difference.shape.dims[-1]
    valid = mtf.reshape(mask, mtf.Shape([everyone]))
    each = mtf.reduce_sum(mtf.square(difference) * valid, reduced_dim=everyone)
    return mtf.reduce_sum(each * mask) / (mtf.reduce_sum(valid) + 1e-9)
