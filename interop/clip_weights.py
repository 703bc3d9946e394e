"""CLIP text towers from elsewhere: OpenAI's, Hugging Face's and OpenCLIP's, under our names.

The architecture is read from the tensors; what they do not tell (heads, activation) from a config
beside them, or by the rule of who wrote them. Image towers are not imported: a teacher reads text.
"""

import dataclasses
import logging
import os
import re

import numpy as np

from configs.errors import UserError
from configs.progress import tqdm
from interop import tensor_files, weight_files
from models.clip import ACTIVATIONS, ClipSizes

# Width of a head, where nothing tells it: OpenAI's rule, which all published towers follow.
_HEAD = 64


@dataclasses.dataclass(frozen=True)
class _Naming:
    """How a system names a text tower's tensors, without their common prefix.

    Attributes:
      config: the file beside the weights that describes the model.
      tables: their names of the token table, position table, final norm and projection.
      layer: a pattern for the names of a layer's tensors; {} is its number.
      parts: their names of norms and dense layers of a layer; the query, key and value layers are
        one name or three.
      transposed: whether the projection is [out, width].
      ignored: a pattern for tensors that are no weights of the text tower.
    """

    config: str
    tables: tuple
    layer: str
    parts: dict
    transposed: bool
    ignored: str


_HUGGING_FACE = _Naming(
    config="config.json",
    tables=("text_model.embeddings.token_embedding.weight",
            "text_model.embeddings.position_embedding.weight",
            "text_model.final_layer_norm", "text_projection.weight"),
    layer="text_model.encoder.layers.{}.",
    parts={"norm_1": "layer_norm1", "norm_2": "layer_norm2",
           "attn/qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
           "attn/out": "self_attn.out_proj", "mlp/in": "mlp.fc1", "mlp/out": "mlp.fc2"},
    transposed=True,
    ignored=r"vision_model\.|visual_projection\.|logit_scale$|text_model\.embeddings\.position_ids$",
)
_OPENAI = _Naming(
    config="open_clip_config.json",
    tables=("token_embedding.weight", "positional_embedding", "ln_final", "text_projection"),
    layer="transformer.resblocks.{}.",
    parts={"norm_1": "ln_1", "norm_2": "ln_2", "attn/qkv": "attn.in_proj",
           "attn/out": "attn.out_proj", "mlp/in": "mlp.c_fc", "mlp/out": "mlp.c_proj"},
    transposed=False,
    ignored=r"visual\.|logit_scale$|logit_bias$|(.*\.)?attn_mask$|"
            r"(input_resolution|context_length|vocab_size)$",
)


def read(path: str, activation: str | None = None,
         heads: int | None = None) -> tuple["ClipSizes", dict[str, np.ndarray]]:
    """A text tower's architecture and weights.

    Args:
      path: OpenAI's `.pt`, a Hugging Face or OpenCLIP file (`.safetensors`, `.bin`, `.pt`), or a
        directory with one; their config is looked for beside the file.
      activation: "quick_gelu" or "gelu"; None for what the config says, else quick_gelu, save for
        OpenCLIP's files: gelu.
      heads: attention heads; None for what the config says, else width / 64.

    Returns:
      (ClipSizes, {our variable name: float32 numpy array}).

    Raises:
      UserError: a file is missing, damaged, unsafe or no CLIP text tower.
    """
    path = weight_files.find(path)
    file = weight_files.read(path)
    naming, tensors = _name(path, file)
    source = _Source(path, tensors, naming)
    beside = os.path.join(os.path.dirname(path), naming.config)
    told = _told(beside, tensor_files.read_json(beside), naming)
    told.update({name: value for name, value in
                 [("activation", activation), ("heads", heads)] if value})
    exact = naming is _OPENAI and _is_open_clip(path, file)
    sizes = source.sizes({"activation": "gelu" if exact else "quick_gelu", **told})
    weights = source.weights(sizes)
    logging.info("%s: text tower of %d layers, %d wide, %d heads, %s, embeddings of %d; the image "
                 "tower is not imported", path, sizes.layers, sizes.width, sizes.heads,
                 sizes.activation, sizes.out)
    return sizes, weights


def _name(path, file):
    """Who wrote the tensors, and the tensors without a common prefix of data-parallel runs."""
    tensors = {name.removeprefix("module."): t for name, t in file.tensors.items()}
    if _HUGGING_FACE.tables[0] in tensors:
        return _HUGGING_FACE, tensors
    if "text." + _OPENAI.tables[0] in tensors:  # OpenCLIP's models with towers of any kind
        tensors = {name.removeprefix("text."): t for name, t in tensors.items()}
    if _OPENAI.tables[0] in tensors:
        return _OPENAI, tensors
    raise UserError(f"{path}: no CLIP text tower: neither {_OPENAI.tables[0]} nor "
                    f"{_HUGGING_FACE.tables[0]} is in it; docs/interop.md lists what can be "
                    "imported")


def _is_open_clip(path, file):
    """OpenAI's own files are TorchScript archives, or state dicts in a `.pt`."""
    return file.kind == "safetensors" or file.kind == "torch" and (
        file.nested or not path.endswith(".pt") or "open_clip" in os.path.basename(path))


def _told(path, config, naming):
    """What a config says of the text tower, as fields of ClipSizes."""
    if not config:
        return {}
    told = _told_by_hugging_face(path, config) if naming is _HUGGING_FACE else (
        _told_by_open_clip(path, config))
    if told["activation"] not in ACTIVATIONS:
        raise UserError(f"{path}: activation {told['activation']!r} is not one of "
                        f"{', '.join(ACTIVATIONS)}")
    if not isinstance(told["heads"], int) or not isinstance(told.get("epsilon", 0.0), float):
        raise UserError(f"{path}: the heads or the layer norms' epsilon are no number")
    return told


def _told_by_hugging_face(path, config):
    # A whole CLIP's config nests the text tower's; what it leaves out is the library's default.
    if "text_config" in config or "text_config_dict" in config:
        config = {**_section(path, config, "text_config"),
                  **_section(path, config, "text_config_dict")}
    told = {"heads": config.get("num_attention_heads", 8),
            "activation": config.get("hidden_act", "quick_gelu"),
            "epsilon": config.get("layer_norm_eps", 1e-5)}
    # Old configs hold ids that are no CLIP's: 0 and 2.
    ends = config.get("bos_token_id"), config.get("eos_token_id")
    if all(isinstance(i, int) and 2 < i < config.get("vocab_size", 49408) for i in ends):
        told.update(start_id=ends[0], end_id=ends[1])
    return told


def _told_by_open_clip(path, config):
    model = _section(path, config, "model_cfg") or config
    text = _section(path, model, "text_cfg")
    for key in ("no_causal_mask", "embed_cls", "proj_bias", "hf_model_name", "ls_init_value",
                "act_kwargs", "norm_kwargs"):
        if text.get(key):
            raise UserError(f"{path}: text_cfg.{key} is set: not the text tower of CLIP")
    if text.get("pool_type", "argmax") not in ("argmax", "eos"):
        raise UserError(f"{path}: text_cfg.pool_type {text['pool_type']!r}: this tower is not read "
                        "at the end token")
    return {"heads": text.get("heads", 8),
            "activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}


def _section(path, config, name):
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: {name} is not an object")
    return section


class _Source:
    """A text tower's tensors under our names."""

    def __init__(self, path, tensors, naming):
        self._path, self._tensors, self._naming = path, tensors, naming
        checked = weight_files.Checked(path, tensors, naming.ignored)
        self._shape, self._take, self._end = checked.shape, checked.take, checked.end

    def sizes(self, told):
        """The ClipSizes of the tensors' shapes, and of what is told beside them."""
        naming = self._naming
        vocab, width = self._shape(naming.tables[0], 2)
        projection = self._shape(naming.tables[3], 2)
        first = naming.layer.format(0) + naming.parts["mlp/in"] + ".weight"
        pattern = re.compile(re.escape(naming.layer).replace(r"\{\}", r"(\d+)"))
        numbers = {int(m[1]) for m in map(pattern.match, self._tensors) if m}
        heads = told.get("heads") or width // _HEAD
        if not heads or width % heads:
            raise UserError(f"{self._path}: {heads} heads do not divide the width {width}; a "
                            f"{naming.config} beside it would tell the number")
        return ClipSizes(width=width, layers=len(numbers), vocab=vocab,
                         context=self._shape(naming.tables[1], 2)[0],
                         out=projection[0 if naming.transposed else 1],
                         intermediate=self._shape(first, 2)[0], **{**told, "heads": heads})

    def weights(self, sizes):
        """{our variable name: numpy}. Every tensor of the text tower must find its place."""
        width, heads = sizes.width, sizes.heads
        names = self._naming.tables
        out = {"wte": self._take(names[0], sizes.vocab, width),
               "wpe": self._take(names[1], sizes.context, width),
               **self._norm("norm_f", names[2], width)}
        turned = self._naming.transposed
        projection = self._take(names[3], *((sizes.out, width) if turned else (width, sizes.out)))
        out["projection"] = projection.T if turned else projection
        for layer in tqdm(range(sizes.layers), desc="reading", unit="layer", leave=False):
            for part, value in self._layer(self._naming.layer.format(layer), width, heads,
                                           sizes.intermediate).items():
                out[f"h{layer}/{part}"] = value
        self._end("CLIP's text tower")
        return {f"clip_text/{name}": np.ascontiguousarray(value) for name, value in out.items()}

    def _layer(self, prefix, width, heads, intermediate):
        theirs = {ours: prefix + name if isinstance(name, str) else [prefix + n for n in name]
                  for ours, name in self._naming.parts.items()}
        kernel, bias = self._packed(theirs["attn/qkv"], width)
        out_kernel, out_bias = self._dense(theirs["attn/out"], width, width)
        result = {**self._norm("norm_1", theirs["norm_1"], width),
                  **self._norm("norm_2", theirs["norm_2"], width),
                  # Rows of PyTorch's matrices are outputs: query, key, value; of each, the heads.
                  "attn/qkv/kernel": kernel.reshape(width, 3, heads, width // heads),
                  "attn/qkv/bias": bias.reshape(3, heads, width // heads),
                  "attn/out/kernel": out_kernel.reshape(heads, width // heads, width),
                  "attn/out/bias": out_bias}
        for part, n_in, n_out in [("mlp/in", width, intermediate),
                                  ("mlp/out", intermediate, width)]:
            result[f"{part}/kernel"], result[f"{part}/bias"] = self._dense(
                theirs[part], n_in, n_out)
        return result

    def _packed(self, name, width):
        """Query, key and value layers as one kernel [width, 3 · width], and its bias."""
        if isinstance(name, str):  # PyTorch's MultiheadAttention, with its own way of naming
            return (self._take(name + "_weight", 3 * width, width).T,
                    self._take(name + "_bias", 3 * width))
        kernels, biases = zip(*(self._dense(n, width, width) for n in name), strict=True)
        return np.concatenate(kernels, 1), np.concatenate(biases)

    def _dense(self, name, n_in, n_out):
        return self._take(name + ".weight", n_out, n_in).T, self._take(name + ".bias", n_out)

    def _norm(self, ours, theirs, width):
        return {f"{ours}/gain": self._take(theirs + ".weight", width),
                f"{ours}/bias": self._take(theirs + ".bias", width)}
