"""One training step's losses and gradients, in one piece or in microbatches."""

from mesh import ops, random, slices
from mesh.compat import mtf, tf


def losses_and_gradients(features, loss_fn, key, num_microbatches):
    """Gradients of the total loss with respect to every trainable variable.

    Args:
      features: a dict of mtf tensors, each with `batch` as its first dimension.
      loss_fn: (features, dropout key) -> a dict of float32 scalars with "loss" among them, which
        must add up over microbatches to the whole batch's values. It creates the variables.
      key: int32 scalar mtf tensor: the dropout's key of this step.
      num_microbatches: divides the batch; microbatch m has the rows i·num_microbatches + m, so that
        it is the same rows on every mesh.

    Returns:
      (a dict of float32 scalars, a list of float32 gradients of graph.trainable_variables).
    """
    graph, mesh = key.graph, key.mesh
    names = []

    def run(inputs, number):
        microbatch_key = slices.local(random.mix, [key, number], (key.shape, tf.int32), name="key")
        values = loss_fn(inputs, microbatch_key)
        names[:] = values
        gradients = mtf.gradients([values["loss"]], [v.value for v in graph.trainable_variables])
        return list(values.values()) + [ops.to_float32(g) for g in gradients]

    if num_microbatches == 1:
        results = run(features, mtf.constant(mesh, 0, dtype=tf.int32))
    else:
        split = {name: _split(x, num_microbatches) for name, x in features.items()}
        dim = mtf.Dimension("microbatch", num_microbatches)

        def body(number):
            return [number + 1] + run(
                {name: ops.select(x, number, dim) for name, x in split.items()}, number)

        results = mtf.while_loop(lambda number: mtf.less(number, num_microbatches), body,
                                 [mtf.constant(mesh, 0, dtype=tf.int32)], has_accumulators=True)[1:]
    return dict(zip(names, results, strict=False)), results[len(names):]


def _split(x, num_microbatches):
    batch = x.shape.dims[0]
    rows = mtf.Dimension(batch.name, batch.size // num_microbatches)
    return mtf.replace_dimensions(x, batch, [rows, mtf.Dimension("microbatch", num_microbatches)])
