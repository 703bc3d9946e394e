"""What a process asks of the system: to end with another one, and to take memory back."""

import ctypes
import gc
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


def give_memory_back():
    """Frees what nothing refers to any more, and returns freed memory to the system.

    glibc's allocator would keep it.
    """
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
