"""GPT: transformer blocks over embedded tokens (Radford et al. 2019, section 2.3)."""

import dataclasses

from mesh import ops
from mesh.compat import mtf, tf
from models import attention_types, blocks, layers, moe, positions


class GPT:
    """A GPT language model on a mesh.

    Its dimensions are the names that layout rules use: `batch`, `sequence`, `memory_length`,
    `embed_sequence`, `embd`, `vocab`, `heads`, `features_per_head`, `intermediate_expanded`,
    `experts`, `expert_hidden`.

    Args:
      config: a configs.schema.RunConfig.
      n_valid: how many of the vocabulary's ids the encoder has; the others are padding.
      causal: whether a token sees only itself and what came before. A model that sees both ways
        has no incremental form.
    """

    def __init__(self, config, n_valid, causal=True):
        self.config = config
        self.n_valid = n_valid if config.pad_masked else config.n_vocab_padded
        self.embd = mtf.Dimension("embd", config.n_embd)
        self.vocab = mtf.Dimension("vocab", config.n_vocab_padded)
        self.heads = mtf.Dimension("heads", config.n_head)
        self.features = mtf.Dimension("features_per_head", config.head_size)
        style = blocks.Style(**{field.name: getattr(config, field.name)
                                for field in dataclasses.fields(blocks.Style)})
        self.blocks = blocks.Blocks(
            self.embd, self.heads, self.features,
            mtf.Dimension("intermediate_expanded", config.intermediate),
            config.activation_function, config.layer_norm_epsilon, self._deviations(),
            config.res_dropout, config.recompute_grad, style,
            moe.of(config, self.embd))
        self.attention = attention_types.Attention(config, self.heads, self.features, causal)

    def hidden(self, ctx, tokens):
        """Hidden states after the last block and its norm, for training and scoring.

        Args:
          ctx: a models.layers.Context.
          tokens: int32 [batch, sequence].

        Returns:
          [batch, sequence, embd].
        """
        return self.states(ctx, tokens)[-1]

    def states(self, ctx, tokens, join=None):
        """The residual stream after each block, and after the final norm: like `hidden`, a list.

        `join` changes the input of the first block: see `_stack`.
        """
        sequence = tokens.shape.dims[-1]
        index = mtf.range(ctx.mesh, sequence, tf.int32)
        return self._stack(ctx, tokens, index, self.attention.full, join)

    def hidden_incremental(self, ctx, tokens, index, caches, count=None, join=None):
        """Hidden states of new tokens, given the caches of earlier ones.

        Args:
          ctx: a models.layers.Context.
          tokens: int32 [batch, new_tokens]: the new tokens; no layout splits the second dimension.
          index: int32 [batch]: how many tokens of each row came before.
          caches: a list of tuples of tensors, one for each layer, as `empty_caches` makes them.
          count: int32 [batch]: how many of the new tokens belong to the row, where surplus ones
            follow; None is all. Linear attention takes each token once.
          join: see `states`.

        Returns:
          ([batch, new_tokens, embd], the new caches).
        """
        position = index + mtf.range(ctx.mesh, tokens.shape.dims[-1], tf.int32)
        ctx = dataclasses.replace(ctx, dropless=True)
        new, angles = list(caches), self.attention.angles(ctx, position)

        def attend(ctx, qkv, layer):
            out, new[layer] = self.attention.incremental(ctx, qkv, layer, caches[layer], index,
                                                         count, angles)
            return out

        return self._stack(ctx, tokens, position, attend, join)[-1], new

    def empty_caches(self, ctx, batch, length):
        """Caches for `length` tokens a row: see models.attention_types.Attention."""
        return self.attention.empty_caches(ctx, batch, length)

    def logits(self, ctx, hidden):
        """Scores of the next token. [batch, sequence, embd] -> [batch, sequence, vocab]."""
        hidden, kernel, bias = self.head(ctx, hidden)
        if bias is None:
            kernel = mtf.transpose(kernel, mtf.Shape([self.embd, self.vocab]))
        return ops.dense(hidden, kernel, bias, [self.embd], name="head")

    def head(self, ctx, hidden):
        """What makes the logits: hidden states, the kernel and its bias.

        That is [embd, vocab] and [vocab], or where it is the table of tokens [vocab, embd] and
        None.
        """
        with tf.variable_scope("gpt", reuse=tf.AUTO_REUSE):
            if self.config.no_weight_tie:
                return hidden, *layers.dense_weights(ctx, [self.embd], [self.vocab], "head",
                                                     self.config.initializer_range)
            return hidden, self._token_table(ctx), None

    def _token_table(self, ctx):
        return ctx.variable("wte", [self.vocab, self.embd],
                            layers.normal(self.config.initializer_range))

    def _stack(self, ctx, tokens, position, attend, join=None):
        """Embedding, blocks and final norm: the states after each block, and after the norm.

        `position` is int32 [sequence] or [batch, sequence]; `join`, from (ctx, x) to a tensor like
        x, changes the input of the first block.
        """
        config = self.config
        with tf.variable_scope("gpt", reuse=tf.AUTO_REUSE):
            x = ops.gather(self._token_table(ctx), tokens, self.vocab, name="wte")
            # Half of the tokens' scale, as in GPT-2.
            stddev = config.initializer_range / 2
            if config.position == "learned":
                length = mtf.Dimension("embed_sequence", config.n_ctx)
                x += positions.learned(ctx, position, length, self.embd, stddev)
            elif config.position == "axial":
                x += positions.axial(ctx, position, config.axial_shape, self.embd, stddev)
            x = layers.dropout(ctx, x, config.embed_dropout, "embedding")
            if join:
                x = join(ctx, x)
            states = []
            for layer in range(config.n_layer):
                attends = config.attention_types[layer] != "none"
                x = self.blocks(ctx, x, layer, attend if attends else None)
                states.append(x)
            # GPT-Neo's scalenorm is one of blocks alone.
            kind = "layer" if config.norm == "centred_scale" else config.norm
            return [*states, layers.norm(ctx, x, self.embd, "norm_f", kind)]

    def _deviations(self):
        """`initializer_range`, or with `scale_by_in` 1/√fan_in of it, as in GPT-Neo.

        With `scale_by_depth`, what adds to the residual stream starts 1/√n_layer smaller.
        """
        config = self.config
        depth = config.n_layer ** -0.5 if config.scale_by_depth else 1.0
        parts = 2 if config.activation_function == "crelu" else 1
        wide, wider = (config.initializer_range * (n ** -0.5 if config.scale_by_in else 1.0)
                       for n in (config.n_embd, config.intermediate * parts))
        return blocks.Blocks.Deviations(qkv=wide, attention_out=wide * depth, mlp_in=wide,
                                        mlp_out=wider * depth)
