"""Mixture of experts: feed-forward parts of which a router chooses one or two for each token.

Shazeer et al. 2017; top-2 as in GShard (Lepikhin et al. 2020, algorithm 1), top-1 as in Switch
(Fedus et al. 2021, section 2), the router's z-loss as in ST-MoE (Zoph et al. 2022, section 3.3).

Shapes are static. Tokens are routed in groups, pieces of one sequence of at most `group_size`
tokens, and every expert takes up to `capacity` tokens of a group; what is over goes past the
experts, along the residual stream. So the tensors that say which token goes where hold tokens ×
experts × capacity numbers, which the size of a group bounds. And a token's route depends neither
on other sequences, nor on microbatches or the mesh.

Where the layout splits `batch` and `experts` over one axis, tokens travel to their experts and back
by all-to-all. Where it splits them over two, each slice's experts take the tokens of its own rows,
and their outputs are summed.
"""

import dataclasses
import math

from mesh import random
from mesh.compat import mtf, tf
from mesh.slices import local
from models import activations, layers, routing

# Where every expert has room for the whole group, groups are small to save memory.
_DROPLESS_GROUP = 128


@dataclasses.dataclass(frozen=True)
class Experts:
    """The feed-forward parts of those layers that have experts.

    Attributes:
      layers: the numbers of these layers.
      keys: the config's moe_params.
      embd: the dimension of the residual stream.
      activation: the name of one of models.activations, not crelu.
      stddevs: the initial standard deviations of the router, and of the kernels in and out.
      travel: whether the layout splits batch and experts over one mesh axis.
    """

    layers: tuple
    keys: object
    embd: mtf.Dimension
    activation: str
    stddevs: tuple
    travel: bool

    def __call__(self, ctx, x, layer):
        """x: [batch, sequence, embd] -> the same; adds loss terms to `ctx` in training."""
        batch, sequence, embd = x.shape.dims
        most = self.keys.group_size
        group = _group(sequence.size, min(most, _DROPLESS_GROUP) if ctx.dropless else most)
        groups = [batch, mtf.Dimension("moe_groups", sequence.size // group),
                  mtf.Dimension("moe_tokens", group)]
        with tf.variable_scope("moe"):
            # A group's tokens have to be together, though a layout may split the sequence.
            whole = mtf.replace_dimensions(x, sequence,
                                           mtf.Dimension("moe_sequence", sequence.size))
            x = mtf.reshape(whole, mtf.Shape([*groups, embd]))
            dispatch, combine = self._route(ctx, x, layer)
            y = self._dispatched(ctx, x, dispatch, combine, layer)
            return mtf.replace_dimensions(mtf.reshape(y, whole.shape), whole.shape.dims[1],
                                          sequence)

    def _route(self, ctx, x, layer):
        """Which tokens go where, and with what weight come back.

        Args:
          ctx: a models.layers.Context.
          x: [batch, moe_groups, moe_tokens, embd].
          layer: its number.

        Returns:
          two tensors [batch, moe_groups, moe_tokens, all_experts, moe_capacity], like x.
        """
        keys, rows = self.keys, x.shape.dims[:3]
        everyone = mtf.Dimension("all_experts", keys.num_experts)
        seen = mtf.cast(x, tf.float32)
        if ctx.train and keys.switch_jitter and keys.gating == "top_1":
            seen *= self._uniform(ctx, x.shape, layer, "jitter") * (2.0 * keys.switch_jitter) + (
                1.0 - keys.switch_jitter)
        with tf.variable_scope("router"):
            kernel = ctx.variable("kernel", [self.embd, everyone],
                                  layers.normal(self.stddevs[0]), dtype=tf.float32)
        logits = mtf.einsum([seen, kernel], output_shape=[*rows, everyone])
        capacity = mtf.Dimension("moe_capacity", self._capacity(ctx, rows[-1].size))
        inputs = [logits]
        policy, threshold = keys.second_policy(ctx.train)
        if keys.gating == "top_2" and policy == "random":
            inputs.append(self._uniform(ctx, mtf.Shape(rows), layer, "second"))

        def route(logits, *noise):
            return routing.route(logits, capacity.size, keys.gating, policy, threshold, *noise,
                                 second_place_loss=keys.use_second_place_loss)

        sums = (rows[:1], tf.float32)
        combine, balance, z = local(route, inputs, [([*rows, everyone, capacity], tf.float32),
                                                    sums, sums], name="route")
        if ctx.train:
            for name, total, weight in (("moe_balance", balance, keys.loss_coef),
                                        ("moe_z", z, keys.z_loss)):
                if weight:
                    ctx.add_term(name, mtf.reduce_sum(total), "tokens", weight)
        # What the weights' gradient does not reach.
        dispatch = local(lambda c: tf.cast(c > 0.0, x.dtype), [mtf.stop_gradient(combine)],
                         (combine.shape, x.dtype), name="dispatch")
        return dispatch, mtf.cast(combine, x.dtype)

    def _dispatched(self, ctx, x, dispatch, combine, layer):
        """Tokens to experts, through them and back: the arguments are those of `_route`."""
        batch, groups, tokens, embd = x.shape.dims
        everyone, capacity = dispatch.shape.dims[3:]
        experts = mtf.Dimension("experts", everyone.size)
        at_tokens = mtf.Shape([everyone if self.travel else experts, batch, groups, capacity, embd])
        at_experts = at_tokens
        if self.travel:
            at_experts = mtf.Shape([experts, mtf.Dimension("moe_batch", batch.size),
                                    *at_tokens.dims[2:]])
        else:
            dispatch, combine = (mtf.replace_dimensions(t, everyone, experts)
                                 for t in (dispatch, combine))
        h = mtf.einsum([x, dispatch], output_shape=at_tokens)
        h = self._experts(ctx, mtf.reshape(h, at_experts), experts, layer)
        return mtf.einsum([mtf.reshape(h, at_tokens), combine], output_shape=x.shape)

    def _experts(self, ctx, x, experts, layer):
        """Each expert's feed-forward part, without biases. x: [experts, …, embd] -> the same."""
        hidden = mtf.Dimension("expert_hidden", self.keys.hidden_size or 4 * self.embd.size)
        inside = mtf.Shape([*x.shape.dims[:-1], hidden])

        def product(y, name, dims, stddev, shape):
            with tf.variable_scope(name):
                kernel = ctx.variable("kernel", [experts, *dims], layers.normal(stddev))
            return mtf.einsum([y, kernel], output_shape=shape)

        h = product(x, "in", [self.embd, hidden], self.stddevs[1], inside)
        h = activations.activation(ctx, h, self.activation, f"h{layer}/moe")
        if self.keys.glu:
            h *= product(x, "up", [self.embd, hidden], self.stddevs[1], inside)
        h = layers.dropout(ctx, h, self.keys.dropout_rate, f"h{layer}/moe/hidden")
        return product(h, "out", [hidden, self.embd], self.stddevs[2], x.shape)

    def _capacity(self, ctx, group):
        """Tokens of a group that an expert takes, by mtf's rule, or all of them."""
        keys = self.keys
        if ctx.dropless:
            return group
        factor = keys.capacity_factor_train if ctx.train else keys.capacity_factor_eval
        return min(group, max(keys.min_expert_capacity, int(group * factor / keys.num_experts)))

    def _uniform(self, ctx, shape, layer, name):
        site = layers.site_number(f"h{layer}/moe/{name}")
        return random.uniform(shape, ctx.dropout_key, site)


def of(config, embd):
    """The Experts of a config, or None where no layer has any."""
    if not config.moe_layers:
        return None
    keys = config.moe_params

    def stddev(fan_in):
        return config.initializer_range * (fan_in ** -0.5 if config.scale_by_in else 1.0)

    depth = config.n_layer ** -0.5 if config.scale_by_depth else 1.0
    hidden = keys.hidden_size or 4 * config.n_embd
    stddevs = (config.initializer_range, stddev(config.n_embd), stddev(hidden) * depth)
    return Experts(tuple(config.moe_layers), keys, embd, config.moe_activation, stddevs,
                   config.experts_travel)


def _group(length, most):
    """The largest divisor of `length` that is at most `most`."""
    return next(length // n for n in range(math.ceil(length / most), length + 1)
                if length % n == 0)
