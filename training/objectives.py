"""The objective of each kind of run."""

from training.contrastive import Contrastive
from training.distillation import Distillation
from training.language import Language
from training.masked import Masked
from training.supervision import Supervision
from training.text_student import TextStudent

_KINDS = {"GPT": Language, "clip": Contrastive, "clip_student": Distillation,
          "gpt_c": Supervision}


def of_run(config, facts, frozen=None):
    """The objective of a run.

    Args:
      config: the run's config.
      facts: an inputs.Facts of its data.
      frozen: the training.frozen.Frozen weights that its kind needs.

    Returns:
      a training.objective.Objective. A CLIP supervision of weight 0 is not built: the run is the
      plain GPT's, to the bit.
    """
    if config.text_only:
        return TextStudent(config, facts)
    if config.mlm_training:
        return Masked(config, facts, frozen)
    plain = config.model == "gpt_c" and not config.supervised
    return (Language if plain else _KINDS[config.model])(config, facts, frozen)
