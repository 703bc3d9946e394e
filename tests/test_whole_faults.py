"""A run whose session is lost to UnavailableError goes on from its checkpoint, to the bit."""

import jobs
import pytest
from tensorflow.python.client import session

from mesh.compat import tf
from training import retrying

pytestmark = pytest.mark.slow


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
