"""TensorBoard that opens on its page of custom scalars.

    python -m training.open_board --logdir runs

TensorBoard opens on the first page that has something to show, in the order of its plugins, which
no flag changes. This is TensorBoard with all its flags and another order.
"""

import sys

from absl import app
from tensorboard import default, main_lib, program
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin


def plugins():
    """TensorBoard's plugins, that of custom scalars before all others that have a page."""
    core, *others = default.get_plugins()
    return [core, *sorted(others, key=lambda plugin: plugin is not CustomScalarsPlugin)]


def main():
    """Runs TensorBoard as its own command does."""
    main_lib.global_init()
    board = program.TensorBoard(plugins=plugins())
    try:
        app.run(board.main, flags_parser=board.configure)
    except base_plugin.FlagsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
