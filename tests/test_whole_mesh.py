"""The same run on other meshes: the same losses, on slices as the layout says."""

import graphs
import jobs
import numpy as np
import pytest

from configs import schema
from training import run

pytestmark = pytest.mark.slow

KEYS = dict(n_layer=2, n_embd=32, n_ctx=16, train_steps=50, warmup_steps=10, **jobs.DROPOUT)
TWO_ROWS = dict(tokens_per_mb_per_replica=2 * 16)  # of 8, 16 tokens each

# name: (mesh_shape, layout, more keys, the run on one device that it has to equal)
MESHES = {
    "data": ("x:2", "batch:x", {}, "plain"),
    "data and model": ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y", {}, "plain"),
    "width": ("x:2", "embd:x", {}, "plain"),
    "positions": ("x:2", "sequence:x,embed_sequence:x", dict(recompute_grad=True), "plain"),
    "data and keys": ("x:2,y:2", "batch:x,memory_length:y,embd:y", {}, "plain"),
    "parts of heads": ("x:2", "features_per_head:x,vocab:x", dict(position="rotary"), "rotary"),
    "positions and keys": ("x:2,y:2", "sequence:x,memory_length:y", dict(position="rotary"),
                           "rotary"),
    "microbatches of positions": ("x:2,y:2", "batch:x,sequence:y",
                                  dict(tokens_per_mb_per_replica=32), "two microbatches"),
    "recomputed": ("x:4", "batch:x", dict(recompute_grad=True), "plain"),
    "microbatches": ("x:4", "batch:x", dict(tokens_per_mb_per_replica=16), "two microbatches"),
    "microbatches, recomputed": ("x:2,y:2", "batch:x,vocab:y,heads:y",
                                 dict(tokens_per_mb_per_replica=32, recompute_grad=True),
                                 "two microbatches"),
    "experts that share the data's axis": ("x:2", "batch:x,experts:x", {}, "experts"),
    "experts and their parts": ("x:2,y:2", "batch:x,experts:y,heads:y", dict(recompute_grad=True),
                                "experts"),
}
REFERENCES = {"plain": {}, "rotary": dict(position="rotary"),
              "two microbatches": dict(tokens_per_mb_per_replica=64),
              "experts": dict(moe_layers=[1], moe_params={"num_experts": 4, "hidden_size": 32})}

# The first slice of some weights, written down by hand.
SLICES = {
    "data": {"gpt/wte": [264, 32], "gpt/h0/attn/qkv/kernel": [32, 3, 4, 8]},
    "data and model": {"gpt/wte": [132, 32], "gpt/h0/attn/qkv/kernel": [32, 3, 2, 8],
                       "gpt/h1/attn/out/kernel": [2, 8, 32], "gpt/h1/mlp/in/kernel": [32, 64],
                       "gpt/h1/mlp/in/bias": [64], "gpt/h1/mlp/out/kernel": [64, 32],
                       "gpt/wte/adam_v": [132, 32], "gpt/wpe": [16, 32]},
    "width": {"gpt/wte": [264, 16], "gpt/h0/attn/qkv/kernel": [16, 3, 4, 8],
              "gpt/h1/mlp/out/kernel": [128, 16], "gpt/norm_f/gain": [16],
              "gpt/h1/attn/qkv/bias": [3, 4, 8]},
    "positions": {"gpt/wpe": [8, 32], "gpt/h0/attn/qkv/kernel": [32, 3, 4, 8]},
    "data and keys": {"gpt/wte": [264, 16], "gpt/h0/attn/qkv/kernel": [16, 3, 4, 8],
                      "gpt/h1/attn/out/kernel": [4, 8, 16]},
    "experts and their parts": {"gpt/h1/moe/in/kernel": [2, 32, 32]},
    "parts of heads": {"gpt/wte": [132, 32], "gpt/h0/attn/qkv/kernel": [32, 3, 4, 4],
                       "gpt/h0/attn/qkv/bias": [3, 4, 4], "gpt/h1/attn/out/kernel": [4, 4, 32]},
}


class Runner:
    """Trains, and keeps the loss curves and how the graphs were lowered."""

    def __init__(self, directory, monkeypatch):
        self.directory, self._data, self._curves = directory, jobs.dataset(directory), {}
        self.lowered = {}
        self._name = None

        def note(mesh, lowering):
            self.lowered[self._name] = jobs.slice_shapes(mesh, lowering)

        jobs.watch_lowerings(monkeypatch, note)

    def losses(self, name, **keys):
        """The loss of each step of a run; runs of the same name are the same run."""
        if name not in self._curves:
            self._name = name
            path = jobs.config(self.directory, self._data, name=name.replace(" ", "_"),
                               **{**KEYS, **keys})
            config = schema.load(path)
            run.train(config)
            self._curves[name] = jobs.losses(config.model_path)
        return self._curves[name]

    def weights(self, name):
        return jobs.weights(f"{self.directory}/{name.replace(' ', '_')}")


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Runner(tmp_path_factory.mktemp("meshes"), monkeypatch)


@pytest.mark.parametrize("name", MESHES)
def test_loss_curve_equals_one_devices(runner, name):
    mesh_shape, layout, keys, reference = MESHES[name]
    wanted = runner.losses(reference, **REFERENCES[reference])
    if reference == "experts":
        keys = {**REFERENCES[reference], **keys}
    found = runner.losses(name, mesh_shape=mesh_shape, layout=layout, **keys)
    assert len(found) == 50 and found[-5:].mean() < found[0] - 2, "nothing was learnt"
    np.testing.assert_allclose(found, wanted, atol=1e-4)

    devices = int(np.prod([int(axis.split(":")[1]) for axis in mesh_shape.split(",")]))
    for variable, slices in runner.lowered[name].values():
        dims = graphs.slice_shape(variable.shape.dims, mesh_shape, layout)
        assert slices == [dims] * devices, variable.name
    for variable, dims in SLICES.get(name, {}).items():
        assert runner.lowered[name][variable][1][0] == dims, variable


def test_slots_end_as_on_one_device(runner):
    """What is saved of a mesh fits one device: the whole weights, and their moments."""
    for name in ("plain", "data and model"):
        mesh_shape, layout, keys, _ = MESHES.get(name, ("", "", {}, None))
        runner.losses(name, mesh_shape=mesh_shape, layout=layout, **keys)
    one, many = runner.weights("plain"), runner.weights("data and model")
    assert one.keys() == many.keys()
    for name, value in one.items():
        found = many[name]
        if name.endswith("attn/qkv/bias"):
            # The softmax does not feel the keys' bias: what Adam follows there is rounding.
            value, found = value[[0, 2]], found[[0, 2]]
        np.testing.assert_allclose(found, value, atol=5e-4, err_msg=name)


def test_microbatches_change_nothing_but_dropouts_choice(runner):
    off = dict.fromkeys(jobs.DROPOUT, 0.0)
    whole = runner.losses("no dropout", train_steps=15, **off)
    parts = runner.losses("no dropout, microbatches", train_steps=15, **off, **TWO_ROWS)
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    plain = runner.losses("plain")
    assert abs(runner.losses("two microbatches", **REFERENCES["two microbatches"])
               - plain).max() > 1e-2, "dropout was off"
    assert abs(whole - plain[:15]).max() > 1e-2, "dropout was off"


def test_bfloat16_keeps_float32_masters(runner):
    mesh = dict(zip(("mesh_shape", "layout"), MESHES["data and model"][:2], strict=True))
    one = runner.losses("bfloat16", precision="bfloat16")
    many = runner.losses("bfloat16 on a mesh", precision="bfloat16", **mesh)
    plain = runner.losses("plain")
    assert 0 < abs(one - plain).max() < 0.15
    np.testing.assert_allclose(many, one, atol=0.1)
    for name in ("bfloat16", "bfloat16 on a mesh"):
        for variable, value in runner.weights(name).items():
            if variable == "global_step":
                continue
            assert value.dtype == np.float32, variable
            # Had they been rounded to bfloat16 anywhere, the lower half of each would be 0.
            used = value[value != 0]
            assert (used.view(np.uint32) & 0xFFFF != 0).mean() > 0.9, variable
