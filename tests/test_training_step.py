"""training/step.py: microbatches, recomputation and meshes give the same loss and gradients."""

import functools

import graphs
import numpy as np
import pytest

from mesh import random, slices
from mesh.compat import mtf, tf
from models import gpt, layers, losses
from training import step

TOKENS = np.random.RandomState(0).randint(0, 61, [8, 17]).astype(np.int32)
# Documents of different lengths, so that microbatches differ in their valid positions.
MASK = (np.arange(16) < np.array([16, 9, 1, 0, 16, 12, 3, 7])[:, None]).astype(np.float32)
SEQUENCE = graphs.dim("sequence", 16)
DROPOUT = dict(embed_dropout=0.1, res_dropout=0.2, attn_dropout=0.3)


def weights_of(config):
    """Random weights, larger than initial ones, so that everything matters."""
    fresh = graphs.run(lambda mesh: {"x": features_loss(config, mesh, slice(0, 8), None)})
    generator = np.random.RandomState(1)
    return {name: (w + generator.randn(*w.shape) * 0.15).astype(np.float32)
            for name, w in sorted(fresh.weights.items())}


def give_rows(mesh, rows):
    batch = graphs.dim("batch", len(TOKENS[rows]))
    return {"tokens": graphs.give(mesh, TOKENS[rows, :-1], batch, SEQUENCE),
            "targets": graphs.give(mesh, TOKENS[rows, 1:], batch, SEQUENCE),
            "mask": graphs.give(mesh, MASK[rows], batch, SEQUENCE)}


def loss_of(config, mesh, features, key):
    """The part of the whole batch's mean loss that is due to `features`."""
    ctx = layers.Context(mesh, config, key)
    model = gpt.GPT(config, 61)
    return losses.language_model(model, ctx, model.hidden(ctx, features["tokens"]),
                                 features["targets"], features["mask"]) / MASK.sum()


def features_loss(config, mesh, rows, key):
    return loss_of(config, mesh, give_rows(mesh, rows), key)


@functools.cache
def _weights(n_layer):
    return weights_of(graphs.config(n_layer=n_layer))


@functools.cache
def run(num_microbatches=1, key=7, n_layer=1, **changes):
    """Loss and gradients by training.step, as a graphs.Result."""
    config = graphs.config(n_layer=n_layer, **changes)

    def build(mesh):
        def loss_fn(features, microbatch_key):
            return {"loss": loss_of(config, mesh, features, microbatch_key),
                    "valid": mtf.reduce_sum(features["mask"])}

        values, grads = step.losses_and_gradients(
            give_rows(mesh, slice(0, 8)), loss_fn, graphs.give(mesh, np.int32(key)),
            num_microbatches)
        assert set(values) == {"loss", "valid"}
        names = [v.name for v in mesh.graph.trainable_variables]
        loops = [op for op in mesh.graph.operations if isinstance(op, mtf.WhileLoopOperation)]
        assert len(loops) == (num_microbatches > 1)
        for loop in loops:
            # Neither logits nor activations leave a microbatch.
            assert not [y for y in loop.outputs if SEQUENCE in y.shape.dims]
            assert len(loop.outputs) == 1 + len(values) + len(grads)
        return {**values, **{f"d_{n}": g for n, g in zip(names, grads, strict=True)}}

    return graphs.run(build, config.mesh_shape, config.layout, _weights(n_layer))


def assert_equal(a, b, tolerance=1e-5):
    assert set(a.values) == set(b.values)
    assert any(name.startswith("d_gpt") for name in a.values)
    for name, value in a.values.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(b[name], value, atol=tolerance, err_msg=name)


def test_microbatches_give_the_batchs_loss_and_gradients():
    whole = run()
    assert whole["valid"] == MASK.sum()
    for number in (2, 4):
        assert_equal(whole, run(num_microbatches=number), 2e-6)


def test_a_microbatch_has_its_own_rows_and_dropout_key():
    config = graphs.config(n_layer=1, **DROPOUT)

    def build(mesh):
        key = graphs.give(mesh, np.int32(7))
        return {str(m): features_loss(config, mesh, slice(m, 8, 4), slices.local(
            lambda k, m=m: random.mix(k, m), [key], (key.shape, tf.int32))) for m in range(4)}

    parts = graphs.run(build, weights=_weights(1)).values
    np.testing.assert_allclose(sum(parts.values()),
                               run(num_microbatches=4, **DROPOUT)["loss"], atol=1e-6)


def test_dropout_depends_on_the_key_alone():
    first = run(**DROPOUT)
    assert abs(first["loss"] - run()["loss"]) > 1e-3
    assert abs(first["loss"] - run(key=8, **DROPOUT)["loss"]) > 1e-4
    run.cache_clear()
    again = run(**DROPOUT)
    for name, value in first.values.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.parametrize("number", [1, 2])
def test_recomputation_gives_the_same(number):
    kept, again = (run(number, n_layer=2, recompute_grad=flag, **DROPOUT) for flag in (False, True))
    assert_equal(kept, again, 1e-6)
    if number == 1:  # a loop's operations are in a function graph of its own
        matmuls = [sum("MatMul" in op.type for op in r.operations) for r in (kept, again)]
        assert matmuls[1] >= matmuls[0] + 2 * 5, "blocks were not computed again"


MESHES = [
    ("x:2", "batch:x"),
    ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y"),
    ("x:4", "batch:x"),
    ("x:2,y:2", "batch:x,embd:y"),
    ("x:2,y:2", "embd:x,heads:y,vocab:y"),
    ("x:2", "embed_sequence:x"),
]


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES)
def test_meshes_give_the_same_with_dropout(mesh_shape, layout):
    split = run(mesh_shape=mesh_shape, layout=layout, **DROPOUT)
    assert_equal(run(**DROPOUT), split)
    sizes = {"gpt/wte": [("vocab", 64), ("embd", 32)],
             "gpt/wpe": [("embed_sequence", 16), ("embd", 32)],
             "gpt/h0/attn/out/kernel": [("heads", 4), ("features_per_head", 8), ("embd", 32)],
             "gpt/h0/mlp/in/kernel": [("embd", 32), ("intermediate_expanded", 128)]}
    for name, dims in sizes.items():
        expected = graphs.slice_shape([graphs.dim(*d) for d in dims], mesh_shape, layout)
        assert split.weight_slices[name] == split.slice_shapes[f"d_{name}"] == expected, name


@pytest.mark.slow
@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES[1:2])
def test_microbatches_and_recomputation_on_a_mesh(mesh_shape, layout):
    assert_equal(run(num_microbatches=2, **DROPOUT),
                 run(num_microbatches=2, recompute_grad=True, mesh_shape=mesh_shape, layout=layout,
                     **DROPOUT))


def test_gradients_are_float32_and_near_in_bfloat16():
    exact, rounded = run(), run(precision="bfloat16", mesh_shape="x:2", layout="batch:x")
    np.testing.assert_allclose(rounded["loss"], exact["loss"], rtol=2e-2)
    for name, value in exact.values.items():
        assert rounded[name].dtype == np.float32, name
        if name.endswith("kernel"):
            cosine = (value * rounded[name]).sum() / np.linalg.norm(value) / np.linalg.norm(
                rounded[name])
            assert cosine > 0.99, name
