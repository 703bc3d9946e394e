"""OpenAI's GPT-2 and ConnorJL's (117M, PrettyBig, 1.5B), as TensorFlow checkpoints.

Both programs name their variables alike: https://github.com/openai/gpt-2 (src/model.py) and
https://github.com/ConnorJL/GPT2 (models/gpt2/gpt2.py). Their sizes are in the variables' shapes.
"""

import logging
import re
from typing import TYPE_CHECKING

from interop.mapping import Rule, dense, norm

if TYPE_CHECKING:
    from interop.sources import Source

# What the optimizers of ConnorJL's trainer and of fine-tuning scripts keep.
IGNORED = r"(.*/(Adam|Adafactor)\w*|(.*/)?beta\d_power\w*|global_step)$"
GPT2_VOCABS = (50257,)

# Features of a head of every published model, where no file says how many heads there are.
_HEAD = 64


def short(name: str) -> str:
    """A variable's name as the table has it."""
    return name.removeprefix("model/")


def rules() -> list[Rule]:
    """The table of variables. Kernels are those of convolutions over one position."""
    return [
        Rule("wte", "wte", "vocab embd -> vocab embd"),
        Rule("wpe", "wpe", "positions embd -> positions embd"),
        *norm("h{}/norm_1", "h{}/ln_1", "/g", "/b"),
        *dense("h{}/attn/qkv", "h{}/attn/c_attn",
               "1 embd (qkv heads features) -> embd qkv heads features", "/w", "/b"),
        *dense("h{}/attn/out", "h{}/attn/c_proj",
               "1 (heads features) embd -> heads features embd", "/w", "/b"),
        *norm("h{}/norm_2", "h{}/ln_2", "/g", "/b"),
        *dense("h{}/mlp/in", "h{}/mlp/c_fc", "1 embd hidden -> embd hidden", "/w", "/b"),
        *dense("h{}/mlp/out", "h{}/mlp/c_proj", "1 hidden embd -> hidden embd", "/w", "/b"),
        *norm("norm_f", "ln_f", "/g", "/b")]


def read(source: "Source") -> tuple[dict, list[Rule]]:
    """(our config's keys, the table of variables) of a sources.Source.

    Raises:
      UserError: a value cannot be used.
    """
    theirs, tensors = source.settings, source.tensors
    (n_vocab, n_embd), (n_ctx, _) = (source.shape(f"model/{name}", 2) for name in ("wte", "wpe"))
    layers = {match[0] for match in map(re.compile(r"model/h\d+/").match, tensors) if match}
    n_embd = theirs.whole("n_embd", n_embd)
    if theirs["n_head"] is None:
        logging.info("note: neither hparams.json nor config.json says n_head: heads are %d "
                     "features wide, as in every published model", _HEAD)
    return dict(
        n_vocab=theirs.whole("n_vocab", n_vocab), n_embd=n_embd,
        n_layer=theirs.whole("n_layer", len(layers) or 1), n_ctx=theirs.whole("n_ctx", n_ctx),
        n_head=theirs.whole("n_head", max(1, n_embd // _HEAD)), layer_norm_epsilon=1e-5,
        activation_function="gelu"), rules()
