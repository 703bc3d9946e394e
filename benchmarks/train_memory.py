"""Peak resident memory of training steps, beside nanoGPT's model or transformers' GPT-2 on torch.

    python benchmarks/train_memory.py --nanogpt path/to/nanoGPT/model.py

Ours as main.py runs it, and theirs eager, each alone in a process of its own: libraries, weights,
optimizer's moments, activations, gradients. Two steps, because moments are there from the first
update on. A table goes to stdout, and JSON as its last line.
"""

import argparse
import os
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks import trainers, turns  # noqa: E402


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    trainers.add_flags(parser)
    parser.add_argument("--model", metavar="CONFIG", default="shakespeare_char",
                        help="whose optimizer (shakespeare_char)")
    parser.add_argument("--size", metavar="LAYERSxWIDTHxCONTEXT", default="12x768x1024",
                        help="(12x768x1024)")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step (8)")
    parser.add_argument("--vocab", type=int, default=50257, help="token ids of the data (50257)")
    parser.add_argument("--steps", type=int, default=2, help="of each (2)")
    parser.add_argument("--only", choices=("ours", "theirs"), help="measure one of them")
    turns.add_flags(parser)
    return parser.parse_args()


def main():
    args = parse()
    sets = trainers.sets_of(args.size, [f"train_batch_size={args.batch}", *args.set])
    common = dict(threads=args.threads, model=args.model, sets=sets, vocab=args.vocab)
    name, path = trainers.peer(args.nanogpt)
    result = {"size": args.size, "batch": args.batch, "vocab": args.vocab, "set": args.set}
    with tempfile.TemporaryDirectory() as directory:
        trainers.write_dataset(directory, args.vocab)
        for key, one, run, settings in (
                ("ours", "ours", trainers.ours, {"directory": directory}),
                ("theirs", name, trainers.theirs, {"path": path, "compiled": False})):
            if args.only in (None, key):
                with turns.Contestant(one, run, **settings, **common) as contestant:
                    for _ in range(args.steps):
                        contestant.steps(1)
                    result[key] = {"name": one, "peak_bytes": contestant.peak(),
                                   "seconds": [r.seconds for r in contestant.rounds]}
                print(f"{one:14}{result[key]['peak_bytes'] / 2 ** 30:8.2f} GiB", flush=True)
    if not args.only:
        result["ratio"] = result["ours"]["peak_bytes"] / result["theirs"]["peak_bytes"]
        print(f"ours takes {result['ratio']:.2f} times the memory of {name}")
    turns.finish(result, args.out)


if __name__ == "__main__":
    main()
