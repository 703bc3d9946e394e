"""Which published language model is at a path, and its config and tensors."""

import dataclasses
import os
import types

from configs.errors import UserError
from interop import (
    hf_gpt2,
    hf_gpt_neo,
    hf_gpt_neox,
    hf_gptj,
    mtf_gpt_neo,
    nanogpt,
    openai_gpt2,
    tensor_files,
    tf_checkpoints,
    weight_files,
)
from interop.settings import Settings
from mesh.compat import tf

# By the `model_type` of their config.json.
_HUGGING_FACE = {"gpt2": hf_gpt2, "gpt_neo": hf_gpt_neo, "gptj": hf_gptj, "gpt_neox": hf_gpt_neox}
# By a variable of theirs: the family, and the files that may describe the model.
_TENSORFLOW = {"gpt2/wte": (mtf_gpt_neo, ["config.json"]),
               "model/wte": (openai_gpt2, ["hparams.json", "config.json"])}


@dataclasses.dataclass
class Source:
    """A language model from elsewhere.

    Attributes:
      family: the module of its kind, such as hf_gpt2: `IGNORED`, a pattern for tensors that nobody
        takes; `GPT2_VOCABS`, the sizes of vocabularies that are GPT-2's; and the functions
        `short`, of a tensor's name, and `read`, of a Source.
      settings: its Settings.
      path: its file of weights, for messages.
      tensors: {its name of a tensor: a tensor_files.Stored}.
    """

    family: types.ModuleType
    settings: Settings
    path: str
    tensors: dict

    @property
    def folder(self) -> str:
        """Where the files of its encoder may be."""
        return os.path.dirname(self.path)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor; see weight_files.Checked.shape."""
        return weight_files.Checked(self.path, self.tensors, "").shape(name, rank)


def find(path: str) -> Source | None:
    """The Source at a path, or None if that is no language model of a known kind.

    Args:
      path: a directory that transformers has saved, or a file of weights with config.json beside
        it; a TensorFlow checkpoint, or a directory with one; a nanoGPT checkpoint, or a directory
        with ckpt.pt.

    Raises:
      UserError: there is one, and it cannot be read or is of a kind that cannot be imported.
    """
    folder = path if tf.io.gfile.isdir(path) else os.path.dirname(path)
    config_path = os.path.join(folder, "config.json")
    config = tensor_files.read_json(config_path)
    kind = config.get("model_type")
    if isinstance(kind, str) and not kind.startswith("clip"):
        if kind not in _HUGGING_FACE:
            raise UserError(f"{config_path}: model_type {kind!r} cannot be imported; of language "
                            f"models, {', '.join(_HUGGING_FACE)} can")
        weights = weight_files.find(path)
        return Source(_HUGGING_FACE[kind], Settings(config_path, config), weights,
                      weight_files.read(weights).tensors)
    checkpoint = tf_checkpoints.find(path)
    if checkpoint:
        return _tensorflow(checkpoint, folder)
    torch = os.path.join(path, "ckpt.pt") if path == folder else path
    if torch.endswith(".pt") and tf.io.gfile.exists(torch):
        return _nanogpt(torch)
    return None


def _tensorflow(checkpoint, folder):
    tensors = tf_checkpoints.read(checkpoint)
    for name, (family, files) in _TENSORFLOW.items():
        if name in tensors:
            path = next((p for p in (os.path.join(folder, file) for file in files)
                         if tf.io.gfile.exists(p)), os.path.join(folder, files[0]))
            return Source(family, Settings(path, tensor_files.read_json(path)), checkpoint,
                          tensors)
    raise UserError(f"{checkpoint}: no language model of a known kind: it has none of the "
                    f"variables {', '.join(_TENSORFLOW)}; docs/interop.md lists what can be "
                    "imported")


def _nanogpt(path):
    file = tensor_files.read(path)
    settings = file.beside.get("model_args")
    if not isinstance(settings, dict):
        return None
    return Source(nanogpt, Settings(f"{path}: model_args", settings), path, file.tensors)
