"""Hugging Face's GPT-NeoX and Pythia (transformers' GPTNeoXForCausalLM)."""

import math
from typing import TYPE_CHECKING

from configs.schema import RunConfig
from interop.mapping import Rule, dense, norm
from interop.settings import activation_name

if TYPE_CHECKING:
    from interop.sources import Source

# Masks and wavelengths that older files hold, and a head that is the token table once more.
IGNORED = r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$|embed_out\.weight$"
GPT2_VOCABS = ()
# See hf_gpt2.
NEEDS = {"position": "rotary", "rotary_style": "halves"}
NO_PLACE = {"head/bias": "no_weight_tie"}


def short(name: str) -> str:
    """A tensor's name as the table has it."""
    # transformers' module says lm_head, its files embed_out.
    return name.removeprefix("gpt_neox.").replace("lm_head.", "embed_out.")


def full(name: str) -> str:
    """A tensor's name in files of transformers' model: the inverse of `short`."""
    return name if name.startswith("embed_out.") else "gpt_neox." + name


def rules(tied: bool = False, biased: bool = True) -> list[Rule]:
    """The table of variables.

    Args:
      tied: whether the head is the token table.
      biased: whether attention's dense layers have biases.
    """
    bias = ".bias" if biased else None
    heads = [] if tied else dense("head", "embed_out", "vocab embd -> embd vocab", bias=None)
    return [
        Rule("wte", "embed_in.weight", "vocab embd -> vocab embd"),
        *norm("h{}/norm_1", "layers.{}.input_layernorm"),
        # Of each head its queries, its keys and its values.
        *dense("h{}/attn/qkv", "layers.{}.attention.query_key_value",
               "(heads qkv features) embd -> embd qkv heads features", bias=bias),
        *dense("h{}/attn/out", "layers.{}.attention.dense",
               "embd (heads features) -> heads features embd", bias=bias),
        *norm("h{}/norm_2", "layers.{}.post_attention_layernorm"),
        *dense("h{}/mlp/in", "layers.{}.mlp.dense_h_to_4h", "hidden embd -> embd hidden"),
        *dense("h{}/mlp/out", "layers.{}.mlp.dense_4h_to_h", "embd hidden -> hidden embd"),
        *norm("norm_f", "final_layer_norm"),
        *heads]


def read(source: "Source") -> tuple[dict, list[Rule]]:
    """(our config's keys, the table of variables) of a sources.Source.

    Raises:
      UserError: a value cannot be used.
    """
    theirs = source.settings
    width, heads = theirs.whole("hidden_size", 6144), theirs.whole("num_attention_heads", 64)
    tied = theirs.flag("tie_word_embeddings", False)
    parallel = theirs.flag("use_parallel_residual", True)
    keys = dict(
        n_vocab=theirs.whole("vocab_size", 50432), n_embd=width, n_head=heads,
        n_layer=theirs.whole("num_hidden_layers", 44),
        n_ctx=theirs.whole("max_position_embeddings", 2048),
        intermediate_size=theirs.whole("intermediate_size", 24576),
        layer_norm_epsilon=theirs.number("layer_norm_eps", 1e-5),
        activation_function=theirs.activation("hidden_act", "gelu"),
        parallel_residual="two_norms" if parallel else "none",
        no_weight_tie=not tied, position="rotary", **_rotary(theirs, width // heads))
    return keys, rules(tied, theirs.flag("attention_bias", True))


def _rotary(theirs, head_size):
    """Our keys of rotary positions: rope_parameters of transformers 5, or what it had before."""
    if theirs["rope_scaling"]:
        raise theirs.error("rope_scaling", "only unscaled rotary positions can be imported")
    rope = theirs.section("rope_parameters")
    if rope["rope_type"] not in (None, "default"):
        raise rope.error("rope_type", "only \"default\" can be imported")
    share = rope.number("partial_rotary_factor", theirs.number("rotary_pct", 0.25))
    dims = int(head_size * share)
    if not dims:
        raise theirs.error("rotary_pct", f"none of a head's {head_size} features would rotate")
    return dict(rotary_dims=dims,
                rotary_base=rope.number("rope_theta", theirs.number("rotary_emb_base", 10000.0)))


def write(config: RunConfig) -> tuple[dict, list[Rule]]:
    """(transformers' config, the table of variables) of a run's config that is as NEEDS says.

    A block with one norm has it twice there.
    """
    share = config.rotary_size / config.head_size
    if int(config.head_size * share) < config.rotary_size:  # transformers rounds down
        share = math.nextafter(share, 1)
    table = rules(tied=not config.no_weight_tie)
    if config.parallel_residual == "one_norm":
        table = [_doubled(rule) for rule in table if not rule.ours.startswith("h{}/norm_2/")]
    return dict(
        architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", hidden_size=config.n_embd,
        num_hidden_layers=config.n_layer, num_attention_heads=config.n_head,
        max_position_embeddings=config.n_ctx, intermediate_size=config.intermediate,
        layer_norm_eps=config.layer_norm_epsilon, hidden_act=activation_name(config),
        use_parallel_residual=config.parallel_residual != "none", attention_bias=True,
        # As transformers 5 has them, and as others do.
        rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base,
                         "partial_rotary_factor": share},
        rotary_pct=share, rotary_emb_base=config.rotary_base,
        hidden_dropout=config.res_dropout, attention_dropout=config.attn_dropout,
        tie_word_embeddings=not config.no_weight_tie), table


def _doubled(rule):
    """The rule of a first norm as one that fills the second as well; another as it is."""
    if not rule.ours.startswith("h{}/norm_1/"):
        return rule
    second = rule.theirs.replace("input_layernorm", "post_attention_layernorm")
    return Rule(rule.ours, (rule.theirs, second), "2 embd -> embd")
