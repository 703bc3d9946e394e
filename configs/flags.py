"""The flags of main.py, and which of them go with which job."""

import argparse
from collections.abc import Callable

from configs import old_flags
from configs.command_line import Parser, add_loudness

DESCRIPTION = ("Trains, evaluates and samples language models: flags, then a checked config, then "
               "one job.")

EXAMPLES = """\
examples:
  python main.py --model shakespeare_char
  python main.py --model configs/gpt_125M.json --set train_steps=1000 --set lr=3e-4
  python main.py --model shakespeare_char --eval
  python main.py --model shakespeare_char --predict --prompt "ROMEO:" --num_samples 3 --top_k 40
  cat prompt.txt | python main.py --model shakespeare_char --predict --prompt -
  python main.py --import_from ViT-B-32.pt --model_path runs/clip_vit_b32
"""

# What the flags of --predict are when they are not given.
PREDICT_DEFAULTS = {"prompt": [], "num_samples": 1, "max_new_tokens": None, "temperature": 1.0,
                    "top_k": None, "top_p": 1.0, "entmax_sampling": None, "stop": [], "seed": None,
                    "interactive": False}


# The jobs by their flags; without one of them it is "train".
JOBS = ("eval", "predict", "check_dataset", "print_config", "dry_run", "export", "preflight",
        "auto_layout", "auto_layout_and_mesh_shape", "explain_layout", "search_layouts", "sweep",
        "import_from", "report")

# Which jobs a flag goes with, where it does not go with all of them.
GOES_WITH = {
    **dict.fromkeys(PREDICT_DEFAULTS, {"predict"}),
    **dict.fromkeys(("model", "set", "gpu_ids", "steps_per_checkpoint"),
                    {"train", *JOBS} - {"import_from", "report", "sweep"}),
    "checkpoint": {"eval", "export", "predict"},
    "skip_corrupt": {"check_dataset", "dry_run", "eval", "print_config", "train"},
    "diff": {"print_config"},
    **dict.fromkeys(("new", "yes"), {"import_from", "train"}),
    "model_path": {"train", *JOBS} - {"report"},
    **dict.fromkeys(("recreate_tpu", "tpu"), {"eval", "predict", "sweep", "train"}),
    "out": {"report"},
    "wandb": {"train"},
    "preflight_layers": {"preflight"},
    "write": {"auto_layout", "auto_layout_and_mesh_shape", "search_layouts"},
    **dict.fromkeys(("cluster", "worker", "wait_for_workers", "allow_remote"), {"eval", "train"}),
}


def number(kind: Callable, allowed: str, test: Callable) -> Callable:
    """An argparse type: a number of a kind that passes a test, described by `allowed`."""
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not test(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}, not {text}")
        return value
    return convert


def _configs(prefix, **asked):
    """For a shell that completes --model: the shipped configs, and files."""
    from argcomplete.completers import FilesCompleter

    from configs import reading

    return [*reading.shipped_configs(), *FilesCompleter()(prefix, **asked)]


def make_parser() -> Parser:
    """The parser of all flags, grouped by task."""
    count = number(int, "a whole number, 1 or more", lambda n: n >= 1)
    whole = number(int, "a whole number, 0 or more", lambda n: n >= 0)
    seed = number(int, "a whole number from 0 to 2147483647", lambda n: 0 <= n < 2**31)
    warmth = number(float, "a number, 0 or more", lambda t: 0 <= t < float("inf"))
    share = number(float, "above 0 and at most 1", lambda p: 0 < p <= 1)
    parser = Parser(former=old_flags.MAIN, prog="main.py", description=DESCRIPTION, epilog=EXAMPLES,
                    usage="%(prog)s --model CONFIG [a job] [other flags]")

    group = parser.add_argument_group("config")
    model = group.add_argument("--model", metavar="CONFIG",
                               help="run config: a JSON or YAML file, a run's directory, or a "
                                    "name in configs/")
    model.completer = _configs  # type: ignore[attr-defined]
    group.add_argument("--diff", metavar="CONFIG",
                       help="with --print_config: only the keys that differ from this config's, "
                            "with both values")
    group.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                       help="override a key of the config; may be repeated, and dots reach into "
                            "sections and lists; docs/configs.md lists the keys")
    group.add_argument("--model_path", metavar="DIR",
                       help="override the directory of checkpoints, logs and metrics")
    group.add_argument("--skip_corrupt", action="store_true", default=None,
                       help="count damaged records and leave them out, rather than end at the "
                            "first (the config's skip_corrupt)")

    group = parser.add_argument_group("devices")
    group.add_argument("--gpu_ids", metavar="ID", nargs="+",
                       help="GPUs to use, e.g. 0 1, one for each position of mesh_shape; without "
                            "it, CPU devices are made as the mesh needs")

    group.add_argument("--tpu", metavar="NAME",
                       help="run on a TPU: its name in Google Cloud, grpc://HOST:PORT, or local on "
                            "a TPU VM; see docs/cloud.md")
    group.add_argument("--tpu_zone", metavar="ZONE",
                       help="where the TPU is (the zone of this machine)")
    group.add_argument("--gcp_project", metavar="PROJECT",
                       help="whose TPU it is (the project of this machine)")
    group.add_argument("--recreate_tpu", metavar="SLICE", nargs="?", const="",
                       help="delete the TPU if it is preempted or unhealthy, and make it as it was "
                            "anew; with SLICE (v3-8, ...) also make it where there is none")

    group = parser.add_argument_group("clusters")
    group.add_argument("--cluster", metavar="FILE",
                       help="share the mesh among hosts, which a JSON file names (or TF_CONFIG); "
                            "see docs/clusters.md")
    group.add_argument("--worker", metavar="N", nargs="?", const=-1, type=whole,
                       help="be host N of the cluster, and do what the chief, host 0, asks; "
                            "without N, the host that TF_CONFIG says")
    group.add_argument("--wait_for_workers", action="store_true",
                       help="when a worker is lost, wait for it, and go on from the last "
                            "checkpoint")
    group.add_argument("--allow_remote", action="store_true",
                       help="let a cluster's hosts have addresses that other machines reach: "
                            "servers have no password")

    group = parser.add_argument_group("job", "Without one of these, the model is trained; a run "
                                             "that was stopped continues.")
    jobs = group.add_mutually_exclusive_group()
    jobs.add_argument("--eval", action="store_true",
                      help="evaluate the newest checkpoint: loss, perplexity, bits per byte")
    jobs.add_argument("--predict", action="store_true",
                      help="sample text from the newest checkpoint, or fill in masks with a "
                           "masked language model")
    jobs.add_argument("--check_dataset", action="store_true",
                      help="decode and print samples of the datasets, and report problems")
    jobs.add_argument("--print_config", action="store_true",
                      help="print every key, its value and where it came from")
    jobs.add_argument("--dry_run", action="store_true",
                      help="show what training would be, and write nothing: parameters, memory, "
                           "tokens a step, steps an epoch, and the time by a few measured steps")
    jobs.add_argument("--export", nargs="*", metavar=("FORMAT", "DIR"),
                      help="write a checkpoint for use elsewhere, into DIR; the format is "
                           "saved_model: TensorFlow's (MODEL_PATH/export), or hf: what Hugging "
                           "Face's transformers loads (MODEL_PATH/export_hf). See "
                           "docs/interop.md")
    jobs.add_argument("--preflight", metavar="SLICE",
                      help="compile the training step for a TPU slice (v3-8, v4-32, ...) without "
                           "one: does it fit, and how long would a step take? See docs/tpu.md")
    jobs.add_argument("--auto_layout", action="store_true",
                      help="find the layout of least memory for mesh_shape; see docs/layouts.md")
    jobs.add_argument("--auto_layout_and_mesh_shape", metavar="CORES|SLICE", nargs="?", const="",
                      help="find mesh_shape as well, for any number of cores")
    jobs.add_argument("--explain_layout", metavar="DIR", nargs="?", const="",
                      help="show which slice of which weight each core has, as text, HTML and PNG "
                           "(in DIR, or model_path)")
    jobs.add_argument("--search_layouts", metavar="SLICE", nargs="?", const="",
                      help="find the fastest mesh_shape and layout for a TPU slice (of v3, with as "
                           "many cores as mesh_shape has): all valid ones by arithmetic, the best "
                           "by the TPU compiler; a table, a page and a plot; see docs/layouts.md")
    jobs.add_argument("--sweep", metavar="FILE",
                      help="train many runs of a config with other values of some keys, as a YAML "
                           "file says, and compare them; needs no --model. See docs/sweeps.md")
    jobs.add_argument("--import_from", metavar="PATH|NAME",
                      help="make a run in --model_path of Hugging Face's GPT-2, GPT-Neo, GPT-J or "
                           "GPT-NeoX, of a checkpoint of GPT-Neo, nanoGPT, OpenAI's or ConnorJL's "
                           "GPT-2, or of a CLIP text tower (OpenAI's .pt, a Hugging Face or "
                           "OpenCLIP file), or of a directory with one, or of a published model by "
                           "its name, such as gpt2 or EleutherAI/pythia-160m; needs no --model")

    jobs.add_argument("--report", metavar="RUN", nargs="+",
                      help="write one HTML page of the runs in these directories, beside each "
                           "other: curves, scores, samples, configs; needs no --model")

    group = parser.add_argument_group("layouts and TPU slices")
    group.add_argument("--preflight_layers", choices=("all", "few"),
                       help="whether --preflight compiles all layers or estimates them from few "
                            "(few above 1.4 billion parameters)")
    group.add_argument("--write", metavar="FILE",
                       help="write the config with the layout that was found (with --auto_layout, "
                            "--auto_layout_and_mesh_shape, --search_layouts)")

    group = parser.add_argument_group("evaluation, prediction and export")
    group.add_argument("--checkpoint", metavar="latest|best|STEP",
                       help="which checkpoint to use: the newest (the default), the one with the "
                            "lowest validation loss, or that of a step")

    group = parser.add_argument_group("reports")
    group.add_argument("--out", metavar="FILE",
                       help="the page that --report writes (report.html)")

    group = parser.add_argument_group("training")
    group.add_argument("--steps_per_checkpoint", metavar="N", type=count,
                       help="override the number of steps between checkpoints")
    group.add_argument("--wandb", metavar="PROJECT",
                       help="log scalars to Weights & Biases as well; see docs/tensorboard.md")
    group.add_argument("--new", action="store_true",
                       help="delete what is in the model's directory and start afresh; asks before")
    group.add_argument("--yes", action="store_true", help="answer yes to what --new asks")

    group = parser.add_argument_group("prediction (with --predict)")
    group.add_argument("--prompt", metavar="TEXT|FILE|-", action="append",
                       help="text to continue, a file that holds it, or - for standard input; may "
                            "be repeated; without it, samples start at a document's beginning")
    group.add_argument("--num_samples", metavar="N", type=count, help="samples of each prompt (1)")
    group.add_argument("--max_new_tokens", metavar="N", type=count,
                       help="most tokens of a sample (the config's predict_max_steps)")
    group.add_argument("--temperature", metavar="T", type=warmth,
                       help="0 takes the likeliest token; higher is more varied (1.0)")
    group.add_argument("--top_k", metavar="K", type=whole,
                       help="sample from the K likeliest tokens; 0 is all (the config's top_k)")
    group.add_argument("--top_p", metavar="P", type=share,
                       help="sample from the likeliest tokens that hold this probability (1.0)")
    group.add_argument("--entmax_sampling", action="store_true", default=None,
                       help="sample from the logits' entmax, which leaves unlikely tokens out "
                            "(the config's entmax_sampling)")
    group.add_argument("--stop", metavar="TEXT", action="append",
                       help="end a sample before this text; may be repeated")
    group.add_argument("--seed", metavar="N", type=seed,
                       help="seed of sampling (the config's seed)")
    group.add_argument("--interactive", action="store_true", default=None,
                       help="ask for prompts one after the other, with the weights read once")

    group = parser.add_argument_group("output")
    add_loudness(group)
    group.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    old_flags.add(parser)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses flags and refuses those that belong to another job; `job` is one of JOBS or "train".

    Raises:
        SystemExit: a flag is wrong; one line on stderr has said so.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    chosen = [job for job in JOBS if job in given]
    if args.predict_text or args.predict_file:
        if chosen not in ([], ["predict"]):
            parser.error("argument --predict_text, --predict_file: they are --predict --prompt, "
                         "a job of their own")
        chosen = ["predict"]
    args.job = chosen[0] if chosen else "train"
    for name, jobs in GOES_WITH.items():
        if name in given and args.job not in jobs:
            parser.error(f"argument --{name}: " + _misplaced(args.job, jobs))
    for name, default in PREDICT_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    _check_values(parser, args)
    if args.job == "import_from":
        if not args.model_path:
            parser.error("argument --import_from: needs --model_path, the directory to write")
    elif args.model is None and args.job not in ("report", "sweep"):
        parser.error("the following arguments are required: --model")
    return args


def _misplaced(job, jobs):
    """Why a flag that goes with some jobs does not go with this one."""
    if len(jobs) > 3:
        return f"does not go with --{job}"
    names = ["training" if name == "train" else f"--{name}" for name in sorted(jobs)]
    return "belongs to " + " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _check_values(parser, args):
    """Refuses values that no type of argparse tells, and flags that need or exclude others."""
    if args.export is not None and (len(args.export) > 2
                                    or args.export[:1] not in ([], ["saved_model"], ["hf"])):
        parser.error("argument --export: takes saved_model or hf and a directory, or nothing")
    if args.wandb == "":
        parser.error("argument --wandb: must not be empty: the project's name")
    if "" in args.stop:
        parser.error("argument --stop: must not be empty")
    if args.interactive and "-" in args.prompt:
        parser.error("argument --prompt: - and --interactive both read standard input")
    if args.tpu is None:
        for name in ("tpu_zone", "gcp_project", "recreate_tpu"):
            if getattr(args, name) is not None:
                parser.error(f"argument --{name}: belongs to --tpu")
    elif not args.tpu:
        parser.error("argument --tpu: must not be empty: a name, grpc://HOST:PORT or local")
    elif args.tpu == "colab":
        parser.error("argument --tpu: a Colab machine has its TPU itself: --tpu local")
    elif args.gpu_ids:
        parser.error("argument --tpu: does not go with --gpu_ids")
    elif args.recreate_tpu is not None and (args.tpu == "local" or "://" in args.tpu):
        parser.error("argument --recreate_tpu: --tpu must be a name in Google Cloud")
    for name in ("cluster", "worker", "wait_for_workers", "allow_remote"):
        if args.tpu is not None and getattr(args, name) is not parser.get_default(name):
            parser.error(f"argument --{name}: does not go with --tpu")
    if args.cluster is not None:
        if args.gpu_ids:
            parser.error("argument --cluster: does not go with --gpu_ids")
