"""Users' files are reached through tf.io.gfile alone, so that gs:// works wherever a path does."""

import ast

import pytest
from test_imports import sources

OS = {"access", "chmod", "link", "listdir", "makedirs", "mkdir", "open", "remove", "removedirs",
      "rename", "renames", "replace", "rmdir", "scandir", "stat", "symlink", "truncate", "unlink",
      "utime", "walk"}
OS_PATH = {"exists", "getctime", "getmtime", "getsize", "isdir", "isfile", "islink", "ismount",
           "lexists", "samefile"}
CALLS = ({"open", "io.open", "codecs.open", "numpy.fromfile", "numpy.genfromtxt", "numpy.loadtxt",
          "numpy.memmap", "numpy.save", "numpy.savetxt", "numpy.savez", "numpy.savez_compressed",
          "sqlite3.connect", "tarfile.open", "zipfile.ZipFile", "gzip.open", "bz2.open",
          "lzma.open"}
         | {f"os.{name}" for name in OS} | {f"os.path.{name}" for name in OS_PATH})
MODULES = {"shutil", "glob", "pathlib", "tempfile", "fileinput", "mmap"}

# (file, function): which calls are let through there, and why.
ALLOWED = {
    ("configs/reading.py", "find_config"): (
        {"os.path.isfile"}, "is it a path or a shipped name? Paths with :// do not come here"),
    ("configs/reading.py", "shipped_configs"): ({"os.listdir"}, "configs/ of this checkout"),
    ("configs/reading.py", "read_text"): (
        {"open"}, "a local path: a config is read without TensorFlow; one with :// goes to gfile"),
    ("configs/dataset_files.py", "path"): (
        {"os.path.isfile"}, "which of two folders of this checkout has an id"),
    ("configs/dataset_files.py", "covered"): (
        {"os.path.isfile"}, "whether both folders of this checkout have an id"),
    ("configs/dataset_files.py", "_load"): (
        {"os.path.isfile", "os.path.isdir", "os.listdir"},
        "suggests a dataset of configs/datasets/; paths with :// do not come here"),
    ("configs/schema.py", "_check_present_datasets"): (
        {"os.path.isfile"}, "a note for --print_config, which runs without TensorFlow"),
    ("mesh/compat.py", "quiet_xla"): ({"os.open"}, "the null device"),
    ("mesh/fence.py", "close"): ({"os.listdir"}, "this process's sockets"),
}


def accesses(text):
    """(function or "", call or module, line) of every file access that is not gfile's."""
    tree = ast.parse(text)
    names = {}  # local name → what it stands for
    found = []

    def dotted(node):
        if isinstance(node, ast.Name):
            return names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            base = dotted(node.value)
            return base and f"{base}.{node.attr}"
        return None

    def on_open_file(call):
        first = call.args[0].func if call.args and isinstance(call.args[0], ast.Call) else None
        return ((dotted(first) or "").endswith("gfile.GFile")
                or any(k.arg == "fileobj" for k in call.keywords))

    def visit(node, function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0])
                if alias.name.split(".")[0] in MODULES:
                    found.append((function, alias.name.split(".")[0], node.lineno))
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if node.module.split(".")[0] in MODULES:
                found.append((function, node.module.split(".")[0], node.lineno))
        elif isinstance(node, ast.Name | ast.Attribute) and dotted(node) in CALLS:
            found.append((function, dotted(node), node.lineno))
        elif isinstance(node, ast.Call) and on_open_file(node):
            # An archive in an open file: only the arguments matter.
            for child in [*node.args, *(k.value for k in node.keywords)]:
                visit(child, function)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(tree, "")
    return found


def test_users_files_are_reached_through_gfile_alone(root):
    wrong, used = [], set()
    for path, text in sources(root).items():
        if path.startswith(("benchmarks/", "docs/")):
            continue
        for function, what, line in accesses(text):
            if what in ALLOWED.get((path, function), ((),))[0]:
                used.add((path, function, what))
            else:
                wrong.append(f"{path}:{line}: {what} in {function or 'the module'}")
    assert not wrong, "\n".join(wrong)
    allowed = {(*where, what) for where, (calls, _) in ALLOWED.items() for what in calls}
    assert used == allowed, "remove from ALLOWED what nobody needs"


@pytest.mark.parametrize("text", [
    "open('x')", "import io\nio.open('x')", "import os\nos.remove('x')",
    "import os.path\nos.path.exists('x')", "from os import path\npath.isfile('x')",
    "from os.path import isdir\nisdir('x')", "import os as system\nsystem.makedirs('x')",
    "import os\nmap(os.stat, 'x')", "import shutil", "from glob import glob", "import pathlib",
    "from pathlib import Path", "import gzip\ngzip.open('x')",
    "import numpy as np\nnp.save('x', 1)", "import tarfile\ntarfile.open('x')",
    "def f():\n  from tempfile import mkdtemp",
])
def test_the_walk_finds_an_access(text):
    assert len(accesses(text)) == 1


@pytest.mark.parametrize("text", [
    "import tensorflow.compat.v1 as tf\ntf.io.gfile.remove('x')\ntf.io.gfile.glob('x')",
    "import os\nos.path.join('a', 'b')\nos.path.basename('x')\nos.environ.get('x')",
    "import tarfile\ntarfile.open(fileobj=stream, mode='r|')",
    "import gzip\ngzip.GzipFile(fileobj=stream)", "stream.open()", "self.glob('train')",
    "import zipfile, tensorflow as tf\nzipfile.ZipFile(tf.io.gfile.GFile('x', 'rb'))",
])
def test_the_walk_lets_the_rest_through(text):
    assert accesses(text) == []
