"""The table and the picture of benchmarks/clip_experiment.py, from the runs' metrics.jsonl.

Of each run the evaluation with the least loss on the ordinary validation texts counts, for all its
figures: the final test's items decide nothing. The column "validation loss" is that same loss, and
"bits per byte" is made of it: the least of --evaluations is a little better than texts that decide
nothing would give, for all rows alike. Held-out combinations are such texts.
"""

import json
import math
import os
import statistics

from benchmarks import clip_experiment
from configs import markdown

# Rows that a gain of GPT-C could be explained away by.
CONTROLS = ("gptc_random", "gptc_shuffled", "gptc_text")

# Tasks whose items are made for --items.
ITEMS = ("stories", "statements", "cloze")

# name: (heading, digits, where it is in an evaluation's line).
FIGURES = {
    "validation": ("validation loss, nats", 3, ("eval_loss",)),
    "bits_per_byte": ("bits per byte", 3, ("bits_per_decoded_byte",)),
    "heldout": ("held-out combinations, bits per byte", 3,
                ("tasks", "texts_heldout", "bits_per_decoded_byte")),
    "answers": ("looks, within stories: loss on the answer, nats", 2,
                ("tasks", "stories", "answer_loss")),
    "untold_answers": ("of untold words", 2, ("tasks", "stories", "untold", "answer_loss")),
    "accuracy": ("accuracy", 3, ("tasks", "stories", "acc")),
    "untold": ("of untold words", 3, ("tasks", "stories", "untold", "acc")),
    "statements": ("alone: loss on the answer", 2, ("tasks", "statements", "answer_loss")),
    "alone": ("accuracy", 3, ("tasks", "statements", "acc")),
    "cloze": ("accuracy with new templates", 3, ("tasks", "cloze", "acc")),
}
# Of what the models say of looks: name: (heading, digits, task, score), as in FIGURES.
PROBES = {
    "coda": ("CoDa: Spearman's ρ", 3, "coda_world", "spearman"),
    "coda_acc": ("top-1", 3, "coda_world", "acc"),
    "color": ("ViComTe, colors: accuracy", 3, "color_world", "acc"),
    "shape": ("shapes", 3, "shape_world", "acc"),
    "size_larger": ("larger than", 3, "size_larger_world", "acc"),
    "size_smaller": ("smaller than", 3, "size_smaller_world", "acc"),
    "combinations": ("held-out combinations: accuracy", 3, "combinations", "acc"),
}
# Of what a student's last evaluation says, of prefixes of windows and past the window.
STUDENTS = {"cosine": "cosine of centred targets", "r2": "R²",
            "uncentred_cosine": "uncentred cosine", "mean_vector_cosine": "that of the mean vector"}
# Those whose words are told or untold have a figure of the untold ones, under this ending.
UNTOLD = "_untold"


def write(args, out):
    """Writes results.json, results.md and results.png; returns the table as text."""
    results = [figures(args, out, row, size, number, seed) for size in args.sizes
               for number in args.texts for row in args.rows
               for seed in range(1, args.seeds + 1)]
    with open(os.path.join(out, "results.json"), "w") as file:
        json.dump(results, file, indent=1)
    text = "\n\n".join(table(args, results, size, number)
                       for size in args.sizes for number in args.texts)
    text += f"\n\n{students(out)}"
    with open(os.path.join(out, "results.md"), "w") as file:
        file.write(text + "\n")
    draw(args, results, os.path.join(out, "results.png"))
    return text


def figures(args, out, row, size, number, seed):
    """The figures of a run at its optimum."""
    name = clip_experiment.run_name(row, size, number, seed)
    with open(os.path.join(out, name, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    best = min(reversed(lines), key=lambda line: line["eval_loss"])
    found = {"row": row, "size": size, "texts": number, "seed": seed, "step": best["step"]}
    for figure, (_, _, path) in FIGURES.items():
        value = best
        for key in path:
            value = value[f"{key}_{args.items}" if key in ITEMS else key]
        found[figure] = value
    for figure, (_, _, task, score) in PROBES.items():
        found[figure] = best["tasks"][task].get(score)
        if "untold" in best["tasks"][task]:
            found[figure + UNTOLD] = best["tasks"][task]["untold"].get(score)
    return found


def table(args, results, size, number):
    """Markdown of a size and an amount of text: means ± standard deviations over seeds."""
    heads = ["", "step", *(heading for heading, _, _ in FIGURES.values())]
    rows = []
    for row in args.rows:
        runs = of(results, row, size, number)
        steps = statistics.mean(run["step"] for run in runs)
        rows.append([clip_experiment.ROWS[row][0], f"{steps:.0f}",
                     *(spread([run[name] for run in runs], digits)
                       for name, (_, digits, _) in FIGURES.items())])
    parts = [f"### {size}, {number} texts, {args.seeds} seed{'s' * (args.seeds > 1)}",
             markdown.table(heads, rows), _probes(args, results, size, number)]
    pairs = [*(("gptc", other) for other in ("gpt", *CONTROLS)),
             ("gptc_input", "gptc_input_random")]
    parts += [change for pair in pairs
              for change in [_change(args, results, size, number, *pair)] if change]
    return "\n\n".join(parts)


def students(out):
    """Markdown of how well the students say what their teachers do, inside and past the window."""
    rows = []
    for name in sorted(os.listdir(out)):
        path = os.path.join(out, name, "metrics.jsonl")
        if not name.startswith("student") or not os.path.exists(path):
            continue
        with open(path) as file:
            last = [json.loads(line) for line in file][-1]
        if "r2_beyond" not in last:  # a student of texts alone has no teacher
            continue
        missed = [1 - last[f"r2_{part}"] for part in ("beyond", "windows")]
        rows.append([f"`{name}`", *(f"{last[f'{score}_windows']:.3f}, {last[f'{score}_beyond']:.3f}"
                                    for score in STUDENTS), f"{missed[0] / missed[1]:.2f}"])
    return markdown.table(["inside, past the window", *STUDENTS.values(), "1 − R² past : inside"],
                          rows)


def _probes(args, results, size, number):
    """A Markdown table of the probes of looks, of untold words alone in brackets."""
    def cell(runs, name, digits):
        values = [spread([run[key] for run in runs], digits)
                  for key in (name, name + UNTOLD) if key in runs[0]]
        return values[0] + "".join(f" ({value})" for value in values[1:])

    return markdown.table(
        ["what it says of looks (of untold words)", *(probe[0] for probe in PROBES.values())],
        [[clip_experiment.ROWS[row][0], *(cell(of(results, row, size, number), name, probe[1])
                                          for name, probe in PROBES.items())]
         for row in args.rows])


def of(results, row, size, number):
    """The runs of a row."""
    return [run for run in results
            if (run["row"], run["size"], run["texts"]) == (row, size, number)]


def spread(values, digits):
    """Mean ± standard deviation."""
    if None in values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _change(args, results, size, number, first, second):
    """What a row gains over another, seed by seed."""
    if not {first, second} <= set(args.rows):
        return ""
    pairs = list(zip(of(results, first, size, number), of(results, second, size, number),
                     strict=True))
    parts = []
    for figure in ("validation", "answers"):
        changes = [a[figure] - b[figure] for a, b in pairs]
        mean = statistics.mean(changes)
        error = (f" ± {statistics.stdev(changes) / math.sqrt(len(changes)):.3f} (standard error)"
                 if len(changes) > 1 else "")
        parts.append(f"{FIGURES[figure][0]} {mean:+.3f}{error}, by seed "
                     + " ".join(f"{change:+.2f}" for change in changes))
    names = [clip_experiment.ROWS[row][0] for row in (first, second)]
    return f"{names[0]} against {names[1]}: " + "; ".join(parts) + "."


def draw(args, results, path):
    """Losses and accuracy: a dot for each seed, and a line at their mean.

    Losses of tokens are of one tokenizer alone; bits per byte compare all.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [(size, number) for size in args.sizes for number in args.texts]
    shown = ("bits_per_byte", "heldout", "validation", "answers", "accuracy")
    figure, axes = pyplot.subplots(len(groups), len(shown), squeeze=False,
                                   figsize=(4.5 * len(shown), 0.45 * len(args.rows) * len(groups)
                                            + 1.5))
    for line, (size, number) in zip(axes, groups, strict=True):
        for axis, name in zip(line, shown, strict=True):
            every = []
            for place, row in enumerate(args.rows):
                if (name, row) == ("validation", "gpt_bytes"):
                    continue
                values = [run[name] for run in of(results, row, size, number)]
                every += values
                axis.plot(statistics.mean(values), place, "|", color="0.4", markersize=20)
                axis.plot(values, [place] * len(values), "o", color="C0", markersize=4)
            axis.set_yticks(range(len(args.rows)),
                            [clip_experiment.ROWS[row][0] for row in args.rows]
                            if name == shown[0] else [""] * len(args.rows))
            axis.set_ylim(len(args.rows) - 0.5, -0.5)
            margin = 0.15 * (max(every) - min(every)) or 0.1
            axis.set_xlim(min(every) - margin, max(every) + margin)
            axis.set_title(f"{FIGURES[name][0]} ({size}, {number} texts)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
