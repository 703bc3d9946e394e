"""Tokens a second that the input functions give on one core, beside what training consumes.

    python benchmarks/input_speed.py

A model trains as main.py trains it, on all --threads cores; between its rounds each input function
is read alone, confined to one core: chunks of a stream, and stitched documents.
"""

import argparse
import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks import in_turn  # noqa: E402

VOCAB = 1024
STITCH = 5


def parse_args(argv=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", metavar="CONFIG", default="demo", help="that trains (%(default)s)")
    p.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                   help="override a key of the config, such as n_layer=6; may be repeated")
    p.add_argument("--steps", type=int, default=50, help="of training in a round (%(default)s)")
    p.add_argument("--batches", type=int, default=2000, help="read in a round (%(default)s)")
    p.add_argument("--documents", type=int, default=8000, help="of the data (%(default)s)")
    in_turn.add_flags(p, 5)
    return p.parse_args(argv)


def write_datasets(directory, documents, shortest):
    """Random ids as documents of some 300 tokens, and as chunks of 2048; returns their JSONs."""
    import numpy as np

    from mesh.compat import tf

    rng = np.random.RandomState(0)
    texts = [rng.randint(0, VOCAB, size) for size in
             np.maximum(rng.geometric(1 / 300, documents), shortest)]
    stream = np.concatenate(texts)
    found = {}
    for name, rows in (("documents", texts), ("chunks", np.split(
            stream, range(2048, len(stream), 2048)))):
        path = f"{directory}/{name}_0_{len(rows)}.tfrecords"
        with tf.io.TFRecordWriter(path) as file:
            for row in rows:
                feature = tf.train.Feature(int64_list=tf.train.Int64List(value=row.tolist()))
                file.write(tf.train.Example(features=tf.train.Features(
                    feature={"text": feature})).SerializeToString())
        found[name] = f"{directory}/{name}.json"
        with open(found[name], "w") as file:
            file.write(json.dumps({"path": path, "n_vocab": VOCAB}))
    return found


def confine(cores):
    """Confines all threads of the process to some cores."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


class Source:
    """An input function that is read alone.

    Args:
      config: the run's config.
      batches: how many are read at once.
    """

    def __init__(self, config, batches):
        import inputs
        from mesh.compat import tf

        self._batches = batches
        with tf.Graph().as_default():
            rows = inputs.train_input_fn(config, 0)({"batch_size": config.train_batch_size})
            batch = tf.data.make_initializable_iterator(rows)
            read = tf.group(*tf.nest.flatten(batch.get_next()))
            session = tf.Session(config=tf.ConfigProto(
                intra_op_parallelism_threads=1, inter_op_parallelism_threads=1))
            session.run(batch.initializer)
            self._read = session.make_callable(read)
            self._read()  # the first group of windows is shuffled

    def __call__(self):
        for _ in range(self._batches):
            self._read()


def measure(args, directory):
    """(the config, {what: seconds of each round})."""
    import inputs
    from configs import schema
    from mesh import devices
    from mesh.compat import tf
    from training import estimators, language, metrics

    config = schema.load(args.model, args.set)
    steps = 1 + args.steps * (args.rounds + 1)
    paths = write_datasets(directory, args.documents, -(-(config.n_ctx + 1) // STITCH))
    config = config.replace(
        datasets=[[paths["chunks"], 1, "chunks", 1.0]], n_vocab=VOCAB, train_steps=steps,
        model_path=f"{directory}/run", lr_decay_end=None, warmup_steps=0,
        steps_per_checkpoint=steps, eval_steps=0)
    devices.prepare(config)
    stitched = config.replace(datasets=[[paths["documents"], STITCH, "documents_random", 1.0]])
    sources = {"chunks": Source(config, args.batches), "stitched": Source(stitched, args.batches)}
    cores = os.sched_getaffinity(0)
    seconds = {name: [] for name in ("training", *sources)}

    class Rounds(tf.train.SessionRunHook):
        done = 0

        def after_run(self, run_context, run_values):
            if self.done and self.done % args.steps == 0:
                seconds["training"].append(time.perf_counter() - self.began)
                confine({min(cores)})
                for name, source in sources.items():
                    began = time.perf_counter()
                    source()
                    seconds[name].append(time.perf_counter() - began)
                confine(cores)
            if self.done % args.steps == 0:  # the very first step compiles the graph
                self.began = time.perf_counter()
            self.done += 1

    facts = inputs.dataset_facts(config, "train")
    meter = metrics.Meter(config, facts, metrics.Writer(config.model_path))
    estimators.make(config, language.Language(config, facts), meter).train(
        inputs.train_input_fn(config, 0), max_steps=steps, hooks=[Rounds()])
    meter.close()
    if args.profile:
        for name, source in sources.items():
            with in_turn.profiled(os.path.join(args.profile, name)):
                source()
    return config, {name: rounds[1:] for name, rounds in seconds.items()}


def main(argv=None):
    """Measures and prints."""
    args = parse_args(argv)
    load = in_turn.begin(args.threads)
    from configs.command_line import quiet_libraries

    quiet_libraries()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        config, seconds = measure(args, directory)
    batch = config.train_batch_size * config.n_ctx
    consumed = batch * args.steps / statistics.median(seconds["training"])
    rows, found = [["training", args.threads, f"{consumed:,.0f}", ""]], {}
    for name in ("chunks", "stitched"):
        given = batch * args.batches / statistics.median(seconds[name])
        found[name] = {"tokens_per_second": given, "ratio": given / consumed}
        rows.append([name, 1, f"{given:,.0f}", f"{given / consumed:.0f}×"])
    in_turn.show(["", "cores", "tokens/s", "of what training consumes"], rows,
                 {"model": args.model, "threads": args.threads, "load_before": load,
                  "training_tokens_per_second": consumed, **found, "rounds": seconds})


if __name__ == "__main__":
    main()
