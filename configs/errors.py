"""The one exception that stands for a mistake in what the user gave."""


class UserError(Exception):
    """A file, key, flag or value given by the user cannot be used.

    The message is one line that names the file or key and the remedy. Entry points print it
    without a traceback and exit with status 2.
    """


class Stopped(Exception):
    """A signal has stopped the work, and everything is saved; the message says how to go on."""
