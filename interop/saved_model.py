"""A run's language model as a SavedModel, which plain TensorFlow loads without this project.

Whatever the run's mesh and precision, it is made for one device and computes in float32.
"""

import json
import os

from configs.errors import UserError
from configs.progress import tqdm
from configs.schema import RunConfig
from interop import folders, saved_pieces, saved_text
from interop.saved_pieces import on_mesh
from mesh import devices, ops
from mesh.compat import mtf, tf
from models import layers, sampling
from training import checkpoints, language_models

_FLAG = "--export saved_model"

# Of the work, for its bar: the model's graph, TensorFlow's of it, reading weights, writing.
_PARTS = 4

# Beside the graph and the weights: files that TensorFlow leaves alone.
EXTRA = "assets.extra"


def export(config: RunConfig, directory: str) -> None:
    """Writes the checkpoint that the config names as a SavedModel.

    Its signatures take up to `predict_batch_size` rows of ids, int32 [rows, length], filled up with
    any id, and `lengths`, int32 [rows]:

    - "score": `log_probs`, float32 [rows, length - 1], of each id but a row's first, in nats; 0
      past its length.
    - "generate": `tokens`, int32 [rows, new], -1 past a row's end; of `max_new_tokens` or what fits
      into n_ctx. `number`, int32 [rows], tells samples of one prompt apart; `temperature`, `top_k`,
      `top_p` and `seed` are as in --predict, and so are the tokens. A row ends with the end-of-text
      id. Where the encoder joins its ids' bytes, `text`, string [rows], is their UTF-8, and rows
      end before one of `stop`, string [stops], too.
    - "score_text" and "generate_text": the same with `text`, string [rows], in place of ids, where
      the encoder's ids are bytes or characters.
    - "prefill" and "step": see saved_pieces.Pieces.

    `assets.extra` holds model.json, which names the encoder and sizes, and its tokenizer.json.

    Args:
      config: the run's config.
      directory: to write, which must not be there.

    Raises:
      UserError: there is no checkpoint that fits, the model does not speak, or the directory is
        taken or cannot be written.
    """
    if not config.speaks or config.mlm_training:
        raise UserError(f"{_FLAG}: {config.model_path} is no language model that "
                        "speaks; give the config of a GPT or gpt_c")
    directory = directory.rstrip("/")
    folders.check_free(directory, _FLAG)
    checkpoint = checkpoints.require_fitting(config)
    encoder = checkpoints.encoder_of(config)
    checkpoints.check_vocabulary(config, encoder)
    config = config.replace(mesh_shape="", layout="", precision="float32", gpu_ids=[])
    with folders.written(directory, _FLAG) as partial:
        _write(config, encoder, checkpoint, partial)


def _write(config, encoder, checkpoint, partial):
    with (tf.Graph().as_default() as graph, tf.Session(graph=graph) as session,
          tqdm(total=_PARTS, desc="building the graph", unit="part", leave=False) as bar):
        signatures = _signatures(config, encoder, bar)
        bar.set_description("reading the weights")
        masters, frozen = tf.global_variables(), tf.local_variables()
        checkpoints.check_shapes(config, checkpoint, {
            master.op.name: master.shape.as_list() for master in masters})
        checkpoints.restore(config, tf.train.Saver(masters), session, checkpoint)
        session.run(tf.local_variables_initializer())
        bar.update()
        bar.set_description("writing")
        builder = tf.saved_model.Builder(partial)
        builder.add_meta_graph_and_variables(
            session, [tf.saved_model.tag_constants.SERVING], signatures,
            saver=tf.train.Saver(masters + frozen))
        builder.save()
        bar.update()
    facts = {"encoder": encoder.spec, "encoder_hash": encoder.hash, "n_vocab": encoder.n_vocab,
             "eos_id": encoder.eos_id, "n_ctx": config.n_ctx, "rows": config.predict_batch_size,
             "name": os.path.basename(config.model_path.rstrip("/")), "piece": saved_pieces.SIZE,
             "checkpoint": checkpoint}
    extra = os.path.join(partial, EXTRA)
    tf.io.gfile.makedirs(extra)
    checkpoints.write_text(os.path.join(extra, "model.json"), json.dumps(facts, indent=1) + "\n")
    checkpoints.write_text(os.path.join(extra, "tokenizer.json"),
                           encoder.to_tokenizers().to_str(pretty=True))


def _signatures(config, encoder, bar):
    """Builds the graph; returns its SignatureDefs by name. `bar`, a tqdm, gets two parts."""
    mesh, impl = mtf.Mesh(mtf.Graph(), "mesh"), devices.mesh_impl(config)
    ctx = layers.Context(mesh, config, dropless=True)
    model = language_models.build(config, encoder.n_vocab)
    given = {"tokens": tf.placeholder(tf.int32, [None, None], "tokens"),
             "lengths": tf.placeholder(tf.int32, [None], "lengths")}
    asked = {"number": tf.placeholder(tf.int32, [None], "number"),
             **{name: tf.placeholder(kind, [], name) for name, kind in (
                 ("max_new_tokens", tf.int32), ("temperature", tf.float32), ("top_k", tf.int32),
                 ("top_p", tf.float32), ("seed", tf.int32))}}
    table = encoder.token_bytes()
    stop = {} if table is None else {"stop": tf.placeholder(tf.string, [None], "stop")}
    inputs = {"": (given, *given.values())}
    if saved_text.reads(encoder):
        text = tf.placeholder(tf.string, [None], "text")
        inputs["_text"] = ({"text": text}, *saved_text.ids(encoder, text))
    asks = {end: _Ask(config, encoder, model, ctx, tokens, lengths, asked)
            for end, (_, tokens, lengths) in inputs.items()}
    pieces = saved_pieces.Pieces(config, encoder, model, ctx)
    bar.update()
    lowering = mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)
    bar.update()
    found = dict(pieces.signatures(lowering))
    for end, ask in asks.items():
        made = {"tokens": ask.made(lowering)}
        if stop:
            right = tf.reduce_all(tf.strings.length(stop["stop"]) > 0)
            with tf.control_dependencies([tf.debugging.Assert(right, ["stop: must not be empty"])]):
                made["tokens"], made["text"] = saved_text.cut_at_stops(
                    table, made["tokens"], tf.identity(stop["stop"]))
        given = inputs[end][0]
        found["score" + end] = given, {"log_probs": ask.log_probs(lowering)}
        found["generate" + end] = {**given, **asked, **stop}, made
    return {name: _signature(*both) for name, both in found.items()}


def _signature(inputs, outputs):
    inputs, outputs = ({name: tf.saved_model.build_tensor_info(x) for name, x in part.items()}
                       for part in (inputs, outputs))
    return tf.saved_model.build_signature_def(inputs, outputs, tf.saved_model.PREDICT_METHOD_NAME)


class _Ask:
    """The graph of one way to ask, up to its lowering.

    Args:
      config, encoder, model, ctx: see `_signatures`.
      tokens: int32 [rows, length], rows filled up with any id.
      lengths: int32 [rows].
      asked: what "generate" is given besides.
    """

    def __init__(self, config, encoder, model, ctx, tokens, lengths, asked):
        self._shape, self._lengths = tf.shape(tokens), lengths
        with tf.control_dependencies(_checks(config, encoder, tokens, lengths)):
            tokens = _whole(tokens, [config.predict_batch_size, config.n_ctx])
            # Rows that nobody gave have a token, which comes to nothing.
            whole = tf.maximum(_whole(lengths, [config.predict_batch_size]), 1)
        self._log_probs = _log_probs(model, ctx, tokens)
        self._made, self._steps = _new_tokens(model, ctx, encoder, tokens, whole, asked,
                                              tf.size(lengths))

    def log_probs(self, lowering):
        """float32 [rows, length - 1]."""
        counts = tf.sequence_mask(self._lengths - 1, self._shape[1] - 1)
        scores = lowering.export_to_tf_tensor(self._log_probs)
        return tf.where_v2(counts, scores[:self._shape[0], :self._shape[1] - 1], 0.0)

    def made(self, lowering):
        """int32 [rows, new]."""
        return lowering.export_to_tf_tensor(self._made)[:self._shape[0], :self._steps]


def _checks(config, encoder, tokens, lengths):
    """Operations that fail with one line each where the inputs are not as `export` says."""
    rows, width = tf.unstack(tf.shape(tokens))
    valid = tf.sequence_mask(lengths, width)
    ids = tf.where_v2(valid, tokens, 0)
    most = config.predict_batch_size
    return [tf.debugging.Assert(right, [message]) for right, message in (
        (rows <= most, f"tokens: more than {most} rows"),
        (width <= config.n_ctx, f"tokens: rows longer than n_ctx = {config.n_ctx}"),
        (tf.reduce_all((lengths >= 1) & (lengths <= width)),
         "lengths: each must be 1 or more, and at most the length of tokens' rows"),
        (tf.reduce_all((ids >= 0) & (ids < encoder.n_vocab)),
         f"tokens: ids must be from 0 to {encoder.n_vocab - 1}"))]


def _whole(x, shape):
    """A tensor filled up with zeros."""
    return tf.ensure_shape(tf.pad(x, [[0, size - tf.shape(x)[axis]]
                                      for axis, size in enumerate(shape)]), shape)


def _log_probs(model, ctx, tokens):
    """log p of the next id at each position: mtf float32 [batch, sequence]."""
    targets = tf.roll(tokens, -1, 1)
    tokens, targets = (on_mesh(ctx.mesh, x, "batch", "sequence") for x in (tokens, targets))
    logits = model.logits(ctx, model.hidden(ctx, tokens))
    return -ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)[0]


def _new_tokens(model, ctx, encoder, tokens, lengths, asked, rows):
    """(sampled ids, mtf int32 [batch, n_ctx], -1 where there is none; how many there may be)."""
    batch, n_ctx = tokens.shape.as_list()
    steps = tf.maximum(tf.minimum(asked["max_new_tokens"], n_ctx - tf.reduce_max(lengths)), 0)
    values = {"token": tf.gather(tokens, lengths - 1, batch_dims=1), "position": lengths - 1,
              "done": tf.cast(tf.range(batch) >= rows, tf.int32),
              "number": _whole(asked["number"], [batch])}
    values = {name: on_mesh(ctx.mesh, x, "batch") for name, x in values.items()}
    settings = sampling.Settings(*(on_mesh(ctx.mesh, asked[name]) for name in
                                   ("temperature", "top_k", "top_p", "seed")))
    # Decoding begins with a prompt's last token.
    caches = sampling.prefill(model, ctx, on_mesh(ctx.mesh, tokens, "batch", "prompt"),
                              on_mesh(ctx.mesh, lengths - 1, "batch"))
    made, _ = sampling.decode(
        model, ctx, caches=caches, steps=on_mesh(ctx.mesh, steps), size=n_ctx,
        eos_id=encoder.eos_id, n_valid=encoder.n_vocab, settings=settings,
        count=mtf.constant(ctx.mesh, 0, dtype=tf.int32), **values)
    return made, steps
