"""Writes Python's documentation of its own language as a JSONL file: a text without a download.

    python datasets/python_docs.py --out python_docs.jsonl

About 460 kB of English from the standard library's `pydoc_data.topics`, what `help("for")` shows;
one document a topic. The text is that of the running Python, under its licence (PSF).
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs.command_line import Parser, quiet_libraries, status_of  # noqa: E402


def parser():
    """The command line."""
    p = Parser(description=__doc__)
    p.add_argument("--out", metavar="FILE.jsonl", required=True, help="the file to write")
    return p


def lines():
    """The topics as JSON lines, sorted by name, each with its text."""
    from pydoc_data.topics import topics

    return [json.dumps({"topic": name, "text": topics[name]}) for name in sorted(topics)]


def run(args):
    """Writes the file that the command line names."""
    from output import make_directory
    from shards import write_atomically

    make_directory(os.path.dirname(args.out) or ".", f"{args.out}: its directory")
    texts = lines()
    write_atomically(args.out, "\n".join(texts) + "\n")
    print(f"wrote {args.out}: {len(texts)} documents")


def main(argv=None):
    """Runs the command line; returns the exit status."""
    args = parser().parse_args(argv)
    quiet_libraries()
    return status_of(run, args)


if __name__ == "__main__":
    sys.exit(main())
