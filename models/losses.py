"""Loss terms. Each returns a numerator: a sum over valid positions, float32, on the mesh.

Its denominator is the number of valid positions of the whole batch, which the training step knows
before any microbatch runs: numerators of microbatches then add up to the batch's mean.
"""

from mesh import ops
from mesh.compat import mtf


def language_model(model, ctx, tokens, targets, mask):
    """−Σ log p(target) of a causal language model.

    Args:
      model: a models.gpt.GPT.
      ctx: a models.layers.Context.
      tokens: int32 [batch, sequence]. targets: the tokens that follow them, [batch, sequence].
      mask: float32 [batch, sequence]: 1 at positions that count, 0 elsewhere.

    Returns:
      a float32 scalar, in nats.
    """
    logits = model.logits(ctx, model.hidden(ctx, tokens))
    loss, _ = ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)
    return mtf.reduce_sum(loss * mask)
