"""Hugging Face's GPT-J (transformers' GPTJForCausalLM)."""

from typing import TYPE_CHECKING

from configs.schema import RunConfig
from interop.mapping import Rule, dense, norm
from interop.settings import activation_name

if TYPE_CHECKING:
    from interop.sources import Source

# Masks that older files hold, and a head that is the token table once more.
IGNORED = r"h\.\d+\.attn\.(bias|masked_bias)$|lm_head\.weight$"
GPT2_VOCABS = (50257, 50400)
# See hf_gpt2.
NEEDS = {"position": "rotary", "rotary_style": "interleaved", "rotary_base": 10000.0,
         "parallel_residual": "one_norm", "no_weight_tie": True}
NO_PLACE = {"attn/qkv/bias": "rotary_style", "attn/out/bias": "rotary_style"}


def short(name: str) -> str:
    """A tensor's name as the table has it."""
    return name.removeprefix("transformer.")


def full(name: str) -> str:
    """A tensor's name in files of transformers' model: the inverse of `short`."""
    return name if name.startswith("lm_head.") else "transformer." + name


def rules(tied: bool = False) -> list[Rule]:
    """The table of variables; a head that is tied to the token table has a bias all the same."""
    return [
        Rule("wte", "wte.weight", "vocab embd -> vocab embd"),
        *norm("h{}/norm_1", "h.{}.ln_1"),
        *dense("h{}/attn/qkv", tuple(f"h.{{}}.attn.{name}_proj" for name in "qkv"),
               "qkv (heads features) embd -> embd qkv heads features", bias=None),
        *dense("h{}/attn/out", "h.{}.attn.out_proj",
               "embd (heads features) -> heads features embd", bias=None),
        *dense("h{}/mlp/in", "h.{}.mlp.fc_in", "hidden embd -> embd hidden"),
        *dense("h{}/mlp/out", "h.{}.mlp.fc_out", "embd hidden -> hidden embd"),
        *norm("norm_f", "ln_f"),
        Rule("head/kernel", "wte.weight" if tied else "lm_head.weight", "vocab embd -> embd vocab"),
        Rule("head/bias", "lm_head.bias", "vocab -> vocab")]


def read(source: "Source") -> tuple[dict, list[Rule]]:
    """(our config's keys, the table of variables) of a sources.Source.

    Raises:
      UserError: a value cannot be used.
    """
    theirs = source.settings
    rotary = theirs.whole("rotary_dim", 0)
    if not rotary:
        raise theirs.error("rotary_dim", "how many features of a head rotate has to be given")
    keys = dict(
        n_vocab=theirs.whole("vocab_size", 50400), n_embd=theirs.whole("n_embd", 4096),
        n_layer=theirs.whole("n_layer", 28), n_head=theirs.whole("n_head", 16),
        n_ctx=theirs.whole("n_positions", 2048), intermediate_size=theirs.whole("n_inner", 0),
        layer_norm_epsilon=theirs.number("layer_norm_epsilon", 1e-5),
        activation_function=theirs.activation("activation_function", "gelu_new"),
        parallel_residual="one_norm", no_weight_tie=True, position="rotary", rotary_dims=rotary,
        rotary_style="interleaved")
    return keys, rules(theirs.flag("tie_word_embeddings", False))


def write(config: RunConfig) -> tuple[dict, list[Rule]]:
    """(transformers' config, the table of variables) of a run's config that is as NEEDS says."""
    return dict(
        architectures=["GPTJForCausalLM"], model_type="gptj", n_embd=config.n_embd,
        n_layer=config.n_layer, n_head=config.n_head, n_positions=config.n_ctx,
        n_inner=config.intermediate, rotary_dim=config.rotary_size,
        layer_norm_epsilon=config.layer_norm_epsilon,
        activation_function=activation_name(config), embd_pdrop=config.embed_dropout,
        resid_pdrop=config.res_dropout, attn_pdrop=config.attn_dropout,
        tie_word_embeddings=False), rules()
