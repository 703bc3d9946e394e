"""nanoGPT's ckpt.pt (https://github.com/karpathy/nanoGPT, model.py and train.py)."""

from typing import TYPE_CHECKING

from interop.mapping import Rule, dense, norm

if TYPE_CHECKING:
    from interop.sources import Source

# Masks that it keeps where PyTorch has no fast attention, and the head, which is the token table.
IGNORED = r"h\.\d+\.attn\.bias$|lm_head\.weight$"
# GPT-2's, and the same padded to a multiple of 64, which is its default.
GPT2_VOCABS = (50257, 50304)


def short(name: str) -> str:
    """A tensor's name as the table has it; compiled models have a prefix."""
    return name.removeprefix("_orig_mod.").removeprefix("transformer.")


def rules(biased: bool = True) -> list[Rule]:
    """The table of variables; `biased` is whether dense layers and norms have biases."""
    bias = ".bias" if biased else None
    return [
        Rule("wte", "wte.weight", "vocab embd -> vocab embd"),
        Rule("wpe", "wpe.weight", "positions embd -> positions embd"),
        *norm("h{}/norm_1", "h.{}.ln_1", bias=bias),
        *dense("h{}/attn/qkv", "h.{}.attn.c_attn",
               "(qkv heads features) embd -> embd qkv heads features", bias=bias),
        *dense("h{}/attn/out", "h.{}.attn.c_proj",
               "embd (heads features) -> heads features embd", bias=bias),
        *norm("h{}/norm_2", "h.{}.ln_2", bias=bias),
        *dense("h{}/mlp/in", "h.{}.mlp.c_fc", "hidden embd -> embd hidden", bias=bias),
        *dense("h{}/mlp/out", "h.{}.mlp.c_proj", "embd hidden -> hidden embd", bias=bias),
        *norm("norm_f", "ln_f", bias=bias)]


def read(source: "Source") -> tuple[dict, list[Rule]]:
    """(our config's keys, the table of variables) of a sources.Source.

    Raises:
      UserError: a value cannot be used.
    """
    theirs = source.settings
    return dict(
        n_vocab=theirs.whole("vocab_size", 50304), n_embd=theirs.whole("n_embd", 768),
        n_layer=theirs.whole("n_layer", 12), n_head=theirs.whole("n_head", 12),
        n_ctx=theirs.whole("block_size", 1024), layer_norm_epsilon=1e-5,
        activation_function="gelu_exact"), rules(theirs.flag("bias", True))
