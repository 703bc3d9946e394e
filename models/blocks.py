"""The transformer block that every tower is made of."""

import dataclasses

from mesh.compat import mtf, tf
from models import activations, layers


@dataclasses.dataclass(frozen=True)
class Style:
    """How blocks are put together; by default pre-norm as GPT-2's. The names are a config's keys.

    Attributes:
      norm: a kind of models.layers.norm.
      rezero: in place of norms, what a branch adds is multiplied by a trained scalar.
      parallel_residual: "one_norm": attention and feed-forward part read the same norm of the
        block's input, as in GPT-J; "two_norms": each a norm of its own, as in GPT-NeoX; "none": the
        feed-forward part reads what attention gave.
      macaron: half a feed-forward part before attention and half of one after it.
      mlp_glu: whether the feed-forward part is gated: GEGLU, SwiGLU and so on by the activation.
      share_parameters: whether all layers are one in weights, as in ALBERT.
    """

    norm: str = "layer"
    rezero: bool = False
    parallel_residual: str = "none"
    macaron: bool = False
    mlp_glu: bool = False
    share_parameters: bool = False


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks of one transformer: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
      embd: the dimension of the residual stream.
      heads: attention heads.
      features: features of a head.
      intermediate: the hidden dimension of the feed-forward part.
      activation: the name of one of models.activations.
      epsilon: of the norms.
      stddevs: the initial standard deviations of the kernels, as in `Deviations`.
      dropout: rate on what is added to the residual stream.
      recompute: in training, compute a block again in the backward pass and keep only its input.
      style: a Style.
      moe: None, or a models.moe.Experts in place of some layers' feed-forward part.
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
    style: Style = Style()
    moe: object = None

    def __call__(self, ctx, x, layer, attend):
        """One block.

        Args:
          ctx: a models.layers.Context.
          x: [batch, sequence, embd].
          layer: its number; its variables are in the scope `h<layer>`, or `h` if shared.
          attend: (ctx, qkv, layer) -> [batch, sequence, heads, features], where qkv is
            [batch, sequence, qkv, heads, features]; None is a block without an attention part.

        Returns:
          a tensor like `x`.
        """
        def block(x):
            if self.style.macaron:
                # As in GPT-Neo, the first half reads the stream itself and has no rezero.
                x += 0.5 * self._dropped(ctx, self._mlp(ctx, x, layer, "mlp_macaron"),
                                         layer, "mlp_macaron")
            parallel, stream = self.style.parallel_residual, x
            if attend or parallel == "one_norm":
                y = self._norm(ctx, x, "norm_1")
            if attend:
                stream += self._residual(ctx, self._attention(ctx, y, layer, attend), layer, "attn")
            if parallel != "one_norm":
                y = self._norm(ctx, stream if parallel == "none" else x, "norm_2")
            return stream + self._feed_forward(ctx, y, layer)

        with tf.variable_scope("h" if self.style.share_parameters else f"h{layer}"):
            if self.recompute and ctx.train:
                return layers.recomputed(ctx, block, x)
            return block(x)

    def _norm(self, ctx, x, name):
        if self.style.rezero:
            return x
        return layers.norm(ctx, x, self.embd, name, self.style.norm, self.epsilon)

    def _attention(self, ctx, x, layer, attend):
        with tf.variable_scope("attn"):
            qkv = mtf.Dimension("qkv", 3)
            packed = layers.dense(ctx, x, [self.embd], [qkv, self.heads, self.features], "qkv",
                                  self.stddevs.qkv)
            out = attend(ctx, packed, layer)
            return layers.dense(ctx, out, [self.heads, self.features], [self.embd], "out",
                                self.stddevs.attention_out)

    def _feed_forward(self, ctx, x, layer):
        """What the feed-forward part adds to the residual stream, given the norm of it."""
        experts = self.moe and layer in self.moe.layers
        y = self.moe(ctx, x, layer) if experts else self._mlp(ctx, x, layer, "mlp")
        return self._residual(ctx, 0.5 * y if self.style.macaron else y, layer, "mlp")

    def _mlp(self, ctx, x, layer, name):
        two, hidden, site = mtf.Dimension("glu", 2), [self.intermediate], f"h{layer}/{name}"
        with tf.variable_scope(name):
            inside = [two, *hidden] if self.style.mlp_glu else hidden
            h = layers.dense(ctx, x, [self.embd], inside, "in", self.stddevs.mlp_in)
            if self.style.mlp_glu:
                h = activations.gated(ctx, h, two, self.activation, site)
            elif self.activation == "crelu":
                h, hidden = activations.crelu(h, two), [two, *hidden]
            else:
                h = activations.activation(ctx, h, self.activation, site)
            return layers.dense(ctx, h, hidden, [self.embd], "out", self.stddevs.mlp_out)

    def _residual(self, ctx, x, layer, branch):
        x = self._dropped(ctx, x, layer, branch)
        if not self.style.rezero:
            return x
        with tf.variable_scope(branch):
            return layers.rezero(ctx, x)

    def _dropped(self, ctx, x, layer, branch):
        return layers.dropout(ctx, x, self.dropout, f"h{layer}/{branch}/residual")
