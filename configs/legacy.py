"""Keys that older configs carry: renamed ones, ones that nothing needs, and refused ones."""

from typing import Any

from configs import legacy_gpt2, legacy_neo
from configs.errors import UserError
from configs.messages import shown

RENAMED = {
    "activation_fn": "activation_function", "model_dir": "model_path",
    "n_heads": "n_head", "sampling_use_entmax": "entmax_sampling",
}

# Former switches: (the key of today, its value for true, for false).
SWITCHES = {
    "rotary_emb": ("position", "rotary", "learned"),
    "scalenorm": ("norm", "centred_scale", "layer"),
    "entmax_loss": ("entmax_alpha", 1.3, 1.0),
}

# Values that meant the same under another name, or by being null.
VALUES: dict[tuple[str, Any], Any] = {
    ("model", "GPT2"): "GPT",
    ("model", "GPT2MOE"): "GPT",
    ("activation_function", "gelu_new"): "gelu",  # Hugging Face's name
    ("opt_name", "adam"): "adamw",
    ("opt_name", "Adam"): "adamw",
    ("opt_name", None): "adamw",
    ("precision", "bf16"): "bfloat16",
    ("precision", "fp32"): "float32",
    ("input_fn", None): "datasets",
    ("input_fn", "sequential_input"): "datasets",
    ("input_fn", "generic_text"): "datasets",
    ("lr_decay", None): "constant",
    ("weight_decay", None): 0.0,
    ("ada_epsilon1", "1e-30"): 1e-30,  # beside GPT-Neo's published weights
    ("z_loss", None): 0.0,
    ("entmax_sampling", None): False,
    ("precision", None): "float32",
    ("n_vocab", None): 0,
    ("num_mem_kv", None): 0,
    ("local_attention_radius", None): 256,
    **{(key, None): False for key in ("macaron", "mlp_glu", "rezero", "share_parameters",
                                   "mlm_training")},
    ("moe_activation", None): "relu",
    ("moe_params", None): {},
}

# Nothing is lost when these are ignored. The reason is said in a note.
UNNEEDED = {
    "autostack": "variables are not stacked",
    "beta1_adam": "beta1 says it",
    "causal": "mlm_training says it",
    "context": "an internal value",
    "data_path": "datasets says where the data is",
    "datapath": "datasets says where the data is",
    "dataset": "datasets says which data is used",
    "dataset_configs": "datasets names them",
    "dataset_ids": "datasets names them",
    "encoder_path": "the dataset names its encoder",
    "eos_id": "the dataset's encoder knows it",
    "eval_task": "an internal value",
    "fixed_attn_block_size": "local_attention_radius says how far local layers see",
    "input": "datasets says how data is read",
    "lambada_n_steps": "all of LAMBADA is scored",
    "lambada_tokens_path": "the dataset's JSON names it",
    "layer_offset": "local layers need none",
    "mode": "an internal value",
    "no_dataset": "datasets: [] says it",
    "num_cores": "mesh_shape says it",
    "num_microbatches": "tokens_per_mb_per_replica decides it",
    "padding_id": "windows are full and need no padding",
    "predict": "a flag of main.py",
    "predict_steps": "--predict does all prompts, and TensorBoard has a sample of each evaluated "
                     "checkpoint, of sample_tokens tokens",
    "remove_partial_sequences": "samples are printed after their prompts; predict_path has prompt "
                                "and text apart",
    "shuffle_input_filenames": "windows are always shuffled, and seed decides their order",
    "slow_sampling": "every kind of attention and experts are sampled with caches",
    "stitch": "datasets says it",
    "stop_at_token": "samples end at the encoder's end of text, and at --stop",
    "text_len": "an internal value",
    "use_tpu": "flags of main.py choose devices",
}

# Ignoring these would change what the config means, unless they are off.
UNSUPPORTED = ("export", "auto_layout", "auto_layout_and_mesh_shape")


def translate(values: dict[str, Any], whole: bool = False
              ) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Rewrites legacy keys and values.

    Args:
        values: keys and values as a file or an override gives them.
        whole: whether they are a whole config, whose keys show which program it was written for:
            ConnorJL/GPT2 (`configs/legacy_gpt2.py`) or GPT-Neo.

    Returns:
        (values, former name by key for the renamed, notes for the user).

    Raises:
        UserError: a key that this release does not support is on, or a key and its former name
            disagree. The message begins with the key.
    """
    former: dict[str, str] = {}
    told: list[str] = []
    layers = values.get("n_layer")
    if (whole and values.get("model") == "GPT2MOE" and not values.get("moe_layers")
            and type(layers) is int):
        # As in GShard and Switch, every other layer.
        values = {**values, "moe_layers": list(range(1, layers, 2))}
    if whole and legacy_gpt2.recognised(values):
        values, former, told = legacy_gpt2.translate(values)
    elif whole:
        values, told = legacy_neo.complete(values)
    values = legacy_neo.datasets(legacy_neo.microbatches(legacy_neo.local(values)))
    values, why = legacy_neo.experts(values)
    new: dict[str, Any] = {}
    for key, value in values.items():
        if key in UNSUPPORTED:
            if value:
                flag = f" (main.py --{key} {'finds' if key.startswith('auto_') else 'writes'} one)"
                raise UserError(f"{key}: not supported by this release; remove it or set it to "
                                f"{'false' if value is True else 'null'}{flag}")
            continue
        if key in UNNEEDED:
            why[key] = UNNEEDED[key]
            continue
        for name, meant in _renamed(key, value, values):
            if name != key:
                former[name] = key
            meant = _known_value(name, meant)
            if name in new and new[name] != meant:
                raise UserError(f"{key}: says {shown(meant)} where {name} says {shown(new[name])}; "
                                f"keep {name}")
            new[name] = meant
    notes = []
    if why:
        reasons = "; ".join(f"{key} ({reason})" for key, reason in why.items())
        notes.append(f"not needed and ignored: {reasons}")
    return new, former, [*told, *notes]


def _renamed(key: str, value: Any, values: dict[str, Any]) -> list[tuple[str, Any]]:
    """The (key, value) pairs of today that say what a pair of `values` says."""
    if key == "axial_pos_emb":
        sizes = [("axial_dims", value)] if value is not True else []
        return [("position", "axial"), *sizes] if value else []
    if key not in SWITCHES:
        return [(RENAMED.get(key, key), value)]
    name, on, off = SWITCHES[key]
    if value not in (True, False, None):
        raise UserError(f"{key}: must be true or false, not {shown(value)}; "
                        f"the key is now {name}: {shown(on)} or {shown(off)}")
    # Beside axial positions, no rotary ones are not learned ones.
    if value is None or (key == "rotary_emb" and not value and values.get("axial_pos_emb")):
        return []
    return [(name, on if value else off)]


def _known_value(key: str, value: Any) -> Any:
    if value is None or isinstance(value, str):
        return VALUES.get((key, value), value)
    return value
