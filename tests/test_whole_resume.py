"""A run that is stopped and goes on equals one that was not, to the bit."""

import signal

import jobs
import numpy as np
import pytest

from mesh.compat import tf

pytestmark = pytest.mark.slow


def test_kill_9_and_resume_equals_100_steps_straight(tmp_path):
    """Three processes with other hash seeds; the epoch ends after step 64; dropout is on."""
    data = jobs.dataset(tmp_path)
    keys = dict(n_layer=2, train_steps=100, warmup_steps=10, **jobs.DROPOUT)
    straight = jobs.config(tmp_path, data, name="straight", **keys)
    broken = jobs.config(tmp_path, data, name="broken", steps_per_checkpoint=20, **keys)
    killed = jobs.start(broken, hash_seed=1)
    jobs.wait_for(killed, "step  65/100")
    killed.send_signal(signal.SIGKILL)
    stdout, _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL and stdout == ""
    assert jobs.steps(tmp_path / "broken") == [20, 40, 60]

    resumed = jobs.process(broken, hash_seed=2)
    assert f"going on from step 60 of {tmp_path}/broken" in resumed.stderr
    assert "step   1/100" not in resumed.stderr and "step  61/100" in resumed.stderr
    assert jobs.process(straight, hash_seed=3).summary["step"] == 100
    weights = jobs.weights(tmp_path / "straight", 100)
    assert {"gpt/wte", "gpt/wte/adam_m", "gpt/h1/attn/qkv/kernel/adam_v", "global_step"} < set(
        weights)
    jobs.assert_same_bits(weights, jobs.weights(tmp_path / "broken", 100))
    curve = jobs.losses(tmp_path / "straight")
    assert jobs.losses(tmp_path / "broken").tobytes() == curve.tobytes() and len(curve) == 100
    assert curve[-10:].mean() < curve[:10].mean() / 2, "nothing was learnt"


@pytest.mark.parametrize("keys", [
    dict(mesh_shape="x:2", layout="batch:x", tokens_per_mb_per_replica=16, opt_name="adafactor"),
    dict(mesh_shape="x:2", layout="heads:x,vocab:x", recompute_grad=True, precision="bfloat16")])
def test_a_mesh_resumes_to_the_bit(tmp_path, capsys, keys):
    data = jobs.dataset(tmp_path)
    keys = {"train_steps": 8, **jobs.DROPOUT, **keys}
    straight = jobs.config(tmp_path, data, name="straight", **keys)
    stopped = jobs.config(tmp_path, data, name="stopped", steps_per_checkpoint=5, **keys)
    for path in (straight, stopped):
        assert jobs.here(capsys, path).summary["step"] == 8
    weights = jobs.weights(tmp_path / "straight")
    jobs.assert_same_bits(weights, jobs.weights(tmp_path / "stopped"))
    start = jobs.weights(tmp_path / "stopped", 5)
    assert all((start[name] != value).any() for name, value in weights.items())


@pytest.mark.parametrize("keys", [
    {}, {"mlm_training": True, "opt_name": "adafactor"},
    {"moe_layers": [0], "moe_params": {"num_experts": 4}, "recompute_grad": True}],
    ids=["gpt", "mlm", "moe"])
def test_another_mesh_goes_on_within_float_error(tmp_path, capsys, keys):
    """One device throughout; and two that split the batch, then two that split the model."""
    data = jobs.dataset(tmp_path)
    keys = dict(train_steps=6, lr_decay="constant", **jobs.DROPOUT, **keys)
    straight = jobs.config(tmp_path, data, name="straight", **keys)
    moved = jobs.config(tmp_path, data, name="moved", **keys)
    jobs.here(capsys, straight)
    jobs.here(capsys, moved, "--set", "mesh_shape=x:2", "--set", "layout=batch:x", "--set",
              "train_steps=3")
    result = jobs.here(capsys, moved, "--set", "mesh_shape=x:2", "--set",
                       "layout=heads:x,vocab:x")
    assert "going on from step 3" in result.stderr and result.summary["step"] == 6
    np.testing.assert_allclose(jobs.losses(tmp_path / "moved"), jobs.losses(tmp_path / "straight"),
                               atol=1e-4)


def test_data_go_on_where_the_batch_size_changes(tmp_path, capsys):
    """With a learning rate of 0, a loss tells which windows a step saw.

    64 windows are an epoch. 7 steps of 8 windows and 5 of 3, of which one lies over the epoch's
    end, have to see what 71 steps of one window see.
    """
    data = jobs.dataset(tmp_path)
    keys = dict(n_ctx=64, lr=0.0, initializer_range=0.5)
    single = jobs.config(tmp_path, data, name="single", train_batch_size=1, train_steps=71, **keys)
    changed = jobs.config(tmp_path, data, name="changed", train_batch_size=8, train_steps=7, **keys)
    jobs.here(capsys, single)
    each = jobs.losses(tmp_path / "single")
    jobs.here(capsys, changed)
    result = jobs.here(capsys, changed, "--set", "train_batch_size=3", "--set", "train_steps=12")
    assert "train_batch_size was 8 and is 3: the data go on at window 56" in result.stderr
    wanted = [*each[:56].reshape(7, 8).mean(1), *each[56:].reshape(5, 3).mean(1)]
    np.testing.assert_allclose(jobs.losses(tmp_path / "changed"), wanted, atol=2e-6)
    assert len(set(each[:64])) == 64 and set(each[64:]) < set(each[:64])
    assert each.std() > 1e-2, "windows cannot be told apart"


def test_a_crash_while_saving_leaves_the_checkpoint_before(tmp_path, capsys, monkeypatch):
    data = jobs.dataset(tmp_path)
    path = jobs.config(tmp_path, data, train_steps=2)
    jobs.here(capsys, path)
    before = jobs.weights(tmp_path / "run", 2)

    def crash(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(
            None, None, "run/model.ckpt-4.data-00000-of-00001; No space left on device")

    monkeypatch.setattr(tf.train.Saver, "save", crash)
    result = jobs.here(capsys, path, "--set", "train_steps=4")
    assert result.status == 2 and result.stderr.splitlines()[-1] == (
        "error: run/model.ckpt-4.data-00000-of-00001; No space left on device; see to the path, "
        "its permissions, free space and memory")
    monkeypatch.undo()
    jobs.assert_same_bits(before, jobs.weights(tmp_path / "run"))
    assert jobs.here(capsys, path, "--set", "train_steps=4").summary["step"] == 4
    assert "going on" not in jobs.here(capsys, path, "--new", "--yes").stderr
