"""What happens between steps: progress and checkpoints."""

import os
import threading
import time

from configs.errors import UserError
from configs.progress import tqdm
from mesh.compat import tf
from records import retrying
from training import keeping

# What is looked at after every step.
WATCHED = ("loss", "gradient_norm")

# The variable, and its collection, with which the host of a TPU counts an evaluation's batches.
_BATCHES = "evaluated_batches"


class LogScalars(tf.train.SessionRunHook):
    """Fetches scalars at some steps and gives them to a meter, and to its watch some at each step.

    Those of the meter are the first step of all, every `iterations`-th one, counted from step 0 and
    not from the start, and the last one before a checkpoint.

    Args:
      scalars: a dict of scalar tensors.
      config: the run's config.
      meter: a training.metrics.Meter.
    """

    def __init__(self, scalars, config, meter):
        self._scalars, self._config, self._meter = scalars, config, meter
        self._global_step = tf.train.get_global_step()
        self._next = self._first = None
        self._watched = {name: scalars[name] for name in WATCHED} if meter.watch else {}

    def after_create_session(self, session, coord):
        self._next = self._first = session.run(self._global_step) + 1

    def before_run(self, run_context):
        config, step = self._config, self._next
        if (step in (1, config.train_steps) or step % config.iterations == 0
                or step % config.steps_per_checkpoint == 0):
            return tf.train.SessionRunArgs(self._scalars)
        return tf.train.SessionRunArgs(self._watched) if self._watched else None

    def after_run(self, run_context, run_values):
        if self._next == self._first:
            # What comes before includes the graph's compilation.
            self._meter.start_clock(self._next)
        values = {name: float(value) for name, value in (run_values.results or {}).items()}
        if values.keys() == self._scalars.keys():
            self._meter.log(self._next, values)
        if self._watched:
            self._meter.watch.see(self._next, *(values[name] for name in WATCHED))
        self._next += 1


class LogFromTpu(tf.train.SessionRunHook):
    """Gives a meter the scalars of the last step of each of a TPU's loops; its watch sees all.

    The program on the TPU sends them to its host after every step, and the host keeps the newest,
    as many as a loop has.

    Args:
      scalars: a dict of scalar tensors of the program.
      meter: a training.metrics.Meter.
      loop: steps of a loop.

    Attributes:
      host_call: what TPUEstimator has the host do with them.
    """

    _PATIENCE = 60.0  # seconds that the host may lag behind the TPU

    def __init__(self, scalars, meter, loop=1):
        self._names, self._meter, self._loop = list(scalars), meter, loop
        self._global_step = tf.train.get_global_step()
        self._seen = 0
        values = tf.stack([tf.cast(x, tf.float32) for x in scalars.values()])
        self.host_call = (self._keep, [tf.reshape(tf.cast(self._global_step, tf.int32), [1]),
                                       values])

    def _keep(self, step, values):
        # One variable, so that the step and its scalars are written together.
        self._kept = tf.get_variable(
            "newest_scalars", [self._loop, 1 + len(self._names)], tf.float64,
            tf.zeros_initializer(), trainable=False,
            collections=[tf.GraphKeys.LOCAL_VARIABLES])
        row = tf.concat([tf.cast(x, tf.float64) for x in (step, values)], 0)
        return tf.scatter_update(self._kept, step % self._loop, row[tf.newaxis])

    def after_run(self, run_context, run_values):
        session = run_context.session
        step, until = session.run(self._global_step), time.monotonic() + self._PATIENCE
        kept = session.run(self._kept)
        while kept[:, 0].max() < step and time.monotonic() < until:
            time.sleep(0.01)
            kept = session.run(self._kept)
        rows = {int(row[0]): dict(zip(self._names, map(float, row[1:]), strict=True))
                for row in sorted(kept.tolist()) if row[0] > self._seen}
        if not rows:
            return
        newest = max(rows)
        if not self._seen:
            # What comes before includes the program's compilation.
            self._meter.start_clock(newest)
        self._seen = newest
        self._meter.log(newest, rows[newest])
        if self._meter.watch:
            for number, values in rows.items():
                self._meter.watch.see(number, *(values[name] for name in WATCHED))


class SaveAtEnd(tf.train.SessionRunHook):
    """Saves the masters when a leg of training ends, and deletes checkpoints that are not kept.

    Estimator's own saver writes the checkpoint that it has just restored again, over itself, and
    with each leg forgets which older ones it should delete.

    Args:
      lowering: the mtf.Lowering, whose slices are copied to the masters before saving.
      model_path: the run's directory.
      sharded: every host writes the masters that lie on it.
      kept: the arguments `keep`, `keep_every` and `keep_best` of keeping.prune.
    """

    def __init__(self, lowering, model_path, sharded=False, **kept):
        self._copy = lowering.copy_slices_to_masters()
        self._model_path, self._kept = model_path, kept
        self._saver = tf.train.Saver(max_to_keep=0, save_relative_paths=True,
                                     sharded=sharded)
        self._finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(v))
                                      for v in tf.global_variables() if v.dtype.is_floating])
        self._global_step = tf.train.get_global_step()

    def end(self, session):
        session.run(self._copy)
        step = int(session.run(self._global_step))
        if not session.run(self._finite):
            raise UserError(
                f"{self._model_path}: at step {step} a weight or a moment is not a number any more "
                "and is not saved; the last checkpoint is good: lower lr, or set "
                "gradient_clipping, and go on from it")
        path = os.path.join(self._model_path, "model.ckpt")
        saved = retrying.call(path, self._saver.save, session, path, global_step=step,
                              write_state=False)
        # Only now is it the newest: what a crash cuts off before has never happened.
        keeping.name_newest(self._model_path, saved)
        keeping.trust(saved)
        keeping.prune(self._model_path, step, **self._kept)


class Recoveries(tf.train.SessionRunHook):
    """Waits before a session that was lost to a transient error goes on, and gives up in the end.

    TensorFlow makes the session anew after UnavailableError and AbortedError, from the last
    checkpoint and the place in the data where the leg began, but says nothing and tries for ever.
    """

    def __init__(self):
        self._starts = 0

    def after_create_session(self, session, coord):
        if self._starts > len(retrying.WAITS):
            raise UserError(f"storage or a device stayed out of reach after {self._starts} tries; "
                            "see to it, and give the same command again")
        if self._starts:
            step = session.run(tf.train.get_global_step(session.graph))
            retrying.report(f"step {step}", "storage or a device was out of reach",
                            retrying.WAITS[self._starts - 1], self._starts)
        self._starts += 1


class Bar(tf.train.SessionRunHook):
    """A progress bar over `total` batches of an evaluation, on a terminal, and a clock.

    A run of the session is a batch, but on a TPU a run makes all: there the host counts them (see
    `counted`), and the bar looks now and then how far it has come.

    Attributes:
      seconds: the time that the runs took, without building and restoring; on a TPU the first one
        compiles.
    """

    _INTERVAL = 0.5  # seconds between looks

    def __init__(self, total, description):
        self._total, self._description = total, description
        self.seconds = 0.0

    def begin(self):
        self._count = next(iter(tf.get_collection(_BATCHES)), None)

    def after_create_session(self, session, coord):
        self._bar = tqdm(total=self._total, desc=self._description, leave=False)
        self._began = None

    def before_run(self, run_context):
        # Other hooks may restore weights when the session is there.
        self._began = self._began or time.monotonic()
        self._stop = threading.Event()
        if self._count is not None and not self._bar.disable:
            threading.Thread(target=self._follow, daemon=True, args=(
                run_context.session, self._count, self._bar, self._stop)).start()

    def _follow(self, session, count, bar, stop):
        """Shows how many batches the host has counted, until the run ends or the session fails."""
        while not stop.wait(self._INTERVAL):
            try:
                bar.update(int(session.run(count)) - bar.n)
            except (tf.errors.OpError, RuntimeError):  # the run itself says what is wrong
                return

    def after_run(self, run_context, run_values):
        self._stop.set()
        if self._count is None:
            self._bar.update()
        self.seconds = time.monotonic() - self._began

    def end(self, session):
        self._bar.close()


def counted(metrics):
    """Metrics, {name: (value, update)}, of which one update also counts a batch for Bar."""
    count = tf.get_variable(_BATCHES, [], tf.int64, tf.zeros_initializer(), trainable=False,
                            collections=[tf.GraphKeys.LOCAL_VARIABLES, _BATCHES])
    name, (value, update) = next(iter(metrics.items()))
    with tf.control_dependencies([update]):
        done = tf.assign_add(count, 1)
    with tf.control_dependencies([done]):
        return {**metrics, name: (value, tf.identity(update))}
