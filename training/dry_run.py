"""What a training run would be: its sizes, memory and time, with nothing written."""

import json
import math
import resource
import statistics
import time

import psutil

import inputs
from configs.progress import tqdm
from mesh import devices
from mesh.compat import mtf, tf
from training import checkpoints, frozen, keeping, model_fn, objectives

# Steps are measured after the first, which compiles, until one of these is reached.
_STEPS, _SECONDS = 20, 10.0
_GIB = 2.0 ** 30
# Of a training step's work, the forward pass, which is all that an evaluation does.
_FORWARD = 1 / 3


def run(config):
    """Prints what training would do with a config, by the facts of its data and a few real steps.

    Steps are measured with fresh weights, on the data's first batches. Where weights, moments and
    gradients alone take more memory than this machine has left, none is. The last line on stdout is
    JSON.

    Args:
      config: the run's config.

    Raises:
      UserError: the data or the config cannot be used, or the run that is there has other weights.
    """
    devices.prepare(config)
    facts = inputs.dataset_facts(config, "train")
    taken = frozen.of_run(config)
    if taken:
        frozen.check_encoder(config, taken, facts.encoder_facts)
    checkpoint = checkpoints.latest(config.model_path)
    if checkpoint:
        checkpoints.require_fitting(config.replace(checkpoint="latest"))
    found = _Sizes(config, facts, keeping.step_of(checkpoint) if checkpoint else 0)
    objective = objectives.of_run(config, facts, taken)
    objective.prepare()
    seconds = _measure(config, objective, found)
    for name, text in _lines(config, found, seconds).items():
        print(f"{name:17} {text}")
    print(json.dumps(_summary(config, found, seconds)), flush=True)


class _Sizes:
    """What is known before a step is run.

    Attributes:
      begin: the step to begin at.
      tokens: of a step.
      epoch: steps of an epoch; None where there are no epochs.
      parameters: trained numbers.
      frozen: numbers taken from another run.
      weights, moments: bytes on one device of what is trained, and of what the optimizer keeps.
      total: bytes that weights, moments and gradients take on all devices together.
    """

    def __init__(self, config, facts, begin):
        self.begin = begin
        self.tokens = config.train_batch_size * config.n_ctx
        self.epoch = facts.windows and facts.windows / config.train_batch_size
        self.parameters = self.frozen = self.weights = self.moments = self.total = 0

    def count(self, graph, impl):
        """Takes the sizes of a mtf graph's variables, on the mesh implementation of its devices."""
        trained = tuple(variable.name for variable in graph.trainable_variables)
        for variable in graph.all_variables:
            whole = variable.shape.size
            slice_bytes = math.prod(impl.slice_shape(variable.shape)) * variable.slice_dtype.size
            if variable.name in trained:
                self.parameters += whole
                self.weights += slice_bytes
                self.total += 2 * whole * variable.master_dtype.size  # and its gradient
            elif variable.name.startswith(trained):
                self.moments += slice_bytes
                self.total += whole * variable.master_dtype.size
            else:
                self.frozen += whole
                self.total += whole * variable.master_dtype.size


def _measure(config, objective, found):
    """Seconds of each measured step, none if the machine is too small; fills in `found`."""
    with tf.Graph().as_default() as graph:
        rows = tf.data.make_initializable_iterator(inputs.train_input_fn(config, 0)({}))
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        step = model_fn.train_step(config, objective, mesh, rows.get_next(), model_fn.lower)
        found.count(mesh.graph, step.lowering.mesh_impl(mesh))
        if not config.gpu_ids and found.total > psutil.virtual_memory().available:
            return []
        start = [tf.global_variables_initializer(), tf.local_variables_initializer(),
                 rows.initializer]
        copy = step.lowering.copy_masters_to_slices()
        graph.finalize()
        with tf.Session(graph=graph, config=devices.session_config(config)) as session:
            session.run(start)
            session.run(copy)
            return _timed(session, [step.update, step.scalars])


def _timed(session, fetches):
    seconds, until = [], None
    with tqdm(total=_STEPS, desc="measuring", unit="step", leave=False) as bar:
        session.run(fetches)
        until = time.monotonic() + _SECONDS
        while len(seconds) < _STEPS and (not seconds or time.monotonic() < until):
            began = time.monotonic()
            session.run(fetches)
            seconds.append(time.monotonic() - began)
            bar.update()
    return seconds


def _seconds_left(config, found, seconds):
    """(of training, of evaluating) from `begin` to the end of a run; None where none is measured.

    A batch of an evaluation takes a third of what a training step takes for as many rows.
    """
    if not seconds:
        return None, None
    one = statistics.median_high(seconds)
    batches = inputs.eval_windows(config).batches if config.eval_steps != 0 else 0
    share = _FORWARD * config.eval_batch_size / config.train_batch_size
    return (max(0, config.train_steps - found.begin) * one,
            _evaluations(config, found) * batches * share * one)


def _evaluations(config, found):
    every = config.steps_per_checkpoint
    return max(0, math.ceil(config.train_steps / every) - found.begin // every)


def _lines(config, found, seconds):
    """What is printed, by its heading."""
    left = max(0, config.train_steps - found.begin)
    evaluated = "" if config.eval_steps == 0 else ", each with an evaluation"
    lines = {
        "run": f"{config.model_path}: " + (f"goes on from step {found.begin:,}" if found.begin
                                           else "begins anew") +
               f" and ends at step {config.train_steps:,}",
        "parameters": f"{found.parameters:,}" + (f", and {found.frozen:,} frozen ones"
                                                 if found.frozen else ""),
        "memory a device": f"weights {_mib(found.weights)}, the optimizer's moments "
                           f"{_mib(found.moments)}, gradients {_mib(found.weights)}; "
                           "activations come on top",
        "tokens a step": f"{found.tokens:,}: {config.train_batch_size} windows of {config.n_ctx}",
        "tokens in all": f"{left * found.tokens:,}",
    }
    if found.epoch:
        lines["steps an epoch"] = (f"{found.epoch:,.1f}; what is left is "
                                   f"{left / found.epoch:,.2f} epochs")
    lines["checkpoints"] = f"{_evaluations(config, found)}{evaluated}"
    if not seconds:
        lines["time"] = (f"not measured: weights, moments and gradients take {_mib(found.total)}, "
                         f"and {_mib(psutil.virtual_memory().available)} of memory are free")
        return lines
    training, evaluating = _seconds_left(config, found, seconds)
    one = statistics.median_high(seconds)
    lines["peak memory"] = f"{_peak() / _GIB:.2f} GiB of this process, its libraries included"
    lines["step"] = (f"{one:.4g} s, the median of {len(seconds)} steps; "
                     f"{found.tokens / one:,.0f} tokens/s")
    lines["time"] = (f"about {tqdm.format_interval(training)} of training and "
                     f"{tqdm.format_interval(evaluating)} of evaluating, start-up, samples and "
                     "eval_tasks not counted")
    return lines


def _summary(config, found, seconds):
    training, evaluating = _seconds_left(config, found, seconds)
    one = statistics.median_high(seconds) if seconds else None
    return {"parameters": found.parameters, "frozen": found.frozen,
            "weights_bytes": found.weights, "moments_bytes": found.moments,
            "tokens_per_step": found.tokens, "steps_per_epoch": found.epoch, "step": found.begin,
            "step_seconds": one, "tokens_per_second": found.tokens / one if one else None,
            "peak_gib": _peak() / _GIB if seconds else None, "train_seconds": training,
            "eval_seconds": evaluating}


def _mib(count):
    return f"{count / 2 ** 20:,.1f} MiB"


def _peak():
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
