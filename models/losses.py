"""Loss terms. Each returns a numerator: a sum over valid positions, float32, on the mesh.

Its denominator is the number of valid positions of the whole batch, which the training step knows
before any microbatch runs: numerators of microbatches then add up to the batch's mean.
"""

from mesh import entmax, head_loss, ops
from mesh.compat import mtf, tf
from models import similarity


def language_model(model, ctx, hidden, targets, mask, count="lm"):
    """−Σ log p(target) of a language model; in training, the loss that the config asks for.

    That is a smoothed or an entmax loss in its place, and a z-loss beside it, which becomes a term
    of the context. Evaluation is always the plain cross-entropy.

    Args:
      model: a models.gpt.GPT.
      ctx: a models.layers.Context.
      hidden: its final hidden states, [batch, sequence, embd].
      targets: int32 [batch, sequence]: the tokens that are right.
      mask: float32 [batch, sequence]: 1 at positions that count, 0 elsewhere.
      count: the name of the objective's count of them.

    Returns:
      a float32 scalar, in nats.
    """
    config = ctx.config
    plain = not (config.z_loss or config.label_smoothing or config.entmax_alpha > 1)
    fused = ctx.train and plain  # the loss and its gradients need no logits of the whole batch
    if not fused:
        logits = model.logits(ctx, hidden)
        loss, log_z = ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)
    if ctx.train and config.z_loss:
        # Chowdhery et al. 2022, section 5.
        ctx.add_term("z", mtf.reduce_sum(mtf.square(log_z) * mask), count, config.z_loss)
    if ctx.train and config.entmax_alpha > 1:
        loss = entmax.entmax_loss(logits, targets, model.vocab, model.n_valid, config.entmax_alpha)
    elif ctx.train and config.label_smoothing:
        loss = smoothed(loss, log_z, logits, model, config.label_smoothing)
    if fused:
        hidden, kernel, bias = model.head(ctx, hidden)
        return head_loss.linear_cross_entropy(hidden, kernel, bias, targets, mask, model.vocab,
                                              model.n_valid)
    return mtf.reduce_sum(loss * mask)


def smoothed(loss, log_z, logits, model, share):
    """The cross-entropy with targets of which all ids have a `share` in equal parts.

    Szegedy et al. 2016, section 7, with `share` spread over the target too, as torch does.

    Args:
      loss, log_z: of the plain targets, float32 [batch, sequence]: see ops.softmax_cross_entropy.
      logits: [batch, sequence, vocab].
      model: the models.gpt.GPT of the logits.
      share: a number between 0 and 1.

    Returns:
      float32 [batch, sequence].
    """
    valid = mtf.less(mtf.range(loss.mesh, model.vocab, tf.int32), model.n_valid)
    weights = mtf.cast(valid, tf.float32) / model.n_valid
    mean = mtf.einsum([mtf.cast(logits, tf.float32), weights], output_shape=loss.shape)
    return loss * (1.0 - share) + (log_z - mean) * share


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
