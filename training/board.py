"""What TensorBoard shows of a run as a whole: tables, the layout, hparams, and a page of curves."""

from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import summary_v2 as hparams

from configs.markdown import table
from configs.redaction import hidden
from training import heat_map, layout_picture, placed

# The keys by which runs are compared, beside those that a run sets of its own.
_COMPARED = ("model", "n_layer", "n_head", "n_embd", "n_ctx", "n_vocab", "position",
             "train_batch_size", "train_steps", "lr", "lr_decay", "warmup_steps", "opt_name",
             "weight_decay", "precision", "mesh_shape", "layout", "seed")
_COMPARED_CLIP = ("mode", "loss", "weight", "layer")
# What runs are compared by: (name, the run of TensorBoard below the run's own that has it).
_METRICS = (("loss/lm", "eval"), ("bits_per_byte", "eval"), ("perplexity", "eval"),
            ("loss/clip", "eval"), ("loss", "eval"), ("loss", ""), ("tokens_per_second", ""))

# The custom-scalars page: by heading, charts with the kind of run that has them ("" for all) and a
# pattern of the tags that they show.
PAGE = {
    "Loss: training and evaluation": {
        "language model (nats per token)": ("language", "loss/lm"),
        "masked language model (nats per masked token)": ("masked", "loss/mlm"),
        "CLIP supervision": ("supervised", "loss/clip"),
        "CLIP: pictures and captions": ("clip", "loss/contrastive"),
        "student against its teacher": ("student", "loss/(windows|beyond)_.*"),
        "perplexity": ("language", "perplexity"),
        "perplexity of masked tokens": ("masked", "mlm_perplexity"),
        "bits per byte": ("language", "bits_per_byte"),
        "other loss terms": ("terms", "loss/(z|moe_.*|moments)"),
        "what is optimised": ("", "loss"),
    },
    "Optimisation": {
        "learning rate": ("", "learning_rate"),
        "gradient norm, before clipping": ("", "gradient_norm"),
        "gradient norms by group": ("", "gradient_norm/.*"),
        "parameter norms by group": ("", "parameter_norm/.*"),
        "weights of loss terms": ("supervised", "weight/.*"),
    },
    "Speed and data": {
        "tokens a second": ("", "tokens_per_second"),
        "model FLOPs utilisation": ("language", "mfu"),
        "epochs of the data": ("", "epoch"),
    },
    "Evaluation": {
        "tasks: accuracy": ("language", "tasks/[^/]*/acc"),
        "tasks: rank correlation with how things look": ("language", "tasks/[^/]*/spearman"),
        "how well the student is predicted: cosine": ("supervised", "clip_cosine"),
        "captions and pictures that find each other": (
            "clip", "(caption_to_picture|picture_to_caption)"),
        "zero-shot accuracy": ("clip", "zero_shot/[^/]*"),
        "student and teacher: R², cosine, correlation of probe words": (
            "student", "(r2_.*|cosine_.*|probe/.*)"),
        "masked tokens: accuracy": ("masked", "mlm_accuracy"),
    },
}


def begin(writer, config, facts, step):
    """Writes what is known of a run before its first step.

    Args:
      writer: a training.metrics.Writer of the run's directory.
      config: the run's config.
      facts: the training split's inputs.Facts.
      step: the step that the run goes on from.
    """
    writer.text("config", table(["key", "value", "from"], config.rows()), step)
    writer.text("mesh", mesh_table(config), step)
    writer.text("data", data_table(config, facts), step)
    writer.summary(page(config))
    compared = hyperparameters(config)
    writer.summary(hparams.hparams_config_pb(
        [hparams.HParam(name) for name in compared],
        [hparams.Metric(name, group=group, display_name=f"{group or 'train'} {name}")
         for name, group in _METRICS]))
    writer.summary(hparams.hparams_pb(compared, trial_id=hidden(config.model_path)))


def mesh_table(config):
    """The mesh's axes, their sizes, and which dimensions are split over each, as Markdown."""
    if not config.mesh:
        return "One device; nothing is split."
    rows = [(axis, size, ", ".join(dim for dim, split in config.layout_rules if split == axis)
             or "nothing: all hold the same") for axis, size in config.mesh]
    return table(["axis of mesh_shape", "size", "dimensions split over it (layout)"], rows)


def data_table(config, facts):
    """The training split and what a step takes of it, as Markdown."""
    rows = [("datasets", ", ".join(entry["id"] for entry in facts.datasets) or "-"),
            ("tokens", _count(facts.tokens)), ("bytes", _count(facts.bytes)),
            ("windows an epoch", _count(facts.windows)),
            ("windows a step", _count(config.train_batch_size)),
            ("encoder", facts.encoder or "-"), ("n_vocab", _count(facts.n_vocab))]
    return table(["training data", ""], rows)


def _count(number):
    return "-" if number is None else f"{number:,}"


def page(config):
    """The Summary of a custom-scalars page: the charts of PAGE that a run has curves for.

    TensorBoard joins the pages of several runs.
    """
    kinds = _kinds(config)
    shown = {heading: {title: tag for title, (kind, tag) in charts.items() if kind in kinds}
             for heading, charts in PAGE.items()}
    return custom_scalar.pb(layout_pb2.Layout(category=[
        layout_pb2.Category(title=heading, chart=[
            layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(
                tag=[f"^{tag}$"])) for title, tag in charts.items()])
        for heading, charts in shown.items()]))


def _kinds(config):
    """What PAGE calls a run."""
    kinds = {""}
    if config.model == "clip":
        kinds.add("clip")
    elif config.mlm_training:
        kinds.add("masked")
    elif config.model != "clip_student" or config.text_only:
        kinds.add("language")
    if config.model == "clip_student" and not config.text_only:
        kinds.add("student")
    if config.supervised:
        kinds.add("supervised")
    if config.z_loss or config.moe_layers or config.text_only:
        kinds.add("terms")
    return kinds


def hyperparameters(config):
    """{key: bool, number or text}: what a run is compared by, and what it sets of its own."""
    found = {key: getattr(config, key) for key in _COMPARED}
    if config.model == "gpt_c":
        found.update({f"clip.{key}": getattr(config.clip, key) for key in _COMPARED_CLIP})
    for key, field in type(config).model_fields.items():
        if key not in ("about", "model_path", "clip") and getattr(config, key) != field.default:
            found.setdefault(key, getattr(config, key))
    return {key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in found.items() if value is not None}


def layout(config, graph, mesh_impl):
    """A PNG of what each core holds of the weights: see --explain_layout."""
    return heat_map.png(layout_picture.draw(config, placed.weights(graph, mesh_impl)))
