"""Filling in masked tokens of prompts with a masked language model's newest checkpoint."""

import dataclasses
import sys

import numpy as np

from configs.errors import UserError
from configs.progress import tqdm
from mesh import devices
from mesh.compat import mtf, tf
from mesh.slices import local
from models import layers, sampling
from training import checkpoints, language_models, predictions

# Encoders in which a space is a token like any other. Those of words have it in the next word's
# token, so that the mask stands for both.
_SPACES_ARE_TOKENS = ("byte", "char")

# The positions of a prompt, which no layout splits as it may `sequence`: prompts have any length.
_SEQUENCE = "fill_sequence"


@dataclasses.dataclass
class Filled:
    """A prompt with its masks filled in.

    Attributes:
      prompt: its token ids with the masks.
      number: which of the prompt's samples it is, from 0.
      tokens: token ids without masks.
    """

    prompt: list
    number: int
    tokens: list


class Filler:
    """A masked language model that waits for prompts.

    Masks are filled in from left to right, each with those before it known. There is no padding: a
    graph is built for each length of a prompt, and all of them share the weights.

    Args:
      config: the run's config.
      encoder: the encoder of its weights.

    Raises:
      UserError: there is no checkpoint, or it does not fit the config.
    """

    def __init__(self, config, encoder):
        devices.prepare(config)
        self.config, self.encoder = config, encoder
        self.checkpoint = checkpoints.require_fitting(config)
        checkpoints.check_vocabulary(config, encoder)
        # A multiple of the replicas; further rows idle.
        self._rows = -(-config.predict_batch_size // config.batch_split) * config.batch_split
        self._graph, self._lengths = tf.Graph(), {}
        self._session = tf.Session(graph=self._graph, config=devices.session_config(config))

    def close(self):
        """Frees the weights."""
        self._session.close()

    def fill(self, prompts, num_samples=1, temperature=1.0, top_k=0, top_p=1.0, seed=1):
        """Fills in masks.

        A sample is a function of (its prompt, its number, settings): neither the other prompts nor
        the batch size change it.

        Args:
          prompts: lists of token ids, as `encode` makes them.
          num_samples: of each prompt.
          temperature, top_k, top_p, seed: see models.sampling.Settings.

        Returns:
          a Filled for each sample, the first prompt's first.
        """
        settings = {"temperature": temperature, "top_k": min(top_k, self.encoder.n_vocab),
                    "top_p": top_p, "seed": seed}
        found = [Filled(list(prompt), number, list(prompt))
                 for prompt in prompts for number in range(num_samples)]
        by_length = {}
        for sample in found:
            by_length.setdefault(len(sample.prompt), []).append(sample)
        size = self.config.predict_batch_size
        with tqdm(total=len(found), desc="filling in", unit="sample", leave=False,
                  delay=2) as bar:
            for samples in by_length.values():
                for first in range(0, len(samples), size):
                    part = samples[first:first + size]
                    self._fill(part, settings)
                    bar.update(len(part))
        return found

    def _fill(self, samples, settings):
        """Fills in samples of one length, at most a batch of them."""
        length, mask = len(samples[0].prompt), self.config.mlm_mask_id
        if length not in self._lengths:
            self._lengths[length] = self._build(length)
        feeds, chosen = self._lengths[length]
        tokens = np.zeros([self._rows, length], np.int32)
        number, position = np.zeros([2, self._rows], np.int32)
        number[:len(samples)] = [sample.number for sample in samples]
        masks = [[i for i, token in enumerate(sample.prompt) if token == mask]
                 for sample in samples]
        for count in range(max(map(len, masks))):
            for i, sample in enumerate(samples):
                tokens[i] = sample.tokens
                position[i] = masks[i][count] if count < len(masks[i]) else 0
            values = {"tokens": tokens, "position": position, "number": number, "count": count,
                      **settings}
            new = self._session.run(chosen, {feeds[name]: value for name, value in values.items()})
            for i, sample in enumerate(samples):
                if count < len(masks[i]):
                    sample.tokens[position[i]] = int(new[i])

    def _build(self, length):
        """Extends the graph for prompts of a length: (placeholders by name, the token chosen)."""
        config = self.config
        with self._graph.as_default(), tf.variable_scope("", reuse=tf.AUTO_REUSE):
            mesh = mtf.Mesh(mtf.Graph(), "mesh")
            ctx = layers.Context(mesh, config, dropless=True)
            model = language_models.build(config, self.encoder.n_vocab)
            batch = mtf.Dimension("batch", self._rows)
            feeds, on_mesh = {}, {}
            for names, dtype, dims in [
                    (["tokens"], tf.int32, [batch, mtf.Dimension(_SEQUENCE, length)]),
                    (["position", "number"], tf.int32, [batch]),
                    (["count", "top_k", "seed"], tf.int32, []),
                    (["temperature", "top_p"], tf.float32, [])]:
                for name in names:
                    feeds[name] = tf.placeholder(dtype, [d.size for d in dims])
                    on_mesh[name] = mtf.import_tf_tensor(mesh, feeds[name], mtf.Shape(dims))
            hidden = model.hidden(ctx, on_mesh["tokens"])
            at_mask = local(lambda x, at: tf.gather(x, at, batch_dims=1),
                            [hidden, on_mesh["position"]], ([batch, model.embd], hidden.dtype),
                            name="at_mask")
            logits = model.logits(ctx, at_mask)
            if config.entmax_sampling:
                logits = sampling.entmax_logits(logits, self.encoder.n_vocab, config.entmax_alpha)
            logits = self._allowed(logits, model.vocab)
            settings = sampling.Settings(*(on_mesh[name] for name in
                                           ("temperature", "top_k", "top_p", "seed")))
            chosen = sampling.sample_token(logits, self.encoder.n_vocab, settings,
                                           on_mesh["number"], on_mesh["count"])
            lowering = mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(config)}, autostack=False)
            start = tf.group(lowering.copy_masters_to_slices())
            if not self._lengths:
                self._restore()
            self._session.run(start)
            return feeds, lowering.export_to_tf_tensor(chosen)

    def _allowed(self, logits, vocab):
        """Logits with those of the mask and of ids that are never predicted out of reach."""
        config = self.config
        banned = [number for number in (config.mlm_mask_id, config.mlm_cls_token_id,
                                        *config.mlm_mask_ignore_ids) if number is not None]
        ids = mtf.range(logits.mesh, vocab, tf.int32)
        return local(lambda x, i: tf.where_v2(
            tf.reduce_any(tf.equal(i[:, None], banned), 1), -1e9, tf.cast(x, tf.float32)),
            [logits, ids], (logits.shape, tf.float32), name="allowed")

    def _restore(self):
        masters = tf.global_variables()
        checkpoints.check_shapes(self.config, self.checkpoint, {
            master.op.name: master.shape.as_list() for master in masters})
        checkpoints.restore(self.config, tf.train.Saver(masters), self._session, self.checkpoint)


def fill_in(config, prompts, num_samples=1, temperature=1.0, top_k=0, top_p=1.0, seed=1,
            interactive=False):
    """Prints prompts with their masks filled in, and appends them to `predict_path` if it is set.

    Args:
      config: the run's config.
      prompts: texts with `mlm_mask_text` in them.
      num_samples, temperature, top_k, top_p, seed: see Filler.fill.
      interactive: answer each line of stdin as a prompt, after `prompts`.

    Raises:
      UserError: there is no checkpoint, or a prompt has no mask, is too long or cannot be encoded.
    """
    checkpoints.require_latest(config)
    encoder = checkpoints.encoder_of(config)
    encoded = [encode(config, encoder, prompt) for prompt in prompts]
    filler = Filler(config, encoder)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}

    def answer(texts, tokens):
        samples = filler.fill(tokens, num_samples, **settings)
        for text, sample in zip((t for t in texts for _ in range(num_samples)), samples,
                                strict=True):
            filled = decode(config, encoder, sample.tokens)
            print(f"{filled}\n{predictions.SEPARATOR}", flush=True)
            if config.predict_path:
                predictions.append(config.predict_path, {
                    "prompt": text, "text": filled, "sample": sample.number,
                    "checkpoint": filler.checkpoint, **settings})

    answer(prompts, encoded)
    for line in predictions.lines() if interactive else ():
        try:
            tokens = encode(config, encoder, line)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        else:
            answer([line], [tokens])
    filler.close()


def encode(config, encoder, prompt):
    """Token ids of a prompt with masks in it, after the token that begins each row.

    Raises:
      UserError: there is no mask in it, it is longer than n_ctx, or the encoder does not know a
        character.
    """
    *before, last = prompt.split(config.mlm_mask_text)
    if not before:
        raise UserError(f"prompt: there is no {config.mlm_mask_text} in {prompt[:40]!r}; write it "
                        "where a token is to be filled in (key mlm_mask_text)")
    if encoder.name not in _SPACES_ARE_TOKENS:
        before = [part.removesuffix(" ") for part in before]
    ids = [] if config.mlm_cls_token_id is None else [config.mlm_cls_token_id]
    try:
        for part in before:
            ids += [*encoder.encode(part), config.mlm_mask_id]
        ids += encoder.encode(last)
    except UserError as error:
        raise UserError(f"prompt: {error}") from error
    if len(ids) > config.n_ctx:
        raise UserError(f"prompt: {prompt[:40]!r} has {len(ids)} tokens, and the model reads n_ctx "
                        f"= {config.n_ctx}; shorten it")
    return ids


def decode(config, encoder, tokens):
    """The text of filled-in token ids, without the token that begins each row."""
    return encoder.decode(tokens if config.mlm_cls_token_id is None else tokens[1:])
