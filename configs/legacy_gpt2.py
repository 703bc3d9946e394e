"""Configs of ConnorJL/GPT2: recognised by their own keys, and rewritten into this project's.

That trainer reads `input`, a named input function over the shards in `data_path`, and trains for
`max_steps` with an evaluation every `train_steps`. A config is taken for one of its if it has a key
of `TELL_TALES` and no `datasets`, which every GPT-Neo config has. A key that is null is absent.

Configs of the first weeks of GPT-Neo, before it had meshes, are of this trainer too: they have
`max_steps`, and `datasets` with globs of shards.
"""

from typing import Any

from configs import legacy_neo
from configs.errors import UserError
from configs.messages import did_you_mean, shown

TELL_TALES = ("input", "data_path", "datapath", "max_steps")

# What a key is where the config does not have it, as that trainer's README advises.
DEFAULTS = {
    "n_ctx": 1024, "n_vocab": 50257, "lr": 2.5e-4, "beta2": 0.98, "epsilon": 1e-9,
    "iterations": 100, "embed_dropout": 0.1, "attn_dropout": 0.1, "res_dropout": 0.1,
    "scale_by_depth": True, "scale_by_in": True, "weight_decay": 0.0, "precision": "float32",
}
WARMUP_STEPS = 2000
HEAD_SIZE = 64

# What is fixed in its code: half a cosine that ends at zero, and gradients of any size.
FIXED = {"lr_decay": "cosine", "lr_min_ratio": 0.0, "gradient_clipping": 0.0}

# Of each input: (dataset's id, name of its shards, documents joined, share of windows).
_ALL = ("openwebtext", "openwebtext-newspaper", 42)
_LONG = ("openwebtext_long", "openwebtext-newspaper-long", 2)
INPUTS = {
    "openwebtext": ((*_ALL, 1.0),),
    "openwebtext_long": ((*_LONG, 1.0),),
    "openwebtext_longbiased": ((*_ALL, 0.3), (*_LONG, 0.7)),
}

# The numbers of the shards of OpenWebText that its input functions keep for evaluations.
HELD_OUT = (1, 2, 11, 12, 16, 34, 36, 58, 60, 61, 62, 67, 83)
END_OF_TEXT = 50256

# Keys that say together where the data are.
_OF_DATA = ("input", "data_path", "datapath", "encoder_path", "dataset", "stitch")
_RENAMED = {"max_steps": "train_steps", "train_steps": "steps_per_checkpoint"}
# Before there were scale_by_depth and scale_by_in, the scale of what adds to the residual stream.
OLD_SCALE = "scale"


def recognised(values: dict[str, Any]) -> bool:
    """Whether a config is ConnorJL/GPT2's rather than GPT-Neo's or this project's."""
    if "datasets" in values and values.get("input") != "generic_text":
        return (legacy_neo.named_by_globs(values) and values.get("max_steps") is not None
                and not values.get("mesh_shape"))
    # generic_text reads `dataset`, and calls it `datasets` where it says so.
    return any(key in values for key in TELL_TALES)


def translate(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Rewrites a whole config.

    Returns:
        (values under GPT-Neo's or this project's names, former name by key for the renamed, notes).

    Raises:
        UserError: the total of steps, the data or the number of heads are missing, the input is not
            known, or two keys disagree.
    """
    values = {key: value for key, value in values.items() if value is not None}
    if "max_steps" not in values:
        raise UserError("max_steps: missing; in a ConnorJL/GPT2 config, which this is by its key "
                        f"{_tell_tale(values)}, it is the total of steps, and train_steps are "
                        "those between evaluations")
    new = {_RENAMED.get(key, key): value for key, value in values.items() if key not in _OF_DATA}
    former = {name: key for key, name in _RENAMED.items() if key in values}
    absent = {key: value for key, value in _defaults(values).items() if key not in values}
    fixed = {key: value for key, value in FIXED.items() if key not in values}
    new = {**absent, **fixed, **new}
    new, scaled = _old_scale(values, new)
    if legacy_neo.named_by_globs(values):
        new.update({key: values[key] for key in _OF_DATA if key in values})
    else:
        new.update(_data(values, new["n_vocab"]))
        scaled += _notes_of_data(values, new)
        former.update(dict.fromkeys(("datasets", "inline_datasets"), "input and data_path"))
    listed = ", ".join(f"{key} {shown(value)}" for key, value in {**absent, **fixed}.items())
    notes = [f"read as a config of ConnorJL/GPT2, for its key {_tell_tale(values)}: max_steps is "
             "train_steps here, and its train_steps are steps_per_checkpoint"]
    if listed:
        notes.append(f"ConnorJL/GPT2's own values for absent keys: {listed}")
    return new, former, [*notes, *scaled]


def _tell_tale(values: dict[str, Any]) -> str:
    return next(key for key in TELL_TALES if key in values)


def _defaults(values: dict[str, Any]) -> dict[str, Any]:
    """DEFAULTS, and those that follow from other keys."""
    found = dict(DEFAULTS)
    if OLD_SCALE in values:
        del found["scale_by_depth"], found["scale_by_in"]
    found["beta1"] = 0.9
    if values.get("opt_name") == "adafactor":
        found["beta1"] = 0.0
        unread = ["epsilon"] if values.get("decay_type") == "adam" else ["epsilon", "beta2"]
        for key in unread:
            del found[key]
    steps, width = values["max_steps"], values.get("n_embd")
    found["warmup_steps"] = min(WARMUP_STEPS, steps) if type(steps) is int else WARMUP_STEPS
    if type(width) is int and not {"n_head", "n_heads"} & set(values):
        if width % HEAD_SIZE:
            raise UserError(f"n_head: missing; it would be n_embd / {HEAD_SIZE}, and n_embd "
                            f"{width} is no multiple of {HEAD_SIZE}")
        found["n_head"] = width // HEAD_SIZE
    return found


def _old_scale(values: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`new` with what `scale` says of weights' first values, and notes.

    It multiplied the standard deviations that scale_by_depth divides by √n_layer, which was its
    own default; and nothing depended on a layer's inputs, as with scale_by_in.
    """
    if OLD_SCALE not in values:
        return new, []
    scale, layers = values[OLD_SCALE], values.get("n_layer")
    new = {key: value for key, value in new.items() if key != OLD_SCALE}
    if {"scale_by_depth", "scale_by_in"} & set(values):
        return new, ["not needed and ignored: scale (scale_by_depth and scale_by_in say it)"]
    known = {1.0: False, layers ** -0.5 if type(layers) is int and layers > 0 else 1.0: True}
    by_depth = next((value for size, value in known.items()
                     if isinstance(scale, int | float) and abs(scale - size) < 1e-3 * size), None)
    if by_depth is None:
        raise UserError(f"scale: {shown(scale)} is neither 1 nor 1/√n_layer; write scale_by_depth "
                        "and scale_by_in in its place")
    said = {"scale_by_depth": by_depth, "scale_by_in": False}
    listed = ", ".join(f"{key} {shown(value)}" for key, value in said.items())
    return {**new, **said}, [f"scale, of versions before these keys: {listed}"]


def _data(values: dict[str, Any], n_vocab: Any) -> dict[str, Any]:
    """The keys `datasets` and `inline_datasets`, or `input_fn` for an input of the user's own."""
    name = values.get("input", "openwebtext")
    folder = values.get("data_path", values.get("datapath"))
    if folder != values.get("datapath", folder):
        raise UserError(f"datapath: says {shown(values['datapath'])} where data_path says "
                        f"{shown(folder)}; keep data_path")
    if name == "generic_text":
        return _generic(values, n_vocab)
    if not isinstance(name, str) or name not in INPUTS:
        if isinstance(name, str) and not did_you_mean(name, INPUTS):
            return {"input_fn": name, **_of_own(folder, values, n_vocab)}
        raise UserError(f"input: {shown(name)} is none of {', '.join(INPUTS)}"
                        f"{did_you_mean(str(name), INPUTS)}; an input function of your own is an "
                        "entry of INPUT_FUNCTIONS in inputs.py, which the key input_fn names")
    if not isinstance(folder, str):
        raise UserError("data_path: missing; give the directory of the shards, or a list datasets")
    entries, inline = [], {}
    for dataset, shards, stitch, weight in INPUTS[name]:
        entries.append([dataset, stitch, "documents_random", weight])
        inline[dataset] = {"path": f"{folder.rstrip('/')}/{shards}_[0-9]*.tfrecords",
                           "held_out_shards": list(HELD_OUT), **_tokens(values, n_vocab)}
    return {"datasets": entries, "inline_datasets": inline}


def _of_own(folder: Any, values: dict[str, Any], n_vocab: Any) -> dict[str, Any]:
    """What a user's own input function may read: the shards' directory, and the encoder."""
    if not isinstance(folder, str):
        return {}
    return {"datasets": ["data_path"], "inline_datasets": {
        "data_path": {"path": f"{folder.rstrip('/')}/*.tfrecords", **_tokens(values, n_vocab)}}}


def _notes_of_data(values: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines about keys of data that the input does not read, and about what it lacks."""
    generic = values.get("input") == "generic_text"
    reasons = dict.fromkeys(("data_path", "datapath"), "dataset names files") if generic else {
        **dict.fromkeys(("dataset", "stitch"), "only input generic_text reads it"),
        **({} if "datasets" in new else {"encoder_path": "without data_path nothing says what the "
                                                         "encoder has made"})}
    listed = [f"{key} ({why})" for key, why in reasons.items() if key in values]
    notes = [f"not needed and ignored: {'; '.join(listed)}"] if listed else []
    if generic and new["eval_steps"] != values.get("eval_steps", 0):
        notes.append("eval_steps: 0, for input generic_text names no shards for evaluation; an "
                     "eval_path in inline_datasets does")
    return notes


def _generic(values: dict[str, Any], n_vocab: Any) -> dict[str, Any]:
    """`generic_text`'s `dataset`: pairs of (list of files, weight), all with one `stitch`."""
    parts = values.get("dataset", values.get("datasets"))
    if not isinstance(parts, list) or not parts or not all(
            isinstance(part, list) and len(part) == 2 for part in parts):
        raise UserError("dataset: input generic_text needs a list of [[files], weight], not "
                        f"{shown(parts)}")
    names = [f"dataset_{number}" for number in range(len(parts))]
    return {
        "eval_steps": 0,
        "datasets": [[name, values.get("stitch", 1), "documents_random", weight]
                     for name, (_, weight) in zip(names, parts, strict=True)],
        "inline_datasets": {name: {"path": files, **_tokens(values, n_vocab)}
                            for name, (files, _) in zip(names, parts, strict=True)}}


def _tokens(values: dict[str, Any], n_vocab: Any) -> dict[str, Any]:
    """What a dataset's JSON says of its ids: documents end without an end of text."""
    path = values.get("encoder_path")
    facts = {"encoder": f"gpt2:{path}" if path else "gpt2", "n_vocab": n_vocab}
    if type(n_vocab) is int and n_vocab > END_OF_TEXT:
        facts.update(eos_id=END_OF_TEXT, separator=END_OF_TEXT)
    return facts
