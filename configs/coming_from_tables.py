"""Keys and flags of other programs, and what each of them is here: data for `coming_from.py`.

A text says what a key or flag is here. An empty one means that the tables of the schema and of
`legacy.py`, `legacy_gpt2.py`, `legacy_jax.py` and `old_flags.py` say it. What is in backquotes is
a key, a flag or a path of this project, which a test looks up.
"""

from configs import old_flags

# GPT-Neo's keys, in the order of its README, those that its code sets itself, and former ones.
NEO = {key: "" for key in """
    n_embd n_head n_layer n_vocab n_ctx attention_types embed_dropout res_dropout attn_dropout
    local_attention_radius num_mem_kv rotary_emb axial_pos_emb activation_fn activation_function
    mlp_glu scalenorm rezero macaron share_parameters no_weight_tie moe_layers moe_params
    moe_activation scale_by_depth scale_by_in z_loss entmax_loss lr warmup_steps train_steps
    lr_decay lr_decay_end opt_name beta1 beta2 epsilon ada_epsilon1 ada_epsilon2 weight_decay
    gradient_clipping precision train_batch_size eval_batch_size predict_batch_size iterations
    eval_steps predict_steps predict_max_steps remove_partial_sequences eval_tasks
    tokens_per_mb_per_replica recompute_grad mesh_shape layout datasets no_dataset input_fn seed
    shuffle_input_filenames mlm_training mlm_mask_id mlm_cls_token_id mlm_mask_prob
    mlm_same_token_prob mlm_random_token_prob mlm_mask_ignore_ids log_grads model model_path
    use_tpu num_cores gpu_ids steps_per_checkpoint auto_layout auto_layout_and_mesh_shape predict
    export slow_sampling sampling_use_entmax mode causal num_microbatches eval_task
    dataset_configs padding_id eos_id lambada_tokens_path lambada_n_steps batch_size
    context n_heads local dataset_ids microbatches_per_batch fixed_attn_block_size layer_offset
    beta1_adam stop_at_token autostack""".split()}

# Said by another key.
NEO_MEANINGS = {
    "rotary_emb": "`position`: true is \"rotary\", false \"learned\"",
    "axial_pos_emb": "`position` \"axial\" and the sizes of its tables",
    "scalenorm": "`norm`",
    "entmax_loss": "`entmax_alpha`: true is 1.3",
    "batch_size": "`train_batch_size`; there it is set by the code",
    "local": "`attention_types`: true is local in all layers, with a `local_attention_radius` of "
             "128, where those keys are absent",
    "microbatches_per_batch": "`tokens_per_mb_per_replica`, so many that there are as many "
                              "microbatches",
}

# What a user should know although the key is the same.
NEO_REMARKS = {
    "attention_types": "null is all global",
    "no_weight_tie": "the final norm stays",
    "lr_decay": "absent it is constant, as there, in a config that has `predict_steps`",
    "z_loss": "absent it is 1e-4, as there, in a config that has `predict_steps`; evaluations "
              "leave it out",
    "opt_name": "adam is adamw, with bias correction; an unknown name is refused",
    "weight_decay": "for tensors of rank 2 or more that are no biases; GPT-Neo's Adafactor takes "
                    "it for its decay rate, and then it is 0 here",
    "gradient_clipping": "null and 0 are no limit",
    "precision": "weights stay float32; bf16 is understood too",
    "log_grads": "norms are named gradient_norms/ and the weight's name; those of the whole and "
                 "of groups of weights are always there",
    "eval_batch_size": "absent it is train_batch_size",
    "predict_max_steps": "`--max_new_tokens` overrides it",
    "iterations": "steps between lines of progress; absent they are 500 in a config that has "
                  "`predict_steps`",
    "n_ctx": "absent it is 2048 in a config that has `predict_steps`",
    "eval_tasks": "files of items; no task is downloaded, and \"lambada\" is the file that the "
                  "dataset's `lambada_tokens_path` names",
    "datasets": "entries of five parts, [train glob, eval glob, stitch, mode, weight], are read "
                "too, and the modes random_sample, document and documents; shards with a manifest "
                "that were written as chunks are read so, whatever the mode",
    "input_fn": "sequential_input and generic_text are the default, in which weights and modes "
                "hold; other names are yours",
    "seed": "everything follows from it",
    "gpu_ids": "checked against mesh_shape before anything is built",
}

NEO_DATASET = {
    "n_vocab": "", "path": "", "eval_path": "empty is none", "tokenizer_path": "`encoder`",
    "tokenizer_is_pretrained": "`encoder`: with tokenizer_path gpt2 it is gpt2, from an installed "
                               "package; other pretrained ones are refused",
    "eos_id": "", "padding_id": "read, not needed: windows are full",
    "lambada_tokens_path": "",
}

NEO_FLAGS = {flag: "" for flag in """
    --tpu --gpu_ids --model --steps_per_checkpoint --auto_layout --auto_layout_and_mesh_shape --new
    --predict --eval --prompt --check_dataset --sacred_id --entmax_sampling --export
    --experiment_name --autostack --no_delete_tpu --initial_heartbeat_timeout --heartbeat_timeout
    --test""".split()}
NEO_FLAG_REMARKS = {
    "--tpu": "on Colab, whose TPUs are TPU VMs, it is local rather than colab",
    "--prompt": "a text, a file or -; may be repeated; without it samples start a document",
    "--new": "`--yes` answers its question",
    "--check_dataset": "reads everything and lists problems",
}

TFRECORDS_FLAGS = {
    "--input_dir": "", "--files_per": "", "--name": "", "--output_dir": "", "--chunk_size": "",
    "--minimum_size": "the default is 1, not 100",
    "--ftfy": "turns it on; it is off by default",
    "--separator": "ids without brackets; the encoder's end of text by default",
    "--write_dataset_config": "", "--processes": "", "--mode": "",
    **{flag: old_flags.CREATE_TFRECORDS[flag] for flag in (
        "--encoder_path", "--wikitext-detokenize", "--use_gpt2_tokenizer", "--base_dir")},
}
TOKENIZER_FLAGS = {**old_flags.TRAIN_TOKENIZER, "--vocab_size": ""}

# ConnorJL/GPT2.
CONNORJL = {key: "" for key in """
    model model_path encoder_path data_path predict_path input n_ctx n_vocab n_embd n_layer n_head
    scale_by_depth scale_by_in precision lr warmup_steps opt_name weight_decay beta1 beta2 epsilon
    decay_type decay_exponent train_batch_size eval_batch_size predict_batch_size train_steps
    eval_steps max_steps iterations embed_dropout attn_dropout res_dropout top_k dataset stitch
    scale use_tpu batch_size text_len n_heads model_dir datapath""".split()}
CONNORJL_MEANINGS = {
    "max_steps": "`train_steps`, the total; the rate falls to 0 there",
    "train_steps": "`steps_per_checkpoint`: steps between evaluations; checkpoints are made there "
                   "too; `--steps_per_checkpoint` makes both more frequent",
    "input": "`datasets` and `inline_datasets`: openwebtext, openwebtext_long and "
             "openwebtext_longbiased read its shards in `data_path`, generic_text those of "
             "`dataset`, without evaluations, for which it has no shards; another name is that of "
             "an `input_fn`, which finds `data_path` in `inline_datasets`",
    "data_path": "`inline_datasets`: the directory of the shards",
    "datapath": "data_path",
    "encoder_path": "the `encoder` of `inline_datasets`: encoder.json and vocab.bpe",
    "dataset": "`inline_datasets`, with input generic_text: [[files], weight], …",
    "stitch": "the stitch in `datasets`, with input generic_text",
    "n_ctx": "same", "iterations": "same; steps between lines of progress",
    "scale": "`scale_by_depth`, true for 1/√n_layer and false for 1, and `scale_by_in` false, as "
             "in the versions that had it; beside those keys it is not needed",
    "predict_batch_size": "prompts sampled together; there it was the number of samples, which is "
                          "`--num_samples`",
}
CONNORJL_FLAGS = {"--tpu": "", "--model": "", "--predict_file": "", "--predict_text": "",
                  "--top_k": "the config's `top_k` by default"}

# The constants that one edits in its create_tfrecords.py.
CONNORJL_CONSTANTS = {
    "base_dir": "`--input_dir`", "files_per": "`--files_per`", "name": "`--name`",
    "output_dir": "`--output_dir`", "log_dir": "not needed: a run that was stopped goes on by what "
    "lies in `--output_dir`", "processes": "`--processes`", "encoder_path": "`--encoder`",
    "minimum_size": "`--minimum_size`: the default is 1, not 25",
}

# mesh-transformer-jax and gpt-c: what convert.py makes of keys that legacy_jax lists in no table.
JAX_MEANINGS = {
    "norm": "`norm`", "pe": "`position`: rotary, or learned for fixed; "
    "the bias of t5 is lost", "pe_rotary_dims": "`rotary_dims`",
    "clip": "`model` gpt_c, its presence, and the section `clip`",
    "cores_per_replica": "`mesh_shape`: its second axis", "tpu_size": "`mesh_shape`",
    "per_replica_batch": "`train_batch_size`, times replicas and accumulation",
    "gradient_accumulation_steps": "`tokens_per_mb_per_replica`, and a factor of "
                                   "`train_batch_size`",
    "anneal_steps": "`lr_decay_end`, counted from the first step",
    "end_lr": "`lr_min_ratio`, its share of lr",
    "val_every": "`steps_per_checkpoint`: evaluations are at checkpoints",
    "bucket": "`model_path`", "model_dir": "`model_path`",
    "train_set": "`inline_datasets`: an index file is a path there",
    "val_set": "`inline_datasets`: the first one; a run has one validation split, and `--eval` "
               "with `--set` inline_datasets.NAME.eval_path=FILE evaluates on another",
    "name": "`about`", "comment": "`about`", "d_head": "n_embd / n_head",
    "optimizer, sampler, gen_length": "not in files: its code puts them into the config",
    "rotary_dims": "`rotary_dims` of a student", "batch_size": "`train_batch_size` of a student",
}
JAX_FLAGS = {
    "--config": "`--model`",
    "--tune-model-path": "`init_from`: a run, or GPT-J as Hugging Face has it; not its own "
                         "checkpoints",
    "--fresh-opt": "`init_from` has a fresh optimizer; a run that goes on keeps its own",
    "--tpu": "", "--tpu_region": "`--tpu_zone`",
    "--preemptible": "`--recreate_tpu`, which makes a TPU that was preempted anew",
    "--new": "asks before it deletes",
    "--version": "no: it chooses between two copies of its model",
    "--ckpt-step": "`--checkpoint`: latest, best or a step", "--f16": "no: weights are float32",
    "input_path": "`--input_dir`", "name": "`--name`", "--output-dir": "`--output_dir`",
    **{flag: old_flags.CREATE_TFRECORDS[flag] for flag in (
        "--normalize-with-ftfy", "--normalize-with-wikitext-detokenize")},
    "--min-unique-tokens": "`--min_unique_tokens`, which looks at each document's chunks rather "
                           "than at windows of several documents",
    "--n-repack-epochs": "not needed: windows are shuffled anew in each epoch, and of `--mode` "
                         "documents they are cut anew too",
    "--seed": "`--seed`",
    "--preserve-data-order": "no: documents keep their order in a file, and training shuffles "
                             "windows in an order that follows from the seed",
    "--verbose": "`--check_dataset` prints samples of what is left",
}

# nanoGPT's train.py, sample.py and bench.py.
NANO = {
    "out_dir": "`model_path`", "eval_interval": "`steps_per_checkpoint`",
    "log_interval": "`iterations`", "eval_iters": "`eval_steps`; null is the whole split",
    "eval_only": "`--eval`",
    "always_save_checkpoint": "always; `keep` says how many, and `keep_best` how many of the best",
    "init_from": "`init_from`, where scratch is null; a run that exists resumes by itself",
    "wandb_log, wandb_project": "`--wandb` PROJECT",
    "wandb_run_name": "not needed: a run has the name of its `model_path`",
    "dataset": "`datasets`", "gradient_accumulation_steps": "`tokens_per_mb_per_replica`",
    "batch_size": "`train_batch_size`, which holds all microbatches", "block_size": "`n_ctx`",
    "n_layer": "", "n_head": "", "n_embd": "",
    "dropout": "`embed_dropout`, `res_dropout`, `attn_dropout`",
    "bias": "no: dense layers and norms have biases, as in GPT-2, which begin at 0; "
            "`--import_from` takes weights without them",
    "learning_rate": "`lr`", "max_iters": "`train_steps`", "weight_decay": "", "beta1": "",
    "beta2": "", "grad_clip": "`gradient_clipping`",
    "decay_lr": "`lr_decay`: cosine, or constant for False", "warmup_iters": "`warmup_steps`",
    "lr_decay_iters": "`lr_decay_end`", "min_lr": "`lr_min_ratio`, as a share of lr",
    "backend": "not needed: `mesh_shape` and `layout`",
    "device": "CPU devices, or `--gpu_ids`, or `--tpu`",
    "dtype": "`precision`: float32 or bfloat16; float16 is not there",
    "compile": "not needed: TensorFlow graphs", "start": "`--prompt`; a file without FILE:",
    "num_samples": "`--num_samples`", "max_new_tokens": "`--max_new_tokens`",
    "temperature": "`--temperature`", "top_k": "", "seed": "",
    "real_data, profile": "no; `benchmarks/train_speed.py` measures training",
}

# What they do, beyond keys and flags.
FEATURES = {
    "Raw inputs": "`datasets/create_tfrecords.py`: text, JSONL(.zst), archives, lm_dataformat, "
                  "`--tfds`; `datasets/openwebtext.py`: WARC files, pages and the published tar",
    "Tokenizers": "`--encoder`: byte, char, clip, gpt2, any tokenizer.json; "
                  "`datasets/train_tokenizer.py`",
    "Several processes, and restarts": "`--processes`; a killed run ends with the same files",
    "Shards": "NAME_i_count.tfrecords, with a manifest; index files of shards",
    "Mixing": "`datasets`, with weights",
    "Packing": "`datasets`: chunks of a stream, or stitched documents; no masks between documents",
    "Order of data": "shuffled anew in each epoch without replacement; `seed`",
    "Position of data on resuming": "exact, a function of seed and step",
    "Filter of repetitions": "`--min_unique_tokens`; duplicates: `datasets/openwebtext.py`",
    "Attention": "`attention_types`, `local_attention_radius`, `num_mem_kv`; no grouped queries",
    "Positions": "`position`, `rotary_dims`, `axial_dims`; no relative bias of T5",
    "Norms": "`norm`, `rezero`",
    "Feed-forward part": "`activation_function`, `mlp_glu`, `macaron`, `intermediate_size`",
    "Blocks": "`parallel_residual`, `share_parameters`, `no_weight_tie`",
    "Mixture of experts": "`moe_layers`, `moe_params`, `moe_activation`",
    "Causal language models": "`model` GPT",
    "Masked language models": "`mlm_training`; no span corruption",
    "CLIP, distillation": "`model` gpt_c, clip_student, clip; the section `clip`",
    "Optimizers": "`opt_name`: adamw, adafactor, sgd, lion",
    "Learning rates": "`lr_decay`, `warmup_steps`, `lr_decay_end`, `lr_min_ratio`",
    "Clipping and losses": "`gradient_clipping`, `z_loss`, `label_smoothing`, `entmax_alpha`",
    "Precision": "`precision`: float32 or bfloat16, weights float32; no 8-bit numbers",
    "Parallelism": "`mesh_shape`, `layout`, `--gpu_ids`, `--cluster`; no pipelines",
    "TPUs": "`--tpu`",
    "Microbatches": "`tokens_per_mb_per_replica`",
    "Recomputation": "`recompute_grad`",
    "Checkpoints": "`steps_per_checkpoint`, `keep`, `keep_every`, `keep_best`",
    "Preemption": "the same command goes on, to the bit; `--recreate_tpu`",
    "Evaluation": "loss, its perplexity, bits per byte of the text; `eval_steps`, `--eval`",
    "LAMBADA and multiple choice": "`eval_tasks`, scored as the lm-evaluation-harness does",
    "Sampling": "`--temperature`, `--top_k`, `--top_p`, `--entmax_sampling`, `--num_samples`",
    "Caches": "every kind of attention, with experts too",
    "Stopping and batches": "`--stop`, `--max_new_tokens`, `predict_batch_size`, `--interactive`",
    "Export": "`--export` saved_model or hf",
    "Serving": "`interop/serve.py`: OpenAI's completions over HTTP",
    "Monitoring": "TensorBoard, metrics.jsonl, `--wandb`, `--report`; no noise scale",
    "Benchmarks": "`benchmarks/train_speed.py`",
    "Planning": "`--dry_run`, `--preflight`",
    "Automatic layouts": "`--auto_layout`, `--auto_layout_and_mesh_shape`, `--search_layouts`",
    "Check of a dataset": "`--check_dataset`",
}

# Hugging Face: configs of GPT-2 and GPT-Neo, TrainingArguments, generate.
HUGGING_FACE = {
    "n_embd, hidden_size": "`n_embd`", "n_layer, num_layers": "`n_layer`",
    "n_head, num_heads": "`n_head`", "n_positions, max_position_embeddings": "`n_ctx`",
    "vocab_size": "`n_vocab`", "n_inner, intermediate_size": "`intermediate_size`; null is 0",
    "activation_function, hidden_act": "`activation_function`; gelu_new is gelu, and their gelu, "
                                       "without the tanh, is gelu_exact",
    "resid_pdrop, embd_pdrop, attn_pdrop": "`res_dropout`, `embed_dropout`, `attn_dropout`",
    "layer_norm_epsilon": "", "initializer_range": "",
    "tie_word_embeddings": "`no_weight_tie`, its opposite", "attention_types": "",
    "window_size": "`local_attention_radius`",
    "rotary_dim, rotary_pct": "`position` rotary and `rotary_dims`, in features of a head",
    "rotary_emb_base, rope_theta": "`rotary_base`", "use_parallel_residual": "`parallel_residual`",
    "bos_token_id, eos_token_id": "the dataset's `encoder` knows its end of text",
    "output_dir": "`model_path`", "per_device_train_batch_size": "`train_batch_size`, over all",
    "per_device_eval_batch_size": "`eval_batch_size`, over all",
    "gradient_accumulation_steps": "`tokens_per_mb_per_replica`",
    "learning_rate": "`lr`", "weight_decay": "",
    "adam_beta1, adam_beta2, adam_epsilon": "`beta1`, `beta2`, `epsilon`",
    "max_grad_norm": "`gradient_clipping`", "max_steps": "`train_steps`",
    "num_train_epochs": "`train_steps`; `--dry_run` tells the steps of an epoch",
    "warmup_steps": "", "lr_scheduler_type": "`lr_decay`: cosine, linear, constant, inverse_sqrt",
    "optim": "`opt_name`", "logging_steps": "`iterations`", "save_steps": "`steps_per_checkpoint`",
    "eval_steps": "`steps_per_checkpoint`; `eval_steps` here are batches of an evaluation",
    "save_total_limit": "`keep`", "bf16": "`precision` bfloat16", "fp16": "no",
    "gradient_checkpointing": "`recompute_grad`", "seed": "",
    "resume_from_checkpoint": "always: the same command goes on", "push_to_hub": "no",
    "report_to": "TensorBoard always, and `--wandb`",
    "max_new_tokens": "`--max_new_tokens`", "do_sample": "`--temperature` 0 does not",
    "temperature": "`--temperature`", "top_k": "", "top_p": "`--top_p`",
    "num_return_sequences": "`--num_samples`", "stop_strings": "`--stop`",
}
