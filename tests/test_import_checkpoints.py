"""interop/: checkpoints of nanoGPT, GPT-Neo's own program, OpenAI's and ConnorJL's become runs."""

import json
import os
import zipfile

import numpy as np
import pytest
import test_import_clip
import test_import_gpt
import test_models_gpt

from mesh.compat import tf

torch = pytest.importorskip("torch", reason="compares with transformers")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

do_import = test_import_clip.do_import


def save(path, variables):
    """Writes a TensorFlow checkpoint of {name: values}."""
    with tf.Graph().as_default(), tf.Session() as session:
        session.run([tf.get_variable(name, initializer=tf.constant(values)).initializer
                     for name, values in variables.items()])
        tf.train.Saver().save(session, str(path), write_meta_graph=False)


def openai_variables(module):
    """transformers' GPT-2 under OpenAI's names."""
    found = {}
    for name, values in module.transformer.state_dict().items():
        *where, end = name.split(".")
        if where[0] == "h":
            where[:2] = [f"h{where[1]}"]
        end = {"weight": "g", "bias": "b"}[end] if where[-1].startswith("ln_") else end[0]
        values = values.numpy()
        found["/".join(["model", *where, *([] if where[-1] in ("wte", "wpe") else [end])])] = (
            values[None] if end == "w" and where[-1].startswith("c_") else values)
    return found


def neo_variables(module):
    """transformers' GPT-Neo under the names of GPT-Neo's own program."""
    state = {name: values.numpy() for name, values in module.transformer.state_dict().items()}
    found = {"gpt2/wte": state["wte.weight"], "gpt2/wpe": state["wpe.weight"],
             "gpt2/ln_f/g": state["ln_f.weight"], "gpt2/ln_f/b": state["ln_f.bias"]}
    for layer in range(module.config.num_layers):
        theirs, ours = f"h.{layer}.", f"gpt2/h{layer}/"
        for number in "12":
            found[f"{ours}norm_{number}/g"] = state[f"{theirs}ln_{number}.weight"]
            found[f"{ours}norm_{number}/b"] = state[f"{theirs}ln_{number}.bias"]
        for letter in "qkv":
            found[f"{ours}attn/{letter}"] = state[f"{theirs}attn.attention.{letter}_proj.weight"].T
        found[f"{ours}attn/o"] = state[f"{theirs}attn.attention.out_proj.weight"].T
        found[f"{ours}attn/compute_output_bias/o_b"] = state[
            f"{theirs}attn.attention.out_proj.bias"]
        for name in ("c_fc", "c_proj"):
            found[f"{ours}mlp/conv1d_main/{name}/kernel"] = state[f"{theirs}mlp.{name}.weight"].T
            found[f"{ours}mlp/conv1d_main/{name}/bias"] = state[f"{theirs}mlp.{name}.bias"]
    return found


# As published beside GPT-Neo 2.7B, with sizes of our own.
NEO_CONFIG = {
    "n_head": 5, "n_vocab": 61, "embed_dropout": 0, "lr": 0.00016, "lr_decay": "cosine",
    "warmup_steps": 3000, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-08, "ada_epsilon1": "1e-30",
    "ada_epsilon2": 1e-3, "opt_name": "adam", "weight_decay": 0, "train_batch_size": 512,
    "attn_dropout": 0, "train_steps": 400000, "lr_decay_end": 300000, "eval_steps": 10,
    "predict_steps": 0, "res_dropout": 0, "eval_batch_size": 128, "predict_batch_size": 128,
    "iterations": 500, "n_embd": 20, "datasets": [["pile", None, None, None]],
    "model_path": "gs://neo-d/models/GPT3_2-7B", "n_ctx": 16, "n_layer": 3, "scale_by_depth": True,
    "scale_by_in": False, "attention_types": [[["global", "local", "local"], 1]],
    "local_attention_radius": 6, "mesh_shape": "x:64,y:4", "layout":
    "intermediate_expanded:x,heads:x,memory_length:y,embd:y", "activation_function": "gelu",
    "recompute_grad": True, "gradient_clipping": 1.0, "tokens_per_mb_per_replica": 4096,
    "padding_id": 50257, "eos_id": 50256}


def write_neo(source, config=(), variables=(), module=None):
    """Writes a checkpoint with optimizer slots; returns the module whose weights are in it."""
    module = module or test_import_gpt.neo()
    found = {**neo_variables(module), **dict(variables)}
    slots = {f"{name}/adam_m": values for name, values in found.items()}
    slots.update({f"{name}_slot_v": values for name, values in found.items()})
    save(source / "model.ckpt-400000", {**found, **slots, "global_step": np.int64(400000)})
    (source / "config.json").write_text(json.dumps({**NEO_CONFIG, **dict(config)}))
    return module


def logits_equal(directory, module):
    expected = test_models_gpt.reference(module)[0]
    np.testing.assert_allclose(test_import_gpt.logits_of(directory), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.5


def test_gpt_neos_own_checkpoint(tmp_path, capsys):
    module, source = write_neo(tmp_path), tmp_path
    # The file says where it was written, and that is elsewhere.
    (source / "checkpoint").write_text(
        'model_checkpoint_path: "gs://neo-d/models/GPT3_2-7B/model.ckpt-400000"\n')
    assert do_import(capsys, source, tmp_path / "run").status == 0
    logits_equal(tmp_path / "run", module)


@pytest.mark.parametrize("extra", [{}, {"attention_types": [[["global"], 3]], "precision":
                                        "bfloat16"}], ids=["local", "global"])
def test_gpt_neos_checkpoint_by_its_prefix(tmp_path, capsys, extra):
    module = test_import_gpt.neo(**{key: extra[key] for key in extra if key != "precision"})
    write_neo(tmp_path, extra, module=module)
    assert do_import(capsys, tmp_path / "model.ckpt-400000", tmp_path / "run").status == 0
    logits_equal(tmp_path / "run", module)


def test_a_table_of_tokens_that_is_padded(tmp_path, capsys):
    module = test_import_gpt.neo()
    table = module.transformer.wte.weight.detach().numpy()
    write_neo(tmp_path, variables={"gpt2/wte": np.pad(table, [(0, 11), (0, 0)])}, module=module)
    result = do_import(capsys, tmp_path, tmp_path / "run")
    assert json.loads(result.stdout)["n_vocab"] == 72
    logits_equal(tmp_path / "run", module)


# ConnorJL's PrettyBig.json with sizes of our own.
PRETTY = {
    "n_head": 3, "encoder_path": "/home/connor/GPT2/encoder", "n_vocab": 61, "embed_dropout": 0.0,
    "lr": 0.00025, "warmup_steps": 2000, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.98,
    "epsilon": 1e-9, "opt_name": "adam", "train_batch_size": 256, "attn_dropout": 0.0,
    "train_steps": 10000, "eval_steps": 10, "max_steps": 604800, "data_path": "gs://c/openwebtext/",
    "res_dropout": 0.1, "predict_batch_size": 1, "eval_batch_size": 256, "iterations": 100,
    "n_embd": 21, "input": "openwebtext_longbiased", "model": "GPT2", "model_path": "gs://c/m",
    "n_ctx": 16, "predict_path": "logs/p.txt", "n_layer": 2, "scale_by_depth": True,
    "scale_by_in": True}
SIZES = {"n_vocab": 61, "n_ctx": 16, "n_embd": 21, "n_head": 3, "n_layer": 2}


@pytest.mark.parametrize(("file", "keys", "slots"), [
    ("hparams.json", SIZES, []), ("config.json", PRETTY, ["Adam", "Adam_1"]),
    ("config.json", {"n_head": 3}, ["Adafactor", "AdafactorW_1"])], ids=["openai", "big", "heads"])
def test_openais_and_connorjls_checkpoints(tmp_path, capsys, file, keys, slots):
    module = test_import_gpt.gpt2()
    variables = openai_variables(module)
    variables.update({f"{name}/{slot}": values for slot in slots
                      for name, values in list(variables.items())})
    save(tmp_path / "model.ckpt", {**variables, "global_step": np.int64(7),
                                   "beta1_power": np.float32(0)})
    (tmp_path / file).write_text(json.dumps(keys))
    result = do_import(capsys, tmp_path, tmp_path / "run")
    assert result.status == 0, result.stderr
    assert {key: json.loads(result.stdout)[key] for key in SIZES} == SIZES
    logits_equal(tmp_path / "run", module)


def test_without_a_config_heads_are_64_wide_and_bfloat16_is_read(tmp_path, capsys):
    module = test_import_gpt.gpt2(n_embd=128, n_head=2, n_layer=1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16().float() / 4)
    save(tmp_path / "model.ckpt", {name: values.astype(tf.bfloat16.as_numpy_dtype)
                                   for name, values in openai_variables(module).items()})
    result = do_import(capsys, tmp_path, tmp_path / "run")
    assert json.loads(result.stdout)["n_head"] == 2, result.stderr
    logits_equal(tmp_path / "run", module)


class Nano(torch.nn.Module):
    """nanoGPT's model, stated anew, with its names of parameters."""

    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd, bias):
        super().__init__()

        def dense(inputs, outputs):
            return torch.nn.Linear(inputs, outputs, bias=bias)

        def norm():
            return torch.nn.LayerNorm(n_embd, bias=bias)

        def block():
            return torch.nn.ModuleDict({
                "ln_1": norm(), "attn": torch.nn.ModuleDict({
                    "c_attn": dense(n_embd, 3 * n_embd), "c_proj": dense(n_embd, n_embd)}),
                "ln_2": norm(), "mlp": torch.nn.ModuleDict({
                    "c_fc": dense(n_embd, 4 * n_embd), "c_proj": dense(4 * n_embd, n_embd)})})

        self.heads = n_head
        self.transformer = torch.nn.ModuleDict({
            "wte": torch.nn.Embedding(vocab_size, n_embd),
            "wpe": torch.nn.Embedding(block_size, n_embd),
            "h": torch.nn.ModuleList([block() for _ in range(n_layer)]), "ln_f": norm()})
        self.lm_head = dense(n_embd, vocab_size)
        self.lm_head.bias, self.lm_head.weight = None, self.transformer.wte.weight

    def forward(self, tokens):
        parts, (rows, length) = self.transformer, tokens.shape
        x = parts.wte(tokens) + parts.wpe(torch.arange(length))
        for block in parts.h:
            q, k, v = (t.reshape(rows, length, self.heads, -1).transpose(1, 2)
                       for t in block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block.attn.c_proj(y.transpose(1, 2).reshape(x.shape))
            x = x + block.mlp.c_proj(torch.nn.functional.gelu(block.mlp.c_fc(block.ln_2(x))))
        return transformers.modeling_outputs.CausalLMOutput(
            logits=self.lm_head(parts.ln_f(x)))


NANO = dict(n_layer=2, n_head=3, n_embd=21, block_size=16, bias=False, vocab_size=61)


def write_nano(path, prefix="", **changes):
    """Writes what nanoGPT's train.py does, after a step of its optimizer; returns the model."""
    arguments = {**NANO, **changes}
    module = test_models_gpt.shake(Nano(**arguments))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    test_models_gpt.reference(module)
    optimizer.step()
    state = {f"{prefix}{name}": values for name, values in module.state_dict().items()}
    state[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "iter_num": 5,
                "model_args": {**arguments, "dropout": 0.2}, "best_val_loss": torch.tensor(1.5),
                "config": {"out_dir": "out", "learning_rate": 1e-3, "compile": True}}, path)
    return module


@pytest.mark.parametrize(("prefix", "changes"), [
    ("", {}), ("_orig_mod.", {"bias": True, "n_embd": 24})], ids=["no bias", "compiled"])
def test_nanogpts_checkpoint(tmp_path, capsys, prefix, changes):
    module = write_nano(tmp_path / "ckpt.pt", prefix, **changes)
    source = tmp_path / "ckpt.pt" if prefix else tmp_path
    result = do_import(capsys, source, tmp_path / "run")
    assert result.status == 0, result.stderr
    logits_equal(tmp_path / "run", module)


def refused(result, directory, *words):
    """It is one line with these words in it, and nothing is left behind."""
    assert len(result.error.splitlines()) == 1
    for word in words:
        assert word in result.error
    assert sorted(path.name for path in directory.iterdir()) == ["source"]


@pytest.mark.parametrize(("config", "variables", "words"), [
    ({"n_layer": 4, "attention_types": [[["global"], 4]]}, {}, "h3/norm_1/g is missing"),
    ({"n_layer": 2, "attention_types": [[["global"], 2]]}, {}, "h2/attn/compute_output_bias/o_b:"),
    ({"n_head": 3}, {}, "n_head: 3 does not divide"), ({"n_ctx": 32}, {}, "shape (16, 20) instead"),
    ({"n_layer": 300, "attention_types": None}, {}, "describes a model of 300 layers"),
    ({"n_layer": 10**9}, {}, "n_layer"), ({"attention_types": [[["global"], 10**9]]}, {}, "1000"),
    ({"rotary_emb": True}, {}, "position: 'rotary': only models as GPT-Neo published"),
    ({"scalenorm": True}, {}, "norm: 'centred_scale'"), ({"moe_layers": [1]}, {}, "moe_layers"),
    ({"mlm_training": True}, {}, "mlm_training"), ({"no_weight_tie": True}, {}, "no_weight_tie"),
    ({}, {"gpt2/h1/attn/q": np.ones([20, 19], np.float32)}, "shape (20, 19) instead of (20, 20)"),
    ({}, {"gpt2/h1/attn/q": np.ones([20, 20], np.int32)}, "int32 instead of floating point"),
    ({}, {"gpt2/h1/attn/q": np.full([20, 20], np.nan, np.float32)}, "h1/attn/q: holds values"),
    ({}, {"gpt2/wte": np.ones(20, np.float32)}, "gpt2/wte: shape (20,), where 2 dimensions"),
    ({}, {"gpt2/h0/mlp_macaron/x": np.ones(2, np.float32)}, "h0/mlp_macaron/x:")])
def test_gpt_neos_that_are_refused(tmp_path, capsys, config, variables, words):
    source = tmp_path / "source"
    source.mkdir()
    write_neo(source, config, variables)
    refused(do_import(capsys, source, tmp_path / "run"), tmp_path, words, str(source))


@pytest.mark.parametrize("how", ["cut", "no data", "no config", "two", "unknown", "forged", "text"])
def test_checkpoints_that_are_refused(tmp_path, capsys, how):
    source = tmp_path / "source"
    source.mkdir()
    write_neo(source)
    path, index = source / "model.ckpt-400000", source / "model.ckpt-400000.index"
    data = source / "model.ckpt-400000.data-00000-of-00001"
    words = "damaged"
    if how == "cut":
        data.write_bytes(data.read_bytes()[:3000])
    elif how == "no data":
        data.unlink()
    elif how == "no config":
        (source / "config.json").unlink()
        words = "config.json: missing; a checkpoint of GPT-Neo needs"
    elif how == "two":
        save(source / "model.ckpt-7", {"gpt2/wte": np.ones([2, 2], np.float32)})
        (source / "checkpoint").unlink()
        words = f"holds several checkpoints; give one of them, such as {source}/model.ckpt-7"
    elif how == "unknown":
        path, words = source / "m.ckpt", "none of the variables gpt2/wte, model/wte"
        save(path, {"gpt/wte": np.ones([2, 2], np.float32)})
    elif how == "forged":
        forge(index)
        words = "damaged: TensorFlow cannot read its index"
    elif how == "text":
        index.write_text("this is an index, says its name" * 99)
    given = source if how == "two" else path
    refused(do_import(capsys, given, tmp_path / "run"), tmp_path, words, str(source))


def forge(index):
    """Damages the first entry of an index, with the right checksum: TensorFlow aborts at it."""
    import google_crc32c

    content = bytearray(index.read_bytes())
    # A block ends in its type, 0, and its masked checksum; the metadata come first.
    size = next(n for n in range(1, len(content) - 5) if content[n:n + 1] == b"\0"
                and masked(google_crc32c.value(bytes(content[:n + 1]))) == content[n + 1:n + 5])
    place = content.index(b"global_step", 0, size) + len("global_step")
    content[place:place + 2] = b"\xff\xff"  # begins its protocol buffer
    content[size + 1:size + 5] = masked(google_crc32c.value(bytes(content[:size + 1])))
    index.write_bytes(content)


def masked(crc):
    return ((((crc >> 15) | (crc << 17)) + 0xa282ead8) & 0xffffffff).to_bytes(4, "little")


@pytest.mark.parametrize(("how", "words"), [
    ("evil", "refused: it asks to load"), ("arguments", "model_args: n_head: -3: a whole number"),
    ("layers", "describes a model of 100000 layers"), ("bias", "h.0.attn.c_attn.bias:"),
    ("missing", "ln_f.weight is missing"), ("compressed", "compressed"), ("cut", "damaged")])
def test_nanogpts_that_are_refused(tmp_path, capsys, how, words):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    source = tmp_path / "source"
    source.mkdir()
    path = source / "ckpt.pt"
    write_nano(path, bias=True)
    content = torch.load(path)
    if how == "evil":
        content["config"]["device"] = Evil()
    elif how == "arguments":
        content["model_args"]["n_head"] = -3
    elif how == "layers":
        content["model_args"]["n_layer"] = 100000
    elif how == "bias":
        content["model_args"]["bias"] = False
    elif how == "missing":
        del content["model"]["transformer.ln_f.weight"]
    torch.save(content, path)
    if how == "compressed":
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(
                tmp_path / "new", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        (tmp_path / "new").rename(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    refused(do_import(capsys, path, tmp_path / "run"), tmp_path, words, str(path))


def test_a_torch_file_of_something_else_is_no_model(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    torch.save({"model": {"a": torch.ones(2)}}, source / "ckpt.pt")
    refused(do_import(capsys, source / "ckpt.pt", tmp_path / "run"), tmp_path, "no CLIP text tower")


def test_a_source_with_a_scheme(tmp_path, capsys):
    module, source = write_neo(tmp_path), "ram://import_checkpoints/neo"
    for name in tf.io.gfile.listdir(str(tmp_path)):
        tf.io.gfile.copy(f"{tmp_path}/{name}", f"{source}/{name}", overwrite=True)
    result = do_import(capsys, source, tmp_path / "run")
    assert result.status == 0, result.stderr
    logits_equal(tmp_path / "run", module)
