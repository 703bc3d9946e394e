"""Checks between keys that need neither files nor TensorFlow."""

from typing import Any

from configs import clip_keys
from configs.errors import UserError
from configs.layouts import check_layout


def check(config: Any) -> None:
    """Refuses a config whose keys contradict each other.

    Raises:
        UserError: names the first key that has to change, and how.
    """
    _check_heads(config)
    _check_positions(config)
    _check_gate(config)
    _check_attention(config)
    _check_steps(config)
    clip_keys.check(config)
    check_layout(config)
    _check_devices(config)


def _check_heads(config: Any) -> None:
    if config.n_embd % config.n_head:
        raise UserError(f"n_head: {config.n_head} does not divide n_embd = {config.n_embd}")
    if config.rotary_dims > config.head_size:
        raise UserError(f"rotary_dims: {config.rotary_dims} is more than the size of a head, "
                        f"n_embd / n_head = {config.head_size}")
    if config.rotary_dims % 2:
        raise UserError(f"rotary_dims: {config.rotary_dims} is odd; features rotate in pairs")
    if config.position == "rotary" and not config.rotary_dims and config.head_size % 2:
        raise UserError(f"rotary_dims: the size of a head, {config.head_size}, is odd; "
                        "give an even rotary_dims")


def _check_positions(config: Any) -> None:
    if config.axial_dims is None:
        return
    if config.position != "axial":
        raise UserError(f'axial_dims: position is "{config.position}", which has none; remove it '
                        'or set position to "axial"')
    rows, columns = config.axial_dims
    if rows * columns != config.n_ctx:
        raise UserError(f"axial_dims: {rows} × {columns} is {rows * columns} and not n_ctx = "
                        f"{config.n_ctx}")


def _check_gate(config: Any) -> None:
    if config.mlp_glu and config.activation_function in (
            "softmax", "log_softmax", "logsoftmax"):
        raise UserError(f"activation_function: {config.activation_function} is no gate, since it "
                        "mixes features; take another or set mlp_glu to false")


def _check_attention(config: Any) -> None:
    if len(config.attention_types) != config.n_layer:
        raise UserError(f"attention_types: expands to {len(config.attention_types)} layers where "
                        f"n_layer is {config.n_layer}")


def _check_steps(config: Any) -> None:
    if config.warmup_steps > config.train_steps:
        raise UserError(f"warmup_steps: {config.warmup_steps} is more than train_steps = "
                        f"{config.train_steps}")
    if config.lr_decay in ("cosine", "linear") and config.lr_decay_end < config.warmup_steps:
        raise UserError(f"lr_decay_end: {config.lr_decay_end} is before the end of warm-up, "
                        f"warmup_steps = {config.warmup_steps}")


def _check_devices(config: Any) -> None:
    if config.gpu_ids and len(config.gpu_ids) != config.mesh_size:
        raise UserError(f"gpu_ids: names {len(config.gpu_ids)} where mesh_shape "
                        f"{config.mesh_shape or '(one device)'} needs {config.mesh_size}")
    if len(set(config.gpu_ids)) != len(config.gpu_ids):
        raise UserError("gpu_ids: one GPU is named twice")
