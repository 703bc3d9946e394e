"""--report: one HTML page of one run, or of several beside each other."""

import html
import json
import logging
import os
from typing import NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import schema
from configs.errors import UserError
from configs.progress import tqdm
from mesh.compat import tf
from training import checkpoints, metrics, report_plots, tasks

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 70em;
  margin: auto; padding: 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; border-bottom: 1px solid #ccc; margin-top: 2em }
figure { margin: 1em 0 } figcaption { color: #555; font-size: .9em }
.plots { display: grid; gap: 1em;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26em), 1fr)) }
svg, img { width: 100%; height: auto }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9em }
th, td { border: 1px solid #ddd; padding: .2em .6em; text-align: left; vertical-align: top }
td.best { font-weight: bold } pre { white-space: pre-wrap; background: #f6f6f6; padding: .8em }
.runs > div { margin-bottom: 1em }
@media print {
  .wide { overflow: visible } table { font-size: 7pt }
  body { max-width: none; font-size: 10pt; padding: 0 } figure, tr, pre { break-inside: avoid }
  .plots { grid-template-columns: 1fr 1fr } details > summary { display: none }
}
"""
# Scores of the last evaluation: key of metrics.jsonl, heading, whether more is better.
_SCORES = (("step", "step", None), ("eval_loss", "loss", False),
           ("perplexity", "perplexity", False),
           ("bits_per_byte", "bits per byte", False),
           ("bits_per_decoded_byte", "bits per decoded byte", False),
           ("mlm_perplexity", "masked perplexity", False), ("loss/clip", "CLIP loss", False),
           ("clip_cosine", "CLIP cosine", True), ("tokens_per_sec", "tokens/s", True))
# Of a task's many scores, those that its table shows; the first ones tell most.
_OF_TASKS = ("spearman", "kendall", "acc", "acc_norm", "perplexity", "bits_per_byte")
_LESS_IS_MORE = ("perplexity", "bits_per_byte")


class Run(NamedTuple):
    """What is read of a run.

    Attributes:
      name: by which the page calls it.
      config: its RunConfig. lines: its evaluations, from metrics.jsonl.
      train, eval: by tag, {step: value}. samples: {step: text}.
      pictures: by tag, the newest PNG.
    """

    name: str
    config: schema.RunConfig
    lines: list
    train: dict
    eval: dict
    samples: dict
    pictures: dict


def run(directories, path):
    """Writes a page of some runs.

    Args:
      directories: of the runs, in the order in which they are shown.
      path: the file to write, which is replaced.

    Raises:
      UserError: one of them is no run, or has no numbers; or `path` cannot be written.
    """
    names = _names(directories)
    runs = [_read(directory, name) for directory, name in tqdm(
        list(zip(directories, names, strict=True)), desc="reading", leave=False)]
    text = page(runs)
    try:
        checkpoints.write_text(path, text)
    except tf.errors.OpError as error:
        raise UserError(f"--out: {path} cannot be written ({error.message}); give another"
                        ) from error
    print(json.dumps({"report": path, "runs": names}), flush=True)


def _names(directories):
    """The directories' last parts, or as much as tells them apart."""
    parts = [directory.rstrip("/").split("/") for directory in directories]
    if len({tuple(path) for path in parts}) < len(parts):
        raise UserError("--report: a run is named twice; name each once")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read(directory, name):
    config_path = os.path.join(directory, "config.json")
    if not tf.io.gfile.exists(config_path):
        raise UserError(f"--report {directory}: no config.json there; give the directory of a run, "
                        "its model_path")
    config = schema.load(config_path)
    train, samples, pictures = _events(directory)
    evaluated, _, pictures_of_eval = _events(os.path.join(directory, "eval"))
    lines = metrics.read_lines(os.path.join(directory, metrics.EVALUATIONS))
    if not train and not lines:
        raise UserError(f"--report {directory}: the run has no numbers yet; train it first")
    return Run(name, config, lines, train, evaluated, samples, pictures | pictures_of_eval)


def _events(directory):
    """(scalars: {tag: {step: value}}, samples: {step: text}, pictures: {tag: PNG}) of event files.

    Directories without event files have none.
    """
    if not (tf.io.gfile.isdir(directory)
            and tf.io.gfile.glob(os.path.join(directory, "events.*"))):
        return {}, {}, {}
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of each file's end
    events = EventAccumulator(directory, size_guidance={"tensors": 0}).Reload()
    scalars, samples, pictures = {}, {}, {}
    for tag in events.Tags()["tensors"]:
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        values = {event.step: tf.make_ndarray(event.tensor_proto) for event in events.Tensors(tag)}
        if plugin == "scalars":
            scalars[tag] = {step: float(value) for step, value in values.items()}
        elif plugin == "images":
            pictures[tag] = values[max(values)][2]
        elif tag == "sample":
            samples = {step: "\n".join(line[4:] for line in value.item().decode().splitlines())
                       for step, value in values.items()}
    return scalars, samples, pictures


def page(runs):
    """The HTML of some Runs: nothing in it is loaded from elsewhere."""
    title = html.escape(" and ".join(run.name for run in runs))
    parts = [f"<h1>{title}</h1>", _section("Results", _results(runs)),
             _section("Curves", _curves(runs)), _section("Tasks and probes", _tasks(runs)),
             _section("Samples", _samples(runs)), _section("Pictures", _pictures(runs)),
             _section("Configs", _configs(runs))]
    return ("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
            f"<title>{title}</title><style>{_STYLE}</style></head><body>"
            f"{''.join(parts)}</body></html>\n")


def _section(heading, content):
    return f"<h2>{heading}</h2>{content}" if content else ""


def table(heads, rows, best=()):
    """An HTML table of texts.

    Args:
      heads: of the columns. rows: lists of texts. best: (row, column) of cells that stand out.
    """
    def cells(row, kind, number=-1):
        return "".join(f"<{kind}{' class=best' if (number, column) in best else ''}>"
                       f"{html.escape(str(text))}</{kind}>" for column, text in enumerate(row))

    body = "".join(f"<tr>{cells(row, 'td', number)}</tr>" for number, row in enumerate(rows))
    return f"<div class=wide><table><tr>{cells(heads, 'th')}</tr>{body}</table></div>"


def _compared(keys, scores, names):
    """A table with a row for each run, whose best scores stand out.

    Args:
      keys: (key, heading, whether more is better or None). scores: of each run a dict by key.
    """
    keys = [key for key in keys if any(score.get(key[0]) is not None for score in scores)]
    best = set()
    for column, (key, _, more) in enumerate(keys, 1):
        values = [score.get(key) for score in scores]
        known = [value for value in values if value is not None]
        if more is not None and len(set(known)) > 1:
            top = (max if more else min)(known)
            best |= {(row, column) for row, value in enumerate(values) if value == top}
    rows = [[name, *(_number(score.get(key)) for key, _, _ in keys)]
            for name, score in zip(names, scores, strict=True)]
    return table(["run", *(heading for _, heading, _ in keys)], rows, best) if keys else ""


def _number(value):
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _results(runs):
    """The last evaluations."""
    return _compared(_SCORES, [run.lines[-1] if run.lines else {} for run in runs],
                     [run.name for run in runs])


def _curves(runs):
    figures = [f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
               for caption, svg in report_plots.curves(runs)]
    return f"<div class=plots>{''.join(figures)}</div>" if figures else ""


def _tasks(runs):
    """A table for each file of eval_tasks, and for zero-shot and probe words, by the last lines."""
    last = [run.lines[-1] if run.lines else {} for run in runs]
    names = [run.name for run in runs]
    parts = []
    for task in dict.fromkeys(name for line in last for name in line.get("tasks") or {}):
        scores = [tasks.scalars((line.get("tasks") or {}).get(task, {}), "") for line in last]
        scores = [{tag[1:]: value for tag, value in score.items()} for score in scores]
        keys = [tag for score in scores for tag in score
                if tag.rpartition("/")[2] in (*_OF_TASKS, "chance")]
        keys = [(tag, tag.replace("/", " "),
                 None if tag.endswith("chance") else not tag.endswith(_LESS_IS_MORE))
                for tag in dict.fromkeys(keys)]
        parts.append(f"<h3>{html.escape(task)}</h3>{_compared(keys, scores, names)}")
    keys = [(key, key.replace("/", " "), True) for key in dict.fromkeys(
        key for line in last for key in line if key.startswith(("zero_shot/", "probe/")))]
    return "".join(parts) + _compared(keys, last, names)


def _samples(runs):
    """The newest sample of each run."""
    return "".join(
        f"<h3>{html.escape(run.name)}, step {max(run.samples)}</h3>"
        f"<pre>{html.escape(run.samples[max(run.samples)])}</pre>" for run in runs if run.samples)


def _pictures(runs):
    return "".join(
        f"<figure>{report_plots.embedded(png)}<figcaption>{html.escape(f'{run.name}: {tag}')}"
        "</figcaption></figure>" for run in runs for tag, png in run.pictures.items())


def _configs(runs):
    """The keys in which runs differ, and, to unfold, all others."""
    of_runs = [{key: value for key, value, _ in run.config.rows()} for run in runs]
    keys = dict.fromkeys(key for rows in of_runs for key in rows)
    changed = [key for key in keys if len({rows.get(key) for rows in of_runs}) > 1]
    rest = [key for key in keys if key not in changed]
    heads = ["key", *(run.name for run in runs)]

    def rows(chosen):
        return [[key, *(rows.get(key, "–") for rows in of_runs)] for key in chosen]

    parts = [f"<h3>Where they differ</h3>{table(heads, rows(changed))}"] if changed else []
    parts.append(f"<details><summary>{'The same in all' if len(runs) > 1 else 'All keys'}"
                 f"</summary>{table(heads[:2], [row[:2] for row in rows(rest)])}</details>")
    return "".join(parts)
