# PYTHON_ARGCOMPLETE_OK
"""Makes TFRecords from text.

    python datasets/create_tfrecords.py --input_dir books/*.txt --name books --encoder gpt2 \\
        --output_dir data/ --val_fraction 0.01 --write_dataset_config

A killed run goes on where it stopped when the same command is given again, and ends with the same
files as an unbroken one.
"""

import os
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configs import old_flags  # noqa: E402
from configs.command_line import Parser, add_loudness, set_loudness, status_of  # noqa: E402
from configs.errors import UserError  # noqa: E402

SMALL_INPUT = 1 << 22  # bytes: less than this is encoded sooner than processes start


def parser():
    """The command line."""
    p = Parser(description=__doc__, former=old_flags.CREATE_TFRECORDS)
    source = p.add_argument_group("input")
    source.add_argument("--input_dir", nargs="+", default=[], metavar="PATH",
                        help="files, directories, globs, or .index files that list such: .txt "
                        ".jsonl .json .dat .tar, also with .gz .xz .zst .bz2; .tgz")
    source.add_argument("--tfds", metavar="NAME[:SPLIT]",
                        help="a split (default train) of a TensorFlow dataset or its directory")
    source.add_argument("--text_key", default="text", help="JSON key or TFDS feature of the text "
                        "(default text)")
    source.add_argument("--ftfy", action="store_true", help="mend the text with ftfy first")
    source.add_argument("--wikitext_detokenize", action="store_true", help="undo the form of "
                        "WikiText, where \"it 's 3 @-@ 4 , ( so )\" is \"it's 3-4, (so)\"")
    source.add_argument("--minimum_size", type=int, default=1, metavar="TOKENS",
                        help="drop documents with fewer tokens (default 1: only empty ones)")
    source.add_argument("--min_unique_tokens", type=int, default=0, metavar="N",
                        help="drop documents that go on for a chunk (--chunk_size tokens) with "
                        "fewer than N different tokens, such as 200 (default 0: none)")
    source.add_argument("--maximum_size", type=int, default=1 << 30, metavar="BYTES",
                        help="refuse documents, and .json files, that unpack to more (default "
                        "%(default)s), but none that is stored with as many")
    source.add_argument("--on_error", choices=["refuse", "skip"], default="refuse",
                        help="what to do with unreadable or empty inputs (default refuse)")
    out = p.add_argument_group("output")
    out.add_argument("--name", required=True, help="shards are NAME_<i>_<records>.tfrecords and "
                     "NAME_val_<i>_<records>.tfrecords")
    out.add_argument("--output_dir", default="tfrecords", help="default tfrecords")
    out.add_argument("--encoder", required=True,
                     help="byte, clip, gpt2, gpt2:DIR, char:FILE, a tokenizer.json, or char: "
                     "characters of the input, found in a first pass")
    out.add_argument("--mode", choices=["chunks", "documents"], default="chunks",
                     help="chunks: one stream cut into equal records; documents: one a record "
                     "(default chunks)")
    out.add_argument("--chunk_size", type=int, default=2048, help="tokens a chunk (default 2048)")
    out.add_argument("--separator", type=int, nargs="+", metavar="ID",
                     help="ids behind each document (default: the encoder's end of text)")
    out.add_argument("--files_per", type=int, default=100000, metavar="RECORDS",
                     help="records a shard (default 100000)")
    out.add_argument("--val_fraction", type=float, default=0.0,
                     help="share of the documents that goes to validation (default 0)")
    out.add_argument("--val_tail", action="store_true",
                     help="take the share from the end of each document instead")
    out.add_argument("--seed", type=int, default=1, help="of the order of the input files and of "
                     "the choice of validation documents (default 1)")
    out.add_argument("--write_dataset_config", nargs="?", const="", metavar="FILE",
                     help="write a dataset config (default configs/datasets/NAME.json)")
    out.add_argument("--overwrite", action="store_true", help="replace what another run left")
    run = p.add_argument_group("run")
    run.add_argument("--processes", type=int, default=0, help="0, the default: one a core")
    run.add_argument("--checkpoint_seconds", type=float, default=60.0,
                     help="how often to store what a restart goes on from (default 60)")
    add_loudness(p)
    return p


def check_numbers(args):
    """Refuses values that no run can use, before anything slow is imported."""
    for name, least in (("minimum_size", 0), ("min_unique_tokens", 0), ("maximum_size", 1),
                        ("chunk_size", 1),
                        ("files_per", 1), ("processes", 0), ("checkpoint_seconds", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")
    if args.min_unique_tokens > args.chunk_size:
        raise UserError(f"--min_unique_tokens {args.min_unique_tokens}: no chunk of "
                        f"{args.chunk_size} tokens (--chunk_size) has as many")
    if not 0 <= args.val_fraction < 1:
        raise UserError(f"--val_fraction {args.val_fraction}: must be at least 0 and below 1")
    if args.val_tail and not args.val_fraction:
        raise UserError("--val_tail: give the share with --val_fraction, such as 0.1")
    if not args.input_dir and not args.tfds:
        raise UserError("nothing to read: give --input_dir or --tfds")


def train_characters(args, paths, output):
    """Writes the encoder of all characters of the inputs, the first pass of a bare `char`."""
    from batches import read_batches
    from encoding import texts_of

    from encoders import char
    job = make_job(args, "char", ())
    texts = (text for batch in read_batches(args, paths, [0, 0])
             for text in texts_of(job, batch.documents))
    output.write_new(output.encoder, char.train(texts).to_str(pretty=True))


def make_job(args, spec, separator):
    """The encoding.Job of the command line."""
    from encoding import Job
    return Job(encoder=spec, separator=tuple(separator), minimum_size=args.minimum_size,
               ftfy=args.ftfy, wikitext=args.wikitext_detokenize,
               val_fraction=args.val_fraction, val_tail=args.val_tail, seed=args.seed,
               min_unique_tokens=args.min_unique_tokens, window=args.chunk_size)


def settings_of(args, paths, sizes, encoder):
    """All that decides the output, as JSON values, for comparison with an unfinished run.

    Raises:
        UserError: the encoder's vocabulary lacks an id of the separator.
    """
    same = {name: getattr(args, name) for name in
            ("encoder", "mode", "files_per", "minimum_size", "min_unique_tokens", "ftfy",
             "wikitext_detokenize", "val_fraction", "val_tail", "text_key", "seed")}
    if args.mode == "chunks" or args.min_unique_tokens:
        same["chunk_size"] = args.chunk_size
    separator = args.separator or (encoder and [encoder.eos_id])
    for number in separator if encoder else []:
        if not 0 <= number < encoder.n_vocab:
            raise UserError(f"--separator {number}: {encoder.spec} has ids 0 to "
                            f"{encoder.n_vocab - 1}; leave it out for {encoder.eos_id}, its end "
                            "of text")
    return {**same, "separator": separator, "encoder hash": encoder and encoder.hash,
            "number of inputs": len(paths), "inputs": paths, "sizes of inputs": sizes}


def dataset_config(args, output, encoder):
    """The text of the dataset config; it depends on the command alone."""
    from configs.dataset import DatasetConfig
    return DatasetConfig(
        path=output.glob("train"),
        eval_path=output.glob("validation") if args.val_fraction else None,
        encoder=encoder.spec, encoder_hash=encoder.hash, n_vocab=encoder.n_vocab,
        eos_id=encoder.eos_id, about="written by datasets/create_tfrecords.py").to_json()


def write_shards(args, paths, sizes, encoder, output, settings, state):
    """Encodes all documents and writes all shards.

    Args:
        state: where an earlier run stopped, or None.

    Returns:
        (writers by split, Totals).
    """
    from accounts import Totals
    from batches import read_batches, reading_order
    from encoding import SPLITS, encode_in_order
    from shards import SplitWriter

    from configs.progress import tqdm
    job = make_job(args, encoder.spec, settings["separator"])
    state = state or {"begin": [0, 0], "totals": None, "splits": {}}
    totals = Totals(state["totals"])
    chunk_size = args.chunk_size if args.mode == "chunks" else 0
    writers = {split: SplitWriter(output.directory, args.name, split, chunk_size, args.files_per,
                                  encoder.hash, state["splits"].get(split)) for split in SPLITS}

    def checkpoint(end):
        output.save(settings, {"begin": end, "totals": totals.state, "splits": {
            split: writer.checkpoint() for split, writer in writers.items()}})
        for writer in writers.values():
            writer.sweep()

    order = reading_order(len(paths), args.seed)
    done = sum(sizes[number] for number in order[:state["begin"][0]])
    checkpoint(state["begin"])  # from here on what is in the directory is known to be this run's
    began = last = time.monotonic()
    batches = read_batches(args, paths, state["begin"])
    with tqdm(total=sum(sizes), initial=done, unit="B", unit_scale=True) as bar:
        for batch, result in encode_in_order(job, encoder, batches, processes_for(args, sizes)):
            totals.add(batch, result)
            for split, writer in writers.items():
                writer.add(result.splits[split])
            now = time.monotonic()
            fresh = totals.state["tokens_in"] - totals.tokens_before
            bar.set_postfix_str(f"{fresh / (now - began):,.0f} tokens/s", refresh=False)
            bar.update(batch.read)
            if now - last >= args.checkpoint_seconds:
                checkpoint(batch.end)
                last = time.monotonic()
    for writer in writers.values():
        writer.finish()
    return writers, totals


def processes_for(args, sizes):
    """How many processes encode: as told, or one a core if there is enough to do."""
    if args.processes:
        return args.processes
    return 1 if sum(sizes) < SMALL_INPUT else os.cpu_count()


def make(args):
    """Makes the dataset that the command line describes."""
    import accounts
    from batches import find_inputs
    from output import Output, encoder_from_anywhere

    import encoders
    output = Output(args.output_dir, args.name, args.overwrite)
    paths, sizes = find_inputs(args)
    trains = args.encoder == "char"
    spec = encoder_from_anywhere(f"char:{output.encoder}" if trains else args.encoder)
    # characters are known only after a pass over the inputs, which an unfinished run has made
    encoder = None if trains and not output.unfinished_characters() else encoders.load(spec)
    state, finished = output.begin(settings_of(args, paths, sizes, encoder))
    if finished:
        print(f"wrote {output.manifest}")
        return
    if trains and (state is None or encoder is None):
        train_characters(args, paths, output)
        encoder = encoders.load(spec)
    settings = settings_of(args, paths, sizes, encoder)
    config_path = args.write_dataset_config
    if config_path == "":
        config_path = os.path.join(ROOT, "configs", "datasets", args.name + ".json")
    config = dataset_config(args, output, encoder)
    if config_path:
        output.prepare(config_path, config)
    writers, totals = write_shards(args, paths, sizes, encoder, output, settings, state)
    totals.check(writers)
    accounts.check_splits(args, writers, totals)
    if config_path:
        output.write_new(config_path, config)
    output.finish(accounts.make_manifest(args, encoder, settings["separator"], writers, totals))
    print(accounts.summary(output, writers, totals))
    if config_path:
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
    return status_of(run, args,
                     stopped="stopped; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
