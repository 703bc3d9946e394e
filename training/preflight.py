"""--preflight: would a run's training step fit a TPU slice, and how fast would it be?"""

import json
import logging

import inputs
from configs.errors import UserError
from mesh import preflight, tpus
from mesh.compat import tf
from training import compiled, frozen, layout_model, proxies, remedies

_GIB = 2 ** 30
_WHOLE = 1.4e9  # parameters, above which few layers are compiled
_LARGEST = 8  # buffers that are shown
REMEDIES = ("recompute_grad=true, a lower tokens_per_mb_per_replica or train_batch_size, "
            "precision=bfloat16, or a layout that splits the weights (docs/layouts.md)")


def run(config, name, layers=None):
    """Compiles the training step for the TPU slice called `name`, and prints a report.

    The last line on stdout is JSON.

    Args:
      config: the run's config. name: of a slice, such as "v3-8".
      layers: "all" compiles the whole step, "few" models of few layers, from which all are
        estimated; by default few for large models.

    Raises:
      UserError: the slice or the compiler is not there, or the mesh has another number of positions
        than the slice has cores.
    """
    tpu = tpus.find(name)
    if config.mesh_size != tpu.cores:
        raise UserError(f"--preflight {name}: mesh_shape {config.mesh_shape or '(empty)'} has "
                        f"{config.mesh_size} positions, and {name} has {tpu.cores} cores; try "
                        f"--set mesh_shape=x:{tpu.cores} --set layout=batch:x")
    preflight.check_installed()
    step = Step(config, tpu, layers)
    found = step.compiled(config)
    if isinstance(found, preflight.TooLarge):
        _print_refusal(found, tpu, step.tried())
    else:
        _print_report(found, config, tpu, () if step.fits(found) else step.tried())


class Step:
    """A run's training step, to be compiled with this and that changed.

    Args:
      config: a RunConfig. tpu: a mesh.tpus.Slice. layers: see run.

    Attributes:
      few: whether models of few layers are compiled, where those are fewer than all.
    """

    def __init__(self, config, tpu, layers=None):
        self._config, self._tpu = config, tpu
        self.few = layers == "few" if layers else layout_model.parameters(config) > _WHOLE
        self._batch, self._taken = _data(config), _frozen(config)

    def compiled(self, config):
        """The training.compiled.Found of the config, or of one with changes, or a TooLarge."""
        return compiled.of_config(config, self._tpu, self._batch, self._taken, self.few)

    def fits(self, found):
        """Whether a core of the slice has the memory."""
        return isinstance(found, compiled.Found) and found.used <= self._tpu.generation.memory

    def tried(self):
        """Remedies up to the first that makes it fit: {"set", "fits", "hbm_gib"} of each."""
        rows = []
        for change, changed in remedies.of_run(self._config):
            logging.info("it does not fit; trying %s", remedies.flags(change))
            found = self.compiled(changed)
            used = found.needed if isinstance(found, preflight.TooLarge) else found.used
            rows.append({"set": change, "fits": self.fits(found), "hbm_gib": used and used / _GIB})
            if rows[-1]["fits"]:
                break
        return rows


def _print_tried(rows):
    for row in rows:
        size = "" if row["hbm_gib"] is None else f", {row['hbm_gib']:.2f} GiB"
        print(f"tried {remedies.flags(row['set'])}: {'fits' if row['fits'] else 'does not fit'}"
              f"{size}")


def _data(config):
    """(an inputs.Facts, {name: tf.TensorSpec} of a batch), of the data or of what stands for it."""
    try:
        with tf.Graph().as_default():
            return (inputs.dataset_facts(config, "train"),
                    inputs.train_input_fn(config, 0)({}).element_spec)
    except UserError as error:
        logging.info("note: %s; the step is compiled for n_vocab = %d ids all the same", error,
                     config.n_vocab)
    return proxies.facts_and_specs(config)


def _frozen(config):
    """The frozen weights of a run, or what stands for them; a note says which."""
    taken = proxies.frozen_of(config)
    if isinstance(taken, proxies.Unread):
        key, _, _ = frozen.SOURCES[config.model]
        known = taken.config.about.splitlines()[0]
        logging.info("note: clip.%s: %s is not there; the step is compiled for this one: %s", key,
                     getattr(config.clip, key), known)
    return taken


def _print_refusal(found, tpu, tried):
    limit = tpu.generation.memory
    needed = "more" if found.needed is None else f"at least {found.needed / _GIB:.2f} GiB"
    if found.layers:
        print(f"EXTRAPOLATED: a model of {found.layers} layers is too large already; "
              "--preflight_layers all compiles all")
    print(f"{tpu.name}: does not fit: a core has {limit / _GIB:.2f} GiB, and the step needs "
          f"{needed}.\nTry --set {REMEDIES}.")
    _print_tried(tried)
    print(f"\n{found.message}")
    _print_json(fits=False, hbm_gib=found.needed and found.needed / _GIB,
                hbm_limit_gib=limit / _GIB, step_seconds=None, tokens_per_second=None, mfu=None,
                collectives=[], remedies=tried,
                **({"extrapolated_from_layers": [found.layers]} if found.layers else {}))


def _print_report(found, config, tpu, tried):
    limit, fits = tpu.generation.memory, found.used <= tpu.generation.memory
    answer = figures(found, config, tpu)
    seconds, steps = answer["step_seconds"], config.train_steps
    parts = ", ".join(f"{kind} {size / _GIB:.2f}" for kind, size in found.memory.items())
    times = ", ".join(f"{part} {value:.4g}" for part, value in found.seconds.items())
    flops = found.flops * config.train_batch_size * config.n_ctx
    if found.layers:
        print(f"EXTRAPOLATED to {config.n_layer} layers from models of "
              f"{' and '.join(map(str, found.layers))}; --preflight_layers all compiles all")
    print(f"{tpu.name}: {'fits' if fits else 'does not fit'}: {found.used / _GIB:.2f} of "
          f"{limit / _GIB:.2f} GiB of each core's memory ({parts})")
    if not fits:
        print(f"Try --set {REMEDIES}.")
        _print_tried(tried)
    print(f"estimated step: {seconds:.4g} s ({times}; docs/tpu.md has the formula)")
    print(f"{answer['tokens_per_second']:,.0f} tokens/s, MFU {answer['mfu']:.1%} of {flops:.3g} "
          f"FLOPs a step; {steps:,} steps take {steps * seconds / 86400:.3g} days, "
          f"{steps * seconds / 3600 * tpu.cores:,.0f} core-hours")
    print("collectives of one core in a step:")
    for row in found.traffic:
        print(f"  {row.axes:8} {row.kind:18} {row.count:5} {row.bytes / 1e6:12,.2f} MB "
              f"{row.seconds:.4g} s")
    print(f"gathers and scatters, which the compiler counts as nothing: {found.moved['count']}, "
          f"{found.moved['bytes'] / 1e6:,.2f} MB")
    of = f" of the model of {found.layers[-1]} layers" if found.layers else ""
    print(f"largest arguments{of}:")
    _print_buffers(found.arguments)
    print(f"largest temporaries{of} when they need most, {found.peak / _GIB:.2f} GiB:")
    _print_buffers(found.buffers)
    _print_json(**answer, **({} if fits else {"remedies": tried}))


def figures(found, config, tpu):
    """What the last line says of a training.compiled.Found."""
    seconds = sum(found.seconds.values())
    tokens = config.train_batch_size * config.n_ctx
    answer = {"fits": found.used <= tpu.generation.memory, "hbm_gib": found.used / _GIB,
              "hbm_limit_gib": tpu.generation.memory / _GIB, "step_seconds": seconds,
              "tokens_per_second": tokens / seconds,
              "mfu": found.flops * tokens / (seconds * tpu.cores * tpu.generation.peak),
              "collectives": [row._asdict() for row in found.traffic]}
    if found.layers:
        answer["extrapolated_from_layers"] = found.layers
    return answer


def _print_buffers(listed):
    for one in listed[:_LARGEST]:
        print(f"  {one.count:3} × {one.bytes / 2**20:10,.2f} MiB  {one.shape:28} {one.place}")


def _print_json(**values):
    print(json.dumps({name: round(value, 6) if isinstance(value, float) else value
                      for name, value in values.items()}), flush=True)
