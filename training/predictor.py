"""Sampling text from a run's newest checkpoint: one graph and one reading of the weights for all.

Estimator.predict would build the graph and read the weights anew at each call.
"""

import itertools

import numpy as np

from configs.errors import UserError
from configs.progress import tqdm
from mesh import devices
from mesh.compat import mtf, tf
from mesh.kept import Kept, Lowering
from models import layers, sampling
from training import checkpoints, language_models
from training.completions import Completion, Row

# New tokens between looks at the text for stop strings.
CHUNK = 32

# Positions of a prompt that go through the model at once: where processors multiply matrices at
# their full speed already.
_BLOCK = 32

# A run looks at so many positions of the caches, or a multiple, that all rows fit.
_REACH = 64

# A model of so few numbers, weights and caches, has its loop compiled: they stay in a processor's
# caches, and a token takes as long as its operations take to start. XLA reads larger weights from
# memory more slowly than TensorFlow's products do.
_SMALL = 8 << 20

# The tokens, one after another, that are sampled while a loop is compiled.
_WORTH_COMPILING = 1000

# The dimensions of positions in caches.
_POSITIONS = ("memory_length", "clip_memory_length")


class Predictor:
    """A model that waits for prompts.

    Prompts of any lengths are sampled together, `predict_batch_size` at a time. The model sees at
    most n_ctx tokens: of a longer prompt the last n_ctx, and when a row has filled its window, it
    goes on with the later half of it. So any number of tokens can be sampled.

    Args:
      config: the run's config.
      encoder: the encoder of its weights.
      steps: how many tokens it will sample one after another, as far as is known; None is many.
        Of a small model on one CPU device, float32, the loop that samples is compiled if they are
        many: the first answer comes a second later, and tokens several times as fast.

    Raises:
      UserError: there is no checkpoint, or it does not fit the config.
    """

    def __init__(self, config, encoder, steps=None):
        check_speaks(config)
        devices.prepare(config)
        self.config, self.encoder = config, encoder
        self._compiles = ((steps is None or steps >= _WORTH_COMPILING) and config.mesh_size == 1
                          and not config.gpu_ids and config.precision == "float32")
        self.checkpoint = checkpoints.require_fitting(config)
        checkpoints.check_vocabulary(config, encoder)
        # A multiple of the replicas; further rows idle.
        self._rows = -(-config.predict_batch_size // config.batch_split) * config.batch_split
        with tf.Graph().as_default() as graph:
            masters = self._build()
            checkpoints.check_shapes(config, self.checkpoint, {
                master.op.name: master.shape.as_list() for master in masters})
            self._saver = tf.train.Saver(masters)
            self._session = self._open_session()
            graph.finalize()
        self._restore()

    def _open_session(self):
        proto = devices.session_config(self.config)
        if self._compiles:
            # Waking a second thread for each product would take longer than the products.
            proto.intra_op_parallelism_threads = 1
        return tf.Session(config=proto)

    def reload(self):
        """Takes the weights of the run's newest checkpoint."""
        self.checkpoint = checkpoints.require_latest(self.config)
        self._restore()

    def close(self):
        """Frees the weights."""
        self._session.close()

    def generate(self, prompts, num_samples=1, max_new_tokens=None, temperature=1.0, top_k=0,
                 top_p=1.0, seed=1, stop=()):
        """Samples completions.

        A sample is a function of (its prompt, its number, settings): neither the other prompts nor
        the batch size change it.

        Args:
          prompts: lists of token ids, none empty.
          num_samples: of each prompt.
          max_new_tokens: most tokens of a sample; None is what fits into n_ctx, or half of it
            where the prompt leaves no room.
          temperature, top_k, top_p, seed: see models.sampling.Settings.
          stop: texts; a sample ends before the first of them.

        Yields:
          a Completion for each sample, the first prompt's first.
        """
        scalars = {"temperature": temperature, "top_k": min(top_k, self.encoder.n_vocab),
                   "top_p": top_p, "seed": seed}
        samples = (Completion(list(prompt), number, self.encoder.decode(prompt))
                   for prompt in prompts for number in range(num_samples))
        number = len(prompts) * num_samples
        for first in itertools.count(1, self.config.predict_batch_size):
            batch = list(itertools.islice(samples, self.config.predict_batch_size))
            if not batch:
                return
            rows = [Row(s, self._limit(s, max_new_tokens), self.config.n_ctx) for s in batch]
            # It is gone when the samples are shown. What takes a moment has none.
            with tqdm(total=max(row.limit for row in rows), unit="token", leave=False, delay=2,
                      desc=f"samples {first} to {first + len(batch) - 1} of {number}") as bar:
                self._complete(rows, scalars, stop, bar)
            yield from batch

    def _limit(self, sample, max_new_tokens):
        if max_new_tokens is not None:
            return max_new_tokens
        n_ctx = self.config.n_ctx
        return n_ctx - len(sample.prompt) if len(sample.prompt) < n_ctx else max(1, n_ctx // 2)

    def _complete(self, rows, scalars, stop, bar):
        """Samples until every row has ended; the bar shows tokens of the longest."""
        live = rows
        for round_ in itertools.count():
            slides = [row.slide() for row in live]
            if round_ == 0 or self._prefill_due(slides):
                self._prefill(rows)
            steps = min(CHUNK, *(row.steps() for row in live))
            count = len(live[0].sample.tokens)
            for row, new in zip(rows, self._decode(rows, steps, count, scalars), strict=False):
                if not row.sample.reason:
                    row.take([int(t) for t in new if t >= 0], self.encoder, stop)
            bar.update(steps)
            live = [row for row in rows if not row.sample.reason]
            if not live:
                return

    def _prefill_due(self, slides):
        return any(slides)

    def _prefill(self, rows):
        tokens = np.zeros([self._rows, self.config.n_ctx], np.int32)
        lengths = np.zeros([self._rows], np.int32)
        for i, row in enumerate(rows):
            window = row.window[:self.config.n_ctx]
            tokens[i, :len(window)] = window
            if not row.sample.reason:
                lengths[i] = len(row.window) - 1  # decoding begins with the last one
        self._fill({"tokens": tokens, "lengths": lengths})

    def _fill(self, values):
        self._session.run(self._prefill_op, self._given(values, values["lengths"].max()))

    def _given(self, values, used):
        """The feeds of a run that uses so many positions."""
        return {self._feeds[name]: value for name, value in {**values, **self._reach(used)}.items()}

    def _reach(self, used):
        """How many positions of the caches a run sees: enough for prefilling's whole blocks."""
        unit = -(-_REACH // self._block) * self._block
        return {"reach": min(-(-max(used, 1) // unit) * unit, self.config.n_ctx)}

    def _decode(self, rows, steps, count, scalars):
        """New tokens of each row: int32 [rows, CHUNK], -1 where there is none."""
        state = {"token": [0] * self._rows, "position": [0] * self._rows,
                 "done": [1] * self._rows, "number": [0] * self._rows}
        for i, row in enumerate(rows):
            if not row.sample.reason:
                state["token"][i], state["position"][i] = row.window[-1], len(row.window) - 1
                state["done"][i], state["number"][i] = 0, row.sample.number
        return self._run_decoder({**state, **scalars, "steps": steps, "count": count})

    def _run_decoder(self, values):
        out, _ = self._session.run([self._new_tokens, self._keep_op], self._given(
            values, max(values["position"]) + values["steps"]))
        return out

    def _build(self):
        """Builds the graph; returns the variables that a checkpoint holds."""
        config = self.config
        mesh, impl = mtf.Mesh(mtf.Graph(), "mesh"), devices.mesh_impl(config)
        ctx = layers.Context(mesh, config, fixed=True)
        model = language_models.build(config, self.encoder.n_vocab)
        self._feeds = feeds(config, self._rows)
        values = on_mesh(mesh, self._feeds)
        self._feeds["reach"] = reach = tf.placeholder(tf.int32, [], "reach")
        self._block = sampling.prompt_block(config.n_ctx, _BLOCK)
        tokens = values.pop("tokens")
        empty = model.empty_caches(ctx, *tokens.shape.dims[:1], config.n_ctx)
        # Between runs the caches live in variables, each slice on its device.
        kept = [tuple(Kept(impl, part.shape, part.dtype, f"cache/{layer}/{number}", _POSITIONS)
                      for number, part in enumerate(cache))
                for layer, cache in enumerate(empty)]
        filled = sampling.prefill(
            model, ctx, tokens, values.pop("lengths"),
            [tuple(part.read(mesh, reach) if part.grows else zeros for part, zeros in
                   zip(*parts, strict=True)) for parts in zip(kept, empty, strict=True)],
            self._block)
        settings = sampling.Settings(*(values.pop(name) for name in
                                       ("temperature", "top_k", "top_p", "seed")))
        # Another size of the caches would be compiled anew.
        self._compiles &= _numbers(mesh.graph, empty) <= _SMALL
        new_tokens, updated = sampling.decode(
            model, ctx, compiled=self._compiles, size=CHUNK, caches=[
                tuple(part.read(mesh, None if self._compiles else reach) for part in parts)
                for parts in kept],
            eos_id=self.encoder.eos_id, n_valid=self.encoder.n_vocab,
            settings=settings, **values)
        lowering = Lowering(mesh.graph, {mesh: impl}, autostack=False)
        self._new_tokens = lowering.export_to_tf_tensor(new_tokens)
        self._prefill_op, self._keep_op = (
            tf.group(*(part.write(lowering, value)
                       for parts, values in zip(kept, caches, strict=True)
                       for part, value in zip(parts, values, strict=True)))
            for caches in (filled, updated))
        self._start_op = tf.group(lowering.copy_masters_to_slices())
        self._frozen_op = tf.local_variables_initializer()
        self._clear_op = tf.group(*(part.clear() for parts in kept for part in parts))
        return tf.global_variables()

    def _restore(self):
        """Reads the weights, and not the optimizer's state."""
        checkpoints.restore(self.config, self._saver, self._session, self.checkpoint)
        self._session.run(self._frozen_op)
        self._session.run([self._start_op, self._clear_op])


def check_speaks(config):
    """Refuses a config whose model is no language model.

    Raises:
      UserError: names its kind.
    """
    if not config.speaks:
        raise UserError(f"model: a model of kind {config.model} is no language model; give the "
                        "config of a GPT or gpt_c")


def _numbers(graph, caches):
    """How many numbers weights and caches have."""
    return sum(x.shape.size for x in [*graph.all_variables, *tf.nest.flatten(caches)])


def feeds(config, rows):
    """What a sampling graph is given: {name: placeholder}, by row or one for all."""
    found = {}
    for names, dtype, shape in [
            (["tokens"], tf.int32, [rows, config.n_ctx]),
            (["lengths", "token", "position", "done", "number"], tf.int32, [rows]),
            (["steps", "count", "top_k", "seed"], tf.int32, []),
            (["temperature", "top_p"], tf.float32, [])]:
        found.update({name: tf.placeholder(dtype, shape, name) for name in names})
    return found


def on_mesh(mesh, given):
    """The values of `feeds` as mtf tensors: [batch, prompt], [batch] or scalars."""
    names = ("batch", "prompt")
    return {name: mtf.import_tf_tensor(mesh, x, mtf.Shape([
                mtf.Dimension(*dim) for dim in zip(names, x.shape.as_list(), strict=False)]))
            for name, x in given.items()}
