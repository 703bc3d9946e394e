"""What TensorBoard shows of a run as a whole, read by TensorBoard's own code."""

import re
import subprocess
import sys
import time
import types

import graphs
import jobs
import pytest
import requests
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tfrecord_runs import ROOT

from configs import markdown, schema
from mesh.compat import tf
from training import board, flops, groups, metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps on a mesh of two: its config."""
    directory = tmp_path_factory.mktemp("run")
    path = jobs.config(directory, jobs.dataset(directory), train_steps=2, mesh_shape="x:2",
                       layout="batch:x", peak_flops=1e9)
    assert jobs.process(path).status == 0
    return schema.load(path)


@pytest.fixture(scope="module")
def events(run):
    return EventAccumulator(run.model_path, size_guidance={"tensors": 0}).Reload()


def test_the_page_of_curves_shows_the_tags_that_are_written(run, events):
    value, = events.Tensors("custom_scalars__config__")
    page = layout_pb2.Layout.FromString(tf.make_ndarray(value.tensor_proto).item())
    titles = [category.title for category in page.category]
    assert titles == list(board.PAGE)
    patterns = [tag for category in page.category for chart in category.chart
                for tag in chart.multiline.tag]
    shown = {tag for tag in jobs.scalars(run.model_path)
             if any(re.match(pattern, tag) for pattern in patterns)}
    assert set(jobs.scalars(run.model_path)) - shown == {"parameter_norm", "bits_per_decoded_byte"}


def test_hparams_compare_runs(run, events):
    assert events.Tags()["tensors"].count(metadata.EXPERIMENT_TAG) == 1

    def content(tag):
        return events.SummaryMetadata(tag).plugin_data.content

    started = metadata.parse_session_start_info_plugin_data(
        content(metadata.SESSION_START_INFO_TAG))
    assert started.hparams["lr"].number_value == run.lr
    assert started.hparams["mesh_shape"].string_value == "x:2"
    experiment = metadata.parse_experiment_plugin_data(content(metadata.EXPERIMENT_TAG))
    assert {info.name for info in experiment.hparam_infos} == set(started.hparams)
    assert ("eval", "loss/lm") in {(info.name.group, info.name.tag)
                                   for info in experiment.metric_infos}


def test_tables_of_config_mesh_and_data(run):
    text, = jobs.shown_text(run.model_path, "mesh").values()
    assert text.splitlines()[-1] == "| x | 2 | batch |"
    assert f"| train_batch_size | {run.train_batch_size} | file |" in jobs.shown_text(
        run.model_path, "config")[0]
    assert "| tokens | 4,107 |" in jobs.shown_text(run.model_path, "data")[0]


def test_cells_of_a_table_do_not_end_it():
    assert markdown.table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"


def test_the_layout_is_a_picture(run, events):
    value, = events.Tensors("layout")
    _, _, png = tf.make_ndarray(value.tensor_proto)
    assert png.startswith(b"\x89PNG") and len(png) > 10_000


def test_utilisation_is_the_share_of_the_peak(run):
    shown = jobs.scalars(run.model_path)
    weights = sum(value.size for name, value in jobs.weights(run.model_path).items()
                  if "/adam_" not in name and name not in ("global_step", "gpt/wpe"))
    of_token = 6 * weights + 12 * run.n_layer * run.n_ctx * run.n_embd
    assert shown["mfu"] == {step: pytest.approx(rate * of_token / 2e9)
                            for step, rate in shown["tokens_per_second"].items()}


def test_there_is_no_utilisation_without_a_peak(tmp_path):
    assert flops.peak(graphs.config()) is None
    assert flops.peak(graphs.config(peak_flops=2.0, mesh_shape="x:2")) == 4.0
    assert flops.peak_of("NVIDIA A100-SXM4-40GB") == 312e12
    assert flops.peak_of("NVIDIA A10G") == 70e12 and flops.peak_of("Tesla V100-SXM2") == 125e12
    assert flops.peak_of("Quadro") is None


@pytest.mark.parametrize("name, group", [
    ("gpt/wte", "embeddings"), ("gpt/wpe", "embeddings"), ("gpt/h11/attn/qkv/kernel", "attention"),
    ("gpt/h0/mlp/in/bias", "mlp"), ("gpt/h/mlp_macaron/out/kernel", "mlp"),
    ("gpt/h1/moe/router/kernel", "experts"), ("gpt/h0/norm_1/gain", "norms"),
    ("gpt/norm_f/bias", "norms"), ("gpt/h0/mlp/rezero", "norms"), ("gpt/head/kernel", "head"),
    ("clip_head/last/projection/kernel", "clip_projection"),
    ("gpt/clip_input/norm/gain", "clip_projection"), ("clip_head/2/norm/gain", "clip_projection"),
    ("clip_student/projection/kernel", "head"), ("clip_text/projection", "head"),
    ("clip_image/conv0/kernel", "convolutions"), ("clip_image/patch", "embeddings"),
    ("clip/logit_scale", "other")])
def test_groups_of_weights(name, group):
    assert groups.group_of(name) == group


def test_a_loss_that_is_no_likelihood_has_no_perplexity(tmp_path):
    config = graphs.config(label_smoothing=0.1)
    writer = metrics.Writer(str(tmp_path))
    meter = metrics.Meter(config, some_facts(), writer)
    meter.start_clock(0)
    meter.log(1, {"loss": 1.0, "loss/lm": 1.0, "learning_rate": 1.0})
    writer.close()
    assert "perplexity" not in jobs.scalars(tmp_path)


def some_facts():
    return types.SimpleNamespace(tokens=1, bytes=1, decoded_bytes=1, windows=None)


def test_tensorboard_opens_on_the_page_of_curves(run):
    """It opens on the first page of its list that is enabled."""
    command = [sys.executable, "-m", "training.open_board", "--logdir", run.model_path,
               "--port", "0", "--host", "127.0.0.1", "--load_fast", "false"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = next(filter(None, (re.search(r"http://\S+", line) for line in server.stderr)))
            session = requests.Session()
            session.trust_env = False
            until, first = time.monotonic() + 60, None
            while first != "custom_scalars" and time.monotonic() < until:
                listed = session.get(f"{address[0]}data/plugins_listing", timeout=60).json()
                first = next((name for name, facts in listed.items() if facts["enabled"]), None)
                time.sleep(0.5)
            assert first == "custom_scalars" and {"timeseries", "projector"} < set(listed)
        finally:
            server.terminate()
