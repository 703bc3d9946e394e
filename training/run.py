"""The loops: train with evaluations at checkpoints, or evaluate alone."""

import functools
import json
import logging
import math
import os
import sys
import time

import inputs
from configs.errors import UserError
from configs.layouts import LANGUAGE_MODELS
from configs.redaction import hidden_values
from mesh import devices
from mesh.compat import mtf, tf
from models import layers
from records import retrying, sources
from training import (
    board,
    checkpoints,
    flops,
    frozen,
    gauges,
    hooks,
    keeping,
    language_models,
    metrics,
    objectives,
    projector,
    starting,
    stopping,
    tasks,
    wandb_log,
    watching,
)
from training.estimators import Estimators
from training.samples import Samples


def train(config, new=False, yes=False, tpu=None, elsewhere=None, wandb=None, hosts=None):
    """Trains to `train_steps`, from the last checkpoint if there is one.

    Every `steps_per_checkpoint` steps a checkpoint is saved and the validation split evaluated. The
    last line on stdout is a JSON summary.

    Args:
      config: the run's config.
      new: delete an earlier run in model_path first; asks, unless `yes`.
      yes: the answer to that question.
      tpu: the mesh.cloud.Tpu to train on.
      elsewhere: what reads an `init_from` that is no run: see starting.of_run.
      wandb: the project at Weights & Biases that gets the scalars as well.
      hosts: the mesh.cluster.Hosts that share the mesh.

    Raises:
      UserError: the data, the config or the directory cannot be used.
      Stopped: SIGINT or SIGTERM came, and the run is saved.
    """
    gone = []  # --new deletes once
    sources.forget()

    def begin():
        _train(config, new and not gone, yes, tpu, elsewhere, wandb, hosts, gone)

    # What is not mended below this begins anew, from the last checkpoint.
    retrying.call(config.model_path, begin)


def _train(config, new, yes, tpu, elsewhere, wandb, hosts, gone):
    """`train`, once; `gone` gets an entry when the earlier run is deleted."""
    started = time.monotonic()
    devices.prepare(config)
    facts = inputs.dataset_facts(config, "train")
    evaluating = config.eval_steps != 0
    if evaluating:
        inputs.eval_windows(config)
    taken = _taken(config, facts, new)
    objective = objectives.of_run(config, facts, taken)
    measured = gauges.Gauges(config, facts.encoder_facts, taken) if evaluating else None
    start = starting.of_run(config, facts, new, elsewhere)
    if new:
        delete_run(config.model_path, yes)
        gone.append(config.model_path)
    step, record = _begin(config, facts, taken)
    if taken:
        frozen.adopt(config, taken)
    if start:
        start.adopt(config)
    if not step:
        objective.prepare()
    log = wandb_log.Log(config, wandb) if wandb else None
    writer = metrics.Writer(config.model_path, log and log.under("train"))
    writer.start(step)
    board.begin(writer, config, facts, step)
    if evaluating:
        # One for the whole run: each writer is a file of its own.
        eval_writer = metrics.Writer(os.path.join(config.model_path, "eval"),
                                     log and log.under("eval"))
        eval_writer.start(step)
    watch = watching.Watch(config, record.start_window)
    meter = metrics.Meter(config, facts, writer, watch, flops.peak(config))
    samples = Samples(config, writer)
    estimator = Estimators(config, objective, meter, tpu, start and start.initializer, hosts)
    scores = None

    def evaluate_checkpoint():
        found = _evaluate(config, objective, estimator, measured)
        samples.write(step)
        measured.project()
        _report(config, objective, step, meter, eval_writer, found, measured,
                time.monotonic() - started)
        return found

    with stopping.Stop() as stop:
        stop.saved = step  # while machines are waited for
        if evaluating and _was_cut_off(config, record, step):
            logging.info("the evaluation of step %d was cut off; it comes first", step)
            scores = evaluate_checkpoint()
        while step < config.train_steps:
            every = config.steps_per_checkpoint
            target = min((step // every + 1) * every, config.train_steps)
            # Most transient errors are mended below this (see hooks.Recoveries).
            retrying.call("training", estimator.run, "train",
                          inputs.train_input_fn(config, record.start_window(step)),
                          around=functools.partial(stop.leg, step), max_steps=target,
                          hooks=[stopping.StopAtSignal(stop)])
            step = stop.saved = keeping.step_of(checkpoints.latest(config.model_path))
            starting.forget(config)
            if stop.asked:
                stop.end(step)
            retrying.call("datasets", inputs.check_unchanged, config)
            if evaluating:
                scores = evaluate_checkpoint()
            elif step == config.train_steps:
                projector.write(config, checkpoints.require_latest(config), checkpoints.encoder_of(
                    config, facts.encoder_facts, needed=False))
    samples.close()
    meter.close()
    writer.close()
    if evaluating:
        eval_writer.close()
    if log:
        log.close()
    if scores is None and evaluating:
        scores = _evaluate(config, objective, estimator, measured)
    _print_summary(step=step, train_loss=meter.loss, **(scores or _NO_SCORES),
                   tokens_per_sec=meter.tokens_per_second,
                   seconds=time.monotonic() - started, model_path=config.model_path,
                   **_left_out(config, "train", *(["validation"] if evaluating else [])))


def evaluate(config, tpu=None, hosts=None):
    """Evaluates the config's `checkpoint` on the validation split; prints a JSON summary line.

    On `tpu`, a mesh.cloud.Tpu, or on `hosts`, mesh.cluster.Hosts, where there are some.
    """
    started = time.monotonic()
    devices.prepare(config)
    checkpoint = checkpoints.require_latest(config)
    step = keeping.step_of(checkpoint)
    facts = inputs.dataset_facts(config, "validation")
    record = checkpoints.read_record(config.model_path)
    taken = _taken(config, facts)
    if record:
        _check_fits(config, record, facts.encoder_facts, taken)
    else:
        _check_shapes(config, checkpoint, facts, taken)
    objective = objectives.of_run(config, facts, taken)
    measured = gauges.Gauges(config, facts.encoder_facts, taken)
    clock = hooks.Bar(inputs.eval_windows(config).batches, "evaluating")
    scores = _evaluate(config, objective, Estimators(config, objective, None, tpu, hosts=hosts),
                       measured, clock, checkpoint)
    line = dict(step=step, train_loss=None, **scores,
                tokens_per_sec=inputs.eval_windows(config).targets / clock.seconds,
                seconds=time.monotonic() - started, model_path=config.model_path,
                **_left_out(config, "validation"))
    metrics.append_line(config.model_path, line)
    _print_summary(**line)


_NO_SCORES = {"eval_loss": None, "perplexity": None, "bits_per_byte": None,
              "bits_per_decoded_byte": None}


def _taken(config, facts, new=False):
    """The frozen weights that the run takes from another run, checked, or None."""
    taken = frozen.of_run(config, new)
    if taken:
        frozen.check_encoder(config, taken, facts.encoder_facts)
    return taken


def _check_fits(config, record, encoder, taken):
    checkpoints.check_fits(config, record, encoder)
    if taken and record.frozen and record.frozen != taken.hash:
        raise UserError(f"{os.path.dirname(taken.checkpoint)}: its weights (hash {taken.hash}) are "
                        f"not those that {config.model_path} was trained with (hash "
                        f"{record.frozen}); restore them, or start again with --new")


def _check_shapes(config, checkpoint, facts, taken):
    """Refuses a language model's weights of another shape, where no run.json tells.

    TensorFlow restores them all the same, and a later operation fails on them.
    """
    if config.model not in LANGUAGE_MODELS:
        return
    with tf.Graph().as_default():
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        model = language_models.build(config, facts.n_vocab, taken)
        ctx = layers.Context(mesh, config)
        row = mtf.Shape([mtf.Dimension("batch", 1), mtf.Dimension("sequence", config.n_ctx)])
        model.logits(ctx, model.hidden(ctx, mtf.zeros(mesh, row, tf.int32)))
        checkpoints.check_shapes(config, checkpoint, {
            v.name: v.shape.to_integer_list for v in mesh.graph.trainable_variables})


def _begin(config, facts, taken):
    """Makes or checks the run's directory; returns (step to go on from, its RunRecord)."""
    checkpoint = keeping.newest_intact(config.model_path)
    record = checkpoints.read_record(config.model_path) if checkpoint else None
    step = keeping.step_of(checkpoint) if checkpoint else 0
    encoder = facts.encoder_facts
    if record:
        _check_fits(config, record, encoder, taken)
    else:
        if checkpoint:
            _check_shapes(config, checkpoint, facts, taken)
        record = checkpoints.RunRecord(config.architecture(), encoder, legs=[],
                                       frozen=taken.hash if taken else None)
    data = {"n_ctx": config.n_ctx, "seed": config.seed, "datasets": list(facts.datasets)}
    change = record.begin_leg(step, config.train_batch_size, hidden_values(data))
    try:
        tf.io.gfile.makedirs(config.model_path)
        keeping.sweep(config.model_path)
        for name in (metrics.EVALUATIONS, watching.BAD_STEPS):
            metrics.forget_after(os.path.join(config.model_path, name), step)
        if checkpoint and checkpoint != tf.train.latest_checkpoint(config.model_path):
            keeping.name_newest(config.model_path, checkpoint)
        checkpoints.write_record(config.model_path, record)
        checkpoints.write_text(os.path.join(config.model_path, "config.json"), config.to_json())
    except retrying.TRANSIENT:
        raise
    except tf.errors.OpError as error:
        raise UserError(f"model_path: {config.model_path} cannot be written ({error.message}); "
                        "give another --model_path, or see to its permissions") from error
    if checkpoint:
        logging.info("going on from step %d of %s", step, config.model_path)
    if change:
        logging.info("note: %s", change)
    if step >= config.train_steps:
        logging.info("nothing to train: step %d of train_steps = %d; raise train_steps, or start "
                     "again with --new", step, config.train_steps)
    return step, record


def delete_run(model_path, yes):
    """Deletes an earlier run, if there is one and the user agrees."""
    if not checkpoints.is_run(model_path):
        return
    if not yes:
        checkpoint = checkpoints.latest(model_path)
        held = f"step {keeping.step_of(checkpoint)}" if checkpoint else "no checkpoint"
        if not sys.stdin.isatty():
            raise UserError(f"--new would delete the run in {model_path} ({held}); give --yes as "
                            "well")
        print(f"Delete the run in {model_path} ({held})? [y/N] ", end="", file=sys.stderr,
              flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError(f"--new: {model_path} is kept; without --new it is gone on with")
    checkpoints.delete_run(model_path)


def _was_cut_off(config, record, step):
    """Whether the checkpoint from which this run goes on was to be evaluated, and was not.

    A line of --eval in metrics.jsonl does not count: a score that makes a checkpoint the best is
    noted by training alone.
    """
    began = record.legs[0]["step"]
    if step == began or (step % config.steps_per_checkpoint and step < config.train_steps):
        return False
    noted = keeping.scores(config.model_path)
    lines = metrics.read_lines(os.path.join(config.model_path, metrics.EVALUATIONS))
    return not any(line["step"] == step and (step in noted or not math.isfinite(line["eval_loss"]))
                   for line in lines)


def _evaluate(config, objective, estimator, measured, bar=None, checkpoint=None):
    """What the objective reports of a checkpoint, the last by default, on the validation split.

    It is `eval_steps` batches of it, or all. The scores of `measured`, a gauges.Gauges, follow.
    """
    facts = inputs.dataset_facts(config, "validation")
    batches = inputs.eval_windows(config).batches
    result = retrying.call(
        "evaluation", estimator.run, "evaluate", inputs.eval_input_fn(config), steps=batches,
        checkpoint_path=checkpoint, hooks=[bar or hooks.Bar(batches, "evaluating")])
    return {**_NO_SCORES, **objective.report(result, facts), **measured.scores()}


def _report(config, objective, step, meter, writer, scores, measured, seconds):
    """Writes an evaluation to TensorBoard (by `writer`), metrics.jsonl and the terminal.

    The checkpoint's loss may make it one of the best, or another one no longer one of them. The
    line of metrics.jsonl comes last: it says that all is done.
    """
    if math.isfinite(scores["eval_loss"]):
        keeping.note_score(config.model_path, step, scores["eval_loss"])
    keeping.prune(config.model_path, step, config.keep, config.keep_every, config.keep_best)
    shown = {name.replace("eval_loss", "loss"): value for name, value in scores.items()
             if isinstance(value, float)}
    on_tasks = scores.get("tasks", {})
    writer.scalars({**shown, **tasks.scalars(on_tasks)}, step)
    for name, png in measured.pictures.items():
        writer.picture(name, png, step)
    metrics.append_line(config.model_path, dict(
        step=step, train_loss=meter.loss, **scores, tokens_per_sec=meter.tokens_per_second,
        seconds=seconds, model_path=config.model_path))
    parts = [f"step {step}: validation loss {scores['eval_loss']:.4f}"]
    parts += [f"{name.replace('_', ' ')} {scores[name]:.4f}"
              for name in (*objective.shown, *measured.shown) if scores.get(name) is not None]
    parts += tasks.phrases(on_tasks)
    logging.info("  ".join(parts))


def _left_out(config, *splits):
    """What skip_corrupt adds to the summary: the damaged records of splits that are not read."""
    if not config.skip_corrupt:
        return {}
    return {"skipped_records": sum(inputs.dataset_facts(config, split).left_out or 0
                                   for split in splits)}


def _print_summary(**values):
    print(json.dumps(hidden_values(values)), flush=True)
