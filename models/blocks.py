"""The pre-norm transformer block that every tower is made of."""

import dataclasses

from mesh.compat import mtf, tf
from models import layers


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks of one transformer: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      embd: the dimension of the residual stream.
      heads: attention heads.
      features: features of a head.
      intermediate: the hidden dimension of the feed-forward part.
      activation: a name in models.layers.ACTIVATIONS.
      epsilon: of the layer norms.
      stddevs: the initial standard deviations of the kernels, as in `Deviations`.
      dropout: rate on what is added to the residual stream.
      recompute: in training, compute a block again in the backward pass and keep only its input.
    """

    @dataclasses.dataclass(frozen=True)
    class Deviations:
        """Initial standard deviations of a block's four kernels."""

        qkv: float
        attention_out: float
        mlp_in: float
        mlp_out: float

    embd: mtf.Dimension
    heads: mtf.Dimension
    features: mtf.Dimension
    intermediate: mtf.Dimension
    activation: str
    epsilon: float
    stddevs: Deviations
    dropout: float = 0.0
    recompute: bool = False

    def __call__(self, ctx, x, layer, attend):
        """One block.

        Args:
          ctx: a models.layers.Context.
          x: [batch, sequence, embd].
          layer: its number; its variables are in the scope `h<layer>`.
          attend: (ctx, qkv, layer) -> [batch, sequence, heads, features], where qkv is
            [batch, sequence, qkv, heads, features].

        Returns:
          a tensor like `x`.
        """
        def block(x):
            y = layers.layer_norm(ctx, x, self.embd, "norm_1", self.epsilon)
            x += self._residual(ctx, self._attention(ctx, y, layer, attend), layer, "attn")
            y = layers.layer_norm(ctx, x, self.embd, "norm_2", self.epsilon)
            return x + self._residual(ctx, self._mlp(ctx, y), layer, "mlp")

        with tf.variable_scope(f"h{layer}"):
            if self.recompute and ctx.train:
                return mtf.recompute_grad(block, [x])
            return block(x)

    def _attention(self, ctx, x, layer, attend):
        with tf.variable_scope("attn"):
            qkv = mtf.Dimension("qkv", 3)
            packed = layers.dense(ctx, x, [self.embd], [qkv, self.heads, self.features], "qkv",
                                  self.stddevs.qkv)
            out = attend(ctx, packed, layer)
            return layers.dense(ctx, out, [self.heads, self.features], [self.embd], "out",
                                self.stddevs.attention_out)

    def _mlp(self, ctx, x):
        with tf.variable_scope("mlp"):
            h = layers.dense(ctx, x, [self.embd], [self.intermediate], "in", self.stddevs.mlp_in)
            h = layers.activation(h, self.activation)
            return layers.dense(ctx, h, [self.intermediate], [self.embd], "out",
                                self.stddevs.mlp_out)

    def _residual(self, ctx, x, layer, branch):
        return layers.dropout(ctx, x, self.dropout, f"h{layer}/{branch}/residual")
