"""What trains in benchmarks: this project as main.py runs it, and torch's GPTs beside it.

Each is a function for turns.Contestant.
"""

import collections
import contextlib
import importlib.util
import json
import os
import re
import sys

TOKENS = 1 << 20


def add_flags(parser):
    """The flag that says what `theirs` trains."""
    parser.add_argument("--nanogpt", metavar="FILE", help="nanoGPT's model.py, of a checkout of "
                        "karpathy/nanoGPT; without it, transformers' GPT2LMHeadModel is measured")


def peer(nanogpt):
    """(the name, the path for `theirs`) of what --nanogpt says."""
    return ("nanoGPT", os.path.abspath(nanogpt)) if nanogpt else ("transformers", None)


def ours(link, threads, directory, model, sets, vocab=None):
    """TPUEstimator, the input pipeline, dropout, clipping, updates and scalars for the log.

    Args:
      link: a turns.Link. threads: how many cores it may use.
      directory: holds what `write_dataset` wrote; the run's directory is made in it.
      model: the name of a config. sets: "KEY=VALUE" overrides.
      vocab: token ids of the data, or None for the config's own.
    """
    import logging

    import inputs
    from configs import schema
    from mesh import devices
    from mesh.compat import tf
    from training import estimators, metrics, objectives, proxies, watching

    del threads  # devices.prepare looks at the affinity
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    config = schema.load(model, sets)
    devices.prepare(config)
    steps = 10 ** 6
    config = config.replace(
        datasets=[[f"{directory}/random.json", 1, "chunks", 1.0]], model_path=f"{directory}/run",
        train_steps=steps, lr_decay_end=None, steps_per_checkpoint=steps, eval_steps=0,
        **({"n_vocab": vocab} if vocab else {}))
    facts = inputs.dataset_facts(config, "train")
    # Weights of a student that nobody trained; their values do not change its speed.
    taken = proxies.frozen_of(config) if config.model == "gpt_c" else None
    watch = watching.Watch(config, lambda step: 0)
    meter = metrics.Meter(config, facts, metrics.Writer(config.model_path), watch)
    estimator = estimators.make(config, objectives.of_run(config, facts, taken), meter)
    estimator.train(inputs.train_input_fn(config, 0), max_steps=steps, hooks=[_hook(tf, link)])


def _hook(tf, link):
    from tensorflow.python.client import timeline

    class Turns(tf.train.SessionRunHook):
        """Has the training wait for its turn."""

        waiting = True

        def before_run(self, run_context):
            if self.waiting:
                link.wait()
            options = None
            if link.what == "profile":
                options = tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE)
            loss, = run_context.session.graph.get_collection(tf.GraphKeys.LOSSES) or [None]
            return tf.train.SessionRunArgs(loss, options=options)

        def after_run(self, run_context, run_values):
            loss = float("nan") if run_values.results is None else run_values.results
            self.waiting = link.stepped(loss)
            if link.what == "profile":
                stats = run_values.run_metadata.step_stats
                with open(link.value, "w") as file:
                    file.write(timeline.Timeline(stats).generate_chrome_trace_format())
                link.answer(_table(stats))

    return Turns()


def _table(stats, rows=25):
    """Milliseconds by type of operation, and of the longest operations."""
    by_type, number, single = collections.Counter(), collections.Counter(), []
    for device in stats.dev_stats:
        for node in device.node_stats:
            found = re.search(r"= (\w+)\(", node.timeline_label)
            kind = found[1] if found else node.node_name.split(":")[-1]
            micros = node.op_end_rel_micros - node.op_start_rel_micros
            by_type[kind] += micros
            number[kind] += 1
            single.append((micros, kind, node.node_name))
    lines = [f"{'operation':32}{'ms':>10}{'share':>8}{'number':>8}"]
    total = sum(by_type.values())
    lines += [f"{kind:32}{micros / 1e3:10.1f}{micros / total:8.1%}{number[kind]:8}"
              for kind, micros in by_type.most_common(rows)]
    lines += ["", f"{'ms':>10}  longest"]
    lines += [f"{micros / 1e3:10.1f}  {kind} {name}"
              for micros, kind, name in sorted(single, reverse=True)[:rows]]
    return "\n".join(lines) + "\n"


def theirs(link, threads, model, sets, vocab, path, compiled):
    """A torch GPT with nanoGPT's training step.

    Random windows, forward, backward, clipping, AdamW as nanoGPT chooses it, the loss as a number;
    in bfloat16 by torch's autocast, as nanoGPT's train.py has it.

    Args:
      link, threads, model, sets, vocab: see `ours`.
      path: nanoGPT's model.py, or None for transformers' GPT2LMHeadModel.
      compiled: whether torch.compile makes the model.
    """
    import torch

    from configs import schema

    config = schema.load(model, sets)
    torch.set_num_threads(threads)
    torch.manual_seed(1337)
    data = torch.randint(vocab or config.n_vocab, (TOKENS,))
    with contextlib.redirect_stdout(sys.stderr):  # nanoGPT's model tells its size
        module, optimizer = (_nanogpt if path else _transformers)(config, vocab, path)
    module.train()
    network = torch.compile(module) if compiled else module
    autocast = (torch.autocast("cpu", dtype=torch.bfloat16) if config.precision == "bfloat16"
                else contextlib.nullcontext())

    def step():
        n = config.n_ctx
        starts = torch.randint(len(data) - n, (config.train_batch_size,))
        tokens = torch.stack([data[i:i + n] for i in starts])
        targets = torch.stack([data[i + 1:i + 1 + n] for i in starts])
        with autocast:
            if path:
                _, loss = network(tokens, targets)
            else:
                logits = network(tokens).logits
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        if config.gradient_clipping:
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    while True:
        link.wait()
        if link.what == "profile":
            with torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                step()
            profile.export_chrome_trace(link.value)
            link.answer(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
        else:
            while not link.stepped(step()):
                pass


def _nanogpt(config, vocab, path):
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(
        block_size=config.n_ctx, vocab_size=vocab or config.n_vocab, dropout=config.res_dropout,
        bias=False, n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd))
    return model, model.configure_optimizers(config.weight_decay, config.lr,
                                             (config.beta1, config.beta2), "cpu")


def _transformers(config, vocab, _):
    import torch
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_positions=config.n_ctx, vocab_size=vocab or config.n_vocab, bos_token_id=0,
        eos_token_id=0, resid_pdrop=config.res_dropout, embd_pdrop=config.embed_dropout,
        attn_pdrop=config.attn_dropout, use_cache=False, n_layer=config.n_layer,
        n_head=config.n_head, n_embd=config.n_embd))
    groups = [{"params": [p for p in model.parameters() if decays == (p.dim() >= 2)],
               "weight_decay": config.weight_decay * decays} for decays in (True, False)]
    return model, torch.optim.AdamW(groups, config.lr, (config.beta1, config.beta2))


def write_dataset(directory, vocab):
    """A shard of random ids, which train at the same speed as text, as `ours` reads them."""
    import numpy as np

    from mesh.compat import tf

    ids = np.random.RandomState(0).randint(0, vocab, [TOKENS // 1024, 1024])
    with tf.io.TFRecordWriter(f"{directory}/random_0_{len(ids)}.tfrecords") as file:
        for row in ids:
            feature = tf.train.Feature(int64_list=tf.train.Int64List(value=row))
            file.write(tf.train.Example(features=tf.train.Features(
                feature={"text": feature})).SerializeToString())
    with tf.io.gfile.GFile(f"{directory}/random.json", "w") as file:
        file.write(json.dumps({"path": f"{directory}/random_0_*.tfrecords", "n_vocab": vocab}))


def sets_of(size, sets):
    """Overrides of a config's sizes by "LAYERSxWIDTHxCONTEXT", before others that are given."""
    if not size:
        return sets
    layers, width, context = map(int, size.split("x"))
    # Heads of 64 features, as GPT-2 has them, or four where it is narrow, as nanoGPT's recipe.
    heads = width // 64 if width % 64 == 0 and width > 256 else 4
    return [f"n_layer={layers}", f"n_embd={width}", f"n_head={heads}", f"n_ctx={context}", *sets]
