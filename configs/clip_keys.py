"""The section `clip` of a run config: what CLIP's kinds of runs have beyond a GPT's keys."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from configs import values
from configs.errors import UserError
from configs.keys import Keys

Layers = Annotated[list[int | Literal["last"]], BeforeValidator(values.supervised_layers)]


class ClipKeys(Keys):
    """The keys inside of the section."""

    out: int | None = Field(
        None, ge=1, description="Width of the embeddings that pictures and texts share, or of what "
                                "a student of texts alone says; null is n_embd.")
    image_tower: Literal["conv", "vit"] = Field(
        "conv", description="A small convolutional network or a vision transformer.")
    image_size: int = Field(
        32, ge=8, description="Pixels of a picture's side.")
    image_channels: list[int] = Field(
        [32, 64, 128], description="Features after each convolution, which halves the side; "
                                   "multiples of 8.")
    image_pool: Literal["mean", "flatten"] = Field(
        "flatten", description="Whether the convolutions' last features are averaged over the "
                               "picture, or all projected, which tells where things are.")
    image_patch: int = Field(8, ge=1, description="Pixels of a side of the transformer's patches.")
    image_width: int = Field(64, ge=1, description="Width of the vision transformer.")
    image_layers: int = Field(2, ge=1, description="Blocks of the vision transformer.")
    image_heads: int = Field(4, ge=1, description="Attention heads of the vision transformer.")

    zero_shot: str | None = Field(
        None, min_length=1, description="JSONL file of tasks: pictures with a label each and "
                                        "prompts for the classes, of which each evaluation says "
                                        "how often the model finds the right one.")
    probe_words: Annotated[list[str], BeforeValidator(values.probe_words)] = Field(
        [], description="Words, or texts, of which each evaluation draws how alike the model "
                        "finds them; of a student, beside its teacher; of a GPT-C whose loss is "
                        "supervised, what it projects of them beside its student.")

    teacher: str | None = Field(
        None, min_length=1, description="Directory of the CLIP run that teaches; it is copied into "
                                        "model_path.")
    window: int = Field(
        75, ge=2, description="Tokens that the student sees in each layer, and the longest text "
                              "that the teacher is asked about.")
    windows: int = Field(
        1, ge=0, description="Windows cut at random from each row, all of whose prefixes are "
                             "distilled.")
    positions: int = Field(
        26, ge=0, description="Random positions of each row at which the student, reading the "
                              "whole row, is distilled from the teacher's reading of the last "
                              "window of tokens.")

    distillation: Literal["mse", "cosine", "mse+cosine"] = Field(
        "mse", description="How the student's outputs are compared with the teacher's.")

    student: str | None = Field(
        None, min_length=1, description="Directory of the clip_student run that supervises; it is "
                                        "copied into model_path.")
    mode: Literal["loss", "input"] = Field(
        "loss", description="Whether the student's outputs supervise the GPT, or join the input "
                            "of its first block.")
    loss: Literal["contrastive", "mse", "cosine", "relational"] = Field(
        "contrastive", description="How a projection of the GPT's hidden states is compared with "
                                   "the student's outputs.")
    layer: Layers = Field(
        ["last"], description='Whose output is supervised: "last" is the final norm\'s, 1 the '
                              "first block's; or a list of these, whose losses are averaged.")
    weight: float = Field(
        0.05, ge=0, description="Weight of the supervision in the loss; with 0 it is not built. A "
                                "run of a few hundred steps needs more, 0.2 for example.")
    weight_warmup: int = Field(
        0, ge=0, description="Steps over which the weight rises to its value.")
    weight_end: int | None = Field(
        None, ge=1, description="Step at which the weight, falling linearly since its warm-up, has "
                                "become 0; null keeps it.")
    target: int = Field(
        0, ge=0, description="How many tokens ahead the student's output is taken; 0 is the same "
                             "token's.")
    samples: int = Field(
        256, ge=2, description="Positions of a batch that contrastive and relational losses "
                               "compare, spread evenly over its rows.")
    temperature: float = Field(
        0.1, gt=0, description="Temperature of the contrastive loss.")
    control: Literal["none", "shuffled", "text_only"] = Field(
        "none", description='Of a GPT-C "shuffled": the student reads another row of the batch, to '
                            "see what its knowledge of this one is worth. Of a student "
                            '"text_only": it has no teacher, and learns to predict the next '
                            "token.")


class ClipSection(Keys):
    """CLIP"""

    clip: ClipKeys = Field(
        default_factory=ClipKeys, description="What the kinds of CLIP runs have beyond a GPT's "
                                              "keys; the table below.")


_IMAGE = tuple(name for name in ClipKeys.model_fields if name.startswith("image_"))

# The keys that decide the shapes of a CLIP model.
TOWER_KEYS = ("out", *_IMAGE)

# The keys of each kind of run.
KEYS_OF = {
    "GPT": (),
    "clip": (*TOWER_KEYS, "zero_shot", "probe_words"),
    "clip_student": ("teacher", "window", "windows", "positions", "distillation",
                     "probe_words", "control"),
    "gpt_c": ("student", "mode", "loss", "layer", "weight", "weight_warmup", "weight_end",
              "target", "samples", "temperature", "control", "probe_words"),
}

# Those of a GPT-C whose loss is supervised.
_OF_LOSS = tuple(key for key in KEYS_OF["gpt_c"] if key not in ("student", "mode"))

# Those of a student that learns from texts alone.
_TEXT_ONLY_KEYS = ("out", "window", "control")

# Keys of a GPT that the CLIP towers have nothing for, with what the towers have.
_NOT_OF_TOWERS = {
    "embed_dropout": 0.0, "res_dropout": 0.0, "attn_dropout": 0.0, "no_weight_tie": False,
    "scale_by_depth": False, "scale_by_in": False, "initializer_range": 0.02, "norm": "layer",
    "rezero": False, "parallel_residual": "none", "macaron": False, "mlp_glu": False,
    "intermediate_size": 0, "share_parameters": False, "rotary_base": 10000.0,
    "rotary_style": "halves",
}


def keys_of(config: Any) -> tuple[str, ...]:
    """The section's keys that a run of its kind has."""
    return _TEXT_ONLY_KEYS if config.text_only else KEYS_OF[config.model]


def check(config: Any) -> None:
    """Refuses a section that does not belong to the kind of model, or lacks what it needs.

    Raises:
        UserError: names the key and the remedy.
    """
    for key in sorted(config.clip.model_fields_set):
        if key in keys_of(config):
            continue
        if config.text_only:
            raise UserError(f'clip.{key}: a student with clip.control "text_only" learns from '
                            "texts alone and has none of it; remove it")
        kinds = [kind for kind, names in KEYS_OF.items() if key in names]
        raise UserError(f"clip.{key}: belongs to model {' or '.join(kinds)}, not {config.model}; "
                        "remove it")
    if config.model == "GPT":
        return
    {"clip": _check_clip, "clip_student": _check_student, "gpt_c": _check_gpt_c}[config.model](
        config)


def _check_tower(config: Any, position: str) -> None:
    if config.eval_tasks:
        raise UserError(f"eval_tasks: model {config.model} is no language model; remove it")
    for key, value in _NOT_OF_TOWERS.items():
        if getattr(config, key) != value:
            raise UserError(f"{key}: model {config.model} has none of it; remove it")
    if config.position != position:
        raise UserError(f'position: model {config.model} has "{position}" positions; set it so')


def _check_clip(config: Any) -> None:
    _check_tower(config, "learned")
    if config.activation_function not in ("quick_gelu", "gelu_exact"):
        raise UserError("activation_function: CLIP has quick_gelu (OpenAI's) or gelu_exact")
    if config.n_ctx < 3:
        raise UserError("n_ctx: is the longest text with its start and end token, so 3 or more")
    clip = config.clip
    if clip.image_tower == "conv" and any(c < 8 or c % 8 for c in clip.image_channels):
        raise UserError(f"clip.image_channels: {clip.image_channels} must be multiples of 8")
    if clip.image_tower == "vit" and clip.image_size % clip.image_patch:
        raise UserError(f"clip.image_patch: {clip.image_patch} does not divide image_size = "
                        f"{clip.image_size}")
    if clip.image_tower == "vit" and clip.image_width % clip.image_heads:
        raise UserError(f"clip.image_heads: {clip.image_heads} does not divide image_width = "
                        f"{clip.image_width}")


def _check_student(config: Any) -> None:
    _check_tower(config, "rotary")
    clip = config.clip
    if clip.control == "shuffled":
        raise UserError('clip.control: "shuffled" is for model gpt_c; a student has "text_only"')
    if config.n_ctx < clip.window:
        raise UserError(f"n_ctx: {config.n_ctx} is less than clip.window = {clip.window}")
    if config.text_only:
        return
    if not clip.teacher:
        raise UserError("clip.teacher: missing; give the model_path of a CLIP run")
    if not clip.windows and not clip.positions:
        raise UserError("clip.windows: is 0, and so is clip.positions: nothing is distilled")
    if clip.positions and config.n_ctx <= clip.window:
        raise UserError(f"n_ctx: {config.n_ctx} leaves nothing past the window of {clip.window} "
                        "tokens to read; make it several windows, or set clip.positions to 0")


def _check_gpt_c(config: Any) -> None:
    clip = config.clip
    if not clip.student:
        raise UserError("clip.student: missing; give the model_path of a clip_student run")
    if clip.mode == "input":
        for key in _OF_LOSS:
            # A run's own config.json names all keys.
            if getattr(clip, key) != ClipKeys.model_fields[key].get_default(
                    call_default_factory=True):
                raise UserError(f'clip.{key}: belongs to the supervision of clip.mode "loss"; '
                                'with "input" there is none; remove it')
    if not clip.layer or len(set(clip.layer)) < len(clip.layer):
        raise UserError(f'clip.layer: {clip.layer} must name at least one layer, and each once, '
                        'such as ["last", 2]')
    for layer in clip.layer:
        if layer != "last" and not 1 <= layer <= config.n_layer:
            raise UserError(f"clip.layer: {layer} is neither \"last\" nor one of the blocks 1 … "
                            f"{config.n_layer}")
    if clip.weight_end is not None and clip.weight_end <= clip.weight_warmup:
        raise UserError(f"clip.weight_end: {clip.weight_end} is not after the end of warm-up, "
                        f"weight_warmup = {clip.weight_warmup}")
    if clip.target >= config.n_ctx:
        raise UserError(f"clip.target: {clip.target} is not less than n_ctx = {config.n_ctx}")
    if clip.control == "text_only":
        raise UserError('clip.control: "text_only" is for model clip_student; give the model_path '
                        "of such a student as clip.student")
    if clip.control == "shuffled" and min(config.train_batch_size, config.eval_batch_size) < 2:
        raise UserError('clip.control: "shuffled" takes another row of the batch, and there is but '
                        "one; raise the batch sizes to 2 or more")
