"""Markdown that programs write."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(heads: Sequence, rows: Iterable[Sequence[Any]]) -> str:
    """A table, without a line break at its end; | in a cell does not end the cell."""
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
                     for line in [heads, ["---"] * len(heads), *rows])
