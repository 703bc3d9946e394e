"""The objective of a student: to say at every token what CLIP says of the text up to it.

Each step distils two kinds of rows, as two loss terms each: *windows*, short texts all of whose
prefixes the teacher reads in one two-stream pass; and what lies *beyond* a window: the student
reads whole rows, and the teacher, at some random positions, the last window of tokens. A student of
windows alone would degrade past its window, since the reach of its layers adds up.

Targets are the teacher's embeddings at unit length, standardised per dimension over the training
text.
"""

import dataclasses
import logging

import numpy as np

import inputs
from configs.errors import UserError
from configs.progress import tqdm
from mesh import devices, random
from mesh.compat import mtf, tf
from mesh.slices import local
from models import clip, layers, losses, similarity
from training import language_models, model_fn
from training.contrastive import text_sizes
from training.objective import Objective

# Targets from which means and deviations are taken.
_MEASURED = 20_000


class Distillation(Objective):
    """MSE, the cosine's distance, or both, to the teacher's standardised embeddings.

    Raises:
      UserError: the window is longer than what the teacher reads, or the validation split is
        shorter than a row.
    """

    shown = ("r2_windows", "r2_beyond", "cosine_windows", "cosine_beyond")

    def __init__(self, config, facts, frozen):
        super().__init__(config, facts, frozen)
        self.sizes = text_sizes(frozen.config)
        keys = config.clip
        if keys.window > self.sizes.longest_text:
            raise UserError(f"clip.window: {keys.window} is longer than what the teacher reads, "
                            f"{self.sizes.longest_text} tokens; lower it")
        if config.eval_steps != 0 and inputs.eval_windows(config).longest < config.n_ctx:
            raise UserError(f"n_ctx: the validation split has no row of {config.n_ctx} tokens, and "
                            "only whole rows are compared; lower n_ctx, or set eval_steps to 0")
        self.teacher = clip.TextTower(self.sizes)
        self.student = language_models.student(config, self.sizes.out, config.recompute_grad)
        self.mean = np.zeros(self.sizes.out, np.float32)
        self.deviation = np.ones(self.sizes.out, np.float32)
        self.kinds = keys.distillation.split("+")
        self.parts = [name for name, number in (("windows", keys.windows),
                                                ("beyond", keys.positions)) if number]

    def features(self, mesh, features, step):
        """What each part reads, and counts of its targets, by part and by name of a score."""
        keys, n_ctx, window = self.config.clip, self.config.n_ctx, self.config.clip.window
        rows = features["tokens"][:, :n_ctx]
        batch = rows.shape[0]
        # The last rows of an evaluation may be filled up; they are no text.
        whole = tf.cast(features["valid"] >= n_ctx, tf.float32)
        key = random.mix(tf.constant(self.config.seed, tf.int32), step)

        def drawn(number, site, least, limit):
            # A hash: TensorFlow's random numbers are others on a TPU than on a CPU.
            index = tf.reshape(tf.range(batch * number), [batch, number])
            return least + tf.math.floormod(random.mix(random.mix(key, site), index), limit - least)

        def flat(x):
            return tf.reshape(x, [-1, *x.shape[2:]])

        given, counts = {}, {}
        if keys.windows:
            starts = drawn(keys.windows, 1, 0, n_ctx - window + 1)
            cut = tf.gather(rows, starts[..., None] + tf.range(window), batch_dims=1)
            mask = tf.repeat(whole, keys.windows)
            given |= {"windows": (flat(cut), ["batch", "clip_sequence"]),
                      "windows_mask": (mask, ["batch"])}
            counts["windows"] = tf.reduce_sum(mask) * window
            counts["each_window"] = tf.reduce_sum(mask)
        if keys.positions:
            at = drawn(keys.positions, 2, window, n_ctx)
            last = tf.gather(rows, at[..., None] + tf.range(1 - window, 1), batch_dims=1)
            given |= {"rows": (rows, ["batch", "clip_sequence"]),
                      "rows_mask": (whole, ["batch"]),
                      "positions": (at, ["batch", "clip_positions"]),
                      # Not flat: a microbatch has whole rows, with all of their texts.
                      "texts": (self._between_ends(last),
                                ["batch", "clip_positions", "clip_sequence"])}
            counts["beyond"] = tf.reduce_sum(whole) * keys.positions
        counts |= {f"{part}_{kind}": counts[part] for part in self.parts for kind in self.kinds}
        return self.import_rows(mesh, given), counts

    def _between_ends(self, texts):
        """Texts [batch, positions, window], the teacher's start and end token around them."""
        texts = tf.pad(texts, [[0, 0], [0, 0], [1, 0]], constant_values=self.sizes.start_id)
        return tf.pad(texts, [[0, 0], [0, 0], [0, 1]], constant_values=self.sizes.end_id)

    def terms(self, ctx, inputs):
        """`<part>_mse` and `<part>_cosine`, the distance 1 − cosine, as the config asks."""
        totals = {}
        for part in self.parts:
            said, wanted, mask = self._pair(ctx, inputs, part)
            for kind in self.kinds:
                if kind == "mse":
                    each = losses.squared_error(said, wanted, self.student.out)
                else:
                    each = 1.0 - losses.cosine(said, wanted, self.student.out)
                totals[f"{part}_{kind}"] = mtf.reduce_sum(each * mask)
        return totals

    def scores(self, ctx, inputs):
        """Errors, variances and cosines of each part; by position in a window; and retrieval."""
        out, result = self.student.out, {}
        for part in self.parts:
            said, wanted, mask = self._pair(ctx, inputs, part)
            said = mtf.cast(said, tf.float32)
            error = losses.squared_error(said, wanted, out)
            cosine = losses.cosine(said, wanted, out)
            mean, deviation = self._statistics(ctx)
            raw = wanted * deviation + mean
            nothing = mtf.zeros(ctx.mesh, wanted.shape)
            result |= {name: (mtf.reduce_sum(each * mask), part) for name, each in {
                f"mse_{part}": error, f"cosine_{part}": cosine,
                f"variance_{part}": losses.squared_error(nothing, wanted, out),
                f"uncentred_cosine_{part}": losses.cosine(said * deviation + mean, raw, out),
                f"mean_vector_cosine_{part}": losses.cosine(nothing + mean, raw, out)}.items()}
            if part == "windows":
                batch, sequence, _ = said.shape.dims
                result |= {f"{name}_by_position": (
                    mtf.reduce_sum(each * mask, output_shape=[sequence]), "each_window")
                    for name, each in {"mse": error, "cosine": cosine}.items()}
                ends = [mtf.slice(x, sequence.size - 1, 1, sequence.name) for x in (said, wanted)]
                ends = [mtf.reshape(x, mtf.Shape([batch, out])) for x in ends]
                result["retrieval"] = (similarity.found(*ends, mask), "each_window")
        return result

    def report(self, means, facts):
        """eval_loss, the sum of the loss terms, and the scores.

        r2 is 1 − MSE / variance of the targets; cosine is that of standardised outputs and targets,
        uncentred_cosine that of the outputs brought back to embeddings, and mean_vector_cosine that
        of the mean embedding, which knows nothing. retrieval is how often a whole window's output
        is nearest to its own target among the batch's.
        """
        del facts
        values = {name: mean.tolist() for name, mean in means.items()
                  if name not in ("loss", "global_step")}
        total = 0.0
        for part in self.parts:
            values[f"r2_{part}"] = 1.0 - values[f"mse_{part}"] / max(values[f"variance_{part}"],
                                                                    1e-12)
            for kind in self.kinds:
                loss = values[f"mse_{part}"] if kind == "mse" else 1.0 - values[f"cosine_{part}"]
                values[f"loss/{part}_{kind}"] = loss
                total += loss
        return {"eval_loss": total, **values}

    def prepare(self):
        """Measures the mean and the deviation of the teacher's embeddings of training text."""
        config = self.config
        with tf.Graph().as_default() as graph:
            rows = inputs.train_input_fn(config, 0)({})
            mesh = mtf.Mesh(mtf.Graph(), "mesh")
            step = tf.placeholder(tf.int32, [])
            iterator = tf.data.make_initializable_iterator(rows)
            given, _ = self.features(mesh, iterator.get_next(), step)
            ctx = layers.Context(mesh, config)
            found = [self._embeddings(ctx, given, part) for part in self.parts]
            moments = [[mtf.reduce_sum(f(x), output_shape=[self.teacher.out])
                        for f in (lambda x: x, mtf.square)] for x in found]
            lowering = model_fn.lower(config, mesh)
            moments = [[lowering.export_to_tf_tensor(x) for x in pair] for pair in moments]
            start = [tf.local_variables_initializer(), iterator.initializer]
            copy = lowering.copy_masters_to_slices()
            with tf.Session(graph=graph, config=devices.session_config(config)) as session:
                session.run(start)
                session.run(copy)
                self._set_statistics(session, moments, step, [
                    x.shape.size // self.sizes.out for x in found])

    def _set_statistics(self, session, moments, step, counts):
        totals, count, number = np.zeros([2, self.sizes.out]), 0, 0
        bar = tqdm(total=_MEASURED, desc="measuring the teacher", unit="text", leave=False)
        while count < _MEASURED:
            # Each part weighs the same, however many targets it has.
            for (first, second), size in zip(session.run(moments, {step: number}), counts,
                                             strict=True):
                totals += np.stack([first, second]).astype(np.float64) / size
            number, count = number + 1, count + sum(counts)
            bar.update(sum(counts))
        bar.close()
        mean, square = totals / (number * len(counts))
        self.mean = mean.astype(np.float32)
        self.deviation = np.sqrt(np.maximum(square - mean ** 2, 1e-8)).astype(np.float32)
        logging.info("teacher's embeddings: mean of length %.3f, deviation %.4f per dimension",
                     np.linalg.norm(mean), self.deviation.mean())

    def _pair(self, ctx, given, part):
        """What the student says, what it should, [..., clip_out] each, and the mask, [batch]."""
        wanted = self._embeddings(ctx, given, part)
        mean, deviation = self._statistics(ctx)
        wanted = (wanted - mean) / deviation
        if part == "windows":
            return self.student.outputs(ctx, given["windows"]), wanted, given["windows_mask"]
        said = self.student.outputs(ctx, given["rows"])
        batch, sequence, _ = said.shape.dims
        picked = mtf.one_hot(given["positions"], sequence, dtype=said.dtype)
        said = mtf.einsum([picked, said], output_shape=[
            batch, given["positions"].shape.dims[1], self.student.out])
        return said, wanted, given["rows_mask"]

    def _embeddings(self, ctx, given, part):
        """The teacher's embeddings of a part's texts, at unit length, float32: no gradient."""
        ctx = dataclasses.replace(ctx, stored=self.frozen.initializer, dropout_key=None)
        if part == "windows":
            found = self.teacher.prefix_targets(ctx, given["windows"])
        else:
            found = self._read_one_by_one(ctx, given["texts"])
        return mtf.stop_gradient(similarity.unit(found, self.teacher.out))

    def _read_one_by_one(self, ctx, texts):
        """[batch, clip_positions, clip_sequence] -> [batch, clip_positions, clip_out]."""
        batch, number, length = texts.shape.dims
        every = mtf.Dimension(batch.name, batch.size * number.size)
        # Rows of a slice stay together, so each slice reshapes its own.
        flat = local(lambda x: tf.reshape(x, [-1, length.size]), [texts],
                     ([every, length], tf.int32), name="one_by_one")
        ends = mtf.constant(ctx.mesh, length.size - 1, mtf.Shape([every]), dtype=tf.int32)
        found = self.teacher.embed(ctx, flat, ends)
        return local(lambda x: tf.reshape(x, [-1, number.size, x.shape[-1]]), [found],
                     ([batch, number, self.teacher.out], found.dtype), name="by_row")

    def _statistics(self, ctx):
        """The targets' mean and deviation, [clip_out] each, kept with the student's weights."""
        return self.student.statistics(ctx, self.mean, self.deviation)
