# PYTHON_ARGCOMPLETE_OK
"""Flags, then a checked config, then one job."""

import logging
import os
import re
import sys

from configs import flags
from configs.command_line import set_loudness, status_of
from configs.errors import UserError


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
    except tf.errors.FailedPreconditionError as error:
        raise UserError(f"{flag} {path}: is a directory; give a file") from error


def predict(config, args, tpu=None):
    """Samples, or fills in masks, as the flags say, on a mesh.cloud.Tpu where there is one.

    Raises:
        UserError: the kind of model has nothing to do with a flag, or lacks one.
    """
    from training import filler, predictions

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
    predictions.predict(
        config, prompts=prompts or ([] if args.interactive else [""]),
        max_new_tokens=args.max_new_tokens or config.predict_max_steps, stop=args.stop, tpu=tpu,
        **settings)


def import_model(args):
    """Makes a run of what --import_from names: a language model, or else a CLIP text tower."""
    from interop import hub, import_clip, import_gpt, sources

    path = hub.local(args.import_from)
    source = sources.find(path)
    take = import_gpt.import_gpt if source else import_clip.import_clip
    take(source or path, args.model_path, new=args.new, yes=args.yes)


def export(config, kind="saved_model", directory=None):
    """Writes the run for use elsewhere, and prints where."""
    if kind == "hf":
        from interop import export_hf as module
    else:
        from interop import saved_model as module
    name = {"saved_model": "export", "hf": "export_hf"}[kind]
    directory = directory or os.path.join(config.model_path, name)
    module.export(config, directory)
    print(directory, flush=True)


def start_from(source, directory):
    """The training.starting.Start of an `init_from` that is no run."""
    from interop import hub, import_gpt

    return import_gpt.start(hub.local(source), directory)


def lay_out(config, args):
    """Does the job about layouts that the flags ask for."""
    if args.job == "explain_layout":
        from training import explain_layout

        explain_layout.run(config, args.explain_layout or config.model_path)
    elif args.job == "search_layouts":
        from training import search_layouts

        search_layouts.run(config, args.search_layouts, args.write)
    else:
        from training import auto_layout

        auto_layout.run(config, shape_too=args.job == "auto_layout_and_mesh_shape",
                        cores=args.auto_layout_and_mesh_shape, write=args.write)


def join(config, args):
    """The mesh.cluster.Hosts of which this process is to be one, or None."""
    from configs import cluster

    found = cluster.of_flags(args.cluster, args.worker, args.allow_remote, os.environ)
    if found is None:
        for name in ("wait_for_workers", "allow_remote"):
            if getattr(args, name):
                raise UserError(f"--{name}: there is no cluster; give --cluster FILE, or TF_CONFIG")
        return None
    from mesh.cluster import Hosts

    return Hosts(found, config, args.wait_for_workers)


def run_job(args):
    """Loads the config and does the one job that the flags ask for; returns an exit status."""
    if args.job == "preflight" or "layout" in args.job:
        # Read when TensorFlow is loaded. Folded, masks and the like become large constants.
        os.environ.setdefault("TF_XLA_FLAGS", "--tf_xla_disable_constant_folding=true")
    if args.job == "import_from":
        import_model(args)
        return 0
    if args.job == "report":
        from training import report

        report.run(args.report, args.out or "report.html")
        return 0
    if args.job == "sweep":
        from training import sweep

        passed = [f"--{name}={getattr(args, name)}"
                  for name in ("tpu", "tpu_zone", "gcp_project", "recreate_tpu")
                  if getattr(args, name) is not None]
        sweep.run(args.sweep, args.model_path, passed)
        return 0
    from configs import schema

    overrides = {key: getattr(args, key) for key in ("model_path", "gpu_ids", "checkpoint",
                                                     "steps_per_checkpoint", "entmax_sampling",
                                                     "skip_corrupt")}
    config = schema.load(args.model, args.set, overrides)
    for note in [*args.notes, *config.notes]:
        logging.info("note: %s", note)
    tpu = None
    if args.tpu:
        from mesh import cloud

        cloud.check_paths(args.tpu, config.model_path, [
            path for dataset in config.dataset_configs.values() for path in dataset.paths])
        tpu = cloud.find(args.tpu, args.tpu_zone, args.gcp_project, config.mesh_size,
                         args.recreate_tpu)
    hosts = None
    if args.job in ("train", "eval") and not tpu:
        hosts = join(config, args)
        if args.worker is not None:
            return hosts.serve()
    if args.job == "print_config":
        other = schema.load(args.diff) if args.diff else None
        print(config.difference(other) if other else config.describe(), flush=True)
    elif args.job == "check_dataset":
        import inputs

        return 0 if inputs.check_dataset(config) else 1
    elif args.job == "predict":
        predict(config, args, tpu)
    elif args.job == "dry_run":
        from training import dry_run

        dry_run.run(config)
    elif args.job == "export":
        export(config, *args.export)
    elif "layout" in args.job:
        lay_out(config, args)
    elif args.job == "preflight":
        from training import preflight

        preflight.run(config, args.preflight, args.preflight_layers)
    else:
        from training import run

        if args.job == "eval":
            run.evaluate(config, tpu=tpu, hosts=hosts)
        else:
            # A config may name the checkpoint to sample from; training is about the newest.
            if config.checkpoint != "latest":
                config = config.replace(checkpoint="latest")
            run.train(config, new=args.new, yes=args.yes, tpu=tpu, elsewhere=start_from,
                      wandb=args.wandb, hosts=hosts)
    return 0


def main(argv=None):
    """Runs the command line; returns its exit status."""
    args = flags.parse(argv)
    set_loudness(args.quiet, args.verbose)
    return status_of(run_job, args, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
