"""The cores that a measurement has."""

import os
import sys


def warn_of_load():
    """Says so if other work shares the cores; returns the load average."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the load average is {load:.1f}: other work shares the cores, which the "
              "measurement will show", file=sys.stderr)
    return load


def confine(threads):
    """Confines this process to as many cores as it may have threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
