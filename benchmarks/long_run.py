"""A long run of a tiny model, watched from outside: memory, open files and what it leaves.

    python benchmarks/long_run.py --out /tmp/long --steps 20000

It makes a dataset, trains with an evaluation and a checkpoint every `--every` steps, and after each
of them reads from /proc (Linux) the process's resident memory and number of open files. Last comes
one line of JSON: both after the first quarter of the run and at the end, the largest of each, and
how many event files TensorBoard has to read, with their bytes.
"""

import argparse
import json
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = "the ship sails to a port at night and comes home before the storm".split()


def prepare(out, steps, every):
    """Makes the dataset and writes the run's config; returns the config's path."""
    os.makedirs(out, exist_ok=True)
    texts, dataset, config = (os.path.join(out, name)
                              for name in ("texts.jsonl", "data.json", "config.json"))
    lines = [" ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(60))
             for number in range(200)]
    with open(texts, "w") as file:
        file.writelines(json.dumps({"text": line}) + "\n" for line in lines)
    subprocess.run(
        [sys.executable, os.path.join(ROOT, "datasets", "create_tfrecords.py"), "--input_dir",
         texts, "--name", "long", "--output_dir", os.path.join(out, "data"), "--encoder", "byte",
         "--val_fraction", "0.05", "--processes", "1", "--write_dataset_config", dataset],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with open(config, "w") as file:
        json.dump(dict(
            n_layer=1, n_head=2, n_embd=16, n_ctx=16, train_batch_size=4, train_steps=steps,
            lr=1e-3, warmup_steps=10, res_dropout=0.1, datasets=[[dataset, 1, None, 1.0]],
            model_path=os.path.join(out, "run"), steps_per_checkpoint=every, keep=3, eval_steps=2,
            sample_tokens=8, iterations=max(1, every // 5)), file)
    return config


def measure(pid):
    """(resident MiB, open files) of a process."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def evaluated(path):
    """The number of evaluations in a metrics.jsonl."""
    if not os.path.exists(path):
        return 0
    with open(path) as file:
        return sum(1 for _ in file)


def watch(config, out, steps, every):
    """Trains, and measures after each evaluation: [(step, resident MiB, open files)]."""
    found, lines = [], os.path.join(out, "run", "metrics.jsonl")
    log = os.path.join(out, "log.txt")
    with open(log, "w") as file, subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "main.py"), "--model", config, "--new", "--yes"],
            stdout=subprocess.DEVNULL, stderr=file, stdin=subprocess.DEVNULL) as process:
        before = evaluated(lines)
        while process.poll() is None:
            done = evaluated(lines)
            if done != before:
                before = done
                try:
                    found.append((done * every, *measure(process.pid)))
                except (KeyError, OSError):
                    break  # it has just ended
                print("step {:>6}: {:.0f} MiB, {} open files".format(*found[-1]), flush=True)
            time.sleep(0.05)
    if process.wait():
        sys.exit(f"the run ended with status {process.returncode}; see {log}")
    if evaluated(lines) * every < steps:
        sys.exit(f"the run was evaluated {evaluated(lines)} times; see {log}")
    return found


def main():
    """Runs, and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="directory for the data and the run")
    parser.add_argument("--steps", type=int, default=20000, help="steps of the run")
    parser.add_argument("--every", type=int, default=500, help="steps between evaluations")
    args = parser.parse_args()
    started = time.monotonic()
    found = watch(prepare(args.out, args.steps, args.every), args.out, args.steps, args.every)
    quarter = next(each for each in found if each[0] >= args.steps / 4)
    events = [os.path.join(directory, name)
              for directory, _, names in os.walk(os.path.join(args.out, "run"))
              for name in names if "tfevents" in name]
    print(json.dumps({
        "steps": args.steps, "evaluations": args.steps // args.every,
        "seconds": round(time.monotonic() - started),
        "mib_quarter": round(quarter[1], 1), "mib_end": round(found[-1][1], 1),
        "mib_most": round(max(each[1] for each in found), 1),
        "files_quarter": quarter[2], "files_end": found[-1][2],
        "files_most": max(each[2] for each in found),
        "event_files": len(events), "event_bytes": sum(map(os.path.getsize, events)),
        "checkpoints": sum(name.endswith(".index")
                           for name in os.listdir(os.path.join(args.out, "run")))}))


if __name__ == "__main__":
    main()
