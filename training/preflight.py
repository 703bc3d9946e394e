"""--preflight: would a run's training step fit a TPU slice, and how fast would it be?"""

import json
import logging
import os

import inputs
from configs.errors import UserError
from mesh import preflight, tpus
from mesh.compat import tf
from training import ahead, flops, objectives, proxies, remedies

_GIB = 2 ** 30
REMEDIES = ("recompute_grad=true, a lower tokens_per_mb_per_replica or train_batch_size, "
            "precision=bfloat16, or a layout that splits heads, vocab and intermediate_expanded")


def run(config, name):
    """Compiles the training step for the TPU slice called `name`, and prints a report.

    The last line on stdout is JSON.

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
    found, of_token = _compiled(config, tpu)
    tokens = config.train_batch_size * config.n_ctx
    if isinstance(found, preflight.TooLarge):
        _print_refusal(found, tpu, _tried(config, tpu))
    else:
        tried = () if _fits(found, tpu) else _tried(config, tpu)
        _print_report(found, tpu, tokens, config.train_steps, of_token * tokens, tried)


def _compiled(config, tpu):
    """(what preflight.compile_for says of a config's step, its model FLOPs a token)."""
    facts, specs = _data(config)
    objective = objectives.of_run(config, facts, _frozen(config))
    program, impl = ahead.program(config, objective, specs, tpu.torus)
    logging.info("compiling for %s (%s); this takes minutes for a large model", tpu.name,
                 tpu.topology)
    return (preflight.compile_for(program, tpu, config.mesh),
            flops.of_token(config, (variable for variable, *_ in impl.variables.values())))


def _fits(found, tpu):
    return (isinstance(found, preflight.Compiled)
            and sum(found.memory.values()) <= tpu.generation.memory)


def _tried(config, tpu):
    """Remedies up to the first that makes the step fit: {"set", "fits", "hbm_gib"} of each."""
    rows = []
    for change, changed in remedies.of_run(config):
        logging.info("it does not fit; trying %s", remedies.flags(change))
        found, _ = _compiled(changed, tpu)
        used = found.needed if isinstance(found, preflight.TooLarge) else sum(found.memory.values())
        rows.append({"set": change, "fits": _fits(found, tpu), "hbm_gib": used and used / _GIB})
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
        if config.model == "clip":
            raise
        logging.info("note: %s; the step is compiled for n_vocab = %d ids all the same", error,
                     config.n_vocab)
    return proxies.facts_and_specs(config)


def _frozen(config):
    """The frozen weights of a run, or what stands for them; a note says which."""
    taken = proxies.frozen_of(config)
    if isinstance(taken, proxies.Unread):
        logging.info("note: %s is not there; the step is compiled for a student of configs/%s.json",
                     config.clip.student, os.path.basename(config.clip.student.rstrip("/")))
    return taken


def _print_refusal(found, tpu, tried):
    limit = tpu.generation.memory
    needed = "more" if found.needed is None else f"at least {found.needed / _GIB:.2f} GiB"
    print(f"{tpu.name}: does not fit: a core has {limit / _GIB:.2f} GiB, and the step needs "
          f"{needed}.\nTry --set {REMEDIES}.")
    _print_tried(tried)
    print(f"\n{found.message}")
    _print_json(fits=False, hbm_gib=found.needed and found.needed / _GIB,
                hbm_limit_gib=limit / _GIB, step_seconds=None, tokens_per_second=None, mfu=None,
                collectives=[], remedies=tried)


def _print_report(found, tpu, tokens, steps, flops, tried):
    limit, used = tpu.generation.memory, sum(found.memory.values())
    seconds, fits = sum(found.seconds.values()), used <= limit
    mfu = flops / (seconds * tpu.cores * tpu.generation.peak)
    parts = ", ".join(f"{kind} {size / _GIB:.2f}" for kind, size in found.memory.items())
    times = ", ".join(f"{part} {value:.4g}" for part, value in found.seconds.items())
    moved = found.schedule.moved
    print(f"{tpu.name}: {'fits' if fits else 'does not fit'}: {used / _GIB:.2f} of "
          f"{limit / _GIB:.2f} GiB of each core's memory ({parts})")
    if not fits:
        print(f"Try --set {REMEDIES}.")
        _print_tried(tried)
    print(f"estimated step: {seconds:.4g} s ({times}; docs/tpu.md has the formula)")
    print(f"{tokens / seconds:,.0f} tokens/s, MFU {mfu:.1%} of {flops:.3g} FLOPs a step; "
          f"{steps:,} steps take {steps * seconds / 86400:.3g} days, "
          f"{steps * seconds / 3600 * tpu.cores:,.0f} core-hours")
    print("collectives of one core in a step:")
    for row in found.traffic:
        print(f"  {row.axes:8} {row.kind:18} {row.count:5} {row.bytes / 1e6:12,.2f} MB "
              f"{row.seconds:.4g} s")
    print(f"gathers and scatters, which the compiler counts as nothing: "
          f"{sum(x.times for x in moved)}, {sum(x.bytes * x.times for x in moved) / 1e6:,.2f} MB")
    _print_json(fits=fits, hbm_gib=used / _GIB, hbm_limit_gib=limit / _GIB, step_seconds=seconds,
                tokens_per_second=tokens / seconds, mfu=mfu,
                collectives=[row._asdict() for row in found.traffic],
                **({} if fits else {"remedies": tried}))


def _print_json(**values):
    print(json.dumps({name: round(value, 6) if isinstance(value, float) else value
                      for name, value in values.items()}), flush=True)
