"""The names of the scalars that TensorBoard shows of a run, which users' own tools may read.

None may go, or come unnoticed: add new ones here.
"""

import os
import re

import jobs
from tensorboard.plugins.custom_scalar import layout_pb2

from mesh.compat import tf

_ALWAYS = "loss learning_rate tokens_per_second epoch gradient_norm parameter_norm"
_LANGUAGE = "loss/lm perplexity bits_per_byte bits_per_decoded_byte"
_GROUPS = "embeddings attention mlp norms"
_TRAINED = {  # by kind: scalars of training, and groups of weights
    "gpt": (_LANGUAGE, _GROUPS), "masked": ("loss/mlm", _GROUPS),
    "gpt_c": (f"{_LANGUAGE} loss/clip weight/clip", f"{_GROUPS} clip_projection"),
    "gpt_c input": (_LANGUAGE, f"{_GROUPS} clip_projection"),
    "clip": ("loss/contrastive", f"{_GROUPS} head convolutions other"),
    "student": ("loss/windows_mse loss/beyond_mse", f"{_GROUPS} head"),
    "text_student": (f"{_LANGUAGE} loss/moments", f"{_GROUPS} head"),
}
_EVALUATED = {
    "gpt": _LANGUAGE, "masked": "loss/mlm mlm_perplexity mlm_accuracy",
    "gpt_c": f"{_LANGUAGE} loss/clip clip_cosine",
    "gpt_c input": _LANGUAGE,
    "clip": "loss/contrastive caption_to_picture picture_to_caption",
    "student": "loss/windows_mse loss/beyond_mse retrieval " + " ".join(
        f"{name}_{part}" for part in ("windows", "beyond") for name in (
            "cosine", "mean_vector_cosine", "mse", "r2", "uncentred_cosine", "variance")),
    "text_student": f"{_LANGUAGE} loss/moments",
}
# Which are shown on no chart of the custom-scalars page.
_OFF_PAGE = re.compile("parameter_norm|bits_per_decoded_byte|retrieval|mse_.*|.*_cosine_.*"
                       "|variance_.*|zero_shot/.*/chance|tasks/.*")
# Charts of what not every run has.
_OPTIONAL = ("^mfu$", "^tasks/[^/]*/acc$", "^tasks/[^/]*/spearman$", "^zero_shot/[^/]*$")


def check(kind, model_path, more=()):
    """Checks what a run of a kind, with evaluations, has written.

    Args:
      kind: a key of _TRAINED.
      model_path: the run's directory.
      more: names of scores that its config asks for.
    """
    names, groups = (text.split() for text in _TRAINED[kind])
    trained, evaluated = jobs.scalars(model_path), jobs.scalars(os.path.join(model_path, "eval"))
    assert set(trained) == {*_ALWAYS.split(), *names, *(
        f"{of}_norm/{group}" for of in ("gradient", "parameter") for group in groups)}
    assert set(evaluated) == {"loss", *_EVALUATED[kind].split(), *more}
    shown, on_page = {*trained, *evaluated}, patterns(model_path)
    for name in shown:
        assert any(re.match(tag, name) for tag in on_page) or _OFF_PAGE.fullmatch(name), name
    for tag in on_page:
        assert tag in _OPTIONAL or any(re.match(tag, name) for name in shown), tag


def patterns(model_path):
    """The patterns of the charts of a run's custom-scalars page."""
    value, = jobs._events(model_path).Tensors("custom_scalars__config__")
    page = layout_pb2.Layout.FromString(tf.make_ndarray(value.tensor_proto).item())
    return [tag for category in page.category for chart in category.chart
            for tag in chart.multiline.tag]
