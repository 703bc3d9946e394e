"""The files of one dataset in its output directory: what may be written, resumed or replaced."""

import json
import os
import re

import tensorflow as tf
from shards import INFIX, write_atomically

import encoders
from configs.dataset import MANIFEST_SUFFIX, Manifest
from configs.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
INDEX_NAMES = {"train": "train", "validation": "val"}
REPLACE = "give another --name or --output_dir, or --overwrite to replace it"


class Output:
    """Where a dataset goes.

    Args:
        directory: --output_dir; made if absent.
        name: --name.
        overwrite: whether what an earlier, different run left may be replaced.

    Raises:
        UserError: the name cannot be told from others, or the directory cannot be used.
    """

    def __init__(self, directory, name, overwrite):
        if not NAME.fullmatch(name) or name.endswith("_val"):
            raise UserError(f"--name {name}: use letters, digits, . _ and -, and no _val at the "
                            "end, which marks validation shards")
        if re.search(r"[*?\[\]{}]", directory):
            raise UserError(f"--output_dir {directory}: shards are found by a glob, so *?[]{{}} "
                            "cannot be part of it; choose another directory")
        self.directory = directory
        self.name = name
        self._overwrite = overwrite
        self.manifest = os.path.join(directory, name + MANIFEST_SUFFIX)
        self.encoder = os.path.join(directory, name + "_encoder.json")
        self._progress = os.path.join(directory, name + "_progress.json")
        self._ours = re.compile(
            rf"{re.escape(name)}(_val)?_\d+(_\d+\.tfrecords(\.tmp)?|\.part\d+\.tmp)")
        make_directory(directory, "--output_dir")

    def glob(self, split):
        """A glob that matches the shards of one split and nothing else, in any directory."""
        directory = from_anywhere(self.directory)
        if "://" not in directory:
            # The way to it may hold what a glob would take for a pattern.
            directory = re.sub(r"([*?[])", r"[\1]", directory)
        return os.path.join(directory, f"{self.name}{INFIX[split]}_[0-9]*.tfrecords")

    def unfinished_characters(self):
        """Whether an unfinished run of this name left the characters that it found."""
        return tf.io.gfile.exists(self._progress) and tf.io.gfile.exists(self.encoder)

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
        self._refuse_confusable_names()
        stored = self._read_progress()
        old = [file for file in self._files() if self._ours.fullmatch(file)]
        if tf.io.gfile.exists(self.manifest):
            old.insert(0, os.path.basename(self.manifest))
        if stored:
            name = _first_difference(stored["settings"], settings)
            if name is None:
                finished = tf.io.gfile.exists(self.manifest)
                if finished:
                    self._clean_up()
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
            self._remove(file)
        return None, False

    def save(self, settings, state):
        """Stores the state from which a killed run goes on."""
        write_atomically(self._progress, json.dumps({"settings": settings, "state": state}))

    def finish(self, manifest):
        """Writes the index files and the manifest and removes what only a restart would need.

        Args:
            manifest: the content, a dict with the fields of configs.dataset.Manifest.
        """
        checked = Manifest.from_json(json.dumps(manifest), self.manifest)
        for split, shards in checked.splits.items():
            if shards:
                paths = [os.path.join(self.directory, shard.file) for shard in shards]
                write_atomically(self.index(split), "\n".join(paths) + "\n")
            else:
                self._remove(os.path.basename(self.index(split)))
        write_atomically(self.manifest, checked.to_json())
        self._clean_up()

    def index(self, split):
        """The path of the index file that lists a split's shards."""
        return os.path.join(self.directory, f"{self.name}.{INDEX_NAMES[split]}.index")

    def write_new(self, path, text):
        """Writes a file beside the shards unless another one is there.

        Raises:
            UserError: a file of other content exists and --overwrite was not given.
        """
        self.prepare(path, text)
        write_atomically(path, text)

    def prepare(self, path, text):
        """Makes the directory of a file that will be written.

        Raises:
            UserError: that cannot be done, or the file exists with other content and may not be
                replaced.
        """
        make_directory(os.path.dirname(path) or ".", f"{path}: its directory")
        if self._overwrite or not tf.io.gfile.exists(path):
            return
        with tf.io.gfile.GFile(path) as file:
            if file.read() != text:
                raise UserError(f"{path}: exists with other content; move it away, or give "
                                "--overwrite to replace it")

    def _clean_up(self):
        """Removes temporary files, the progress file last."""
        for file in self._files():
            if self._ours.fullmatch(file) and file.endswith(".tmp"):
                self._remove(file)
        self._remove(os.path.basename(self._progress))

    def _files(self):
        """The names of the files in the directory."""
        return sorted(name.rstrip("/") for name in tf.io.gfile.listdir(self.directory))

    def _remove(self, file):
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

    def _refuse_confusable_names(self):
        """Refuses "a" beside "a_1": the glob a_[0-9]* of the one would match the other's shards."""
        for file in self._files():
            for suffix in (MANIFEST_SUFFIX, "_progress.json"):
                other = file.removesuffix(suffix)
                if other == file or other == self.name:
                    continue
                short, long = sorted((other, self.name), key=len)
                if long.startswith(short) and re.match(r"_(val_)?\d", long[len(short):]):
                    raise UserError(
                        f"--name {self.name}: {self.directory} holds the dataset {other!r}, and a "
                        f"glob for {short!r} would match the shards of {long!r}; give another "
                        "--name or --output_dir")


def from_anywhere(path):
    """A path that means the same in every working directory: a local one becomes absolute."""
    return path if "://" in path else os.path.abspath(path)


def encoder_from_anywhere(spec):
    """An encoder's spec whose path, if it has one, means the same in every working directory."""
    kind, _, argument = spec.partition(":")
    if kind in encoders.KINDS:
        return f"{kind}:{from_anywhere(argument)}" if argument else spec
    return from_anywhere(spec) if spec.endswith(".json") or ".json#" in spec else spec


def make_directory(directory, what):
    """Makes a directory if it is absent; `what` it is begins the refusal."""
    try:
        tf.io.gfile.makedirs(directory)
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
