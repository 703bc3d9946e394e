"""A model of a training step on a TPU slice, by arithmetic alone: to leave layouts out by.

The matrix products of a step, the bytes that go through a core's memory, and the collectives that
a layout's rules bring, with the formulas of mesh/estimate.py for links. It knows none of what the
compiler does, so it orders layouts, and the compiler decides among the best.
"""

import itertools
import math
from typing import NamedTuple

from mesh import estimate, torus
from mesh.optimized import Collective

_FLOAT = 4  # bytes of weights, gradients and optimizer slots
_PEAK = 0.5  # the share of the peak that products of this size reach
# How often a block's elementwise work reads or writes the residual stream, forward, and its
# attention all weights.
_STREAM, _SCORES = 12, 3


class Estimate(NamedTuple):
    """Of one core: `memory` in bytes; seconds of a step by part, "compute" and "links"."""

    memory: float
    compute: float
    links: float

    @property
    def seconds(self):
        """Of a step."""
        return self.compute + self.links


def of_config(config, tpu):
    """The Estimate of a config's layout.

    Args:
      config: a RunConfig of a language model. tpu: a mesh.tpus.Slice of as many cores.
    """
    return _Step(config, tpu).estimate()


def parameters(config):
    """How many weights a language model has, or a student."""
    whole = _Step(config.replace(mesh_shape="", layout=""), None)
    return sum(number * size for number, size, _ in whole.weights())


class _Step:
    """What of_config computes, part by part; see there for the arguments."""

    def __init__(self, config, tpu):
        self.config, self.tpu = config, tpu
        self.axis, self.size = dict(config.layout_rules), dict(config.mesh)
        self.bytes = 2 if config.precision == "bfloat16" else _FLOAT
        # Forward, backward by both factors of a product, and forward once more.
        self.products = 4 if config.recompute_grad else 3
        self.times = 3 if config.recompute_grad else 2
        self.rows = (config.train_batch_size / self.over("batch") / config.num_microbatches)
        self.tokens = self.rows * config.n_ctx / self.over("sequence")
        kinds = config.attention_types
        reach = {"global": config.n_ctx, "local": min(config.local_attention_radius, config.n_ctx)}
        # Weights of attention of one layer, the mean over layers.
        self.scores = (self.tokens * sum(reach.get(kind, 0) for kind in kinds) / len(kinds)
                       * config.n_head / self.over("heads", "memory_length"))

    def over(self, *names):
        """Over how many cores dimensions are split, together."""
        return math.prod(self.size[self.axis[name]] for name in names if name in self.axis)

    def weights(self):
        """[(how many, elements of one core, names of their dimensions)] of weights."""
        config = self.config
        width, layers = config.n_embd, 1 if config.share_parameters else config.n_layer
        moe = len(config.moe_layers) if config.moe_layers else 0
        experts = config.moe_params.num_experts
        hidden = config.moe_params.hidden_size or 4 * width
        tables = 2 if config.no_weight_tie else 1
        found = [(layers, 4 * width * width, ("embd", "heads", "features_per_head")),
                 (layers - moe, 2 * width * config.intermediate,
                  ("embd", "intermediate_expanded")),
                 (moe, 2 * width * hidden * experts, ("embd", "experts", "expert_hidden")),
                 (tables, config.n_vocab_padded * width, ("vocab", "embd"))]
        if config.position == "learned":
            found.append((1, config.n_ctx * width, ("embed_sequence", "embd")))
        return [(number, size / self.over(*dims), dims) for number, size, dims in found if number]

    def memory(self):
        """Bytes: weights, gradients, slots and activations."""
        config, tokens = self.config, self.tokens
        slots = 0 if config.opt_name == "adafactor" else 2
        kept = (2 + slots) * _FLOAT * sum(number * size for number, size, _ in self.weights())
        width = config.n_embd
        inner = self.bytes * (tokens * (4 * width / self.over("heads", "features_per_head")
                                        + 2 * config.intermediate
                                        / self.over("intermediate_expanded")
                                        + 4 * width / self.over("embd")) + 2 * self.scores)
        stream = self.bytes * tokens * width / self.over("embd")
        layers = config.n_layer
        active = layers * stream + inner if config.recompute_grad else layers * inner
        logits = self.bytes * tokens * config.n_vocab_padded / self.over("vocab")
        return kept + active + logits

    def compute(self):
        """Seconds of products, and of what goes through a core's memory."""
        config, chip = self.config, self.tpu.generation
        moe = config.moe_params
        used = (1 if moe.gating == "top_1" else 2) / moe.num_experts
        flops = 2 * self.tokens * sum(
            number * size * (used * self.over("experts") if "experts" in dims else 1)
            for number, size, dims in self.weights() if dims[0] != "embed_sequence")
        if config.share_parameters:
            flops *= config.n_layer
        if config.no_weight_tie:  # one of the two tables is looked up, and not multiplied with
            flops -= 2 * self.tokens * config.n_vocab_padded * config.n_embd / self.over(
                "vocab", "embd")
        flops += 4 * self.scores * config.head_size / self.over("features_per_head") * len(
            config.attention_types)
        moved = self.bytes * config.n_layer * (
            _STREAM * self.tokens * config.n_embd / self.over("embd") + _SCORES * self.scores)
        moved += 2 * _FLOAT * self.tokens * config.n_vocab_padded / self.over("vocab")
        often = self.products * config.num_microbatches
        updates = 7 * _FLOAT * sum(number * size for number, size, _ in self.weights())
        return (often * (flops / (_PEAK * chip.peak) + moved / chip.memory_rate)
                + updates / chip.memory_rate)

    def reduced(self):
        """(bytes, names of dimensions that are summed over, times) of a step's all-reduces."""
        config, tokens, layers = self.config, self.tokens, self.config.n_layer
        for number, size, dims in self.weights():
            yield number * size * _FLOAT, {"batch", "sequence"} - set(dims), 1
        count = config.num_microbatches
        stream = tokens * config.n_embd * self.bytes / self.over("embd")
        moe = len(config.moe_layers or [])
        repeated = layers * self.times * count
        # Outputs of attention and feed-forward, forward, and gradients of their inputs.
        yield stream, {"heads"}, repeated
        yield stream, {"intermediate_expanded"}, (layers - moe) * self.times * count
        yield stream, {"experts"}, moe * self.times * count
        yield stream, {"expert_hidden"}, moe * self.times * count
        yield stream, {"vocab"}, 2 * count
        # Scores of heads that are cut; outputs of parts of the positions.
        yield self.scores * self.bytes, {"features_per_head"}, repeated
        inside = tokens * config.n_embd * self.bytes / self.over("heads", "features_per_head")
        yield inside, {"memory_length"}, repeated
        # Keys and values of all positions, and their gradients.
        yield 2 * inside * self.over("sequence"), {"sequence"}, repeated
        # Products with a width that is cut: queries, keys and values, hidden layers, logits.
        yield 3 * inside, {"embd"}, repeated
        yield (tokens * config.intermediate * self.bytes / self.over("intermediate_expanded"),
               {"embd"}, repeated)
        yield (tokens * config.n_vocab_padded * self.bytes / self.over("vocab"), {"embd"}, count)

    def links(self):
        """Seconds of collectives."""
        rate = {}
        total = 0.0
        for size, names, times in self.reduced():
            axes = frozenset(self.axis[name] for name in names if name in self.axis)
            if axes and axes not in rate:
                rate[axes] = self.seconds_a_byte(axes)
            total += size * times * rate[axes] if axes else 0
        return total

    def seconds_a_byte(self, axes):
        """Of an all-reduce over mesh axes."""
        where = torus.order(self.config.mesh, self.tpu.torus)
        group = []
        ranges = [range(size) if name in axes else [0] for name, size in self.config.mesh]
        for place in itertools.product(*ranges):
            position = 0
            for number, (_, size) in zip(place, self.config.mesh, strict=True):
                position = position * size + number
            group.append(where[position])
        megabyte = Collective("all-reduce", 10**6, (tuple(group),), 1, "")
        return estimate.seconds_of(megabyte, self.tpu.coordinates, self.tpu.generation) / 10**6

    def estimate(self):
        """All of it."""
        return Estimate(self.memory(), self.compute(), self.links())
