"""Runs XLA programs for several cores on virtual CPU devices, by jaxlib in a process of its own.

jaxlib and TensorFlow each bring an XLA of their own; neither process loads both.
"""

import os
import pickle
import subprocess
import sys

CORES = 8


class VirtualCores:
    """A process that compiles and runs programs."""

    def __init__(self):
        flags = f"--xla_force_host_platform_device_count={CORES} --xla_cpu_enable_fast_math=false"
        self._process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "XLA_FLAGS": flags})

    def run(self, program, arguments, steps):
        """Runs a program again and again, with the variables that it has updated.

        Args:
          program: a mesh.ahead.Program.
          arguments: {name: a list with each core's numpy array}, but for "core".
          steps: how often.

        Returns:
          (of each step, {name of a scalar: a list with each core's value}; {name of an updated
          variable: a list with each core's array} after the last step).
        """
        given = [arguments[name] for name in program.arguments[1:]]
        pickle.dump((program.module, program.cores, program.arguments, program.results, given,
                     steps), self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def close(self):
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait(timeout=30)


def serve(requests, answers):
    """Answers the requests of VirtualCores.run, one after the other."""
    import numpy as np
    from jaxlib import xla_client

    # What the package jax does when it is imported: without it, buffers ask for settings in vain.
    settings = xla_client._xla.jax_jit
    settings.set_thread_local_state_initialization_callback(lambda: None)
    settings.global_state().enable_memories = False
    client = xla_client.make_cpu_client()
    devices = client.devices()

    def execute(module, cores, names, results, given, steps):
        options = xla_client.CompileOptions()
        options.num_replicas = cores
        options.device_assignment = xla_client.DeviceAssignment.create(
            np.arange(cores).reshape(cores, 1))
        compiled = client.compile(xla_client._xla.mlir.xla_computation_to_mlir_module(
            xla_client.XlaComputation(module)), options)
        values = dict(zip(names[1:], given, strict=True))
        values["core"] = [np.int32(core) for core in range(cores)]
        curve = []
        for _ in range(steps):
            buffers = [[client.buffer_from_pyval(np.asarray(values[name][core]), devices[core])
                        for core in range(cores)] for name in names]
            rows = compiled.execute_sharded(buffers).disassemble_into_single_device_arrays()
            found = {name: [np.asarray(x) for x in row]
                     for name, row in zip(results, rows, strict=True)}
            values.update((name, row) for name, row in found.items() if name in values)
            curve.append({name: row for name, row in found.items() if name not in values})
        return curve, {name: values[name] for name in results if name in values}

    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = execute(*request)
        except Exception as error:  # its message is what the test fails with
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
