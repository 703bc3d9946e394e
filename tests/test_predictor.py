"""Sampling from a checkpoint: against full forward passes, transformers and its own promises."""

import io
import json
import logging
import math
import re

import numpy as np
import pytest
from test_configs_progress import Terminal

import encoders
from configs import progress, schema
from configs.errors import UserError
from mesh import devices
from mesh.compat import mtf, tf
from models import gpt, layers
from training import checkpoints, completions, predictions, predictor

N_CTX = 16
PROMPTS = [[5], [10, 20, 30, 40, 50], list(range(60, 60 + N_CTX)), list(range(100, 109))]
MESH = {"mesh_shape": "x:2,y:2",
        "layout": "batch:x,heads:y,vocab:y,intermediate_expanded:y"}


def make_config(path, **changes):
    keys = dict(n_layer=2, n_head=2, n_embd=32, n_ctx=N_CTX, n_vocab=257, pad_vocab_multiple=20,
                lr=1e-3, train_batch_size=4, train_steps=1, initializer_range=0.4,
                model_path=str(path))
    return schema.RunConfig(**{**keys, **changes})


def full_forward(config):
    """(logits as a tf tensor, its placeholder, the weights) of one row, without caches."""
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    model, ctx = gpt.GPT(config, 257), layers.Context(mesh, config)
    tokens = tf.placeholder(tf.int32, [1, config.n_ctx])
    shape = mtf.Shape([mtf.Dimension("batch", 1), mtf.Dimension("sequence", config.n_ctx)])
    logits = model.logits(ctx, model.hidden(ctx, mtf.import_tf_tensor(mesh, tokens, shape)))
    lowering = mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(config)}, autostack=False)
    weights = [variable.get_master() for variable in mesh.graph.all_variables]
    return lowering.export_to_tf_tensor(logits), tokens, weights


def save_run(config):
    """Writes a checkpoint of random weights, biases included, with its run.json."""
    with tf.Graph().as_default(), tf.Session() as session:
        _, _, weights = full_forward(config)
        session.run(tf.variables_initializer(weights))
        rng = np.random.RandomState(3)
        for weight in weights:
            if weight.op.name.endswith("/bias"):
                weight.load(rng.normal(0, 0.2, weight.shape.as_list()), session)
        tf.train.Saver(weights).save(session, f"{config.model_path}/model.ckpt", global_step=7)
    encoder = encoders.load("byte")
    facts = {"spec": "byte", "hash": encoder.hash, "n_vocab": 257, "eos_id": 256}
    checkpoints.write_record(config.model_path,
                             checkpoints.RunRecord(config.architecture(), facts, legs=[]))
    return config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return save_run(make_config(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def one_row(config):
    """A predictor of batch size 1."""
    return predictor.Predictor(config, encoders.load("byte"))


def tokens_of(model, prompts, *args, **kwargs):
    return [sample.tokens for sample in model.generate(prompts, *args, **kwargs)]


def greedy_by_full_passes(config, prompts, new):
    """Argmax of full forward passes, with the sliding window written down once more."""
    result = []
    with tf.Graph().as_default(), tf.Session() as session:
        logits, feed, weights = full_forward(config)
        tf.train.Saver(weights).restore(session, checkpoints.latest(config.model_path))
        for prompt in prompts:
            seen, made = prompt[-N_CTX:], []
            while len(made) < new:
                if len(seen) == N_CTX + 1:
                    seen = seen[-(N_CTX // 2):]
                row = seen + [0] * (N_CTX - len(seen))
                scores = session.run(logits, {feed: [row]})[0, len(seen) - 1, :257]
                if scores.argmax() == 256:
                    break
                seen = [*seen, int(scores.argmax())]
                made.append(seen[-1])
            result.append(made)
    return result


@pytest.mark.parametrize("changes", [
    {}, {"position": "rotary"}, {"position": "rotary", "rotary_dims": 4, "no_weight_tie": True},
    {"scale_by_in": True, "activation_function": "relu"},
    {"attention_types": ("linear", "local"), "local_attention_radius": 5, "num_mem_kv": 3},
    {"attention_types": ("none", "local", "global", "linear"), "n_layer": 4, "position": "rotary",
     "local_attention_radius": 3},
    {"position": "alibi", "num_mem_kv": 2}, {"attention_types": ("none", "none")}], ids=str)
def test_cached_decoding_equals_full_passes(tmp_path, changes):
    """For prompts of four lengths in one batch, and far past n_ctx."""
    config = save_run(make_config(tmp_path, predict_batch_size=4, **changes))
    model = predictor.Predictor(config, encoders.load("byte"))
    found = tokens_of(model, PROMPTS, 1, 50, temperature=0.0)
    assert found == greedy_by_full_passes(config, PROMPTS, 50)
    assert len({tuple(tokens) for tokens in found}) > 1


def test_a_small_models_loop_is_compiled(config, one_row, monkeypatch):
    """The samples are the same; short ones, other types, meshes and sizes are not compiled."""
    def compiles(config, steps=None):
        model = predictor.Predictor(config, encoders.load("byte"), steps)
        called = {op.get_attr("f").name for op in model._session.graph.get_operations()
                  if op.type.endswith("PartitionedCall")}
        model.close()
        return any("kernel" in name for name in called)

    assert compiles(config) and compiles(config, 1000) and not compiles(config, 999)
    for changes in ({"precision": "bfloat16"}, {"mesh_shape": "x:2", "layout": "heads:x"}):
        assert not compiles(config.replace(**changes))
    expected = tokens_of(one_row, PROMPTS, 3, 30, temperature=0.9, top_k=30, top_p=0.9)
    slow = predictor.Predictor(config, encoders.load("byte"), steps=30)
    assert tokens_of(slow, PROMPTS, 3, 30, temperature=0.9, top_k=30, top_p=0.9) == expected
    # Blocks, tables, the last norm; and a row's caches.
    numbers = 2 * (12 * 32**2 + 13 * 32) + (260 + N_CTX) * 32 + 2 * 32 + 2 * 2 * N_CTX * 32
    monkeypatch.setattr(predictor, "_SMALL", numbers)
    assert compiles(config) and not compiles(config.replace(predict_batch_size=2))
    monkeypatch.setattr(predictor, "_SMALL", numbers - 1)
    assert not compiles(config)


@pytest.mark.parametrize(("mesh_shape", "layout"), [
    ("", ""), ("x:4", "memory_length:x"), ("x:2", "sequence:x"), ("x:2", "features_per_head:x")])
def test_prompt_longer_than_the_prompt_block(tmp_path, mesh_shape, layout):
    """Blocks of 100 positions, each of which linear attention takes once.

    A quarter of the 200 positions of a cache is less than a block.
    """
    config = save_run(make_config(tmp_path, n_ctx=200, position="rotary",
                                  attention_types=("linear", "global")))
    prompt = list(np.random.RandomState(0).randint(0, 256, 190))
    model = predictor.Predictor(config.replace(mesh_shape=mesh_shape, layout=layout),
                                encoders.load("byte"))
    with tf.Graph().as_default(), tf.Session() as session:
        logits, feed, weights = full_forward(config)
        tf.train.Saver(weights).restore(session, checkpoints.latest(config.model_path))
        row = session.run(logits, {feed: [prompt + [0] * 10]})[0, 189, :257]
    assert tokens_of(model, [prompt], 1, 1, temperature=0.0) == [[row.argmax()]]


def test_runs_see_as_much_of_the_caches_as_is_filled(tmp_path):
    """Rows that pass 75 and 150 positions, of which each new token is that of a full pass."""
    config = save_run(make_config(tmp_path, n_ctx=200, predict_batch_size=2, position="rotary",
                                  attention_types=("local", "global"), num_mem_kv=2,
                                  local_attention_radius=70))
    prompts = [[7, 8, 9], list(np.random.RandomState(1).randint(0, 256, 60))]
    model, seen = predictor.Predictor(config, encoders.load("byte")), []
    reach = model._reach
    model._reach = lambda used: seen.append(reach(used)["reach"]) or reach(used)
    found = tokens_of(model, prompts, 1, 120, temperature=0.0)
    assert {75, 150, 200} == set(seen)
    with tf.Graph().as_default(), tf.Session() as session:
        logits, feed, weights = full_forward(config)
        tf.train.Saver(weights).restore(session, checkpoints.latest(config.model_path))
        for prompt, tokens in zip(prompts, found, strict=True):
            row = (prompt + tokens + [0] * 200)[:200]
            best = session.run(logits, {feed: [row]})[0, :, :257].argmax(-1)
            assert len(tokens) > 5
            assert tokens == best[len(prompt) - 1:][:len(tokens)].tolist()


def test_bfloat16_weights_are_kept_as_such(tmp_path):
    """Slices are half as large, and the tokens all but the likeliest of full passes."""
    config = save_run(make_config(tmp_path, precision="bfloat16", predict_batch_size=4))
    model = predictor.Predictor(config, encoders.load("byte"))
    slices = [op for op in model._session.graph.get_operations() if op.type == "VarHandleOp"
              and "_slice" in op.name]
    assert len(slices) > 20 and {op.get_attr("dtype") for op in slices} == {tf.bfloat16}
    prompts = np.random.RandomState(2).randint(0, 256, [12, 9]).tolist()
    with tf.Graph().as_default(), tf.Session() as session:
        logits, feed, weights = full_forward(config)
        tf.train.Saver(weights).restore(session, checkpoints.latest(config.model_path))
        for prompt, tokens in zip(prompts, tokens_of(model, prompts, 1, 1, temperature=0.0),
                                  strict=True):
            row = session.run(logits, {feed: [prompt + [0] * (N_CTX - 9)]})[0, 8, :257]
            row = row.astype(np.float32)
            token = tokens[0] if tokens else 256
            assert row[token] >= row.max() - 0.05 * row.std()


def test_samples_do_not_depend_on_batch_or_mesh(config, one_row):
    expected = tokens_of(one_row, PROMPTS, 2, 40, top_k=20, seed=5)
    assert len({tuple(tokens) for tokens in expected}) == 2 * len(PROMPTS)
    # heads 2, memory_length 16, features_per_head 16.
    two, four = {"predict_batch_size": 3, "mesh_shape": "x:2"}, {**MESH, "predict_batch_size": 4}
    for changes, cache in [
            ({"predict_batch_size": 3}, (3, 2, 16, 16)),
            ({"predict_batch_size": 1, **MESH}, (1, 1, 16, 16)),
            # The axis does not divide the one new token, and need not.
            ({**two, "layout": "sequence:x"}, (3, 2, 16, 16)),
            ({**two, "layout": "features_per_head:x,vocab:x"}, (3, 2, 16, 8)),
            ({**two, "mesh_shape": "x:4", "layout": "memory_length:x"}, (3, 2, 4, 16)),
            ({**four, "layout": "batch:x,memory_length:y,embd:y"}, (2, 2, 8, 16)),
            ({**four, "layout": "batch:x,heads:y,embed_sequence:x"}, (2, 1, 16, 16))]:
        model = predictor.Predictor(config.replace(**changes), encoders.load("byte"))
        assert tokens_of(model, PROMPTS, 2, 40, top_k=20, seed=5) == expected, changes
        assert cache_slices(model) == {math.prod(cache)}


def cache_slices(model):
    """The set of sizes, in numbers, of the slices of a predictor's caches."""
    operations = model._session.graph.get_operations()
    return {math.prod(d.size for d in op.get_attr("shape").dim) for op in operations
            if op.type == "VarHandleOp" and op.name.startswith("cache/")}


def test_seed_decides(one_row):
    first, again, other = (tokens_of(one_row, PROMPTS[:1], 3, 12, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    # A sample is the same whatever else is asked for, and however many tokens follow.
    assert tokens_of(one_row, PROMPTS[:1], 1, 30)[0][:12] == first[0]


def test_top_k_1_is_greedy(one_row):
    assert tokens_of(one_row, PROMPTS, 1, 20, top_k=1) == tokens_of(one_row, PROMPTS, 1, 20,
                                                                    temperature=0.0)


def test_padding_is_never_sampled(config, one_row):
    assert config.n_vocab_padded > 257
    tokens = sum(tokens_of(one_row, PROMPTS, 2, 60, temperature=50.0), [])
    assert max(tokens) < 256 and len(set(tokens)) > 60


def test_greedy_equals_transformers(config, one_row):
    torch = pytest.importorskip("torch", reason="compares with transformers' GPT-2")
    transformers = pytest.importorskip("transformers", reason="compares with its GPT-2")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=257, n_positions=N_CTX, n_embd=32, n_layer=2, n_head=2, bos_token_id=256,
        eos_token_id=256, activation_function="gelu_new", layer_norm_epsilon=1e-5)).eval()
    reader = tf.train.load_checkpoint(checkpoints.latest(config.model_path))

    def ours(name, *shape):
        value = reader.get_tensor(f"gpt/{name}")
        return torch.tensor(value.reshape(shape) if shape else value)

    state = {"transformer.wte.weight": ours("wte")[:257], "transformer.wpe.weight": ours("wpe"),
             "lm_head.weight": ours("wte")[:257], "transformer.ln_f.weight": ours("norm_f/gain"),
             "transformer.ln_f.bias": ours("norm_f/bias")}
    for i in range(2):
        for name, mine, shape in [("attn.c_attn", "attn/qkv", (32, 96)),
                                  ("attn.c_proj", "attn/out", (32, 32)),
                                  ("mlp.c_fc", "mlp/in", (32, 128)),
                                  ("mlp.c_proj", "mlp/out", (128, 32))]:
            state[f"transformer.h.{i}.{name}.weight"] = ours(f"h{i}/{mine}/kernel", *shape)
            state[f"transformer.h.{i}.{name}.bias"] = ours(f"h{i}/{mine}/bias", shape[1])
        for name, mine in [("ln_1", "norm_1"), ("ln_2", "norm_2")]:
            state[f"transformer.h.{i}.{name}.weight"] = ours(f"h{i}/{mine}/gain")
            state[f"transformer.h.{i}.{name}.bias"] = ours(f"h{i}/{mine}/bias")
    theirs.load_state_dict(state)
    for prompt in PROMPTS[:2] + PROMPTS[3:]:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                    max_length=N_CTX, pad_token_id=256)
        expected = [t for t in whole[0, len(prompt):].tolist() if t != 256]
        assert tokens_of(one_row, [prompt], temperature=0.0) == [expected]


def test_end_of_text_ends_a_row_alone(config, one_row):
    """An encoder whose end of text is a token that greedy decoding meets soon in one row."""
    plain = tokens_of(one_row, PROMPTS, 1, 30, temperature=0.0)
    encoder = encoders.load("byte")
    # One that the second row meets and the third does not.
    encoder.eos_id = next(t for t in plain[1] if t not in plain[2])
    model = predictor.Predictor(config.replace(predict_batch_size=4), encoder)
    samples = list(model.generate(PROMPTS, 1, 30, temperature=0.0))
    for sample, expected in zip(samples, plain, strict=True):
        end = expected.index(encoder.eos_id) if encoder.eos_id in expected else None
        assert sample.tokens == expected[:end]
        assert sample.reason == ("length" if end is None else "eos")
    assert {sample.reason for sample in samples} == {"length", "eos"}


def test_stop_strings(one_row):
    """The text ends before the first stop string, wherever chunks of tokens end."""
    for seed in range(3):
        whole = next(one_row.generate(PROMPTS[:1], 1, 100, seed=seed))
        for place in (0, 30, 31, 32, 60):
            stop = whole.text[place:place + 2]
            if "\ufffd" in stop or len(stop) < 2:
                continue
            cut = next(one_row.generate(PROMPTS[:1], 1, 100, seed=seed,
                                        stop=[stop, "never in it, as this is long"]))
            assert cut.text == whole.text[:whole.text.index(stop)]
            assert cut.reason == "stop"
            assert cut.tokens == whole.tokens[:len(cut.tokens)]


class Words:
    """An encoder that joins words by spaces, so that a text's pieces are not the pieces' texts."""

    eos_id = 99

    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids)


def test_row_cuts_at_the_earliest_stop():
    sample = completions.Completion([1, 2], 0, "w1 w2")
    row = completions.Row(sample, 10, 8)
    row.take([3, 4], Words(), ["w6", "w5"])
    assert (sample.text, sample.reason) == (" w3 w4", "")
    row.take([5, 6, 99], Words(), ["w6", "w5"])
    assert (sample.text, sample.tokens, sample.reason) == (" w3 w4 ", [3, 4, 5], "stop")


def test_row_windows():
    row = completions.Row(completions.Completion(list(range(9)), 0, ""), 100, 8)
    assert row.window == list(range(1, 9)) and row.steps() == 1 and not row.slide()
    row.take([20], Words(), [])
    assert row.slide() and row.window == [6, 7, 8, 20] and row.steps() == 5


def test_number_of_tokens(one_row):
    lengths = [len(tokens) for tokens in tokens_of(one_row, [[1] * 5, [1] * N_CTX], top_k=2)]
    assert lengths == [N_CTX - 5, N_CTX // 2]
    assert len(tokens_of(one_row, [[1]], 1, 33, top_k=2)[0]) == 33


def test_long_prompts_keep_their_end(one_row, caplog):
    long = list(range(40))
    with caplog.at_level(logging.WARNING):
        found = tokens_of(one_row, [long], 1, 5, temperature=0.0)
    assert "40 tokens" in caplog.text
    assert found == tokens_of(one_row, [long[-N_CTX:]], 1, 5, temperature=0.0)


def test_a_terminal_shows_how_far_it_is(one_row, monkeypatch):
    monkeypatch.setattr(progress.tqdm, "silent", False)  # --quiet of another test
    shown, delays = Terminal(), []

    def bar(delay, **keys):
        delays.append(delay)
        return progress.tqdm(file=shown, mininterval=0, **keys)

    monkeypatch.setattr(predictor, "tqdm", bar)
    rows = one_row.config.predict_batch_size
    for _ in one_row.generate([[5]], rows + 1, 2 * predictor.CHUNK + 1):
        # Samples come when their batch's bar is gone.
        assert shown.getvalue().endswith("\r")
    assert re.search(rf"samples 1 to {rows} of {rows + 1}: .* 16/65 ", shown.getvalue())
    assert f"samples {rows + 1} to {rows + 1} of {rows + 1}: " in shown.getvalue()
    assert delays == [2, 2]


def test_one_session_and_one_graph(config, monkeypatch, capsys):
    """Any number of prompts and settings, and the weights read once."""
    made, restored = [], []
    session, restore = tf.Session, tf.train.Saver.restore
    monkeypatch.setattr(tf, "Session", lambda **kw: made.append(kw) or session(**kw))
    monkeypatch.setattr(tf.train.Saver, "restore",
                        lambda *args: restored.append(args) or restore(*args))
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n\nthree"))
    predictions.predict(config, prompts=["a", "bcd"], num_samples=2, max_new_tokens=4,
                        interactive=True, stop=["x"])
    assert len(made) == len(restored) == 1
    assert capsys.readouterr().out.count(predictions.SEPARATOR) == 4 + 8


def test_predict_prints_and_appends(config, one_row, tmp_path, capsys):
    path = str(tmp_path / "new" / "samples.jsonl")
    config = config.replace(predict_path=path)
    for _ in range(2):
        predictions.predict(config, prompts=["ab", ""], num_samples=2, max_new_tokens=6, seed=9,
                            temperature=0.7, top_k=30)
    printed = capsys.readouterr()
    samples = [s for prompt in ([97, 98], [256])
               for s in one_row.generate([prompt], 2, 6, seed=9, temperature=0.7, top_k=30)]
    once = "".join(f"{s.head}{s.text}\n---------------\n" for s in samples)
    assert printed.out == once * 2 and once.startswith("ab")
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert len(lines) == 8 and lines[:4] == lines[4:]
    assert [line["text"] for line in lines[:4]] == [s.text for s in samples]
    assert lines[1]["prompt"] == "ab" and lines[1]["sample"] == 1 and lines[1]["seed"] == 9
    assert lines[1]["checkpoint"].endswith("model.ckpt-7")


def test_interactive_goes_on_after_a_bad_prompt(config, monkeypatch, capsys):
    real = completions.encode_prompt

    def picky(encoder, prompt):
        if prompt == "bad":
            raise UserError("prompt: no")
        return real(encoder, prompt)

    monkeypatch.setattr(predictions, "encode_prompt", picky)
    monkeypatch.setattr("sys.stdin", io.StringIO("bad\ngood\n"))
    predictions.predict(config, prompts=[], max_new_tokens=2, interactive=True)
    printed = capsys.readouterr()
    assert printed.out.startswith("good") and printed.out.count(predictions.SEPARATOR) == 1
    assert printed.err == "error: prompt: no\n"


def char_encoder(tmp_path, text):
    from encoders import char

    path = tmp_path / "chars.json"
    char.train([text]).save(str(path))
    return encoders.load(f"char:{path}")


def test_prompts_of_characters(tmp_path):
    encoder = char_encoder(tmp_path, "ab\n")
    assert encoder.decode(completions.encode_prompt(encoder, "")) == "\n"
    with pytest.raises(UserError, match="prompt: .*'z'"):
        completions.encode_prompt(encoder, "az")
    (tmp_path / "other").mkdir()
    one_line = char_encoder(tmp_path / "other", "ab")
    assert completions.encode_prompt(one_line, "") == [one_line.eos_id]


def test_prompt_without_tokens():
    class Nothing:
        name = spec = "nothing"

        def encode(self, text):
            return []

    with pytest.raises(UserError, match="finds no token in '  '"):
        completions.encode_prompt(Nothing(), "  ")


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint there; train"):
        predictions.predict(make_config(tmp_path), prompts=["a"])


@pytest.mark.parametrize("recorded", [True, False])
def test_checkpoint_of_another_shape(config, recorded, tmp_path):
    """Said by run.json where there is one, else by the first tensor that differs."""
    if recorded:
        with pytest.raises(UserError, match=r"n_embd = 32.* 64"):
            predictor.Predictor(config.replace(n_embd=64), encoders.load("byte"))
        return
    bare = save_run(make_config(tmp_path))
    tf.io.gfile.remove(str(tmp_path / "run.json"))
    encoder = encoders.load("byte")
    with pytest.raises(UserError, match=r"gpt/wte has shape \[260, 32\].*\[260, 64\]"):
        predictor.Predictor(bare.replace(n_embd=64), encoder)
    with pytest.raises(UserError, match="has no gpt/h2/"):
        predictor.Predictor(bare.replace(n_layer=3, attention_types=None), encoder)


def test_changed_encoder(config, tmp_path):
    other = save_run(make_config(tmp_path))
    record = checkpoints.read_record(other.model_path)
    record.encoder["hash"] = "0" * 16
    checkpoints.write_record(other.model_path, record)
    with pytest.raises(UserError, match="hash"):
        predictions.predict(other, prompts=["a"])


def test_optimizer_state_is_not_read(tmp_path):
    """A checkpoint with slots and a step beside the weights is read all the same."""
    config = make_config(tmp_path)
    save_run(config)
    with tf.Graph().as_default(), tf.Session() as session:
        _, _, weights = full_forward(config)
        tf.train.Saver(weights).restore(session, checkpoints.latest(config.model_path))
        with tf.variable_scope("gpt"):
            slot = tf.get_variable("wte/adam_m", [3])
        step = tf.train.get_or_create_global_step()
        session.run(tf.variables_initializer([slot, step]))
        before = tokens_of(predictor.Predictor(config, encoders.load("byte")), PROMPTS, 1, 5)
        tf.train.Saver([*weights, slot, step]).save(session, f"{config.model_path}/model.ckpt",
                                                    global_step=8)
    model = predictor.Predictor(config, encoders.load("byte"))
    assert model.checkpoint.endswith("-8")
    assert tokens_of(model, PROMPTS, 1, 5) == before
