"""Embeddings of texts and pictures with a run's newest checkpoint: one graph and session for all.

Models of kind clip embed texts and pictures; a clip_student embeds texts, at each of their tokens;
a supervised gpt_c has projections, beside what its student says.
"""

import dataclasses

import numpy as np

from configs.errors import UserError
from configs.progress import tqdm
from mesh import devices
from mesh.compat import mtf, tf
from models import clip, clip_image, layers
from training import checkpoints, contrastive, frozen, language_models, supervision


class Embedder:
    """A CLIP model, a student of one, or a GPT-C, that waits for texts and pictures.

    Args:
      config: the run's config.
      encoder: the encoder of its weights; by default the one that the run names.
      length: the most tokens of a text; by default what the run was trained with.

    Raises:
      UserError: the run is of another kind, has no checkpoint, or does not fit the config.
    """

    def __init__(self, config, encoder=None, length=None):
        if config.model not in ("clip", "clip_student") and not config.supervised:
            raise UserError(f"model: a model of kind {config.model} has no embeddings; give the "
                            "config of a clip, a clip_student or a gpt_c with a supervised loss")
        devices.prepare(config)
        self.config, self.checkpoint = config, checkpoints.require_fitting(config)
        self.encoder = encoder or checkpoints.encoder_of(config)
        held = tf.train.NewCheckpointReader(self.checkpoint).get_variable_to_shape_map()
        # A tower that was imported to teach has no pictures.
        self.sees = any(name.startswith("clip_image/") for name in held)
        # A multiple of the replicas, since those of an evaluation are.
        self._rows, self._images = config.eval_batch_size, None
        with tf.Graph().as_default() as graph:
            mesh = mtf.Mesh(mtf.Graph(), "mesh")
            ctx = layers.Context(mesh, config)
            if config.model == "clip":
                found = self._build_clip(ctx, length)
            elif config.supervised:
                found = self._build_gpt_c(ctx, length)
            else:
                found = self._build_student(ctx, length, held["clip_student/target_mean"][0])
            masters = tf.global_variables()
            checkpoints.check_shapes(config, self.checkpoint, {
                master.op.name: master.shape.as_list() for master in masters})
            lowering = mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(config)}, autostack=False)
            self._found = [lowering.export_to_tf_tensor(mtf.cast(x, tf.float32)) for x in found]
            self._frozen_op = tf.local_variables_initializer()
            self._start_op = tf.group(lowering.copy_masters_to_slices())
            self._saver = tf.train.Saver(masters)
            self._session = tf.Session(graph=graph, config=devices.session_config(config))
            graph.finalize()
        self._restore()

    def reload(self):
        """Takes the weights of the run's newest checkpoint."""
        self.checkpoint = checkpoints.require_latest(self.config)
        self._restore()

    def close(self):
        """Frees the weights."""
        self._session.close()

    def texts(self, texts):
        """Embeddings of texts.

        Args:
          texts: a list of str, none longer than `length` tokens.

        Returns:
          float32 [texts, out], at unit length. A student's is what it says at the last token,
          brought back from its standardised targets to the teacher's embeddings.

        Raises:
          UserError: a text is too long, cannot be encoded, or of a student's has no token.
        """
        if self.config.model == "clip_student":
            return np.stack([rows[-1] for rows in self.each_token(texts)])
        return self.captions(self._encode(texts))

    def captions(self, encoded):
        """Embeddings of a clip model of texts that are encoded already: lists of ids, as `texts`.
        """
        tokens = np.zeros([len(encoded), self._length + 2], np.int32)
        for row, ids in zip(tokens, encoded, strict=True):
            row[:len(ids) + 2] = [self._sizes.start_id, *ids, self._sizes.end_id]
        ends = np.array([len(ids) + 1 for ids in encoded], np.int32)
        return unit(self._run(self._found[0], {self._tokens: tokens, self._ends: ends}))

    def each_token(self, texts):
        """What a student says at each token of texts.

        Args:
          texts: as in `texts`.

        Returns:
          a list of float32 [tokens of a text, out], each row as `texts` gives it.
        """
        if self.config.model != "clip_student":
            raise UserError(f"{self.config.model_path}: a model of kind {self.config.model} says "
                            "nothing at each token; give a clip_student")
        encoded = self._encode(texts)
        for ids, text in zip(encoded, texts, strict=True):
            if not ids:
                raise UserError(f"{text!r}: encoder {self.encoder.spec} finds no token in it")
        outputs = self._run(self._found[0], {self._tokens: self._filled_up(encoded)})
        return [unit(row[:len(ids)] * self.target_deviation + self.target_mean)
                for row, ids in zip(outputs, encoded, strict=True)]

    def projections(self, texts):
        """What the student of a gpt_c says of texts, and what the GPT's projections say.

        Those are at texts' last token, or `clip.target` tokens before it, where the GPT learns to
        say what the student says at the last.

        Args:
          texts: as in `texts`, none of `clip.target` tokens or less.

        Returns:
          {"student": float32 [texts, out], then the same by each of `clip.layer`}, at unit length,
          of standardised outputs, as the supervision has them.
        """
        names = ["student", *self.config.clip.layer]
        encoded = self._encode(texts)
        tokens = self._filled_up(encoded)
        last = np.array([len(ids) - 1 for ids in encoded])
        rows = np.arange(len(encoded))
        return {name: unit(self._run(found, {self._tokens: tokens})[
                    rows, last - (0 if name == "student" else self.config.clip.target)])
                for name, found in zip(names, self._found, strict=True)}

    def _filled_up(self, encoded):
        """Lists of ids as int32 [texts, positions], filled up with zeros."""
        tokens = np.zeros([len(encoded), self._length], np.int32)
        for row, ids in zip(tokens, encoded, strict=True):
            row[:len(ids)] = ids
        return tokens

    def pictures(self, pictures):
        """Embeddings of pictures.

        Args:
          pictures: uint8 [pictures, image_size, image_size, 3].

        Returns:
          float32 [pictures, out], at unit length.

        Raises:
          UserError: the model sees no pictures, or none of this size.
        """
        if self._images is None:
            raise UserError(f"{self.config.model_path}: has no image tower, so it embeds texts "
                            "alone; train a model of kind clip with pictures")
        wanted = self._images.shape.as_list()[1:]
        if list(pictures.shape[1:]) != wanted:
            raise UserError(f"{self.config.model_path}: reads pictures of {wanted}, not "
                            f"{list(pictures.shape[1:])}: rows, columns and colours")
        return unit(self._run(self._found[1], {self._images: pictures}))

    def _encode(self, texts):
        """The token ids of texts, none more than `length`."""
        encoded = [self.encoder.encode(text) for text in texts]
        for text, ids in zip(texts, encoded, strict=True):
            if len(ids) > self._length:
                raise UserError(f"{text[:40]!r}: has {len(ids)} tokens, and the model in "
                                f"{self.config.model_path} reads {self._length} here; shorten it")
        return encoded

    def _run(self, fetched, values):
        """Runs the session on some rows after the others; the last ones are filled up."""
        size, found = self._rows, []
        count = len(next(iter(values.values())))
        for first in tqdm(range(0, count, size), desc="embedding", unit="batch", leave=False,
                          delay=2):
            part = {feed: x[first:first + size] for feed, x in values.items()}
            part = {feed: np.concatenate([x, np.zeros([size - len(x), *x.shape[1:]], x.dtype)])
                    for feed, x in part.items()}
            found.append(self._session.run(fetched, part))
        return np.concatenate(found)[:count] if found else np.zeros([0, fetched.shape[-1]])

    def _feed(self, mesh, dtype, dims):
        """A placeholder, and the same on the mesh."""
        feed = tf.placeholder(dtype, [dim.size for dim in dims])
        return feed, mtf.import_tf_tensor(mesh, feed, mtf.Shape(dims))

    def _build_clip(self, ctx, length):
        """Embeddings of texts, [batch, clip_out], and of pictures where it sees any."""
        tower = clip.TextTower(contrastive.text_sizes(self.config))
        self._sizes = tower.sizes
        self._length = min(length or self._sizes.longest_text, self._sizes.longest_text)
        batch = mtf.Dimension("batch", self._rows)
        self._tokens, tokens = self._feed(ctx.mesh, tf.int32, [
            batch, mtf.Dimension("clip_sequence", self._length + 2)])
        self._ends, ends = self._feed(ctx.mesh, tf.int32, [batch])
        found = [tower.embed(ctx, tokens, ends)]
        if self.sees:
            tower = clip_image.tower(contrastive.image_sizes(self.config))
            shape = mtf.Shape([batch, *tower.sizes.pixels()])
            self._images = tf.placeholder(tf.uint8, shape.to_integer_list)
            found.append(tower.embed(ctx, mtf.import_tf_tensor(
                ctx.mesh, contrastive.centred(self._images), shape)))
        return found

    def _build_student(self, ctx, length, out):
        """What the student says, [batch, clip_sequence, clip_out]."""
        self._length = min(length or self.config.n_ctx, self.config.n_ctx)
        self._tokens, tokens = self._feed(ctx.mesh, tf.int32, [
            mtf.Dimension("batch", self._rows), mtf.Dimension("clip_sequence", self._length)])
        return [language_models.student(self.config, out).outputs(ctx, tokens)]

    def _build_gpt_c(self, ctx, length):
        """What its student says and what each projection says, [batch, positions, clip_out]."""
        config, ctx = self.config, dataclasses.replace(ctx, dropless=True)
        self._length = language_models.row_length(config, length or config.n_ctx)
        taken = frozen.of_run(config)
        student, model = language_models.frozen_student(taken), language_models.build(
            config, self.encoder.n_vocab)
        batch = mtf.Dimension("batch", self._rows)
        self._tokens, tokens = self._feed(ctx.mesh, tf.int32, [
            batch, mtf.Dimension("clip_sequence", self._length)])
        said = student.outputs(dataclasses.replace(ctx, stored=taken.initializer), tokens)
        states = model.states(ctx, mtf.import_tf_tensor(ctx.mesh, self._tokens, mtf.Shape([
            batch, mtf.Dimension("sequence", self._length)])))
        return [said, *(supervision.projection(ctx, states, layer, model.embd, student.out)
                        for layer in config.clip.layer)]

    def _restore(self):
        """Reads the weights, and a student's statistics of its targets."""
        checkpoints.restore(self.config, self._saver, self._session, self.checkpoint)
        self._session.run(self._frozen_op)
        self._session.run(self._start_op)
        if self.config.model == "clip_student":
            reader = tf.train.NewCheckpointReader(self.checkpoint)
            self.target_mean, self.target_deviation = (
                reader.get_tensor(f"clip_student/target_{name}") for name in ("mean", "deviation"))


def unit(x):
    """x over its length along the last dimension."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
