"""Cosines between embeddings of a batch, whichever slices hold them."""

from mesh.compat import mtf, tf


def unit(x, dim):
    """x over its length along `dim`, float32."""
    x = mtf.cast(x, tf.float32)
    return x * mtf.rsqrt(mtf.reduce_sum(mtf.square(x), reduced_dim=dim) + 1e-12)


def cosines(queries, candidates, mask=None):
    """Cosines of each query to the candidates of all slices.

    Args:
      queries: [..., clip_out], not normalised.
      candidates: [..., clip_out], with the same dimensions.
      mask: float32 [...]: 0 for those that are no candidates; they get a cosine far below −1.

    Returns:
      float32 [..., clip_candidates], candidates in the order of their dimensions.
    """
    *rows, out = candidates.shape.dims
    everyone = _everyone(rows)
    # No layout splits clip_candidates: the reshape gathers it from all slices.
    flat = mtf.reshape(unit(candidates, out), mtf.Shape([everyone, out]))
    result = mtf.einsum([unit(queries, out), flat], output_shape=[*rows, everyone])
    if mask is not None:
        result += (mtf.reshape(mask, mtf.Shape([everyone])) - 1.0) * 1e4
    return result


def own_index(mesh, rows):
    """int32 [rows…]: which candidate of `cosines` belongs to each query."""
    index, size = 0, 1
    for dim in reversed(rows):
        index += mtf.range(mesh, dim, tf.int32) * size
        size *= dim.size
    return mtf.broadcast(index, mtf.Shape(rows))


def found(queries, candidates, mask):
    """How many queries have their own candidate as the nearest one: a float32 scalar.

    The arguments are those of `cosines`.
    """
    near = cosines(queries, candidates, mask)
    *rows, everyone = near.shape.dims
    own = mtf.cast(mtf.equal(own_index(near.mesh, rows), mtf.range(near.mesh, everyone, tf.int32)),
                   tf.float32)
    reached = mtf.reduce_sum(near * own, reduced_dim=everyone)
    # A tie with another one is no find.
    others = mtf.reduce_max(near - 10.0 * own, reduced_dim=everyone)
    return mtf.reduce_sum(mtf.cast(mtf.greater(reached, others), tf.float32) * mask)


def _everyone(rows):
    size = 1
    for dim in rows:
        size *= dim.size
    return mtf.Dimension("clip_candidates", size)
