"""--auto_layout and --auto_layout_and_mesh_shape: layouts of least memory, by mtf.auto_mtf."""

import json
import logging

from configs import layout_choices, layouts
from configs.errors import UserError
from configs.progress import tqdm
from mesh import auto_layout, tpus
from mesh.compat import tf
from training import checkpoints, proxies

_GIB = 2 ** 30
# Layers repeat: more of them give the solver more to do and nothing else to choose.
_LAYERS = 2


def run(config, shape_too=False, cores=None, write=None):
    """Finds and prints the layout of least memory; the last line on stdout is JSON.

    Args:
      config: the run's config.
      shape_too: choose the mesh's shape as well, of up to two axes.
      cores: for how many cores, "6", or a TPU slice, "v3-32"; by default as many as mesh_shape has.
      write: where to write the config with what was found, or None.

    Raises:
      UserError: the solver is absent, the mesh is empty, nothing can be split, or `write` is there.
    """
    flag = "--auto_layout_and_mesh_shape" if shape_too else "--auto_layout"
    auto_layout.check_installed(flag)
    check_write(write)
    shapes = _shapes(config, shape_too, cores, flag)
    small = proxies.of_layers(config, range(_LAYERS)).replace(mesh_shape="", layout="")
    graph, outputs = proxies.graph_of(small, *proxies.facts_and_specs(small),
                                      proxies.frozen_of(small))
    found = []
    for shape in tqdm(shapes, "mesh shapes", unit="shape", disable=len(shapes) == 1):
        allowed = layout_choices.by_dimension(small, shape)
        rules, size = auto_layout.choose(graph, outputs, layouts.parse_mesh_shape(shape), allowed)
        found.append((size, shape, layouts.pairs_text(rules), allowed))
    found.sort(key=lambda row: row[0])
    _report(config, found, write)


def _shapes(config, shape_too, cores, flag):
    """The texts of mesh shapes to try."""
    if not shape_too:
        if not config.mesh:
            raise UserError(f"{flag}: mesh_shape is empty; give it, as in --set mesh_shape=x:4,y:2,"
                            " or ask --auto_layout_and_mesh_shape 8 for both")
        return [layouts.pairs_text(config.mesh)]
    if not cores:
        number = config.mesh_size
    elif cores.isdecimal() and int(cores):
        number = int(cores)
    else:
        number = tpus.find(cores, flag).cores
    # Axes of this model have no order: a rule may name either.
    shapes = {tuple(sorted(s, reverse=True)) for s in layout_choices.mesh_shapes(number)}
    return [layout_choices.mesh_text(sizes) for sizes in sorted(shapes, reverse=True)]


def _report(config, found, write):
    size, shape, layout, allowed = found[0]
    print(f"dimensions of {config.model} on {shape}:")
    print("\n".join(layout_choices.lines(allowed)))
    if len(found) > 1:
        print("mesh shapes, by memory of a core:")
        for row in found:
            print(f"  {row[1]:14} {row[0] / _GIB:10.4f} GiB  {row[2]}")
    print(f"mesh_shape={shape} layout={layout}: {size / _GIB:.4g} GiB of a core at the peak of "
          f"{min(_LAYERS, config.n_layer)} layers without microbatches, by mtf.auto_mtf, which "
          "counts no communication")
    write_config(config, shape, layout, write)
    print(json.dumps({"mesh_shape": shape, "layout": layout, "peak_bytes": int(size)}), flush=True)


def check_write(path):
    """Refuses to write over a file.

    Raises:
      UserError: it is there.
    """
    if path and tf.io.gfile.exists(path):
        raise UserError(f"--write {path}: is there already; give another name, or delete it")


def write_config(config, shape, layout, path):
    """Writes a config with another mesh shape and layout, if there is a path to write it to.

    Raises:
      UserError: the whole model cannot have them.
    """
    changed = config.replace(mesh_shape=shape, layout=layout)
    if path:
        checkpoints.write_text(path, changed.to_json())
        logging.info("wrote %s", path)
