"""docs/coming-from.md: what it says of each key and flag is what the program does with it."""

import json
import os
import re
import subprocess
import sys

import pytest

from configs import coming_from, flags, keys, legacy, legacy_jax, old_flags, schema
from configs import coming_from_tables as tables
from configs.dataset import DatasetConfig
from configs.errors import UserError

BASE = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 16, "n_vocab": 100, "lr": 1e-3,
        "train_batch_size": 8, "train_steps": 50, "model_path": "runs/x"}
KEYS = set(schema.RunConfig.model_fields)
MAIN_FLAGS = {name for action in flags.make_parser()._actions for name in action.option_strings}


def script_flags(root, script):
    """The flags in a script's help."""
    shown = subprocess.run([sys.executable, os.path.join(root, script), "--help"],
                           capture_output=True, text=True, timeout=60, check=True).stdout
    return set(re.findall(r"--[a-z_]+", shown))


@pytest.fixture
def load(tmp_path):
    def load_config(**changes):
        path = tmp_path / "run.json"
        path.write_text(json.dumps({**BASE, "datasets": [], **changes}))
        return schema.load(str(path))
    return load_config


def test_the_page_is_the_tables(root):
    with open(os.path.join(root, "docs", "coming-from.md"), encoding="utf-8") as file:
        assert file.read() == coming_from.page(), \
            "run: python -m configs.coming_from > docs/coming-from.md"


# What the systems before this one read, as their code says: nobody takes a row out unnoticed.
THEIRS = {
    "GPT-Neo": """n_embd n_head n_layer n_vocab n_ctx attention_types embed_dropout res_dropout
        attn_dropout local_attention_radius num_mem_kv rotary_emb axial_pos_emb activation_fn
        activation_function mlp_glu scalenorm rezero macaron share_parameters no_weight_tie
        moe_layers moe_params moe_activation scale_by_depth scale_by_in z_loss entmax_loss lr
        warmup_steps train_steps lr_decay lr_decay_end opt_name beta1 beta2 epsilon ada_epsilon1
        ada_epsilon2 weight_decay gradient_clipping precision train_batch_size eval_batch_size
        predict_batch_size iterations eval_steps predict_steps predict_max_steps
        remove_partial_sequences eval_tasks tokens_per_mb_per_replica recompute_grad mesh_shape
        layout datasets no_dataset input_fn seed shuffle_input_filenames mlm_training mlm_mask_id
        mlm_cls_token_id mlm_mask_prob mlm_same_token_prob mlm_random_token_prob
        mlm_mask_ignore_ids log_grads use_tpu num_cores gpu_ids steps_per_checkpoint predict export
        slow_sampling sampling_use_entmax mode causal num_microbatches eval_task dataset_configs
        lambada_n_steps batch_size context model model_path path eval_path tokenizer_path
        tokenizer_is_pretrained eos_id padding_id lambada_tokens_path --tpu --gpu_ids --model
        --steps_per_checkpoint --auto_layout --auto_layout_and_mesh_shape --new --predict --eval
        --prompt --check_dataset --sacred_id --entmax_sampling --export --input_dir --files_per
        --name --output_dir --encoder_path --minimum_size --ftfy --wikitext-detokenize --separator
        --chunk_size --write_dataset_config --processes --experiment_name --autostack --test
        --no_delete_tpu --initial_heartbeat_timeout --heartbeat_timeout --mode --base_dir
        --use_gpt2_tokenizer --file_type --vocab_size local dataset_ids microbatches_per_batch
        fixed_attn_block_size layer_offset beta1_adam stop_at_token autostack""",
    "ConnorJL/GPT2": """encoder_path data_path predict_path input decay_type decay_exponent
        max_steps top_k n_ctx n_vocab n_embd n_layer n_head scale_by_depth scale_by_in precision
        iterations embed_dropout attn_dropout res_dropout dataset stitch scale use_tpu batch_size
        text_len base_dir files_per output_dir log_dir processes minimum_size
        --predict_file --predict_text --top_k""",
    "mesh-transformer-jax": """layers d_model n_heads n_vocab norm pe pe_rotary_dims clip seq
        cores_per_replica per_replica_batch gradient_accumulation_steps warmup_steps anneal_steps
        lr end_lr weight_decay total_steps tpu_size bucket model_dir train_set val_set
        eval_harness_tasks val_batches val_every ckpt_every keep_every name wandb_project comment
        noise_scale_alpha early_cast early_collect rotary_dims batch_size bf16_optimizer d_head
        eval_only val_batch_multiplier optimizer sampler gen_length --config --tune-model-path
        --fresh-opt --tpu --tpu_region --preemptible --new --version --ckpt-step --f16 --output-dir
        --normalize-with-ftfy --normalize-with-wikitext-detokenize --min-unique-tokens
        --n-repack-epochs --seed --preserve-data-order --verbose""",
    "nanoGPT": """out_dir eval_interval log_interval eval_iters eval_only always_save_checkpoint
        init_from wandb_log wandb_project wandb_run_name dataset gradient_accumulation_steps
        batch_size block_size n_layer n_head n_embd dropout bias learning_rate max_iters
        weight_decay beta1 beta2 grad_clip decay_lr warmup_iters lr_decay_iters min_lr backend
        device dtype compile start num_samples max_new_tokens temperature top_k seed real_data
        profile"""}


@pytest.mark.parametrize("system", THEIRS)
def test_the_page_has_every_key_of_theirs(system):
    sections = re.split(r"^## ", coming_from.page(), flags=re.M)
    section = "".join(part for part in sections if part.startswith(system))
    missing = [key for key in THEIRS[system].split() if f"`{key}`" not in section]
    assert section and not missing


@pytest.mark.parametrize("key", tables.NEO)
def test_what_a_key_of_gpt_neo_is(load, key):
    state = coming_from.neo(key)
    if state.startswith("refused"):
        with pytest.raises(UserError, match=f"{key}: not supported"):
            load(**{key: True})
        load(**{key: None})
    elif state.startswith("not needed"):
        assert any(key in note and "ignored" in note for note in load(**{key: 1}).notes)
    elif state.startswith("same"):
        value = BASE.get(key, schema.RunConfig.model_fields[key].get_default(
            call_default_factory=True))
        if value is None or isinstance(value, int | float | str | list):
            config = load(**{key: value})
            assert config.sources[key] == "file" or value is None
            assert not any(key in note for note in config.notes)
    else:
        sizes = {"n_layer": 2, "n_ctx": 16, "train_batch_size": 8, "predict_steps": 0}
        value = 2 if key == "microbatches_per_batch" else True
        before, *_ = legacy.translate(sizes, whole=True)
        translated, *_ = legacy.translate({**sizes, key: value}, whole=True)
        assert key not in translated
        assert all(f"`{name}`" in state for name in translated.keys() - before.keys())


def test_every_key_that_the_schema_knows_of_old_is_on_the_page():
    """The tables of old keys, and GPT-Neo's own keys, are told about somewhere."""
    told = {*tables.NEO, *tables.CONNORJL}
    spellings = {"n_heads", "model_dir", "datapath"}
    assert {*legacy.UNNEEDED, *legacy.UNSUPPORTED, *legacy.RENAMED} - spellings <= told
    # As in configs/keys.py but for what this project has added.
    assert {"n_embd", "lr_decay_end", "moe_params", "mlm_mask_id", "eval_tasks"} <= told


def test_every_key_of_the_jax_configs_is_on_the_page():
    rows = coming_from.jax()
    injected = "optimizer, sampler, gen_length"  # none that a file holds
    assert set(rows) == {*legacy_jax.RENAMED, *legacy_jax.LOST, *legacy_jax._READ, injected}
    assert rows["d_model"] == "`n_embd`" and rows["n_vocab"] == "same"


@pytest.mark.parametrize("rows", [tables.NANO, tables.HUGGING_FACE])
def test_same_means_a_key_of_that_name(rows):
    for name, text in rows.items():
        assert text or name in KEYS, name


def test_dataset_keys():
    for key, text in tables.NEO_DATASET.items():
        assert key in {*DatasetConfig.model_fields, *DatasetConfig.LEGACY}
        assert coming_from._dataset_key(key, text)


def test_flags_that_are_the_same_exist(root):
    for name in (*tables.NEO_FLAGS, *tables.CONNORJL_FLAGS):
        assert (name in MAIN_FLAGS) != (name in old_flags.MAIN), name
    for rows, former, script in (
            (tables.TFRECORDS_FLAGS, old_flags.CREATE_TFRECORDS, "datasets/create_tfrecords.py"),
            (tables.TOKENIZER_FLAGS, old_flags.TRAIN_TOKENIZER, "datasets/train_tokenizer.py")):
        known = script_flags(root, script)
        assert not known & former.keys()
        for name in rows:
            assert name in known or name in former, name


def test_what_the_page_names_exists(root):
    """Everything in backquotes in the right column is a key, a flag or a path."""
    known = KEYS | set(DatasetConfig.model_fields) | MAIN_FLAGS | {
        "data_path", "dataset", "predict_steps"}
    for script in ("create_tfrecords", "openwebtext", "train_tokenizer"):
        known |= script_flags(root, f"datasets/{script}.py")
    texts = [row.rsplit(" | ", 1)[1] for row in coming_from.page().splitlines()
             if row.startswith("| ")]
    named = [word for text in texts for word in re.findall(r"`([^`]+)`", text)]
    assert len(named) > 80
    for word in named:
        first = word.split(" ")[0]
        assert first in known or os.path.exists(os.path.join(root, first)), word


def test_states_follow_the_tables(monkeypatch):
    """What another release supports is no longer called refused."""
    monkeypatch.setattr(legacy, "UNSUPPORTED", ())
    assert coming_from.neo("scalenorm") == "`norm`"
    if "rezero" not in KEYS:
        with pytest.raises(KeyError, match="rezero: nothing says what it is"):
            coming_from.neo("rezero")
    assert any("lr_decay" in group.model_fields for group in keys.GROUPS)
