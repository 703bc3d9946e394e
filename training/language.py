"""The objective of a plain language model: predict the next token."""

from mesh.compat import tf
from models import losses
from training import language_models, metrics
from training.objective import Objective


class Language(Objective):
    """Next-token prediction."""

    shown = ("perplexity", "bits_per_byte")
    positions = "sequence"  # the name of the rows' second dimension

    def __init__(self, config, facts, frozen=None):
        super().__init__(config, facts, frozen)
        self.model = language_models.build(config, facts.n_vocab, frozen)

    def features(self, mesh, features, step):
        """tokens, targets and mask, each [batch, <positions>]; counts {"lm"}."""
        del step
        tokens, valid = features["tokens"], features["valid"]
        mask = tf.sequence_mask(valid, self.config.n_ctx, tf.float32)
        dims = ["batch", self.positions]
        rows = {"tokens": (tokens[:, :-1], dims), "targets": (tokens[:, 1:], dims),
                "mask": (mask, dims)}
        return self.import_rows(mesh, rows), {"lm": tf.cast(tf.reduce_sum(valid), tf.float32)}

    def terms(self, ctx, inputs):
        """{"lm": the negative log-likelihood of the targets, in nats}."""
        hidden = self.model.hidden(ctx, inputs["tokens"])
        return {"lm": losses.language_model(self.model, ctx, hidden, inputs["targets"],
                                            inputs["mask"])}

    def scores(self, ctx, inputs):
        """The same."""
        return {"lm": (self.terms(ctx, inputs)["lm"], "lm")}

    def report(self, means, facts):
        """eval_loss, the language model's loss; perplexity, and bits per byte of the text."""
        loss = float(means["lm"])
        return {"eval_loss": loss, "loss/lm": loss, **metrics.language_scores(loss, facts)}
