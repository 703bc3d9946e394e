"""The dataset configs that a run config names: where they are, and whether they go together."""

import os

from configs import messages, reading
from configs.dataset import DatasetConfig
from configs.errors import UserError


def path(name: str) -> str:
    """The JSON meant by a dataset's id, which may itself be a path that ends in .json."""
    if name.endswith(".json"):
        return name
    # GPT-Neo's folder comes first: it is there only if somebody has put it there.
    ours, theirs = _places(name)
    return theirs if os.path.isfile(theirs) else ours


def covered(name: str) -> bool:
    """Whether an id has a JSON in each folder, of which GPT-Neo's is the one that is read."""
    return not name.endswith(".json") and all(map(os.path.isfile, _places(name)))


def _places(name: str) -> list[str]:
    return [os.path.join(reading.CONFIG_DIR, folder, f"{name}.json")
            for folder in ("datasets", "dataset_configs")]


def load(names: list[str], n_vocab: int,
         inline: dict[str, DatasetConfig] | None = None) -> dict[str, DatasetConfig]:
    """The dataset configs by id, in order.

    Args:
        names: ids or paths.
        n_vocab: ids that the model has; 0 if that is not known yet.
        inline: those that the run config has itself, by id.

    Raises:
        UserError: there are none, or one is missing or wrong, needs more ids than n_vocab, or was
            made by another encoder than the first.
    """
    if not names:
        raise UserError("datasets: none given; list an id of configs/datasets/")
    inline = inline or {}
    found = {name: inline[name] if name in inline else _load(name) for name in names}
    for name, dataset in found.items():
        _check(n_vocab, name, dataset, *next(iter(found.items())))
    return found


def _load(name: str) -> DatasetConfig:
    place = path(name)
    if "://" not in place and not os.path.isfile(place):
        folder = os.path.dirname(place) or "."
        there = [os.path.splitext(file)[0] for file in sorted(os.listdir(folder))
                 if file.endswith(".json")] if os.path.isdir(folder) else []
        hint = messages.did_you_mean(name, there)
        raise UserError(f"datasets: {name} has no {place}{hint}; datasets/create_tfrecords.py "
                        "--write_dataset_config makes one")
    return DatasetConfig.from_json(reading.read_text(place), place)


def _check(n_vocab: int, name: str, dataset: DatasetConfig, first_name: str,
           first: DatasetConfig) -> None:
    if n_vocab and dataset.n_vocab > n_vocab:
        raise UserError(f"n_vocab: {n_vocab} is less than the {dataset.n_vocab} ids of dataset "
                        f"{name}")
    hashes = (dataset.encoder_hash, first.encoder_hash)
    differ = hashes[0] != hashes[1] if all(hashes) else dataset.encoder != first.encoder
    if differ:
        raise UserError(f"datasets: {first_name} and {name} were made by different encoders "
                        f"({first.encoder}, {dataset.encoder}); encode them alike")
