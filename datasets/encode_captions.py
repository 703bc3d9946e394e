# PYTHON_ARGCOMPLETE_OK
"""Makes training TFRecords of pictures and captions for CLIP.

    python datasets/encode_captions.py --input data/scenes/pictures_train_*.tfrecords \\
        --val_input data/scenes/pictures_val_*.tfrecords --name scenes_pictures \\
        --output_dir data/scenes --encoder clip --write_dataset_config

Inputs are TFRecords of tf.train.Example with `image` (a PNG, JPEG, GIF or BMP) and `caption` (one
or more texts), as datasets/scenes.py writes them. Pictures are kept as they are found; all have to
be squares of one size. An unfinished run is begun again by the same command.
"""

import itertools
import json
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configs.command_line import Parser, add_loudness, set_loudness, status_of  # noqa: E402
from configs.errors import UserError  # noqa: E402

PROBLEMS_SHOWN = 20


def parser():
    """The command line."""
    p = Parser(description=__doc__)
    source = p.add_argument_group("input")
    source.add_argument("--input", nargs="+", required=True, metavar="GLOB",
                        help="TFRecords for training: globs, files, or index files that list them")
    source.add_argument("--val_input", nargs="+", default=[], metavar="GLOB",
                        help="TFRecords for validation")
    source.add_argument("--group", type=int, metavar="N",
                        help="consecutive pictures that stay together in a batch (default: what "
                        "manifest.json beside the input says, or 1)")
    source.add_argument("--on_error", choices=["refuse", "skip"], default="refuse",
                        help="what to do with the group of a picture that cannot be decoded, has "
                        "another size, or lacks captions (default refuse)")
    out = p.add_argument_group("output")
    out.add_argument("--name", required=True, help="shards are NAME_<i>_<records>.tfrecords and "
                     "NAME_val_<i>_<records>.tfrecords")
    out.add_argument("--output_dir", default="tfrecords", help="default tfrecords")
    out.add_argument("--encoder", required=True,
                     help="byte, clip, gpt2, gpt2:DIR, char:FILE or a tokenizer.json")
    out.add_argument("--files_per", type=int, default=10000, metavar="RECORDS",
                     help="records a shard, a multiple of the group (default 10000)")
    out.add_argument("--write_dataset_config", nargs="?", const="", metavar="FILE",
                     help="write a dataset config: a .json, or a name in configs/datasets/ "
                     "(default NAME)")
    out.add_argument("--overwrite", action="store_true", help="replace what another run left")
    add_loudness(p)
    return p


def check_numbers(args):
    """Refuses values that no run can use, before anything slow is imported."""
    for name in ("files_per", "group"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")


def group_of(args, paths):
    """Consecutive pictures that belong together: --group, or what the inputs' maker noted.

    Raises:
        UserError: shards would cut groups.
    """
    import tensorflow as tf
    group, note = args.group, os.path.join(os.path.dirname(paths[0]), "manifest.json")
    if group is None and tf.io.gfile.exists(note):
        with tf.io.gfile.GFile(note) as file:
            try:
                group = dict(json.loads(file.read())).get("group")
            except (ValueError, TypeError) as error:
                raise UserError(f"{note}: not a JSON object ({error}); mend it, or give --group"
                                ) from error
    group = 1 if group is None else group
    if type(group) is not int or group < 1:
        raise UserError(f"{note}: group is {group!r}, not a whole number; give --group")
    if args.files_per % group:
        raise UserError(f"--files_per {args.files_per}: is no multiple of the groups of {group} "
                        f"pictures; give {-(-args.files_per // group) * group}")
    return group


def example(picture):
    """A Picture as a serialised tf.train.Example: image; text, the ids of all captions one behind
    the other; lengths, the number of ids of each."""
    import tensorflow as tf
    found = tf.train.Example()
    found.features.feature["image"].bytes_list.value.append(picture.image)
    found.features.feature["text"].int64_list.value.extend(itertools.chain(*picture.captions))
    found.features.feature["lengths"].int64_list.value.extend(map(len, picture.captions))
    return found.SerializeToString(deterministic=True)


def find_inputs(args):
    """The input files of each split, in natural order.

    Raises:
        UserError: there are none, or one is for training and for validation.
    """
    from records.splits import expand, natural_order
    found = {split: sorted(expand(paths, flag), key=natural_order) for split, flag, paths in
             (("train", "--input", args.input), ("validation", "--val_input", args.val_input))}
    both = sorted(set(found["train"]) & set(found["validation"]))
    if both:
        raise UserError(f"{both[0]}: is matched by --input and by --val_input; give each split its "
                        "own files")
    return found


def write_split(pictures, split, paths, group, writer, bar):
    """Writes the shards of a split.

    Raises:
        UserError: no picture is left for it.
    """
    for found in pictures.groups(paths, group, whole=split == "train"):
        for picture in found:
            writer.add_record(example(picture), sum(map(len, picture.captions)),
                              picture.text_bytes, picture.decoded_bytes)
            bar.update()
    writer.finish()
    if paths and not writer.shards:
        raise UserError(f"no {split} picture is left (left out: {pictures.dropped}, "
                        f"{'; '.join(pictures.problems[:1]) or 'there were none'})")


def summary(output, pictures, writers):
    """Lines for people: what was written and what was left out."""
    lines = []
    for split, writer in writers.items():
        records, tokens = (sum(shard[fact] for shard in writer.shards)
                           for fact in ("records", "tokens"))
        lines.append(f"{split}: {records:,} pictures of {pictures.size} pixels a side, captions of "
                     f"{tokens:,} tokens, {len(writer.shards)} shards")
    if pictures.dropped:
        lines.append(f"left out: {pictures.dropped:,} pictures")
    lines += [f"  {line}" for line in pictures.problems[:PROBLEMS_SHOWN]]
    if len(pictures.problems) > PROBLEMS_SHOWN:
        lines.append(f"  … and {len(pictures.problems) - PROBLEMS_SHOWN} more problems, listed in "
                     "the manifest")
    return "\n".join([*lines, f"wrote {output.manifest}"])


def make_manifest(args, encoder, group, pictures, writers):
    """The manifest's content, with the fields of configs.dataset.Manifest."""
    from accounts import encoder_facts

    from configs.dataset import MANIFEST_FORMAT
    return {"format": MANIFEST_FORMAT, "name": args.name, "mode": "pictures",
            "image_size": pictures.size, "group": group, "chunk_size": 0, "separator": [],
            "seed": 0, "encoder": encoder_facts(encoder),
            "dropped": {"documents": pictures.dropped, "tokens": 0,
                        "why": "groups of pictures with a problem",
                        "problems": pictures.problems},
            "splits": {split: writer.shards for split, writer in writers.items()}}


def dataset_config(args, output, encoder):
    """The text of the dataset config."""
    from configs.dataset import DatasetConfig
    return DatasetConfig(
        path=output.glob("train"), eval_path=output.glob("validation") if args.val_input else None,
        encoder=encoder.spec, encoder_hash=encoder.hash, n_vocab=encoder.n_vocab,
        eos_id=encoder.eos_id, about="written by datasets/encode_captions.py").to_json()


def make(args):
    """Makes the dataset that the command line describes."""
    import sources
    from output import Output, encoder_from_anywhere, from_anywhere
    from picture_source import Pictures
    from shards import SplitWriter

    import encoders
    from configs import dataset_files
    from configs.progress import tqdm
    inputs = find_inputs(args)
    encoder = encoders.load(encoder_from_anywhere(args.encoder))
    group = group_of(args, inputs["train"])
    directory = from_anywhere(args.output_dir)
    output = Output(directory, args.name, args.overwrite)
    settings = {"encoder hash": encoder.hash, "group": group, "files_per": args.files_per,
                "inputs": inputs, "sizes of inputs": {
                    split: list(map(sources.size_of, paths)) for split, paths in inputs.items()}}
    _, finished = output.begin(settings)
    if finished:
        print(f"wrote {output.manifest}")
        return
    output.save(settings, {"begin": [0, 0]})  # what is in the directory from now on is this run's
    config, config_path = dataset_config(args, output, encoder), args.write_dataset_config
    if config_path is not None:
        config_path = dataset_files.path(config_path or args.name)
        output.prepare(config_path, config)
    pictures = Pictures(encoder, args.on_error == "skip")
    writers = {split: SplitWriter(directory, args.name, split, 0, args.files_per, encoder.hash)
               for split in inputs}
    with tqdm(unit=" pictures") as bar:
        for split, writer in writers.items():
            write_split(pictures, split, inputs[split], group, writer, bar)
    if config_path is not None:
        output.write_new(config_path, config)
    output.finish(make_manifest(args, encoder, group, pictures, writers))
    print(summary(output, pictures, writers))
    if config_path is not None:
        print(f"wrote {config_path}")


def run(args):
    """As `make`, which goes on by itself where storage was out of reach for a moment."""
    check_numbers(args)
    from records import retrying
    retrying.call(args.output_dir, make, args)


def main(argv=None):
    """Runs the command line; returns the exit status."""
    args = parser().parse_args(argv)
    set_loudness(args.quiet, args.verbose)
    return status_of(run, args, stopped="stopped; the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
