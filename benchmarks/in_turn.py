"""What benchmarks share: ways of doing a thing, timed in turn; a table; JSON as the last line."""

import contextlib
import glob
import json
import os
import sys
import time

from tqdm import tqdm

from benchmarks import machine
from configs import markdown

# Lines of a profile that are shown; the whole of it is in its directory.
_SHOWN = 25


def add_flags(parser, rounds, threads=2):
    """The flags of every benchmark."""
    parser.add_argument("--rounds", type=int, default=rounds,
                        help="of each, after one to warm up (%(default)s)")
    parser.add_argument("--threads", type=int, default=threads, help="and cores (%(default)s)")
    parser.add_argument("--profile", metavar="DIR", help="profile a round of ours after the "
                        "measurement: the costliest parts go to stderr, the whole to DIR")


def begin(threads):
    """Confines the process to some cores, and warns if others use them; returns the load."""
    load = machine.warn_of_load()
    machine.confine(threads)
    # Theirs may have no file of a name on the hub, and asking takes seconds.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return load


def timed(ways, rounds, description=None, warm=1, clock=time.perf_counter):
    """Calls each way once a round, after rounds that do not count.

    Args:
      ways: {name: function}.
      rounds: how many.
      description: of the progress bar.
      warm: how many do not count.
      clock: what tells the seconds: time.process_time's are of the processor.

    Returns:
      {name: seconds of each round}.
    """
    found = {name: [] for name in ways}
    for _ in tqdm(range(warm + rounds), desc=description, disable=None):
        for name, way in ways.items():
            began = clock()
            way()
            found[name].append(clock() - began)
    return {name: seconds[warm:] for name, seconds in found.items()}


@contextlib.contextmanager
def profiled(directory):
    """Profiles what is done within it, Python and TensorFlow; see `add_flags`."""
    import cProfile
    import pstats

    os.makedirs(directory, exist_ok=True)
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow:
        tensorflow.profiler.experimental.start(directory)
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        if tensorflow:
            tensorflow.profiler.experimental.stop()
            _show_operations(directory)
        profile.dump_stats(os.path.join(directory, "python.prof"))
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(_SHOWN)


def _show_operations(directory):
    """Sums of TensorFlow's newest trace by type of operation, the longest first."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space, totals = xplane_pb2.XSpace(), {}
    newest = max(glob.glob(os.path.join(directory, "**", "*.xplane.pb"), recursive=True),
                 key=os.path.getmtime)
    with open(newest, "rb") as file:
        space.ParseFromString(file.read())
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            name = plane.event_metadata[event.metadata_id].name.rpartition(":")[2]
            seconds, count = totals.get(name, (0.0, 0))
            totals[name] = seconds + event.duration_ps / 1e12, count + 1
    for name, (seconds, count) in sorted(totals.items(), key=lambda item: -item[1][0])[:_SHOWN]:
        print(f"{seconds:9.3f} s {count:8} {name}", file=sys.stderr)


def show(heads, rows, found):
    """Prints a table in Markdown and all that was found as JSON."""
    print(markdown.table(heads, rows))
    print(json.dumps(found), flush=True)
