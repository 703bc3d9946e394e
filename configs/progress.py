"""Progress bars, which terminals alone show, and none with --quiet."""

from typing import Any

import tqdm as library


class tqdm(library.tqdm):  # noqa: N801
    """The library's bar, off where stderr is no terminal.

    Attributes:
        silent: no bar is shown at all.
    """

    silent = False

    def __init__(self, *args: Any, **keys: Any) -> None:
        keys["disable"] = True if self.silent or keys.get("disable") else None
        super().__init__(*args, **keys)
