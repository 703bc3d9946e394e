"""CLIP's text tower, as a model to train and as a teacher of prefixes; and the contrastive loss.

Source: Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision,
sections 2.3–2.5. The image tower is in models.clip_image.
"""

import dataclasses
import math

import numpy as np

from configs.errors import UserError
from mesh import ops
from mesh.compat import mtf, tf
from mesh.slices import local
from models import attention, blocks, layers, similarity

# CLIP's names of activations, which are Hugging Face's: their "gelu" is the exact one.
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu_exact"}

_HIGHEST_SCALE = 100.0


@dataclasses.dataclass(frozen=True)
class ClipSizes:
    """The architecture of a text tower; the defaults are those of OpenAI's ViT-B/32.

    Attributes:
      width: of the residual stream.
      layers: number of blocks.
      heads: attention heads of a block; they divide the width.
      context: rows of the position table: the longest text, start and end token included.
      vocab: rows of the token table.
      out: width of the embeddings, which images share.
      intermediate: hidden width of the feed-forward part; None for 4 × width.
      activation: "quick_gelu" (OpenAI) or "gelu" (OpenCLIP), the exact one with erf.
      epsilon: of the layer norms.
      start_id: the token before a text; None for vocab − 2.
      end_id: the token after a text, where it is read; None for vocab − 1.
    """

    width: int = 512
    layers: int = 12
    heads: int = 8
    context: int = 77
    vocab: int = 49408
    out: int = 512
    intermediate: int | None = None
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    start_id: int | None = None
    end_id: int | None = None

    def __post_init__(self):
        defaults = {"intermediate": 4 * self.width, "start_id": self.vocab - 2,
                    "end_id": self.vocab - 1}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.heads < 1 or self.width % self.heads:
            raise UserError(f"CLIP: {self.heads} heads do not divide the width {self.width}")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"CLIP: activation {self.activation!r} is not one of "
                            f"{', '.join(ACTIVATIONS)}")

    @property
    def longest_text(self):
        """The most tokens of a text that fit between start and end."""
        return self.context - 2


class TextTower:
    """OpenAI's text transformer on a mesh.

    Its dimensions, which layouts may split save for `clip_sequence` and `clip_features_per_head`:
    `clip_embd`, `clip_heads`, `clip_features_per_head`, `clip_intermediate`, `clip_out`,
    `clip_vocab`, `clip_sequence`, `clip_embed_sequence` (rows of the position table).

    Args:
      sizes: a ClipSizes.
      scope: the scope of its variables.
      recompute: in training, compute each block again in the backward pass.
    """

    def __init__(self, sizes, scope="clip_text", recompute=False):
        self.sizes, self.scope = sizes, scope
        self.embd = mtf.Dimension("clip_embd", sizes.width)
        self.vocab = mtf.Dimension("clip_vocab", sizes.vocab)
        self.positions = mtf.Dimension("clip_embed_sequence", sizes.context)
        self.out = mtf.Dimension("clip_out", sizes.out)
        self.blocks = transformer(
            self.embd, sizes.heads, mtf.Dimension("clip_intermediate", sizes.intermediate),
            sizes.layers, ACTIVATIONS[sizes.activation], sizes.epsilon, "clip",
            recompute)

    def embed(self, ctx, tokens, ends):
        """Embeddings of texts, not normalised.

        Args:
          ctx: a models.layers.Context.
          tokens: int32 [batch, clip_sequence], at most `context` long: the start token, the text,
            the end token, and anything after it.
          ends: int32 [batch]: the position of each row's end token. An end token inside of the text
            is a token like any other.

        Returns:
          [batch, clip_out].
        """
        batch, sequence = tokens.shape.dims
        if sequence.size > self.sizes.context:
            raise UserError(f"CLIP: a text of {sequence.size} tokens is longer than the context of "
                            f"{self.sizes.context}, start and end included; shorten it")

        def attend(ctx, qkv, layer):
            return attention.full(ctx, qkv, 0, 0.0, f"clip/h{layer}/attn/probabilities")

        x = self._blocks(ctx, tokens, mtf.range(ctx.mesh, sequence, tf.int32), attend)
        read = local(lambda v, i: tf.gather(v, i, batch_dims=1), [x, ends],
                     ([batch, self.embd], x.dtype), name="read")
        return self._project(ctx, read)

    def prefix_targets(self, ctx, tokens):
        """Embeddings of all prefixes of texts in one pass, not normalised.

        The stem, the start token and the text, goes through the blocks once, beside it an end token
        for each prefix, which sees its prefix of the stem and itself (see `prefix_pattern`): what
        `embed` gives for each prefix by itself.

        Args:
          ctx: a models.layers.Context.
          tokens: int32 [batch, clip_sequence]: texts with neither start nor end token.

        Returns:
          [batch, clip_sequence, clip_out]: at k − 1 that of the first k tokens.
        """
        batch, length = tokens.shape.dims
        n = length.size
        if n > self.sizes.longest_text:
            raise UserError(f"CLIP: a window of {n} tokens is longer than the teacher's "
                            f"{self.sizes.longest_text}, its context without start and end")
        positions, visible = prefix_pattern(n)
        both = mtf.Dimension(length.name, len(positions))

        def with_ends(t):
            around = [[0, 0], [1, 0]], [[0, 0], [0, n]]
            t = tf.pad(t, around[0], constant_values=self.sizes.start_id)
            return tf.pad(t, around[1], constant_values=self.sizes.end_id)

        def attend(ctx, qkv, layer):
            return attention.masked(qkv, visible)

        x = self._blocks(
            ctx, local(with_ends, [tokens], ([batch, both], tf.int32), name="with_ends"),
            mtf.import_tf_tensor(ctx.mesh, tf.constant(positions), mtf.Shape([both])), attend)
        read = local(lambda v: v[:, n + 1:], [x], ([batch, length, self.embd], x.dtype),
                     name="read")
        return self._project(ctx, read)

    def _blocks(self, ctx, tokens, positions, attend):
        """Embedding and blocks. `positions`: int32 [clip_sequence]."""
        with tf.variable_scope(self.scope, reuse=tf.AUTO_REUSE):
            table = ctx.variable("wte", [self.vocab, self.embd], layers.normal(0.02))
            x = ops.gather(table, tokens, self.vocab, name="wte")
            table = ctx.variable("wpe", [self.positions, self.embd], layers.normal(0.01))
            x += ops.gather(table, positions, self.positions, name="wpe")
            for layer in range(self.sizes.layers):
                x = self.blocks(ctx, x, layer, attend)
            return x

    def _project(self, ctx, x):
        """The final norm and the projection. [..., clip_embd] -> [..., clip_out]."""
        with tf.variable_scope(self.scope, reuse=tf.AUTO_REUSE):
            x = layers.layer_norm(ctx, x, self.embd, "norm_f", self.sizes.epsilon)
            kernel = ctx.variable("projection", [self.embd, self.out],
                                  layers.normal(self.sizes.width ** -0.5))
            return ops.dense(x, kernel, None, [self.embd], name="projection")


def transformer(embd, heads, intermediate, n_layers, activation, epsilon, prefix,
                recompute=False):
    """The blocks of a tower, with OpenAI's initial values.

    Args:
      embd: the dimension of the residual stream.
      heads: how many heads share it.
      intermediate: the hidden dimension of the feed-forward part.
      n_layers: how many blocks there will be.
      activation: a name in models.activations.ACTIVATIONS.
      epsilon: of the layer norms.
      prefix: of the names of dimensions: `<prefix>_heads`, `<prefix>_features_per_head`.
      recompute: in training, compute each block again in the backward pass.

    Returns:
      a models.blocks.Blocks.
    """
    added = (2 * n_layers * embd.size) ** -0.5
    return blocks.Blocks(
        embd, mtf.Dimension(f"{prefix}_heads", heads),
        mtf.Dimension(f"{prefix}_features_per_head", embd.size // heads), intermediate,
        activation, epsilon, blocks.Blocks.Deviations(
            qkv=embd.size ** -0.5, attention_out=added, mlp_in=(2 * embd.size) ** -0.5,
            mlp_out=added), recompute=recompute)


def prefix_pattern(n):
    """Where the 2n + 1 tokens of a two-stream pass stand, and whom they see.

    Index i <= n is the stem: the start token and n tokens of text. Index n + k is the end token of
    the first k tokens, for k = 1 … n.

    Args:
      n: how many tokens the text has.

    Returns:
      (int32 [2n + 1]: positions; bool [2n + 1, 2n + 1]: whether the row's token sees the column's).
    """
    stem, k = np.arange(n + 1), np.arange(1, n + 1)
    reach = np.concatenate([stem, k])
    visible = np.concatenate([stem[None, :] <= reach[:, None],
                              np.concatenate([np.zeros([n + 1, n], bool), np.eye(n, dtype=bool)])],
                             axis=1)
    return np.concatenate([stem, k + 1]).astype(np.int32), visible


def logit_scale(ctx):
    """The trainable logarithm of the inverse temperature: a scalar, at first that of 1/0.07."""
    with tf.variable_scope("clip", reuse=tf.AUTO_REUSE):
        return ctx.variable("logit_scale", [], layers.constant(math.log(1 / 0.07)))


def contrastive_loss(image_embeddings, text_embeddings, log_scale, mask=None):
    """Symmetric InfoNCE: each image against all texts of the batch, each text against all images.

    Negatives come from all slices of a split batch. Radford et al. 2021, figure 3.

    Args:
      image_embeddings: [batch, clip_out], not normalised.
      text_embeddings: [batch, clip_out]; row i belongs to image i.
      log_scale: logarithm of the inverse temperature, a scalar; the temperature is at least 1/100.
      mask: float32 [batch]: 0 for rows that are no pair, and None if all are.

    Returns:
      a float32 scalar: the sum over the pairs of both directions' mean, in nats. Its denominator is
      the number of pairs.
    """
    scale = _scale(mtf.cast(log_scale, tf.float32))
    own = similarity.own_index(image_embeddings.mesh, text_embeddings.shape.dims[:1])
    total = 0.0
    for queries, candidates in [(image_embeddings, text_embeddings),
                                (text_embeddings, image_embeddings)]:
        logits = similarity.cosines(queries, candidates, mask) * scale
        everyone = logits.shape.dims[-1]
        loss, _ = ops.softmax_cross_entropy(logits, own, everyone, everyone.size)
        total += mtf.reduce_sum(loss if mask is None else loss * mask)
    return total / 2


def _scale(log_scale):
    """exp(log_scale), at most 100; beyond that only gradients that lower it pass."""
    limit = math.log(_HIGHEST_SCALE)

    def gradient(inputs, outputs, grads):
        passes = tf.logical_or(inputs[0] <= limit, grads[0] > 0)
        return [tf.where_v2(passes, grads[0] * outputs[0], 0.0)]

    return local(lambda x: tf.exp(tf.minimum(x, limit)), [log_scale],
                 (log_scale.shape, log_scale.dtype), gradient, name="scale")
