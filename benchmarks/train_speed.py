"""Training steps a second, beside nanoGPT's model or transformers' GPT-2 on torch.

    python benchmarks/train_speed.py --nanogpt path/to/nanoGPT/model.py
    python benchmarks/train_speed.py --nanogpt path/to/nanoGPT/model.py --size 6x384x256 \\
        --vocab 50257 --steps 3 --rounds 5

Ours runs as main.py runs it: TPUEstimator, the input pipeline, dropout, clipping, AdamW, scalars
for the log. Theirs does what nanoGPT's train.py does in a step: random windows, forward, backward,
clipping, fused or looped AdamW as nanoGPT chooses, the loss as a number; eager, by torch.compile,
or both. All have the same sizes, batch and cores, and run in turn, each in a process of its own: a
round of ours, a round of each of theirs, and again.

A table of medians over rounds goes to stdout, and JSON as its last line; what counts is the ratio
to the faster one of theirs. Use an idle machine: torch's threads wait for each other, so that one
busy core makes theirs ten times slower.
"""

import argparse
import contextlib
import os
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks import machine, trainers, turns  # noqa: E402


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    trainers.add_flags(parser)
    parser.add_argument("--theirs", nargs="+", choices=("eager", "compiled"), default=["eager"],
                        help="how theirs runs; compiled takes a C++ compiler (eager)")
    parser.add_argument("--model", metavar="CONFIG", default="shakespeare_char",
                        help="whose sizes and optimizer (shakespeare_char)")
    parser.add_argument("--size", metavar="LAYERSxWIDTHxCONTEXT", help="in place of the config's")
    parser.add_argument("--vocab", type=int, default=65, help="token ids of the data (65)")
    parser.add_argument("--rounds", type=int, default=7, help="of each (7)")
    parser.add_argument("--warm", type=int, default=1,
                        help="rounds of each before them that do not count (1)")
    parser.add_argument("--steps", type=int, default=100, help="steps of a round (100)")
    parser.add_argument("--profile", metavar="DIR", help="profile a step of each afterwards")
    turns.add_flags(parser)
    return parser.parse_args()


def contestants(args, sets, directory):
    """Ours and theirs, as a list of turns.Contestant."""
    common = dict(threads=args.threads, model=args.model, sets=sets, vocab=args.vocab)
    name, path = trainers.peer(args.nanogpt)
    trainers.write_dataset(directory, args.vocab)
    return [turns.Contestant("ours", trainers.ours, directory=directory, **common),
            *(turns.Contestant(f"{name} {how}", trainers.theirs, path=path,
                               compiled=how == "compiled", **common) for how in args.theirs)]


def main():
    args = parse()
    from configs import schema

    sets = trainers.sets_of(args.size, args.set)
    config = schema.load(args.model, sets)
    load = machine.warn_of_load()
    tokens = config.train_batch_size * config.n_ctx
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        ours, *theirs = all_of_them = contestants(args, sets, directory)
        for one in all_of_them:
            stack.enter_context(one)
        turns.alternate(all_of_them, args.rounds, args.steps, args.warm)
        turns.table(all_of_them, tokens)
        fastest = min(theirs, key=lambda one: one.seconds)
        result = {"model": args.model, "n_layer": config.n_layer, "n_embd": config.n_embd,
                  "n_ctx": config.n_ctx, "train_batch_size": config.train_batch_size,
                  "vocab": args.vocab, "precision": config.precision, "threads": args.threads,
                  "steps": args.steps, "load_before": load, "baseline": fastest.name,
                  "speed_ratio": turns.ratio(ours, fastest),
                  "processor_ratio": turns.ratio(ours, fastest, "processor_seconds"),
                  "peak_memory_ratio": ours.peak() / fastest.peak(),
                  **{one.name: one.figures(tokens) for one in all_of_them}}
        print(f"ours is {result['speed_ratio']:.2f} times as fast as {fastest.name} by the clock, "
              f"{result['processor_ratio']:.2f} by time on the processor (medians of rounds); "
              f"{result['peak_memory_ratio']:.2f} of its memory")
        if args.profile:
            turns.profiles(all_of_them, args.profile)
        turns.finish(result, args.out)


if __name__ == "__main__":
    main()
