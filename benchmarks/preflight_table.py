"""What the TPU compiler says of the configs that are shipped for TPUs: one table.

    python benchmarks/preflight_table.py --out runs/preflight
    python benchmarks/preflight_table.py --out runs/preflight --configs gpt_162M gpt_1.3B \\
        --slices v3-8 v3-128 v4-8 v4-128
    python benchmarks/preflight_table.py --out runs/preflight --configs gpt_162M --shape gpt_neo

compiles training steps as main.py --preflight does, from nothing, and writes table.md and
table.json. By default each config is compiled for the slice that its mesh is for. On other slices
it has the mesh that its header lists, or its own with another number of replicas; where it can have
none it is left out. --shape gpt_neo compiles the same models as benchmarks/gpt_neo_shape.py builds
them. What is done already (rows.jsonl) is not done again, and a row of all layers stands for one of
few. The last line of stdout is JSON.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import sys

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from configs import markdown, reading, schema  # noqa: E402
from configs.command_line import quiet_libraries, status_of  # noqa: E402

quiet_libraries()
# Read when TensorFlow is loaded; see main.py.
os.environ.setdefault("TF_XLA_FLAGS", "--tf_xla_disable_constant_folding=true")
from benchmarks import gpt_neo_shape  # noqa: E402
from mesh import preflight as compiler  # noqa: E402
from mesh import tpus  # noqa: E402
from training import preflight, proxies, search_layouts  # noqa: E402

HEADS = ("Config", "Slice", "Mesh", "Layers compiled", "Memory, GiB", "Step, s", "Tokens/s", "MFU",
         "Collectives, GB", "Input, of the step")
# Input goes from the first host to the others, and from each to its eight cores. Bytes a second;
# PCIe 3.0 with 16 lanes has twice this rate, and a virtual machine's network as well.
CORES_OF_A_HOST, HOST_RATE, NETWORK_RATE = 8, 8e9, 2e9
SHAPES = {"ours": contextlib.nullcontext, "gpt_neo": gpt_neo_shape.applied}


def parse_args(argv=None):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, metavar="DIR", help="where rows and tables go")
    p.add_argument("--configs", nargs="+", metavar="NAME", help="configs (all of configs/ that "
                                                                "have a mesh of a TPU slice)")
    p.add_argument("--slices", nargs="+", metavar="SLICE",
                   help="such as v3-8 (the slice of v3 that a config's mesh is for)")
    p.add_argument("--layers", choices=("all", "few"),
                   help="compile all layers, or estimate them from few (few above 1.4 billion "
                        "parameters)")
    p.add_argument("--shape", choices=SHAPES, default="ours",
                   help="build models as this project does, or in GPT-Neo's shape")
    return p.parse_args(argv)


def on_slice(config, tpu):
    """The config with the mesh that it has on a mesh.tpus.Slice, or None."""
    listed = re.search(r"Meshes for mesh_shape: (.*)\.", config.about)
    if listed:
        meshes = dict(item.split() for item in listed[1].split("; "))
        mesh = meshes.get(f"v3-{tpu.cores}")
        return mesh and config.replace(mesh_shape=mesh)
    return search_layouts.own_layout(config, tpu.cores)


def jobs(names, slices):
    """(name, config, slice) of each row, in the order of the table."""
    for name in names or reading.shipped_configs():
        config = schema.load(name)
        own = f"v3-{config.mesh_size}"
        if slices is None and config.mesh_size not in tpus.GENERATIONS["v3"].shapes:
            if names:
                raise SystemExit(f"{name}: its mesh has {config.mesh_size} cores; give --slices")
            continue
        for tpu in map(tpus.find, slices or [own]):
            moved = on_slice(config, tpu)
            if moved:
                yield name, moved, tpu


def row(name, config, tpu, step):
    """A row of the table as JSON has it, of a training.preflight.Step of the config."""
    found = step.compiled(config)
    _, specs = proxies.facts_and_specs(config)
    given = sum(spec.shape.num_elements() * spec.dtype.size for spec in specs.values())
    said = {"config": name, "slice": tpu.name, "mesh_shape": config.mesh_shape,
            "layout": config.layout, "n_layer": config.n_layer, "input_bytes": given}
    if isinstance(found, compiler.TooLarge):
        return {**said, "fits": False, "hbm_gib": found.needed and found.needed / 2**30,
                "step_seconds": None}
    return {**said, "links_seconds": found.seconds["links"],
            **preflight.figures(found, config, tpu)}


def input_seconds(said):
    """How long it takes to give every core its copy of the batch of a row."""
    others = -(-tpus.find(said["slice"]).cores // CORES_OF_A_HOST) - 1
    return said["input_bytes"] * (CORES_OF_A_HOST / HOST_RATE + others / NETWORK_RATE)


def cells(said):
    """A row of the table as Markdown has it."""
    few = said.get("extrapolated_from_layers")
    layers = " and ".join(map(str, few)) + f" of {said['n_layer']}" if few else "all"
    neo = " in GPT-Neo's shape" if said.get("shape") == "gpt_neo" else ""
    head = [f"`{said['config']}`{neo}", said["slice"], f"`{said['mesh_shape']}`", layers]
    if said["step_seconds"] is None:
        return [*head, "refused", "", "", "", "", ""]
    moved = {}
    for talk in said["collectives"]:
        moved[talk["axes"]] = moved.get(talk["axes"], 0) + talk["bytes"] / 1e9
    return [*head, f"{said['hbm_gib']:.2f}{'' if said['fits'] else ', too much'}",
            f"{said['step_seconds']:.3g}", f"{said['tokens_per_second']:,.0f}",
            f"{said['mfu']:.1%}".replace("%", " %"),
            ", ".join(f"{axes} {size:.2f}" for axes, size in moved.items()),
            f"{input_seconds(said) / said['step_seconds']:.2%}".replace("%", " %")]


def read(path):
    """{key: row} of what was done before; of a key with several rows that of all layers."""
    known = {}
    if os.path.exists(path):
        with open(path) as file:
            for entry in map(json.loads, file):
                if entry["key"] not in known or "extrapolated_from_layers" not in entry:
                    known[entry["key"]] = entry
    return known


def main(args):
    """Compiles what is not known yet, and writes the table of all that was asked for."""
    compiler.check_installed()
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, "rows.jsonl")
    known, rows = read(path), []
    version = importlib.metadata.version("libtpu")
    for name, config, tpu in (bar := tqdm(list(jobs(args.configs, args.slices)), unit="config")):
        bar.set_postfix_str(f"{name} {tpu.name}")
        told = f"{config.replace(about='').to_json()} {tpu.name} {version}"
        if args.shape != "ours":
            told += f" {args.shape}"
        key = hashlib.sha256(told.encode()).hexdigest()
        step = preflight.Step(config, tpu, args.layers)
        if key not in known or "extrapolated_from_layers" in known[key] and not step.few:
            with SHAPES[args.shape]():
                known[key] = {"key": key, "shape": args.shape, **row(name, config, tpu, step)}
            with open(path, "a") as file:
                file.write(json.dumps(known[key]) + "\n")
        rows.append({k: v for k, v in known[key].items() if k != "key"})
    table = markdown.table(HEADS, map(cells, rows))
    with open(os.path.join(args.out, "table.md"), "w") as file:
        file.write(table + "\n")
    with open(os.path.join(args.out, "table.json"), "w") as file:
        json.dump(rows, file, indent=1)
    print(table)
    print(json.dumps({"rows": len(rows), "fit": sum(said["fits"] for said in rows)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main, parse_args()))
