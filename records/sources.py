"""The datasets of a run: their shards, how they are read, and whether they fit together."""

import dataclasses
import functools

from configs.dataset import DatasetConfig, tower_vocabulary
from configs.errors import UserError
from configs.values import DatasetEntry
from records import splits
from records.pictures import Pictures
from records.reader import Reader
from records.windows import Chunks, Documents

MODE_OF_SHARDS = {"chunks": "chunks", "documents": "documents_random", None: "chunks"}
PICTURES = "pictures"


@dataclasses.dataclass(frozen=True)
class Source:
    """One dataset of a run: its entry in the run's config and its shards."""

    entry: DatasetEntry
    config: DatasetConfig
    split: splits.Split

    @property
    def mode(self):
        """The mode in which it is read: evaluation reads every text as a stream.

        So does training where the records are pieces of a stream: no other mode has a meaning then.
        """
        if self.split.mode == PICTURES:
            return PICTURES
        if self.split.name == "validation" or self.split.mode == "chunks":
            return "chunks"
        return self.entry.mode or MODE_OF_SHARDS[self.split.mode]

    @property
    def remark(self):
        """What a user should know of the mode, or an empty text."""
        asked = self.entry.mode
        if self.split.name != "train" or asked in (None, "chunks"):
            return ""
        if self.mode == "chunks":
            return f"it was written as chunks, and is read so, not as {asked}"
        lengths = {length for shard in self.split.shards if shard.records
                   for length in (shard.shortest, shard.longest)}
        if self.split.mode is None and len(lengths) == 1:
            return (f"all its records have {lengths.pop()} tokens: if they were cut from a stream, "
                    f"mode chunks takes all of it each epoch, and {asked} a window of each "
                    f"{self.entry.stitch} records")
        return ""

    @property
    def encoder_hash(self):
        """The encoder's hash, None if nothing tells it."""
        return self.split.encoder.hash if self.split.encoder else self.config.encoder_hash


def of_run(config, split):
    """The run's datasets with their shards, checked against the run and each other."""
    if not config.datasets:
        raise UserError("datasets is empty; name at least one dataset of configs/datasets/")
    sources = []
    for entry in config.datasets:
        entry = DatasetEntry(*entry)
        dataset = config.dataset_configs[entry.id]
        found = _found(entry.id, dataset.to_json(), split, config.model_path,
                       config.skip_corrupt)
        sources.append(Source(entry, dataset, found))
    for source in sources:
        _check_kind(source, config)
        _check_encoder(source, config.n_vocab)
        if source.mode == PICTURES:
            _check_pictures(source, config)
        elif source.mode != "chunks":
            _check_documents(source, config.window_size)
    hashes = {source.encoder_hash: source.entry.id for source in sources if source.encoder_hash}
    if len(hashes) > 1:
        raise UserError(f"datasets {' and '.join(hashes.values())} were made by different encoders "
                        f"({', '.join(hashes)}); make them with the same one")
    return sources


@functools.lru_cache(maxsize=64)
def _found(dataset, config, split, model_path, skip_corrupt):
    """records.splits.find, once a run: see Split.check_unchanged."""
    return splits.find(dataset, DatasetConfig.from_json(config, dataset), split, model_path,
                       skip_corrupt)


def forget():
    """Forgets what is known of shards, which another run in this process may have found."""
    _found.cache_clear()


def _check_kind(source, config):
    """Refuses text where pictures are needed, and pictures where text is."""
    name, needed = source.entry.id, config.model == "clip"
    if needed and source.mode != PICTURES:
        raise UserError(f"dataset {name} holds no pictures with a manifest, which model clip is "
                        "trained on; make such shards with datasets/encode_captions.py")
    if not needed and source.mode == PICTURES:
        raise UserError(f"dataset {name} holds pictures, and model {config.model} is trained on "
                        "text; name a dataset of datasets/create_tfrecords.py")
    if needed and source.entry.mode:
        raise UserError(f"dataset {name} holds pictures, which are not read as "
                        f"{source.entry.mode}; take the mode out of its entry in datasets")


def _check_pictures(source, config):
    """Refuses pictures of another size, and groups that would be torn apart in training."""
    name, split = source.entry.id, source.split
    if split.image_size != config.clip.image_size:
        raise UserError(f"dataset {name} has pictures of {split.image_size} pixels a side, and "
                        f"clip.image_size is {config.clip.image_size}; set it to "
                        f"{split.image_size}, or make the pictures anew")
    if split.name == "validation" or split.group == 1:
        return
    for shard in split.shards:
        if shard.records % split.group:
            raise UserError(f"dataset {name}: {shard.path} has {shard.records} pictures, which are "
                            f"no groups of {split.group}; make the dataset anew")
    if config.train_batch_size % split.group:
        raise UserError(f"train_batch_size: {config.train_batch_size} is no multiple of "
                        f"{split.group}, and as many pictures of dataset {name} belong together")


def _check_encoder(source, n_vocab):
    """Refuses shards whose ids cannot be those of the dataset's config and of the run."""
    name, encoder = source.entry.id, source.split.encoder
    stated = source.config.encoder_hash
    if encoder and stated and encoder.hash != stated:
        raise UserError(f"dataset {name}: its JSON has encoder_hash {stated}, and its shards were "
                        f"made with {encoder.hash}; correct the JSON or make the shards anew")
    needed = encoder.n_vocab if encoder else source.config.n_vocab
    if source.mode == PICTURES:
        needed = tower_vocabulary(encoder.spec, needed)
    if needed > n_vocab:
        special = ", start and end included," if source.mode == PICTURES else ","
        raise UserError(f"dataset {name} has {needed} token ids{special} more than n_vocab "
                        f"{n_vocab}; set n_vocab to {needed}")
    for shard in source.split.shards:
        if shard.tokens and shard.highest is not None and not (
                0 <= shard.lowest and shard.highest < n_vocab):
            raise UserError(f"dataset {name}: {shard.path} has ids from {shard.lowest} to "
                            f"{shard.highest}, and n_vocab is {n_vocab}; was it made with another "
                            "encoder?")


def _check_documents(source, n_ctx):
    """Checks that any `stitch` records fill a window."""
    name, stitch, shortest = source.entry.id, source.entry.stitch, source.split.shortest
    if stitch * shortest < n_ctx + 1:
        least = -(-(n_ctx + 1) // shortest) if shortest else 0
        remedy = (f"set its stitch to {least} or more, or its mode to chunks" if shortest
                  else "set its mode to chunks, which reads empty documents too")
        raise UserError(f"dataset {name}: its shortest document has {shortest} tokens, and stitch "
                        f"{stitch} of them do not fill a window of n_ctx + 1 = {n_ctx + 1}; "
                        f"{remedy}")
    if stitch > source.split.total("records"):
        raise UserError(f"dataset {name} has {source.split.total('records')} documents, fewer than "
                        f"stitch {stitch}; set a lower stitch")


def windows(config, number, source):
    """What reads a source's windows."""
    split = source.split
    reader = Reader(split, config.n_vocab)
    seed = f"{config.seed}:{number}"
    if source.mode == PICTURES:
        return Pictures(reader, split, config.n_ctx, config.n_vocab, seed)
    if source.mode == "chunks":
        found = Chunks(reader, config.window_size, split.total("tokens"), seed,
                         padded=split.name == "validation")
    else:
        found = Documents(reader, config.window_size, split.total("records"), split.total("tokens"),
                            seed, source.entry.stitch, source.mode == "documents_random")
    if not found.windows:
        raise UserError(f"dataset {source.entry.id}: its {split.name} split of "
                        f"{split.total('tokens')} tokens does not fill one window of n_ctx + 1 = "
                        f"{config.window_size + 1}; lower n_ctx or add text")
    return found
