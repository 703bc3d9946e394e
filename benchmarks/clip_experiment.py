"""Does CLIP's knowledge of looks help a language model? The whole story, from nothing to a table.

    python benchmarks/clip_experiment.py --data data/demo --out runs/demo

makes the picture-caption world, trains CLIP on it and a student of CLIP, and then language models
with and without supervision, all with the same data, steps and seeds: a row of the table each.
Every stage is a command of this project, which is printed; its output is in <out>/logs. What is
done already is not done again, so a run that was stopped continues.
"""

import argparse
import concurrent.futures
import json
import os
import shlex
import subprocess
import sys
import time

from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

# Sizes of language models: keys of their configs.
SIZES = {"2x64": {"n_layer": 2, "n_embd": 64, "n_head": 2}, "4x128": {},
         "6x192": {"n_layer": 6, "n_embd": 192, "n_head": 6}}

# The rows of the table: (name, what is said of it, changes to configs/demo_gptc.json). {student}
# is the trained student, {random} one whose teacher was never trained.
ROWS = {
    "gpt_bytes": ("GPT, GPT-2-style byte-level tokenizer", {"model": "GPT", "clip": {}}),
    "gpt": ("GPT, CLIP-style tokenizer", {"model": "GPT", "clip": {}}),
    "gptc": ("GPT-C", {"clip.student": "{student}"}),
    "gptc_random": ("GPT-C, random teacher", {"clip.student": "{random}"}),
    "gptc_input": ("GPT-C, student as input", {
        "clip": {"student": "{student}", "mode": "input"}}),
    "gptc_shuffled": ("GPT-C, student reads another row", {
        "clip.student": "{student}", "clip.control": "shuffled"}),
    "gptc_input_random": ("GPT-C, random student as input", {
        "clip": {"student": "{random}", "mode": "input"}}),
}
PROMPT = "there is a rose hoop and a"
DEMO_ROWS = ["gpt_bytes", "gpt", "gptc", "gptc_random", "gptc_input"]


def parse_args(argv=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, metavar="DIR", help="where pictures and texts go")
    p.add_argument("--out", required=True, metavar="DIR", help="where runs and results go")
    p.add_argument("--seeds", type=int, default=2, help="language models of each row (%(default)s)")
    p.add_argument("--teachers", type=int, default=1,
                   help="random teachers; seeds take turns with them (%(default)s)")
    p.add_argument("--sizes", nargs="+", default=["4x128"], choices=sorted(SIZES))
    p.add_argument("--texts", type=int, nargs="+", default=[600], metavar="N",
                   help="amounts of training texts (%(default)s)")
    p.add_argument("--rows", nargs="+", default=DEMO_ROWS, choices=sorted(ROWS), metavar="ROW",
                   help=f"rows of the table: {', '.join(ROWS)}")
    p.add_argument("--steps", type=int, default=300, help="of a language model (%(default)s)")
    p.add_argument("--evaluations", type=int, default=1,
                   help="of a language model, the best of which counts (%(default)s)")
    p.add_argument("--pictures", type=int, default=20000, help="for CLIP (%(default)s)")
    p.add_argument("--facts", type=float, default=0.3,
                   help="share of texts that state how something looks (%(default)s)")
    p.add_argument("--items", choices=("dev", "test"), default="test",
                   help="cloze items: dev to choose settings by, test for figures (%(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                   help="for all language models, as main.py takes it")
    p.add_argument("--set_clip", action="append", default=[], metavar="KEY=VALUE",
                   help="for CLIP runs")
    p.add_argument("--set_student", action="append", default=[], metavar="KEY=VALUE",
                   help="for students")
    p.add_argument("--jobs", type=int, default=2, help="trainings at once (%(default)s)")
    p.add_argument("--quick", action="store_true",
                   help="the same in small, too short to learn much")
    args = p.parse_args(argv)
    if args.quick:
        args.pictures, args.texts = min(args.pictures, 1000), [min(n, 200) for n in args.texts]
        args.seeds = 1
        args.set_clip += ["train_steps=15", "steps_per_checkpoint=15", "warmup_steps=5"]
        args.set_student += ["train_steps=20", "steps_per_checkpoint=20", "warmup_steps=5"]
        args.steps = 20
        args.set += ["warmup_steps=5", "n_layer=2"]
    return args


class Stages:
    """Runs commands, each once: a stage that left its mark is not run again.

    Args:
      out: the output directory; output and marks go to its `logs`.
    """

    def __init__(self, out):
        self._logs = os.path.join(out, "logs")
        os.makedirs(self._logs, exist_ok=True)

    def run(self, name, *command, threads=0):
        """Runs a Python script of the project unless it was done before.

        Args:
          name: of the stage; its output goes to logs/<name>.log.
          command: the script's path below the project's root, and its arguments.
          threads: TensorFlow's threads; 0 is its own choice.

        Raises:
          SystemExit: it failed; shows the end of its output.
        """
        done, log = (os.path.join(self._logs, f"{name}.{end}") for end in ("done", "log"))
        line = shlex.join(["python", *map(str, command)])
        if os.path.exists(done) and open(done).read() == line:
            return
        tqdm.write(line, file=sys.stderr)
        limits = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads),
                  "OMP_NUM_THREADS": str(threads)} if threads else {}
        with open(log, "w") as file:
            status = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=file,
                                    stderr=subprocess.STDOUT, env={**os.environ, **limits})
        if status.returncode:
            tail = "".join(open(log).readlines()[-5:])
            raise SystemExit(f"{line}\nfailed; the end of {log}:\n{tail}")
        with open(done, "w") as file:
            file.write(line)


class Experiment:
    """The stages in their order."""

    def __init__(self, args):
        self.args = args
        self.out, self._data = os.path.abspath(args.out), os.path.abspath(args.data)
        self.stages = Stages(self.out)

    def path(self, *parts):
        """A path below the data's directory."""
        return os.path.join(self._data, *parts)

    def run_path(self, name):
        """The directory of a run."""
        return os.path.join(self.out, name)

    def make_data(self):
        """The world, a tokenizer of each kind, pictures and texts as TFRecords."""
        world, most = self.path("world"), max(self.args.texts)
        self.stages.run("world", "datasets/scenes.py", "--out", world, "--overwrite", "--pictures",
                        self.args.pictures, "--texts", most, "--val_texts", 400,
                        "--heldout_texts", 400, "--facts", self.args.facts)
        for tokens, kind in (("clip", "clip"), ("bytes", "bbpe")):
            self.stages.run(f"tokenizer_{tokens}", "datasets/train_tokenizer.py",
                            f"{world}/texts_train.jsonl", "--tokenizer", kind, "--vocab_size", 1024,
                            "--out", self.path(f"{tokens}.json"), "--overwrite")
        self.stages.run("pictures", "datasets/encode_captions.py", "--input",
                        f"{world}/pictures_train_*.tfrecords", "--val_input",
                        f"{world}/pictures_val_*.tfrecords", "--name", "pictures", "--output_dir",
                        self.path("pictures"), "--encoder", self.path("clip.json"), "--overwrite",
                        "--write_dataset_config", self.path("pictures.json"))
        for tokens in ("clip", "bytes"):
            for number in self.args.texts:
                self._make_texts(tokens, number)

    def _make_texts(self, tokens, number):
        """The first texts of the world as a dataset, with the validation texts beside them."""
        folder, lines = self.path(f"texts_{number}"), []
        os.makedirs(folder, exist_ok=True)
        with open(self.path("world", "texts_train.jsonl")) as file:
            lines = [line for _, line in zip(range(number), file, strict=False)]
        with open(f"{folder}/train.jsonl", "w") as file:
            file.writelines(lines)
        config = {}
        for split, source in (("train", f"{folder}/train.jsonl"),
                              ("validation", self.path("world", "texts_val.jsonl"))):
            name = f"{tokens}_{split}"
            self.stages.run(f"texts_{number}_{name}", "datasets/create_tfrecords.py", "--input_dir",
                            source, "--name", name, "--output_dir", folder, "--encoder",
                            self.path(f"{tokens}.json"), "--chunk_size", 512, "--overwrite",
                            "--write_dataset_config", f"{folder}/{name}.json", "--processes", 1)
            with open(f"{folder}/{name}.json") as file:
                config[split] = json.load(file)
        both = {**config["train"], "eval_path": config["validation"]["path"]}
        with open(self.dataset(tokens, number), "w") as file:
            json.dump(both, file, indent=1)

    def dataset(self, tokens, number):
        """The dataset config of an amount of texts in a tokenizer's tokens."""
        return self.path(f"texts_{number}", f"{tokens}.json")

    def train(self, name, config, changes, threads=0):
        """A run of main.py in <out>/<name>."""
        flags = [flag for change in changes for flag in ("--set", change)]
        self.stages.run(name, "main.py", "--model", config, "--model_path", self.run_path(name),
                        *flags, threads=threads)

    def make_students(self):
        """CLIP, teachers that were never trained, and a student of each."""
        pictures = f'datasets=["{self.path("pictures.json")}"]'
        self.train("clip", "demo_clip", [pictures, *self.args.set_clip])
        names = ["clip"]
        for number in range(self._randoms()):
            names.append(f"random{number}")
            self.train(names[-1], "demo_clip", [
                pictures, f"seed={100 + number}", "train_steps=1", "steps_per_checkpoint=1",
                "warmup_steps=0", "lr=0", "eval_steps=1"])
        # A student reads the largest amount of text, whose first part the smaller ones are.
        texts = f'datasets=["{self.dataset("clip", max(self.args.texts))}"]'
        self.together([(name.replace("clip", "student").replace("random", "student_random"),
                        "demo_student", [
            texts, f"clip.teacher={self.run_path(name)}", *self.args.set_student])
            for name in names])

    def _randoms(self):
        return self.args.teachers if any("random" in row for row in self.args.rows) else 0

    def make_language_models(self):
        """Every row at every size, amount of text and seed."""
        self.together([job for size in self.args.sizes for number in self.args.texts
                       for seed in range(1, self.args.seeds + 1) for row in self.args.rows
                       for job in [self._language_model(row, size, number, seed)]])

    def _language_model(self, row, size, number, seed):
        """(name, config, changes) of a run."""
        tokens = "bytes" if row == "gpt_bytes" else "clip"
        students = {"student": self.run_path("student")}
        if self.args.teachers:
            students["random"] = self.run_path(
                f"student_random{(seed - 1) % self.args.teachers}")
        steps = self.args.steps
        changes = [f'datasets=["{self.dataset(tokens, number)}"]', f"seed={seed}",
                   f"train_steps={steps}", "sample_tokens=0",
                   f"steps_per_checkpoint={-(-steps // self.args.evaluations)}"]
        tasks = [self.path("world", f"{name}.jsonl")
                 for name in (f"statements_{self.args.items}", f"cloze_{self.args.items}",
                              "texts_heldout")]
        changes.append(f"eval_tasks={json.dumps(tasks)}")
        supervised = {"clip.weight_end": steps} if "clip.student" in ROWS[row][1] else {}
        for key, value in {**ROWS[row][1], **supervised, **SIZES[size]}.items():
            text = value if isinstance(value, str) else json.dumps(value)
            for name, path in students.items():
                text = text.replace("{" + name + "}", path)
            changes.append(f"{key}={text}")
        return run_name(row, size, number, seed), "demo_gptc", changes + self.args.set

    def print_samples(self):
        """Prints what the plain GPT and GPT-C say to the same beginning."""
        for row in [row for row in ("gpt", "gptc") if row in self.args.rows]:
            name = run_name(row, self.args.sizes[0], self.args.texts[0], 1)
            print(f"\n{ROWS[row][0]}:\n", flush=True)
            subprocess.run([
                sys.executable, "main.py", "--model", os.path.join(self.run_path(name),
                                                                   "config.json"),
                "--quiet", "--predict", "--prompt", PROMPT, "--num_samples", "2",
                "--max_new_tokens", "60", "--temperature", "0.7"], cwd=ROOT, check=True)

    def together(self, jobs):
        """Trains several models at once, each on one thread, with a progress bar."""
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            threads = 1 if self.args.jobs > 1 else 0
            futures = [pool.submit(self.train, *job, threads=threads) for job in jobs]
            for future in tqdm(concurrent.futures.as_completed(futures), total=len(jobs),
                               desc=jobs[0][0].split("_")[0], disable=None):
                try:
                    future.result()
                except SystemExit:
                    pool.shutdown(cancel_futures=True)
                    raise


def run_name(row, size, number, seed):
    """The name of a language model's run."""
    return f"{row}_{size}_{number}_{seed}"


def main(argv=None):
    """Runs what is missing, then writes the table and the picture."""
    args, started = parse_args(argv), time.monotonic()
    experiment = Experiment(args)
    experiment.make_data()
    experiment.make_students()
    experiment.make_language_models()
    from benchmarks import clip_experiment_report

    print(clip_experiment_report.write(args, experiment.out), flush=True)
    experiment.print_samples()
    print(f"\n{time.monotonic() - started:.0f} seconds. {args.out} holds the runs, their logs, and "
          "results.json, results.md and results.png.")


if __name__ == "__main__":
    main()
