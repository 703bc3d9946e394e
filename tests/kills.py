"""Runs that are killed at random moments, again and again, and have to end as if nothing had been.

    python tests/kills.py --kills 200 --out /tmp/kills

For each case (a kind of run on a mesh) one run goes straight through. Another one is killed by
SIGKILL at a seeded random moment, gone on with, killed again and so on, and at last left alone: its
weights and moments have to equal the straight one's to the bit. The last line is JSON: by case and
by what was hit, how many kills were survived. Everything TensorFlow does happens in processes that
are forked from this one, which has imported it all and run nothing, so that a start is cheap.
"""

import argparse
import collections
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
MOMENTS = ("clock", "session", "file", "save", "evaluation", "new")
CASES = ("gpt", "moe", "mlm", "gpt_c", "gpt_c, input", "clip_student", "text student", "clip")


def keys_of(case, directory):
    """(datasets, keys) of a case's run; makes what it needs."""
    import jobs
    import test_whole_clip as clip

    mesh = dict(mesh_shape="x:2", layout="batch:x", weight_decay=0.1)
    if case in ("gpt_c", "gpt_c, input", "clip_student", "clip"):
        data, keys = clip.keys_of(case, directory)
        if case.startswith("gpt_c"):
            mesh |= dict(tokens_per_mb_per_replica=32, recompute_grad=True)
        if case == "clip":
            mesh["eval_steps"] = 0  # its pictures are all for training
        return data, {**keys, **mesh}
    mesh |= jobs.DROPOUT
    data = jobs.dataset(directory)
    if case == "text student":
        return data, {**mesh, **dict.fromkeys(jobs.DROPOUT, 0.0), **clip.STUDENT,
                      "clip": {"control": "text_only", "out": 12, "window": 6}}
    if case == "mlm":
        return data, dict(mlm_training=True, mlm_random_token_prob=0.1, opt_name="adafactor",
                          precision="bfloat16", **mesh)
    if case == "moe":
        return data, {**mesh, "layout": "batch:x,experts:x", "n_layer": 2, "moe_layers": [1],
                      "moe_params": {"num_experts": 4, "loss_coef": 0.5}, "opt_name": "lion"}
    other = jobs.dataset(directory, "other", jobs.texts(seed=1))
    return [[data, 1, None, 1.0], [other, 1, None, 2.0]], dict(
        tokens_per_mb_per_replica=16, recompute_grad=True, **mesh)


def prepare(case, directory):
    """Writes the configs of both runs."""
    import jobs

    data, keys = keys_of(case, pathlib.Path(directory))
    for name in ("straight", "broken"):
        jobs.config(directory, data, name=name, train_steps=STEPS, steps_per_checkpoint=EVERY,
                    keep=2, **{"eval_steps": 1, **keys})


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


def fault_at(moment, rng):
    """A function that sets up a process to kill itself at such a moment, at random within it."""
    count, delay = rng.randint(1, 12), rng.uniform(0, 0.02)

    def counted(target, name, countdown=count):
        real, left = getattr(target, name), [countdown]

        def function(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                if rng.random() < 0.5:  # before it, or right after
                    real(*args, **kwargs)
                die()
            return real(*args, **kwargs)

        setattr(target, name, function)

    def set_up():
        from tensorflow.python.client import session

        from mesh.compat import tf
        from training import run

        if moment == "session":
            counted(session.BaseSession, "run", rng.randint(1, 40))
        elif moment == "file":
            for name in ("rename", "remove", "makedirs"):
                counted(tf.io.gfile, name, rng.randint(1, 8))
            counted(tf.io.gfile.GFile, "write")
        elif moment in ("save", "evaluation"):
            target, name = ((tf.train.Saver, "save") if moment == "save"
                            else (run, "_evaluate"))
            real, left = getattr(target, name), [rng.randint(1, 2)]

            def during(*args, **kwargs):
                left[0] -= 1
                if not left[0]:
                    wait = delay if moment == "save" else 100 * delay
                    threading.Timer(wait, die).start()
                return real(*args, **kwargs)

            setattr(target, name, during)
        elif moment == "new":
            counted(tf.io.gfile, "remove")

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
    """Work for `forked`: fails unless both runs' last checkpoints are the same bits."""
    def work():
        import jobs

        both = [jobs.weights(f"{directory}/{name}", STEPS) for name in ("straight", "broken")]
        jobs.assert_same_bits(*both)
        assert len(both[0]) > 10

    return work


def survive(case, kills, directory, seed):
    """Kills a case's run so often; returns a Counter of what the kills hit.

    Raises:
      AssertionError: it did not go on, or ended elsewhere than the straight run.
    """
    rng, hit = random.Random(f"{case}:{seed}"), collections.Counter()
    os.makedirs(directory)
    log = f"{directory}/log.txt"

    def finished(work):
        status = wait(forked(work, log))
        assert status == 0, f"{case}, seed {seed}: status {status}; see {log}"

    finished(lambda: prepare(case, directory))
    started = time.monotonic()
    finished(train(f"{directory}/straight.json"))
    length, broken, whole = time.monotonic() - started, f"{directory}/broken.json", False
    while sum(hit.values()) < kills:
        moment = rng.choice(MOMENTS)
        flags = ("--new", "--yes") if whole or moment == "new" else ()
        clock = rng.uniform(0, length) if moment == "clock" else None
        fault = fault_at(moment, rng)
        status = wait(forked(train(broken, *flags, fault=fault), log), clock)
        assert status in (0, -signal.SIGKILL), f"{case}, seed {seed}: {status}; see {log}"
        whole = status == 0
        if not whole:
            hit[moment] += 1
            print(f"{case}: kill {sum(hit.values())} of {kills} ({moment})", flush=True)
    finished(train(broken))
    finished(compare(directory))
    return hit


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
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="a directory that does not exist yet")
    args = parser.parse_args()
    load()
    found, started = {}, time.monotonic()
    for number, case in enumerate(args.cases):
        kills = args.kills // len(args.cases) + (number < args.kills % len(args.cases))
        directory = os.path.join(args.out, case.replace(", ", "_").replace(" ", "_"))
        found[case] = survive(case, kills, directory, args.seed)
        print(f"{case}: {dict(found[case])}", flush=True)
    total = sum(found.values(), collections.Counter())
    print(json.dumps({"kills": total.total(), "moments": total, "seconds":
                      round(time.monotonic() - started), "cases":
                      {case: hit.total() for case, hit in found.items()}}))


if __name__ == "__main__":
    main()
