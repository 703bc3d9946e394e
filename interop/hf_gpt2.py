"""Hugging Face's GPT-2 (transformers' GPT2LMHeadModel)."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from configs.schema import RunConfig
from interop.mapping import Rule, dense, norm
from interop.settings import activation_name

if TYPE_CHECKING:
    from interop.sources import Source

# Masks that older files hold, and the head, which is the token table once more.
IGNORED = r"h\.\d+\.attn\.(bias|masked_bias)$|lm_head\.weight$"
GPT2_VOCABS = (50257,)
# What the config of a run has to say for transformers to have its model.
NEEDS = {"position": "learned", "parallel_residual": "none", "no_weight_tie": False}
# The keys that bring variables for which there is no place.
NO_PLACE: dict[str, str] = {}


def short(name: str) -> str:
    """A tensor's name as the table has it."""
    return name.removeprefix("transformer.")


def full(name: str) -> str:
    """A tensor's name in files of transformers' model: the inverse of `short`."""
    return "transformer." + name


def rules(queries: Callable | None = None) -> list[Rule]:
    """The table of variables; `queries` is what queries are multiplied by: see Rule."""
    return [
        Rule("wte", "wte.weight", "vocab embd -> vocab embd"),
        Rule("wpe", "wpe.weight", "positions embd -> positions embd"),
        *norm("h{}/norm_1", "h.{}.ln_1"),
        *dense("h{}/attn/qkv", "h.{}.attn.c_attn",
               "embd (qkv heads features) -> embd qkv heads features", queries=queries),
        *dense("h{}/attn/out", "h.{}.attn.c_proj",
               "(heads features) embd -> heads features embd"),
        *norm("h{}/norm_2", "h.{}.ln_2"),
        *dense("h{}/mlp/in", "h.{}.mlp.c_fc", "embd hidden -> embd hidden"),
        *dense("h{}/mlp/out", "h.{}.mlp.c_proj", "hidden embd -> hidden embd"),
        *norm("norm_f", "ln_f")]


def read(source: "Source") -> tuple[dict, list[Rule]]:
    """(our config's keys, the table of variables) of a sources.Source.

    Raises:
      UserError: it is a kind of GPT-2 that our model is not.
    """
    theirs = source.settings
    if theirs.flag("add_cross_attention", False):
        raise theirs.error("add_cross_attention", "models that attend to others are not taken")
    if not theirs.flag("tie_word_embeddings", True):
        raise theirs.error("tie_word_embeddings", "only tied heads can be imported")
    keys: dict[str, Any] = dict(
        n_vocab=theirs.whole("vocab_size", 50257), n_embd=theirs.whole("n_embd", 768),
        n_layer=theirs.whole("n_layer", 12), n_head=theirs.whole("n_head", 12),
        n_ctx=theirs.whole("n_positions", 1024),
        intermediate_size=theirs.whole("n_inner", 0),
        layer_norm_epsilon=theirs.number("layer_norm_epsilon", 1e-5),
        activation_function=theirs.activation("activation_function", "gelu_new"))
    # What differs from scores that are divided by √(size of a head) goes into the queries.
    factor = (1.0 if theirs.flag("scale_attn_weights", True)
              else math.sqrt(keys["n_embd"] // keys["n_head"]))
    if theirs.flag("scale_attn_by_inverse_layer_idx", False):
        return keys, rules(lambda layer: factor / (layer + 1))
    return keys, rules(None if factor == 1.0 else lambda layer: factor)


def write(config: RunConfig) -> tuple[dict, list[Rule]]:
    """(transformers' config, the table of variables) of a run's config that is as NEEDS says."""
    return dict(
        architectures=["GPT2LMHeadModel"], model_type="gpt2", n_embd=config.n_embd,
        n_layer=config.n_layer, n_head=config.n_head, n_positions=config.n_ctx,
        n_inner=config.intermediate, layer_norm_epsilon=config.layer_norm_epsilon,
        activation_function=activation_name(config), embd_pdrop=config.embed_dropout,
        resid_pdrop=config.res_dropout, attn_pdrop=config.attn_dropout,
        tie_word_embeddings=True), rules()
