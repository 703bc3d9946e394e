"""Does CLIP's knowledge of looks help a language model? The whole story, from nothing to a table.

    python benchmarks/clip_experiment.py --data data/demo --out runs/demo

makes the picture-caption world, trains CLIP on it and a student of CLIP, and then language models
with and without supervision, all with the same data, steps and seeds: a row of the table each.
Every stage is a command of this project, which is printed; its output is in <out>/logs. What is
done already is not done again, so a run that was stopped continues.
"""

import argparse
import concurrent.futures
import functools
import itertools
import json
import os
import subprocess
import sys
import time

from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.stages import Stages  # noqa: E402

# Sizes of language models: keys of their configs.
SIZES = {"2x64": {"n_layer": 2, "n_embd": 64, "n_head": 2}, "4x128": {},
         "6x192": {"n_layer": 6, "n_embd": 192, "n_head": 6}}

# The rows of the table: (name, what is said of it, changes to configs/demo_gptc.json). {student}
# is the trained student, {random} one whose teacher was never trained, {text} one that learnt from
# texts alone, with no teacher.
ROWS = {
    "gpt_bytes": ("GPT, GPT-2-style byte-level tokenizer", {"model": "GPT", "clip": {}}),
    "gpt": ("GPT, CLIP-style tokenizer", {"model": "GPT", "clip": {}}),
    "gptc": ("GPT-C", {"clip.student": "{student}"}),
    "gptc_random": ("GPT-C, random teacher", {"clip.student": "{random}"}),
    "gptc_input": ("GPT-C, student as input", {
        "clip": {"student": "{student}", "mode": "input"}}),
    "gptc_shuffled": ("GPT-C, student reads another row", {
        "clip.student": "{student}", "clip.control": "shuffled"}),
    "gptc_text": ("GPT-C, student of texts alone", {"clip.student": "{text}"}),
    "gptc_input_random": ("GPT-C, random student as input", {
        "clip": {"student": "{random}", "mode": "input"}}),
}
# What the models are asked about looks, in the formats of CoDa and ViComTe.
PROBES = ("coda", "color", "shape", "size_larger", "size_smaller")
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
    p.add_argument("--steps", type=int, nargs="+", default=[250], metavar="N",
                   help="of a language model: one number, one for each of --texts, or one for "
                        "each of --texts at each of --sizes (%(default)s)")
    p.add_argument("--evaluations", type=int, default=1,
                   help="of a language model, the best of which counts (%(default)s)")
    p.add_argument("--pictures", type=int, default=20000, help="for CLIP (%(default)s)")
    p.add_argument("--checked", type=int, default=400, metavar="N",
                   help="texts for validation, of each kind, and a quarter of the cloze items "
                        "(%(default)s)")
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
    p.add_argument("--set_text", action="append", default=[], metavar="KEY=VALUE",
                   help="for the student of texts alone, beside --set_student")
    p.add_argument("--jobs", type=int, default=2, help="trainings at once (%(default)s)")
    p.add_argument("--quick", action="store_true",
                   help="the same in small, too short to learn much")
    args = p.parse_args(argv)
    wanted = len(args.sizes) * len(args.texts)
    if len(args.steps) not in (1, len(args.texts), wanted):
        p.error(f"--steps has {len(args.steps)} numbers; give one number of steps, one for each of "
                f"the {len(args.texts)} --texts, or one for each of them at each of the "
                f"{len(args.sizes)} --sizes: {wanted}")
    args.steps *= wanted // len(args.steps)
    for name in ("seeds", "teachers", "jobs", "evaluations", "pictures", "checked"):
        if getattr(args, name) < 1:
            p.error(f"--{name} must be at least 1")
    for name in ("texts", "steps"):
        if min(getattr(args, name)) < 1:
            p.error(f"--{name} must be at least 1")
    if args.quick:
        args.pictures, args.texts = min(args.pictures, 1000), [min(n, 200) for n in args.texts]
        args.seeds, args.checked = 1, min(args.checked, 50)
        args.set_clip += ["train_steps=15", "steps_per_checkpoint=15", "warmup_steps=5"]
        args.set_student += ["train_steps=20", "steps_per_checkpoint=20", "warmup_steps=5"]
        args.steps = [20] * wanted
        args.set += ["warmup_steps=5", "n_layer=2"]
    return args


class Experiment:
    """The stages in their order."""

    def __init__(self, args):
        self.args = args
        self.out, self._data = os.path.abspath(args.out), os.path.abspath(args.data)
        self.stages = Stages(self.out)

    def check_settings(self):
        """Refuses to go on from what was made with other settings, and keeps these.

        More seeds, teachers, sizes, rows and fewer texts are no others: what is there serves them.

        Raises:
          SystemExit: names the first setting that differs.
        """
        args = self.args
        settings = {"data": self._data, "texts": max(args.texts), **{name: getattr(args, name)
                    for name in ("pictures", "checked", "facts", "quick", "set_clip",
                                 "set_student", "set_text")}}
        path = self.run_path("settings.json")
        if os.path.exists(path):
            with open(path) as file:
                before = json.load(file)
            for name, value in settings.items():
                if before[name] != value:
                    raise SystemExit(f"--{name} {value}: {self.out} was made with {before[name]}; "
                                     "give that, or another --data and --out")
        if self.stages.is_done("world") and not os.path.exists(self.path("world")):
            raise SystemExit(f"{self._data}: is gone, which {self.out} was made with; remove that "
                             "too, or give another --out")
        with open(path, "w") as file:
            json.dump(settings, file, indent=1)

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
                        self.args.pictures, "--texts", most, "--val_texts",
                        self.args.checked, "--heldout_texts", self.args.checked, "--cloze",
                        4 * self.args.checked, "--facts", self.args.facts)
        self.together("tokenizers", [
            functools.partial(self._make_tokenizer, *pair)
            for pair in (("clip", "clip"), ("bytes", "bbpe"))])
        texts = [functools.partial(self._make_texts, tokens, number)
                 for number in self.args.texts for tokens in ("clip", "bytes")]
        if "gptc_text" in self.args.rows:
            texts.append(functools.partial(
                self._encode, f"{world}/captions_train.jsonl", "captions", "clip",
                self.path("captions"), "--val_fraction", 0.01))
        self.together("data", [self._make_pictures, *texts])

    def _make_tokenizer(self, tokens, kind):
        """A tokenizer of the training texts."""
        self.stages.run(f"tokenizer_{tokens}", "datasets/train_tokenizer.py",
                        self.path("world", "texts_train.jsonl"), "--tokenizer", kind,
                        "--vocab_size", 1024, "--out", self.path(f"{tokens}.json"), "--overwrite")

    def _make_pictures(self):
        """The pictures as TFRecords, with captions in CLIP's tokens."""
        self.stages.run("pictures", "datasets/encode_captions.py", "--input",
                        self.path("world", "pictures_train_*.tfrecords"), "--val_input",
                        self.path("world", "pictures_val_*.tfrecords"), "--name", "pictures",
                        "--output_dir", self.path("pictures"), "--encoder", self.path("clip.json"),
                        "--overwrite", "--write_dataset_config", self.path("pictures.json"))

    def _make_texts(self, tokens, number):
        """The first texts of the world as a dataset, with the validation texts beside them."""
        folder, config = self.path(f"texts_{number}"), {}
        os.makedirs(folder, exist_ok=True)
        with open(self.path("world", "texts_train.jsonl")) as file:
            lines = [line for _, line in zip(range(number), file, strict=False)]
        with open(f"{folder}/{tokens}_train.jsonl", "w") as file:
            file.writelines(lines)
        for split, source in (("train", f"{folder}/{tokens}_train.jsonl"),
                              ("validation", self.path("world", "texts_val.jsonl"))):
            name = f"{tokens}_{split}"
            with open(self._encode(source, name, tokens, folder)) as file:
                config[split] = json.load(file)
        both = {**config["train"], "eval_path": config["validation"]["path"]}
        with open(self.dataset(tokens, number), "w") as file:
            json.dump(both, file, indent=1)

    def _encode(self, source, name, tokens, folder, *flags):
        """A JSONL file as TFRecords in a folder; returns the path of their dataset config."""
        config = f"{folder}/{name}.json"
        self.stages.run(f"{os.path.basename(folder)}_{name}", "datasets/create_tfrecords.py",
                        "--input_dir", source, "--name", name, "--output_dir", folder, "--encoder",
                        self.path(f"{tokens}.json"), "--chunk_size", 512, "--overwrite",
                        "--write_dataset_config", config, "--processes", 1, *flags)
        return config

    def dataset(self, tokens, number):
        """The dataset config of an amount of texts in a tokenizer's tokens."""
        return self.path(f"texts_{number}", f"{tokens}.json")

    def train(self, name, config, changes, threads=0):
        """A run of main.py in <out>/<name>; threads=0 lets it take all cores."""
        flags = [flag for change in changes for flag in ("--set", change)]
        self.stages.run(name, "main.py", "--model", config, "--model_path", self.run_path(name),
                        *flags, threads=threads)

    def make_students(self):
        """CLIP, teachers that were never trained, and a student of each."""
        pictures = f'datasets=["{self.path("pictures.json")}"]'
        randoms = [f"random{number}" for number in range(self._randoms())]
        self.together("teachers", [
            functools.partial(self.train, "clip", "demo_clip", [pictures, *self.args.set_clip]),
            *(functools.partial(self.train, name, "demo_clip", [
                pictures, f"seed={100 + number}", "train_steps=1", "steps_per_checkpoint=1",
                "warmup_steps=0", "lr=0", "eval_steps=1"], threads=1)
              for number, name in enumerate(randoms))])
        # A student reads the largest amount of text, whose first part the smaller ones are.
        texts = f'datasets=["{self.dataset("clip", max(self.args.texts))}"]'
        self.train_together("students", [
            (f"student_{name}" if name in randoms else "student", "demo_student",
             [texts, f"clip.teacher={self.run_path(name)}", *self.args.set_student])
            for name in ("clip", *randoms)])
        if "gptc_text" in self.args.rows:
            self._make_text_student()

    def _make_text_student(self):
        """A student that reads CLIP's captions and the other students' texts, half and half."""
        from configs import schema

        towers = {name: schema.load(os.path.join(self.run_path(name), "config.json"))
                  for name in ("clip", "student")}
        section = {"control": "text_only", "out": towers["clip"].clip_out,
                   "window": towers["student"].clip.window}
        datasets = [self.dataset("clip", max(self.args.texts)),
                    self.path("captions", "captions.json")]
        # What the section says of distillation is not for it.
        alike = [change for change in self.args.set_student if not change.startswith("clip.")]
        self.train("student_text", "demo_student", [
            f"datasets={json.dumps(datasets)}", f"clip={json.dumps(section)}", *alike,
            *self.args.set_text])

    def _randoms(self):
        return self.args.teachers if any("random" in row for row in self.args.rows) else 0

    def make_language_models(self):
        """Every row at every size, amount of text and seed."""
        # The last rows take longest: they come first, so that no core waits for them at the end.
        self.train_together("language models", [
            self._language_model(row, size, number, seed)
            for size in self.args.sizes for number in self.args.texts
            for seed in range(1, self.args.seeds + 1) for row in reversed(self.args.rows)])

    def _language_model(self, row, size, number, seed):
        """(name, config, changes) of a run."""
        tokens = "bytes" if row == "gpt_bytes" else "clip"
        students = {"student": self.run_path("student"), "text": self.run_path("student_text")}
        if self.args.teachers:
            students["random"] = self.run_path(
                f"student_random{(seed - 1) % self.args.teachers}")
        steps = dict(zip(itertools.product(self.args.sizes, self.args.texts), self.args.steps,
                         strict=True))[size, number]
        changes = [f'datasets=["{self.dataset(tokens, number)}"]', f"seed={seed}",
                   f"train_steps={steps}", "sample_tokens=0", "eval_tasks_bos=true",
                   f"steps_per_checkpoint={-(-steps // self.args.evaluations)}"]
        tasks = [self.path("world", f"{name}.jsonl")
                 for name in (*(f"{kind}_{self.args.items}"
                                for kind in ("stories", "statements", "cloze")), "texts_heldout",
                              "combinations")]
        tasks += [f"{relation}:{self.path('world', 'probes', relation, 'world.jsonl')}"
                  for relation in PROBES]
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
        rows = [row for row in ("gpt", "gptc") if row in self.args.rows]
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            for row, text in zip(rows, pool.map(self._samples, rows), strict=True):
                print(f"\n{ROWS[row][0]}:\n\n{text}", flush=True)

    def _samples(self, row):
        """What the first model of a row says."""
        name = run_name(row, self.args.sizes[0], self.args.texts[0], 1)
        return subprocess.run([
            sys.executable, "main.py", "--model", os.path.join(self.run_path(name), "config.json"),
            "--quiet", "--predict", "--prompt", PROMPT, "--num_samples", "2", "--max_new_tokens",
            "60", "--temperature", "0.7"], cwd=ROOT, check=True, stdout=subprocess.PIPE,
            text=True).stdout

    def train_together(self, label, runs):
        """Trains several models at once, each (name, config, changes) on one thread."""
        threads = 1 if self.args.jobs > 1 else 0
        self.together(label, [functools.partial(self.train, *run, threads=threads)
                              for run in runs])

    def together(self, label, calls):
        """Makes --jobs of the calls at a time, with a progress bar."""
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            futures = [pool.submit(call) for call in calls]
            for future in tqdm(concurrent.futures.as_completed(futures), total=len(calls),
                               desc=label, disable=None):
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
    experiment.check_settings()
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
