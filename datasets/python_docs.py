"""Writes Python's documentation of its own language as a JSONL file: a text without a download.

    python datasets/python_docs.py --out python_docs.jsonl

About 460 kB of English from the standard library's `pydoc_data.topics`, what `help("for")` shows;
one document a topic. The text is that of the running Python, under its licence (PSF).
"""

import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from configs.errors import UserError  # noqa: E402


def make_parser():
    """The command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="FILE.jsonl", required=True, help="the file to write")
    return parser


def lines():
    """The topics as JSON lines, sorted by name, each with its text."""
    from pydoc_data.topics import topics

    return [json.dumps({"topic": name, "text": topics[name]}) for name in sorted(topics)]


def main(argv=None):
    """The program; a user's mistake is one line and exit status 2."""
    args = make_parser().parse_args(argv)
    import tensorflow as tf
    from shards import write_atomically

    try:
        tf.io.gfile.makedirs(os.path.dirname(args.out) or ".")
        texts = lines()
        write_atomically(args.out, "\n".join(texts) + "\n")
        print(f"wrote {args.out}: {len(texts)} documents")
    except (UserError, tf.errors.OpError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
