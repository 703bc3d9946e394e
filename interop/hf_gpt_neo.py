"""Hugging Face's GPT-Neo (transformers' GPTNeoForCausalLM)."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from configs.schema import RunConfig
from interop.mapping import Rule, dense, norm
from interop.settings import activation_name

if TYPE_CHECKING:
    from interop.sources import Source

# Masks that older files hold, and the head, which is the token table once more.
IGNORED = r"h\.\d+\.attn\.attention\.(bias|masked_bias)$|lm_head\.weight$"
GPT2_VOCABS = (50257,)
# See hf_gpt2.
NEEDS = {"position": "learned", "parallel_residual": "none", "no_weight_tie": False}
NO_PLACE = {"attn/qkv/bias": "attention_types"}


def short(name: str) -> str:
    """A tensor's name as the table has it."""
    return name.removeprefix("transformer.")


def full(name: str) -> str:
    """A tensor's name in files of transformers' model: the inverse of `short`."""
    return "transformer." + name


def rules(queries: Callable) -> list[Rule]:
    """The table of variables; `queries` is what queries are multiplied by: see Rule."""
    attention = "h.{}.attn.attention."
    return [
        Rule("wte", "wte.weight", "vocab embd -> vocab embd"),
        Rule("wpe", "wpe.weight", "positions embd -> positions embd"),
        *norm("h{}/norm_1", "h.{}.ln_1"),
        *dense("h{}/attn/qkv", tuple(f"{attention}{name}_proj" for name in "qkv"),
               "qkv (heads features) embd -> embd qkv heads features", bias=None, queries=queries),
        *dense("h{}/attn/out", f"{attention}out_proj",
               "embd (heads features) -> heads features embd"),
        *norm("h{}/norm_2", "h.{}.ln_2"),
        *dense("h{}/mlp/in", "h.{}.mlp.c_fc", "hidden embd -> embd hidden"),
        *dense("h{}/mlp/out", "h.{}.mlp.c_proj", "embd hidden -> hidden embd"),
        *norm("norm_f", "ln_f")]


def read(source: "Source") -> tuple[dict, list[Rule]]:
    """(our config's keys, the table of variables) of a sources.Source.

    GPT-Neo does not divide its scores by √(size of a head), so the queries make up for it.

    Raises:
      UserError: a value cannot be used.
    """
    theirs = source.settings
    width, heads = theirs.whole("hidden_size", 2048), theirs.whole("num_heads", 16)
    layers = theirs.whole("num_layers", 24)
    keys = dict(
        n_vocab=theirs.whole("vocab_size", 50257), n_embd=width, n_layer=layers, n_head=heads,
        n_ctx=theirs.whole("max_position_embeddings", 2048),
        intermediate_size=theirs.whole("intermediate_size", 0),
        attention_types=theirs["attention_types"] or [[["global", "local"], -(-layers // 2)]],
        local_attention_radius=theirs.whole("window_size", 256),
        layer_norm_epsilon=theirs.number("layer_norm_epsilon", 1e-5),
        activation_function=theirs.activation("activation_function", "gelu_new"))
    return keys, rules(lambda layer: math.sqrt(width // heads))


def write(config: RunConfig) -> tuple[dict, list[Rule]]:
    """(transformers' config, the table of variables) of a run's config that is as NEEDS says."""
    return dict(
        architectures=["GPTNeoForCausalLM"], model_type="gpt_neo", hidden_size=config.n_embd,
        num_layers=config.n_layer, num_heads=config.n_head,
        max_position_embeddings=config.n_ctx, intermediate_size=config.intermediate,
        attention_types=[[[kind], 1] for kind in config.attention_types or ()],
        window_size=config.local_attention_radius, layer_norm_epsilon=config.layer_norm_epsilon,
        activation_function=activation_name(config), embed_dropout=config.embed_dropout,
        resid_dropout=config.res_dropout, attention_dropout=config.attn_dropout,
        tie_word_embeddings=True), rules(lambda layer: math.sqrt(config.head_size))
