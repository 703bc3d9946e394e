"""Which checkpoints are intact, which are kept, and which one a job takes."""

import random
import resource

import jobs
import numpy as np
import pytest

from configs import schema
from configs.errors import UserError
from mesh.compat import tf
from records import retrying
from training import keeping

FLIPS = 200


def save(directory, steps):
    """Checkpoints of a matrix of the step's number; returns the newest one's path."""
    with tf.Graph().as_default(), tf.Session() as session:
        w = tf.get_variable("w", [8, 16], initializer=tf.zeros_initializer())
        v = tf.get_variable("v", [], tf.int64, initializer=tf.zeros_initializer())
        session.run(tf.global_variables_initializer())
        saver = tf.train.Saver(max_to_keep=0)
        for step in steps:
            w.load(np.full([8, 16], step, np.float32), session)
            v.load(step, session)
            path = saver.save(session, f"{directory}/model.ckpt", step, write_state=False)
    keeping.name_newest(str(directory), path)
    return path


def tensors(checkpoint):
    reader = tf.train.NewCheckpointReader(checkpoint)
    return {name: reader.get_tensor(name) for name in ("w", "v")}


@pytest.fixture
def config(tmp_path):
    return schema.load(jobs.config(tmp_path, jobs.dataset(tmp_path))).replace(
        model_path=str(tmp_path))


@pytest.mark.parametrize("kind", ["index", "data-00000-of-00001"])
def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path, caplog, kind):
    """A file with one bit flipped or its end cut off is refused, or reads as what was written."""
    newest = save(tmp_path, [1, 2])
    path = tmp_path / f"model.ckpt-2.{kind}"
    content, rng, found = path.read_bytes(), random.Random(0), 0
    for number in range(FLIPS):
        if number % 2:
            damaged = bytearray(content)
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            damaged = content[:rng.randrange(len(content))]
        path.write_bytes(damaged)
        keeping._known_good.clear()
        caplog.clear()
        taken = keeping.newest_intact(str(tmp_path))
        step = keeping.step_of(taken)
        assert (tensors(taken)["w"] == step).all() and tensors(taken)["v"] == step
        if step == 1:
            found += 1
            [record] = [r for r in caplog.records if r.name == "root"]
            assert f"{newest}: the checkpoint is damaged (" in record.getMessage()
            assert record.getMessage().endswith("using model.ckpt-1 before it")
    # Bits of the padding in the index's footer mean nothing; whatever was let through read right.
    assert found >= FLIPS * 0.75 if kind == "index" else found == FLIPS


def test_what_was_not_saved_to_its_end_is_no_checkpoint(tmp_path):
    """Cut anywhere: the files of step 3 are there in part, and `checkpoint` does not name it."""
    save(tmp_path, [1, 2])
    state = (tmp_path / "checkpoint").read_bytes()
    save(tmp_path, [3])
    (tmp_path / "checkpoint").write_bytes(state)
    assert keeping.newest_intact(str(tmp_path)) == f"{tmp_path}/model.ckpt-2"
    (tmp_path / "model.ckpt-3.index").unlink()
    assert keeping.newest_intact(str(tmp_path)) == f"{tmp_path}/model.ckpt-2"


@pytest.mark.parametrize("left", [0, 1])
def test_a_checkpoint_whose_index_is_lost_is_named(tmp_path, caplog, left):
    save(tmp_path, [1, 2][1 - left:])
    (tmp_path / "model.ckpt-2.index").unlink()
    if left:
        assert keeping.newest_intact(str(tmp_path)) == f"{tmp_path}/model.ckpt-1"
        assert "model.ckpt-2: the checkpoint is damaged (files are missing); using model.ckpt-1" \
            in caplog.text
    else:
        with pytest.raises(UserError, match="model.ckpt-2: .* damaged or incomplete"):
            keeping.newest_intact(str(tmp_path))


def test_a_run_that_was_moved_finds_its_newest(tmp_path):
    """Other writers of the file `checkpoint` put whole paths into it."""
    save(tmp_path, [1, 2])
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-2"\n')
    assert keeping.newest_intact(str(tmp_path)) == f"{tmp_path}/model.ckpt-2"


def test_a_full_disk_at_any_byte_leaves_the_checkpoint_before(tmp_path):
    """Every file may hold so many bytes and no more, as if the disk were full behind them."""
    path, sizes = save(tmp_path, [1, 2]), []
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    largest = max(len(data) for name, data in before.items() if not name.endswith(".meta"))
    with tf.Graph().as_default(), tf.Session() as session:
        session.run([tf.get_variable("w", [8, 16]).initializer,
                     tf.get_variable("v", [], tf.int64).initializer])
        saver, (soft, hard) = tf.train.Saver(max_to_keep=0), resource.getrlimit(
            resource.RLIMIT_FSIZE)

        def write():
            keeping.name_newest(str(tmp_path), saver.save(
                session, f"{tmp_path}/model.ckpt", 3, write_state=False, write_meta_graph=False))

        for size in range(largest):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            try:
                write()
            except tf.errors.OpError:
                sizes.append(size)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            keeping._known_good.clear()
            if size in sizes:
                assert keeping.newest_intact(str(tmp_path)) == path, size
            keeping.sweep(str(tmp_path))
            keeping.name_newest(str(tmp_path), path)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
        assert len(sizes) > 500, "every size below that of the data is too small"
        write()
    assert keeping.newest_intact(str(tmp_path)) == f"{tmp_path}/model.ckpt-3"


def test_what_kills_leave_of_checkpoints_is_swept_away(tmp_path):
    path = save(tmp_path, [1, 2])
    kept = {file.name for file in tmp_path.iterdir()}
    for name in ("model.ckpt-3.data-00000-of-00001.tempstate17", "model.ckpt-2.index.tempstate5",
                 "model.ckpt-3.data-00000-of-00001", "model.ckpt-0.meta",
                 "model.ckpt-4_temp/part-00000-of-00002.index"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    keeping.sweep(str(tmp_path))
    assert {file.name for file in tmp_path.iterdir()} == kept
    assert keeping.newest_intact(str(tmp_path)) == path


@pytest.mark.parametrize("text", [None, b"", b"model_checkpoint", b"\xff\x00\xfe"])
def test_a_lost_state_file_loses_no_checkpoint(tmp_path, text):
    path = save(tmp_path, [1, 2, 10])
    (tmp_path / "checkpoint").unlink()
    if text is not None:
        (tmp_path / "checkpoint").write_bytes(text)
    assert keeping.newest_intact(str(tmp_path)) == path


def test_where_all_are_damaged_training_does_not_begin_anew(tmp_path):
    save(tmp_path, [1, 2])
    for path in tmp_path.glob("*.index"):
        path.write_bytes(b"")
    keeping._known_good.clear()
    with pytest.raises(UserError, match="no other one in .* is whole"):
        keeping.newest_intact(str(tmp_path))


@pytest.mark.parametrize("settings, kept", [
    (dict(keep=2), [5, 6]), (dict(keep=1, keep_every=2), [2, 4, 6]),
    (dict(keep=1, keep_best=2), [1, 3, 6]), (dict(keep=1, keep_every=5, keep_best=1), [3, 5, 6])])
def test_what_is_kept(tmp_path, settings, kept):
    """Step 3 is best, then step 1; step 7 was not saved to its end and is not touched."""
    save(tmp_path, range(1, 8))
    for step, loss in {1: 2.0, 2: 3.0, 3: 1.0, 4: 2.5, 5: 4.0}.items():
        keeping.note_score(str(tmp_path), step, loss)
    keeping.prune(str(tmp_path), 6, **settings)
    assert jobs.steps(tmp_path) == [*kept, 7]


def test_which_checkpoint_a_job_takes(tmp_path, config):
    save(tmp_path, [1, 2, 3])
    def take(wanted):
        return keeping.step_of(keeping.chosen(config.replace(checkpoint=wanted)))

    with pytest.raises(UserError, match="none is best"):
        take("best")
    for step, loss in {1: 2.0, 2: 1.0, 3: 3.0}.items():
        keeping.note_score(str(tmp_path), step, loss)
    assert (take("latest"), take("best"), take(1)) == (3, 2, 1)
    with pytest.raises(UserError, match="has none of step 7; there are 1, 2, 3"):
        take("7")
    (tmp_path / "model.ckpt-2.index").write_bytes(b"")
    assert take("best") == 1


def test_transient_errors_are_tried_again_and_said(tmp_path, monkeypatch, caplog):
    """Storage that answers at the third try; then one that never does."""
    waited, failures = [], 2
    real = tf.io.gfile.rename

    def rename(*args, **kwargs):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise tf.errors.UnavailableError(None, None, "503 from storage")
        return real(*args, **kwargs)

    monkeypatch.setattr(retrying.time, "sleep", waited.append)
    monkeypatch.setattr(tf.io.gfile, "rename", rename)
    path = str(tmp_path / "file")
    keeping.write_text(path, "text")
    assert open(path).read() == "text" and waited == [1, 2]
    assert [r.getMessage() for r in caplog.records if r.name == "root"] == [
        f"warning: {path}: 503 from storage; trying again in {s} s ({n} of 6)"
        for n, s in ((1, 1), (2, 2))]
    failures = 100
    with pytest.raises(tf.errors.UnavailableError):
        keeping.write_text(path, "more")
    assert waited == [1, 2, 1, 2, 4, 8, 16, 32] and open(path).read() == "text"
