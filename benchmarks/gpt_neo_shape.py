"""A step in GPT-Neo's shape: four pieces of it as GPT-Neo has them, by mtf's own operations.

Look-ups are products with one-hot rows; attention writes its scores whole, in float32, and adds a
bias that is broadcast over batch and heads; the loss is mtf's, of one-hot targets and all logits in
float32; slices are joined by products with one-hot vectors. It computes the same loss. Norms, dense
layers, attention to neighbours and the optimizer are ours.
"""

import contextlib
from unittest import mock

from mesh import head_loss, ops
from mesh.compat import mtf, tf
from mesh.simd import SimdMesh
from mesh.slices import local
from models import attention, positions
from models.heads import Heads


@contextlib.contextmanager
def applied():
    """Within it, models are built and lowered in GPT-Neo's shape."""
    theirs = mtf.simd_mesh_impl.SimdMeshImpl
    with mock.patch.object(ops, "gather", _gather), \
            mock.patch.object(attention, "full", _attention), \
            mock.patch.object(head_loss, "linear_cross_entropy", _loss), \
            mock.patch.object(SimdMesh, "allconcat", theirs.allconcat):
        yield


def _gather(table, ids, dim, name="gather"):
    """mesh.ops.gather."""
    del name
    return mtf.gather(table, ids, dim, mtf.Shape(ids.shape.dims + table.shape.dims[1:]))


def _attention(ctx, qkv, rotary_dims, rate, site, causal=True, learned=(), slopes=None):
    """models.attention.full, as mtf.transformer.attention.attention does it.

    No layout splits `sequence` or `features_per_head`, and there is no dropout in it.
    """
    del site
    if not causal or learned or slopes or (ctx.train and rate):
        raise ValueError("GPT-Neo's shape is that of causal attention without dropout, learned "
                         "keys and slopes")
    batch, sequence, _, heads, features = qkv.shape.dims
    memory = mtf.Dimension("memory_length", sequence.size)
    parts, shape = Heads(qkv, memory, rotary_dims), [batch, heads, sequence, features]

    def split(x):
        places = tf.range(sequence.size)
        angles = positions.rotary_angles(places, rotary_dims) if rotary_dims else ()
        return tuple(parts.split_slice(x, *angles))

    q, k, v = local(split, [qkv], [(shape, qkv.dtype)] * 3, name="split")
    k, v = (mtf.rename_dimension(x, sequence.name, memory.name) for x in (k, v))
    logits = mtf.einsum([mtf.cast(q, tf.float32), mtf.cast(k, tf.float32)],
                        [batch, heads, sequence, memory])
    places = [mtf.range(ctx.mesh, dim, tf.int32) for dim in (sequence, memory)]
    hidden = mtf.cast(mtf.less(*places), tf.float32) * -1e9
    logits += mtf.broadcast(hidden, logits.shape)
    p = mtf.cast(mtf.softmax(logits, memory), v.dtype)
    return mtf.einsum([p, v], [batch, sequence, heads, features])


def _loss(x, kernel, bias, targets, weights, dim, n_valid, name="head_loss"):
    """mesh.head_loss.linear_cross_entropy."""
    del name
    logits = mtf.einsum([x, kernel], mtf.Shape(targets.shape.dims + [dim]))
    if bias is not None:
        logits += bias
    logits = mtf.cast(logits, tf.float32)
    if n_valid < dim.size:
        padding = mtf.greater_equal(mtf.range(x.mesh, dim, tf.int32), n_valid)
        logits += mtf.cast(padding, tf.float32) * -1e9
    loss = mtf.layers.softmax_cross_entropy_with_logits(logits, targets, dim)
    return mtf.reduce_sum(loss * weights)
