"""The pages: every command and path in them is right, and the README's way from text to samples."""

import glob
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from configs import flags, reading, schema, sweep_file
from encoders import clip

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md",
         *sorted(glob.glob("docs/*.md", root_dir=ROOT))]
# Paths in pages that a reader's own commands make.
MADE = re.compile(r"data/|runs/|configs/datasets/(mine|NAME)\.json$")


def read(page):
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        return file.read()


def commands(page, section=None):
    """The commands in a page's sh blocks, and main.py's in its console blocks, which are not to be
    given as they are; one string each; only those below a heading if given."""
    text = read(page)
    if section:
        text = re.search(rf"(?ms)^## {section}\n(.*?)(?=^## |\Z)", text)[1]
    blocks = re.findall(r"(?ms)^```(sh|console)\n(.*?)^```$", text)
    return [line for kind, block in blocks
            for line in block.replace("\\\n", " ").splitlines()
            if line.strip() and (kind == "sh" or line.startswith("python main.py"))]


ALL = [(page, command) for page in PAGES for command in commands(page)]


def test_the_pages_hold_commands():
    assert {"make demo", "make test"} <= {command for _, command in ALL}
    assert len(ALL) > 15


def check_main(args):
    """Refuses flags, config names, keys and values that main.py does not take."""
    parsed = flags.parse(args)
    if parsed.import_from or parsed.report or (parsed.model or "").startswith("runs/"):
        return
    if parsed.sweep:
        sweep = sweep_file.Sweep.model_validate(
            reading.read_mapping(os.path.join(ROOT, parsed.sweep)))
        made = [item for item in sweep.set if not item.startswith("datasets=")]
        for key, values in sweep.keys.items():
            for value in values if isinstance(values, list) else [values.low, values.high]:
                schema.load(sweep.model, [*made, "n_vocab=1024", f"{key}={json.dumps(value)}"])
        return
    # The datasets of the pages' examples are their readers'.
    settings = [item for item in parsed.set if not item.startswith("datasets=")]
    schema.load(parsed.model, settings, {"gpu_ids": parsed.gpu_ids})


def check_script(script, args):
    """Refuses flags that a script does not have."""
    shown = subprocess.run([sys.executable, os.path.join(ROOT, script), "--help"],
                           capture_output=True, text=True, timeout=60, check=True).stdout
    for flag in (arg for arg in args if arg.startswith("--")):
        assert re.search(rf"{flag}\b", shown), f"{script} has no {flag}"


def check_make(args):
    subprocess.run(["make", "-n", f"INSTALLED={sys.executable}", *args], cwd=ROOT, check=True,
                   capture_output=True, timeout=60)


@pytest.mark.parametrize("page, command", ALL)
def test_a_command_is_right(page, command):
    words = shlex.split(command.rpartition("| ")[2])
    if words[:2] == ["python", "main.py"]:
        check_main(words[2:])
    elif words[0] == "python" and words[1].startswith(("datasets/", "configs/", "benchmarks/")):
        check_script(words[1], words[2:])
    elif words[:2] == ["python", "-m"]:
        assert os.path.exists(os.path.join(ROOT, words[2].replace(".", "/") + ".py"))
    elif words[0] == "make":
        check_make(words[1:])
    elif words[:3] == ["pip", "install", "-r"]:
        assert os.path.exists(os.path.join(ROOT, words[3]))
    elif words[0] == "pip":
        assert words[1:] == ["install", "--no-deps", clip.PACKAGES["open_clip"]]
    elif words[:2] == ["python", "-c"]:
        compile(words[2], page, "exec")
    else:
        assert words in (["source", ".venv/bin/activate"], ["tensorboard", "--logdir", "runs"],
                         ["eval", "$(activate-global-python-argcomplete --dest=-)"])


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_links_in_a_page_exist(page):
    text = read(page)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert os.path.exists(os.path.join(ROOT, os.path.dirname(page), link)), link
    for path in re.findall(r"`((?:\w+/)+(?:\w+\.(?:py|json|md))?)`", text):
        if not MADE.match(path) and path != "mytext/":
            assert os.path.exists(os.path.join(ROOT, path)), path
    if page == "docs/coming-from.md":
        return  # it is about other programs' flags; tests/test_coming_from.py reads it
    text = re.sub(r"(?ms)^```console\n.*?^```$", "", text)  # commands of others
    for flag in re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text):
        scripts = ("create_tfrecords", "train_tokenizer", "scenes", "encode_captions",
                   "openwebtext", "download")
        known = "".join(map(read, ["configs/flags.py", "configs/command_line.py",
                                       "configs/convert.py",
                                   "interop/serve.py",
                                   *glob.glob("benchmarks/*.py", root_dir=ROOT),
                                   *(f"datasets/{name}.py" for name in scripts)]))
        assert flag in known or flag in ("--logdir", "--no-deps", "--dest"), f"{page}: {flag}"


def test_what_troubleshooting_quotes_is_said():
    """Each message of the page stands in the sources, where string literals follow each other."""
    sources = "".join(read(os.path.relpath(path, ROOT)) for path in glob.glob(
        os.path.join(ROOT, "**", "*.py"), recursive=True) if "tests" not in path.split(os.sep))
    said = re.sub(r'"\s*\n\s*f?"', "", sources)
    quoted = re.findall(r"(?m)^\| (`.*`) \|", read("docs/troubleshooting.md"))
    assert len(quoted) > 15
    for line in quoted:
        for words in re.findall(r"`([^`]+)`", line):
            assert words in said, words


def test_anchors_in_links_exist():
    for page in PAGES:
        for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", read(page)):
            target = os.path.join(os.path.dirname(page), path) if path else page
            headings = re.findall(r"(?m)^#+ (.*)$", read(target))
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
                              for heading in headings]  # as GitHub makes them


def keys_of_the_summary():
    """The keys in docs/training.md's table of numbers for scripts."""
    section = re.search(r"(?s)## Numbers for scripts(.*?)\n## ", read("docs/training.md"))[1]
    return re.findall(r"(?m)^\| `([\w/]+)` \|", section)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the program, with a command `python` that is this interpreter."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(
        ".git", ".venv", "tests", "__pycache__", ".*_cache", "data", "runs"))
    (copy / "bin").mkdir()
    python = copy / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def run(command):
        path = f"{copy / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", command], cwd=copy, capture_output=True, text=True,
                              env={**os.environ, "PATH": path, "MAKEFLAGS": ""}, timeout=900,
                              stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run.directory = copy
    return run


TINY = " ".join(f"--set {setting}" for setting in (
    "n_layer=1", "n_embd=32", "n_ctx=32", "train_steps=4", "steps_per_checkpoint=4",
    "warmup_steps=1", "eval_steps=2", "sample_tokens=4"))


def scaled_down(command):
    """The command with a small vocabulary and a small model."""
    if "main.py" in command:
        few = " --max_new_tokens 5" if "--predict" in command else ""
        return f"{command} {TINY}{few}"
    return command.replace("--vocab_size 8192", "--vocab_size 300")


# The README's commands that the walk leaves out, each with the reason.
ELSEWHERE = {
    "make demo": "test_the_demo_makes_all_from_nothing_and_a_second_one_goes_on, with QUICK=1",
    "make test": "this is a part of it",
    "source .venv/bin/activate": "the checkout's python is ready",
    "python -m training.open_board --logdir runs": "tests/test_training_board.py: it serves on",
}


@pytest.mark.slow
def test_the_readme_from_top_to_bottom(checkout):
    """A stranger's way: every command, in its order, in a clean checkout."""
    from pydoc_data.topics import topics

    texts = checkout.directory / "mytext"
    texts.mkdir()
    for number, name in enumerate(sorted(topics)[:20]):
        (texts / f"{number}.txt").write_text(topics[name], encoding="utf-8")
    assert set(ELSEWHERE) < set(commands("README.md"))
    (tokenizer, tfrecords, training, check, printed, evaluation, samples, on_mesh) = (
        checkout(scaled_down(command)) for command in commands("README.md")
        if command not in ELSEWHERE)

    assert "300 ids" in tokenizer and "dropped 0" in tfrecords
    summary = json.loads(training.splitlines()[-1])
    assert list(summary) == keys_of_the_summary()
    assert summary["step"] == 4 and summary["model_path"] == "runs/mine"
    assert summary["perplexity"] == pytest.approx(math.exp(summary["eval_loss"]))
    assert check.splitlines()[-1] == "0 problems found"
    assert re.search(r"n_layer\b.*\b1\b", printed)

    evaluation = json.loads(evaluation.splitlines()[-1])
    assert list(evaluation) == keys_of_the_summary()
    assert evaluation["eval_loss"] == pytest.approx(summary["eval_loss"], abs=1e-6)
    with open(checkout.directory / "runs" / "mine" / "metrics.jsonl", encoding="utf-8") as file:
        assert [set(json.loads(line)) for line in file] == [set(summary)] * 2

    parts = re.split(r"(?m)^-{5,}\n", samples)
    assert len(parts) == 4 and not parts[3]
    assert all(part.startswith("Once upon") for part in parts[:3])

    on_mesh = json.loads(on_mesh.splitlines()[-1])
    assert on_mesh["eval_loss"] == pytest.approx(summary["eval_loss"], abs=1e-4)


@pytest.mark.slow
def test_the_demo_makes_all_from_nothing_and_a_second_one_goes_on(checkout):
    demo = f"make demo QUICK=1 INSTALLED={sys.executable}"
    first = checkout(demo)
    results = checkout.directory / "runs" / "demo_quick"
    picture = (results / "results.png").read_bytes()
    runs = json.loads((results / "results.json").read_text())
    assert picture.startswith(b"\x89PNG") and len(runs) == 5
    for run in runs:
        # The bytes' entropy, without their order, is above 4 bits.
        assert 0 < run["bits_per_byte"] < 4 and 0 < run["heldout"] < 4, run
        assert 0.2 < run["accuracy"] < 0.8 and run["answers"] > 0, run
    assert len({run["validation"] for run in runs}) == 5, "rows are the same model"
    second = checkout(demo)
    for output in (first, second):
        table = re.findall(r"(?m)^\| GPT.*$", output)
        assert [len(row.split("|")) for row in table] == [14] * 5 + [10] * 5
        samples = re.split(r"(?m)^-{5,}$", output)
        assert len(samples) == 5
        assert sum("there is a rose hoop and a" in sample for sample in samples) == 4
    assert re.findall(r"(?m)^\| .*$", first) == re.findall(r"(?m)^\| .*$", second)
    assert not (checkout.directory / ".venv").exists()
