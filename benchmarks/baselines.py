"""How well do published models know a text? Loss, perplexity and bits per byte, side by side.

    python benchmarks/baselines.py --data mytext/ --out runs/baselines \\
        --models gpt2 gpt2-medium gpt2-large gpt2-xl

imports each model, encodes the text with the model's own encoder, once for all that share it, and
evaluates. Every stage is a command of this project, which is printed; its output is in <out>/logs.
What is done already is not done again, so a table that was stopped continues.
"""

import argparse
import hashlib
import json
import math
import os
import re
import sys

from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.stages import Stages  # noqa: E402
from configs import markdown, schema  # noqa: E402
from configs.command_line import quiet_libraries  # noqa: E402

quiet_libraries()
from mesh.compat import tf  # noqa: E402
from training import checkpoints  # noqa: E402
from training.updates import SLOTS  # noqa: E402

# Columns of the table: heading, and a format of the model's figures.
COLUMNS = {"model": "{model}", "parameters": "{parameters:,}", "context": "{n_ctx}",
           "loss, nats a token": "{eval_loss:.4f}", "perplexity": "{perplexity:.2f}",
           "bits per byte": "{bits_per_byte:.4f}", "tokens a second": "{tokens_per_sec:.0f}"}


def parse_args(argv=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, nargs="+", metavar="PATH",
                   help="texts, as datasets/create_tfrecords.py takes them")
    p.add_argument("--out", required=True, metavar="DIR", help="where runs, data and results go")
    p.add_argument("--models", nargs="+", metavar="MODEL",
                   default=["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"],
                   help="what main.py --import_from takes, names and paths, or runs (the four "
                        "sizes of GPT-2)")
    p.add_argument("--encoder", help="of models that bring none, as create_tfrecords.py takes it")
    p.add_argument("--batch", type=int, default=1, help="windows at once (%(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                   help="for the evaluations, as main.py takes it")
    args = p.parse_args(argv)
    for path in args.data:  # before the first model is downloaded
        if not tf.io.gfile.exists(path) and not tf.io.gfile.glob(path):
            p.error(f"--data {path}: not found")
    return args


class Baselines:
    """The stages of the table.

    Args:
      args: the command line's.
    """

    def __init__(self, args):
        self._args, self._out = args, os.path.abspath(args.out)
        self._stages = Stages(self._out)
        self._data = [path if "://" in path else os.path.abspath(path) for path in args.data]

    def figures(self, model):
        """What the table says of a model: a dict."""
        run = self._run_of(model)
        encoder = checkpoints.read_record(run).encoder
        spec = encoder["spec"] or self._args.encoder
        if spec is None:
            raise SystemExit(f"{model}: has no encoder; give --encoder")
        data = self._dataset(spec, encoder["hash"] or re.sub(r"\W", "_", spec))
        name = os.path.basename(run)
        self._stages.run(f"evaluate_{name}", "main.py", "--model", run, "--model_path", run,
                         "--eval", "--set", f"datasets={json.dumps([data])}", "--set",
                         f"eval_batch_size={self._args.batch}", "--set", "eval_steps=null",
                         *(part for item in self._args.set for part in ("--set", item)))
        with open(os.path.join(self._out, "logs", f"evaluate_{name}.log")) as file:
            summary = [line for line in file if line.startswith("{")][-1]
        return {"model": model, "parameters": parameters(run), "n_ctx": schema.load(run).n_ctx,
                **json.loads(summary)}

    def _run_of(self, model):
        """The directory of a model's run, which is imported if it is none."""
        if os.path.exists(os.path.join(model, "run.json")):
            return os.path.abspath(model)
        name = re.sub(r"[^\w.@-]+", "_", model.strip("/"))
        run = os.path.join(self._out, "runs", name)
        path = os.path.abspath(model) if os.path.exists(model) else model
        # What an import that was stopped has left is replaced.
        self._stages.run(f"import_{name}", "main.py", "--import_from", path, "--model_path", run,
                         "--new", "--yes")
        return run

    def _dataset(self, spec, name):
        """The JSON of the text as the encoder of a spec has it, all of it for evaluation."""
        key = hashlib.sha256(json.dumps(self._data).encode()).hexdigest()[:8]
        name = f"{name}_{key}"
        folder = os.path.join(self._out, "data", name)
        made, whole = (os.path.join(folder, f"{file}.json") for file in ("made", "evaluation"))
        if not os.path.exists(whole):
            self._stages.run(f"encode_{name}", "datasets/create_tfrecords.py", "--input_dir",
                             *self._data, "--name", "text", "--output_dir", folder, "--encoder",
                             spec, "--write_dataset_config", made, "--overwrite")
            with open(made) as file:
                config = json.load(file)
            with open(whole, "w") as file:
                json.dump({**config, "eval_path": config["path"]}, file)
        return whole


def parameters(run):
    """How many weights a run's language model has, without the rows that pad its tables."""
    config = schema.load(run)
    shapes = tf.train.load_checkpoint(checkpoints.latest(run)).get_variable_to_shape_map()
    weights = {name: shape for name, shape in shapes.items()
               if name.startswith("gpt/") and name.rpartition("/")[2] not in SLOTS}
    return sum(math.prod(config.n_vocab if size == config.n_vocab_padded and
                         name.startswith(("gpt/wte", "gpt/head")) else size for size in shape)
               for name, shape in weights.items())


def table(rows):
    """The models' figures as a table in Markdown."""
    return markdown.table(list(COLUMNS), ([form.format(**row) for form in COLUMNS.values()]
                                          for row in rows))


def main(argv=None):
    """Runs what is missing, then writes and prints the table."""
    args = parse_args(argv)
    baselines = Baselines(args)
    rows = []
    for model in tqdm(args.models, desc="models", disable=None):
        rows.append(baselines.figures(model))
        for name, text in (("results.json", json.dumps(rows, indent=1)),
                           ("results.md", table(rows))):
            with open(os.path.join(args.out, name), "w") as file:
                file.write(text + "\n")
    print(table(rows), flush=True)


if __name__ == "__main__":
    main()
