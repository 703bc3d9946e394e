"""--explain_layout: what each weight looks like on the mesh, and where cores talk to each other."""

import base64
import collections
import html
import json
import logging
import os

from mesh.compat import tf
from training import checkpoints, heat_map, layout_picture, placed, proxies

# Layers repeat: the collectives of more of them are the same again.
_LAYERS = 2
_STYLE = ("body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
          "td,th{border:1px solid #bbb;padding:2px 8px;text-align:left;vertical-align:top}")


HEADINGS = ["weight", "dimensions", "split", "slice of a core", "MB a core", "copies"]


def run(config, directory):
    """Prints the table, and writes layout.html and layout.png into a directory.

    The last line on stdout is JSON.

    Raises:
      UserError: the student of a GPT-C is not known.
    """
    facts, specs = proxies.facts_and_specs(config)
    taken = proxies.frozen_of(config)
    tf.io.gfile.makedirs(directory)  # before the work whose result it is to hold
    small = proxies.of_layers(config, range(_LAYERS))
    logging.info("building the step of %d layers", small.n_layer)
    impl = proxies.recorded(small, facts, specs, taken)
    graph, _ = proxies.graph_of(config, facts, specs, taken)
    found = placed.weights(graph, impl)
    talk = collectives(impl.noted, config)
    of_weights = sum(x.bytes * x.layers for x in found)
    print(table([HEADINGS, *(x.row() for x in found)]))
    print(f"weights of a core: {of_weights / 1e6:,.2f} MB, without the optimizer's")
    print(f"\ncollectives of one core in a step of {small.n_layer} of {config.n_layer} layers:")
    print(table([_TALK, *talk]) if talk else "none")
    picture = heat_map.png(layout_picture.draw(config, found))
    paths = [os.path.join(directory, name) for name in ("layout.html", "layout.png")]
    checkpoints.write_text(paths[0], _page(config, found, talk, small.n_layer, picture))
    heat_map.write(paths[1], picture)
    logging.info("wrote %s and %s", *paths)
    print(json.dumps({"weight_bytes_per_core": of_weights, "html": paths[0], "png": paths[1]}),
          flush=True)


_TALK = ["where", "kind", "axes", "times", "MB in all"]


def collectives(noted, config):
    """Rows of texts, by place, kind and axes; the largest first."""
    rows = collections.defaultdict(lambda: [0, 0])
    for one in noted:
        times = config.num_microbatches if one.looped else 1
        row = rows[one.place, one.kind, one.axes]
        row[0] += times
        row[1] += times * one.bytes
    ordered = sorted(rows.items(), key=lambda item: -item[1][1])
    return [[*key, str(times), f"{size / 1e6:,.3f}"] for key, (times, size) in ordered]


def table(rows):
    """Rows of texts in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in
                               zip(row, widths, strict=True)).rstrip() for row in rows)


def page(title, picture, tables):
    """An HTML page.

    Args:
      title: its heading.
      picture: the bytes of a PNG, which are held inside.
      tables: (heading, names of columns, rows) of each table. Cells are HTML, other texts are not.
    """
    def row(cells, kind):
        return "<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"

    shown = "".join(
        f"<h2>{html.escape(heading)}</h2><table>{row(map(html.escape, names), 'th')}"
        f"{''.join(row(cells, 'td') for cells in rows)}</table>"
        for heading, names, rows in tables)
    title = html.escape(title)
    return (f"<!DOCTYPE html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
            f"<h1>{title}</h1><img src='data:image/png;base64,"
            f"{base64.b64encode(picture).decode()}'>{shown}")


def _page(config, weights, talk, layers, picture):
    """The whole as one HTML page."""
    of_weights = [[*map(html.escape, x.row()),
                   f"<details><summary>cores</summary>{'<br>'.join(x.places())}</details>"]
                  for x in weights]
    return page(f"mesh_shape {config.mesh_shape or 'of one core'}, layout "
                f"{config.layout or 'none'}", picture, [
                    ("Weights", [*HEADINGS, "where"], of_weights),
                    (f"Collectives of one core, in a step of {layers} of {config.n_layer} layers",
                     _TALK, [[*map(html.escape, row)] for row in talk])])
