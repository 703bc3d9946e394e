"""What comes of a sweep: a table, a plot of its course, and one of each key."""

import io
import json
import os

from configs import markdown
from training import checkpoints, heat_map


def write(sweep, trials):
    """Writes results.md and results.png into a sweep's directory, and prints the table.

    Args:
      sweep: the configs.sweep_file.Sweep.
      trials: of each trial a dict of its number, state, values and score.

    Returns:
      the best trial: its number, values and score; None if none has ended well.
    """
    done = [trial for trial in trials if trial["state"] == "done"]
    best_first = sorted(done, key=lambda t: t["score"] * (-1 if sweep.goal == "maximize" else 1))
    failed = [trial for trial in trials if trial["state"] == "failed"]
    table = _table(sweep, best_first + failed)
    print(table)
    checkpoints.write_text(os.path.join(sweep.model_path, "results.md"), table + "\n")
    if done:
        heat_map.write(os.path.join(sweep.model_path, "results.png"), _plots(sweep, done))
    return {key: best_first[0][key] for key in ("trial", "values", "score")} if done else None


def _table(sweep, trials):
    heads = ["trial", *sweep.keys, sweep.score]
    rows = [[str(trial["trial"]), *(_shown(trial["values"][key]) for key in sweep.keys),
             f"{trial['score']:.5g}" if trial["state"] == "done" else "failed"]
            for trial in trials]
    return markdown.table(heads, rows)


def _shown(value):
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _plots(sweep, done):
    """A PNG: scores by trial with the best so far, and by each key's values."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(4 * (1 + len(sweep.keys)), 3.5),
                                      layout="constrained")
    course, *slices = figure.subplots(1, 1 + len(sweep.keys), sharey=True, squeeze=False)[0]
    better = max if sweep.goal == "maximize" else min
    numbers, scores = [t["trial"] for t in done], [t["score"] for t in done]
    course.plot(numbers, scores, "o")
    course.plot(numbers, [better(scores[:i + 1]) for i in range(len(scores))], drawstyle="steps")
    course.set_xlabel("trial")
    course.set_ylabel(sweep.score)
    for axes, (key, tried) in zip(slices, sweep.keys.items(), strict=True):
        if isinstance(tried, list):
            places = {json.dumps(value): place for place, value in enumerate(tried)}
            axes.plot([places[json.dumps(t["values"][key])] for t in done], scores, "o")
            axes.set_xticks(list(places.values()), [_shown(value) for value in tried])
        else:
            axes.plot([t["values"][key] for t in done], scores, "o")
            axes.set_xscale("log" if tried.log else "linear")
        axes.set_xlabel(key)
    if all(score > 0 for score in scores) and max(scores) > 100 * min(scores):
        course.set_yscale("log")  # one trial that went astray would flatten all others
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=120)
    return written.getvalue()
