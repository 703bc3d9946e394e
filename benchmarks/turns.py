"""Contestants that train in turns, each in a process of its own: speed, memory, profiles."""

import json
import multiprocessing
import os
import statistics
import sys
import time
from typing import NamedTuple

from tqdm import tqdm

from benchmarks import machine


def add_flags(parser):
    """The flags of every benchmark in which contestants train."""
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[],
                        help="override a key of the config, such as train_batch_size=2 or "
                        "precision=bfloat16; may be repeated")
    parser.add_argument("--threads", type=int, default=2, help="and cores, of each (2)")
    parser.add_argument("--out", metavar="FILE", help="write the JSON there too")


class Round(NamedTuple):
    """A step's means over a round: seconds by the clock, seconds of processor; the last loss."""

    seconds: float
    processor_seconds: float
    loss: float


class Contestant:
    """A process that takes training steps when it is told to.

    Args:
      name: for tables.
      run: a function of a module, of (a Link, settings): it builds and asks the Link what to do.
      settings: its keyword arguments.
      threads: how many cores it may use.
    """

    def __init__(self, name, run, threads, **settings):
        self.name, self.rounds = name, []
        context = multiprocessing.get_context("spawn")  # neither library survives a fork
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, run, threads, settings),
                                        daemon=True)
        self._process.start()
        other.close()

    def steps(self, number, counts=True):
        """Has it take steps; returns their Round, which also joins `rounds` if it `counts`."""
        result = Round(*self._ask("steps", number))
        if counts:
            self.rounds.append(result)
        return result

    def profile(self, path):
        """A profile of one step: a table as text; a trace for Chrome is written to `path`."""
        return self._ask("profile", path)

    def peak(self):
        """The most memory that the process has had so far, in bytes."""
        return self._ask("peak", None)

    def close(self):
        """Ends the process."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def seconds(self):
        """The median round's seconds a step, by the clock."""
        return statistics.median(r.seconds for r in self.rounds)

    @property
    def processor_seconds(self):
        """The median round's seconds a step, of processor."""
        return statistics.median(r.processor_seconds for r in self.rounds)

    def figures(self, tokens):
        """What JSON holds of it; `tokens` of a step."""
        return {"seconds": self.seconds, "processor_seconds": self.processor_seconds,
                "tokens_per_second": tokens / self.seconds, "loss": self.rounds[-1].loss,
                "peak_bytes": self.peak(), "rounds": [list(r[:2]) for r in self.rounds]}

    def _ask(self, what, value):
        try:
            self._pipe.send((what, value))
            return self._pipe.recv()
        except (EOFError, OSError):
            raise SystemExit(f"{self.name}: the process ended; see what it said above") from None


class Link:
    """The process's end of the pipe.

    Attributes:
      what: what is asked for, "steps" or "profile".
      value: the number of steps, or the path.
    """

    def __init__(self, pipe):
        self._pipe = pipe

    def wait(self):
        """Waits for what to do next; tells the peak of memory itself."""
        while True:
            self.what, self.value = self._pipe.recv()
            if self.what != "peak":
                break
            self.answer(_peak())
        self.left = self.value if self.what == "steps" else 1
        self._number = self.left
        self._begun = time.perf_counter(), time.process_time()

    def stepped(self, loss):
        """Notes a step; at the last one of a round answers. Returns whether it was that."""
        self.left -= 1
        if not self.left and self.what == "steps":
            ended = time.perf_counter(), time.process_time()
            self.answer([*((b - a) / self._number for a, b in
                           zip(self._begun, ended, strict=True)), float(loss)])
        return not self.left

    def answer(self, value):
        """Sends an answer."""
        self._pipe.send(value)


def _serve(pipe, run, threads, settings):
    # Ours shares out the cores that it may use, as it does in main.py.
    machine.confine(threads)
    run(Link(pipe), threads=threads, **settings)


def _peak():
    """VmHWM of this process, in bytes. getrusage's would know of the parent's as well."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def alternate(contestants, rounds, steps, warm=1):
    """Rounds of all in turn, after the first steps and `warm` rounds of each that do not count."""
    for one in tqdm(contestants, desc="building", disable=None):
        # Ours compiles at the first step, which logs scalars, and at the second, which does not.
        one.steps(2, counts=False)
    order = [(one, number >= warm) for number in range(warm + rounds) for one in contestants]
    for one, counts in tqdm(order, desc="rounds", disable=None):
        one.steps(steps, counts)


def ratio(one, other, field="seconds"):
    """The median over rounds of how many times as much `other` takes as `one`."""
    return statistics.median(getattr(b, field) / getattr(a, field)
                             for a, b in zip(one.rounds, other.rounds, strict=True))


def profiles(contestants, directory):
    """Profiles a step of each into a directory, and prints the tables to stderr."""
    os.makedirs(directory, exist_ok=True)
    for one in contestants:
        path = os.path.join(os.path.abspath(directory), one.name.replace(" ", "_"))
        text = one.profile(f"{path}.json")
        with open(f"{path}.txt", "w") as file:
            file.write(text)
        print(f"{one.name}: {path}.txt, and {path}.json for chrome://tracing\n{text}",
              file=sys.stderr)


def table(contestants, tokens):
    """Prints the contestants' medians."""
    width = max(len(one.name) for one in contestants) + 2
    print(f"{'':{width}}{'ms a step':>12}{'tokens/s':>12}{'processor ms':>14}{'peak MB':>10}")
    for one in contestants:
        print(f"{one.name:{width}}{one.seconds * 1e3:12,.1f}{tokens / one.seconds:12,.0f}"
              f"{one.processor_seconds * 1e3:14,.1f}{one.peak() / 1e6:10,.0f}")


def finish(result, out):
    """Prints the JSON as the last line, and writes it to the file `out` if there is one."""
    line = json.dumps(result)
    if out:
        os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
        with open(out, "w") as file:
            file.write(line + "\n")
    print(line)
