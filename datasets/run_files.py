"""The files of one run in its output directory: what may be written, resumed or replaced."""

import json
import os
import re

import tensorflow as tf
from shards import write_atomically

from configs.errors import UserError
from records import retrying

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REPLACE = "give another --name or --output_dir, or --overwrite to replace it"


class RunFiles:
    """Where a run writes, and how an unfinished one is found again.

    Args:
        directory: --output_dir; made if absent.
        name: --name, with which all files of the run begin.
        overwrite: whether what an earlier, different run left may be replaced.
        ours: a regular expression of what follows the name in the names of the run's files. Those
            that end in `.tmp` are removed at the end.
        last: what follows the name in the file whose presence says that a run is finished.

    Raises:
        UserError: the name will not do, or the directory cannot be used.
    """

    def __init__(self, directory, name, overwrite, ours, last):
        if not NAME.fullmatch(name):
            raise UserError(f"--name {name}: use letters, digits, . _ and -")
        self.directory = directory
        self.name = name
        self.last = os.path.join(directory, name + last)
        self._overwrite = overwrite
        self._progress = os.path.join(directory, name + "_progress.json")
        self._ours = re.compile(re.escape(name) + ours)
        make_directory(directory, "--output_dir")

    def begin(self, settings):
        """Clears the way for a run.

        Args:
            settings: dict of all that decides the output, to be compared with an unfinished run's.
                A value of None is not compared.

        Returns:
            (state, finished): the state that the unfinished run of the same settings saved, or
            None; and whether nothing but cleaning up was left to be done.

        Raises:
            UserError: there is something that would be overwritten.
        """
        stored = self._read_progress()
        old = [file for file in self.files() if self._ours.fullmatch(file)]
        if tf.io.gfile.exists(self.last):
            old.insert(0, os.path.basename(self.last))
        if stored:
            name = _first_difference(stored["settings"], settings)
            if name is None:
                finished = tf.io.gfile.exists(self.last)
                if finished:
                    self.clean_up()
                return stored["state"], finished
            # a run that was refused at its first inputs left nothing but temporary files
            begun = stored["state"]["begin"] != [0, 0] or not all(
                file.endswith(".tmp") for file in old)
            if begun and not self._overwrite:
                raise UserError(
                    f"{self._progress}: an unfinished dataset was begun with other settings "
                    f"({name}: {_short(stored['settings'].get(name))}, now "
                    f"{_short(settings.get(name))}); repeat that command to go on with it, or "
                    f"{REPLACE}")
        elif old and not self._overwrite:
            raise UserError(f"{os.path.join(self.directory, old[0])}: exists; {REPLACE}")
        for file in [*old, os.path.basename(self._progress)]:
            self.remove(file)
        return None, False

    def save(self, settings, state):
        """Stores the state from which a killed run goes on."""
        write_atomically(self._progress, json.dumps({"settings": settings, "state": state}))

    def finish(self, text):
        """Writes the last file and removes what only a restart would need."""
        write_atomically(self.last, text)
        self.clean_up()

    def clean_up(self):
        """Removes temporary files, the progress file last."""
        for file in self.files():
            if self._ours.fullmatch(file) and file.endswith(".tmp"):
                self.remove(file)
        self.remove(os.path.basename(self._progress))

    def files(self):
        """The names of the files in the directory."""
        return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(self.directory))

    def remove(self, file):
        """Removes a file of the directory if it is there."""
        path = os.path.join(self.directory, file)
        if tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)

    def _read_progress(self):
        """What `save` stored, or None."""
        if not tf.io.gfile.exists(self._progress):
            return None
        with tf.io.gfile.GFile(self._progress) as file:
            return json.loads(file.read())


def make_directory(directory, what):
    """Makes a directory if it is absent; `what` it is begins the refusal."""
    try:
        tf.io.gfile.makedirs(directory)
    except retrying.TRANSIENT:
        raise
    except tf.errors.OpError as error:
        raise UserError(f"{what} {directory}: cannot be made: {error.message}; choose another "
                        "directory") from error


def _first_difference(old, new):
    """The name of the first setting that differs, or None."""
    for name in [*new, *(name for name in old if name not in new)]:
        if new.get(name, "") is not None and old.get(name) != new.get(name):
            return name
    return None


def _short(value):
    """A value for a message, cut to a readable length."""
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
