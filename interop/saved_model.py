"""A run's language model as a SavedModel, which plain TensorFlow loads without this project.

It works on token ids: text takes the run's encoder, which `assets.extra/model.json` names. Whatever
the run's mesh and precision, it is made for one device and computes in float32.
"""

import json
import os

from configs.errors import UserError
from interop import folders
from mesh import devices, ops
from mesh.compat import mtf, tf
from models import layers, sampling
from training import checkpoints, language_models

_FLAG = "--export saved_model"

# Beside the graph and the weights: files that TensorFlow leaves alone.
_FACTS = "assets.extra/model.json"


def export(config, directory):
    """Writes the checkpoint that the config names as a SavedModel.

    Its signatures take up to `predict_batch_size` rows of ids, int32 [rows, length], filled up with
    any id, and `lengths`, int32 [rows]:

    - "score": `log_probs`, float32 [rows, length - 1], of each id but a row's first, in nats; 0
      past its length.
    - "generate": `tokens`, int32 [rows, new], -1 past a row's end; of `max_new_tokens` or what fits
      into n_ctx. `number`, int32 [rows], tells samples of one prompt apart; `temperature`, `top_k`,
      `top_p` and `seed` are as in --predict, and so are the tokens. A row ends with the end-of-text
      id.

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
    with tf.Graph().as_default() as graph, tf.Session(graph=graph) as session:
        signatures = _signatures(config, encoder)
        masters, frozen = tf.global_variables(), tf.local_variables()
        checkpoints.check_shapes(config, checkpoint, {
            master.op.name: master.shape.as_list() for master in masters})
        checkpoints.restore(config, tf.train.Saver(masters), session, checkpoint)
        session.run(tf.local_variables_initializer())
        builder = tf.saved_model.Builder(partial)
        builder.add_meta_graph_and_variables(
            session, [tf.saved_model.tag_constants.SERVING], signatures,
            saver=tf.train.Saver(masters + frozen))
        builder.save()
    facts = {"encoder": encoder.spec, "encoder_hash": encoder.hash, "n_vocab": encoder.n_vocab,
             "eos_id": encoder.eos_id, "n_ctx": config.n_ctx, "rows": config.predict_batch_size,
             "checkpoint": checkpoint}
    tf.io.gfile.makedirs(os.path.dirname(os.path.join(partial, _FACTS)))
    checkpoints.write_text(os.path.join(partial, _FACTS), json.dumps(facts, indent=1) + "\n")


def _signatures(config, encoder):
    """Builds the graph; returns its SignatureDefs by name."""
    mesh, impl = mtf.Mesh(mtf.Graph(), "mesh"), devices.mesh_impl(config)
    ctx = layers.Context(mesh, config, dropless=True)
    model = language_models.build(config, encoder.n_vocab)
    given = {"tokens": tf.placeholder(tf.int32, [None, None], "tokens"),
             "lengths": tf.placeholder(tf.int32, [None], "lengths")}
    asked = {"number": tf.placeholder(tf.int32, [None], "number"),
             **{name: tf.placeholder(kind, [], name) for name, kind in (
                 ("max_new_tokens", tf.int32), ("temperature", tf.float32), ("top_k", tf.int32),
                 ("top_p", tf.float32), ("seed", tf.int32))}}
    with tf.control_dependencies(_checks(config, encoder, **given)):
        tokens = _whole(given["tokens"], [config.predict_batch_size, config.n_ctx])
        # Rows that nobody gave have a token, which comes to nothing.
        lengths = tf.maximum(_whole(given["lengths"], [config.predict_batch_size]), 1)
    log_probs = _log_probs(model, ctx, tokens)
    new = _new_tokens(model, ctx, encoder, tokens, lengths, asked, tf.size(given["lengths"]))
    lowering = mtf.Lowering(mesh.graph, {mesh: impl}, autostack=False)
    shape = tf.shape(given["tokens"])
    counts = tf.sequence_mask(given["lengths"] - 1, shape[1] - 1)
    scores = lowering.export_to_tf_tensor(log_probs)[:shape[0], :shape[1] - 1]
    scores = tf.where_v2(counts, scores, 0.0)
    made, steps = new
    made = lowering.export_to_tf_tensor(made)[:shape[0], :steps]

    def signature(inputs, outputs):
        inputs, outputs = ({name: tf.saved_model.build_tensor_info(x) for name, x in part.items()}
                           for part in (inputs, outputs))
        return tf.saved_model.build_signature_def(inputs, outputs,
                                                  tf.saved_model.PREDICT_METHOD_NAME)

    return {"score": signature(given, {"log_probs": scores}),
            "generate": signature({**given, **asked}, {"tokens": made})}


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


def _on_mesh(mesh, x, *names):
    return mtf.import_tf_tensor(mesh, x, mtf.Shape([
        mtf.Dimension(*dim) for dim in zip(names, x.shape.as_list(), strict=True)]))


def _log_probs(model, ctx, tokens):
    """log p of the next id at each position: mtf float32 [batch, sequence]."""
    targets = tf.roll(tokens, -1, 1)
    tokens, targets = (_on_mesh(ctx.mesh, x, "batch", "sequence") for x in (tokens, targets))
    logits = model.logits(ctx, model.hidden(ctx, tokens))
    return -ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)[0]


def _new_tokens(model, ctx, encoder, tokens, lengths, asked, rows):
    """(sampled ids, mtf int32 [batch, n_ctx], -1 where there is none; how many there may be)."""
    batch, n_ctx = tokens.shape.as_list()
    steps = tf.maximum(tf.minimum(asked["max_new_tokens"], n_ctx - tf.reduce_max(lengths)), 0)
    values = {"token": tf.gather(tokens, lengths - 1, batch_dims=1), "position": lengths - 1,
              "done": tf.cast(tf.range(batch) >= rows, tf.int32),
              "number": _whole(asked["number"], [batch])}
    values = {name: _on_mesh(ctx.mesh, x, "batch") for name, x in values.items()}
    settings = sampling.Settings(*(_on_mesh(ctx.mesh, asked[name]) for name in
                                   ("temperature", "top_k", "top_p", "seed")))
    # Decoding begins with a prompt's last token.
    caches = sampling.prefill(model, ctx, _on_mesh(ctx.mesh, tokens, "batch", "prompt"),
                              _on_mesh(ctx.mesh, lengths - 1, "batch"))
    made, _ = sampling.decode(
        model, ctx, caches=caches, steps=_on_mesh(ctx.mesh, steps), size=n_ctx,
        eos_id=encoder.eos_id, n_valid=encoder.n_vocab, settings=settings,
        count=mtf.constant(ctx.mesh, 0, dtype=tf.int32), **values)
    return made, steps
