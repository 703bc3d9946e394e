"""Zero-shot classification: which of some texts fits a picture best (Radford et al. 2021, 3.1).

The tasks are a file of JSON lines (`clip.zero_shot`); docs/clip.md describes it.
"""

import json
import os

import numpy as np

from configs.errors import UserError
from mesh.compat import tf
from training import items

_KEYS = ("name", "pictures", "prompts", "label")


class ZeroShot:
    """The tasks of a file, checked at once.

    Args:
      path: the file.
      side: pixels of a picture's side.

    Raises:
      UserError: the file cannot be read, a line is no task, or a picture does not fit it.
    """

    def __init__(self, path, side):
        self._tasks = _read(path)
        with tf.Graph().as_default() as graph:
            self._data = tf.placeholder(tf.string, [])
            self._decoded = tf.io.decode_image(self._data, channels=3, expand_animations=False)
            self._session = tf.Session(graph=graph)
        self._side = side
        for task in self._tasks:
            for number, (data, _, place) in enumerate(task.pictures()):
                if not number:
                    self._decode(data, place)

    @property
    def prompts(self):
        """Every text that will be embedded."""
        return [text for task in self._tasks for texts in task.prompts.values() for text in texts]

    @property
    def names(self):
        """The scores' names, without those of guessing."""
        return [f"zero_shot/{task.name}" for task in self._tasks]

    def scores(self, embedder):
        """The share of pictures whose class is found, beside what guessing finds.

        Args:
          embedder: a training.embedder.Embedder of a model with an image tower.

        Returns:
          {"zero_shot/<task>": …, "zero_shot/<task>/chance": …}.
        """
        found, seen = {}, {}
        for task in self._tasks:
            classes = np.stack([_mean(embedder.texts(texts)) for texts in task.prompts.values()])
            # Tasks about the same pictures share what they embed.
            pictures = seen.setdefault(task.pattern, [])
            if not pictures:
                pictures.extend(self._embedded(task, embedder))
            labels = np.array([task.number(label) for _, label, _ in task.pictures()])
            chosen = np.argmax(np.concatenate(pictures) @ classes.T, axis=1)
            found[f"zero_shot/{task.name}"] = float(np.mean(chosen == labels))
            found[f"zero_shot/{task.name}/chance"] = 1.0 / len(classes)
        return found

    def close(self):
        """Ends the session that decodes pictures."""
        self._session.close()

    def _embedded(self, task, embedder):
        """Embeddings of a task's pictures, some at a time, since decoded they may fill memory."""
        batch = []
        for data, _, place in task.pictures():
            batch.append(self._decode(data, place))
            if len(batch) == embedder.config.eval_batch_size:
                yield embedder.pictures(np.stack(batch))
                batch = []
        if batch:
            yield embedder.pictures(np.stack(batch))

    def _decode(self, data, place):
        """A picture as uint8 [side, side, 3]."""
        try:
            picture = self._session.run(self._decoded, {self._data: data})
        except tf.errors.OpError as error:
            raise UserError(f"{place}: no picture that can be decoded ({error.message}); give PNG, "
                            "JPEG, GIF or BMP") from error
        if picture.shape[:2] != (self._side, self._side):
            raise UserError(f"{place}: a picture of {picture.shape[1]} × {picture.shape[0]} "
                            f"pixels, but clip.image_size is {self._side}; scale it")
        return picture


class _Task:
    """One line of the file: its name, `pattern` of the pictures' files, and prompts by class."""

    def __init__(self, values, directory):
        self.name, self.prompts = values["name"], values["prompts"]
        pattern = values["pictures"]
        self.pattern = pattern if "://" in pattern else os.path.join(directory, pattern)
        self._label = values.get("label", "label")
        self._numbers = {name: number for number, name in enumerate(self.prompts)}

    def number(self, label):
        """The number of a class."""
        return self._numbers[label]

    def pictures(self):
        """(bytes of a picture, its label, file and number of the record) of every picture.

        Raises:
          UserError: there are none, or a record is none or has a label that is no class.
        """
        # A path first: its directory's name may hold characters that patterns use.
        paths = ([self.pattern] if tf.io.gfile.exists(self.pattern)
                 else sorted(tf.io.gfile.glob(self.pattern)))
        number, found = 0, False
        try:
            for path in paths:
                for number, record in enumerate(tf.io.tf_record_iterator(path)):  # noqa: B007
                    found = True
                    yield self._picture(record, f"{path}: record {number}")
        except tf.errors.OpError as error:
            raise UserError(f"{path}: damaged after record {number} ({error.message}); copy it "
                            "anew") from error
        if not found:
            raise UserError(f"clip.zero_shot: task {self.name}: no pictures {self.pattern}; give "
                            "a path, or a pattern, relative to the file of tasks")

    def _picture(self, record, place):
        try:
            features = tf.train.Example.FromString(record).features.feature
        except Exception as error:  # protobuf's DecodeError, whose place differs by version
            raise UserError(f"{place}: no tf.train.Example ({error})") from error
        images, labels = (list(features[name].bytes_list.value) for name in ("image", self._label))
        if len(images) != 1 or len(labels) != 1:
            raise UserError(f"{place}: needs the features image and {self._label}, a picture's "
                            "bytes and a text")
        label = labels[0].decode(errors="replace")
        if label not in self._numbers:
            raise UserError(f"{place}: its {self._label} {label!r} has no prompts in task "
                            f"{self.name}; add them, or leave the picture out")
        return images[0], label, place


def _read(path):
    tasks = [_task(line, place, os.path.dirname(path))
             for line, place in items.lines("clip.zero_shot", path)]
    if not tasks:
        raise UserError(f"clip.zero_shot: {path} has no tasks; give one JSON object a line")
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"clip.zero_shot: {path}: two tasks are called {name}, which names "
                            "their scores; rename one")
    return tasks


def _task(line, place, directory):
    """The _Task of a line, which is refused unless it is whole."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: no JSON ({error})") from error
    strange = sorted(set(values) - set(_KEYS)) if isinstance(values, dict) else []
    if strange:
        raise UserError(f"{place}: {strange[0]} is no key of a task; known: {', '.join(_KEYS)}")
    if not isinstance(values, dict) or not all(
            isinstance(values.get(key, "label"), str) and values.get(key, "label")
            for key in ("name", "pictures", "label")) or not {"name", "pictures"} <= set(values):
        raise UserError(f"{place}: a task needs name and pictures, and may have label, all texts")
    prompts = values.get("prompts")
    if not isinstance(prompts, dict) or len(prompts) < 2 or not all(
            isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)
            for texts in prompts.values()):
        raise UserError(f"{place}: prompts needs two classes or more, each with a list of texts")
    return _Task(values, directory)


def _mean(embeddings):
    """The mean of embeddings, at unit length."""
    mean = embeddings.mean(axis=0)
    return mean / max(np.linalg.norm(mean), 1e-12)
