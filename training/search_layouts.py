"""--search_layouts: the fastest layout on a TPU slice, by arithmetic and by the TPU compiler."""

import hashlib
import importlib.metadata
import json
import logging
import os
from typing import NamedTuple

from configs import layout_choices, layouts
from configs.errors import UserError
from configs.progress import tqdm
from mesh import pjrt, preflight, tpus
from mesh.compat import tf
from training import auto_layout, checkpoints, compiled, layout_model, layout_report

FLAG = "--search_layouts"
_COMPILED = 6  # how many layouts the compiler sees, beside the config's own


class Row(NamedTuple):
    """A layout, with the config that has it.

    Attributes:
      config: a RunConfig. own: whether it is the config's own layout.
      guess: the layout_model.Estimate of it.
      seconds: of a step, as preflight estimates them, and hbm: bytes of a core; both are None
        before it is compiled, and seconds where the compiler says that it does not fit.
    """

    config: object
    own: bool
    guess: layout_model.Estimate
    seconds: float | None = None
    hbm: float | None = None

    def rank(self, tpu):
        """To sort by: what fits first, then the step's time."""
        fits = self.fits(tpu)
        return not fits, self.seconds if fits and self.seconds else self.guess.seconds

    def fits(self, tpu):
        """Whether a core of the slice has the memory, by the compiler if that was asked."""
        if self.hbm is None and self.seconds is None:
            return self.guess.memory <= tpu.generation.memory
        return self.seconds is not None and self.hbm <= tpu.generation.memory


def run(config, name, write=None):
    """Searches, and prints a table; writes a page, a picture and TensorBoard's events.

    All is kept in model_path/layouts_SLICE, where a search that was stopped goes on. The last line
    on stdout is JSON.

    Args:
      config: the run's config.
      name: of a TPU slice, such as "v3-32"; if empty, of v3 and as many cores as the mesh has.
      write: where to write the config with the best, or None.

    Raises:
      UserError: there is no such slice, the model is no language model, or `write` is there.
    """
    name = name or f"v3-{config.mesh_size}"
    tpu = tpus.find(name, FLAG)
    if config.model not in layouts.LANGUAGE_MODELS:
        raise UserError(f"{FLAG}: finds layouts of language models, not of model {config.model}; "
                        "--auto_layout finds those of least memory")
    auto_layout.check_write(write)
    listed = _listed(config, tpu)
    if not listed:
        raise UserError(f"{FLAG} {name}: no mesh of up to two axes divides this model; try another "
                        "train_batch_size or pad_vocab_multiple, or another slice")
    chosen = _chosen(listed, tpu)
    directory = os.path.join(config.model_path, f"layouts_{name}")
    tf.io.gfile.makedirs(directory)
    able = pjrt.library() is not None
    if able:
        chosen = _compiled(chosen, tpu, os.path.join(directory, "compiled.jsonl"))
    else:
        logging.warning("%s: ranked by arithmetic alone, since %s", FLAG, preflight.ABSENT)
    chosen.sort(key=lambda row: row.rank(tpu))
    best = chosen[0]
    files = layout_report.write(directory, tpu, chosen, listed)
    if best.fits(tpu):
        auto_layout.write_config(config, best.config.mesh_shape, best.config.layout, write)
    elif write:
        logging.warning("--write: nothing fits, so %s is not written", write)
    own = next((row for row in chosen if row.own), None)
    print(json.dumps({**_facts(best, tpu), "own": own and _facts(own, tpu), "valid": len(listed),
                      "compiled": sum(row.hbm is not None for row in chosen), **files}), flush=True)


def _facts(row, tpu):
    """A Row for the last line."""
    seconds = row.guess.seconds if row.hbm is None else row.seconds
    memory = row.guess.memory if row.hbm is None else row.hbm
    return {"mesh_shape": row.config.mesh_shape, "layout": row.config.layout,
            "fits": row.fits(tpu), "step_seconds": seconds and round(seconds, 6),
            "hbm_gib": round(memory / 2**30, 4)}


def _listed(config, tpu):
    """Rows of all valid layouts, not compiled; of those alike to the model only the first."""
    shapes = [layout_choices.mesh_text(sizes) for sizes in layout_choices.mesh_shapes(tpu.cores)]
    own = own_layout(config, tpu.cores)
    found = {}
    if own:
        guess = layout_model.of_config(own, tpu)
        found[_likeness(guess)] = Row(own, True, guess)
    for shape in tqdm(shapes, "mesh shapes", unit="shape"):
        for changed in layout_choices.all_layouts(config, shape):
            guess = layout_model.of_config(changed, tpu)
            found.setdefault(_likeness(guess), Row(changed, False, guess))
    return list(found.values())


def _likeness(guess):
    return tuple(f"{value:.9g}" for value in guess)


def own_layout(config, cores):
    """The config, its mesh's first axis as long as the cores ask; None if it cannot have that."""
    mesh = config.mesh or [("x", 1)]
    rest = config.mesh_size // mesh[0][1] if config.mesh else 1
    if cores % rest:
        return None
    shape = layouts.pairs_text([(mesh[0][0], cores // rest), *mesh[1:]])
    try:
        return config.replace(mesh_shape=shape)
    except UserError:
        return None


def _chosen(listed, tpu):
    """Rows to compile: the best by the model, and the config's own layout."""
    ordered = sorted(listed, key=lambda row: row.rank(tpu))
    return ordered[:_COMPILED] + [row for row in ordered[_COMPILED:] if row.own]


def _compiled(rows, tpu, path):
    """The rows as the compiler has them; what `path` knows from an earlier search is taken."""
    known = {}
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            lines = file.read().splitlines()
        for line in lines:
            try:
                entry = json.loads(line)
                known[entry["key"]] = entry
            except (ValueError, KeyError, TypeError):
                logging.warning("%s: a line that is no result is left out", path)
    found = []
    with tqdm(total=len(rows), desc="layouts compiled", unit="layout") as bar:
        for row in rows:
            key = _key(row.config, tpu)
            if key not in known:
                bar.set_postfix_str(f"{row.config.mesh_shape} {row.config.layout}")
                seconds, hbm = compile_layout(row.config, tpu)
                known[key] = {"key": key, "mesh_shape": row.config.mesh_shape,
                              "layout": row.config.layout, "seconds": seconds, "hbm": hbm}
                checkpoints.write_text(path, "".join(json.dumps(x) + "\n" for x in known.values()))
            found.append(row._replace(seconds=known[key]["seconds"], hbm=known[key]["hbm"]))
            bar.update()
    return found


def _key(config, tpu):
    version = importlib.metadata.version("libtpu")
    return hashlib.sha256(f"{config.to_json()} {tpu.name} {version}".encode()).hexdigest()


def compile_layout(config, tpu):
    """(seconds of a step, bytes of a core), from models of few layers (training/compiled.py).

    Seconds are None where the step does not fit.
    """
    found = compiled.of_config(config, tpu, few=True)
    if isinstance(found, preflight.TooLarge):
        return None, found.needed or tpu.generation.memory + 1
    return sum(found.seconds.values()), found.used
