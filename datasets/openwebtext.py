# PYTHON_ARGCOMPLETE_OK
"""Makes JSONL of the archives of web text: OpenWebText's own, WARC files, pages.

    python datasets/openwebtext.py --input openwebtext.tar.xz --name owt --output_dir data/owt \\
        --ftfy --minimum_size 300

Takes the text out, mends it, and leaves out short documents and those that came before. A killed
run goes on where it stopped when the same command is given again, and ends with the same files as
an unbroken one.
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs.command_line import Parser, add_loudness, set_loudness, status_of  # noqa: E402
from configs.errors import UserError  # noqa: E402

SMALL_INPUT = 1 << 20  # bytes: less than this is done sooner than processes start


def parser():
    """The command line."""
    p = Parser(description=__doc__)
    source = p.add_argument_group("input")
    source.add_argument("--input", nargs="+", required=True, metavar="PATH",
                        help="files, directories, globs, or .index files that list such: .tar "
                        "(of *_data.xz too, as OpenWebText is published), .txt .html .htm .warc "
                        ".wet, also with .gz .xz .zst .bz2; .tgz")
    source.add_argument("--on_error", choices=["refuse", "skip"], default="refuse",
                        help="what to do with what is damaged or empty (default refuse)")
    text = p.add_argument_group("text")
    text.add_argument("--ftfy", action="store_true", help="mend the text with ftfy")
    text.add_argument("--minimum_size", type=int, default=1, metavar="CHARACTERS",
                      help="leave out shorter texts (default 1: only empty ones)")
    text.add_argument("--maximum_size", type=int, default=10_000_000, metavar="BYTES",
                      help="leave out larger documents; counts the decompressed file or page "
                      "(default 10,000,000)")
    text.add_argument("--whole_pages", action="store_true",
                      help="all text of a page, with menus and the like")
    text.add_argument("--txt_pages", action="store_true",
                      help=".txt files are pages: what OpenWebText's scraper stores with --scraper "
                      "raw, in *_data.xz")
    out = p.add_argument_group("output")
    out.add_argument("--name", required=True, help="shards are NAME_<i>.jsonl.zst")
    out.add_argument("--output_dir", required=True, metavar="DIR")
    out.add_argument("--format", choices=["jsonl.zst", "jsonl"], default="jsonl.zst",
                     help="default jsonl.zst")
    out.add_argument("--files_per", type=int, default=100_000, metavar="DOCUMENTS",
                     help="documents a shard (default 100000)")
    out.add_argument("--overwrite", action="store_true", help="replace what another run left")
    run_group = p.add_argument_group("run")
    run_group.add_argument("--processes", type=int, default=0, help="0, the default: one a core")
    run_group.add_argument("--checkpoint_seconds", type=float, default=60.0,
                           help="how often to store what a restart goes on from (default 60)")
    add_loudness(p)
    return p


def check_numbers(args):
    """Refuses values that no run can use, before anything slow is imported."""
    for name, least in (("minimum_size", 0), ("maximum_size", 1), ("files_per", 1),
                        ("processes", 0), ("checkpoint_seconds", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {least}")


def find_inputs(args):
    """The inputs in natural order, and the size in bytes of each.

    Raises:
        UserError: an input is missing, or holds pages for which a library is missing.
    """
    import sources
    from openwebtext_text import resiliparse
    from unpacking import split_name
    from web_documents import FORMS
    ignored = []
    paths = sources.list_files(args.input, ignored, FORMS)
    if ignored:
        print(f"ignored {len(ignored)} files of other kinds, such as {min(ignored)}",
              file=sys.stderr)
    pages = (".html", ".htm", ".warc", *([".txt"] if args.txt_pages else []))
    if any(split_name(path, FORMS)[0] in pages for path in paths):
        resiliparse("extract.html2text")
    return paths, [sources.size_of(path) for path in paths]


def write_shards(args, files, settings, state, paths, sizes):
    """Reads all inputs and writes all shards.

    Args:
        files: run_files.RunFiles.
        settings: what decides the output.
        state: where an earlier run stopped, or None.

    Returns:
        (JsonlWriter, Counts).
    """
    from jsonl_shards import JsonlWriter
    from openwebtext_counts import Counts
    from openwebtext_reading import read_batches, texts_in_order
    from openwebtext_text import Job
    from seen_keys import SeenKeys

    from configs.progress import tqdm
    state = state or {"begin": [0, 0], "counts": None, "writer": None, "keys": 0}
    job = Job(args.minimum_size, args.maximum_size, args.ftfy, args.whole_pages,
              args.txt_pages)
    counts = Counts(args.on_error == "skip", state["counts"])
    writer = JsonlWriter(args.output_dir, args.name, args.format.endswith(".zst"), args.files_per,
                         state["writer"])
    seen = SeenKeys(args.output_dir, args.name, state["keys"])

    def checkpoint(end):
        files.save(settings, {"begin": end, "counts": counts.state, "keys": seen.store(),
                              "writer": writer.checkpoint()})
        writer.sweep()

    checkpoint(state["begin"])  # from here on what is in the directory is known to be this run's
    processes = args.processes or (1 if sum(sizes) < SMALL_INPUT else os.cpu_count())
    batches = read_batches(paths, sizes, state["begin"], args.maximum_size)
    last = time.monotonic()
    with tqdm(total=sum(sizes), initial=sum(sizes[:state["begin"][0]]), unit="B",
              unit_scale=True) as bar:
        for batch, result in texts_in_order(job, batches, processes):
            for document in result.documents:
                if counts.kept(document, seen.add(document.key)):
                    writer.add(document.text, document.url)
            counts.add(result)
            bar.set_postfix_str(f"{counts.state['kept']:,} documents", refresh=False)
            bar.update(batch.read)
            if time.monotonic() - last >= args.checkpoint_seconds:
                checkpoint(batch.end)
                last = time.monotonic()
    writer.finish()
    return writer, counts


def make(args):
    """Makes the files that the command line describes."""
    from run_files import RunFiles
    files = RunFiles(args.output_dir, args.name, args.overwrite,
                     r"(_\d+(\.jsonl(\.zst)?(\.tmp)?|\.part\d+\.tmp)|_keys\d+\.tmp)",
                     "_report.json")
    paths, sizes = find_inputs(args)
    decisive = ("minimum_size", "maximum_size", "ftfy", "whole_pages", "txt_pages",
                "format", "files_per")
    settings = {**{name: getattr(args, name) for name in decisive},
                "number of inputs": len(paths), "inputs": paths, "sizes of inputs": sizes}
    state, finished = files.begin(settings)
    if not finished:
        writer, counts = write_shards(args, files, settings, state, paths, sizes)
        counts.check(writer.shards)
        files.finish(counts.report(args.name, sum(sizes), writer.shards))
        print(counts.summary())
    print(f"wrote {files.last}")


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
