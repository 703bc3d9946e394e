"""Sampling in pieces, for a server: signatures that take the caches and give them back."""

from collections.abc import Iterator

from mesh.compat import mtf, tf
from models import sampling

# Most new tokens of a piece.
SIZE = 16


def on_mesh(mesh: mtf.Mesh, x: tf.Tensor, *names: str) -> mtf.Tensor:
    """A TensorFlow tensor as one of the mesh, with dimensions of these names."""
    return mtf.import_tf_tensor(mesh, x, mtf.Shape([
        mtf.Dimension(*dim) for dim in zip(names, x.shape.as_list(), strict=True)]))


class Pieces:
    """The signatures "prefill" and "step", by which rows begin, go on and end as requests come.

    Both take all `predict_batch_size` rows, and give the caches `cache_0`, `cache_1`, ... (first
    zeros), which the next call takes:

    - "prefill": of rows whose `fresh`, int32 [rows], is 1, the caches become those of the first
      `lengths`, int32 [rows], ids of `tokens`, int32 [rows, n_ctx]; the others stay. They are a
      prompt's ids but the last.
    - "step": `tokens`, int32 [rows, SIZE], -1 where there is none: up to `steps`, int32, new ids
      of each row whose `done` is 0. `token`, `position`: its last id and how many came before;
      `number`, `count`: of the sample, and how many ids of it were made before; `temperature`,
      `top_k`, `top_p`, `seed`: its own. Each is [rows]. No row may pass n_ctx.

    Args:
      config: the run's config.
      encoder: the run's encoder.
      model: its models.gpt.GPT.
      ctx: a models.layers.Context.
    """

    def __init__(self, config, encoder, model, ctx):
        rows = config.predict_batch_size
        batch = mtf.Dimension("batch", rows)
        empty = model.empty_caches(ctx, batch, config.n_ctx)
        flat = tf.nest.flatten(empty)
        self._caches = {f"cache_{number}": tf.placeholder(
            part.dtype, part.shape.to_integer_list, f"cache_{number}")
            for number, part in enumerate(flat)}
        self._prompt = {"tokens": tf.placeholder(tf.int32, [rows, config.n_ctx]),
                        **{name: tf.placeholder(tf.int32, [rows]) for name in ("lengths", "fresh")}}
        self._state = {**{name: tf.placeholder(tf.int32, [rows]) for name in (
            "token", "position", "done", "number", "count", "top_k", "seed")},
            **{name: tf.placeholder(tf.float32, [rows]) for name in ("temperature", "top_p")},
            "steps": tf.placeholder(tf.int32, [])}
        self._filled = sampling.prefill(
            model, ctx, on_mesh(ctx.mesh, self._prompt["tokens"], "batch", "prompt"),
            on_mesh(ctx.mesh, self._prompt["lengths"], "batch"))
        values = {name: on_mesh(ctx.mesh, x, *["batch"] * x.shape.ndims)
                  for name, x in self._state.items()}
        settings = sampling.Settings(*(values.pop(name) for name in (
            "temperature", "top_k", "top_p", "seed")))
        caches = tf.nest.pack_sequence_as(empty, [
            mtf.import_tf_tensor(ctx.mesh, given, part.shape)
            for given, part in zip(self._caches.values(), flat, strict=True)])
        self._new, self._updated = sampling.decode(
            model, ctx, caches=caches, size=SIZE, eos_id=encoder.eos_id, n_valid=encoder.n_vocab,
            settings=settings, **values)

    def signatures(self, lowering: mtf.Lowering) -> Iterator[tuple[str, tuple[dict, dict]]]:
        """(name, (inputs, outputs)) of each."""
        filled, updated = ([lowering.export_to_tf_tensor(part) for part in tf.nest.flatten(caches)]
                           for caches in (self._filled, self._updated))
        fresh = tf.equal(self._prompt["fresh"], 1)
        kept = {name: tf.where_v2(tf.reshape(fresh, [-1] + [1] * (old.shape.ndims - 1)), new, old)
                for (name, old), new in zip(self._caches.items(), filled, strict=True)}
        yield "prefill", ({**self._prompt, **self._caches}, kept)
        yield "step", ({**self._state, **self._caches},
                       {"tokens": lowering.export_to_tf_tensor(self._new),
                        **dict(zip(self._caches, updated, strict=True))})
