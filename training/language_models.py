"""Which language model a config describes, for training, sampling and scoring."""

from models import clip_student, gpt, gpt_c
from training import frozen


def build(config, n_valid, taken=None):
    """The language model of a config: a models.gpt.GPT, one that hears a student, or a student.

    Args:
      config: the run's config.
      n_valid: how many ids the encoder has.
      taken: the training.frozen.Frozen weights of its student; by default those in the run's
        directory, if its kind needs them to predict.
    """
    if config.text_only:
        return clip_student.Reader(student(config, config.clip_out, config.recompute_grad),
                                   n_valid)
    if config.model == "gpt_c" and config.clip.mode == "input":
        taken = taken or frozen.of_run(config)
        return gpt_c.GPTWithStudent(config, n_valid, frozen_student(taken), taken.initializer)
    return gpt.GPT(config, n_valid, causal=not config.mlm_training)


def student(config, out, recompute=False):
    """The models.clip_student.Student of a config of model clip_student.

    Args:
      config: the student's config.
      out: the width of its outputs, which are its teacher's embeddings if it has one.
      recompute: see Student.
    """
    return clip_student.Student(clip_student.StudentSizes(
        width=config.n_embd, layers=config.n_layer, heads=config.n_head,
        vocab=config.n_vocab_padded, out=out, window=config.clip.window,
        rotary_dims=config.rotary_size, activation=config.activation_function,
        epsilon=config.layer_norm_epsilon), recompute=recompute)


def frozen_student(taken):
    """The Student whose weights a training.frozen.Frozen holds."""
    return student(taken.config, taken.value("clip_student/target_mean").shape[0])


def row_length(config, longest):
    """How many positions a row of up to `longest` tokens gets where n_ctx are not needed.

    Attention to empty positions costs as much as to others, so n_ctx is halved while the tokens
    fit and the mesh still divides the positions.
    """
    mesh, rules = dict(config.mesh), dict(config.layout_rules)
    length = config.n_ctx
    while (length % 2 == 0 and length // 2 >= longest
           and not any(length // 2 % mesh[rules[name]] for name in ("sequence", "memory_length")
                       if name in rules)):
        length //= 2
    return length
