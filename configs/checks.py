"""Checks between keys that need neither files nor TensorFlow."""

from typing import Any

from configs import clip_keys, moe_keys, optimizers
from configs.errors import UserError
from configs.layouts import LANGUAGE_MODELS, check_layout, idle_axes


def check(config: Any) -> list[str]:
    """Refuses a config whose keys contradict each other.

    Returns:
        notes for the user, on keys that are of no use.

    Raises:
        UserError: names the first key that has to change, and how.
    """
    _check_heads(config)
    _check_positions(config)
    _check_gate(config)
    _check_attention(config)
    _check_steps(config)
    _check_masked(config)
    _check_loss(config)
    _check_start(config)
    clip_keys.check(config)
    notes = moe_keys.check(config)
    check_layout(config)
    _check_devices(config)
    unread = optimizers.unread(config)
    if unread:
        notes.append(f"opt_name: {config.opt_name} does not read {', '.join(unread)}")
    notes += _unread(config)
    notes.extend(f"mesh_shape: no layout rule uses axis {axis}, so its devices repeat the same work"
                 for axis in idle_axes(config))
    return notes


def _unread(config: Any) -> list[str]:
    """Notes on keys that another key makes of no use."""
    masked = [key for key in type(config).model_fields
              if key.startswith("mlm_") and key != "mlm_training"]
    notes = []
    for key, without, keys in [
            ("position", config.position != "rotary",
             ["rotary_dims", "rotary_base", "rotary_style"]),
            ("lr_decay", config.lr_decay == "constant", ["lr_decay_end", "lr_min_ratio"]),
            ("mlm_training", not config.mlm_training, masked)]:
        given = [name for name in keys if name in config.model_fields_set
                 and getattr(config, name) != type(config).model_fields[name].default]
        if without and given:
            value = str(getattr(config, key)).lower()
            notes.append(f"{key}: {value} does not read {', '.join(given)}")
    return notes


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
            "softmax", "log_softmax", "logsoftmax", "crelu"):
        why = "gives two" if config.activation_function == "crelu" else "mixes"
        raise UserError(f"activation_function: {config.activation_function} is no gate, since it "
                        f"{why} features; take another or set mlp_glu to false")


def _check_attention(config: Any) -> None:
    if len(config.attention_types) != config.n_layer:
        raise UserError(f"attention_types: expands to {len(config.attention_types)} layers where "
                        f"n_layer is {config.n_layer}")
    kinds = set(config.attention_types)
    if config.model in ("clip", "clip_student") and (kinds != {"global"} or config.num_mem_kv):
        raise UserError(f"attention_types: model {config.model} has attention of its own; remove "
                        "it, and num_mem_kv")
    if config.position == "alibi" and "linear" in kinds:
        raise UserError("position: alibi changes scores, which linear attention does not have; "
                        "take other positions or other attention_types")
    if config.num_mem_kv and not kinds & {"global", "local"}:
        raise UserError("num_mem_kv: no layer of attention_types is global or local, and only "
                        "those have memories; set it to 0")


def _check_steps(config: Any) -> None:
    if config.warmup_steps > config.train_steps:
        raise UserError(f"warmup_steps: {config.warmup_steps} is more than train_steps = "
                        f"{config.train_steps}")
    if config.lr_decay in ("cosine", "linear") and config.lr_decay_end < config.warmup_steps:
        raise UserError(f"lr_decay_end: {config.lr_decay_end} is before the end of warm-up, "
                        f"warmup_steps = {config.warmup_steps}")


def _check_masked(config: Any) -> None:
    """What a masked language model cannot be, and ids and shares that contradict each other."""
    if not config.mlm_training:
        return
    if config.model != "GPT":
        raise UserError(f"mlm_training: model {config.model} has no masked language modelling; "
                        'set model to "GPT" or mlm_training to false')
    if config.eval_tasks:
        raise UserError("eval_tasks: a masked language model gives no likelihoods of "
                        "continuations; remove it, or set mlm_training to false")
    if config.position == "none":
        raise UserError("position: a model that sees both sides knows no order without positions; "
                        'give another than "none"')
    _check_masked_ids(config)
    if config.mlm_same_token_prob + config.mlm_random_token_prob > 1:
        raise UserError(f"mlm_random_token_prob: {config.mlm_random_token_prob} and "
                        f"mlm_same_token_prob = {config.mlm_same_token_prob} are more than 1 "
                        "together; they are shares of the same tokens")


def _check_masked_ids(config: Any) -> None:
    mask, first, last = config.mlm_mask_id, config.mlm_cls_token_id, config.n_vocab_padded - 1
    if mask > last:
        raise UserError(f"mlm_mask_id: {mask} is past the token table, whose last id is {last} "
                        f"(n_vocab = {config.n_vocab}, padded to a multiple of "
                        "pad_vocab_multiple); give another id, or raise n_vocab by 1")
    for key, ids in [("mlm_cls_token_id", [] if first is None else [first]),
                     ("mlm_mask_ignore_ids", config.mlm_mask_ignore_ids)]:
        for number in ids:
            if not 0 <= number <= last:
                raise UserError(f"{key}: {number} is no id of the token table, whose last id is "
                                f"{last}")
    if first == mask:
        raise UserError(f"mlm_cls_token_id: {first} is the mask's id, mlm_mask_id; give another")
    if first is not None and config.n_ctx < 2:
        raise UserError("n_ctx: 1 has room for mlm_cls_token_id alone; give 2 or more")


def _check_loss(config: Any) -> None:
    if config.entmax_alpha > 1 and config.label_smoothing:
        raise UserError("label_smoothing: the loss of entmax_alpha has none; set one of the two "
                        "to its default")
    if 1 < config.entmax_alpha < 1.01:
        raise UserError(f"entmax_alpha: {config.entmax_alpha} is too near to the softmax to tell "
                        "them apart; give 1, or 1.01 to 2")
    for key, off in (("z_loss", 0), ("label_smoothing", 0), ("entmax_alpha", 1),
                     ("entmax_sampling", False)):
        if getattr(config, key) != off and not (config.speaks or config.mlm_training):
            raise UserError(f"{key}: model {config.model} is no language model; remove the key")


def _check_start(config: Any) -> None:
    if config.init_from and config.model not in LANGUAGE_MODELS:
        raise UserError(f"init_from: only language models take weights of another run, and not "
                        f"model {config.model}; remove it")
    if config.init_resize and not config.init_from:
        raise UserError("init_resize: there is no init_from whose sizes could differ; remove it")


def _check_devices(config: Any) -> None:
    if config.gpu_ids and len(config.gpu_ids) != config.mesh_size:
        raise UserError(f"gpu_ids: names {len(config.gpu_ids)} where mesh_shape "
                        f"{config.mesh_shape or '(one device)'} needs {config.mesh_size}")
    if len(set(config.gpu_ids)) != len(config.gpu_ids):
        raise UserError("gpu_ids: one GPU is named twice")
