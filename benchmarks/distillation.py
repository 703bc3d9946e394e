"""A step of distilling CLIP's text tower: two-stream targets beside separate passes per prefix.

    python benchmarks/distillation.py

A step is the teacher's and the student's forward passes, the student's backward pass and AdamW's
update, for all prefixes of some windows of 75 tokens, in two ways:
  two-stream   the teacher reads a window's prefixes in one pass of 2·75 + 1 tokens, and in one pass
               the student, which is causal, says something of each of them;
  separate     teacher and student read each prefix by itself, filled up to 77 and 75 tokens, as
               gpt-c does it; the prefixes of one window are one microbatch.
Both start from the same random weights: their losses and the weights after the step agree. All else
is the project's code in both. The last line of stdout is JSON.
"""

import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Step:
    """A training step on one device, with a session.

    Args:
      args: the parsed flags.
      separate: whether prefixes are read one by one.
    """

    def __init__(self, args, separate):
        from configs import schema
        from mesh.compat import mtf, tf
        from models import clip, clip_student, layers, losses, similarity
        from training import model_fn, optimizers, step

        self.separate = separate
        self.sizes = clip.ClipSizes(vocab=2048, width=args.width, layers=args.layers,
                                    heads=args.heads, out=64)
        n, rows = self.sizes.longest_text, args.windows
        teacher = clip.TextTower(self.sizes)
        student = clip_student.Student(clip_student.StudentSizes(
            width=args.width, layers=args.layers, heads=args.heads, vocab=2048, out=64, window=n,
            rotary_dims=min(32, args.width // args.heads)))
        config = schema.RunConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=8, n_vocab=8, lr=1e-3,
                                  train_batch_size=1, train_steps=1, model_path="none")
        lengths = {"text": n} if not separate else {"text": n, "read": n + 2, "end": None}
        self._feeds, features = {}, {}
        mesh = mtf.Mesh(mtf.Graph(), "mesh")
        batch = mtf.Dimension("batch", rows * n if separate else rows)
        for name, length in lengths.items():
            dims = [batch, mtf.Dimension("clip_sequence", length)] if length else [batch]
            self._feeds[name] = tf.placeholder(tf.int32, [d.size for d in dims])
            features[name] = mtf.import_tf_tensor(mesh, self._feeds[name], mtf.Shape(dims))

        def stored(name):
            return (layers.constant(1.0) if name.endswith("gain") else layers.normal(0.05))(1, name)

        def loss_fn(given, key):
            ctx = layers.Context(mesh, config, key)
            frozen = layers.Context(mesh, config, stored=stored)
            said = student.outputs(ctx, given["text"])
            if separate:
                wanted = teacher.embed(frozen, given["read"], given["end"])
                rows, sequence, out = said.shape.dims
                # The end token stands at k + 1, and the student's last token at k - 1.
                last = mtf.one_hot(given["end"] - 2, sequence)
                said = mtf.einsum([last, said], output_shape=[rows, out])
            else:
                wanted = teacher.prefix_targets(frozen, given["text"])
            wanted = mtf.stop_gradient(similarity.unit(wanted, teacher.out))
            each = losses.squared_error(said, wanted, student.out)
            return {"loss": mtf.reduce_sum(each) / (args.windows * n)}

        values, gradients = step.losses_and_gradients(
            features, loss_fn, mtf.constant(mesh, 1, dtype=tf.int32), rows if separate else 1)
        variables = mesh.graph.trainable_variables
        rate = tf.constant(1e-3)
        updates = optimizers.optimizer(config, rate, tf.constant(1, tf.int64)).apply_grads(
            gradients, variables)
        lowering = model_fn.lower(config, mesh)
        self._run = [lowering.export_to_tf_tensor(values["loss"]),
                     [lowering.lowered_operation(op) for op in updates]]
        self._weights = [lowering.export_to_tf_tensor(v.value) for v in variables]
        self._session = tf.Session()
        self._session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        self._session.run(lowering.copy_masters_to_slices())

    def __call__(self, windows):
        """One step on windows [windows, 75]; returns its loss."""
        return self._session.run(self._run, self._given(windows))[0]

    def weights(self):
        """The student's weights, a list of numpy arrays."""
        return self._session.run(self._weights)

    def _given(self, windows):
        import numpy as np

        if not self.separate:
            return {self._feeds["text"]: windows}
        rows, n = windows.shape
        # Row k · rows + i is the first k + 1 tokens of window i: microbatch i has all of that one.
        text = np.where(np.arange(n) <= np.arange(n)[:, None, None], windows, 0)
        read = np.zeros([n, rows, n + 2], np.int32)
        read[:, :, 0], read[:, :, 1:-1] = self.sizes.start_id, text
        k = np.arange(n)
        read[k, :, k + 2] = self.sizes.end_id
        return {self._feeds["text"]: text.reshape(-1, n),
                self._feeds["read"]: read.reshape(-1, n + 2),
                self._feeds["end"]: np.repeat(k + 2, rows)}


def timed(step, windows):
    """(seconds by the clock, seconds of processor) of a step."""
    clock, processor = time.perf_counter(), time.process_time()
    step(windows)
    return time.perf_counter() - clock, time.process_time() - processor


def measure(args):
    """Medians of both ways, taken in turn, and how far they differ after their first step."""
    import numpy as np

    from mesh.compat import tf

    steps = {}
    for name in ("two_stream", "separate"):
        with tf.Graph().as_default():
            steps[name] = Step(args, name == "separate")
    windows = np.random.RandomState(0).randint(0, 2000, [args.windows, 75]).astype(np.int32)
    losses = [float(step(windows)) for step in steps.values()]
    one, other = (step.weights() for step in steps.values())
    found = {"loss": losses[0], "loss_difference": abs(losses[0] - losses[1]),
             # Of the mean: where a gradient all but vanishes, rounding decides Adam's direction.
             "weights_difference": float(max(np.abs(a - b).mean() for a, b in
                                             zip(one, other, strict=True)))}
    times = {name: [] for name in steps}
    for _ in range(args.repeats):
        for name, step in steps.items():
            times[name].append(timed(step, windows))
    for name, pairs in times.items():
        found[f"{name}_seconds"], found[f"{name}_processor_seconds"] = np.median(pairs, 0).tolist()
    found["ratio"] = found["separate_seconds"] / found["two_stream_seconds"]
    found["processor_ratio"] = (found["separate_processor_seconds"]
                                / found["two_stream_processor_seconds"])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timings of each way (default 5)")
    parser.add_argument("--windows", type=int, default=4, help="windows of a step (default 4)")
    parser.add_argument("--layers", type=int, default=4, help="of both towers (default 4)")
    parser.add_argument("--width", type=int, default=128, help="of both towers (default 128)")
    parser.add_argument("--heads", type=int, default=2, help="of both towers (default 2)")
    args = parser.parse_args()
    found = measure(args)
    print(f"two-stream {found['two_stream_seconds']:.3f} s   separate "
          f"{found['separate_seconds']:.2f} s   {found['ratio']:.0f}×   (processor "
          f"{found['processor_ratio']:.0f}×)   difference of losses "
          f"{found['loss_difference']:.1e}, of weights {found['weights_difference']:.1e}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
