"""What all command lines share: one-line complaints, exit statuses and quiet libraries."""

import argparse
import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from configs.errors import Stopped, UserError
from configs.redaction import Formatter, hidden, print_traceback

# What a file system, a network or the memory refuses raises these errors of TensorFlow, which is
# not imported here.
REFUSALS = ("PermissionDeniedError", "NotFoundError", "ResourceExhaustedError", "UnavailableError",
            "DeadlineExceededError", "AbortedError", "DataLossError")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, with the nearest flag for an unknown one.

    Args:
        former: flags of older programs, and what each is here; backquotes are left out.
        options: argparse.ArgumentParser's.
    """

    def __init__(self, former: Mapping[str, str] | None = None, **options: Any):
        self._former = former or {}
        self._given: list[str] = []
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                         **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
            import argcomplete

            argcomplete.autocomplete(self)
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        old = next((flag for flag in (str(one).partition("=")[0] for one in self._given)
                    if flag in self._former), None)
        if old:  # and so a needed one may be missing
            here = self._former[old].replace("`", "")
            message = f"argument {old}: of an older program; here: {here}"
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
            message += f" (did you mean {near[0]}?)" if near else ""
        line = hidden(" ".join(message.split()))
        print(f"error: {line}; --help lists the flags", file=sys.stderr)
        raise SystemExit(2)


def log_to_stderr(level: int) -> None:
    """Has messages from a level on written to stderr, without secrets."""
    logging.basicConfig(level=level, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(Formatter("%(message)s"))


def add_loudness(parser: Any) -> None:
    """Adds --quiet and --verbose, of which a command takes one."""
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="only warnings, errors and results")
    loudness.add_argument("--verbose", action="store_true", help="also TensorFlow's own messages")


def set_loudness(quiet: bool, verbose: bool) -> None:
    """Own messages and bars to stderr; TensorFlow's only if asked for. Comes before its import."""
    from configs import progress

    log_to_stderr(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    progress.tqdm.silent = quiet
    if not verbose:
        quiet_libraries()


def quiet_libraries() -> None:
    """Keeps TensorFlow's and Google's own messages from stderr. Comes before their import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # On import, Google's client library advises on Python versions.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")


def refusal(error: Exception) -> str | None:
    """One line for what the system refused, such as a forbidden file; None for any other error."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    text = getattr(error, "message", None) or str(error)
    # An operation that TensorFlow does not have is another matter.
    no_such_scheme = "UnimplementedError" in kinds and text.startswith("File system scheme")
    # So is one on what is not initialised.
    no_directory = "FailedPreconditionError" in kinds and text.endswith("is not a directory")
    if not (isinstance(error, OSError) or no_such_scheme or no_directory
            or any(kind in REFUSALS for kind in kinds)):
        return None
    # An error of a graph may begin with a heading, and tell where the operation was made before it
    # tells what failed.
    text = text.removeprefix("Graph execution error:").lstrip()
    failed = re.search(r"^Node: '.*'\n(.*)$", text, re.MULTILINE)
    line = failed[1] if failed else text.partition("\n")[0]
    return f"{line}; see to the path, its permissions, free space and memory"


def status_of(job: Callable, *args: Any, debug: bool = False,
              stopped: str = "interrupted") -> int:
    """Does a command line's job.

    Args:
        job: a function that returns an exit status, or None for 0.
        args: its arguments.
        debug: raise what would be printed as one line.
        stopped: the line for an interrupt.

    Returns:
        the exit status: the job's, 2 after a mistake or a refusal of the system, which is said in
        one line on stderr, 75 where a signal has stopped it and everything is saved, 130 after an
        interrupt.
    """
    try:
        return job(*args) or 0
    except Stopped as error:
        print(hidden(str(error)), file=sys.stderr)
        return 75  # EX_TEMPFAIL of sysexits.h: do it again later
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    except BrokenPipeError:  # `head` or a pager has seen enough
        os._exit(141)  # what a shell reports for SIGPIPE; a normal exit would flush again and fail
    except Exception as error:
        line = str(error) if isinstance(error, UserError) else refusal(error)
        if debug or line is None:
            sys.excepthook = print_traceback
            raise
        print(f"error: {hidden(' '.join(line.split()))}", file=sys.stderr)
        return 2
