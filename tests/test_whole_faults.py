"""A run whose session is lost to UnavailableError goes on from its checkpoint, to the bit."""

import jobs
import pytest
from tensorflow.python.client import session

from mesh.compat import tf
from records import retrying, sources

pytestmark = pytest.mark.slow
FAULTS = 6


@pytest.fixture
def faults(monkeypatch):
    """[how many of the steps to come are lost]: each third one, after it has run. No waiting."""
    left, seen, real = [0], [0], session.BaseSession.run

    def run(self, fetches, *args, **kwargs):
        out = real(self, fetches, *args, **kwargs)
        if isinstance(fetches, dict) and "caller" in fetches:  # a step, with what hooks fetch
            seen[0] += 1
            if left[0] and seen[0] % 3 == 0:
                left[0] -= 1
                raise tf.errors.UnavailableError(None, None, "503 from storage")
        return out

    monkeypatch.setattr(session.BaseSession, "run", run)
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    return left


def test_a_lost_session_changes_nothing(tmp_path, capsys, faults):
    data = jobs.dataset(tmp_path)
    keys = dict(train_steps=6, steps_per_checkpoint=4, **jobs.DROPOUT)
    straight = jobs.config(tmp_path, data, name="straight", **keys)
    faulty = jobs.config(tmp_path, data, name="faulty", **keys)
    assert jobs.here(capsys, straight).summary["step"] == 6
    faults[0] = 3
    result = jobs.here(capsys, faulty)
    assert result.summary["step"] == 6 and faults == [0]
    assert result.stderr.count("storage or a device was out of reach; trying again in") == 3
    jobs.assert_same_bits(jobs.weights(tmp_path / "straight"), jobs.weights(tmp_path / "faulty"))


FILES = ("exists", "isdir", "glob", "listdir", "stat", "makedirs", "rename", "remove")


class Flaky:
    """Has the file operations of such numbers fail once, as storage does that is overrun."""

    def __init__(self, monkeypatch):
        self.calls, self.fails, self.failed = 0, set(), []
        for name in FILES:
            self._wrap(monkeypatch, tf.io.gfile, name)
        for name in ("read", "write", "size"):
            self._wrap(monkeypatch, tf.io.gfile.GFile, name)
        self._wrap(monkeypatch, tf.train.Saver, "save")
        self._wrap(monkeypatch, tf.train, "NewCheckpointReader")

    def _wrap(self, monkeypatch, target, name):
        real = getattr(target, name)

        def function(*args, **kwargs):
            self.calls += 1
            if self.calls in self.fails:
                self.failed.append(name)
                raise tf.errors.UnavailableError(None, None, f"503 of {name}")
            return real(*args, **kwargs)

        monkeypatch.setattr(target, name, function)


def test_files_that_are_out_of_reach_for_a_moment_change_nothing(tmp_path, capsys, monkeypatch):
    """Faults spread over all file operations of a run, the first and the last among them."""
    data = jobs.dataset(tmp_path)
    keys = dict(train_steps=4, steps_per_checkpoint=2, eval_steps=1, keep=1, keep_best=1)
    flaky = Flaky(monkeypatch)
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    sources.forget()
    straight = jobs.here(capsys, jobs.config(tmp_path, data, name="straight", **keys))
    assert straight.summary["step"] == 4 and not flaky.failed
    sources.forget()
    count, flaky.calls = flaky.calls, 0
    flaky.fails = {number * count // FAULTS for number in range(1, FAULTS + 1)}
    result = jobs.here(capsys, jobs.config(tmp_path, data, name="faulty", **keys))
    assert result.summary["step"] == 4 and len(flaky.failed) == FAULTS
    assert result.stderr.count("trying again in") == FAULTS
    jobs.assert_same_bits(jobs.weights(tmp_path / "straight"), jobs.weights(tmp_path / "faulty"))
    assert [[line["eval_loss"] for line in jobs.metrics(tmp_path / name)]
            for name in ("straight", "faulty")] == [[line["eval_loss"] for line in jobs.metrics(
                tmp_path / "straight")]] * 2


def test_an_input_function_that_is_out_of_reach_is_tried_again(tmp_path, capsys, monkeypatch):
    """TensorFlow makes an UnknownError of what its Python raises."""
    import inputs

    fails = [0]

    def rows(config, split, start):
        def read(number):
            if fails[0] and number == start + 20:
                fails[0] -= 1
                raise tf.errors.UnavailableError(None, None, "503 from a bucket")
            return number % config.n_vocab

        numbers = tf.data.Dataset.range(start, 1 << 40)
        return numbers.map(lambda n: {"tokens": tf.fill(
            [config.n_ctx + 1], tf.ensure_shape(tf.py_func(read, [n], tf.int64), []))})

    monkeypatch.setitem(inputs.INPUT_FUNCTIONS, "remote", rows)
    monkeypatch.setattr(retrying.time, "sleep", lambda seconds: None)
    keys = dict(input_fn="remote", n_vocab=257, train_steps=4)
    for name, fails[0] in (("straight", 0), ("faulty", 2)):
        result = jobs.here(capsys, jobs.config(tmp_path, [], name=name, **keys))
        assert result.summary["step"] == 4
    assert fails == [0]
    line = "warning: training: UnavailableError: 503 from a bucket; trying again"
    assert result.stderr.count(line) == 2
    jobs.assert_same_bits(jobs.weights(tmp_path / "straight"), jobs.weights(tmp_path / "faulty"))


def test_storage_that_never_answers_is_given_up_in_one_line(tmp_path, capsys, faults):
    path = jobs.config(tmp_path, jobs.dataset(tmp_path))
    faults[0] = 10**6
    assert "storage or a device stayed out of reach after" in jobs.here(capsys, path).error
