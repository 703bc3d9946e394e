"""Processes that end with the one that began them."""

import ctypes
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2), PR_SET_PDEATHSIG


def end_with_parent(number):
    """Has the kernel send this process a signal when its parent is gone, whatever ended that.

    Only Linux can.

    Args:
      number: the signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, number, 0, 0, 0)
