"""New tokens a second, beside transformers' generate with its cache, on the same weights.

    python benchmarks/generation.py

124M is GPT-2's shape with random weights, and demo the shape of configs/demo.json; transformers has
them as GPT-2 and as GPT-NeoX, and main.py --import_from's importer gives ours the same weights.
Both sample at temperature 1, and run in turn in this process: a round of ours, a round of theirs.
Theirs is float32; ours is what --precision says. Greedy tokens of both in float32 are compared too.
"""

import argparse
import contextlib
import logging
import os
import statistics
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks import in_turn  # noqa: E402

# Layers, heads, width, context and ids of the models; `tiny` is for trying this script.
SIZES = {"124M": (12, 12, 768, 1024, 50257), "demo": (4, 4, 128, 96, 1024),
         "tiny": (1, 2, 16, 32, 64)}


def parse_args(argv=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sizes", nargs="+", choices=SIZES, default=["124M", "demo"])
    p.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="samples at once (1 8)")
    p.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (%(default)s)")
    p.add_argument("--new", type=int, default=64, help="new tokens of a sample (%(default)s)")
    p.add_argument("--precision", choices=["float32", "bfloat16"], help="of ours (bfloat16 at 124M "
                   "if the processor multiplies it, else float32)")
    in_turn.add_flags(p, 5)
    return p.parse_args(argv)


def their_model(size):
    """transformers' model of a size, with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    layers, heads, width, context, ids = SIZES[size]
    # Of so large weights the tokens differ; with transformers' own one comes for ever.
    common = dict(vocab_size=ids, initializer_range=0.1, bos_token_id=None, eos_token_id=None)
    if size == "124M":
        config = transformers.GPT2Config(n_layer=layers, n_head=heads, n_embd=width,
                                         n_positions=context, **common)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.GPTNeoXConfig(
        num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width,
        intermediate_size=4 * width, max_position_embeddings=context, use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                         "partial_rotary_factor": 1.0}, hidden_act="gelu_new",
        tie_word_embeddings=True, **common)
    return transformers.GPTNeoXForCausalLM(config).eval()


class Ids:
    """An encoder without text, as transformers' generate has none, and without an end of text."""

    spec, name, eos_id, lossless = "ids", "ids", -1, True

    def __init__(self, n_vocab):
        self.n_vocab = n_vocab

    def decode(self, ids):
        """No text."""
        return ""


def multiplies_bfloat16():
    """Whether the processor has instructions for it."""
    with open("/proc/cpuinfo") as file:
        return "avx512_bf16" in file.read()


def precision_of(args, size):
    """What ours computes in."""
    if args.precision:
        return args.precision
    return "bfloat16" if size == "124M" and multiplies_bfloat16() else "float32"


def theirs(model, prompts, new, sample=True):
    """The new tokens of each prompt, a list of lists."""
    import torch

    ids = torch.tensor(prompts)
    with torch.no_grad():
        # top_k of 0 is all tokens; the default would be 50.
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=sample,
                              **({"top_k": 0} if sample else {}), min_new_tokens=new,
                              max_new_tokens=new, pad_token_id=0, use_cache=True)
    return made[:, ids.shape[1]:].tolist()


def ours(predictor, prompts, new, **settings):
    """The new tokens of each prompt, a list of lists."""
    return [sample.tokens for sample in predictor.generate(prompts, 1, new, **settings)]


def measure(args, size, directory):
    """Yields a dict of figures for each batch size."""
    import numpy as np

    from configs import schema
    from interop import import_gpt, sources
    from training.predictor import Predictor

    model = their_model(size)
    run = os.path.join(directory, f"{size}_run")
    with contextlib.redirect_stdout(sys.stderr):  # they tell of what they make
        model.save_pretrained(os.path.join(directory, size))
        import_gpt.import_gpt(sources.find(os.path.join(directory, size)), run)
    config, encoder = schema.load(run), Ids(SIZES[size][-1])
    for batch in args.batch:
        prompts = np.random.RandomState(batch).randint(0, encoder.n_vocab, [
            batch, args.prompt]).tolist()
        exact = Predictor(config.replace(predict_batch_size=batch, precision="float32"), encoder)
        pairs = zip(sum(ours(exact, prompts, args.new, temperature=0.0), []),
                    sum(theirs(model, prompts, args.new, sample=False), []), strict=True)
        same = sum(one == other for one, other in pairs)
        exact.close()
        precision = precision_of(args, size)
        predictor = Predictor(config.replace(predict_batch_size=batch, precision=precision),
                              encoder)
        seconds = in_turn.timed({"ours": lambda p=predictor, t=prompts: ours(p, t, args.new),
                                 "theirs": lambda t=prompts: theirs(model, t, args.new)},
                                args.rounds, f"{size}, batch {batch}")
        if args.profile:
            with in_turn.profiled(os.path.join(args.profile, f"{size}_{batch}")):
                ours(predictor, prompts, args.new)
        predictor.close()
        one, other = statistics.median(seconds["ours"]), statistics.median(seconds["theirs"])
        made = batch * args.new
        yield {"size": size, "batch": batch, "precision": precision, "prompt": args.prompt,
               "new": args.new, "tokens_per_second": made / one,
               "their_tokens_per_second": made / other, "ratio": other / one,
               "same_greedy_tokens": same / made, "rounds": seconds}


def main(argv=None):
    """Measures and prints."""
    args = parse_args(argv)
    load = in_turn.begin(args.threads)
    from configs.command_line import quiet_libraries

    quiet_libraries()
    import torch
    import transformers

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        found = [figures for size in args.sizes for figures in measure(args, size, directory)]
    in_turn.show(
        ["model", "batch", "ours", "tokens/s", "transformers", "ratio", "same greedy tokens"],
        [[f["size"], f["batch"], f["precision"], f"{f['tokens_per_second']:,.0f}",
          f"{f['their_tokens_per_second']:,.0f}", f"{f['ratio']:.2f}×",
          f"{f['same_greedy_tokens']:.1%}"] for f in found],
        {"threads": args.threads, "load_before": load, "results": found})


if __name__ == "__main__":
    main()
