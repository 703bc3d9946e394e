"""Processor time of a training step against layers, width, context, batch, vocabulary, mesh size.

    python benchmarks/scaling.py --out runs/scaling

One of them is varied at a time, from a base of 4 layers, 256 wide, 128 tokens of context, batches
of 8, a vocabulary of 1,024 and one device. What the arithmetic says goes beside it: the FLOPs of
the step (6 for each weight and token, and attention's) at the base's rate. Time is that of the
processor, all cores together, which other work on the machine hardly changes. Each point is a
process of its own. <out>/scaling.json keeps all points, so that axes can be measured one by one;
<out>/scaling.png has a plot of each. A table goes to stdout, and JSON as its last line.
"""

import argparse
import json
import os
import sys
import tempfile

from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks import machine, trainers, turns  # noqa: E402

BASE = {"layers": 4, "width": 256, "context": 128, "batch": 8, "vocabulary": 1024, "mesh": 1}
AXES = {"layers": [2, 4, 8, 16], "width": [128, 256, 512, 1024], "context": [64, 128, 256, 512],
        "batch": [2, 4, 8, 16, 32], "vocabulary": [256, 1024, 8192, 50257], "mesh": [1, 2, 4, 8]}


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR", help="where points and plots go")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES),
                        help="what to vary (all)")
    parser.add_argument("--seconds", type=float, default=3.0,
                        help="to measure a point for, after its first steps (3)")
    parser.add_argument("--threads", type=int, default=2, help="and cores (2)")
    return parser.parse_args()


def flops(point):
    """Of a step: 6 for each weight and token, and 12·layers·context·width for attention."""
    layers, width, context = (point[name] for name in ("layers", "width", "context"))
    weights = (layers * (12 * width ** 2 + 13 * width) + 2 * width
               + (point["vocabulary"] + context) * width)
    return point["batch"] * context * (6 * weights + 12 * layers * context * width)


def measure(point, args):
    """Median processor seconds of a step."""
    sets = [f"n_layer={point['layers']}", f"n_embd={point['width']}",
            f"n_head={max(point['width'] // 64, 1)}", f"n_ctx={point['context']}",
            f"train_batch_size={point['batch']}"]
    sets += ([f"mesh_shape=x:{point['mesh']}"] if point["mesh"] > 1
             else ["mesh_shape=", "layout="])
    with tempfile.TemporaryDirectory() as directory:
        trainers.write_dataset(directory, point["vocabulary"])
        with turns.Contestant("ours", trainers.ours, args.threads, directory=directory,
                              model="shakespeare_char", sets=sets,
                              vocab=point["vocabulary"]) as one:
            one.steps(1, counts=False)
            once = one.steps(2, counts=False).seconds
            steps = max(1, round(args.seconds / 3 / once))
            for _ in range(3):
                one.steps(steps)
            return one.processor_seconds


def draw(points, path):
    """A plot for each axis: measured, and by the arithmetic from the base on."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = [axis for axis in AXES if axis in points]
    rows, columns = -(-len(axes) // 3), min(len(axes), 3)
    figure, plots = plt.subplots(rows, columns, figsize=(4 * columns, 3.5 * rows),
                                 layout="constrained", squeeze=False)
    for plot in plots.flat[len(axes):]:
        plot.set_axis_off()
    for plot, axis in zip(plots.flat, axes, strict=False):
        found = points[axis]
        sizes = [point[axis] for point in found]
        plot.plot(sizes, [p["seconds"] * 1e3 for p in found], "o-", label="measured")
        plot.plot(sizes, [p["predicted"] * 1e3 for p in found], "--", label="by the FLOPs")
        plot.set_xscale("log", base=2)
        low, high = (pick(p["seconds"] for p in found) for pick in (min, max))
        if high > 2 * low:
            plot.set_yscale("log", base=2)
        else:
            plot.set_ylim(bottom=0)
        plot.set_xticks(sizes, [f"{size:,}" for size in sizes])
        plot.yaxis.set_major_formatter("{x:,.0f}")
        plot.set_title(f"{axis} (base {BASE[axis]:,})")
        plot.set_ylabel("processor ms a step")
        plot.legend()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main():
    args = parse()
    load = machine.warn_of_load()
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, "scaling.json")
    points = {}
    if os.path.exists(path):
        with open(path) as file:
            points = json.load(file)
    for axis in args.axes:
        found = [{**BASE, axis: size} for size in AXES[axis]]
        for point in tqdm(found, desc=axis, disable=None):
            point.update(seconds=measure(point, args), flops=flops(point))
        rate = next(p["flops"] / p["seconds"] for p in found if p[axis] == BASE[axis])
        print(f"{axis:>12}{'processor ms':>14}{'by the FLOPs':>14}"
              f"{'GFLOP/s':>10}  (of one core)")
        for point in found:
            point["predicted"] = point["flops"] / rate
            print(f"{point[axis]:12,}{point['seconds'] * 1e3:14,.1f}"
                  f"{point['predicted'] * 1e3:14,.1f}"
                  f"{point['flops'] / point['seconds'] / 1e9:10,.0f}", flush=True)
        points[axis] = found
        with open(path, "w") as file:
            file.write(json.dumps(points, indent=1) + "\n")
        draw(points, os.path.join(args.out, "scaling.png"))
    print(json.dumps({"base": BASE, "load_before": load,
                      **{axis: points[axis] for axis in args.axes}}))


if __name__ == "__main__":
    main()
