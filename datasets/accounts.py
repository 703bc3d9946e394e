"""What came in held against what went out: conservation, the manifest and the summary."""

from configs.dataset import MANIFEST_FORMAT
from configs.errors import UserError


class Totals:
    """Counts of what came in, to be held against what went out; `state` goes into checkpoints."""

    def __init__(self, state=None):
        self.state = state or {"documents": 0, "tokens_in": 0, "dropped_documents": 0,
                               "dropped_tokens": 0, "problems": []}
        self.tokens_before = self.state["tokens_in"]

    def add(self, batch, result):
        """Adds a batch. A restart meets the problems before its place again: they count once."""
        for name in ("documents", "tokens_in", "dropped_documents", "dropped_tokens"):
            self.state[name] += getattr(result, name)
        known = set(self.state["problems"])
        self.state["problems"] += [line for line in batch.problems if line not in known]

    def check(self, writers):
        """Raises if tokens in differ from tokens out and dropped: a defect of this program."""
        out = sum(shard["tokens"] for writer in writers.values() for shard in writer.shards)
        if self.state["tokens_in"] != out + self.state["dropped_tokens"]:
            raise RuntimeError(f"tokens were lost: {self.state['tokens_in']} in, {out} out, "
                               f"{self.state['dropped_tokens']} dropped")


def check_splits(args, writers, totals):
    """Refuses a dataset without documents, or without the validation split that was asked for."""
    if not writers["train"].shards:
        raise UserError(f"no training document is left of {totals.state['documents']} (dropped: "
                        f"{totals.state['dropped_documents']}); check --input_dir, --minimum_size "
                        "and --val_fraction")
    if args.val_fraction and not writers["validation"].shards:
        raise UserError(f"none of {totals.state['documents']} documents fell to validation at "
                        f"--val_fraction {args.val_fraction}; raise it, or take the end of each "
                        "document with --val_tail")


def encoder_facts(encoder):
    """What a manifest tells of an encoder, with the fields of configs.dataset.EncoderFacts."""
    return {name: getattr(encoder, name) for name in
            ("spec", "hash", "n_vocab", "eos_id", "lossless")}


def make_manifest(args, encoder, separator, writers, totals):
    """The manifest's content, with the fields of configs.dataset.Manifest."""
    dropped = {"documents": totals.state["dropped_documents"],
               "tokens": totals.state["dropped_tokens"],
               "why": f"documents of fewer than {max(args.minimum_size, 1)} tokens" + (
                   f", or of fewer than {args.min_unique_tokens} different ones in "
                   f"{args.chunk_size}" if args.min_unique_tokens else ""),
               "problems": totals.state["problems"]}
    return {"format": MANIFEST_FORMAT, "name": args.name, "mode": args.mode,
            "chunk_size": args.chunk_size if args.mode == "chunks" else 0,
            "separator": separator, "seed": args.seed, "encoder": encoder_facts(encoder),
            "dropped": dropped,
            "splits": {split: writer.shards for split, writer in writers.items()}}


def summary(output, writers, totals):
    """Lines for people: what came in, what went out and what was left out."""
    state = totals.state
    parts, out = [], 0
    for split, writer in writers.items():
        tokens, documents, records = (sum(shard[fact] for shard in writer.shards)
                                      for fact in ("tokens", "documents", "records"))
        out += tokens
        parts.append(f"  {split}: {tokens:,} tokens of {documents:,} documents in {records:,} "
                     f"records, {len(writer.shards)} shards")
    lines = [f"tokens in {state['tokens_in']:,} (separators included) = tokens out {out:,} + "
             f"dropped {state['dropped_tokens']:,}", *parts]
    if state["dropped_documents"]:
        lines.append(f"  dropped as too short: {state['dropped_documents']:,} of "
                     f"{state['documents']:,} documents")
    lines += [f"  skipped: {line}" for line in state["problems"][:20]]
    if len(state["problems"]) > 20:
        lines.append(f"  … and {len(state['problems']) - 20} more, listed in the manifest")
    return "\n".join([*lines, f"wrote {output.manifest}"])
