"""The objective of GPT-C: a language model whose hidden states a CLIP student supervises.

The frozen student reads the GPT's own tokens; a linear projection of the GPT's hidden states, made
for this loss alone, has to say what the student says.
"""

import dataclasses
import functools
import operator

from configs.errors import UserError
from mesh import random
from mesh.compat import mtf, tf
from models import layers, losses
from training import language_models
from training.language import Language


class Supervision(Language):
    """Next-token prediction, and the student's outputs by one of four losses.

    Raises:
      UserError: the batch is too small for the positions that are to be compared.
    """

    shown = (*Language.shown, "loss/clip", "clip_cosine")

    def __init__(self, config, facts, frozen):
        super().__init__(config, facts, frozen)
        self.student = language_models.frozen_student(frozen)
        self.sampled = config.clip.loss in ("contrastive", "relational")
        rows = min(config.train_batch_size // config.num_microbatches, config.eval_batch_size)
        self.samples = max(1, config.clip.samples // config.train_batch_size)
        if self.sampled and rows * self.samples < 2:
            raise UserError(f"clip.samples: {config.clip.loss} compares positions with each other, "
                            "and a microbatch has but one; raise it or the batch size")

    def features(self, mesh, features, step):
        """Language's, and the student's tokens and the positions that are compared.

        clip_tokens: int32 [batch, clip_sequence]; clip_mask: float32 [batch, sequence], 1 where
        there is a student's output to compare with; of a loss over samples, clip_positions and
        clip_positions_mask [batch, clip_samples] instead of it.
        """
        given, counts = super().features(mesh, features, step)
        tokens = features["tokens"][:, :-1]
        mask = self._mask(tokens, features["valid"])
        shuffled = self.config.clip.control == "shuffled"
        rows = {"clip_tokens": (tf.roll(tokens, 1, axis=0) if shuffled else tokens,
                                ["batch", "clip_sequence"])}
        if self.sampled:
            mask, at = self._draw(mask, step)
            dims = ["batch", "clip_samples"]
            rows |= {"clip_positions": (at, dims), "clip_positions_mask": (mask, dims)}
        else:
            rows["clip_mask"] = (mask, ["batch", "sequence"])
        return given | self.import_rows(mesh, rows), counts | {"clip": tf.reduce_sum(mask)}

    def _mask(self, tokens, valid):
        """float32 [batch, n_ctx]: where a position and its target lie in one document."""
        ahead, n_ctx = self.config.clip.target, self.config.n_ctx
        inside = tf.sequence_mask(valid - ahead, n_ctx)
        if ahead and self.facts.eos_id is not None:
            ended = tf.cumsum(tf.cast(tf.equal(tokens, self.facts.eos_id), tf.int32), axis=1)
            later = tf.pad(ended[:, ahead:], [[0, 0], [0, ahead]])
            inside &= tf.equal(ended, later)
        return tf.cast(inside, tf.float32)

    def _draw(self, mask, step):
        """Positions without replacement: (mask, positions), each [batch, clip_samples]."""
        number = min(self.samples, self.config.n_ctx)
        # A hash: TensorFlow's random numbers are others on a TPU than on a CPU.
        key = random.mix(tf.constant(self.config.seed, tf.int32), step)
        index = tf.reshape(tf.range(mask.shape.num_elements()), mask.shape)
        noise = tf.cast(random.mix(key, index), tf.float32) * 2.0 ** -33
        _, at = tf.math.top_k(noise + mask, number)
        return tf.gather(mask, at, batch_dims=1), at

    def weights(self, step):
        """The weight of the supervision: warm-up, then a linear fall to 0 at weight_end."""
        keys, now = self.config.clip, tf.cast(step, tf.float32)
        weight = tf.constant(keys.weight)
        if keys.weight_warmup:
            weight *= tf.minimum(1.0, (now + 1.0) / keys.weight_warmup)
        if keys.weight_end:
            length = keys.weight_end - keys.weight_warmup
            weight *= tf.clip_by_value((keys.weight_end - now) / length, 0.0, 1.0)
        return {"clip": weight}

    def terms(self, ctx, inputs):
        """{"lm": in nats, "clip": the supervision}."""
        states = self.model.states(ctx, inputs["tokens"])
        return self._terms(ctx, states, inputs, *self._pairs(ctx, states, inputs))

    def scores(self, ctx, inputs):
        """The same, and the cosine of what the projection says and what the student says."""
        states = self.model.states(ctx, inputs["tokens"])
        said, wanted = self._pairs(ctx, states, inputs)
        totals = self._terms(ctx, states, inputs, said, wanted)
        mask = inputs["clip_positions_mask" if self.sampled else "clip_mask"]
        cosine = _mean([mtf.reduce_sum(losses.cosine(x, wanted, self.student.out) * mask)
                        for x in said])
        return {**{name: (total, name) for name, total in totals.items()},
                "clip_cosine": (cosine, "clip")}

    def report(self, means, facts):
        """Language's, the supervision's loss, which is no part of eval_loss, and clip_cosine."""
        return {**super().report(means, facts), "loss/clip": float(means["clip"]),
                "clip_cosine": float(means["clip_cosine"])}

    def _terms(self, ctx, states, inputs, said, wanted):
        """The sums over positions; the supervision's is averaged over the supervised layers."""
        return {"lm": losses.language_model(self.model, ctx, states[-1], inputs["targets"],
                                            inputs["mask"]),
                "clip": _mean([self._loss(x, wanted, inputs) for x in said])}

    def _pairs(self, ctx, states, inputs):
        """What each layer's projection says, and what it should, [batch, positions, clip_out]."""
        wanted = self._targets(ctx, inputs)
        if self.sampled:
            wanted = self._picked(wanted, inputs)
        else:
            wanted = mtf.replace_dimensions(wanted, wanted.shape.dims[1],
                                            inputs["clip_mask"].shape.dims[1])
        return [self._said(ctx, states, layer, inputs) for layer in self.config.clip.layer], wanted

    def _targets(self, ctx, inputs):
        """What the student says, `target` tokens ahead: [batch, clip_sequence, clip_out]."""
        ctx = dataclasses.replace(ctx, stored=self.frozen.initializer, dropout_key=None)
        outputs = mtf.stop_gradient(self.student.outputs(ctx, inputs["clip_tokens"]))
        ahead = self.config.clip.target
        return mtf.shift(outputs, -ahead, outputs.shape.dims[1], wrap=False) if ahead else outputs

    def _said(self, ctx, states, layer, inputs):
        """The projection of a layer's states: [batch, sequence or clip_samples, clip_out]."""
        pick = (lambda x: self._picked(x, inputs)) if self.sampled else None
        return projection(ctx, states, layer, self.model.embd, self.student.out, pick)

    def _picked(self, x, inputs):
        """x at the drawn positions: [batch, positions, features] -> [batch, clip_samples, …]."""
        at = inputs["clip_positions"]
        # Not a gather: a layout may split the positions, and a product adds in a fixed order.
        chosen = mtf.one_hot(at, x.shape.dims[1], dtype=x.dtype)
        return mtf.einsum([chosen, x], output_shape=at.shape.dims + x.shape.dims[2:])

    def _loss(self, said, wanted, inputs):
        keys, out = self.config.clip, self.student.out
        if self.sampled:
            mask = inputs["clip_positions_mask"]
            if keys.loss == "contrastive":
                return losses.contrastive(said, wanted, mask, keys.temperature)
            return losses.relational(said, wanted, mask)
        each = (losses.squared_error(said, wanted, out) if keys.loss == "mse"
                else 1.0 - losses.cosine(said, wanted, out))
        return mtf.reduce_sum(each * inputs["clip_mask"])


def projection(ctx, states, layer, embd, out, pick=None):
    """What a GPT-C says of a layer's states in its student's words.

    Args:
      ctx: a models.layers.Context.
      states: [batch, sequence, embd] after each block and the final norm, as GPT.states gives them.
      layer: one of `clip.layer`.
      embd: the mtf dimension of states.
      out: the student's mtf dimension of outputs.
      pick: takes positions of the states, or None for all.

    Returns:
      [batch, sequence or what `pick` makes of it, clip_out].
    """
    with tf.variable_scope("clip_head", reuse=tf.AUTO_REUSE), tf.variable_scope(f"{layer}"):
        x = states[-1] if layer == "last" else layers.layer_norm(ctx, states[layer - 1], embd,
                                                                 "norm")
        return layers.dense(ctx, pick(x) if pick else x, [embd], [out], "projection",
                            embd.size ** -0.5)


def _mean(totals):
    return functools.reduce(operator.add, totals) / len(totals)
