"""Published models by name: the Hugging Face hub's files, in a directory that is imported."""

import logging
import os
import re

import downloads
from configs.errors import UserError
from mesh.compat import tf

# Names that everybody knows, and the hub's own.
SHORT = {"gpt2": "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium",
         "gpt2-large": "openai-community/gpt2-large", "gpt2-xl": "openai-community/gpt2-xl"}

_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*?)(@(?P<revision>[\w.-]+))?")
_FILE = re.compile(r"\.(bin|ckpt|index|json|npz|pt|pth|safetensors)$")

_FOLDER = "data/published"
# A model's config comes last: where it is, all is.
_CONFIG = "config.json"
_ENCODER = ("vocab.json", "merges.txt", "tokenizer.json")
# The first that a model has is taken, with its shards.
_WEIGHTS = (("model.safetensors", None),
            ("model.safetensors.index.json", r"model-\d+-of-\d+\.safetensors"),
            ("pytorch_model.bin", None),
            ("pytorch_model.bin.index.json", r"pytorch_model-\d+-of-\d+\.bin"))


def local(source: str) -> str:
    """The path of what --import_from or `init_from` names: itself, or that of a published model.

    A model is looked for in data/published, where its files may have been put by hand, then among
    what other programs have downloaded from the hub, and then on the hub.

    Args:
      source: a path; or a name of the hub, `owner/name` or `owner/name@revision`; or one of SHORT.

    Raises:
      UserError: it is a name, and the model cannot be had; says what to fetch and where to put it.
    """
    named = _NAME.fullmatch(SHORT.get(source, source))
    if (not named or _FILE.search(source)
            or any(tf.io.gfile.exists(path) for path in (source, f"{source}.index"))):
        return source
    folder = os.path.join(_FOLDER, SHORT.get(source, source))
    if not tf.io.gfile.exists(os.path.join(folder, _CONFIG)):
        return _cached(**named.groupdict()) or _fetched(source, folder, **named.groupdict())
    return folder


def _cached(repo, revision):
    """The directory of a model that huggingface_hub has whole in its cache, or None."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(repo, revision=revision, local_files_only=True,
                                   allow_patterns=[_CONFIG])
    except (errors.LocalEntryNotFoundError, ValueError):
        return None
    return folder if _wanted(tf.io.gfile.listdir(folder)) else None


def _wanted(names):
    """Those of a model's files that are imported, the config last; [] if it has no weights."""
    for name, shards in _WEIGHTS:
        if name in names and _CONFIG in names:
            parts = [part for part in names if shards and re.fullmatch(shards, part)]
            return [*(file for file in _ENCODER if file in names), *sorted(parts), name, _CONFIG]
    return []


def _fetched(source, folder, repo, revision):
    """Downloads a model into a folder, which is returned."""
    from huggingface_hub import HfApi, errors, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    api = HfApi()
    by_hand = (f"fetch {_CONFIG}, the weights ({_WEIGHTS[0][0]} or {_WEIGHTS[2][0]}) and the files "
               f"of the tokenizer from {api.endpoint}/{repo} and put them into {folder}")
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=10)
    except (errors.HTTPError, OSError) as error:
        answered = getattr(error, "response", None)
        if answered is not None and answered.status_code in (401, 403, 404):
            raise UserError(f"{source}: there is no such file or directory, and no such model on "
                            f"{api.endpoint} that is open to you") from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: there is no such file or directory, and {api.endpoint} cannot "
                        f"be reached ({reason}); {by_hand}") from error
    found = {file.rfilename: file for file in info.siblings or ()}
    names = _wanted(found)
    if not names:
        raise UserError(f"{source}: {api.endpoint}/{repo} has no {_CONFIG} with weights that can "
                        f"be imported ({', '.join(name for name, _ in _WEIGHTS)})")
    logging.info("%s: fetching %d files from %s/%s into %s", source, len(names), api.endpoint, repo,
                 folder)
    for name in names:
        lfs = found[name].lfs
        try:
            downloads.fetch(hf_hub_url(repo, name, revision=info.sha, endpoint=api.endpoint),
                            os.path.join(folder, name), lfs and lfs.sha256, build_hf_headers())
        except downloads.Unreachable as error:
            raise UserError(f"{source}: {error}; give the same command again to go on, or "
                            f"{by_hand}") from error
    return folder
