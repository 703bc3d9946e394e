"""Seconds until main.py has shown its help, taken the first training step, given the first sample.

    python benchmarks/start.py

Each is a process of its own, timed from its start until it says so. Beside them, in this process:
a prompt answered by a predictor that waits for prompts, and as GPT-Neo answers it, by a graph that
is built, and weights that are read, anew for each prompt.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks import in_turn  # noqa: E402


def parse_args(argv=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", metavar="CONFIG", default="demo", help="that starts (%(default)s)")
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                   help="override a key of the config, such as n_layer=6; may be repeated")
    p.add_argument("--new", type=int, default=32, help="new tokens of a sample (%(default)s)")
    in_turn.add_flags(p, 3)
    return p.parse_args(argv)


def until(command, stream, seen):
    """Starts main.py, and ends it once it has said something.

    Args:
      command: its arguments.
      stream: "stdout" or "stderr".
      seen: from a line of that to whether it is what is waited for.

    Raises:
      SystemExit: it never was.
    """
    with tempfile.TemporaryFile() as rest:
        pipes = {"stdout": rest, "stderr": rest, stream: subprocess.PIPE}
        with subprocess.Popen([sys.executable, os.path.join(ROOT, "main.py"), *command],
                              **pipes) as process:
            lines = []
            for line in getattr(process, stream):
                lines.append(line)
                if seen(line):
                    process.kill()
                    return
        rest.seek(0)
        raise SystemExit((b"".join(lines) + rest.read()).decode()[-2000:])


def write_data(directory):
    """A dataset of the world's texts in bytes; returns its JSON."""
    from benchmarks.encoding import write_world

    text, config = os.path.join(directory, "world.jsonl"), os.path.join(directory, "world.json")
    write_world(text, 0.3)
    subprocess.run([sys.executable, os.path.join(ROOT, "datasets", "create_tfrecords.py"),
                    "--input_dir", text, "--name", "world", "--encoder", "byte", "--output_dir",
                    directory, "--write_dataset_config", config], check=True, capture_output=True)
    return config


def train(args, data, run):
    """Takes the first step, and ends."""
    until(_flags(args, data, run), "stderr", lambda line: re.match(rb"step +1/", line))


def predict(args, data, run):
    """Gives a sample, and ends."""
    until([*_flags(args, data, run), "--predict", "--prompt", "there is", "--max_new_tokens",
           str(args.new)], "stdout", bool)


def _flags(args, data, run):
    settings = [f"datasets={json.dumps([data])}", "eval_steps=0", *args.set]
    return ["--model", args.model, "--model_path", run,
            *(part for setting in settings for part in ("--set", setting))]


def answer(predictor, new):
    """A sample of a predictor."""
    return list(predictor.generate([predictor.encoder.encode("there is")], 1, new))


def measure(args, directory):
    """{what: seconds of each round}."""
    data, run = write_data(directory), os.path.join(directory, "run")
    # Something to sample from: a run of one step.
    subprocess.run([sys.executable, os.path.join(ROOT, "main.py"), *_flags(args, data, run),
                    "--set", "train_steps=1", "--set", "warmup_steps=0"], check=True,
                   capture_output=True)

    def first_step():
        train(args, data, os.path.join(directory, f"run_{time.time_ns()}"))

    found = in_turn.timed({
        "--help": lambda: subprocess.run([sys.executable, os.path.join(ROOT, "main.py"), "--help"],
                                         check=True, capture_output=True),
        "first training step": first_step,
        "first sample": lambda: predict(args, data, run)}, args.rounds, "processes", warm=0)

    from configs import schema
    from training import checkpoints, predictor

    config = schema.load(args.model, [f"datasets={json.dumps([data])}", *args.set],
                         {"model_path": run})
    encoder = checkpoints.encoder_of(config)

    def anew():
        model = predictor.Predictor(config, encoder, args.new)
        answer(model, args.new)
        model.close()

    waiting = predictor.Predictor(config, encoder)
    found.update(in_turn.timed({"a prompt more": lambda: answer(waiting, args.new),
                                "a prompt more, all built anew": anew}, args.rounds, "prompts"))
    waiting.close()
    if args.profile:
        with in_turn.profiled(args.profile):
            anew()
    return found


def main(argv=None):
    """Measures and prints."""
    args = parse_args(argv)
    load = in_turn.begin(args.threads)
    from configs.command_line import quiet_libraries

    quiet_libraries()
    with tempfile.TemporaryDirectory() as directory:
        seconds = measure(args, directory)
    in_turn.show(["until", "seconds"],
                 [[name, f"{statistics.median(rounds):.2f}"] for name, rounds in seconds.items()],
                 {"model": args.model, "threads": args.threads, "load_before": load,
                  "rounds": seconds,
                  "medians": {name: statistics.median(rounds) for name, rounds in seconds.items()},
                  "ratio": statistics.median(seconds["a prompt more, all built anew"])
                  / statistics.median(seconds["a prompt more"])})


if __name__ == "__main__":
    main()
