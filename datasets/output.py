"""The files of one dataset in its output directory: what may be written, resumed or replaced."""

import json
import os
import re

import tensorflow as tf
from run_files import RunFiles, make_directory
from shards import INFIX, write_atomically

import encoders
from configs.dataset import MANIFEST_SUFFIX, Manifest
from configs.errors import UserError

INDEX_NAMES = {"train": "train", "validation": "val"}


class Output(RunFiles):
    """Where a dataset goes.

    Args:
        directory: --output_dir; made if absent.
        name: --name.
        overwrite: whether what an earlier, different run left may be replaced.

    Raises:
        UserError: the name cannot be told from others, or the directory cannot be used.
    """

    def __init__(self, directory, name, overwrite):
        if name.endswith("_val"):
            raise UserError(f"--name {name}: _val at the end marks validation shards; leave it out")
        if re.search(r"[*?\[\]{}]", directory):
            raise UserError(f"--output_dir {directory}: shards are found by a glob, so *?[]{{}} "
                            "cannot be part of it; choose another directory")
        super().__init__(directory, name, overwrite,
                         r"(_val)?_\d+(_\d+\.tfrecords(\.tmp)?|\.part\d+\.tmp)", MANIFEST_SUFFIX)
        self.encoder = os.path.join(directory, name + "_encoder.json")

    @property
    def manifest(self):
        """The path of the manifest, which is written last."""
        return self.last

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
        """As RunFiles.begin; refuses names too by which shards would be confused."""
        self._refuse_confusable_names()
        return super().begin(settings)

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
                self.remove(os.path.basename(self.index(split)))
        super().finish(checked.to_json())

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

    def _refuse_confusable_names(self):
        """Refuses "a" beside "a_1": the glob a_[0-9]* of the one would match the other's shards."""
        for file in self.files():
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
