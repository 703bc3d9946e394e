"""Every shipped config loads and, scaled down, trains in the layout that it asks for."""

import glob
import math
import os

import clip_runs
import graphs
import jobs
import picture_shards
import pytest

from configs import dataset_files, schema
from configs.dataset import DatasetConfig
from training import distillation, run

CONFIGS = sorted(os.path.basename(path) for path in glob.glob(f"{jobs.ROOT}/configs/*.json"))
# A weight of each model that a kind of run holds.
WEIGHTS = {"GPT": ["gpt/h0/mlp/out/kernel"], "clip": ["clip_text/wte", "clip_image/projection"],
           "clip_student": ["clip_student/h1/mlp/out/kernel", "clip_text/wpe"],
           "gpt_c": ["gpt/h1/mlp/out/kernel", "clip_student/h1/mlp/out/kernel"]}
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
        assert dataset_files.path(entry.id) in DATASETS
    assert max(d.n_vocab for d in config.dataset_configs.values()) <= config.n_vocab


@pytest.mark.parametrize("path", DATASETS, ids=os.path.basename)
def test_dataset_says_how_it_is_made(path):
    with open(path, encoding="utf-8") as file:
        dataset = DatasetConfig.from_json(file.read(), path)
    assert dataset.encoder and 0 <= dataset.eos_id < dataset.n_vocab
    assert "create_tfrecords" in dataset.about or "make" in dataset.about


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """{key of the section clip: the run that it names}: a teacher, and a student of two steps."""
    directory = tmp_path_factory.mktemp("others")
    # A context of ten, of which start and end leave room for windows of up to eight.
    found = {"teacher": clip_runs.teacher(directory, vocab=259)}
    shipped = schema.load(f"{jobs.ROOT}/configs/text_clip.json")
    student = scaled_down(shipped, directory, found).replace(mesh_shape="", layout="")
    train(student)
    return {**found, "student": student.model_path}


def train(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "_MEASURED", 100)
        run.train(config)


def pictures(tmp_path):
    """A dataset of 24 pictures, and of 8 for validation."""
    picture_shards.encode(
        tmp_path, "--input", picture_shards.inputs_of(tmp_path, [24]),
        "--val_input", picture_shards.inputs_of(tmp_path, [8], "validation", first=24))
    return str(tmp_path / "p.json")


def scaled_down(config, tmp_path, others, text=None):
    """Two layers, two heads of a GPT, four features a head, two devices an axis (of three axes, one
    device for the first), two rows a replica.

    The learning rate is such that two steps show; all else stays.
    """
    heads = min(2, config.n_head) if config.model == "GPT" else config.n_head
    most = [1 if len(config.mesh) == 3 else 2, 2, 2]
    small = config.replace(
        mesh_shape=",".join(f"{name}:{min(limit, size)}" for limit, (name, size) in zip(
            most, config.mesh, strict=False)), gpu_ids=[])
    keys = dict(
        about="", n_layer=2, n_head=heads, n_embd=4 * heads, n_ctx=8, n_vocab=0, train_steps=2,
        steps_per_checkpoint=2, iterations=1, attention_types=config.attention_types[:2],
        rotary_dims=min(4, config.rotary_dims), train_batch_size=2 * small.batch_split,
        eval_batch_size=2 * small.batch_split, warmup_steps=min(1, config.warmup_steps),
        lr=1e-2, lr_decay_end=None, sample_tokens=0, eval_steps=config.eval_steps and 1,
        # tests/test_training_starting.py is about weights to start from.
        init_from=None, eval_tasks=[], model_path=str(tmp_path / "run"),
        clip=section(config, others),
        datasets=[pictures(tmp_path) if config.model == "clip" else text or jobs.dataset(tmp_path)])
    if config.tokens_per_mb_per_replica:
        keys["tokens_per_mb_per_replica"] = 8  # a row at a time
    return small.replace(**keys)


def section(config, others):
    """The section `clip`, with sizes of tiny pictures, windows and runs."""
    keys = config.clip.model_dump(exclude_unset=True)
    changes = {"clip": {"image_size": picture_shards.SIZE},
               "clip_student": {"window": 4, "windows": 2, "positions": 2}}
    return {**keys, **changes.get(config.model, {}),
            **{key: others[key] for key in ("teacher", "student") if key in keys},
            **({"weight_end": None} if "weight_end" in keys else {}),
            # As many bytes as the window has tokens.
            **({"probe_words": ["red", "blue", "box"]} if "probe_words" in keys else {})}


def loss_of_ignorance(config):
    """What the first step's loss is where weights are random: that of equally likely answers."""
    if config.model == "clip":
        return math.log(config.train_batch_size)
    # Bytes have 257 ids.
    loss = math.log(257 if config.pad_masked else config.n_vocab_padded)
    if config.supervised:
        rows = config.train_batch_size // config.num_microbatches
        positions = min(config.clip.samples // config.train_batch_size, config.n_ctx)
        loss += config.clip.weight * math.log(rows * positions)
    return loss


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """One dataset of text for all."""
    return jobs.dataset(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained():
    """{a scaled-down config's keys: the weights seen and the losses}, for each that was trained.

    The members of a family differ in sizes alone: scaled down, they are one config, trained once.
    """
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_trains_two_steps(name, tmp_path, others, text, trained):
    shipped = schema.load(f"{jobs.ROOT}/configs/{name}")
    config = scaled_down(shipped, tmp_path, others, text)
    assert config.layout == shipped.layout and bool(config.mesh) == bool(shipped.mesh)
    assert (config.num_microbatches > 1) == bool(shipped.tokens_per_mb_per_replica)
    key = config.replace(model_path="any").to_json()
    if key not in trained:
        trained[key] = two_steps(config)
    seen, losses = trained[key]
    for weight in WEIGHTS[config.model]:
        assert weight in seen
    if config.model == "clip_student":
        # Targets have a variance of 1, each of the two steps other ones: so a validation tells.
        assert 0 < jobs.metrics(config.model_path)[-1]["eval_loss"] < losses[0] - 0.5
    else:
        # Nothing is known at first.
        assert losses[0] == pytest.approx(loss_of_ignorance(config), abs=0.3)
        assert losses[1] < losses[0] or config.model == "clip"


def two_steps(config):
    """Trains a scaled-down config; returns the weights that are laid out right, and the losses."""
    seen = []

    def look(mesh, lowering):
        for name, (variable, shapes) in jobs.slice_shapes(mesh, lowering).items():
            wanted = graphs.slice_shape(variable.shape.dims, config.mesh_shape, config.layout)
            assert shapes == [wanted] * config.mesh_size
            seen.append(name)

    with pytest.MonkeyPatch.context() as patch:
        jobs.watch_lowerings(patch, look)
        train(config)
    assert jobs.steps(config.model_path) == [2]
    return seen, jobs.losses(config.model_path)
