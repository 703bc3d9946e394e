"""All prefixes of a text through CLIP's text tower: one two-stream pass beside separate passes.

    python benchmarks/two_stream.py

For each tower: seconds for the embeddings of all prefixes of a window of 75 tokens, by
  two-stream   TextTower.prefix_targets, one pass of 2·75 + 1 tokens;
  padded       75 passes of `embed`, each prefix filled up to the context of 77, as gpt-c does it;
  trimmed      75 passes of just the prefix, its start and its end.
Trimmed passes are timed at some lengths and added up by the trapezoidal rule. Weights are random.
The tower `tiny` is for trying this script. The last line of stdout is JSON.
"""

import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# name: (keys of ClipSizes, texts of a batch).
TOWERS = {
    "ViT-B/32 text, batch 1": ({}, 1),
    "128 wide, 4 layers, batch 8": ({"width": 128, "layers": 4, "heads": 2, "out": 64}, 8),
    "tiny": ({"width": 32, "layers": 1, "heads": 2, "out": 8}, 2),
}
TRIMMED_LENGTHS = (1, 20, 38, 57, 75)


class Tower:
    """A tower on one device, with a session."""

    def __init__(self, keys, batch):
        import types

        from mesh.compat import mtf, tf
        from models import clip, layers

        self.sizes = clip.ClipSizes(vocab=2048, **keys)
        n = self.sizes.longest_text
        self._graph = mtf.Graph()
        mesh = mtf.Mesh(self._graph, "mesh")
        ctx = layers.Context(mesh, types.SimpleNamespace(precision="float32", seed=1))
        tower, rows = clip.TextTower(self.sizes), mtf.Dimension("batch", batch)

        def feed(length):
            placeholder = tf.placeholder(tf.int32, [batch, length])
            return placeholder, mtf.import_tf_tensor(
                mesh, placeholder, mtf.Shape([rows, mtf.Dimension("clip_sequence", length)]))

        self.ends = tf.placeholder(tf.int32, [batch])
        ends = mtf.import_tf_tensor(mesh, self.ends, mtf.Shape([rows]))
        self.window, tokens = feed(n)
        results = {"two-stream": tower.prefix_targets(ctx, tokens)}
        self.texts = {}
        for length in sorted({self.sizes.context, *(k + 2 for k in TRIMMED_LENGTHS)}):
            self.texts[length], tokens = feed(length)
            results[length] = tower.embed(ctx, tokens, ends)
        impl = mtf.placement_mesh_impl.PlacementMeshImpl(
            mtf.convert_to_shape(""), mtf.convert_to_layout_rules(""), [""])
        lowering = mtf.Lowering(self._graph, {mesh: impl}, autostack=False)
        self._results = {key: lowering.export_to_tf_tensor(x) for key, x in results.items()}
        self._session = tf.Session()
        self._session.run(tf.global_variables_initializer())
        self._session.run(lowering.copy_masters_to_slices())

    def all_prefixes(self, window):
        """[batch, n, out] by one pass."""
        return self._session.run(self._results["two-stream"], {self.window: window})

    def one_prefix(self, window, k, length):
        """[batch, out]: the first k tokens, filled up to `length`."""
        import numpy as np

        text = np.zeros([len(window), length], np.int32)
        text[:, 0], text[:, k + 1] = self.sizes.start_id, self.sizes.end_id
        text[:, 1:k + 1] = window[:, :k]
        return self._session.run(self._results[length], {
            self.texts[length]: text, self.ends: np.full([len(window)], k + 1, np.int32)})


def seconds(fn, repeats):
    """The median time of a call, after one that is not counted."""
    fn()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def measure(keys, batch, repeats):
    """Seconds for each way, their ratios to two-stream, and the greatest difference."""
    import numpy as np

    from mesh.compat import tf

    with tf.Graph().as_default():
        tower = Tower(keys, batch)
        n, context = tower.sizes.longest_text, tower.sizes.context
        window = np.random.RandomState(0).randint(0, tower.sizes.start_id, [batch, n])

        def padded():
            return np.stack([tower.one_prefix(window, k, context) for k in range(1, n + 1)], 1)

        difference = float(np.abs(padded() - tower.all_prefixes(window)).max())
        trimmed = [seconds(lambda k=k: tower.one_prefix(window, k, k + 2), repeats)
                   for k in TRIMMED_LENGTHS]
        every = np.interp(np.arange(1, n + 1), TRIMMED_LENGTHS, trimmed)
        result = {"two_stream": seconds(lambda: tower.all_prefixes(window), repeats),
                  "padded": seconds(padded, max(1, repeats // 5)), "trimmed": float(every.sum())}
    return {**{f"{name}_seconds": value for name, value in result.items()},
            "padded_ratio": result["padded"] / result["two_stream"],
            "trimmed_ratio": result["trimmed"] / result["two_stream"],
            "max_abs_difference": difference}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=list(TOWERS)[:2],
                        metavar="NAME", help=f"of {', '.join(TOWERS)} (the first two)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each way (default 5)")
    args = parser.parse_args()
    found = {}
    print(f"{'':30}{'two-stream':>12}{'padded':>16}{'trimmed':>16}{'difference':>12}")
    for name in args.towers:
        keys, batch = TOWERS[name]
        r = found[name] = measure(keys, batch, args.repeats)
        print(f"{name:30}{r['two_stream_seconds']:10.4f} s"
              f"{r['padded_seconds']:8.2f} s {r['padded_ratio']:4.0f}×"
              f"{r['trimmed_seconds']:8.2f} s {r['trimmed_ratio']:4.0f}×"
              f"{r['max_abs_difference']:12.1e}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
