"""The objective of a masked language model: say which tokens were masked (Devlin et al. 2018).

Which tokens are masked is a hash of where they are, as dropout is: the same on every mesh, in
microbatches and after a resumption.
"""

import math

from mesh import ops, random
from mesh.compat import mtf, tf
from models import layers, losses
from training import language_models
from training.objective import Objective


class Masked(Objective):
    """Prediction of masked tokens from both sides.

    A row has the targets of a window, so that each of a split's tokens but the first is in one row,
    after `mlm_cls_token_id` where there is one. Training draws by (seed, step, row, position).
    Evaluation draws by what is in the row: it masks the same tokens each time, for any seed and
    batch size.
    """

    shown = ("mlm_perplexity", "mlm_accuracy")

    def __init__(self, config, facts, frozen=None):
        super().__init__(config, facts, frozen)
        self.model = language_models.build(config, facts.n_vocab, frozen)

    def features(self, mesh, features, step):
        """tokens, targets and mask (1 where a token is to be predicted), each [batch, sequence].

        Counts {"mlm"}: the tokens to predict in the whole batch.
        """
        rows = tf.range(features["tokens"].shape[0])
        key = random.mix(tf.constant(self.config.seed, tf.int32), step)
        return self._features(mesh, features, random.mix(key, rows))

    def eval_features(self, mesh, features):
        """The same, drawn by the rows' contents."""
        return self._features(mesh, features, fingerprints(features["tokens"]))

    def terms(self, ctx, inputs):
        """{"mlm": the negative log-likelihood of the tokens to predict, in nats}."""
        hidden = self.model.hidden(ctx, inputs["tokens"])
        return {"mlm": losses.language_model(self.model, ctx, hidden, inputs["targets"],
                                             inputs["mask"], count="mlm")}

    def scores(self, ctx, inputs):
        """The same, and how many of these tokens are the likeliest."""
        targets, mask, model = inputs["targets"], inputs["mask"], self.model
        logits = model.logits(ctx, model.hidden(ctx, inputs["tokens"]))
        loss, _ = ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)
        likeliest = ops.argmax(logits, model.vocab, model.n_valid)
        right = mtf.cast(mtf.equal(likeliest, targets), tf.float32)
        return {"mlm": (mtf.reduce_sum(loss * mask), "mlm"),
                "mlm_accuracy": (mtf.reduce_sum(right * mask), "mlm")}

    def report(self, means, facts):
        """eval_loss and its exponential, and the accuracy, all over the tokens to predict."""
        del facts
        loss = float(means["mlm"])
        return {"eval_loss": loss, "loss/mlm": loss, "mlm_perplexity": math.exp(min(loss, 700.0)),
                "mlm_accuracy": float(means["mlm_accuracy"])}

    def _features(self, mesh, features, keys):
        config = self.config
        targets = features["tokens"][:, 1:]
        counted = tf.sequence_mask(features["valid"], config.window_size)
        # What fills up an evaluation's last row is unknown to the model, and is not predicted.
        known = tf.where_v2(counted, targets, config.mlm_mask_id)
        if config.mlm_cls_token_id is not None:
            known, targets = (tf.pad(x, [[0, 0], [1, 0]], constant_values=config.mlm_cls_token_id)
                              for x in (known, targets))
            counted = tf.pad(counted, [[0, 0], [1, 0]])
        tokens, chosen = mask(config, self.facts.n_vocab, known, keys)
        chosen = tf.cast(tf.logical_and(chosen, counted), tf.float32)
        dims = ["batch", "sequence"]
        rows = {"tokens": (tokens, dims), "targets": (targets, dims), "mask": (chosen, dims)}
        return self.import_rows(mesh, rows), {"mlm": tf.reduce_sum(chosen)}


def mask(config, n_vocab, tokens, keys):
    """Chooses tokens to predict, and hides most of them.

    Of those chosen a share of `mlm_same_token_prob` stays, `mlm_random_token_prob` becomes any
    other token of the encoder, and the rest becomes the mask.

    Args:
      config: the run's config.
      n_vocab: how many ids the encoder has.
      tokens: int32 [batch, sequence].
      keys: int32 [batch]: decides, with the position, what happens to a token.

    Returns:
      (int32 tokens, bool: whether each is to be predicted), both like `tokens`.
    """
    specials = sorted({*config.mlm_mask_ignore_ids, config.mlm_mask_id, config.mlm_cls_token_id}
                      - {None})

    def draw(what):
        by_row = random.mix(keys, layers.site_number(f"mlm/{what}"))
        return random.fraction(random.mix(by_row[:, None], tf.range(tokens.shape[1])[None]))

    chosen = draw("chosen") < config.mlm_mask_prob
    for number in specials:
        chosen = tf.logical_and(chosen, tf.not_equal(tokens, number))
    ordinary = n_vocab - sum(number < n_vocab for number in specials)
    others = tf.minimum(tf.cast(draw("token") * ordinary, tf.int32), ordinary - 1)
    for number in specials:  # the ids that are left, in order, are those that are none
        others += tf.cast(others >= number, tf.int32)
    fate, same = draw("fate"), config.mlm_same_token_prob
    hidden = tf.where_v2(fate < same + config.mlm_random_token_prob, others, config.mlm_mask_id)
    hidden = tf.where_v2(fate < same, tokens, hidden)
    return tf.where_v2(chosen, hidden, tokens), chosen


def fingerprints(tokens):
    """int32 [batch]: a hash of each row of int32 [batch, sequence]."""
    return tf.reduce_sum(random.mix(tf.range(tokens.shape[1])[None], tokens), 1)
