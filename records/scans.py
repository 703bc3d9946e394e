"""Facts of shards that have no manifest: scanned once, and kept.

What a scan found is kept in `<first shard>.scan.json` beside the shards, or in model_path where
that cannot be written, until a shard's size changes.
"""

import concurrent.futures
import dataclasses
import json
import os
import zlib

import tensorflow.compat.v1 as tf

from configs.progress import tqdm
from records.shard import Shard, scan

SCAN_FORMAT = 1
THREADS = 16


def facts(files, sizes, model_path):
    """The facts of shards without a manifest: as kept, or from a scan that is then kept.

    Returns:
        dict of path → Shard.
    """
    found = {}
    for directory in dict.fromkeys(os.path.dirname(file) for file in files):
        here = [file for file in files if os.path.dirname(file) == directory]
        places = _scan_places(here[0], model_path)
        kept = {}
        for place in reversed(places):
            kept.update(_read_scan(place))
        new = [f for f in here if kept.get(os.path.basename(f), {}).get("size") != sizes[f]]
        for shard in in_threads(scan, new, "scanning shards"):
            entry = dataclasses.asdict(shard)
            kept[os.path.basename(entry.pop("path"))] = entry
        if new:
            _keep_scan(places, kept)
        for file in here:
            entry = dict(kept[os.path.basename(file)])
            entry["index"] = tuple(map(tuple, entry["index"]))
            found[file] = Shard(path=file, **entry)
    return found


def _scan_places(first, model_path):
    """Where a scan may be kept: beside the first shard, else in model_path."""
    directory, name = os.path.split(first)
    stem = os.path.splitext(name)[0]
    places = [os.path.join(directory, f"{stem}.scan.json")]
    if model_path:
        number = zlib.crc32(key(directory).encode())
        places.append(os.path.join(model_path, f"{stem}.{number:08x}.scan.json"))
    return places


def _read_scan(place):
    """The shards of a kept scan by name; nothing where there is none of this format."""
    if not tf.io.gfile.exists(place):
        return {}
    with tf.io.gfile.GFile(place) as file:
        try:
            content = json.loads(file.read())
        except (ValueError, RecursionError):
            return {}
    if not isinstance(content, dict) or content.get("format") != SCAN_FORMAT:
        return {}
    shards = content.get("shards")
    return {name: entry for name, entry in shards.items() if _is_kept(entry)
            } if isinstance(shards, dict) else {}


def _is_kept(entry):
    """Whether a value, which a stranger may have written, has the form of a shard's facts."""
    names = {field.name for field in dataclasses.fields(Shard)} - {"path"}
    return (isinstance(entry, dict) and set(entry) == names
            and isinstance(entry["index"], list) and all(
                isinstance(pair, list) and len(pair) == 2 for pair in entry["index"])
            and all(value is None or type(value) is int
                    for name, value in entry.items() if name != "index")
            and None not in (entry[name] for name in ("size", "records", "tokens", "shortest",
                                                      "longest")))


def _keep_scan(places, shards):
    """Writes a scan to the first place that can be written."""
    text = json.dumps({"format": SCAN_FORMAT, "shards": shards})
    for place in places:
        try:
            tf.io.gfile.makedirs(os.path.dirname(place) or ".")
            with tf.io.gfile.GFile(f"{place}.tmp", "w") as file:
                file.write(text)
            tf.io.gfile.rename(f"{place}.tmp", place, overwrite=True)
            return
        except tf.errors.OpError as error:
            tf.logging.warning("%s cannot be written: %s", place, error.message)


def in_threads(function, items, what):
    """The function's values over the items, in order; progress where it takes a while."""
    if not items:
        return []
    with concurrent.futures.ThreadPoolExecutor(min(THREADS, len(items))) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), desc=what, unit="shard",
                         delay=2))


def key(path):
    """A path in the one spelling by which two paths of a file are compared."""
    return path if "://" in path else os.path.abspath(path)
