"""Which checkpoints a run's directory holds, which of them are intact, and which are kept."""

import json
import logging
import os
import re

from configs.errors import UserError
from mesh.compat import tf
from records import retrying

SCORES = "scores.json"

# What has been read whole or was written by this process: {path: sizes and times of its files}.
_known_good = {}


def step_of(checkpoint):
    """The step of a checkpoint path such as `…/model.ckpt-1000`."""
    return int(checkpoint.rpartition("-")[2])


def on_disk(model_path):
    """The checkpoints that lie in a directory, oldest first, whatever their state."""
    found = tf.io.gfile.glob(os.path.join(model_path, "model.ckpt-*.index"))
    paths = [path[:-len(".index")] for path in found if re.search(r"-\d+\.index$", path)]
    return sorted(paths, key=step_of)


@retrying.patient
def candidates(model_path):
    """The checkpoints that a run may go on from, newest first.

    The file `checkpoint` names the newest: one after it was not saved to its end. Where that file
    is lost or damaged, it is the newest that lies there.
    """
    try:
        state = tf.train.get_checkpoint_state(model_path)
    except (ValueError, tf.errors.DataLossError):
        state = None
    found = on_disk(model_path)[::-1]
    if state is None or not re.search(r"-\d+$", state.model_checkpoint_path):
        return found
    # Where others have written it, it may name the place where the run lay before it was moved.
    named = os.path.join(model_path, os.path.basename(state.model_checkpoint_path))
    older = [path for path in found if step_of(path) < step_of(named)]
    return [named, *older] if named in found or older or not found else [named, *found]


@retrying.patient
def problem(checkpoint):
    """Why a checkpoint cannot be used, or None. It is read whole: each tensor has a checksum."""
    try:
        stamp = _stamp(checkpoint)
        if _known_good.get(checkpoint) == stamp:
            return None
        reader = tf.train.NewCheckpointReader(checkpoint)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except retrying.TRANSIENT:
        raise
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError, MemoryError) as error:
        return str(getattr(error, "message", error)).partition("\n")[0]
    _known_good[checkpoint] = stamp
    return None


@retrying.patient
def trust(checkpoint):
    """Notes that this process has written a checkpoint to its end."""
    _known_good[checkpoint] = _stamp(checkpoint)


def _stamp(checkpoint):
    files = tf.io.gfile.glob(checkpoint + ".*")
    if checkpoint + ".index" not in files:
        raise ValueError("files are missing")
    stats = [(path, tf.io.gfile.stat(path)) for path in sorted(files)]
    return [(path, stat.length, stat.mtime_nsec) for path, stat in stats]


def newest_intact(model_path):
    """The newest checkpoint that can be read, or None where there is none at all.

    Raises:
      UserError: there are some, and all are damaged.
    """
    return _first_intact(model_path, candidates(model_path))


def _first_intact(model_path, paths):
    broken = []
    for path in paths:
        reason = problem(path)
        if reason is None:
            if broken:
                logging.warning("warning: %s: the checkpoint is damaged (%s); using %s before it",
                                broken[0][0], broken[0][1], os.path.basename(path))
            return path
        broken.append((path, reason))
    if not broken:
        return None
    raise UserError(f"{broken[0][0]}: the checkpoint is damaged or incomplete ({broken[0][1]}), "
                    f"and no other one in {model_path} is whole; copy its files anew, or start "
                    "again with --new")


def chosen(config):
    """The checkpoint that the config's key `checkpoint` names, intact; None if there is none.

    Raises:
      UserError: it is damaged, or there is no such one.
    """
    model_path, wanted = config.model_path, config.checkpoint
    if wanted == "latest":
        return newest_intact(model_path)
    found = {step_of(path): path for path in candidates(model_path)}
    if not found:
        return None
    if wanted == "best":
        known = scores(model_path)
        scored = sorted((known[step], step) for step in found if step in known)
        if not scored:
            raise UserError(f"checkpoint: no checkpoint in {model_path} has been evaluated in "
                            "training, so none is best; give --checkpoint latest or a step")
        return _first_intact(model_path, [found[step] for _, step in scored])
    if int(wanted) not in found:
        raise UserError(f"checkpoint: {model_path} has none of step {wanted}; there are "
                        f"{', '.join(map(str, sorted(found)))}")
    return _first_intact(model_path, [found[int(wanted)]])


@retrying.patient
def scores(model_path):
    """The validation losses of a run's evaluated checkpoints: {step: loss}; {} if unreadable."""
    path = os.path.join(model_path, SCORES)
    try:
        if not tf.io.gfile.exists(path):
            return {}
        with tf.io.gfile.GFile(path) as file:
            return {int(step): float(loss) for step, loss in json.loads(file.read()).items()}
    except (ValueError, TypeError, AttributeError):
        logging.warning("warning: %s is damaged; the losses in it are forgotten", path)
        return {}


@retrying.patient
def note_score(model_path, step, loss):
    """Notes the validation loss of a checkpoint, in place of an earlier one of the same step."""
    held = {step_of(path) for path in on_disk(model_path)}
    known = {s: x for s, x in scores(model_path).items() if s in held}
    known[step] = loss
    write_text(os.path.join(model_path, SCORES), json.dumps(known, indent=1) + "\n")


@retrying.patient
def name_newest(model_path, checkpoint):
    """Writes the file `checkpoint`: this one is the newest; those after it never happened."""
    older = [path for path in on_disk(model_path) if step_of(path) < step_of(checkpoint)]
    names = [os.path.basename(path) for path in [*older, checkpoint]]
    lines = [f'model_checkpoint_path: "{names[-1]}"']
    lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
    write_text(os.path.join(model_path, "checkpoint"), "\n".join(lines) + "\n")


@retrying.patient
def prune(model_path, newest, keep, keep_every=0, keep_best=0):
    """Deletes checkpoints up to `newest` but for some.

    Args:
      model_path: the run's directory.
      newest: step of the newest checkpoint, which always stays.
      keep: how many of the newest stay.
      keep_every: those of multiples of it stay as well; 0 is none.
      keep_best: how many of those with the lowest validation losses stay as well.
    """
    found = {step_of(path): path for path in on_disk(model_path) if step_of(path) <= newest}
    kept = set(sorted(found)[-keep:])
    if keep_every:
        kept |= {step for step in found if step and step % keep_every == 0}
    if keep_best:
        known = scores(model_path)
        kept |= set(sorted((s for s in found if s in known),
                           key=lambda s: (known[s], s))[:keep_best])
    dropped = [path for step, path in found.items() if step not in kept]
    for path in dropped:
        # The index first: without it the rest is no checkpoint.
        files = sorted(tf.io.gfile.glob(path + ".*"), key=lambda name: not name.endswith(".index"))
        for file in files:
            tf.io.gfile.remove(file)
        _known_good.pop(path, None)


@retrying.patient
def sweep(model_path):
    """Deletes what kills have left of checkpoints that were being written or deleted."""
    for path in tf.io.gfile.glob(os.path.join(model_path, "model.ckpt-*")):
        found = re.match(r"model\.ckpt-\d+", os.path.basename(path))
        prefix = os.path.join(model_path, found[0]) if found else path
        if not found or (".tempstate" not in path and tf.io.gfile.exists(prefix + ".index")):
            continue
        if tf.io.gfile.isdir(path):
            tf.io.gfile.rmtree(path)
        else:
            tf.io.gfile.remove(path)


@retrying.patient
def write_text(path, text):
    """Writes a small file under a temporary name and renames it: never half a file."""
    temporary = path + ".tmp"
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write(text)
    tf.io.gfile.rename(temporary, path, overwrite=True)
