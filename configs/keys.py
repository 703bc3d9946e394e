"""The keys of a run config by group: type, default, range and one sentence each.

Everything else about keys (the reference page, messages, --print_config) is made from these.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from configs import values
from configs.layouts import pairs_text, parse_layout, parse_mesh_shape

AttentionTypes = Annotated[tuple[str, ...] | None, BeforeValidator(values.attention_types),
                           PlainSerializer(values.attention_runs)]
Datasets = Annotated[list[values.DatasetEntry], BeforeValidator(values.datasets)]
Ids = Annotated[list[int], BeforeValidator(values.list_or_none)]
InlineDatasets = Annotated[
    dict[str, Any], BeforeValidator(values.inline_datasets),
    PlainSerializer(lambda found: {name: dataset.model_dump(exclude_unset=True)
                                   for name, dataset in found.items()})]
EvalTasks = Annotated[list[str], BeforeValidator(values.eval_tasks)]
Devices = Annotated[list[str], BeforeValidator(values.devices)]
MeshShape = Annotated[str, BeforeValidator(lambda value: pairs_text(parse_mesh_shape(value)))]
Layout = Annotated[str, BeforeValidator(lambda value: pairs_text(parse_layout(value)))]
Activation = Literal["gelu", "gelu_exact", "quick_gelu", "relu", "relu6", "squared_relu",
                     "leaky_relu", "elu", "selu", "silu", "swish", "mish", "tanh", "sigmoid",
                     "hard_sigmoid", "log_sigmoid", "softplus", "softsign", "exponential",
                     "softmax", "log_softmax", "linear",
                     # GPT-Neo's names.
                     "id", "abs", "sign", "sin", "cos", "lrelu001", "lrelu020", "triangle_relax",
                     "square_relax", "spike", "spike2", "tanhshrink", "bipolarsigmoid", "elish",
                     "arcsinh", "maxsig", "maxtanh", "minsin", "cosid", "tanhexp", "lisht",
                     "seagull", "snake", "roottanh", "softplusmone", "logsoftmax",
                     # Those with weights of their own, or with chance; and one that gives two.
                     "prelu", "aria", "parcsinh", "psoftplus", "proottanh", "rrelu", "crelu"]
Checkpoint = Annotated[str, BeforeValidator(values.checkpoint)]
InitResize = Annotated[list[Literal["vocab", "context"]], BeforeValidator(values.list_or_none)]
AxialDims = Annotated[list[int] | None, BeforeValidator(values.axial_dims)]
Parallel = Annotated[Literal["none", "one_norm", "two_norms"],
                     BeforeValidator(values.parallel_residual)]


class Keys(BaseModel):
    """What all groups share: exact types, no unknown keys, no changes after loading."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False,
                              protected_namespaces=())


class ModelKeys(Keys):
    """Model"""

    model: Literal["GPT", "clip", "clip_student", "gpt_c"] = Field(
        "GPT", description="Kind of model: a language model; CLIP, trained on pictures; a student "
                           "of its text tower; a language model that such a student supervises. "
                           "Sizes are those of the language model, text tower or student.")
    n_layer: int = Field(ge=1, le=values.MOST_LAYERS, description="Number of transformer blocks.")
    n_head: int = Field(ge=1, description="Attention heads of a block; has to divide n_embd.")
    n_embd: int = Field(ge=1, description="Width of the residual stream.")
    n_ctx: int = Field(ge=1, description="Tokens that the model sees at once.")
    n_vocab: int = Field(0, ge=0, description="Number of token ids; 0 takes the dataset's.")
    pad_vocab_multiple: int = Field(
        128, ge=1, description="The token table is padded to a multiple of this, so that a mesh "
                               "divides it.")
    pad_masked: bool = Field(
        True, description="Whether padded ids are kept out of the softmax and of samples.")
    attention_types: AttentionTypes = Field(
        None, description='Kind of attention of each layer, as in [[["global"], 12]]; null is '
                          'all global: every token before. local: the local_attention_radius '
                          'newest ones. linear: sums over all of them, in time that grows with the '
                          'sequence and not its square. none: the block has no attention part.')
    local_attention_radius: int = Field(
        256, ge=1, description="Tokens that a token sees in local layers, its own and those just "
                               "before it.")
    num_mem_kv: int = Field(
        0, ge=0, description="Learned memories, a key and a value for each head, that every token "
                             "sees in each global and local layer.")
    position: Literal["learned", "rotary", "alibi", "axial", "none"] = Field(
        "learned", description="A learned table of positions, rotations of queries and keys, "
                               "attention scores that fall with distance (ALiBi), the mean of two "
                               "small tables for the rows and columns of a grid, or nothing.")
    axial_dims: AxialDims = Field(
        None, description="Sizes of the two tables of axial positions, whose product is n_ctx; "
                          "null is as near to each other as can be.")
    rotary_dims: int = Field(
        0, ge=0, description="Features of a head that rotate (an even number); 0 is the whole "
                             "head.")
    rotary_base: float = Field(
        10000.0, gt=1, description="How much longer the longest wavelength of rotary positions is "
                                   "than the shortest.")
    rotary_style: Literal["halves", "interleaved"] = Field(
        "halves", description="Which features rotate as a pair: those of a head's two halves, as "
                              "in GPT-NeoX, or neighbours, as in GPT-J.")
    norm: Literal["layer", "rms", "scale", "centred_scale"] = Field(
        "layer", description="Layer norms, root-mean-square norms, such with one gain for all "
                             "features (Nguyen & Salazar's ScaleNorm), or in blocks layer norms "
                             "with one gain and no bias (GPT-Neo's scalenorm).")
    rezero: bool = Field(
        False, description="Whether blocks have, in place of norms, a trained scalar, at first 0, "
                           "on what each part adds to the residual stream.")
    parallel_residual: Parallel = Field(
        "none", description="Whether attention and the feed-forward part read the same input: "
                            "through one norm (GPT-J's; true says it too) or one each "
                            "(GPT-NeoX's).")
    macaron: bool = Field(
        False, description="Whether a block has a feed-forward part before attention too, and adds "
                           "half of each.")
    mlp_glu: bool = Field(
        False, description="Whether the feed-forward part is gated by activation_function: GEGLU, "
                           "SwiGLU (silu), ReGLU.")
    intermediate_size: int = Field(
        0, ge=0, description="Hidden width of the feed-forward part, after the gate if it is "
                             "gated; 0 is 4 × n_embd.")
    share_parameters: bool = Field(
        False, description="Whether all blocks share one block's weights, as in ALBERT.")
    activation_function: Activation = Field(
        "gelu", description="Non-linearity of the feed-forward blocks; gelu is GPT-2's tanh form.")
    no_weight_tie: bool = Field(
        False, description="Whether the output head has weights of its own, not the token table's.")
    layer_norm_epsilon: float = Field(
        1e-5, gt=0, description="Added to the variance, or mean square, in norms.")


class InitKeys(Keys):
    """Initialisation and dropout"""

    initializer_range: float = Field(
        0.02, gt=0, description="Standard deviation of initial weights, as in GPT-2.")
    scale_by_depth: bool = Field(
        False, description="Whether initial weights that write to the residual stream are divided "
                           "by √n_layer.")
    scale_by_in: bool = Field(
        False, description="Whether initial weights are divided by √(number of inputs).")
    embed_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on embeddings in training.")
    res_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on what a block adds to the residual stream in "
                                     "training.")
    attn_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on attention weights in training.")


class TrainingKeys(Keys):
    """Training"""

    train_batch_size: int = Field(
        ge=1, description="Sequences of a training step, over all devices.")
    train_steps: int = Field(
        ge=1, description="Step at which training ends, counted from the first run.")
    seed: int = Field(
        1, ge=0, le=2**31 - 1, description="Decides initial weights, order of data and dropout.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Type of activations and matrix products; weights stay float32.")
    tokens_per_mb_per_replica: int | None = Field(
        None, ge=0, description="Most tokens a replica takes at once: a larger batch is done in "
                                "microbatches, of one sequence or more; null is no limit.")
    recompute_grad: bool = Field(
        False, description="Whether blocks are computed again in the backward pass, to save "
                           "memory.")
    gradient_clipping: Annotated[float, BeforeValidator(values.number_or_off)] = Field(
        1.0, ge=0, description="Largest global norm of the gradient; 0 or null is no limit.")
    log_grads: bool = Field(
        False, description="Whether TensorBoard has the norm of each weight's gradient as well, "
                           "beside those of the whole and of groups.")
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="What happens at a step whose loss or gradient is not finite: the run "
                            "stops, or the step's update is left out.")
    on_nan_limit: int = Field(
        10, ge=0, description="Most updates in a row that on_nan \"skip\" leaves out before the "
                              "run stops.")


class MaskedKeys(Keys):
    """Masked language modelling"""

    mlm_training: bool = Field(
        False, description="Whether the model learns to fill in masked tokens, as BERT does, with "
                           "attention to both sides; else it predicts next tokens.")
    mlm_mask_id: int | None = Field(
        None, ge=0, description="Id of the mask; null is n_vocab, the first id that pads the token "
                                "table.")
    mlm_cls_token_id: int | None = Field(
        None, ge=0, description="Id that begins each row; null is none.")
    mlm_mask_prob: float = Field(
        0.15, gt=0, lt=1, description="Share of tokens that are to be predicted.")
    mlm_same_token_prob: float = Field(
        0.1, ge=0, le=1, description="Share of these that stay as they are; BERT's is 0.1.")
    mlm_random_token_prob: float = Field(
        0.0, ge=0, le=1, description="Share of these that become random tokens, where the rest "
                                     "becomes the mask; BERT's is 0.1.")
    mlm_mask_ignore_ids: Ids = Field(
        [], description="Ids that are never predicted, nor put in as random tokens, beside those "
                        "of the mask and of mlm_cls_token_id.")
    mlm_mask_text: str = Field(
        "[MASK]", min_length=1, description="What stands for the mask in prompts to fill in.")


class LossKeys(Keys):
    """Loss of a language model"""

    z_loss: float = Field(
        0.0, ge=0, description="Weight of the squared logarithm of the softmax's denominator, "
                               "which keeps logits small; 0 is none.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target's probability that is spread evenly "
                                     "over all ids.")
    entmax_alpha: float = Field(
        1.0, ge=1, le=2, description="Training by the loss of α-entmax: 1 is the softmax's "
                                     "cross-entropy, 2 the sparsemax's loss.")


class OptimizerKeys(Keys):
    """Optimizer and learning rate"""

    lr: float = Field(ge=0, description="Peak learning rate.")
    lr_decay: Literal["cosine", "linear", "constant", "inverse_sqrt"] = Field(
        "cosine", description="How the learning rate falls after warm-up.")
    lr_decay_end: int | None = Field(
        None, ge=1, description="Step from which the learning rate stays at its lowest; null is "
                                "train_steps.")
    lr_min_ratio: float = Field(
        0.1, ge=0, le=1, description="Floor of the learning rate as a share of lr.")
    warmup_steps: int = Field(
        0, ge=0, description="Steps over which the learning rate rises to lr.")
    opt_name: Literal["adamw", "adafactor", "sgd", "lion"] = Field(
        "adamw", description="Optimizer; GPT-Neo's \"adam\" is adamw.")
    beta1: float | None = Field(
        None, ge=0, lt=1, description="Decay of the mean of gradients (AdamW, Lion) or of updates "
                                      "(Adafactor); null is 0.9, and 0 with Adafactor.")
    beta2: float | None = Field(
        None, ge=0, lt=1, description="Decay of the mean of squared gradients (AdamW, Adafactor "
                                      "with decay_type adam) or of gradients (Lion); null is 0.95, "
                                      "0.999 with Adafactor and 0.99 with Lion.")
    epsilon: float = Field(1e-8, gt=0, description="Added to AdamW's denominator.")
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled decay of tensors of rank 2 or more, multiplied by the "
                               "learning rate.")
    ada_epsilon1: float = Field(1e-30, gt=0, description="Added to squared gradients in Adafactor.")
    ada_epsilon2: float = Field(
        1e-3, gt=0, description="Least root mean square of a tensor in Adafactor's relative step.")
    decay_type: Literal["pow", "adam"] = Field(
        "pow", description="How Adafactor's second moments decay: by a power of the step, or by "
                           "beta2 with Adam's bias correction.")
    decay_exponent: float = Field(
        0.8, gt=0, le=1, description="Exponent of decay_type pow: at step t the new squares get "
                                     "the weight t^-exponent.")
    factored: bool = Field(
        True, description="Whether Adafactor keeps second moments as row and column means.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD; 0 is none.")
    nesterov: bool = Field(False, description="Whether SGD's momentum is Nesterov's.")


class MeshKeys(Keys):
    """Devices"""

    mesh_shape: MeshShape = Field(
        "", description='Axes of the mesh of devices and their sizes, as in "x:4,y:2"; "" is one '
                        'device.')
    layout: Layout = Field(
        "", description='Which dimension is split over which axis, as in "batch:x,heads:y"; '
                        "the table of dimensions is below.")
    gpu_ids: Devices = Field(
        [], description="GPUs to use, one for each position of the mesh; [] is CPU devices.")
    peak_flops: float | None = Field(
        None, gt=0, allow_inf_nan=False,
        description="FLOP/s that one device could do in the run's precision, of which mfu in "
                    "TensorBoard is a share; null is what is known of the GPU, if anything.")


class DataKeys(Keys):
    """Data"""

    datasets: Datasets = Field(
        [], description="Datasets to mix: ids of configs/datasets/, paths of such a JSON, or "
                        "[id, stitch, mode, weight] with mode chunks, documents_random or "
                        "documents_fixed.")
    inline_datasets: InlineDatasets = Field(
        {}, description="Dataset configs of this run alone, by id: what a JSON of "
                        "configs/datasets/ holds, for entries of datasets to name.")
    input_fn: str = Field(
        "datasets", min_length=1,
        description="What makes a run's rows: the datasets, or an input function of your own by "
                    "its name in INPUT_FUNCTIONS of inputs.py.")
    skip_corrupt: bool = Field(
        False, description="Whether shards are read from end to end before training, and damaged "
                           "records counted and left out; else a damaged record ends the run.")
    eval_batch_size: int | None = Field(
        None, ge=1, description="Sequences of an evaluation step; null is train_batch_size.")
    eval_steps: int | None = Field(
        None, ge=0, description="Batches of an evaluation; null is the whole split, 0 is no "
                                "evaluation.")
    eval_tasks: EvalTasks = Field(
        [], description="JSONL files of items on which each evaluation scores the language model: "
                        "choices, completions or documents; \"lambada\" is the dataset's "
                        "lambada_tokens_path, \"lambada:PATH\" another file of it; \"coda:PATH\" "
                        "and color, shape, material, size_larger or size_smaller for coda are "
                        "files of CoDa and ViComTe.")
    eval_tasks_bos: bool = Field(
        False, description="Whether items begin with the end-of-text id, as documents do in "
                           "training; it is the lm-evaluation-harness's add_bos_token.")


class PredictKeys(Keys):
    """Prediction"""

    predict_batch_size: int = Field(1, ge=1, description="Sequences sampled at once.")
    predict_max_steps: int | None = Field(
        None, ge=1, description="Most new tokens of a sample; null is what fits into n_ctx.")
    entmax_sampling: bool = Field(
        False, description="Whether samples are drawn from the α-entmax of the logits rather than "
                           "their softmax; α is entmax_alpha, or 1.3 where that is 1.")
    predict_path: str | None = Field(
        None, description="File to which samples are appended; null is none.")
    top_k: int = Field(
        0, ge=0, description="Samples are drawn from this many likeliest tokens, unless --top_k "
                             "says otherwise; 0 is all.")
    sample_tokens: int = Field(
        64, ge=0, description="Tokens of the sample that TensorBoard shows of each evaluated "
                              "checkpoint; 0 is none.")


class RunKeys(Keys):
    """Run"""

    model_path: str = Field(
        min_length=1, description="Directory of checkpoints, logs and metrics; may be gs://.")
    init_from: str | None = Field(
        None, min_length=1, description="What a new run takes its weights from, at step 0 and with "
                                        "a fresh optimizer: the directory of a run, or whatever "
                                        "--import_from takes; null is random weights.")
    init_resize: InitResize = Field(
        [], description="Which sizes may differ from those of init_from: vocab (new ids get the "
                        "mean embedding) and context (new learned positions are copies).")
    steps_per_checkpoint: int = Field(
        5000, ge=1, description="Steps between checkpoints and the evaluations made there.")
    keep: int = Field(10, ge=1, description="Newest checkpoints kept; older ones are deleted.")
    keep_every: int = Field(
        0, ge=0, description="Checkpoints of steps that this divides are kept as well; 0 is none.")
    keep_best: int = Field(
        1, ge=0, description="Checkpoints with the lowest validation losses that are kept as well.")
    checkpoint: Checkpoint = Field(
        "latest", description="Checkpoint that is evaluated, sampled or exported: latest, best (by "
                              "validation loss) or a step; --checkpoint says it too.")
    iterations: int = Field(100, ge=1, description="Steps between lines of progress and scalars.")
    about: Annotated[str, BeforeValidator(values.text)] = Field(
        "", description="What the run is, its command, expected score and time; text or a list "
                        "of lines.")


GROUPS = (ModelKeys, InitKeys, TrainingKeys, LossKeys, MaskedKeys, OptimizerKeys, MeshKeys,
          DataKeys, PredictKeys, RunKeys)
