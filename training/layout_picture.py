"""The picture of --explain_layout: the mesh, and weights cut into what cores hold."""

from configs import layouts

_COLUMNS = 4
_MOST = 16  # weights that are drawn, the largest first


def draw(config, placed):
    """A matplotlib Figure.

    Args:
      config: the run's config. placed: a list of training.placed.Placed.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    largest = sorted(placed, key=lambda x: -x.bytes * len(x.parts))[:_MOST]
    rows = -(-(len(largest) + 1) // _COLUMNS)
    drawn = Figure(figsize=(4 * _COLUMNS, 3 * rows), dpi=90, layout="constrained")
    drawn.suptitle(f"mesh_shape {config.mesh_shape or 'of one core'}, "
                   f"layout {config.layout or 'none'}")
    panels = drawn.subplots(rows, _COLUMNS, squeeze=False).flat
    colors = colormaps["tab20"]
    mesh = config.mesh or [("x", 1)]
    _cells(next(panels), f"cores: {layouts.pairs_text(mesh)}",
           [(core, [core]) for core in range(max(config.mesh_size, 1))], mesh[-1][1], colors)
    for tensor in largest:
        last = [n for n, size in enumerate(tensor.shape) if tensor.dims[n][2]][-1:]
        columns = (tensor.dims[last[0]][1] // tensor.shape[last[0]]) if last else 1
        title = ", ".join(f"{name} {size}{f' ({axis})' if axis else ''}"
                          for name, size, axis in tensor.dims)
        _cells(next(panels), f"{tensor.name}\n{title}",
               list(enumerate(cores for _, cores in sorted(tensor.parts.items()))), columns,
               colors)
    for axes in panels:
        axes.set_axis_off()
    return drawn


def _cells(axes, title, parts, columns, colors):
    """Parts as a grid: (number of its color, the cores that have it) each."""
    rows = -(-len(parts) // columns)
    for place, (number, cores) in enumerate(parts):
        row, column = divmod(place, columns)
        axes.add_patch(_rectangle(column, rows - 1 - row, colors(number % 20)))
        if rows <= 16 and columns <= 16:
            axes.text(column + 0.5, rows - 0.5 - row, numbers(cores), ha="center", va="center",
                      fontsize=7)
    axes.set_xlim(0, columns)
    axes.set_ylim(0, rows)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=8)


def _rectangle(x, y, color):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white", alpha=0.6)


def numbers(cores):
    """Numbers of cores as text: "0, 2, 4, 6", or the first ones and how many."""
    if len(cores) == 1:
        return f"core {cores[0]}"
    if len(cores) > 8:
        return f"cores {cores[0]}, {cores[1]}, … {cores[-1]} ({len(cores)})"
    return "cores " + ", ".join(map(str, cores))
