"""Whole runs of main.py on a tiny dataset, and what is read of them afterwards."""

import contextlib
import dataclasses
import json
import logging
import os
import random
import subprocess
import sys

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tfrecord_runs import ROOT, create_tfrecords

import main
from mesh.compat import tf

# One layer, no evaluation, every step logged.
TINY = dict(n_layer=1, n_head=4, n_embd=16, n_ctx=8, pad_vocab_multiple=8, train_batch_size=8,
            eval_batch_size=8, eval_steps=0, train_steps=4, steps_per_checkpoint=100, iterations=1,
            lr=1e-2, warmup_steps=1, beta2=0.99, weight_decay=0.1, keep=100, sample_tokens=0)
DROPOUT = dict(embed_dropout=0.1, res_dropout=0.2, attn_dropout=0.1)


@dataclasses.dataclass
class Result:
    """What a run of main.py left on its way: exit status and both streams."""

    status: int
    stdout: str
    stderr: str

    @property
    def summary(self):
        """The last line of stdout, which is JSON."""
        assert self.status == 0, self.stderr
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def error(self):
        """The one line with which it refused."""
        assert self.status == 2 and self.stdout == "", self.stdout + self.stderr
        line = self.stderr.splitlines()[-1]
        assert line.startswith("error: ") and "Traceback" not in self.stderr, self.stderr
        return line


def texts(seed=0, count=40):
    """Documents that a model can learn something of: words of a few letters, not all ASCII."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdeé", k=rng.randint(1, 6))) for _ in range(12)]
    return [" ".join(rng.choices(words, k=rng.randint(5, 60))) for _ in range(count)]


def dataset(directory, name="tiny", documents=None, encoder="byte"):
    """Makes a dataset, an eighth of its documents for validation.

    Args:
      directory: a local directory or a path with a scheme; everything goes below it.
      name: the dataset's name.
      documents: its texts, `texts()` if none are given.
      encoder: as create_tfrecords takes it.

    Returns:
      the path of its JSON.
    """
    directory = str(directory)
    tf.io.gfile.makedirs(directory)
    source, config = f"{directory}/{name}_texts.jsonl", f"{directory}/{name}.json"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in documents or texts()]
    with tf.io.gfile.GFile(source, "w") as file:
        file.write("\n".join(lines) + "\n")
    with quiet():
        assert create_tfrecords.main([
            "--input_dir", source, "--name", name, "--output_dir", f"{directory}/{name}",
            "--encoder", encoder, "--chunk_size", "50", "--val_fraction", "0.125",
            "--processes", "1", "--write_dataset_config", config]) == 0
    return config


def config(directory, datasets, **keys):
    """Writes a tiny run's config, whose run lies beside it; returns its path.

    Args:
      directory: where. datasets: the dataset's JSON, or a list of entries.
      keys: keys that differ from TINY; "name" is the file's.
    """
    name = keys.pop("name", "run")
    entries = [[datasets, 1, None, 1.0]] if isinstance(datasets, str) else datasets
    values = {**TINY, "datasets": entries, "model_path": f"{directory}/{name}", **keys}
    path = f"{directory}/{name}.json"
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(values))
    return path


@contextlib.contextmanager
def quiet():
    """Leaves the logging as it was, whatever a main function does to it."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    try:
        yield
    finally:
        logger.handlers[:], logger.level = handlers, level


def here(capsys, path, *flags):
    """Runs main.py in this process, on the config at `path`."""
    capsys.readouterr()
    with quiet():
        status = main.main(["--model", path, *map(str, flags)])
    return Result(status, *capsys.readouterr())


def start(path, *flags, hash_seed=0):
    """Starts main.py in a process of its own, with a seed for Python's hashes."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "main.py"), "--model", path, *map(str, flags)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment)


def process(path, *flags, hash_seed=0):
    """Runs main.py in a process of its own to its end."""
    running = start(path, *flags, hash_seed=hash_seed)
    stdout, stderr = running.communicate(timeout=300)
    return Result(running.returncode, stdout, stderr)


def wait_for(running, text):
    """Reads a process's stderr up to the line that holds `text`; returns all lines read."""
    lines = []
    for line in running.stderr:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} never came:\n{''.join(lines)}")


def steps(model_path):
    """The steps of the checkpoints that lie in a run's directory."""
    return sorted(int(name[len("model.ckpt-"):-len(".index")])
                  for name in tf.io.gfile.listdir(model_path) if name.endswith(".index"))


def weights(model_path, step=None):
    """Everything in a checkpoint, the newest unless told: {name: numpy}."""
    path = (tf.train.latest_checkpoint(model_path) if step is None
            else f"{model_path}/model.ckpt-{step}")
    reader = tf.train.NewCheckpointReader(path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_same_bits(one, other):
    """Checks that two checkpoints hold the same names, types and bytes."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and value.tobytes() == other[name].tobytes(), name


def scalars(directory):
    """What TensorBoard shows of a directory: {tag: {step: value}}."""
    events = _events(directory)
    assert not events.Tags()["scalars"], "written in an older format, by somebody else"
    return {tag: {event.step: float(tf.make_ndarray(event.tensor_proto))
                  for event in events.Tensors(tag)}
            for tag in events.Tags()["tensors"]
            if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"}


def shown_text(directory, tag):
    """A text that TensorBoard shows: {step: Markdown}."""
    return {event.step: tf.make_ndarray(event.tensor_proto).item().decode()
            for event in _events(directory).Tensors(tag)}


def _events(directory):
    return EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()


def losses(directory):
    """The training loss of each step, float32 [steps]."""
    curve = scalars(directory)["loss"]
    assert list(curve) == list(range(1, len(curve) + 1))
    return np.array(list(curve.values()), np.float32)


def metrics(model_path):
    """The lines of a run's metrics.jsonl."""
    with tf.io.gfile.GFile(f"{model_path}/metrics.jsonl") as file:
        return [json.loads(line) for line in file]


def watch_lowerings(monkeypatch, look):
    """Calls look(mtf.Mesh, mtf.Lowering) for each graph that a run in this process lowers."""
    from training import model_fn

    lower = model_fn.lower

    def lower_and_look(config, mesh):
        lowering = lower(config, mesh)
        look(mesh, lowering)
        return lowering

    monkeypatch.setattr(model_fn, "lower", lower_and_look)


def slice_shapes(mesh, lowering):
    """{name: (mtf variable, the shapes of its slices)} of all variables of a lowered graph."""
    return {variable.name: (variable, [piece.shape.as_list() for piece in
                                       lowering.variables[variable].laid_out_tensor.all_slices])
            for variable in mesh.graph.all_variables}
