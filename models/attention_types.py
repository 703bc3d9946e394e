"""The attention of a GPT's layers: each layer has one of the config's `attention_types`."""

from mesh.compat import mtf
from models import attention, linear, local, positions
from models.layers import normal
from models.scores import alibi_slopes


class Attention:
    """The attention of every layer, in full form, to train, and in incremental form, to decode.

    `num_mem_kv` learned keys and values of each head belong to global and local layers, in the
    current variable scope; linear ones sum over positions and have none, as in GPT-Neo. A layer of
    type "none" has no attention: nobody calls this for it.

    Args:
      config: a configs.schema.RunConfig.
      heads: the dimension of attention heads.
      features: the dimension of a head's features.
      causal: whether a token sees only itself and what came before.
    """

    def __init__(self, config, heads, features, causal=True):
        self._config, self._heads, self._features = config, heads, features
        self._causal = causal
        self._rotary_dims = positions.rotary_of(config)
        self._slopes = alibi_slopes(heads.size) if config.position == "alibi" else None

    def full(self, ctx, qkv, layer):
        """Attention among all tokens.

        Args:
          ctx: a models.layers.Context.
          qkv: queries, keys and values, [batch, sequence, qkv, heads, features_per_head].
          layer: its number.

        Returns:
          [batch, sequence, heads, features_per_head].
        """
        config, kind = self._config, self._config.attention_types[layer]
        if kind == "linear":
            return linear.full(qkv, self._rotary_dims, self._causal)
        settings = dict(rotary_dims=self._rotary_dims, rate=config.attn_dropout,
                        site=f"h{layer}/attn/probabilities", causal=self._causal,
                        learned=self._learned(ctx), slopes=self._slopes)
        if kind == "local":
            return local.windowed(ctx, qkv, config.local_attention_radius, **settings)
        return attention.full(ctx, qkv, **settings)

    def incremental(self, ctx, qkv, layer, cache, index, count, angles):
        """Causal attention of new tokens to each other and to those in a cache.

        Args:
          ctx, layer: see `full`.
          qkv: of the new tokens, [batch, new_tokens, qkv, heads, features_per_head].
          cache: the layer's of `empty_caches`, or as this returned it.
          index: int32 [batch]: how many tokens of each row came before.
          count: int32 [batch]: how many of the new tokens belong to the row, or None for all.
          angles: `angles` of the new tokens.

        Returns:
          ([batch, new_tokens, heads, features_per_head], the new cache).
        """
        kind = self._config.attention_types[layer]
        if kind == "linear":
            return linear.incremental(qkv, cache, count, self._rotary_dims, angles)
        window = self._config.local_attention_radius if kind == "local" else None
        return attention.causal_incremental(qkv, cache, index, self._rotary_dims, angles,
                                            window, self._learned(ctx), self._slopes)

    def angles(self, ctx, position):
        """models.positions.angles_of tokens at `position`, int32 [batch, new_tokens]."""
        return positions.angles_of(ctx, position, self._rotary_dims)

    def empty_caches(self, ctx, batch, length):
        """Caches of each layer for `length` tokens a row: a list of tuples of tensors of zeros.

        Keys and values where a softmax looks at them, one tensor of sums for linear attention, and
        none where there is no attention.
        """
        memory = mtf.Dimension("memory_length", length)
        shape = [batch, self._heads, memory, self._features]
        makers = {"linear": lambda: linear.empty_cache(ctx, batch, self._heads, self._features),
                  "none": tuple}
        return [makers.get(kind, lambda: attention.empty_caches(ctx, shape, 1)[0])()
                for kind in self._config.attention_types]

    def _learned(self, ctx):
        """The layer's learned keys and values, two of [mem_kv, heads, features_per_head]."""
        number = self._config.num_mem_kv
        if not number:
            return ()
        dims = [mtf.Dimension("mem_kv", number), self._heads, self._features]
        return tuple(ctx.variable(name, dims, normal(self._features.size ** -0.5))
                     for name in ("mem_k", "mem_v"))
