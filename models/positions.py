"""Positions: rotations of queries and keys, as functions of slices, and learned tables."""

import dataclasses

from mesh import ops
from mesh.compat import mtf, tf
from mesh.slices import local
from models import layers


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings (Su et al. 2021, section 3.2.2).

    Attributes:
      dims: how many features of a head are rotated; even.
      base: the wavelengths grow from 2π to 2π·base.
      style: "halves", GPT-NeoX's: feature i is paired with i + dims / 2; or "interleaved", GPT-J's:
        neighbours are paired.
    """

    dims: int
    base: float = 10000.0
    style: str = "halves"


def rotary_of(config):
    """The Rotary of a run's config, or 0 if its positions are no rotary ones."""
    if config.position != "rotary":
        return 0
    return Rotary(config.rotary_size, config.rotary_base, config.rotary_style)


def rotary_angles(positions, rotary):
    """Cosines and sines of the rotation of each position.

    Float32 whatever the model's precision: in bfloat16 most positions beyond 256 coincide.

    Args:
      positions: int32 tf tensor of any shape.
      rotary: a Rotary, or how many features of a head are rotated.

    Returns:
      (cos, sin), float32 [positions' shape..., rotated features / 2].
    """
    rotary = _rotary(rotary)
    exponent = tf.range(0, rotary.dims, 2, dtype=tf.float32) / rotary.dims
    angles = tf.cast(positions, tf.float32)[..., None] * tf.pow(rotary.base, -exponent)
    return tf.cos(angles), tf.sin(angles)


def angles_of(ctx, position, rotary):
    """`rotary_angles` of tokens, looked up once for all layers: [cos, sin], or [] without a rotary.

    A loop that XLA compiles would make them anew for each number that is rotated.

    Args:
      ctx: a models.layers.Context.
      position: int32 [batch, new_tokens], below n_ctx.
      rotary: a Rotary, or how many features of a head are rotated; 0 for none.

    Returns:
      float32 mtf tensors [batch, new_tokens, rotated features / 2].
    """
    if not rotary:
        return []
    length = mtf.Dimension("rotary_length", ctx.config.n_ctx)
    with tf.name_scope("rotary"):
        tables = rotary_angles(tf.range(length.size), rotary)
    shape = mtf.Shape([length, mtf.Dimension("rotated", tables[0].shape[-1])])
    return [ops.gather(mtf.import_tf_tensor(ctx.mesh, table, shape), position, length,
                       name="rotary") for table in tables]


def rotate(x, cos, sin, rotary):
    """Rotates the first features of each head.

    Args:
      x: [..., features_per_head]. cos, sin: [..., rotated features / 2], broadcast against x.
      rotary: see `rotary_angles`.

    Returns:
      a tensor like `x`.
    """
    rotary = _rotary(rotary)
    # The pair stands along the last axis where neighbours are paired, else along the one before.
    pair, shape = (-1, [-1, 2]) if rotary.style == "interleaved" else (-2, [2, rotary.dims // 2])
    lead = x.shape[:-1].as_list()
    rotated = tf.cast(x[..., :rotary.dims], tf.float32)
    first, second = tf.unstack(tf.reshape(rotated, lead + shape), axis=pair)
    turned = tf.stack([first * cos - second * sin, second * cos + first * sin], pair)
    turned = tf.cast(tf.reshape(turned, lead + [rotary.dims]), x.dtype)
    return tf.concat([turned, x[..., rotary.dims:]], -1)


def _rotary(rotary):
    return rotary if isinstance(rotary, Rotary) else Rotary(rotary)


def learned(ctx, position, length, embd, stddev):
    """Rows of a learned table of positions.

    Args:
      ctx: a models.layers.Context.
      position: int32 [sequence] or [batch, sequence].
      length: the dimension of the table's rows.
      embd: the dimension of the residual stream.
      stddev: the initial standard deviation.

    Returns:
      [position's dimensions..., embd].
    """
    table = ctx.variable("wpe", [length, embd], layers.normal(stddev))
    # Looked up on every slice for all tokens, since a layout may split the table and the tokens
    # over one axis.
    everywhere = [mtf.Dimension(f"all_{d.name}", d.size) for d in position.shape.dims]
    rows = ops.gather(table, mtf.reshape(position, mtf.Shape(everywhere)), length, name="wpe")
    return mtf.reshape(rows, mtf.Shape(position.shape.dims + [embd]))


def axial(ctx, position, sizes, embd, stddev):
    """Means of rows of two learned tables: positions are the cells of a grid, row by row.

    Ho et al. 2019, https://arxiv.org/abs/1912.12180; the mean is GPT-Neo's.

    Args:
      ctx: a models.layers.Context.
      position: int32 [sequence] or [batch, sequence].
      sizes: (rows, columns) of the grid.
      embd: the dimension of the residual stream.
      stddev: the initial standard deviation.

    Returns:
      [position's dimensions..., embd].
    """
    cells = local(lambda p: (p // sizes[1], p % sizes[1]), [position],
                  [(position.shape, tf.int32)] * 2, name="cells")
    total = 0.0
    for number, (cell, size) in enumerate(zip(cells, sizes, strict=True)):
        dim = mtf.Dimension(f"axial_dim_{number}", size)
        table = ctx.variable(f"axial_wpe_{number + 1}", [dim, embd], layers.normal(stddev))
        total += ops.gather(table, cell, dim, name="axial_wpe")
    return total * 0.5
