"""Small CLIP models of transformers with random weights, as references for tests."""

import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def text_model(seed=0, activation="quick_gelu", width=32, layers=2, heads=2, out=16, vocab=50,
               context=12, intermediate=128):
    """A CLIPTextModelWithProjection whose every weight, biases and norms too, is random."""
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, projection_dim=out, vocab_size=vocab, hidden_act=activation,
        max_position_embeddings=context, bos_token_id=vocab - 2, eos_token_id=vocab - 1)
    return randomise(transformers.CLIPTextModelWithProjection(config), seed)


def randomise(model, seed):
    """Sets every parameter to a random value of a size at which all of them matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise * (0.5 if "embed" in name else p.shape[-1] ** -0.5))
            else:
                p.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
    return model.eval()


def openai_names(model):
    """A text model's state dict under OpenAI's names: {name: tensor}."""
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    state, out = model.state_dict(), {}
    text = "text_model."
    out["token_embedding.weight"] = state[text + "embeddings.token_embedding.weight"]
    out["positional_embedding"] = state[text + "embeddings.position_embedding.weight"]
    out["text_projection"] = state["text_projection.weight"].T.contiguous()
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = state[f"{text}final_layer_norm.{kind}"]
        for i in range(model.config.num_hidden_layers):
            theirs, ours = f"{text}encoder.layers.{i}.", f"transformer.resblocks.{i}."
            out[f"{ours}attn.in_proj_{kind}"] = torch.cat(
                [state[f"{theirs}self_attn.{x}_proj.{kind}"] for x in "qkv"])
            for old, new in parts.items():
                out[f"{ours}{new}.{kind}"] = state[f"{theirs}{old}.{kind}"]
    out["logit_scale"] = torch.tensor(4.6)
    return out


def texts(seed, batch=4, context=12, vocab=50):
    """Tokens [batch, context] of random texts with start and end, and where they end [batch]."""
    random = np.random.RandomState(seed)
    tokens = random.randint(0, vocab - 2, [batch, context])
    ends = random.randint(2, context, [batch])
    tokens[:, 0] = vocab - 2
    tokens[np.arange(batch), ends] = vocab - 1
    return tokens.astype(np.int32), ends.astype(np.int32)


def embeddings(model, tokens, ends):
    """What the model gives at the given ends: a torch tensor [batch, out]."""
    tokens = torch.tensor(np.asarray(tokens), dtype=torch.long)
    hidden = model.text_model(input_ids=tokens).last_hidden_state
    return model.text_projection(hidden[torch.arange(len(tokens)), torch.tensor(ends).long()])
