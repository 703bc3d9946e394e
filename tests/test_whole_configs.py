"""Every shipped config loads and, scaled down, trains on the mesh that it asks for."""

import glob
import math
import os

import graphs
import jobs
import pytest

from configs import schema
from configs.dataset import DatasetConfig
from training import model_fn, run

CONFIGS = sorted(os.path.basename(path) for path in glob.glob(f"{jobs.ROOT}/configs/*.json"))
DATASETS = sorted(glob.glob(f"{jobs.ROOT}/configs/datasets/*.json"))


def test_there_are_configs():
    assert {"demo.json", "gpt_125M.json", "shakespeare_char.json"} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_says_what_it_is(name):
    """Its command, with its own name, and what comes out."""
    about = schema.load(f"{jobs.ROOT}/configs/{name}").about
    stem = os.path.splitext(name)[0]
    assert f"--model {stem}" in about or f"make {stem}" in about, about
    assert "Expected" in about and "ime" in about


@pytest.mark.parametrize("name", CONFIGS)
def test_its_datasets_are_shipped(name):
    config = schema.load(f"{jobs.ROOT}/configs/{name}")
    for entry in config.datasets:
        assert schema.dataset_path(entry.id) in DATASETS
    assert max(d.n_vocab for d in config.dataset_configs.values()) <= config.n_vocab


@pytest.mark.parametrize("path", DATASETS, ids=os.path.basename)
def test_dataset_says_how_it_is_made(path):
    with open(path, encoding="utf-8") as file:
        dataset = DatasetConfig.from_json(file.read(), path)
    assert dataset.encoder and 0 <= dataset.eos_id < dataset.n_vocab
    assert "create_tfrecords" in dataset.about or "make" in dataset.about


def scaled_down(config, tmp_path):
    """Two layers, four features a head and two rows a replica; all else stays."""
    keys = dict(
        n_layer=2, n_embd=4 * config.n_head, n_ctx=8, train_steps=2, steps_per_checkpoint=2,
        iterations=1, attention_types=config.attention_types[:2],
        train_batch_size=2 * config.batch_split, eval_batch_size=2 * config.batch_split,
        warmup_steps=min(1, config.warmup_steps), lr_decay_end=None, gpu_ids=[], sample_tokens=0,
        eval_steps=config.eval_steps and 1, model_path=str(tmp_path / "run"),
        datasets=[[jobs.dataset(tmp_path), 1, "chunks", 1.0]])
    if config.tokens_per_mb_per_replica:
        keys["tokens_per_mb_per_replica"] = 8  # a row at a time
    return config.replace(**keys)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_trains_two_steps(name, tmp_path, monkeypatch):
    shipped = schema.load(f"{jobs.ROOT}/configs/{name}")
    config = scaled_down(shipped, tmp_path)
    assert (config.mesh_shape, config.layout) == (shipped.mesh_shape, shipped.layout)
    assert (config.num_microbatches > 1) == bool(shipped.tokens_per_mb_per_replica)
    lower, seen = model_fn.lower, []

    def lower_and_look(config, mesh):
        lowering = lower(config, mesh)
        for variable in mesh.graph.all_variables:
            pieces = lowering.variables[variable].laid_out_tensor.all_slices
            wanted = graphs.slice_shape(variable.shape.dims, shipped.mesh_shape, shipped.layout)
            assert [p.shape.as_list() for p in pieces] == [wanted] * config.mesh_size
            seen.append(variable.name)
        return lowering

    monkeypatch.setattr(model_fn, "lower", lower_and_look)
    run.train(config)
    assert "gpt/h1/mlp/out/kernel" in seen
    assert jobs.steps(config.model_path) == [2]
    losses = jobs.losses(config.model_path)
    # Nothing is known at first: the loss is that of equally likely ids, of which bytes have 257.
    assert losses[0] == pytest.approx(math.log(257), abs=0.15) and losses[1] < losses[0]
