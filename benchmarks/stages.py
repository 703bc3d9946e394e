"""The stages of a long experiment: commands of this project, each of which is run once."""

import os
import shlex
import subprocess
import sys

from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Stages:
    """Runs commands, each once: a stage that left its mark is not run again.

    Args:
      out: the output directory; output and marks go to its `logs`.
    """

    def __init__(self, out):
        self._logs = os.path.join(out, "logs")
        os.makedirs(self._logs, exist_ok=True)

    def is_done(self, name):
        """Whether a stage was run to its end, whatever its command was."""
        return os.path.exists(self._mark(name))

    def _mark(self, name):
        return os.path.join(self._logs, f"{name}.done")

    def run(self, name, *command, threads=0):
        """Runs a Python script of the project unless it was done before.

        Args:
          name: of the stage; its output goes to logs/<name>.log.
          command: the script's path below the project's root, and its arguments.
          threads: TensorFlow's threads; 0 is its own choice.

        Raises:
          SystemExit: it failed; shows the end of its output.
        """
        done, log = self._mark(name), os.path.join(self._logs, f"{name}.log")
        line = shlex.join(["python", *map(str, command)])
        if self.is_done(name) and open(done).read() == line:
            return
        tqdm.write(line, file=sys.stderr)
        limits = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads),
                  "OMP_NUM_THREADS": str(threads)} if threads else {}
        with open(log, "w") as file:
            status = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=file,
                                    stderr=subprocess.STDOUT, env={**os.environ, **limits})
        if status.returncode:
            tail = "".join(open(log).readlines()[-5:])
            raise SystemExit(f"{line}\nfailed; the end of {log}:\n{tail}")
        with open(done, "w") as file:
            file.write(line)
