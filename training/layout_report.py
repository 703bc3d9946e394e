"""What --search_layouts shows: a table, a page and a picture of step time against memory."""

import html
import os

from training import checkpoints, explain_layout, heat_map, metrics

_GIB = 2 ** 30
_HEADINGS = ["mesh_shape", "layout", "step s", "GiB a core", "fits", "by arithmetic s", "GiB", ""]
_COLORS = {True: "tab:blue", False: "tab:red"}


def write(directory, tpu, chosen, listed):
    """Prints the table of the layouts that were looked at closely, and writes the rest.

    Args:
      directory: where to write layouts.html, layouts.png, and TensorBoard's image of it.
      tpu: the mesh.tpus.Slice.
      chosen: rows of search_layouts, the best first. listed: rows of all valid layouts.

    Returns:
      {"html", "png"}: paths.
    """
    rows = [_texts(row, tpu, place) for place, row in enumerate(chosen)]
    compiled = any(row.hbm is not None for row in chosen)
    title = (f"{tpu.name}: {len(listed)} layouts that differ, the best {len(chosen)} "
             f"{'compiled' if compiled else 'by arithmetic alone'}")
    print(title)
    print(explain_layout.table([_HEADINGS, *rows]))
    picture = heat_map.png(_draw(title, tpu, chosen, listed))
    paths = {kind: os.path.join(directory, f"layouts.{kind}") for kind in ("html", "png")}
    checkpoints.write_text(paths["html"], explain_layout.page(title, picture, [
        ("Layouts", _HEADINGS, [[*map(html.escape, row)] for row in rows])]))
    heat_map.write(paths["png"], picture)
    writer = metrics.Writer(directory)
    writer.picture("layouts", picture, 0)
    writer.close()
    return paths


def front(points):
    """The points (seconds, bytes) that no other beats in one without losing in the other."""
    best, least = [], float("inf")
    for point in sorted(points):
        if point[1] < least:
            least = point[1]
            best.append(point)
    return best


def _texts(row, tpu, place):
    seconds = "" if row.seconds is None else f"{row.seconds:.4g}"
    memory = "" if row.hbm is None else f"{row.hbm / _GIB:.2f}"
    notes = ["best"] * (place == 0) + ["the config's own"] * row.own
    return [row.config.mesh_shape, row.config.layout, seconds, memory,
            "yes" if row.fits(tpu) else "no", f"{row.guess.seconds:.4g}",
            f"{row.guess.memory / _GIB:.2f}", ", ".join(notes)]


def _draw(title, tpu, chosen, listed):
    """A matplotlib Figure: all layouts by the model, those compiled, and the Pareto front."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    axes = drawn.subplots()
    axes.scatter([row.guess.memory / _GIB for row in listed],
                 [row.guess.seconds for row in listed], s=6, color="0.7", label="by arithmetic")
    exact = [row for row in chosen if row.seconds is not None]
    for row in exact:
        axes.scatter(row.hbm / _GIB, row.seconds, marker="D" if row.own else "o",
                     color=_COLORS[row.fits(tpu)])
        axes.annotate(f"{row.config.mesh_shape}\n{row.config.layout}",
                      (row.hbm / _GIB, row.seconds), fontsize=7)
    points = ([(row.seconds, row.hbm) for row in exact]
              or [(row.guess.seconds, row.guess.memory) for row in listed])
    line = front(points)
    axes.plot([size / _GIB for _, size in line], [seconds for seconds, _ in line],
              color="tab:green", label="Pareto front")
    axes.axvline(tpu.generation.memory / _GIB, color="tab:red", linestyle=":",
                 label="memory of a core")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("GiB of a core")
    axes.set_ylabel("estimated seconds of a step")
    axes.set_title(title, fontsize=10)
    axes.legend()
    return drawn
