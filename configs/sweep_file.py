"""The file of main.py --sweep: which keys of a config are tried, with which values."""

import itertools
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic

from configs import messages, reading, schema
from configs.errors import UserError


class Range(pydantic.BaseModel):
    """Numbers from `low` to `high`, both included."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    log: bool = pydantic.Field(False, description="Try as many values below as above the "
                               "geometric mean.")
    whole: bool = pydantic.Field(False, description="Whole numbers alone.")

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, not {self.low:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("whole needs whole numbers as low and high")
        return self


# Told apart by its form, so that a mistake is one of the form that was meant.
Tried = Annotated[Annotated[list, pydantic.Tag("list")] | Annotated[Range, pydantic.Tag("range")],
                  pydantic.Discriminator(lambda x: "list" if isinstance(x, list) else "range")]


class Sweep(pydantic.BaseModel):
    """A sweep over keys of one run config."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    model: str = pydantic.Field(description="The run config: a file, or a name in configs/.")
    model_path: str = pydantic.Field(description="The sweep's directory, with a run for each "
                                     "trial.")
    keys: dict[str, Tried] = pydantic.Field(
        min_length=1, description="For each key, as --set names it, a list of values, or a range: "
        "low, high, log, whole.")
    set: list[str] = pydantic.Field([], description="What is the same in all trials, as --set "
                                    "takes it.")
    search: Literal["grid", "random", "tpe"] = pydantic.Field(
        "tpe", description="Every combination in turn, values at random, or Optuna's "
        "tree-structured Parzen estimator.")
    trials: int | None = pydantic.Field(None, ge=1, description="How many; a grid's default is "
                                        "all.")
    score: str = pydantic.Field("eval_loss", description="What of a run's JSON summary counts.")
    goal: Literal["minimize", "maximize"] = "minimize"
    seed: int = pydantic.Field(0, ge=0, lt=2**31)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Sweep":
        for key, values in self.keys.items():
            if values == []:
                raise ValueError(f"keys: {key} has no values")
            if self.search == "grid" and isinstance(values, Range):
                raise ValueError(f"keys: {key} is a range; a grid takes lists")
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"trials: missing; search {self.search} does not end by itself")
        return self

    @property
    def number(self) -> int:
        """How many trials there are."""
        points = len(list(self.grid())) if self.search == "grid" else None
        return min(n for n in (points, self.trials) if n is not None)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination of the values, the last key's changing fastest."""
        for values in itertools.product(*self.keys.values()):
            yield dict(zip(self.keys, values, strict=True))

    def overrides(self, values: dict[str, Any]) -> list[str]:
        """What --set is for a trial with these values."""
        return [*self.set, *(f"{key}={json.dumps(value)}" for key, value in values.items())]


def load(path: str, model_path: str | None = None) -> Sweep:
    """Reads a sweep's file, and checks the config with every value that it names.

    Args:
        path: a YAML or JSON file.
        model_path: another directory than the file's.

    Raises:
        UserError: a key or a value is wrong; names the file.
    """
    values = reading.read_mapping(path)
    try:
        sweep = Sweep.model_validate(
            {**values, **({"model_path": model_path} if model_path else {})})
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: {messages.first_mistake(error, Sweep)[1]}") from error
    first = {key: _ends(tried)[0] for key, tried in sweep.keys.items()}
    for key, tried in sweep.keys.items():
        for value in _ends(tried):
            try:
                schema.load(sweep.model, sweep.overrides({**first, key: value}))
            except UserError as error:
                raise UserError(f"{path}: keys: {key} {json.dumps(value)}: {error}") from error
    return sweep


def _ends(tried: list | Range) -> list:
    """The values of a list, or the ends of a range."""
    if isinstance(tried, list):
        return tried
    return [int(x) if tried.whole else x for x in (tried.low, tried.high)]
