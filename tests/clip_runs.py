"""Tiny CLIP runs that others are trained with: a teacher of random weights, imported."""

import json

import numpy as np
import safetensors.numpy

from interop import import_clip

SIZES = dict(width=16, layers=1, heads=2, out=12, context=10)


def tower(width, layers, heads, out, context, vocab, seed=0):
    """Random weights of a text tower under OpenAI's names: {name: numpy}."""
    del heads
    random = np.random.RandomState(seed)

    def noise(*shape):
        return (random.randn(*shape) * shape[-1] ** -0.5).astype(np.float32)

    tensors = {"token_embedding.weight": noise(vocab, width),
               "positional_embedding": noise(context, width),
               "text_projection": noise(width, out), "ln_final.weight": np.ones(width, np.float32),
               "ln_final.bias": noise(width)}
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"{block}{norm}.weight": np.ones(width, np.float32),
                        f"{block}{norm}.bias": noise(width)}
        for name, dims in {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width),
                           "mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)
                           }.items():
            tensors |= {f"{block}{name}weight": noise(*dims), f"{block}{name}bias": noise(dims[0])}
    return tensors


def teacher(directory, vocab, **changes):
    """Imports a tower of random weights; returns the path of its run.

    Args:
      directory: a pathlib directory; the run is in `teacher` below it.
      vocab: how many ids it reads, start and end included.
      changes: to SIZES.
    """
    sizes = {**SIZES, **changes}
    source = directory / "tower"
    source.mkdir()
    safetensors.numpy.save_file(tower(vocab=vocab, **sizes), source / "model.safetensors")
    (source / "open_clip_config.json").write_text(json.dumps(
        {"model_cfg": {"text_cfg": {"heads": sizes["heads"]}, "quick_gelu": True}}))
    import_clip.import_clip(str(source), str(directory / "teacher"))
    return str(directory / "teacher")
