"""Heat maps of cosines among words, as PNG. Only who draws one loads the plotting library."""

import io
import logging
import warnings

from mesh.compat import tf

_DPI = 100
_CELL = 0.32  # inches


def figure(panels, words, title):
    """A row of heat maps.

    Args:
      panels: by heading, cosines of each word to each: numpy [words, words].
      words: the labels of both axes.
      title: of the whole.

    Returns:
      a matplotlib Figure.
    """
    # Its news of fonts and of missing signs is none of a run's.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    side = _CELL * len(words) + 0.9
    drawn = Figure(figsize=(side * len(panels) + 1.2, side + 0.8), dpi=_DPI, layout="constrained")
    drawn.suptitle(title, fontsize=10)
    all_axes = drawn.subplots(1, len(panels), squeeze=False)[0]
    for axes, (heading, values) in zip(all_axes, panels.items(), strict=True):
        image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(heading, fontsize=9)
        axes.set_xticks(range(len(words)), words, rotation=90, fontsize=8)
        axes.set_yticks(range(len(words)), words, fontsize=8)
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_parse_math(False)  # a $ in a word is a $
    drawn.colorbar(image, ax=all_axes, label="cosine", shrink=0.8)
    return drawn


def png(drawn):
    """A figure as the bytes of a PNG."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # signs that the font lacks
        drawn.savefig(file, format="png")
    return file.getvalue()


def write(path, picture):
    """Writes the bytes of a PNG, under another name first."""
    with tf.io.gfile.GFile(path + ".tmp", "wb") as file:
        file.write(picture)
    tf.io.gfile.rename(path + ".tmp", path, overwrite=True)
