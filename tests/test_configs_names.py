"""The names of config keys, which users' files hold: none may go, or come unnoticed.

A key that is renamed stays known under its old name (configs/legacy.py). Add new ones here.
"""

from configs import clip_keys, moe_keys, schema

KEYS = """
    about activation_function ada_epsilon1 ada_epsilon2 attention_types attn_dropout
    axial_dims beta1 beta2 checkpoint clip datasets decay_exponent decay_type embed_dropout
    entmax_alpha entmax_sampling epsilon eval_batch_size eval_steps eval_tasks eval_tasks_bos
    factored gpu_ids gradient_clipping init_from init_resize initializer_range
    inline_datasets input_fn intermediate_size iterations keep keep_best keep_every
    label_smoothing layer_norm_epsilon layout local_attention_radius log_grads lr lr_decay
    lr_decay_end lr_min_ratio macaron mesh_shape mlm_cls_token_id mlm_mask_id mlm_mask_ignore_ids
    mlm_mask_prob mlm_mask_text mlm_random_token_prob mlm_same_token_prob mlm_training
    mlp_glu model model_path moe_activation moe_layers moe_params momentum n_ctx n_embd
    n_head n_layer n_vocab nesterov no_weight_tie norm num_mem_kv on_nan on_nan_limit
    opt_name pad_masked pad_vocab_multiple parallel_residual peak_flops position precision
    predict_batch_size predict_max_steps predict_path recompute_grad res_dropout rezero
    rotary_base rotary_dims rotary_style sample_tokens scale_by_depth scale_by_in seed
    share_parameters skip_corrupt steps_per_checkpoint tokens_per_mb_per_replica top_k
    train_batch_size train_steps warmup_steps weight_decay z_loss
""".split()
CLIP = """
    control distillation image_channels image_heads image_layers image_patch image_pool
    image_size image_tower image_width layer loss mode out positions probe_words samples student
    target teacher temperature weight weight_end weight_warmup window windows zero_shot
""".split()
MOE = """
    capacity_factor_eval capacity_factor_train dropout_rate gating glu group_size hidden_size
    loss_coef min_expert_capacity num_experts second_policy_eval second_policy_train
    second_threshold_eval second_threshold_train switch_jitter use_second_place_loss z_loss
""".split()


def test_keys_are_these():
    assert sorted(schema.RunConfig.model_fields) == KEYS
    assert sorted(clip_keys.ClipKeys.model_fields) == CLIP
    assert sorted(moe_keys.MoeParams.model_fields) == MOE
