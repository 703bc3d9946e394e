"""GPT-Neo's own checkpoints, which its Mesh TensorFlow program has published.

Their variables: https://github.com/EleutherAI/gpt-neo (models/gpt2/gpt2.py, models/layers.py).
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from configs import keys, schema
from configs.errors import UserError
from interop.mapping import Rule, dense, norm
from mesh.compat import tf

if TYPE_CHECKING:
    from interop.sources import Source

# What its optimizers keep: those of its own Adam, and mesh-tensorflow's Adafactor.
IGNORED = r"(.*/adam_[mv]|.*_slot_(vr|vc|v|m)|global_step)$"
GPT2_VOCABS = (50257,)

# Keys of its config that our model takes from it. Others of the architecture have to be off.
_TAKEN = ("n_layer", "n_head", "n_embd", "n_ctx", "attention_types", "local_attention_radius",
          "activation_function")
_MATTERS = {name: field.default for name, field in keys.ModelKeys.model_fields.items()
            if name not in (*_TAKEN, "n_vocab", "pad_vocab_multiple")}


def short(name: str) -> str:
    """A variable's name as the table has it."""
    return name.removeprefix("gpt2/")


def rules(queries: Callable) -> list[Rule]:
    """The table of variables; `queries` is what queries are multiplied by: see Rule."""
    mlp = "h{}/mlp/conv1d_main/"
    return [
        Rule("wte", "wte", "vocab embd -> vocab embd"),
        Rule("wpe", "wpe", "positions embd -> positions embd"),
        *norm("h{}/norm_1", "h{}/norm_1", "/g", "/b"),
        *dense("h{}/attn/qkv", tuple(f"h{{}}/attn/{name}" for name in "qkv"),
               "qkv embd (heads features) -> embd qkv heads features", "", None, queries),
        *dense("h{}/attn/out", "h{}/attn/", "(heads features) embd -> heads features embd",
               "o", "compute_output_bias/o_b"),
        *norm("h{}/norm_2", "h{}/norm_2", "/g", "/b"),
        *dense("h{}/mlp/in", f"{mlp}c_fc", "embd hidden -> embd hidden", "/kernel", "/bias"),
        *dense("h{}/mlp/out", f"{mlp}c_proj", "hidden embd -> hidden embd", "/kernel", "/bias"),
        *norm("norm_f", "ln_f", "/g", "/b")]


def read(source: "Source") -> tuple[dict, list[Rule]]:
    """(our config's keys, the table of variables) of a sources.Source.

    Its scores are not divided by √(size of a head), so the queries make up for it. A token table
    with more rows than n_vocab is taken whole.

    Raises:
      UserError: there is no config beside it, or it is a kind of model that is not published.
    """
    path = source.settings.path
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: missing; a checkpoint of GPT-Neo needs the config that it was "
                        "trained with beside it, under this name")
    config = schema.load(path, ["datasets=[]", "mesh_shape=", "layout="])
    for key, default in {**_MATTERS, "mlm_training": False, "moe_layers": []}.items():
        if getattr(config, key) != default:
            raise UserError(f"{path}: {key}: {getattr(config, key)!r}: only models as GPT-Neo "
                            "published them can be imported, without it")
    rows, _ = source.shape("gpt2/wte", 2)
    found = dict(n_vocab=max(config.n_vocab, rows), **{key: getattr(config, key)
                                                       for key in _TAKEN})
    return found, rules(lambda layer: math.sqrt(config.head_size))
