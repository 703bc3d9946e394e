"""Setting up: pinned requirements, the Makefile's environments, and CI's check of skips."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import pytest

PIN = re.compile(r'([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)(; python_version [<>=]+ "3\.\d+")?')
FILES = ["requirements.txt", "requirements-dev.txt", "requirements-compare.txt",
         "requirements-preflight.txt", "requirements-layouts.txt", "requirements-sweep.txt",
         "requirements-gpu.txt", "requirements-serve.txt", "requirements-wandb.txt"]


def normal(name):
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(root, file):
    """{normal name: version} of one requirements file, without those that it includes."""
    found = {}
    with open(os.path.join(root, file), encoding="utf-8") as opened:
        for line in opened:
            line = line.partition("#")[0].strip()
            if not line or re.fullmatch(r"-r requirements\S*\.txt", line):
                continue
            match = PIN.fullmatch(line)
            assert match, f"{file}: {line!r} is not pinned exactly"
            assert normal(match[1]) not in found, f"{file}: {match[1]} is there twice"
            found[normal(match[1])] = match[2]
    return found


def test_every_requirement_is_pinned_once(root):
    everything = {file: pins(root, file) for file in FILES}
    names = [name for file in FILES for name in everything[file]]
    assert len(names) == len(set(names))
    # The versions that the program was built around.
    program = everything["requirements.txt"]
    assert (program["tensorflow"], program["mesh-tensorflow"]) == ("2.15.1", "0.1.21")
    assert 77 <= int(program["setuptools"].split(".")[0]) < 81
    assert program["numpy"].startswith("1.") and program["protobuf"].startswith("4.")


def third_party_imports(root, benchmarks=False):
    """{imported top-level name: a file that imports it} of the program, or of its benchmarks."""
    found, local = {}, set()
    for where, directories, files in os.walk(root):
        inside = os.path.relpath(where, root).split(os.sep)[0]
        directories[:] = [d for d in directories
                          if not d.startswith((".", "_")) and d not in ("tests", "data", "runs")]
        local.update(directories)
        for file in files:
            if file.endswith(".py"):
                local.add(file[:-3])
                path = os.path.join(where, file)
                if (inside == "benchmarks") != benchmarks:
                    continue
                with open(path, encoding="utf-8") as opened:
                    tree = ast.parse(opened.read())
                for node in ast.walk(tree):
                    if isinstance(node, ast.Import):
                        names = [alias.name for alias in node.names]
                    elif isinstance(node, ast.ImportFrom):
                        names = [node.module]
                    else:
                        continue
                    found.update((name.split(".")[0], path) for name in names)
    return {name: path for name, path in found.items()
            if name not in local and name not in sys.stdlib_module_names}


def test_everything_imported_is_required(root):
    imported = third_party_imports(root)
    assert {"tensorflow", "mesh_tensorflow", "yaml", "google_crc32c"} <= set(imported)
    # All else works without the solver of layouts, the chooser of sweeps and services of others.
    required = {name for part in ("", "-layouts", "-sweep", "-serve", "-wandb")
                for name in pins(root, f"requirements{part}.txt")}
    distributions = importlib.metadata.packages_distributions()
    for name, path in imported.items():
        owners = {normal(owner) for owner in distributions.get(name, [name])}
        assert owners & required, f"{path} imports {name}, which they lack"


def test_what_benchmarks_compare_with_is_pinned(root):
    pinned = set().union(*(pins(root, file) for file in FILES))
    distributions = importlib.metadata.packages_distributions()
    for name, path in third_party_imports(root, benchmarks=True).items():
        owners = {normal(owner) for owner in distributions.get(name, [name])}
        assert owners & pinned, f"{path} imports {name}, which no requirements file has"


def fake_python(path, version):
    """Writes an interpreter that says it is of another version; `-m venv` makes a fake environment.

    The environment's python appends its arguments to `pip.log` beside the environment, and fails
    if there is a file `offline` there.
    """
    path.write_text(f"""#!/bin/sh
if [ "$1" = -c ]; then
    exec {sys.executable} -c '
import sys
sys.version_info = {version!r}
exec(sys.argv[1])' "$2"
fi
[ "$1 $2" = "-m venv" ] || exit 1
mkdir -p "$3/bin"
cat > "$3/bin/python" <<'END'
#!/bin/sh
home=$(dirname "$0")/../..
[ ! -e "$home/offline" ] || exit 1
echo "$*" >> "$home/pip.log"
END
chmod +x "$3/bin/python"
""")
    path.chmod(0o755)
    return path


@pytest.fixture
def make(root, tmp_path):
    """Runs the Makefile in a directory of its own, with fake interpreters of given versions."""
    for file in ["Makefile", *FILES]:
        shutil.copy(os.path.join(root, file), tmp_path)
    (tmp_path / "bin").mkdir()

    def run(*args, **versions):
        for name, version in versions.items():
            fake_python(tmp_path / "bin" / name.replace("_", "."), version)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(["make", *args], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PATH": path, "MAKEFLAGS": ""}, timeout=60)

    return run


@pytest.mark.parametrize("target", ["demo", "test"])
def test_a_wrong_python_gets_one_line_with_the_remedy(make, tmp_path, target):
    wrong = fake_python(tmp_path / "my_python", (3, 12, 1))
    for args, versions in [
            ([f"PYTHON={wrong}"], {}), ([f"PYTHON={tmp_path}/none"], {}),
            ([], {"python3_11": (3, 12, 1), "python3_10": (3, 9, 9), "python3": (3, 13, 0)})]:
        done = make(target, *args, **versions)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "Python 3.10 or 3.11" in done.stderr and "PYTHON=/usr/bin/python3.11" in done.stderr
        assert not args or args[0] in done.stderr
        assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("versions, expected", [
    ({"python3_11": (3, 11, 9), "python3_10": (3, 10, 1), "python3": (3, 13, 0)}, "python3.11"),
    ({"python3_11": (3, 12, 0), "python3_10": (3, 10, 1), "python3": (3, 13, 0)}, "python3.10"),
    ({"python3_11": (3, 12, 0), "python3_10": (3, 9, 1), "python3": (3, 10, 2)}, "python3"),
])
def test_the_first_fitting_python_is_taken(make, versions, expected):
    done = make("-n", "venv", **versions)
    assert f"|| {expected} -m venv .venv" in done.stdout, done.stdout + done.stderr


def test_a_second_run_installs_nothing(make, tmp_path):
    log = tmp_path / "pip.log"

    def installed():
        done = make("venv", python3_11=(3, 11, 7))
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return done.returncode, [line.split()[-1] for line in lines]

    (tmp_path / "offline").touch()
    assert installed() == (2, [])
    (tmp_path / "offline").unlink()
    assert installed() == (0, FILES[:2])  # and what had failed is not taken for done
    assert installed() == (0, [])
    with open(tmp_path / FILES[1], "a", encoding="utf-8") as file:
        file.write("six==1.17.0\n")
    assert installed() == (0, FILES[1:2])
    # A fresh checkout has other times and the same contents.
    os.utime(tmp_path / FILES[0])
    assert installed() == (0, [])


SKIPPING = """
import pytest

def test_runs():
    pass

@pytest.mark.xfail
def test_known_to_fail():
    assert False

def test_skips():
    {skip}
"""


@pytest.mark.parametrize("skip, allowed, status", [
    ("pass", {}, 0), ("pytest.importorskip('no_such_module')", {}, 1),
    ("pytest.skip('not today')", {}, 1),
    ("pytest.skip('not today')", {"test_it.py::test_skips": "a reason"}, 0)])
def test_ci_fails_on_a_skip_that_is_not_allowed(root, tmp_path, skip, allowed, status):
    (tmp_path / "test_it.py").write_text(SKIPPING.format(skip=skip))
    with open(os.path.join(root, ".ci", "no_skips.py"), encoding="utf-8") as file:
        plugin = file.read()
    plugin, count = re.subn(r"(?s)ALLOWED = \{.*?\n?\}\n", f"ALLOWED = {allowed!r}\n", plugin)
    assert count == 1
    (tmp_path / "no_skips.py").write_text(plugin)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no_skips", "-p", "no:cacheprovider",
         "--rootdir", tmp_path, "test_it.py"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": ""}, timeout=60)
    assert done.returncode == status, done.stdout
    assert ("test_it.py::test_skips" in done.stdout) == bool(status)
    # pytest's own line stays the last one.
    assert re.search(r"\d passed.* in [\d.]+s", done.stdout.splitlines()[-1])


def test_a_module_that_skips_itself_is_noticed(root, tmp_path):
    (tmp_path / "test_it.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    (tmp_path / "test_other.py").write_text("def test_runs():\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no_skips", "-p", "no:cacheprovider",
         "--rootdir", tmp_path], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.path.join(root, ".ci")}, timeout=60)
    assert done.returncode == 1 and "test_it.py: " in done.stdout
