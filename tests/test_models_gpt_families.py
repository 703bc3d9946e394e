"""models/gpt.py as other families: transformers' GPT-J, GPT-NeoX with parallel residual, Llama."""

import graphs
import numpy as np
import pytest
from test_models_gpt import neox_names, padded, reference, run, shake

transformers = pytest.importorskip("transformers", reason="compares with transformers")


def compare(module, convert, **changes):
    """Logits, loss and gradients; `convert` brings {their parameter: array} under our names."""
    logits, loss, parameters = reference(module)
    weights, gradients = (convert({name: both[i] for name, both in parameters.items()})
                          for i in range(2))
    result = run(graphs.config(no_weight_tie=True, **changes), weights, gradients=True)
    for name in set(result.weights) - set(weights):
        assert name.endswith("/bias") and not result.weights[name].any(), name
    assert abs(logits).max() > 1, "the comparison would prove little"
    np.testing.assert_allclose(result["logits"][..., :61], logits, atol=1e-4)
    np.testing.assert_allclose(result["loss"], loss, atol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(result[f"d_{name}"], gradient, atol=1e-5, err_msg=name)
        assert abs(gradient).max() > 1e-4, name


def heads_first(kernels):
    """Our packed kernel of three torch kernels, each [heads · features, embd]."""
    return np.stack([k.reshape(4, 8, 32).transpose(2, 0, 1) for k in kernels], 1)


def test_gptj():
    def convert(theirs):
        ours = {"gpt/wte": padded(theirs["transformer.wte.weight"]),
                "gpt/head/kernel": padded(theirs["lm_head.weight"]).T,
                "gpt/head/bias": np.pad(theirs["lm_head.bias"], (0, 3)),
                "gpt/norm_f/gain": theirs["transformer.ln_f.weight"],
                "gpt/norm_f/bias": theirs["transformer.ln_f.bias"]}
        for layer in range(2):
            h, where = f"transformer.h.{layer}", f"gpt/h{layer}"
            ours.update({
                f"{where}/norm_1/gain": theirs[f"{h}.ln_1.weight"],
                f"{where}/norm_1/bias": theirs[f"{h}.ln_1.bias"],
                f"{where}/attn/qkv/kernel": heads_first(
                    theirs[f"{h}.attn.{part}_proj.weight"] for part in "qkv"),
                f"{where}/attn/out/kernel": theirs[f"{h}.attn.out_proj.weight"].T.reshape(4, 8, 32),
                f"{where}/mlp/in/kernel": theirs[f"{h}.mlp.fc_in.weight"].T,
                f"{where}/mlp/in/bias": theirs[f"{h}.mlp.fc_in.bias"],
                f"{where}/mlp/out/kernel": theirs[f"{h}.mlp.fc_out.weight"].T,
                f"{where}/mlp/out/bias": theirs[f"{h}.mlp.fc_out.bias"]})
        return ours

    module = transformers.GPTJForCausalLM(transformers.GPTJConfig(
        vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4, rotary_dim=4,
        activation_function="gelu_new", layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0))
    compare(shake(module), convert, parallel_residual="one_norm", position="rotary", rotary_dims=4,
            rotary_style="interleaved")


def test_gpt_neox_with_parallel_residual():
    def convert(theirs):
        return {ours: change(theirs[name]) for name in theirs
                for ours, change in [neox_names(name)]}

    module = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, hidden_act="gelu", max_position_embeddings=16,
        use_parallel_residual=True, tie_word_embeddings=False, layer_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0,
                         "partial_rotary_factor": 0.5}))
    compare(shake(module), convert, parallel_residual="two_norms", position="rotary",
            rotary_dims=4, rotary_base=500.0, activation_function="gelu_exact")


def test_llama():
    def convert(theirs):
        ours = {"gpt/wte": padded(theirs["model.embed_tokens.weight"]),
                "gpt/head/kernel": padded(theirs["lm_head.weight"]).T,
                "gpt/norm_f/gain": theirs["model.norm.weight"]}
        for layer in range(2):
            h, where = f"model.layers.{layer}", f"gpt/h{layer}"
            ours.update({
                f"{where}/norm_1/gain": theirs[f"{h}.input_layernorm.weight"],
                f"{where}/norm_2/gain": theirs[f"{h}.post_attention_layernorm.weight"],
                f"{where}/attn/qkv/kernel": heads_first(
                    theirs[f"{h}.self_attn.{part}_proj.weight"] for part in "qkv"),
                f"{where}/attn/out/kernel": theirs[f"{h}.self_attn.o_proj.weight"].T.reshape(
                    4, 8, 32),
                f"{where}/mlp/in/kernel": np.stack(
                    [theirs[f"{h}.mlp.{part}_proj.weight"].T for part in ("up", "gate")], 1),
                f"{where}/mlp/out/kernel": theirs[f"{h}.mlp.down_proj.weight"].T})
        return ours

    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, hidden_act="silu", max_position_embeddings=16, rms_norm_eps=1e-5,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0))
    compare(shake(module), convert, norm="rms", mlp_glu=True, activation_function="silu",
            intermediate_size=48, position="rotary")
