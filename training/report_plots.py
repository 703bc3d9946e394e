"""The pictures of a report: curves as SVG, and PNGs, as text of an HTML page."""

import base64
import io
import logging

# (caption, tag, whether the vertical axis may be logarithmic); evaluations are dashed.
_CURVES = (("language model's loss, nats per token", "loss/lm", False),
           ("masked language model's loss, nats per token", "loss/mlm", False),
           ("CLIP supervision's loss", "loss/clip", False),
           ("contrastive loss", "loss/contrastive", False),
           ("what is optimised", "loss", False),
           ("bits per byte", "bits_per_byte", False),
           ("perplexity", "perplexity", True),
           ("learning rate", "learning_rate", False),
           ("gradient norm before clipping", "gradient_norm", True),
           ("parameter norm", "parameter_norm", False),
           ("cosine with the student", "clip_cosine", False),
           ("tokens a second", "tokens_per_second", False),
           ("model FLOPs utilisation", "mfu", False))


def curves(runs):
    """(caption, SVG) of each curve that some of the training.report.Runs have."""
    for caption, tag, log in _CURVES:
        found = [(run.name, kind, curve) for run in runs
                 for kind, curve in (("training", run.train.get(tag)), ("evaluation",
                                                                        run.eval.get(tag)))
                 if curve]
        if found:
            yield f"{caption} ({tag})", _plot(runs, found, tag, log)
    norms = [(tag.partition("/")[2], "training", curve) for run in runs[:1]
             for tag, curve in run.train.items() if tag.startswith("gradient_norm/")]
    if len(runs) == 1 and norms:
        yield "gradient norms by group (gradient_norm/…)", _plot(
            None, norms, "gradient_norm/…", True)


def _plot(runs, found, label, log):
    """An SVG; each run has a color, or each curve where `runs` is None."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    names = [run.name for run in runs] if runs else [name for name, _, _ in found]
    for name, kind, curve in found:
        steps, color = sorted(curve), f"C{names.index(name) % 10}"
        several = len(names) > 1
        text = f"{name}, {kind}" if runs and several else name if several else kind
        axes.plot(steps, [curve[step] for step in steps], color=color, label=text,
                  linestyle="-" if kind == "training" else "--",
                  marker="o" if kind == "evaluation" or len(steps) < 3 else None, markersize=4,
                  linewidth=1.5)
    values = [value for _, _, curve in found for value in curve.values()]
    if log and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(label, parse_math=False)
    axes.grid(alpha=0.3)
    for text in axes.legend(fontsize=8).get_texts():
        text.set_parse_math(False)  # a $ in a name is a $
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text stays text: it can be searched
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg"):]


def embedded(png):
    """An <img> that holds a PNG."""
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
