"""Downloads encoders, sample data and CLIP's weights.

    python datasets/download.py tinyshakespeare gpt2 --output_dir data
    python datasets/download.py --url https://example.org/text.jsonl.zst --output_dir gs://bucket/raw

A download that was cut off goes on when the same command is given again. Files whose checksum is
known are checked, and what is there already is not fetched again.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from configs.command_line import Parser, add_loudness, set_loudness, status_of  # noqa: E402
from configs.errors import UserError  # noqa: E402

_GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2"
_CLIP = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"

# By name: what it is, and its files: (URL, path below --output_dir, SHA-256 or None).
FILES = {
    "tinyshakespeare": ("40,000 lines of Shakespeare's plays, for docs/shakespeare.md", [
        ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
         "input.txt", "tinyshakespeare.txt",
         "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed")]),
    "gpt2": ("GPT-2's encoder, for --encoder gpt2:DIR", [
        (f"{_GPT2}/encodings/main/encoder.json", "gpt2/encoder.json",
         "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
        (f"{_GPT2}/encodings/main/vocab.bpe", "gpt2/vocab.bpe",
         "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")]),
    "clip": ("CLIP's merges, for --encoder clip:FILE", [
        ("https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",
         "bpe_simple_vocab_16e6.txt.gz",
         "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a")]),
    "pythia": ("the tokenizer.json of GPT-NeoX and Pythia", [
        ("https://huggingface.co/EleutherAI/pythia-160m/resolve/main/tokenizer.json",
         "pythia/tokenizer.json", None)]),
    "lambada": ("OpenAI's LAMBADA, for eval_tasks", [
        (f"{_GPT2}/data/lambada_test.jsonl", "lambada_test.jsonl",
         "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226")]),
    "clip_vit_b32": ("OpenAI's CLIP ViT-B/32, 340 MB, for main.py --import_from", [
        (f"https://openaipublic.azureedge.net/clip/models/{_CLIP}/ViT-B-32.pt", "ViT-B-32.pt",
         _CLIP)]),
}


def parser():
    """The command line."""
    listed = "\n".join(f"  {name:16} {what}" for name, (what, _) in FILES.items())
    p = Parser(description=__doc__, epilog=f"names:\n{listed}")
    p.add_argument("names", nargs="*", metavar="NAME", help="what to fetch: a name of those below")
    p.add_argument("--output_dir", default="data", help="where it goes (default data); may be on "
                   "any file system that TensorFlow knows, such as gs://")
    p.add_argument("--url", help="any other file to fetch")
    p.add_argument("--sha256", metavar="HEX", help="its checksum")
    add_loudness(p)
    return p


def wanted(args):
    """The (URL, path below --output_dir, SHA-256 or None) of each file that is asked for.

    Raises:
        UserError: a name is unknown, or nothing is asked for.
    """
    for name in args.names:
        if name not in FILES:
            raise UserError(f"{name}: unknown; there are {', '.join(FILES)}, and --url")
    if args.sha256 and not args.url:
        raise UserError("--sha256: belongs to --url")
    found = [file for name in args.names for file in FILES[name][1]]
    if args.url:
        name = os.path.basename(args.url.partition("?")[0])
        if not args.url.startswith(("http://", "https://")) or not name:
            raise UserError(f"--url {args.url}: must begin with http:// or https:// and end in a "
                            "file's name")
        found.append((args.url, name, args.sha256 and args.sha256.lower()))
    if not found:
        raise UserError(f"nothing to fetch: give a name, of {', '.join(FILES)}, or --url")
    return found


def download(args):
    """Fetches all files, and prints their paths.

    Raises:
        UserError: some cannot be had; says which, and where to put them.
    """
    files = wanted(args)
    import downloads

    missing = []
    for url, name, sha256 in files:
        path = os.path.join(args.output_dir, name)
        try:
            downloads.fetch(url, path, sha256)
        except downloads.Unreachable as error:
            missing.append(f"{error}; fetch it otherwise and put it at {path}")
        else:
            print(path, flush=True)
    if missing:
        raise UserError("; ".join(missing))


def main(argv=None):
    """The program; a user's mistake is one line and exit status 2."""
    args = parser().parse_args(argv)
    set_loudness(args.quiet, args.verbose)
    return status_of(download, args, stopped="interrupted; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
