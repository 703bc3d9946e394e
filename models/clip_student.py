"""The student: CLIP's text knowledge with a meaningful output at every token.

It is causal, like CLIP's text tower, but has rotary positions instead of a table, no start or end
token, and a window: what it says at a token depends on the `window` tokens up to it in each layer.
"""

import dataclasses

from mesh import ops
from mesh.compat import mtf, tf
from models import attention, clip, layers, local, positions


@dataclasses.dataclass(frozen=True)
class StudentSizes:
    """The architecture of a student.

    Attributes:
      width: of the residual stream.
      layers: number of blocks.
      heads: attention heads of a block; they divide the width.
      vocab: rows of the token table: the teacher's ids, or the GPT's.
      out: width of the outputs: the teacher's.
      window: tokens that a token sees in each layer, itself included.
      rotary_dims: features of a head that rotate; even.
      activation: a name in models.activations.ACTIVATIONS.
    """

    width: int = 512
    layers: int = 12
    heads: int = 8
    vocab: int = 49408
    out: int = 512
    window: int = 75
    rotary_dims: int = 32
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


class Student:
    """A student on a mesh, with the CLIP towers' names of dimensions.

    Args:
      sizes: a StudentSizes.
      scope: the scope of its variables.
      recompute: in training, compute each block again in the backward pass.
    """

    def __init__(self, sizes, scope="clip_student", recompute=False):
        self.sizes, self.scope = sizes, scope
        self.embd = mtf.Dimension("clip_embd", sizes.width)
        self.vocab = mtf.Dimension("clip_vocab", sizes.vocab)
        self.out = mtf.Dimension("clip_out", sizes.out)
        self.blocks = clip.transformer(
            self.embd, sizes.heads, mtf.Dimension("clip_intermediate", 4 * sizes.width),
            sizes.layers, sizes.activation, sizes.epsilon, "clip", recompute)

    def outputs(self, ctx, tokens):
        """What the student says at each token.

        Args:
          ctx: a models.layers.Context.
          tokens: int32 [batch, clip_sequence], of any length.

        Returns:
          [batch, clip_sequence, clip_out].
        """
        def attend(ctx, qkv, layer):
            site = f"clip/h{layer}/attn/probabilities"
            return local.windowed(ctx, qkv, self.sizes.window, self.sizes.rotary_dims, 0.0, site)

        return self._stack(ctx, tokens, attend)

    def statistics(self, ctx, mean, deviation):
        """What its outputs are standardised by, kept with its weights: they are never trained.

        Args:
          ctx: a models.layers.Context.
          mean, deviation: of a new student: numbers, or numpy [clip_out].

        Returns:
          two float32 [clip_out].
        """
        with tf.variable_scope(self.scope, reuse=tf.AUTO_REUSE):
            # In float32 whatever the precision: a rounded mean would shift what it is taken from.
            return [ctx.variable(name, [self.out], layers.constant(value), trainable=False,
                                 dtype=tf.float32)
                    for name, value in (("target_mean", mean), ("target_deviation", deviation))]

    def table(self, ctx):
        """The token table, [clip_vocab, clip_embd]."""
        with tf.variable_scope(self.scope, reuse=tf.AUTO_REUSE):
            return ctx.variable("wte", [self.vocab, self.embd], layers.normal(0.02))

    def outputs_incremental(self, ctx, tokens, index, caches):
        """What the student says at new tokens, given the caches of earlier ones.

        Args:
          ctx: a models.layers.Context.
          tokens: int32 [batch, new_tokens].
          index: int32 [batch]: how many tokens of each row came before.
          caches: a list of (keys, values) for each layer, as `empty_caches` makes them.

        Returns:
          ([batch, new_tokens, clip_out], the new caches).
        """
        new, rotary_dims = [], self.sizes.rotary_dims
        position = index + mtf.range(ctx.mesh, tokens.shape.dims[-1], tf.int32)
        angles = positions.angles_of(ctx, position, rotary_dims)

        def attend(ctx, qkv, layer):
            out, cache = attention.causal_incremental(
                qkv, caches[layer], index, rotary_dims, angles, self.sizes.window)
            new.append(cache)
            return out

        return self._stack(ctx, tokens, attend), new

    def empty_caches(self, ctx, batch, length):
        """Caches for `length` tokens a row: a list of (keys, values) of zeros for each layer."""
        memory = mtf.Dimension("clip_memory_length", length)
        return attention.empty_caches(
            ctx, [batch, self.blocks.heads, memory, self.blocks.features], self.sizes.layers)

    def _stack(self, ctx, tokens, attend):
        sizes = self.sizes
        x = ops.gather(self.table(ctx), tokens, self.vocab, name="wte")
        with tf.variable_scope(self.scope, reuse=tf.AUTO_REUSE):
            for layer in range(sizes.layers):
                x = self.blocks(ctx, x, layer, attend)
            x = layers.layer_norm(ctx, x, self.embd, "norm_f", sizes.epsilon)
            return layers.dense(ctx, x, [self.embd], [self.out], "projection",
                                sizes.width ** -0.5)


class Reader:
    """A student as a language model: from its outputs alone the next token has to be told.

    It has what losses ask of a models.gpt.GPT. Its head, a projection to the student's token table,
    has a scope of its own: who takes the student leaves the head behind.

    Args:
      student: a Student.
      n_valid: how many of the vocabulary's ids the encoder has.
    """

    def __init__(self, student, n_valid):
        self.student, self.vocab, self.n_valid = student, student.vocab, n_valid

    def hidden(self, ctx, tokens):
        """What the student says: int32 [batch, clip_sequence] -> [..., clip_out]."""
        return self.student.outputs(ctx, tokens)

    def logits(self, ctx, hidden):
        """Scores of the next token. [..., clip_out] -> [..., clip_vocab]."""
        x, table, _ = self.head(ctx, hidden)
        table = mtf.transpose(table, mtf.Shape([self.student.embd, self.vocab]))
        return ops.dense(x, table, None, [self.student.embd], name="head")

    def head(self, ctx, hidden):
        """What makes the logits: [..., clip_embd], the table [clip_vocab, clip_embd], no bias."""
        student = self.student
        with tf.variable_scope("text_head", reuse=tf.AUTO_REUSE):
            x = layers.dense(ctx, hidden, [student.out], [student.embd], "projection",
                             student.out.size ** -0.5)
        return x, student.table(ctx), None
