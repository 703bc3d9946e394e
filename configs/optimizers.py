"""Which keys each optimizer reads, and its usual values where a config gives none."""

from typing import Any

# The keys of each optimizer beside lr and weight_decay, which all of them read, with what null
# stands for where it depends on the optimizer.
KEYS: dict[str, dict[str, Any]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.95, "epsilon": ...},
    "adafactor": {"beta1": 0.0, "beta2": 0.999, "ada_epsilon1": ..., "ada_epsilon2": ...,
                  "decay_type": ..., "decay_exponent": ..., "factored": ...},
    "sgd": {"momentum": ..., "nesterov": ...},
    "lion": {"beta1": 0.9, "beta2": 0.99},
}


def usual(config: Any) -> dict[str, float]:
    """Those of beta1 and beta2 that are null in `config` and that its optimizer reads."""
    own = KEYS[config.opt_name]
    return {key: own[key] for key in ("beta1", "beta2")
            if key in own and getattr(config, key) is None}


def unread(config: Any) -> list[str]:
    """Keys that a config sets to other than their default, and its optimizer does not read."""
    every = {key for keys in KEYS.values() for key in keys}
    read = set(KEYS[config.opt_name])
    if config.opt_name == "adafactor":
        read.discard("decay_exponent" if config.decay_type == "adam" else "beta2")
    if config.opt_name == "sgd" and not config.momentum:
        read.discard("nesterov")
    defaults = {key: field.default for key, field in type(config).model_fields.items()}
    return sorted(key for key in every - read
                  if key in config.model_fields_set and getattr(config, key) != defaults[key])
