"""Which published language model is at a path, and its config and tensors."""

import dataclasses
import os
import types

from interop import hf_gpt2, hf_gpt_neo, hf_gpt_neox, hf_gptj, tensor_files, weight_files
from interop.settings import Settings
from mesh.compat import tf

# By the `model_type` of their config.json.
HUGGING_FACE = {"gpt2": hf_gpt2, "gpt_neo": hf_gpt_neo, "gptj": hf_gptj, "gpt_neox": hf_gpt_neox}


@dataclasses.dataclass
class Source:
    """A language model from elsewhere.

    Attributes:
      family: the module of its kind, such as hf_gpt2: `IGNORED`, a pattern for tensors that nobody
        takes; `GPT2_VOCABS`, the sizes of vocabularies that are GPT-2's; and the functions
        `short` and `read`.
      settings: its Settings, which `family.read` takes.
      path: its file of weights, for messages.
      tensors: {its name of a tensor: a tensor_files.Stored}.
    """

    family: types.ModuleType
    settings: Settings
    path: str
    tensors: dict

    @property
    def folder(self):
        """Where the files of its encoder may be."""
        return os.path.dirname(self.path)


def find(path):
    """The Source at a path, or None if that is no language model of a known kind.

    Args:
      path: a directory that transformers has saved, or a file of weights with config.json beside
        it.

    Raises:
      UserError: there is one, and it cannot be read.
    """
    folder = path if tf.io.gfile.isdir(path) else os.path.dirname(path)
    config_path = os.path.join(folder, "config.json")
    config = tensor_files.read_json(config_path)
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in HUGGING_FACE:
        weights = weight_files.find(path)
        return Source(HUGGING_FACE[kind], Settings(config_path, config), weights,
                      weight_files.read(weights).tensors)
    return None
