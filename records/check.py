"""`--check_dataset`: reads every record of a run's datasets and prints what they are.

Unlike training, which checks what it can at once and the rest as it reads, this looks at all of
every shard, and goes on after a problem.
"""

import dataclasses
import itertools
import os

import tensorflow.compat.v1 as tf

from configs.errors import UserError
from configs.values import DatasetEntry
from records import own, picture_files, sources, splits
from records.reader import Reader
from records.scans import in_threads, key
from records.shard import Shard, check_count, scan, walk

SAMPLE_TOKENS = 128
MOST_PROBLEMS = 20


@dataclasses.dataclass(frozen=True)
class Examined:
    """What one shard was found to hold up to its first damage, its damages and other problems."""

    facts: Shard
    damages: tuple
    problems: tuple


def check_dataset(config, samples=3):
    """Prints facts, samples and problems of a run's datasets to stdout.

    With skip_corrupt, damaged records are counted and named, and no problem.

    Args:
        config: the run's config.
        samples: texts to decode and print of each split.

    Returns:
        Whether all is well.
    """
    problems, left_out = [], 0
    if config.input_fn != own.DATASETS:
        print(f"note: the run reads input_fn {config.input_fn}, which is not checked here")
    for entry in config.datasets:
        entry = DatasetEntry(*entry)
        for split in ("train", "validation"):
            try:
                problems += _check_split(config, entry, split, samples)
            except splits.NoValidation:
                print(f"dataset {entry.id}, validation: none\n")
            except UserError as error:
                problems.append(str(error))
    for split in ("train", "validation"):
        try:
            for source in sources.of_run(config, split):
                left_out += source.split.left_out or 0
        except splits.NoValidation:
            pass
        except UserError as error:
            # the same damage, met again, is said with a remedy behind it
            problems = [problem for problem in problems if not str(error).startswith(problem)]
            problems.append(str(error))
    problems = list(dict.fromkeys(problems))
    for problem in problems:
        print(f"problem: {problem}")
    if config.skip_corrupt:
        print(f"{left_out} damaged record{'' if left_out == 1 else 's'} left out (skip_corrupt)")
    print(f"{len(problems)} problem{'' if len(problems) == 1 else 's'} found")
    return not problems


def _check_split(config, entry, split, samples):
    """Prints the facts and samples of a split and returns its problems."""
    dataset = config.dataset_configs[entry.id]
    files, known = splits.split_files(entry.id, dataset, split)
    listed = {file: known[key(file)] for file in files if key(file) in known}
    manifest = next((manifest for manifest, *_ in listed.values()), None)
    encoder = manifest.encoder if manifest else None
    pictures = manifest is not None and manifest.mode == sources.PICTURES
    n_vocab = encoder.n_vocab if encoder else dataset.n_vocab
    absent = [f"{file} does not exist; correct the path or make the shard"
              for file in files if not tf.io.gfile.exists(file)]
    if absent:
        return absent
    found = in_threads(lambda file: _examine(file, listed.get(file), n_vocab), files,
                       "checking shards")
    problems = list(itertools.chain.from_iterable(one.problems for one in found))
    damages = list(itertools.chain.from_iterable(one.damages for one in found))
    if not config.skip_corrupt:
        problems = damages + problems
    shards = splits.separated(tuple(one.facts for one in found), dataset.separator)
    split_found = splits.Split(entry.id, split, shards, separator=dataset.separator)
    _print_facts(split_found, listed)
    for damage in damages if config.skip_corrupt else ():
        print(f"  left out: {damage}")
    if pictures:
        print(f"  pictures of {manifest.image_size} pixels a side, {manifest.group} a group; "
              "tokens are those of all captions")
    else:
        print(f"  windows of {config.window_size} targets in an epoch, read as chunks: "
              f"{max(split_found.total('tokens') - 1, 0) // config.window_size:,}")
    if not any(shard.tokens for shard in shards):
        if not (damages and config.skip_corrupt):  # some may come behind the first damage
            problems.append(f"dataset {entry.id}: its {len(files)} {split} shards hold no tokens")
    elif samples:
        spec = encoder.spec if encoder else dataset.encoder
        loaded, wrong = _encoder(entry.id, spec, encoder)
        problems += wrong
        (_print_captions if pictures else _print_samples)(split_found, config, loaded, samples)
    print()
    return problems + _check_listing(listed, known, files, split)


def _examine(path, listed, n_vocab):
    """Reads a shard from end to end.

    Args:
        path: the file.
        listed: what the manifests know of it: (manifest, split, shard, path), or None.
        n_vocab: ids have to be below it.

    Returns:
        An Examined.
    """
    damages, problems, whole = [], [], 0
    for offset, _, problem in walk(path):
        if problem:
            damages.append(f"{path}: {problem} at byte {offset}")
        whole += not damages
    damages = _first(damages, path)
    try:
        facts = scan(path, limit=whole)
    except UserError as error:
        size = tf.io.gfile.stat(path).length
        return Examined(Shard(path, size, 0, 0, 0, 0, ()), damages, (str(error),))
    if not damages:
        try:
            check_count(facts)
        except UserError as error:
            problems.append(str(error))
        if not facts.records:
            problems.append(f"{path}: holds no records; take it out of the dataset")
        if listed:
            problems += _disagreements(facts, listed[2])
        if listed and listed[0].mode == sources.PICTURES:
            problems += picture_files.problems(path, listed[0].image_size)
    if facts.highest is not None and not 0 <= facts.lowest <= facts.highest < n_vocab:
        problems.append(f"{path}: ids range from {facts.lowest} to {facts.highest}, and the "
                        f"encoder has {n_vocab}")
    if listed:
        facts = dataclasses.replace(facts, bytes=listed[2].bytes,
                                    decoded_bytes=listed[2].decoded_bytes)
    return Examined(facts, damages, _first(problems, path))


def _first(problems, path):
    """The first problems of a file, and a line for the rest."""
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"{path}: {len(problems) - MOST_PROBLEMS} more problems"]
    return tuple(problems)


def _disagreements(facts, listed):
    """Where a manifest says something else of a shard than was found."""
    wrong = [f"{name} {getattr(listed, name)} (found {getattr(facts, name)})"
             for name in ("records", "tokens", "shortest", "longest")
             if getattr(listed, name) != getattr(facts, name)]
    if tuple(map(tuple, listed.index)) != facts.index:
        wrong.append("other byte offsets")
    return [f"{facts.path}: its manifest says {', '.join(wrong)}; make or copy the shard and the "
            "manifest anew"] if wrong else []


def _check_listing(listed, known, files, split):
    """Problems between the shards that are there and those that the manifests list."""
    problems = []
    names = {manifest.name for manifest, *_ in listed.values()}
    here = {key(file) for file in files}
    for place, (manifest, kind, _, path) in known.items():
        if manifest.name in names and kind == split and place not in here:
            lack = "is not matched by the path" if tf.io.gfile.exists(path) else "does not exist"
            problems.append(f"{path}: the manifest lists it, and it {lack}")
    for directory in dict.fromkeys(os.path.dirname(file) for file in listed):
        problems += [f"{file}: no manifest in its directory lists it, but others of the path are "
                     "listed" for file in files
                     if os.path.dirname(file) == directory and file not in listed]
    return problems


def _print_facts(split, listed):
    """Prints what a split holds."""
    filled = [shard for shard in split.shards if shard.records]
    records, tokens = split.total("records"), split.total("tokens")
    size = split.total("bytes")
    print(f"dataset {split.dataset}, {split.name}: {len(split.shards)} shards"
          f"{'' if listed else ' without a manifest'}")
    print(f"  records {records:,}, tokens {tokens:,}, {tokens // max(records, 1):,} tokens a record"
          f" (shortest {min((shard.shortest for shard in filled), default=0):,}, "
          f"longest {max((shard.longest for shard in filled), default=0):,})")
    ids = [shard for shard in filled if shard.highest is not None]
    if ids:
        print(f"  ids from {min(shard.lowest for shard in ids)} to "
              f"{max(shard.highest for shard in ids)}")
    print("  bytes of text " + ("unknown" if size is None else
                                f"{size:,}, {size / max(tokens, 1):.3f} a token"))


def _encoder(dataset, spec, stated):
    """The encoder of a dataset, None if it cannot be had, and the problems with it."""
    import encoders  # it is heavy, and training does not need it

    if not spec:
        return None, []
    try:
        encoder = encoders.load(spec)
    except UserError as error:
        return None, [str(error)]
    if stated and encoder.hash != stated.hash:
        return encoder, [f"dataset {dataset}: encoder {spec} has hash {encoder.hash} here, and the "
                         f"shards were made with {stated.hash}"]
    return encoder, []


def _print_samples(split, config, encoder, samples):
    """Prints texts from places spread over a split."""
    total = split.total("tokens")
    reader = Reader(split, config.n_vocab)
    for number in range(samples):
        begin = total * number // samples
        end = min(begin + SAMPLE_TOKENS, total)
        try:
            with tf.Graph().as_default(), tf.Session() as session:
                ids = session.run(reader.tokens(tf.constant(begin, tf.int64),
                                                tf.constant(end, tf.int64))).tolist()
        except tf.errors.OpError:
            continue  # what is wrong there was found before
        print(f"  tokens {begin:,} to {end - 1:,}: {_text(ids, encoder)}")


def _print_captions(split, config, encoder, samples):
    """Prints the captions of pictures from places spread over a split."""
    total = split.total("records")
    reader = Reader(split, config.n_vocab)
    for number in range(samples):
        place = total * number // samples
        try:
            with tf.Graph().as_default(), tf.Session() as session:
                (record,) = session.run(reader.examples(tf.constant(place, tf.int64),
                                                        tf.constant(place + 1, tf.int64)))
            features = picture_files.features_of(record)
        except (tf.errors.OpError, UserError):
            continue  # what is wrong there was found before
        ids = features["text"].int64_list.value
        ends = [0, *itertools.accumulate(features["lengths"].int64_list.value)]
        captions = [_text(list(ids[begin:end]), encoder) for begin, end in itertools.pairwise(ends)]
        print(f"  picture {place:,}: {', '.join(captions)}")


def _text(ids, encoder):
    """Ids as a text in quotes, or as they are if they cannot be decoded."""
    known = encoder and all(0 <= number < encoder.n_vocab for number in ids)
    return repr(encoder.decode(ids)) if known else str(ids)
