"""Configs of mesh-transformer-jax and gpt-c, in the terms of this project.

Batches are given there per replica, schedules by the length of their parts, data by index files in
`data/`. `configs/convert.py` writes what comes of it.
"""

import dataclasses
import re
from typing import Any

from configs.errors import UserError
from configs.messages import shown

# A key that every config of theirs has and no other program's.
TELL_TALE = "d_model"

RENAMED = {
    "layers": "n_layer", "d_model": "n_embd", "n_heads": "n_head", "n_vocab": "n_vocab",
    "seq": "n_ctx", "lr": "lr", "weight_decay": "weight_decay", "warmup_steps": "warmup_steps",
    "total_steps": "train_steps", "ckpt_every": "steps_per_checkpoint", "val_batches": "eval_steps",
    "keep_every": "keep_every",
}
# Their norms and what is not carried over of them.
NORMS = {
    "layernorm": ("layer", ""), "layernorm-desync": ("layer", ""),
    "layernorm-nobias": ("layer", "norms without bias: here they have one"),
    "rmsnorm": ("rms", ""), "rmsnorm-bias": ("rms", "the norms' bias"),
    "scalenorm": ("scale", ""), "scalenorm-bias": ("scale", "the norms' bias"),
}
# What their code fixes.
FIXED = {
    "opt_name": "adamw", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "lr_decay": "cosine",
    "gradient_clipping": 1.0, "precision": "bfloat16", "recompute_grad": True,
    "no_weight_tie": True, "scale_by_depth": True, "pad_masked": False, "z_loss": 1e-4,
}
# Those that only a language model has.
_OF_MODEL = ("no_weight_tie", "scale_by_depth", "pad_masked", "z_loss")
# Their blocks.
PARALLEL = {"parallel_residual": True, "rotary_style": "interleaved"}
# Keys of theirs that decide no more than what others say here, or nothing.
LOST = {
    "wandb_project": "--wandb PROJECT logs a run there",
    "eval_harness_tasks": "eval_tasks takes files of items",
    "noise_scale_alpha": "the noise scale is not measured",
    "early_cast": "weights are float32, and cast where they are used",
    "early_collect": "the order of sums over devices is Mesh TensorFlow's",
    "bf16_optimizer": "the optimizer's state is float32",
    "eval_only": "--eval evaluates",
    "val_batch_multiplier": "eval_batch_size says it",
}
# Keys that are read together with others.
_READ = {"pe", "pe_rotary_dims", "rotary_dims", "norm", "clip", "cores_per_replica", "tpu_size",
         "per_replica_batch", "batch_size", "gradient_accumulation_steps", "anneal_steps", "end_lr",
         "val_every", "bucket", "model_dir", "train_set", "val_set", "name", "comment", "d_head"}

# (encoder, its ids, its end of text) of index files, whose names tell.
GPT2, CLIP = ("gpt2", 50257, 50256), ("clip", 49408, 49407)


@dataclasses.dataclass
class Converted:
    """A config of this project, what was changed on the way, and what could not be carried over."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    changed: list[str] = dataclasses.field(default_factory=list)
    lost: list[str] = dataclasses.field(default_factory=list)

    def take(self, old: str, **new: Any) -> None:
        """Adds keys of this project, which `old` has become."""
        self.values.update(new)
        written = ", ".join(f"{key} {shown(value)}" for key, value in new.items())
        if written == old:
            return
        self.changed.append(f"{old} → {written}")


def convert(old: dict[str, Any]) -> Converted:
    """A config of theirs as one of this project.

    Args:
        old: its keys and values.

    Raises:
        UserError: a key is missing, of the wrong type or unknown.
    """
    unknown = [key for key in old if key not in {*RENAMED, *LOST, *_READ}]
    if unknown:
        raise UserError(f"{unknown[0]}: no key of mesh-transformer-jax or gpt-c; remove it")
    found = Converted()
    student = "rotary_dims" in old and "pe" not in old
    for key, name in RENAMED.items():
        if key in old:
            found.take(f"{key} {shown(old[key])}", **{name: old[key]})
    (_student if student else _model)(old, found)
    _batch(old, student, found)
    _schedule(old, found)
    _data(old, found)
    found.take("what its code fixes", **(
        {key: value for key, value in FIXED.items() if not student or key not in _OF_MODEL}))
    found.lost += [f"{key}: {LOST[key]}" for key in LOST if old.get(key)]
    _describe(old, found)
    return found


def _number(old: dict[str, Any], key: str, default: int | None = None) -> int:
    value = old.get(key, default)
    if type(value) is not int or value < 1:
        raise UserError(f"{key}: must be a whole number, 1 or more, not {shown(value)}")
    return value


def _model(old: dict[str, Any], found: Converted) -> None:
    """Positions, norms, blocks and supervision."""
    kind = old.get("pe", "rotary")
    if kind == "rotary":
        size = old.get("pe_rotary_dims", 0)
        found.take(f"pe \"rotary\", pe_rotary_dims {shown(size)}", position="rotary",
                   rotary_dims=size)
    else:
        found.take(f"pe {shown(kind)}", position="learned")
        if kind != "fixed":
            found.lost.append(f"pe {shown(kind)}: the relative bias; positions are learned now")
    named = old.get("norm", "layernorm")
    norm, lost = NORMS.get(str(named), (None, ""))
    if norm is None:
        raise UserError(f"norm: {shown(named)} is none of {', '.join(NORMS)}")
    found.take(f"norm {shown(named)}", norm=norm)
    if lost:
        found.lost.append(f"norm {shown(old['norm'])}: {lost}")
    found.take("its blocks", **PARALLEL)
    found.lost.append("attention without biases, and its own standard deviations of initial weights"
                      ": they are GPT-2's here")
    found.lost.append("its z-loss is of the logits less the largest one; z_loss is of the logits")
    head = old.get("d_head")
    if head is not None and _number(old, "d_head") * _number(old, "n_heads") != old["d_model"]:
        found.lost.append(f"d_head {head}: the size of a head is n_embd / n_head here")
    found.take("rows of its token table", pad_vocab_multiple=32)
    if "clip" in old:  # its code asks whether the key is there, whatever its value
        found.take(f"clip {shown(old['clip'])}", model="gpt_c",
                   clip={"student": "runs/text_clip", "mode": "input"})
        found.lost.append("clip: the student's checkpoint, which its code names; clip.student "
                          "names a run of ours (docs/replicate.md)")


def _student(old: dict[str, Any], found: Converted) -> None:
    """gpt-c's student of CLIP's text tower."""
    found.take(f"rotary_dims {shown(old['rotary_dims'])}", model="clip_student", position="rotary",
               rotary_dims=old["rotary_dims"], activation_function="quick_gelu")
    found.take("windows of 75 tokens, its code's", n_ctx=600, n_vocab=CLIP[1],
               clip={"teacher": "runs/clip_vit_b32", "window": 75})
    found.lost.append("CLIP's weights, which its code names; clip.teacher names a run that "
                      "main.py --import_from makes")


def _batch(old: dict[str, Any], student: bool, found: Converted) -> None:
    """The batch of all replicas and the mesh."""
    steps = _number(old, "gradient_accumulation_steps", 1)
    if student:
        batch = _number(old, "batch_size")
        found.take(f"batch_size {batch}, gradient_accumulation_steps {steps}",
                   train_batch_size=batch * steps, eval_batch_size=batch)
        return
    cores, size = _number(old, "cores_per_replica"), _number(old, "tpu_size", 8)
    if size % cores:
        raise UserError(f"cores_per_replica: {cores} does not divide tpu_size {size}")
    rows, replicas = _number(old, "per_replica_batch"), size // cores
    found.take(f"per_replica_batch {rows}, tpu_size {size}, cores_per_replica {cores}, "
               f"gradient_accumulation_steps {steps}",
               train_batch_size=rows * replicas * steps, eval_batch_size=rows * replicas,
               mesh_shape=f"x:{replicas},y:{cores}",
               layout="batch:x,heads:y,vocab:y,intermediate_expanded:y")
    if steps > 1:
        found.take("gradient_accumulation_steps", tokens_per_mb_per_replica=rows * _number(
            old, "seq"))


def _schedule(old: dict[str, Any], found: Converted) -> None:
    """The end of annealing, its floor, and when evaluations are."""
    warmup, anneal = old.get("warmup_steps", 0), old.get("anneal_steps")
    if type(anneal) is int and type(warmup) is int:
        found.take(f"anneal_steps {anneal}, counted from the end of warm-up",
                   lr_decay_end=warmup + anneal)
    peak, end = old.get("lr"), old.get("end_lr")
    if isinstance(peak, int | float) and isinstance(end, int | float) and peak > 0:
        found.take(f"end_lr {shown(end)}", lr_min_ratio=round(end / peak, 12))
    every = old.get("val_every")
    if every is not None:
        same = every == old.get("ckpt_every")
        (found.changed if same else found.lost).append(
            f"val_every {shown(every)}: evaluations are at checkpoints, every steps_per_checkpoint")


def _data(old: dict[str, Any], found: Converted) -> None:
    """Index files, which list shards, and where the run lies."""
    index, sets = old.get("train_set"), old.get("val_set") or {}
    if not isinstance(sets, dict):
        raise UserError(f"val_set: must be index files by name, not {shown(sets)}")
    if index:
        # Without dots, which --set reads as sections.
        name = re.sub(r"[^\w-]+", "_", str(index).removesuffix(".index").removesuffix(".train"))
        encoder, ids, end = CLIP if "clip" in name else GPT2
        dataset = {"path": f"data/{index}", "encoder": encoder, "n_vocab": ids, "eos_id": end}
        if sets:
            dataset["eval_path"] = f"data/{next(iter(sets.values()))}"
        found.take(f"train_set {shown(index)} and val_set", datasets=[[name, 1, "chunks", 1.0]],
                   inline_datasets={name: dataset})
        found.changed.append(f"the encoder {encoder}, for the name {name}: correct it in "
                             "inline_datasets if the shards are of another")
    for other, place in list(sets.items())[1:] if index else ():
        found.lost.append(f"val_set {other}: a run has one validation split; main.py --eval --set "
                          f"inline_datasets.{name}.eval_path=data/{place} evaluates on it")
    if not sets or not old.get("val_batches"):
        found.take("no val_set or val_batches", eval_steps=0)
    bucket, folder = old.get("bucket"), old.get("model_dir", old.get("name", "run"))
    found.take("bucket and model_dir",
               model_path=f"gs://{bucket}/{folder}" if bucket else str(folder))


def _describe(old: dict[str, Any], found: Converted) -> None:
    lines = [str(old[key]) for key in ("name", "comment") if old.get(key)]
    found.take("name and comment", about=[*lines, "Converted from mesh-transformer-jax's config."])
