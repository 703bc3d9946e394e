"""What GPT-C's supervision costs: a training step with a student beside the plain GPT's.

    python benchmarks/gptc_cost.py

The same config with its student, and with clip.weight=0, which is the plain GPT; each in a process
of its own, in turns. The student is the config in configs/ of its run's name, with weights of
zeros, which are as fast as others. A table goes to stdout, and JSON as its last line.
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
    parser.add_argument("--model", metavar="CONFIG", default="gptc_162M",
                        help="of model gpt_c, 12 layers of 768 with a student of 12 of 512 "
                        "(gptc_162M)")
    parser.add_argument("--n_ctx", type=int, default=1024, help="(1024)")
    parser.add_argument("--batch", type=int, default=2, help="rows of a step (2)")
    parser.add_argument("--rounds", type=int, default=3, help="of each, after one to warm up (3)")
    parser.add_argument("--steps", type=int, default=1, help="steps of a round (1)")
    parser.add_argument("--profile", metavar="DIR", help="profile a step of each afterwards")
    turns.add_flags(parser)
    return parser.parse_args()


def main():
    args = parse()
    from configs import schema

    sets = [f"n_ctx={args.n_ctx}", f"train_batch_size={args.batch}", "eval_batch_size=2",
            "precision=float32", "tokens_per_mb_per_replica=null", "recompute_grad=false",
            "mesh_shape=x:2", "layout=batch:x", *args.set]
    # Ids that the student knows.
    vocab = schema.load(os.path.basename(schema.load(args.model, sets).clip.student)).n_vocab
    load, tokens = machine.warn_of_load(), args.batch * args.n_ctx
    with contextlib.ExitStack() as stack:
        both = []
        for name, more in (("GPT", ["clip.weight=0"]), ("GPT-C", [])):
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            trainers.write_dataset(directory, vocab)
            both.append(stack.enter_context(turns.Contestant(
                name, trainers.ours, args.threads, directory=directory, model=args.model,
                sets=sets + more)))
        turns.alternate(both, args.rounds, args.steps)
        turns.table(both, tokens)
        plain, clip = both
        result = {"model": args.model, "n_ctx": args.n_ctx, "train_batch_size": args.batch,
                  "set": args.set, "load_before": load, "time_ratio": turns.ratio(plain, clip),
                  "memory_ratio": clip.peak() / plain.peak(),
                  **{one.name: one.figures(tokens) for one in both}}
        print(f"a step of GPT-C takes {result['time_ratio']:.2f} times the GPT's")
        if args.profile:
            turns.profiles(both, args.profile)
        turns.finish(result, args.out)


if __name__ == "__main__":
    main()
