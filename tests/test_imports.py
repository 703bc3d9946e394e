"""The direction of imports: who may know whom, by reading the sources."""

import ast
import os
import subprocess
import sys

import pytest

# Each room and the rooms that it may import. "mesh.compat" is a room of its own; `records` belongs
# to inputs.py.
ROOMS = {
    "configs": {"configs"},
    "encoders": {"configs", "encoders"},
    "records": {"configs", "mesh.compat", "records"},
    "inputs": {"configs", "mesh.compat", "records"},
    "downloads": {"configs"},
    "datasets": {"configs", "downloads", "encoders", "records", "datasets"},
    "mesh.compat": set(),
    "mesh": {"configs", "mesh.compat", "mesh"},
    "models": {"configs", "mesh.compat", "mesh", "models"},
    "training": {"configs", "encoders", "records", "inputs", "mesh.compat", "mesh", "models",
                 "training"},
}
ROOMS["interop"] = ROOMS["training"] | {"downloads", "interop"}
ROOMS["main"] = ROOMS["interop"]
# Programs and pages, which nobody imports.
ENDS = {"benchmarks", "docs"}
# (room, what a function in it may import all the same): only who uses it pays for it.
LAZY = {("records", "encoders"), ("inputs", "encoders")}


def sources(root):
    """{path relative to the root: text} of the program's Python files."""
    found = {}
    for where, directories, files in os.walk(root):
        directories[:] = [d for d in directories if not d.startswith((".", "_"))
                          and d not in ("tests", "venv", "build", "runs")]
        for file in files:
            if file.endswith(".py"):
                path = os.path.join(where, file)
                with open(path, encoding="utf-8") as opened:
                    found[os.path.relpath(path, root).replace(os.sep, "/")] = opened.read()
    return found


def imports(text):
    """(module's full name, whether at module level, line) of every import."""
    def walk(node, top):
        for child in ast.iter_child_nodes(node):
            inside = top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, top, child.lineno
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"relative import in line {child.lineno}"
                for alias in child.names:
                    yield f"{child.module}.{alias.name}", top, child.lineno
            yield from walk(child, inside)

    return walk(ast.parse(text), True)


def room_of_file(path):
    return "mesh.compat" if path == "mesh/compat.py" else path.split("/")[0].removesuffix(".py")


def room_of_module(module, scripts):
    """The room of an imported module, or None for a library."""
    first = module.split(".")[0]
    if first in scripts:
        return "datasets"
    if first in ROOMS or first in ENDS or first == "tests":
        return "mesh.compat" if (module + ".").startswith("mesh.compat.") else first
    return None


def reverse_edges(files):
    """Lines about imports that go the wrong way."""
    scripts = {os.path.basename(path)[:-3] for path in files if path.startswith("datasets/")}
    wrong = []
    for path, text in files.items():
        room = room_of_file(path)
        if room not in ROOMS:
            if room not in ENDS:
                wrong.append(f"{path}: no such room in the table of tests/test_imports.py")
            continue
        for module, top, line in imports(text):
            other = room_of_module(module, scripts)
            allowed = other is None or other in ROOMS[room] or not top and (room, other) in LAZY
            if not allowed:
                wrong.append(f"{path}:{line}: {room} imports {module}")
            wrong += [f"{path}:{line}: imports {module}: {why}"
                      for rule, why in FORBIDDEN if rule(path, module, top)]
    return wrong


def within(module, package):
    return (module + ".").startswith(package + ".")


# (whether an import breaks the rule, why there is one)
FORBIDDEN = [
    (lambda path, module, top: path.startswith("models/") and within(module, "mesh.devices"),
     "models know no device"),
    (lambda path, module, top: path.startswith("configs/") and top
     and within(module.split("_")[0], "tensorflow"), "configs are read without TensorFlow"),
    (lambda path, module, top: path == "main.py" and top
     and room_of_module(module, ()) and not within(module, "configs.errors")
     and not within(module, "configs.command_line") and not within(module, "configs.flags"),
     "--help has to be instant"),
    (lambda path, module, top: within(module, "tensorflow.python") and path != "mesh/compat.py",
     "TensorFlow's insides are mesh.compat's matter"),
    (lambda path, module, top: within(module, "mesh_tensorflow") and path != "mesh/compat.py",
     "mesh-tensorflow has to be mended first, by mesh.compat"),
]


def test_imports_go_one_way(root):
    files = sources(root)
    assert {"main.py", "inputs.py", "mesh/compat.py", "models/gpt.py",
            "configs/schema.py", "datasets/create_tfrecords.py",
            "datasets/openwebtext.py"} <= set(files)
    assert reverse_edges(files) == []


@pytest.mark.parametrize(("path", "text"), [
    ("configs/a.py", "import encoders"),
    ("configs/a.py", "def f():\n  from mesh import ops"),
    ("configs/a.py", "import tensorflow.compat.v1 as tf"),
    ("configs/a.py", "import tensorflow_datasets"),
    ("configs/a.py", "if True:\n  from tensorflow import io"),
    ("encoders/a.py", "from datasets import shards"),
    ("encoders/a.py", "import shards"),
    ("inputs.py", "import encoders"),
    ("inputs.py", "def f():\n  import models.gpt"),
    ("records/a.py", "import inputs"),
    ("datasets/a.py", "import models"),
    ("mesh/compat.py", "from configs.errors import UserError"),
    ("mesh/a.py", "from models import gpt"),
    ("models/a.py", "from mesh import devices"),
    ("models/a.py", "def f():\n  import mesh.devices"),
    ("models/a.py", "from training import step"),
    ("models/a.py", "import inputs"),
    ("training/a.py", "from interop import huggingface"),
    ("training/a.py", "import main"),
    ("interop/a.py", "import main"),
    ("models/a.py", "import tests"),
    ("models/a.py", "from tensorflow.python.framework import ops"),
    ("models/a.py", "from tensorflow import python"),
    ("models/a.py", "import mesh_tensorflow as mtf"),
    ("main.py", "from training import run"),
    ("attic/a.py", "import os"),
])
def test_the_walk_finds_a_reverse_edge(path, text):
    files = {"datasets/shards.py": "", path: text}
    assert len(reverse_edges(files)) >= 1


@pytest.mark.parametrize(("path", "text"), [
    ("configs/a.py", "def f():\n  import tensorflow.compat.v1 as tf"),
    ("inputs.py", "def f():\n  import encoders"),
    ("models/a.py", "from mesh.compat import mtf, tf\nfrom mesh import ops"),
    ("datasets/a.py", "import shards\nfrom encoders import char"),
    ("mesh/compat.py", "import mesh_tensorflow\nfrom tensorflow.python.framework import ops"),
    ("training/a.py", "import inputs, tensorflow_estimator\nfrom records import shards"),
    ("main.py", "from configs.errors import UserError\ndef f():\n  from training import run"),
])
def test_the_walk_lets_the_right_way_through(path, text):
    assert reverse_edges({"datasets/shards.py": "", path: text}) == []


@pytest.mark.parametrize(("module", "absent"), [
    ("main", ["tensorflow", "pydantic", "numpy"]),
    ("configs.schema", ["tensorflow", "numpy"]),
    ("encoders", ["tensorflow", "transformers"]),
    ("inputs", ["encoders", "models", "training"]),
    ("datasets.openwebtext", ["tensorflow", "numpy", "zstandard", "ftfy"]),
    ("models.gpt", ["mesh.devices", "training", "encoders", "inputs",
                    # heavy, and broken where setuptools no longer has pkg_resources
                    "mesh_tensorflow.transformer", "tensorflow_datasets", "ortools"]),
    ("training.run", ["mesh_tensorflow.transformer", "tensorflow_datasets", "ortools"]),
])
def test_importing_a_module_does_not_load_others(root, module, absent):
    code = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == []
