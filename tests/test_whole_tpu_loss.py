"""A run or sampling whose TPU goes away goes on when it is there again, to the bit.

The TPU API is tests/tpu_api.py's server; the steps run on this machine's processor.
"""

import jobs
import pytest
import tpu_api
from tensorflow.python.client import session
from test_mesh_cloud import changed, world  # noqa: F401 (a fixture)

from configs import schema
from mesh import cloud
from mesh.compat import tf
from training import estimators, predictions, predictor, run

pytestmark = pytest.mark.slow

MESH = dict(mesh_shape="x:2", layout="batch:x")


@pytest.fixture
def losses(monkeypatch):
    """{number of a step, over all tries, from when one is put in: what happens after it}.

    An entry is taken out when that has happened.
    """
    to_come, seen, real = {}, [0], session.BaseSession.run

    def run_and_lose(self, fetches, *args, **kwargs):
        out = real(self, fetches, *args, **kwargs)
        # A step, with what hooks fetch.
        if to_come and isinstance(fetches, dict) and "caller" in fetches:
            seen[0] += 1
            if seen[0] in to_come:
                to_come.pop(seen[0])()
                raise tf.errors.UnavailableError(None, None, "Socket closed")
        return out

    monkeypatch.setattr(session.BaseSession, "run", run_and_lose)
    return to_come


@pytest.mark.parametrize("recreate", [None, ""], ids=["waiting", "recreating"])
def test_a_run_goes_on_when_its_tpu_is_back(tmp_path, monkeypatch, capsys, caplog,
                                            world, losses, recreate):  # noqa: F811
    data = jobs.dataset(tmp_path)
    keys = dict(MESH, train_steps=6, steps_per_checkpoint=4, eval_steps=1, **jobs.DROPOUT)
    straight = jobs.config(tmp_path, data, name="straight", **keys)
    faulty = schema.load(jobs.config(tmp_path, data, name="faulty", **keys))
    assert jobs.here(capsys, straight).status == 0

    made, make = [], estimators.make

    def make_here(config, objective, meter, tpu=None, start=None, hosts=None):
        made.append(tpu.resolver.master())
        return make(config, objective, meter, None, start, hosts)

    def preempt():
        world.nodes["ours"]["state"] = "PREEMPTED"
        if recreate is None:  # somebody else makes it anew, elsewhere
            world.nodes["ours"]["then"] = [
                {}, None, {"state": "CREATING"},
                {**tpu_api.READY, "networkEndpoints": [{"ipAddress": "192.0.2.2", "port": 8470}]}]

    monkeypatch.setattr(estimators, "make", make_here)
    monkeypatch.setattr(cloud, "_count_cores", lambda name, resolver: 2)
    world.nodes["ours"] = {**tpu_api.READY, **tpu_api.SPECIAL, "acceleratorType": "v4-2"}
    tpu = cloud.find("ours", None, None, 2, recreate)
    caplog.clear()
    # In the first leg, in its second try, of which the TPU knows nothing, and in the second leg.
    losses.update({3: preempt, 5: lambda: None, 11: preempt})
    with jobs.quiet():
        run.train(faulty, tpu=tpu)
    assert not losses
    assert caplog.text.count("was lost, and is there again; going on from the last checkpoint") == 2
    assert "warning: training: Socket closed; trying again in 1 s (1 of 6)" in caplog.text
    assert "its state is PREEMPTED" in caplog.text and "Traceback" not in caplog.text
    if recreate is None:
        assert not world.changes and made[-1] == "grpc://192.0.2.2:8470" != made[0]
    else:
        assert changed(world) == [("delete", "ours"), ("create", "ours")] * 2
    assert len(made) == 4  # at first, and after each loss
    assert jobs.metrics(faulty.model_path)[-1]["step"] == 6
    jobs.assert_same_bits(jobs.weights(tmp_path / "straight"), jobs.weights(faulty.model_path))


def test_sampling_goes_on_when_its_tpu_is_back(tmp_path, monkeypatch, capsys, caplog,
                                               world):  # noqa: F811
    path = jobs.config(tmp_path, jobs.dataset(tmp_path), **MESH)
    jobs.here(capsys, path)
    config, made = schema.load(path), []
    prompts = dict(prompts=["ab", "c"], num_samples=2, max_new_tokens=5)
    with jobs.quiet():
        predictions.predict(config, **prompts)
    wanted = capsys.readouterr().out

    class Losing(predictor.Predictor):
        def generate(self, *args, **kwargs):
            samples = super().generate(*args, **kwargs)
            yield next(samples)
            if len(made) == 1:
                world.nodes["ours"]["state"] = "PREEMPTED"
                world.nodes["ours"]["then"] = [{}, {"state": "CREATING"}, tpu_api.READY]
                raise tf.errors.UnavailableError(None, None, "Socket closed")
            yield from samples

    def make(config, encoder, steps, tpu):
        made.append(tpu.resolver.master())
        return Losing(config, encoder, steps)

    monkeypatch.setattr(predictions, "_predictor", make)
    monkeypatch.setattr(cloud, "_count_cores", lambda name, resolver: 2)
    world.nodes["ours"] = {**tpu_api.READY, **tpu_api.SPECIAL, "acceleratorType": "v4-2"}
    tpu = cloud.find("ours", None, None, 2, None)
    with jobs.quiet():
        predictions.predict(config, tpu=tpu, **prompts)
    assert len(made) == 2 and capsys.readouterr().out == wanted
    assert "was lost, and is there again" in caplog.text
