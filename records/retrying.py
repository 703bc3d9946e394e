"""Trying again where storage or a machine was out of reach for a moment."""

import functools
import logging
import re
import time

import tensorflow.compat.v1 as tf

TRANSIENT = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)

# What an error of Python in an input function of the user's own (tf.py_function and the like) turns
# into: the kind is in the message alone.
_WRAPPED = re.compile(r"\b(Unavailable|DeadlineExceeded|Aborted)Error: ")

# Seconds before each further try.
WAITS = (1, 2, 4, 8, 16, 32)


def unwrapped(error):
    """The transient error that an UnknownError stands for, or None."""
    if isinstance(error, tf.errors.UnknownError) and (found := _WRAPPED.search(error.message)):
        reason = error.message[found.start():].partition("\n")[0]
        return tf.errors.UnavailableError(error.node_def, error.op, reason)
    return None


def report(what, error, seconds, number):
    """Says in one line that something is tried again, and waits."""
    reason = error if isinstance(error, str) else error.message.partition("\n")[0]
    logging.warning("warning: %s: %s; trying again in %d s (%d of %d)", what, reason, seconds,
                    number, len(WAITS))
    time.sleep(seconds)


def call(what, function, *args, **kwargs):
    """Calls a function, again after each transient error, at most len(WAITS) times more.

    Args:
      what: the path or place that messages name.
      function: must leave nothing half done when it fails, or do it over.

    Returns:
      what the function returns.

    Raises:
      tf.errors.OpError: the last try's error, or at once one that waiting does not mend.
    """
    for number, seconds in enumerate(WAITS, 1):
        try:
            return function(*args, **kwargs)
        except TRANSIENT as error:
            report(what, error, seconds, number)
    return function(*args, **kwargs)


def patient(function):
    """Has a function of (path, …) try again, as `call` does; it has to be one to do over.

    Where such functions call each other, the outermost one does.
    """
    @functools.wraps(function)
    def patiently(path, *args, **kwargs):
        if _at_work:
            return function(path, *args, **kwargs)
        _at_work.append(function)
        try:
            return call(path, function, path, *args, **kwargs)
        finally:
            _at_work.clear()

    return patiently


_at_work: list = []
