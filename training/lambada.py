"""LAMBADA: texts whose last word is to be predicted (Paperno et al. 2016), read from local files.

As the lm-evaluation-harness has it, the last word is what follows a text's last space, and the
space is its own: all of its tokens count, not the last one.
"""

import json

from configs.errors import UserError
from configs.values import LAMBADA, lambada_path
from mesh.compat import tf
from training import items


def read(config, entry, encoder):
    """The items of an entry of `eval_tasks`, LAMBADA's texts as completions.

    Args:
      config: the run's config.
      entry: "lambada", "lambada:" and a path, or a path; a file whose name begins with "lambada" is
        LAMBADA too.
      encoder: the encoder of the run's weights.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    path = _of_dataset(config) if entry == LAMBADA else lambada_path(entry)
    if path == entry and not path.rpartition("/")[2].startswith(LAMBADA):
        return items.read(path)
    found = _from_tokens(path, encoder) if path.endswith(".json") else items.read(path)
    return [_last_word(item) if item.kind == "text" else item for item in found]


def _of_dataset(config):
    """The path that the first dataset to know one gives."""
    for dataset in config.dataset_configs.values() if config.datasets else ():
        if dataset.lambada_tokens_path:
            return dataset.lambada_tokens_path
    raise UserError("eval_tasks: lambada has no file; write \"lambada:PATH\" with the path of "
                    "lambada_test.jsonl, whose lines are {\"text\": …}, or set lambada_tokens_path "
                    "in the dataset's JSON")


def _from_tokens(path, encoder):
    """Texts of GPT-Neo's lambada.json: a list with a list of token ids for each."""
    try:
        with tf.io.gfile.GFile(path) as file:
            texts = json.loads(file.read())
    except tf.errors.OpError as error:
        raise UserError(f"eval_tasks: {path} cannot be read ({error.message}); nothing is "
                        "downloaded: write \"lambada:PATH\" with the path of lambada_test.jsonl"
                        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"eval_tasks: {path}: no JSON ({error}); a file of JSON lines has to end "
                        "in .jsonl") from error
    if not isinstance(texts, list) or not texts or not all(
            isinstance(ids, list) and all(type(i) is int for i in ids) for ids in texts):
        raise UserError(f"eval_tasks: {path}: no list of lists of token ids, as GPT-Neo's "
                        "lambada.json is; give lambada_test.jsonl")
    found = []
    for number, ids in enumerate(texts):
        place = f"{path}: text {number}"
        try:
            found.append(items.Item("text", place, "", (encoder.decode(ids),), 0, ()))
        except UserError as error:
            raise UserError(f"eval_tasks: {place}: {error}") from error
    return found


def _last_word(item):
    """A text as what comes before its last word, and the word with its space."""
    before, space, word = item.texts[0].rpartition(" ")
    if not before.strip() or not word:
        raise UserError(f"eval_tasks: {item.place}: {item.texts[0][:40]!r} has no last word after "
                        "a space")
    return item._replace(kind="completion", prefix=before, texts=(space + word,))
