"""--explain_layout: what each weight looks like on the mesh, and where cores talk to each other."""

import base64
import collections
import html
import json
import logging
import os
import re

from mesh.compat import mtf, tf
from training import checkpoints, heat_map, layout_picture, proxies

# Layers repeat: the collectives of more of them are the same again.
_LAYERS = 2
_STYLE = ("body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}"
          "td,th{border:1px solid #bbb;padding:2px 8px;text-align:left;vertical-align:top}")


class Placed:
    """A weight on the mesh.

    Args:
      variable: an mtf.Variable. impl: an mtf mesh implementation.
      layers: how many layers have one of its shape; `name` then has h* in place of the layer.

    Attributes:
      name, layers; dims: [(dimension, size, axis or None)].
      shape: of one core's slice. bytes: of that.
      parts: {the slice's begin, a tuple: the cores that hold it, a list}.
    """

    def __init__(self, variable, impl, layers=1):
        shape = variable.shape
        axes = impl.tensor_layout(shape).tensor_axis_to_mesh_axis
        names = [None if axis is None else impl.shape.dims[axis].name for axis in axes]
        self.name, self.layers = variable.name, layers
        self.dims = [(d.name, d.size, a) for d, a in zip(shape.dims, names, strict=True)]
        self.shape = impl.slice_shape(shape)
        size = 1
        for length in self.shape:
            size *= length
        self.bytes = size * variable.slice_dtype.size
        self.parts = {}
        for core in range(impl.size):
            self.parts.setdefault(tuple(impl.slice_begin(shape, core)), []).append(core)

    def row(self):
        """Texts: name, dimensions, axes, slice, MB of a core, how many cores hold each slice."""
        return [self.name + (f" ×{self.layers}" if self.layers > 1 else ""),
                ", ".join(f"{name} {size}" for name, size, _ in self.dims) or "a number",
                ", ".join(f"{name}:{axis}" for name, _, axis in self.dims if axis) or "whole",
                "×".join(map(str, self.shape)) or "1", f"{self.bytes / 1e6:.3f}",
                str(len(next(iter(self.parts.values()))))]

    def places(self):
        """Lines: what of the tensor lies on which cores."""
        for begin, cores in self.parts.items():
            ranges = [f"{name} {start}…{start + length - 1}" for (name, _, axis), start, length
                      in zip(self.dims, begin, self.shape, strict=True) if axis]
            yield f"{', '.join(ranges) or 'all of it'}: {layout_picture.numbers(cores)}"


HEADINGS = ["weight", "dimensions", "split", "slice of a core", "MB a core", "copies"]


def run(config, directory):
    """Prints the table, and writes layout.html and layout.png into a directory.

    The last line on stdout is JSON.

    Raises:
      UserError: the student of a GPT-C is not known.
    """
    facts, specs = proxies.facts_and_specs(config)
    taken = proxies.frozen_of(config)
    small = proxies.of_layers(config, _LAYERS)
    logging.info("building the step of %d layers", small.n_layer)
    impl = proxies.recorded(small, facts, specs, taken)
    graph, _ = proxies.graph_of(config, facts, specs, taken)
    placed = weights(graph, impl)
    talk = collectives(impl.noted, config)
    of_weights = sum(x.bytes * x.layers for x in placed)
    print(table([HEADINGS, *(x.row() for x in placed)]))
    print(f"weights of a core: {of_weights / 1e6:,.2f} MB, without the optimizer's")
    print(f"\ncollectives of one core in a step of {small.n_layer} of {config.n_layer} layers:")
    print(table([_TALK, *talk]) if talk else "none")
    picture = heat_map.png(layout_picture.draw(config, placed))
    tf.io.gfile.makedirs(directory)
    paths = [os.path.join(directory, name) for name in ("layout.html", "layout.png")]
    checkpoints.write_text(paths[0], page(config, placed, talk, small.n_layer, picture))
    with tf.io.gfile.GFile(paths[1] + ".tmp", "wb") as file:
        file.write(picture)
    tf.io.gfile.rename(paths[1] + ".tmp", paths[1], overwrite=True)
    logging.info("wrote %s and %s", *paths)
    print(json.dumps({"weight_bytes_per_core": of_weights, "html": paths[0], "png": paths[1]}),
          flush=True)


def weights(graph, impl):
    """The Placed of all weights of a mtf graph; those of like layers are one."""
    same, found = collections.Counter(), {}
    for operation in graph.operations:
        if isinstance(operation, mtf.Variable):
            name = re.sub(r"(^|/)h\d+/", r"\1h*/", operation.name)
            key = name, str(operation.shape)
            same[key] += 1
            found.setdefault(key, operation)
    placed = []
    for key, variable in found.items():
        placed.append(Placed(variable, impl, same[key]))
        if same[key] > 1:
            placed[-1].name = key[0]
    return placed


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


def page(config, placed, talk, layers, picture):
    """The whole as one HTML page, the picture inside."""
    def rows(found):
        return "".join("<tr>" + "".join(f"<td>{x}</td>" for x in row) + "</tr>" for row in found)

    def heads(names):
        return "<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"

    of_weights = [[*map(html.escape, x.row()),
                   f"<details><summary>cores</summary>{'<br>'.join(x.places())}</details>"]
                  for x in placed]
    title = html.escape(f"mesh_shape {config.mesh_shape or 'of one core'}, "
                        f"layout {config.layout or 'none'}")
    return (f"<!DOCTYPE html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
            f"<h1>{title}</h1><img src='data:image/png;base64,"
            f"{base64.b64encode(picture).decode()}'><h2>Weights</h2>"
            f"<table>{heads([*HEADINGS, 'where'])}{rows(of_weights)}</table>"
            f"<h2>Collectives of one core, in a step of {layers} of {config.n_layer} layers</h2>"
            f"<table>{heads(_TALK)}{rows([[*map(html.escape, row)] for row in talk])}</table>")
