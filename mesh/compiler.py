"""Compiles one program with libtpu, in a process of its own: python -m mesh.compiler TOPOLOGY CORES

The program comes on stdin. On stdout goes a line of JSON, and after it the program as it will run.
libtpu takes gigabytes, and what it cannot do may end the process. On Linux it ends with the process
that started it, whatever that was killed by.
"""

import json
import signal
import sys

from mesh import pjrt, processes


def main(topology_name, cores, program, answer):
    """Compiles, and writes what came of it.

    Args:
      topology_name: libtpu's, such as "v3:4x4". cores: how many of its cores run the program.
      program: a serialised HloModuleProto.
      answer: a binary file: {"memory", "costs", "coordinates"}, and a serialised
        HloModuleProtoWithConfig; or {"code", "message"} if the compiler refused.
    """
    compiler, optimized = pjrt.Compiler(pjrt.library()), b""
    try:
        topology = compiler.topology(topology_name)
        executable = compiler.compile(program, topology, cores)
        facts = {"memory": executable.memory(), "costs": executable.costs(),
                 "coordinates": topology.coordinates[:cores]}
        optimized = executable.optimized()
    except pjrt.CompileError as error:
        facts = {"code": error.code, "message": str(error)}
    answer.write(json.dumps(facts).encode() + b"\n" + optimized)


if __name__ == "__main__":
    processes.end_with_parent(signal.SIGKILL)  # it may compile for minutes
    main(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer.read(), sys.stdout.buffer)
