"""Compiles a program for a TPU slice without one, and says what it needs there."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys

from configs.errors import UserError
from mesh import buffers, compile_cache, estimate, pjrt, processes, torus
from mesh.optimized import Schedule

ABSENT = ("the TPU compiler is not installed; `make preflight-env` installs it "
          "(libtpu, 140 MB; no TPU is needed), or pip install -r requirements-preflight.txt")

# The compiler's process has to find this package, wherever the command was given.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the TPU compiler made of a program.

    Attributes:
      memory: bytes of a core's memory: {"arguments": …, "results", "temporaries", "code"}; results
        that take over the memory of arguments are left out.
      schedule: a mesh.optimized.Schedule.
      traffic: a list of mesh.estimate.Traffic.
      seconds: of a step, by part; see mesh.estimate.step_seconds.
      arguments: the mesh.buffers.Buffers of weights, slots and input, the largest first.
      buffers: those of the temporaries when they need most memory, likewise; peak: their sum.
    """

    memory: dict
    schedule: Schedule
    traffic: list
    seconds: dict
    arguments: list = ()
    buffers: list = ()
    peak: int = 0


@dataclasses.dataclass(frozen=True)
class TooLarge:
    """The compiler's answer to a program that does not fit into a core's memory.

    Attributes:
      needed: bytes, at least, as far as the compiler says. message: its words.
      layers: how many layers the program's model had, if not all.
    """

    needed: int | None
    message: str
    layers: int | None = None


def check_installed():
    """Refuses where libtpu is not installed.

    Raises:
      UserError: says how to get it.
    """
    if pjrt.library() is None:
        raise UserError(f"--preflight: {ABSENT}")


def compile_for(program, tpu, mesh):
    """Compiles a program for a TPU slice, or takes what the compiler said of it before.

    Args:
      program: a mesh.ahead.Program, made for the slice's torus.
      tpu: a mesh.tpus.Slice with as many cores.
      mesh: [(name, size)] of the config.

    Returns:
      a Compiled, or a TooLarge.

    Raises:
      UserError: the compiler refused for another reason, or died.
    """
    name = compile_cache.key(program.module, tpu.topology, program.cores)
    answer = compile_cache.get(name)
    if fresh := answer is None:
        answer = _answer(program, tpu)
    first, _, optimized = answer.partition(b"\n")
    facts = json.loads(first)
    if fresh and facts.get("code", pjrt.OUT_OF_MEMORY) == pjrt.OUT_OF_MEMORY:
        compile_cache.put(name, answer)
    if facts.get("code") == pjrt.OUT_OF_MEMORY:
        return TooLarge(_needed(facts["message"]), facts["message"])
    if "message" in facts:
        raise UserError(f"--preflight {tpu.name}: the compiler refused: "
                        f"{facts['message'].splitlines()[0]}")
    schedule = Schedule(optimized)
    coordinates = [tuple(place) for place in facts["coordinates"]]
    traffic = estimate.traffic(schedule, mesh, coordinates, tpu.generation,
                               torus.order(mesh, tpu.torus))
    memory = facts["memory"]
    peak, living = buffers.at_peak(schedule.module)
    return Compiled({"arguments": memory["argument"], "temporaries": memory["temp"],
                     "results": memory["output"] - memory["alias"], "code": memory["code"]},
                    schedule, traffic, estimate.step_seconds(schedule, traffic, tpu.generation),
                    buffers.arguments(schedule.module, program.arguments), living, peak)


def _answer(program, tpu):
    """What mesh.compiler writes of a program: a line of JSON, then the optimized program."""
    processes.give_memory_back()  # gigabytes of a large model's graph; the compiler needs more
    done = subprocess.run(
        [sys.executable, "-m", "mesh.compiler", tpu.topology, str(program.cores)],
        input=program.module, capture_output=True, cwd=_ROOT)
    if done.returncode or not done.stdout:
        logging.debug("%s", done.stderr.decode("utf-8", "replace"))
        raise UserError(f"--preflight {tpu.name}: the compiler ended with status "
                        f"{done.returncode} (out of this machine's memory?); --verbose shows what "
                        "it said")
    return done.stdout


def _needed(message):
    """Bytes that the compiler names: of all the step, or of one buffer that alone is too large."""
    found = re.search(r"[Uu]sed (\d+(?:\.\d+)?)([KMGT]) of \S+ hbm", message)
    if found:
        return int(float(found[1]) * 1024 ** " KMGT".index(found[2]))
    found = re.search(r"Allocation \(size=(\d+)\) would exceed memory", message)
    return found and int(found[1])
