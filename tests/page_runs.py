"""Runs commands one after the other in one process: python page_runs.py FILE, in a checkout.

FILE holds a JSON list of shell commands of the kinds that the pages have. Beside it FILE.results
gets a line of JSON for each, with status, stdout, stderr and seconds of processor time.
"""

import contextlib
import importlib.util
import io
import json
import os
import runpy
import shlex
import sys
import time
import traceback


def program(words):
    """A function of no argument that does what `python WORDS` does, and returns its status."""
    if words[0] == "-c":
        return lambda: exec(words[1], {"__name__": "__main__"})  # noqa: S102
    if words[0] == "-m":
        return lambda: runpy.run_module(words[1], run_name="__main__") and None
    spec = importlib.util.spec_from_file_location(
        os.path.splitext(os.path.basename(words[0]))[0], words[0])
    if spec.name not in sys.modules:
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return lambda: sys.modules[spec.name].main(words[1:])


def run(command):
    """Runs `[cat FILE |] python … [> FILE]`; returns its line of results."""
    words, stdin = shlex.split(command), ""
    if words[0] == "cat":
        with open(words[1], encoding="utf-8") as file:
            stdin = file.read()
        words = words[3:]
    elif "--interactive" in words:
        stdin = "ROMEO:\n"
    words, target = (words[:words.index(">")], words[-1]) if ">" in words else (words, None)
    out, err, started = io.StringIO(), io.StringIO(), time.process_time()
    sys.stdin = io.StringIO(stdin)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = program(words[1:])()
        except SystemExit as stop:
            status = stop.code
        except Exception:
            traceback.print_exc()
            status = 1
    if target:
        with open(target, "w", encoding="utf-8") as file:
            file.write(out.getvalue())
    return {"command": command, "status": status or 0, "stdout": out.getvalue(),
            "stderr": err.getvalue(), "seconds": time.process_time() - started}


if __name__ == "__main__":
    sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "datasets")]
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    with open(sys.argv[1] + ".results", "w", encoding="utf-8") as file:
        for one in asked:
            print(json.dumps(run(one)), file=file, flush=True)
