"""Finding the shards of a dataset and the facts that positions in it are computed from.

A split is an ordered list of TFRecord files. Where a window begins follows from each file's number
of records and tokens and from an index of byte offsets. They come from the manifest that
create_tfrecords wrote beside the shards; shards of other makers are scanned once.
"""

import dataclasses
import os
import re

import tensorflow.compat.v1 as tf

from configs.dataset import MANIFEST_SUFFIX, RECORDS_PER_INDEX_ENTRY, Manifest
from configs.errors import UserError
from records import salvage, scans
from records.scans import in_threads, key
from records.shard import Shard, check_count, check_last_index


class NoValidation(UserError):
    """A dataset without a validation split."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The training or validation shards of one dataset, in order.

    `mode` ("chunks", "documents" or "pictures") and `encoder` are None without a manifest;
    `image_size` (pixels of a side) and `group` (pictures that belong together) are of pictures.
    `separator` is an id that readers put after each record; the shards' facts count it.
    `left_out` are damaged records that are not read (skip_corrupt); None: none were looked for.
    `stamps` has the (path, bytes, time of writing) of each file when its facts were read.
    """

    dataset: str
    name: str
    shards: tuple
    mode: str | None = None
    encoder: object = None
    image_size: int | None = None
    group: int | None = None
    separator: int | None = None
    left_out: int | None = None
    stamps: tuple = ()

    def check_unchanged(self):
        """Looks at the files again.

        Raises:
            UserError: one was replaced or removed since its facts were read; it may have the same
                size and counts, and readers would not notice.
        """
        now = in_threads(_stamp, [path for path, *_ in self.stamps], "looking at shards")
        for old, new in zip(self.stamps, now, strict=True):
            if old != new:
                raise UserError(
                    f"{old[0]} was written anew during the run; if it holds what it held, the same "
                    "command goes on; if not, restore it, or start again with --new")

    def total(self, fact):
        """The sum of a fact over the shards, None where one of them does not tell it."""
        values = [getattr(shard, fact) for shard in self.shards]
        return None if None in values else sum(values)

    @property
    def shortest(self):
        """Tokens of the shortest record."""
        return min(shard.shortest for shard in self.shards if shard.records)


def expand(paths, where):
    """The files that globs, shard paths and index files name, each once, in order.

    A glob's files come in natural order (x_2 before x_10), those of an index file in its own. An
    index file is any path that does not end in .tfrecords: one shard or glob a line, blank lines
    and lines that begin with # left out; relative lines are looked for beside the index file, then
    in the current directory.

    Raises:
        UserError: nothing matches, or an index file is missing.
    """
    files = []
    for path in paths:
        if any(sign in path for sign in "*?["):
            found = _glob(path, where)
        elif path.endswith(".tfrecords"):
            found = [path]
        else:
            found = _read_index(path, where)
        files += found
    return list(dict.fromkeys(files))


def _glob(pattern, where):
    """The files that match a pattern, in natural order."""
    found = tf.io.gfile.glob(pattern)
    if not found:
        here = "" if "://" in pattern or os.path.isabs(pattern) else " from the current directory"
        raise UserError(f"{where}: no file matches {pattern}{here}; make the shards with "
                        "datasets/create_tfrecords.py or correct the path")
    return sorted(found, key=natural_order)


def natural_order(name):
    """A sorting key that compares the numbers in a name as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _read_index(path, where):
    """The shards that an index file lists."""
    if not tf.io.gfile.exists(path):
        here = "" if "://" in path or os.path.isabs(path) else " from the current directory"
        raise UserError(f"{where}: no {path}{here}, an index file or a shard; correct the path")
    if tf.io.gfile.isdir(path):
        raise UserError(f"{where}: {path} is neither a shard (.tfrecords) nor an index file that "
                        f"lists shards; for all shards of a directory write {path}/*.tfrecords")
    with tf.io.gfile.GFile(path) as file:
        lines = [line.strip() for line in file.read().splitlines()]
    entries = [line for line in lines if line and not line.startswith("#")]
    wrong = next((e for e in entries if not e.endswith(".tfrecords")), None)
    if wrong is not None or not entries:
        raise UserError(f"{path}: an index file lists one .tfrecords path a line, and "
                        f"{'it lists none' if wrong is None else repr(wrong[:60]) + ' is none'}; "
                        "correct the file")
    files = []
    for entry in entries:
        beside = os.path.join(os.path.dirname(path), entry)
        if any(sign in entry for sign in "*?["):
            files += _glob(beside if tf.io.gfile.glob(beside) else entry, path)
        else:
            files.append(beside if tf.io.gfile.exists(beside) else entry)
    return files


def number_of(shard):
    """The number of a shard in its name: 3 of NAME_3.tfrecords and NAME_3_<records>.tfrecords."""
    found = re.search(r"_(\d+)(?:_\d+)?\.tfrecords$", shard)
    return int(found[1]) if found else None


def _manifests(files):
    """Maps the key of each file that a manifest beside the files names.

    Returns:
        dict of key → (manifest, split name, shard, path of the file).
    """
    known = {}
    for directory in dict.fromkeys(os.path.dirname(file) for file in files):
        if not tf.io.gfile.isdir(directory or "."):
            continue
        for name in sorted(tf.io.gfile.listdir(directory or ".")):
            if not name.endswith(MANIFEST_SUFFIX):
                continue
            where = os.path.join(directory, name)
            with tf.io.gfile.GFile(where) as file:
                manifest = Manifest.from_json(file.read(), where)
            for split, shards in manifest.splits.items():
                for shard in shards:
                    path = os.path.join(directory, shard.file)
                    if key(path) in known:
                        raise UserError(f"{path} is named by {where} and by another manifest; "
                                        "remove the stale one")
                    known[key(path)] = manifest, split, shard, path
    return known


def split_files(dataset, config, split):
    """The files of a split and the manifests' knowledge of them.

    Validation shards are eval_path's and those of held_out_shards, or without these the ones which
    the manifest of the training shards calls validation. Training shards are path's without the
    validation shards, which a glob like name_*.tfrecords matches too.

    Raises:
        NoValidation: the dataset has no validation split.
        UserError: no shards.
    """
    where = f"dataset {dataset}"
    files = expand(config.paths, where)
    held_out = expand(config.eval_paths, where)
    held_out += [file for file in files if number_of(file) in (config.held_out_shards or [])]
    known = _manifests(files + held_out)
    in_manifest = [known[key(file)] for file in files if key(file) in known]
    names = dict.fromkeys(manifest.name for manifest, _, _, _ in in_manifest)
    marked = [path for manifest, kind, _, path in known.values()
              if kind == "validation" and manifest.name in names]
    if split == "validation":
        held_out = held_out or marked
        if not held_out:
            raise NoValidation(f"dataset {dataset} has no validation split; set eval_path or "
                               "held_out_shards in its JSON, make shards with --val_fraction, or "
                               "train without evaluations (--set eval_steps=0)")
        files = held_out
    else:
        left_out = {key(file) for file in held_out + marked}
        files = [file for file in files if key(file) not in left_out] or files
    if len({id(known[key(file)][0]) if key(file) in known else None for file in files}) == 1:
        order = {place: number for number, place in enumerate(known)}
        files = sorted(files, key=lambda file: order.get(key(file), 0))
    return files, known


def find(dataset, config, split, model_path=None, skip_corrupt=False):
    """Finds a dataset's shards and their facts.

    Args:
        dataset: the dataset's id, for messages.
        config: its DatasetConfig.
        split: "train" or "validation".
        model_path: where scans are kept if not beside the shards.
        skip_corrupt: read every shard from end to end now, and leave out damaged records.

    Returns:
        A Split with at least one token.

    Raises:
        UserError: no shards, an empty split, a wrong count in a name or manifest, a damaged shard
            without a manifest, or shards of different encoders or modes.
    """
    files, known = split_files(dataset, config, split)
    stamps = tuple(in_threads(_stamp, files, "looking at shards"))
    sizes = {file: size for file, size, _ in stamps}
    listed = {file: known[key(file)] for file in files if key(file) in known}
    parts, left_out = (_salvaged(dataset, split, files, listed) if skip_corrupt else ({}, None))
    facts = {file: _from_manifest(file, sizes[file], shard)
             for file, (_, _, shard, _) in listed.items() if file not in parts}
    in_threads(check_last_index, list(facts.values()), "checking shards")
    unlisted = [file for file in files if file not in listed]
    facts.update(scans.facts([file for file in unlisted if file not in parts], sizes, model_path))
    for shard in facts.values():
        check_count(shard)
    shards = tuple(shard for file in files
                   for shard in (parts[file] if file in parts else [facts[file]]))
    if not any(shard.tokens for shard in shards):
        raise UserError(f"dataset {dataset}: its {len(files)} {split} shards hold no tokens "
                        "(int64 feature \"text\"); see --check_dataset")
    manifests = [manifest for manifest, *_ in listed.values()]
    _check_one_kind(dataset, manifests)
    shards = separated(shards, config.separator)
    of_all = {"separator": config.separator, "left_out": left_out, "stamps": stamps}
    if not manifests:
        return Split(dataset, split, shards, **of_all)
    one = manifests[0]
    told = {} if unlisted else {"mode": one.mode, "image_size": one.image_size, "group": one.group}
    return Split(dataset, split, shards, encoder=one.encoder, **of_all, **told)


def _salvaged(dataset, split, files, listed):
    """({file: the Shards of its whole records} of damaged files, how many records are left out)."""
    found = dict(zip(files, in_threads(salvage.whole_parts, files, "checking shards"), strict=True))
    found = {file: parts for file, parts in found.items() if parts}
    left_out = salvage.report(dataset, split, found, {
        file: shard.records for file, (_, _, shard, _) in listed.items()})
    return {file: shards for file, (shards, _) in found.items()}, left_out


def separated(shards, separator):
    """The shards' facts with a separator after each record; as they are where it is None."""
    if separator is None:
        return shards
    return tuple(dataclasses.replace(
        shard, tokens=shard.tokens + shard.records, shortest=shard.shortest + 1,
        longest=shard.longest + 1,
        index=tuple((offset, tokens + number * RECORDS_PER_INDEX_ENTRY)
                    for number, (offset, tokens) in enumerate(shard.index)))
        if shard.records else shard for shard in shards)


def _check_one_kind(dataset, manifests):
    """Refuses shards of different encoders, modes or kinds of pictures as one dataset.

    Raises:
        UserError: they differ.
    """
    for what, values in (("encoders", {manifest.encoder.hash for manifest in manifests}),
                         ("modes", {manifest.mode for manifest in manifests}),
                         ("image sizes", {manifest.image_size for manifest in manifests}),
                         ("sizes of groups", {manifest.group for manifest in manifests})):
        if len(values) > 1:
            raise UserError(f"dataset {dataset}: its shards have different {what} "
                            f"({', '.join(sorted(map(str, values)))}); give each a dataset JSON "
                            "of its own")


def _stamp(path):
    """(path, size in bytes, when it was written in ns) of a file."""
    try:
        found = tf.io.gfile.stat(path)
        return path, found.length, found.mtime_nsec
    except tf.errors.NotFoundError as error:
        raise UserError(f"{path} does not exist; correct the path or make the shard") from error


def _from_manifest(path, size, shard):
    """The facts that a manifest tells of a shard."""
    return Shard(path, size, shard.records, shard.tokens, shard.shortest, shard.longest,
                 tuple(shard.index), shard.bytes, shard.decoded_bytes)
