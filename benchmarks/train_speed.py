"""Training steps a second, beside nanoGPT's model or transformers' GPT-2 on torch.

    python benchmarks/train_speed.py --nanogpt path/to/nanoGPT/model.py

Ours runs as main.py runs it: TPUEstimator, the input pipeline, dropout, clipping, AdamW, scalars
for the log. Theirs does what nanoGPT's train.py does in a step: random windows, forward, backward,
clipping, fused or looped AdamW as nanoGPT chooses, the loss as a number. Both have the same sizes,
batch and cores, and run in turn in this process: a round of ours, a round of theirs, and again.

A table of medians over rounds goes to stdout, and JSON as its last line. Use an idle machine:
torch's threads wait for each other, so that one busy core makes theirs ten times slower.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

TOKENS = 1 << 20


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", metavar="FILE", help="nanoGPT's model.py, of a checkout of "
                        "karpathy/nanoGPT; without it, transformers' GPT2LMHeadModel is measured")
    parser.add_argument("--compile", action="store_true", help="theirs by torch.compile; it takes "
                        "a C++ compiler")
    parser.add_argument("--model", metavar="CONFIG", default="shakespeare_char",
                        help="whose sizes and optimizer (shakespeare_char)")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                        help="override a key of the config, such as n_layer=6; may be repeated")
    parser.add_argument("--vocab", type=int, default=65, help="token ids of the data (65)")
    parser.add_argument("--rounds", type=int, default=7, help="of each, after one to warm up (7)")
    parser.add_argument("--steps", type=int, default=100, help="steps of a round (100)")
    parser.add_argument("--threads", type=int, default=2, help="and cores, of each library (2)")
    return parser.parse_args()


class Theirs:
    """A torch GPT with nanoGPT's training step."""

    def __init__(self, config, vocab, path, threads, compiled):
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(1337)
        self._torch, self._config = torch, config
        self._data = torch.randint(vocab, (TOKENS,))
        sizes = dict(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)
        if path:
            self.name = "nanoGPT"
            spec = importlib.util.spec_from_file_location("nanogpt_model", path)
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self._model = module.GPT(module.GPTConfig(
                block_size=config.n_ctx, vocab_size=vocab, dropout=config.res_dropout, bias=False,
                **sizes))
            self._optimizer = self._model.configure_optimizers(
                config.weight_decay, config.lr, (config.beta1, config.beta2), "cpu")
        else:
            self.name = "transformers"
            self._model, self._optimizer = self._transformers(vocab, sizes)
        self._model.train()
        if compiled:
            self._model = torch.compile(self._model)

    def _transformers(self, vocab, sizes):
        import transformers

        torch, config = self._torch, self._config
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            n_positions=config.n_ctx, vocab_size=vocab, bos_token_id=0, eos_token_id=0,
            resid_pdrop=config.res_dropout, embd_pdrop=config.embed_dropout,
            attn_pdrop=config.attn_dropout, use_cache=False, **sizes))
        decayed = [p for p in model.parameters() if p.dim() >= 2]
        kept = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay},
                  {"params": kept, "weight_decay": 0.0}]
        return model, torch.optim.AdamW(groups, config.lr, (config.beta1, config.beta2))

    def step(self):
        """One update; returns the loss."""
        torch, n = self._torch, self._config.n_ctx
        starts = torch.randint(len(self._data) - n, (self._config.train_batch_size,))
        tokens = torch.stack([self._data[i:i + n] for i in starts])
        targets = torch.stack([self._data[i + 1:i + 1 + n] for i in starts])
        if self.name == "nanoGPT":
            _, loss = self._model(tokens, targets)
        else:
            logits = self._model(tokens).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        if self._config.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(),
                                           self._config.gradient_clipping)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()


class Stopwatch:
    """Seconds a step on the clock and on the processor, of each round."""

    def __init__(self, steps):
        self._steps, self.rounds = steps, []

    def start(self):
        self._begun = time.perf_counter(), time.process_time()

    def stop(self):
        ended = time.perf_counter(), time.process_time()
        self.rounds.append([(b - a) / self._steps for a, b in zip(self._begun, ended,
                                                                   strict=True)])

    def medians(self):
        """(seconds on the clock, on the processor) of a step; the first round does not count."""
        return [statistics.median(column) for column in zip(*self.rounds[1:], strict=True)]


def alternate(steps, ours, theirs, step):
    """A hook that stops the clock after each round of ours, and then runs a round of theirs."""
    from mesh.compat import tf

    class Alternate(tf.train.SessionRunHook):
        done = 0

        def after_run(self, run_context, run_values):
            self.done += 1
            if self.done > 1 and (self.done - 1) % steps == 0:
                ours.stop()
                theirs.start()
                for _ in range(steps):
                    step()
                theirs.stop()
            if (self.done - 1) % steps == 0:  # the very first step compiles the graph
                ours.start()

    return Alternate()


def write_dataset(directory, vocab):
    """A shard of random ids, which train at the same speed as text; returns its JSON's path."""
    import numpy as np

    from mesh.compat import tf

    ids = np.random.RandomState(0).randint(0, vocab, [TOKENS // 1024, 1024])
    with tf.io.TFRecordWriter(f"{directory}/random_0_{len(ids)}.tfrecords") as file:
        for row in ids:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=row))
            file.write(tf.train.Example(features=tf.train.Features(
                feature={"text": feature})).SerializeToString())
    path = f"{directory}/random.json"
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps({"path": f"{directory}/random_0_*.tfrecords", "n_vocab": vocab}))
    return path


def measure(args, directory):
    """Runs both in turn; returns (config, the baseline's name, our Stopwatch, theirs)."""
    import inputs
    from configs import schema
    from mesh import devices
    from training import language, metrics, run

    config = schema.load(args.model, args.set)
    devices.prepare(config)
    steps = 1 + args.steps * (args.rounds + 1)
    config = config.replace(
        datasets=[[write_dataset(directory, args.vocab), 1, "chunks", 1.0]],
        model_path=f"{directory}/run", n_vocab=args.vocab, train_steps=steps, lr_decay_end=None,
        steps_per_checkpoint=steps, eval_steps=0)
    with contextlib.redirect_stdout(sys.stderr):  # nanoGPT's model tells its size
        theirs = Theirs(config, args.vocab, args.nanogpt, args.threads, args.compile)
    facts = inputs.dataset_facts(config, "train")
    meter = metrics.Meter(config, facts, metrics.Writer(config.model_path))
    our_time, their_time = Stopwatch(args.steps), Stopwatch(args.steps)
    run.make_estimator(config, language.Language(config, facts), meter).train(
        inputs.train_input_fn(config, 0), max_steps=steps,
        hooks=[alternate(args.steps, our_time, their_time, theirs.step)])
    meter.close()
    return config, theirs.name, our_time, their_time


def main():
    args = parse()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the load average is {load:.1f}: other work shares the cores, which the "
              "measurement will show", file=sys.stderr)
    # Ours shares out the cores that it may use, as it does in main.py.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.threads])
    import logging

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        config, name, ours, theirs = measure(args, directory)
    tokens = config.train_batch_size * config.n_ctx
    result = {"model": args.model, "n_layer": config.n_layer, "n_embd": config.n_embd,
              "n_ctx": config.n_ctx, "train_batch_size": config.train_batch_size,
              "threads": args.threads, "rounds": args.rounds, "steps": args.steps,
              "load_before": load, "baseline": name, "compiled": args.compile}
    print(f"{'':14}{'ms a step':>12}{'tokens/s':>12}{'processor ms':>14}")
    for key, label, watch in (("ours", "ours", ours), ("theirs", name, theirs)):
        clock, processor = watch.medians()
        result[key] = {"seconds": clock, "processor_seconds": processor,
                       "tokens_per_second": tokens / clock, "rounds": watch.rounds[1:]}
        print(f"{label:14}{clock * 1e3:12.2f}{tokens / clock:12,.0f}{processor * 1e3:14.2f}")
    for column, key in enumerate(("speed_ratio", "processor_ratio")):
        result[key] = statistics.median(
            b[column] / a[column] for a, b in zip(ours.rounds[1:], theirs.rounds[1:], strict=True))
    print(f"ours is {result['speed_ratio']:.2f} times as fast as {name} by the clock, "
          f"{result['processor_ratio']:.2f} by time on the processor (medians of rounds)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
