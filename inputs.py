"""Input functions: TFRecords → windows of n_ctx + 1 tokens (a model's inputs and their targets), or
pictures with captions (`model: "clip"`).

Which window comes at which position of a run is a pure function of (config, position): it depends
neither on the batch size nor on where a run was stopped.

- A dataset's windows are grouped into blocks, each one read of about a megabyte, and blocks into
  groups that fit into memory. Each epoch visits the blocks in another order, and shuffles the
  windows of each group. Nothing is left out of an epoch and nothing comes twice.
- "chunks" reads a dataset as one stream of tokens, whatever the size of its records: window k is
  tokens k·n_ctx … k·n_ctx + n_ctx, so each token but the first is a target once. Training leaves
  out the last tokens of the stream that fill no window.
- "documents_random" and "documents_fixed" concatenate `stitch` whole records and take a window at
  a random place or from the start; records are shuffled, and the last records of an epoch that are
  fewer than `stitch` are left out of it (other ones in each epoch).
- Several datasets are mixed by a fixed table, from which each one's own position follows.

Rows are dicts: "tokens" int32 [n_ctx + 1], and "valid" int32 [], the number of targets that count,
which is n_ctx but at the end of an evaluation.

A run whose `input_fn` names an entry of INPUT_FUNCTIONS takes that function's rows instead of
datasets' (records/own.py says what it has to return).

Pictures come in the same way: what is said of windows here holds for them (records/pictures.py,
which says what their rows are).
"""

import dataclasses
import functools
import hashlib
import json
import logging
import re

import tensorflow.compat.v1 as tf

from configs.errors import UserError
from records import own, picture_files, places, sources
from records.check import check_dataset
from records.mixing import mixed
from records.splits import NoValidation

__all__ = ["check_dataset", "check_unchanged", "dataset_facts", "eval_input_fn", "eval_windows",
           "explain_data_error", "origins", "train_input_fn"]

# Your own input functions by the names that a config's `input_fn` has for them. An entry is a
# function of (config, split, start) that returns rows: see records/own.py and docs/data.md.
INPUT_FUNCTIONS = {}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run has to know of a split.

    Attributes:
        tokens: of all datasets together; None of an input function of the user's own.
        bytes, decoded_bytes: of the original text and of decode(encode(text)); None if unknown,
            and of pictures.
        windows: per epoch, all datasets together; None where there are no epochs.
        encoder, encoder_hash, n_vocab, eos_id: of the encoder; all but n_vocab may be None.
        datasets: for each dataset a dict of id, mode, stitch, weight, windows, tokens and shards (a
            hash of the shards' names and counts): what the order of windows follows from.
        left_out: damaged records that are not read; None where skip_corrupt is off.
    """

    tokens: int | None
    bytes: int | None
    decoded_bytes: int | None
    windows: int | None
    encoder: str | None
    encoder_hash: str | None
    n_vocab: int
    eos_id: int | None
    datasets: tuple
    left_out: int | None = None

    @property
    def encoder_facts(self):
        """What run.json says of the encoder: a dict."""
        return {"spec": self.encoder, "hash": self.encoder_hash, "n_vocab": self.n_vocab,
                "eos_id": self.eos_id}


@dataclasses.dataclass(frozen=True)
class EvalSize:
    """The size of an evaluation.

    Attributes:
        windows: rows. batches: of eval_batch_size.
        targets: those that count. longest: those of the row that has most.
    """

    windows: int
    batches: int
    targets: int
    longest: int


def train_input_fn(config, start_window):
    """The training input function.

    Args:
        config: the run's config.
        start_window: windows that the run has consumed before: its steps × its batch size.

    Returns:
        A function of TPUEstimator's params that returns an endless tf.data.Dataset of
        {"tokens": int32 [batch, n_ctx + 1], "valid": int32 [batch]}, or of pictures' rows.

    Raises:
        UserError: the datasets cannot be read as the config says.
    """
    function = own.of_run(config, INPUT_FUNCTIONS)
    if function:
        return lambda params: _batches(own.rows(function, config, "train", start_window),
                                       params.get("batch_size", config.train_batch_size))
    datasets = sources.of_run(config, "train")
    readers = [sources.windows(config, number, source) for number, source in enumerate(datasets)]
    entries = [source.entry for source in datasets]

    def input_fn(params):
        batch_size = params.get("batch_size", config.train_batch_size)
        if len(readers) == 1:
            rows = readers[0].shuffled(start_window)
        else:
            rows = mixed(config.seed, entries, readers, start_window)
        return _batches(rows, batch_size)

    return input_fn


def eval_input_fn(config):
    """The evaluation input function: every window of the validation splits, once and in order.

    Returns:
        A function of TPUEstimator's params that returns a finite tf.data.Dataset like
        train_input_fn's. The last batch is filled up with rows of no valid targets. It ends after
        eval_steps batches where the config sets them.

    Raises:
        UserError: a dataset has no validation split or cannot be read.
    """
    function = own.of_run(config, INPUT_FUNCTIONS)
    readers = [] if function else _eval_readers(config)
    windows = _all_windows(config).windows

    def input_fn(params):
        batch_size = params.get("batch_size", config.eval_batch_size)
        rows = (own.rows(function, config, "validation", 0) if function else
                functools.reduce(lambda a, b: a.concatenate(b),
                                 [reader.in_order() for reader in readers]))
        padding = tf.data.Dataset.from_tensors({name: tf.zeros(spec.shape, spec.dtype)
                                                for name, spec in rows.element_spec.items()})
        rows = rows.concatenate(padding.repeat(-windows % batch_size))
        batches = _batches(rows, batch_size)
        return batches.take(config.eval_steps) if config.eval_steps else batches

    return input_fn


def eval_windows(config):
    """The EvalSize of eval_input_fn with eval_batch_size rows a batch."""
    return _all_windows(config, config.eval_steps)


def _all_windows(config, steps=None):
    """The EvalSize of the first so many batches of the validation splits, or of all."""
    function = own.of_run(config, INPUT_FUNCTIONS)
    if function:
        valid = own.valid_targets(function, config)
        most = steps * config.eval_batch_size if steps else len(valid)
        valid = valid[:most]
        return EvalSize(len(valid), -(-len(valid) // config.eval_batch_size), int(valid.sum()),
                        int(valid.max(initial=0)))
    readers = _eval_readers(config)
    windows = sum(reader.windows for reader in readers)
    batches = -(-windows // config.eval_batch_size)
    if steps:
        batches = min(batches, steps)
    left = windows = min(windows, batches * config.eval_batch_size)
    targets = longest = 0
    for reader in readers:
        taken = min(left, reader.windows)
        targets += reader.targets(taken)
        longest = max(longest, reader.targets(min(taken, 1)))
        left -= taken
    return EvalSize(windows, batches, targets, longest)


def _eval_readers(config):
    """What reads the windows of each validation split."""
    return [sources.windows(config, number, source)
            for number, source in enumerate(sources.of_run(config, "validation"))]


def dataset_facts(config, split):
    """The Facts of a split, "train" or "validation".

    Raises:
        UserError: the datasets cannot be read, or were made by different encoders.
    """
    if own.of_run(config, INPUT_FUNCTIONS):
        return _facts_of_own(config)
    datasets = sources.of_run(config, split)
    described = []
    for number, source in enumerate(datasets):
        shards = [[shard.path.rpartition("/")[2], shard.records, shard.tokens]
                  for shard in source.split.shards]
        reader = sources.windows(config, number, source)
        if source.remark:
            logging.info("note: dataset %s: %s", source.entry.id, source.remark)
        if reader.left_out:
            logging.info("dataset %s: %d windows an epoch; %s", source.entry.id, reader.windows,
                         reader.left_out)
        described.append({
            "id": source.entry.id, "mode": source.mode, "stitch": source.entry.stitch,
            "weight": source.entry.weight, "tokens": source.split.total("tokens"),
            "windows": reader.windows,
            "shards": hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:16]})
    known = next((source for source in datasets if source.split.encoder), datasets[0])
    encoder = known.split.encoder
    sizes = {fact: [None if source.mode == sources.PICTURES else source.split.total(fact)
                    for source in datasets]
             for fact in ("bytes", "decoded_bytes")}
    return Facts(
        tokens=sum(dataset["tokens"] for dataset in described),
        windows=sum(dataset["windows"] for dataset in described),
        encoder=encoder.spec if encoder else known.config.encoder,
        encoder_hash=known.encoder_hash,
        n_vocab=encoder.n_vocab if encoder else known.config.n_vocab,
        eos_id=encoder.eos_id if encoder else known.config.eos_id,
        datasets=tuple(described),
        left_out=sum(source.split.left_out for source in datasets) if config.skip_corrupt else None,
        **{fact: None if None in values else sum(values) for fact, values in sizes.items()})


def _facts_of_own(config):
    """The Facts of an input function of the user's own; datasets only tell the encoder."""
    stated = next(iter(config.dataset_configs.values())) if config.datasets else None
    return Facts(tokens=None, bytes=None, decoded_bytes=None, windows=None,
                 encoder=stated and stated.encoder, encoder_hash=stated and stated.encoder_hash,
                 n_vocab=stated.n_vocab if stated else config.n_vocab,
                 eos_id=stated and stated.eos_id, datasets=({"id": config.input_fn},))


def origins(config, start, count):
    """Where `count` rows of training come from, the first after `start` others.

    Returns:
        for each row's record, or each of its records, a dict of row (0 is the first), dataset,
        file, record (its number in the file) and offset (in bytes); [] with a user's own
        input function.
    """
    if own.of_run(config, INPUT_FUNCTIONS):
        return []
    datasets = sources.of_run(config, "train")
    readers = [sources.windows(config, number, source) for number, source in enumerate(datasets)]
    rows = places.of_rows(config.seed, [source.entry for source in datasets], readers, start, count)
    names = ("dataset", "file", "record", "offset")
    return [{"row": row, **dict(zip(names, place, strict=True))}
            for row, found in enumerate(rows) for place in found]


def check_unchanged(config):
    """Looks whether the run's shards are still those of which the facts were read.

    Raises:
        UserError: a file was replaced or removed.
    """
    if config.input_fn != own.DATASETS:
        return
    for split in ("train", *(["validation"] if config.eval_steps != 0 else [])):
        for source in sources.of_run(config, split):
            source.split.check_unchanged()


def explain_data_error(config, error):
    """One line that names the file and offset behind an error of the input pipeline.

    Args:
        config: the run's config.
        error: the tf.errors.OpError that a step raised.

    Returns:
        The line, or None if the error is not the data's.
    """
    message = getattr(error, "message", None) or str(error)
    failed = re.search(r"assertion failed: \[(dataset .*)\]", message)
    if failed:
        return failed[1].replace("] [", " ") + "; see --check_dataset"
    offset = re.search(r"(?:corrupted|truncated) record at (\d+)", message)
    if config.input_fn != own.DATASETS:
        return None
    picture = config.model == "clip" and re.search(r"DecodeImage|ParseSingleExample", message)
    if not offset and not picture and "Dataset was empty" not in message:
        return None
    for split in ("train", "validation"):
        try:
            datasets = sources.of_run(config, split)
        except NoValidation:
            continue
        except UserError as refusal:
            return str(refusal)
        for shard in (shard for source in datasets for shard in source.split.shards):
            if picture:
                line = next(picture_files.problems(shard.path, config.clip.image_size), None)
            else:
                line = shard.damage_near(int(offset[1])) if offset else shard.shortened()
            if line:
                return line
    return f"a shard is damaged ({message.splitlines()[0]}); --check_dataset finds it"


def _batches(rows, batch_size):
    """Rows in batches of a static shape, in order, read ahead."""
    rows = rows.batch(batch_size, drop_remainder=True).prefetch(4)
    options = tf.data.Options()
    options.deterministic = True
    # Its thread may sleep a minute before it sees the end, for which a session waits to close.
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return rows.with_options(options)
