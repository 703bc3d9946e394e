"""Hooks: which steps are logged, and what is saved when."""

import threading
import types

import jobs
import numpy as np
import pytest

from mesh.compat import mtf, tf
from training import hooks


class Recorder:
    """Stands for a Meter."""

    watch = None

    def __init__(self):
        self.calls = []

    def start_clock(self, step):
        self.calls.append(("start", step))

    def log(self, step, values):
        self.calls.append((step, values["loss"]))


@pytest.mark.parametrize("start, wanted", [
    (0, [("start", 1), (1, 10.0), (3, 30.0), (5, 50.0), (6, 60.0), (9, 90.0), (10, 100.0),
         (11, 110.0)]),
    (6, [("start", 7), (9, 90.0), (10, 100.0), (11, 110.0)])])
def test_logged_steps(start, wanted):
    """The first, each third, those of checkpoints (each fifth) and the last, with their values."""
    config = types.SimpleNamespace(iterations=3, steps_per_checkpoint=5, train_steps=11)
    meter = Recorder()
    with tf.Graph().as_default():
        step = tf.train.get_or_create_global_step()
        following = tf.assign(step, step + 1)
        hook = hooks.LogScalars({"loss": tf.cast(following, tf.float32) * 10.0}, config, meter)
        with tf.train.SingularMonitoredSession([hook]) as session:
            step.load(start, session.raw_session())
            hook.after_create_session(session.raw_session(), None)
            while session.run(following) < 11:
                pass
    assert meter.calls == wanted


def save_run(directory, steps, keep=2, fails=False):
    """A session on two devices that adds 1 to a split variable `steps` times."""
    with tf.Graph().as_default():
        step = tf.train.get_or_create_global_step()
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        w = mtf.get_variable(mesh, "w", mtf.Shape([mtf.Dimension("a", 4)]),
                             initializer=tf.zeros_initializer())
        update = mtf.assign(w, w + 1.0)
        impl = mtf.placement_mesh_impl.PlacementMeshImpl(
            mtf.convert_to_shape("x:2"), mtf.convert_to_layout_rules("a:x"), ["cpu:0", "cpu:1"])
        lowering = mtf.Lowering(graph, {mesh: impl}, autostack=False)
        train = tf.group(lowering.lowered_operation(update), tf.assign_add(step, 1))
        all_hooks = [mtf.MtfRestoreHook(lowering), hooks.SaveAtEnd(lowering, directory, keep=keep)]
        with tf.train.MonitoredTrainingSession(
                checkpoint_dir=directory, hooks=all_hooks, save_checkpoint_secs=None,
                save_summaries_steps=None, save_summaries_secs=None,
                config=tf.ConfigProto(device_count={"CPU": 2})) as session:
            for _ in range(steps):
                session.run(train)
            if fails:
                raise RuntimeError("something went wrong")


def test_slices_are_saved_and_old_checkpoints_deleted(tmp_path):
    directory = str(tmp_path)
    for steps in (3, 2, 4):
        save_run(directory, steps)
    assert jobs.steps(directory) == [5, 9]
    saved = jobs.weights(directory)
    np.testing.assert_array_equal(saved["w"], np.full(4, 9.0))
    assert saved["global_step"] == 9


def test_nothing_is_saved_when_training_fails(tmp_path):
    directory = str(tmp_path)
    save_run(directory, 3)
    with pytest.raises(RuntimeError):
        save_run(directory, 2, fails=True)
    assert jobs.steps(directory) == [3]


def test_a_moved_run_goes_on(tmp_path):
    save_run(str(tmp_path / "a"), 3)
    (tmp_path / "a").rename(tmp_path / "b")
    save_run(str(tmp_path / "b"), 2)
    np.testing.assert_array_equal(jobs.weights(str(tmp_path / "b"))["w"], np.full(4, 5.0))


def test_bar_counts_session_runs(monkeypatch):
    shown = []

    class Fake:
        def __init__(self, total, **settings):
            shown.append(total)

        def update(self):
            shown.append("step")

        def close(self):
            shown.append("end")

    monkeypatch.setattr(hooks, "tqdm", Fake)
    with tf.Graph().as_default():
        zero = tf.constant(0)
        with tf.train.SingularMonitoredSession([hooks.Bar(3, "evaluating")]) as session:
            for _ in range(3):
                session.run(zero)
    assert shown == [3, "step", "step", "step", "end"]


def test_bar_follows_what_the_host_of_a_tpu_counts(monkeypatch):
    """One run of the session makes all batches there."""
    bars, seen = [], threading.Event()

    class Fake:
        disable = False

        def __init__(self, **settings):
            self.n, self.closed = 0, False
            bars.append(self)

        def update(self, more):
            self.n += more
            if self.n == 2:
                seen.set()

        def close(self):
            self.closed = True

    def wait():
        return np.bool_(seen.wait(60))

    monkeypatch.setattr(hooks, "tqdm", Fake)
    monkeypatch.setattr(hooks.Bar, "_INTERVAL", 0.01)
    with tf.Graph().as_default():
        metrics = hooks.counted({"loss": tf.metrics.mean(tf.constant(3.0)),
                                 "other": (tf.constant(1.0), tf.no_op())})
        rest = tf.py_func(wait, [], tf.bool)
        with tf.train.SingularMonitoredSession([hooks.Bar(3, "evaluating")]) as session:
            update = metrics["loss"][1]
            raw = session.raw_session()
            assert raw.run(update) == raw.run(update) == 3.0
            assert session.run(rest)  # while this run goes on, two batches have been counted
            assert bars[0].n == 2
    assert bars[0].closed
