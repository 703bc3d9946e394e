"""Trains, evaluates and samples language models: flags, then a checked config, then one job."""

import argparse
import logging
import os
import re
import sys

from configs import old_flags
from configs.command_line import Parser, quiet_libraries, status_of
from configs.errors import UserError

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


# Jobs that read the checkpoint of --checkpoint.
JOBS_ON_CHECKPOINTS = {"eval", "predict", "export"}


def number(kind, allowed, test):
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


def make_parser():
    """The parser of all flags, grouped by task."""
    count = number(int, "a whole number, 1 or more", lambda n: n >= 1)
    whole = number(int, "a whole number, 0 or more", lambda n: n >= 0)
    seed = number(int, "a whole number from 0 to 2147483647", lambda n: 0 <= n < 2**31)
    warmth = number(float, "a number, 0 or more", lambda t: 0 <= t < float("inf"))
    share = number(float, "above 0 and at most 1", lambda p: 0 < p <= 1)
    parser = Parser(prog="main.py", description=__doc__, epilog=EXAMPLES)

    group = parser.add_argument_group("config")
    group.add_argument("--model", metavar="CONFIG",
                       help="run config: a JSON or YAML file, or a name in configs/")
    group.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                       help="override a key of the config; may be repeated, and dots reach into "
                            "sections and lists; docs/configs.md lists the keys")
    group.add_argument("--model_path", metavar="DIR",
                       help="override the directory of checkpoints, logs and metrics")
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
    jobs.add_argument("--export", nargs="*", metavar=("FORMAT", "DIR"),
                      help="write a checkpoint for use elsewhere; the format is "
                           "saved_model: TensorFlow's, into MODEL_PATH/export or DIR. See "
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
    jobs.add_argument("--import_from", metavar="PATH",
                      help="make a run in --model_path of Hugging Face's GPT-2 or GPT-Neo, or of a "
                           "CLIP text tower (OpenAI's .pt, a Hugging Face or OpenCLIP file), or "
                           "of a directory with one; needs no --model")

    group = parser.add_argument_group("layouts")
    group.add_argument("--write", metavar="FILE",
                       help="write the config with the layout that was found (with --auto_layout, "
                            "--auto_layout_and_mesh_shape)")

    group = parser.add_argument_group("evaluation and prediction")
    group.add_argument("--checkpoint", metavar="latest|best|STEP",
                       help="which checkpoint to use: the newest (the default), the one with the "
                            "lowest validation loss, or that of a step")

    group = parser.add_argument_group("training")
    group.add_argument("--steps_per_checkpoint", metavar="N", type=count,
                       help="override the number of steps between checkpoints")
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
    loudness = group.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="only warnings, errors and results")
    loudness.add_argument("--verbose", action="store_true", help="also TensorFlow's own messages")
    group.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    old_flags.add(parser)
    return parser


def lays_out(args):
    """Whether the job is one about layouts."""
    return args.auto_layout or any(flag is not None for flag in (
        args.auto_layout_and_mesh_shape, args.explain_layout))


def parse(argv):
    """Parses flags and refuses those that belong to another job."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.predict_text or args.predict_file:
        if (args.eval or args.check_dataset or args.print_config or args.import_from
                or args.preflight or args.export is not None or lays_out(args)):
            parser.error("argument --predict_text, --predict_file: they are --predict --prompt, "
                         "a job of their own")
        args.predict = True
    for name, default in PREDICT_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
        elif not args.predict:
            parser.error(f"argument --{name}: belongs to --predict")
    if args.export is not None and (len(args.export) > 2
                                    or args.export[:1] not in ([], ["saved_model"])):
        parser.error("argument --export: takes saved_model and a directory, or nothing")
    if "" in args.stop:
        parser.error("argument --stop: must not be empty")
    if args.interactive and "-" in args.prompt:
        parser.error("argument --prompt: - and --interactive both read standard input")
    if args.new and (args.eval or args.predict or args.check_dataset or args.print_config
                     or args.preflight or args.export is not None or lays_out(args)):
        parser.error("argument --new: belongs to training")
    _check_tpu(parser, args)
    if args.write is not None and (not lays_out(args) or args.explain_layout is not None):
        parser.error("argument --write: belongs to --auto_layout and --auto_layout_and_mesh_shape")
    if args.checkpoint is not None and not JOBS_ON_CHECKPOINTS & {
            job for job, chosen in vars(args).items() if chosen not in (None, False)}:
        parser.error("argument --checkpoint: belongs to jobs that read one: "
                     + ", ".join(f"--{job}" for job in sorted(JOBS_ON_CHECKPOINTS)))
    if args.import_from is None and args.model is None:
        parser.error("the following arguments are required: --model")
    if args.import_from is not None:
        if not args.model_path:
            parser.error("argument --import_from: needs --model_path, the directory to write")
        for name in ("model", "set", "gpu_ids", "steps_per_checkpoint"):
            if getattr(args, name):
                parser.error(f"argument --{name}: does not go with --import_from, which makes the "
                             "config of what it finds")
    return args


def _check_tpu(parser, args):
    """Refuses flags that do not go with --tpu, or without it."""
    if args.tpu is None:
        for name in ("tpu_zone", "gcp_project"):
            if getattr(args, name):
                parser.error(f"argument --{name}: belongs to --tpu")
        return
    if not args.tpu:
        parser.error("argument --tpu: must not be empty: a name, grpc://HOST:PORT or local")
    if args.gpu_ids:
        parser.error("argument --tpu: does not go with --gpu_ids")
    if lays_out(args):
        parser.error("argument --tpu: layouts are found and shown without a TPU; leave it out")
    for job in ("check_dataset", "print_config", "preflight", "import_from", "export"):
        if getattr(args, job) not in (None, False):
            parser.error(f"argument --tpu: --{job} uses no TPU; leave it out")


def set_up_logging(quiet, verbose):
    """Own messages to stderr; TensorFlow's only if asked for. Comes before its import."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    if not verbose:
        quiet_libraries()


def read_prompt(prompt):
    """The text that a --prompt stands for: standard input, a file's text, or itself.

    Raises:
        UserError: it looks like a file's path, and there is no such file; or the text is no UTF-8.
    """
    import tensorflow.compat.v1 as tf

    if prompt == "-":
        try:
            return sys.stdin.read()
        except UnicodeDecodeError as error:
            raise UserError(f"--prompt -: standard input is no UTF-8 text ({error})") from error
    looks_like_path = re.fullmatch(r"\S+\.txt|\w+://\S+", prompt)
    if prompt and len(prompt) < 4096 and "\n" not in prompt:
        if tf.io.gfile.exists(prompt) and not tf.io.gfile.isdir(prompt):
            return read_text(prompt, "--prompt")
        if looks_like_path:
            raise UserError(f"--prompt {prompt}: no such file")
    return prompt


def read_text(path, flag):
    """The text of a file that a flag names.

    Raises:
        UserError: there is no such file, or it is no UTF-8 text.
    """
    import tensorflow.compat.v1 as tf

    try:
        with tf.io.gfile.GFile(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: no UTF-8 text ({error})") from error
    except tf.errors.NotFoundError as error:
        raise UserError(f"{flag} {path}: no such file") from error


def predict(config, args, tpu=None):
    """Samples, or fills in masks, as the flags say, on a mesh.cloud.Tpu where there is one.

    Raises:
        UserError: the kind of model has nothing to do with a flag, or lacks one.
    """
    from training import filler, predictor

    prompts = [*map(read_prompt, args.prompt), *args.predict_text,
               *(read_text(path, "--predict_file") for path in args.predict_file)]
    settings = {"num_samples": args.num_samples, "temperature": args.temperature,
                "top_k": config.top_k if args.top_k is None else args.top_k, "top_p": args.top_p,
                "interactive": args.interactive,
                "seed": config.seed if args.seed is None else args.seed}
    if config.mlm_training:
        if tpu:
            raise UserError("--tpu: masks are filled in by CPUs or GPUs; leave the flag out")
        for name in ("max_new_tokens", "stop"):
            if getattr(args, name):
                raise UserError(f"--{name}: a masked language model fills in masks, a token each; "
                                "leave the flag out")
        if not prompts and not args.interactive:
            raise UserError(f"--prompt: missing; give a text with {config.mlm_mask_text} in it")
        filler.fill_in(config, prompts, **settings)
        return
    predictor.predict(
        config, prompts=prompts or ([] if args.interactive else [""]),
        max_new_tokens=args.max_new_tokens or config.predict_max_steps, stop=args.stop, tpu=tpu,
        **settings)


def lay_out(config, args):
    """Does the job about layouts that the flags ask for."""
    # See --preflight.
    os.environ.setdefault("TF_XLA_FLAGS", "--tf_xla_disable_constant_folding=true")
    if args.explain_layout is not None:
        from training import explain_layout

        explain_layout.run(config, args.explain_layout or config.model_path)
    else:
        from training import auto_layout

        auto_layout.run(config, shape_too=not args.auto_layout,
                        cores=args.auto_layout_and_mesh_shape, write=args.write)


def run_job(args):
    """Loads the config and does the one job that the flags ask for; returns an exit status."""
    if args.import_from is not None:
        from interop import import_clip, import_gpt

        known = import_gpt.model_type(args.import_from) in import_gpt.FAMILIES
        take = import_gpt.import_gpt if known else import_clip.import_clip
        take(args.import_from, args.model_path, new=args.new, yes=args.yes)
        return 0
    from configs import schema

    flags = {key: getattr(args, key) for key in ("model_path", "gpu_ids", "steps_per_checkpoint",
                                                 "entmax_sampling", "checkpoint")}
    config = schema.load(args.model, args.set, flags)
    for note in [*args.notes, *config.notes]:
        logging.info("note: %s", note)
    tpu = None
    if args.tpu:
        from mesh import cloud

        cloud.check_path(args.tpu, config.model_path)
        tpu = cloud.find(args.tpu, args.tpu_zone, args.gcp_project, config.mesh_size)
    if args.print_config:
        print(config.describe(), flush=True)
    elif args.check_dataset:
        import inputs

        return 0 if inputs.check_dataset(config) else 1
    elif args.predict:
        predict(config, args, tpu)
    elif args.export is not None:
        from interop import saved_model

        directory = args.export[1:] or [os.path.join(config.model_path, "export")]
        saved_model.export(config, directory[0])
        print(directory[0], flush=True)
    elif lays_out(args):
        lay_out(config, args)
    elif args.preflight:
        # Read when TensorFlow is loaded. Folded, masks and the like become large constants.
        os.environ.setdefault("TF_XLA_FLAGS", "--tf_xla_disable_constant_folding=true")
        from training import preflight

        preflight.run(config, args.preflight)
    else:
        from training import run

        if args.eval:
            run.evaluate(config, tpu=tpu)
        else:
            # A config may name the checkpoint to sample from; training is about the newest.
            if config.checkpoint != "latest":
                config = config.replace(checkpoint="latest")
            run.train(config, new=args.new, yes=args.yes, tpu=tpu)
    return 0


def main(argv=None):
    """Runs the command line; returns its exit status."""
    args = parse(argv)
    set_up_logging(args.quiet, args.verbose)
    return status_of(run_job, args, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
