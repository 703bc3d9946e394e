"""Runs that are killed at random moments, again and again, and have to end as if nothing had been.

    python tests/kills.py --kills 200 --out /tmp/kills

For each case (a kind of run on a mesh) one run goes straight through. Another one is killed by
SIGKILL at a seeded random moment, gone on with, killed again and so on, and at last left alone: its
weights and moments have to equal the straight one's to the bit, and its evaluations, its best
checkpoint and the names of its files those of the straight one. The last line is JSON: by case and
by what was hit, how many kills were survived. With --seconds it stops in time, and the same command
goes on later. Everything TensorFlow does happens in processes that are forked from this one, which
has imported it all and run nothing, so that a start is cheap.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

STEPS, EVERY = 4, 2
# Each kill is at the next of these: any time, a step (or what else a session runs), an operation on
# files, the saving of a checkpoint, a batch of an evaluation, a removal of --new.
MOMENTS = ("clock", "session", "file", "save", "evaluation", "new")
KINDS = ("gpt", "moe", "mlm", "gpt_c", "gpt_c, input", "clip_student", "text student", "clip")
MESHES = {
    "1 device": {},
    "x:2": {"mesh_shape": "x:2", "layout": "batch:x"},
    "x:2,y:2": {"mesh_shape": "x:2,y:2", "layout": "batch:x,heads:y,vocab:y,"
                                                   "intermediate_expanded:y"},
}
TOWERS = "clip_heads:y,clip_intermediate:y"


def mesh_of(kind, mesh):
    """The keys of a mesh for a kind of run."""
    keys = dict(MESHES[mesh])
    if mesh == "x:2,y:2" and kind in ("clip", "clip_student", "text student"):
        keys["layout"] = f"batch:x,{TOWERS}"
    elif mesh == "x:2,y:2" and kind.startswith("gpt_c"):
        keys["layout"] += f",{TOWERS}"
    elif keys and kind == "moe":
        keys["layout"] += ",experts:x"
    return keys


def keys_of(kind, directory):
    """(datasets, keys) of a kind of run; makes what it needs."""
    import jobs
    import test_whole_clip as clip

    if kind in ("gpt_c", "gpt_c, input", "clip_student", "clip"):
        data, keys = clip.keys_of(kind, directory)
        if kind.startswith("gpt_c"):
            keys |= dict(tokens_per_mb_per_replica=32, recompute_grad=True)
        if kind == "clip":
            keys["eval_steps"] = 0  # its pictures are all for training
        return data, keys
    data = jobs.dataset(directory)
    if kind == "text student":
        return data, {**clip.STUDENT, "clip": {"control": "text_only", "out": 12, "window": 6}}
    if kind == "mlm":
        return data, dict(mlm_training=True, mlm_random_token_prob=0.1, opt_name="adafactor",
                          precision="bfloat16", **jobs.DROPOUT)
    if kind == "moe":
        return data, {"n_layer": 2, "moe_layers": [1], "opt_name": "lion",
                      "moe_params": {"num_experts": 4, "loss_coef": 0.5}, **jobs.DROPOUT}
    other = jobs.dataset(directory, "other", jobs.texts(seed=1))
    return [[data, 1, None, 1.0], [other, 1, None, 2.0]], dict(
        tokens_per_mb_per_replica=16, recompute_grad=True, **jobs.DROPOUT)


def prepare(kind, mesh, directory):
    """Writes the configs of both runs."""
    import jobs

    data, keys = keys_of(kind, pathlib.Path(directory))
    for name in ("straight", "broken"):
        jobs.config(directory, data, name=name, train_steps=STEPS, steps_per_checkpoint=EVERY,
                    keep=1, keep_best=1, **{"eval_steps": 2, "weight_decay": 0.1, **keys,
                                            **mesh_of(kind, mesh)})


def forked(work, log):
    """Starts `work` in a forked process whose output goes to a file; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            status = work() or 0
            file.flush()
    except BaseException:
        with open(log, "a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(status)


def train(path, *flags, fault=None):
    """Work for `forked`: main.py on a config, with a fault set up before."""
    def work():
        import main
        from training import distillation

        distillation._MEASURED = 1000
        if fault:
            fault()
        return main.main(["--model", path, *flags])

    return work


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(target, name, before):
    """Has a function call `before(call)` first, which may return one to call in its place."""
    real = getattr(target, name)

    def function(*args, **kwargs):
        def call():
            return real(*args, **kwargs)

        return (before(call) or call)()

    setattr(target, name, function)


def fault_at(moment, rng):
    """A function that sets up a process to kill itself at such a moment, at random within it."""
    def countdown(count):
        left = [count]

        def strike(call):
            left[0] -= 1
            if not left[0]:
                when = rng.choice(("before", "during", "after"))
                if when == "during":
                    threading.Timer(rng.uniform(0, 0.01), die).start()
                else:
                    if when == "after":
                        call()
                    die()

        return strike

    def set_up():
        from tensorflow.python.client import session

        from mesh.compat import tf
        from training import run

        if moment == "session":
            wrap(session.BaseSession, "run", countdown(rng.randint(1, 30)))
        elif moment == "file":
            for name in ("rename", "remove", "makedirs"):
                wrap(tf.io.gfile, name, countdown(rng.randint(1, 8)))
            wrap(tf.io.gfile.GFile, "write", countdown(rng.randint(1, 12)))
        elif moment == "save":
            left = [rng.randint(1, 2)]

            def saving(call):
                left[0] -= 1
                if not left[0]:
                    threading.Timer(rng.uniform(0, 0.02), die).start()

            wrap(tf.train.Saver, "save", saving)
        elif moment == "evaluation":
            # Building, restoring, and two batches.
            strike, inside = countdown(rng.randint(1, 12)), [False]

            def evaluation(call):
                def evaluate():
                    inside[0] = True
                    try:
                        return call()
                    finally:
                        inside[0] = False

                return evaluate

            wrap(run, "_evaluate", evaluation)
            wrap(session.BaseSession, "run", lambda call: inside[0] and strike(call))
        elif moment == "new":
            wrap(tf.io.gfile, "remove", countdown(rng.randint(1, 10)))

    return set_up


def wait(pid, seconds=None):
    """Waits for a process, and kills it after some seconds; returns its status, < 0 if killed."""
    until = time.monotonic() + seconds if seconds is not None else None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() >= until:
            os.kill(pid, signal.SIGKILL)
            until = None
        time.sleep(0.01)


def compare(directory):
    """Work for `forked`: fails unless both runs have the same bits, evaluations and files."""
    def work():
        import jobs

        from training import keeping

        runs = [f"{directory}/{name}" for name in ("straight", "broken")]
        straight, broken = (jobs.weights(path, STEPS) for path in runs)
        jobs.assert_same_bits(straight, broken)
        assert len(straight) > 10
        files = [{name for name in os.listdir(path) if not name.startswith("events.")}
                 for path in runs]
        assert files[0] == files[1], files
        if "metrics.jsonl" in files[0]:
            lines = [[(line["step"], line["eval_loss"]) for line in jobs.metrics(path)]
                     for path in runs]
            assert lines[0] == lines[1] and [step for step, _ in lines[0]] == [EVERY, STEPS], lines
            scores = [{step: loss for step, loss in keeping.scores(path).items()
                       if step in jobs.steps(path)} for path in runs]
            assert scores[0] == scores[1] and scores[0], scores

    return work


class Case:
    """A kind of run on a mesh, and how often it was killed so far, in a directory of its own.

    Args:
      kind, mesh: which. out: where it gets its directory. seed: of the moments.
      first: the number of the first kill's kind of moment.

    Attributes:
      hit: a Counter of what the kills hit.
      done: whether its end was compared with the straight run's.
    """

    def __init__(self, kind, mesh, out, seed, first=0):
        self.name, self._kind, self._mesh = f"{kind}, {mesh}", kind, mesh
        self._directory = os.path.join(out, "".join(
            letter if letter.isalnum() else "_" for letter in self.name))
        self._log, self._seed, self._first = f"{self._directory}/log.txt", seed, first
        self._state = {"hit": {}, "tries": 0, "seconds": None, "whole": False, "done": False}
        if os.path.exists(self._path):
            with open(self._path) as file:
                self._state = json.load(file)
        self.hit, self.done = collections.Counter(self._state["hit"]), self._state["done"]

    @property
    def _path(self):
        return f"{self._directory}/kills.json"

    def _save(self):
        self._state |= {"hit": self.hit, "done": self.done}
        with open(self._path + ".tmp", "w") as file:
            json.dump(self._state, file)
        os.rename(self._path + ".tmp", self._path)

    def _finished(self, work):
        status = wait(forked(work, self._log))
        assert status == 0, f"{self.name}, seed {self._seed}: status {status}; see {self._log}"

    def survive(self, kills, until):
        """Kills the run so often, or until a time, and compares its end.

        Raises:
          AssertionError: it did not go on, or ended elsewhere than the straight run.
        """
        state, straight, broken = self._state, *(
            f"{self._directory}/{name}.json" for name in ("straight", "broken"))
        if state["seconds"] is None:
            os.makedirs(self._directory)
            self._finished(lambda: prepare(self._kind, self._mesh, self._directory))
            started = time.monotonic()
            self._finished(train(straight))
            state["seconds"] = time.monotonic() - started
            self._save()
        while self.hit.total() < kills and time.monotonic() < until:
            rng = random.Random(f"{self.name}:{self._seed}:{state['tries']}")
            moment = MOMENTS[(state["tries"] + self._first) % len(MOMENTS)]
            flags = ("--new", "--yes") if state["whole"] or moment == "new" else ()
            clock = rng.uniform(0, state["seconds"]) if moment == "clock" else None
            status = wait(forked(train(broken, *flags, fault=fault_at(moment, rng)), self._log),
                          clock)
            assert status in (0, -signal.SIGKILL), (
                f"{self.name}, seed {self._seed}, try {state['tries']} ({moment}): status "
                f"{status}; see {self._log}")
            state["tries"] += 1
            state["whole"] = status == 0
            if status:
                self.hit[moment] += 1
                print(f"{self.name}: kill {self.hit.total()} of {kills} ({moment})", flush=True)
            self._save()
        if self.hit.total() >= kills and not self.done and time.monotonic() < until:
            self._finished(train(broken))
            self._finished(compare(self._directory))
            self.done = True
            self._save()


def load():
    """Imports what a run needs, and runs nothing."""
    import jobs  # noqa: F401
    import test_whole_clip  # noqa: F401

    import interop.import_gpt  # noqa: F401
    import main  # noqa: F401
    import training.run  # noqa: F401


def main():
    """Runs the cases and prints what was survived."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="over all cases")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--meshes", nargs="+", choices=MESHES, default=list(MESHES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"),
                        help="stop after so many; the same command goes on")
    parser.add_argument("--out", required=True, help="a directory for the runs")
    args = parser.parse_args()
    started = time.monotonic()
    load()
    # Where the kills of a case are few, the next one begins at other moments.
    cases = [Case(*case, args.out, args.seed, 2 * number) for number, case in enumerate(
        itertools.product(args.kinds, args.meshes))]
    for number, case in enumerate(cases):
        kills = args.kills // len(cases) + (number < args.kills % len(cases))
        if not case.done and time.monotonic() < started + args.seconds:
            case.survive(kills, started + args.seconds)
    # Kills count once the run that they hit has ended as the straight one.
    done = [case for case in cases if case.done]
    total = sum((case.hit for case in done), collections.Counter())
    print(json.dumps({
        "kills": total.total(), "cases left": len(cases) - len(done), "moments": total,
        "seconds": round(time.monotonic() - started),
        "cases": {case.name: case.hit.total() for case in done}}))


if __name__ == "__main__":
    main()
