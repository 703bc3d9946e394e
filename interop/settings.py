"""The config of a Hugging Face model, read with care."""

from configs.errors import UserError
from configs.schema import RunConfig

# transformers' names of activations that are ours under another.
_ACTIVATIONS = {"gelu_new": "gelu", "gelu_fast": "gelu", "gelu_pytorch_tanh": "gelu",
                "gelu": "gelu_exact", "relu": "relu", "silu": "silu", "swish": "silu",
                "tanh": "tanh", "quick_gelu": "quick_gelu"}


def activation_name(config: RunConfig) -> str:
    """transformers' name of a run's activation.

    Raises:
      UserError: it has none.
    """
    ours = config.activation_function
    for name, value in _ACTIVATIONS.items():
        if value == {"swish": "silu"}.get(ours, ours):
            return name
    known = ", ".join(dict.fromkeys(_ACTIVATIONS.values()))
    raise UserError(f"--export hf: activation_function: transformers has no {ours!r}; only {known} "
                    "can be exported")


class Settings:
    """A model's config.json; a wrong value is an error that names file and key.

    Args:
      path: the file's, for messages.
      values: what it holds, a dict.
    """

    def __init__(self, path, values):
        self.path, self._values = path, values

    def __getitem__(self, key):
        return self._values.get(key)

    def error(self, key: str, remedy: str) -> UserError:
        """The UserError of a key's value."""
        return UserError(f"{self.path}: {key}: {self._values.get(key)!r}: {remedy}")

    def whole(self, key: str, default: int) -> int:
        """A whole number above 0; `default` where the key is absent or null."""
        value = self._values.get(key)
        if value is None:
            return default
        if type(value) is not int or value < 1:
            raise self.error(key, "a whole number above 0 is needed")
        return value

    def number(self, key: str, default: float) -> float:
        """A number above 0; `default` where the key is absent or null."""
        value = self._values.get(key)
        if value is None:
            return default
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.error(key, "a number above 0 is needed")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false; `default` where the key is absent or null."""
        value = self._values.get(key)
        if value is not None and type(value) is not bool:
            raise self.error(key, "true or false is needed")
        return default if value is None else value

    def section(self, key: str) -> "Settings":
        """The Settings of a key that holds more of them; empty where it is absent or null."""
        value = self._values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "a JSON object is needed")
        return Settings(f"{self.path}: {key}", value or {})

    def activation(self, key: str, default: str) -> str:
        """Our name of an activation."""
        value = self._values.get(key) or default
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.error(key, f"only {', '.join(_ACTIVATIONS)} can be imported")
        return _ACTIVATIONS[value]
