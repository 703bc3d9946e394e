"""interop/import_clip.py: a CLIP text tower from elsewhere becomes a run, by way of main.py."""

import json
import re
import sys
import types

import clip_runs
import graphs
import jobs
import numpy as np
import pytest
from test_configs_progress import Terminal

import main
from configs import progress, schema
from configs.errors import UserError
from interop import import_clip
from mesh.compat import mtf, tf
from models import clip, layers
from training import checkpoints, keeping
from training.contrastive import text_sizes

torch = pytest.importorskip("torch", reason="writes PyTorch's files")
clip_models = pytest.importorskip("clip_models", reason="compares with transformers")

ODD = dict(width=48, layers=3, heads=4, out=20, vocab=70, context=9, intermediate=192)
# As wide as a head of OpenAI's, since a state dict by itself does not tell the number of heads.
OPENAI = dict(width=64, layers=2, heads=1, out=20, vocab=70, context=9, intermediate=256)


def save(model, path, naming="hugging face"):
    """Writes a model as its system would; returns what --import_from takes."""
    path.mkdir(exist_ok=True)
    if naming == "hugging face":
        model.save_pretrained(path)
        return str(path)
    torch.save(clip_models.openai_names(model), path / "tower.pt")
    return str(path / "tower.pt")


def run_main(capsys, *flags):
    capsys.readouterr()
    with jobs.quiet():
        status = main.main([*map(str, flags), "--quiet"])
    return jobs.Result(status, *capsys.readouterr())


def do_import(capsys, source, directory, *flags):
    return run_main(capsys, "--import_from", source, "--model_path", directory, *flags)


def embeddings(directory, tokens, ends, mesh_shape="", layout=""):
    """A tower made of the run's config and restored from its checkpoint as training does it."""
    config = schema.load(f"{directory}/config.json", [
        "train_batch_size=4", "eval_batch_size=4", f"mesh_shape={mesh_shape}", f"layout={layout}"])
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        batch = graphs.dim("batch", len(tokens))
        y = clip.TextTower(text_sizes(config)).embed(
            layers.Context(mesh, config),
            graphs.give(mesh, tokens, batch, graphs.dim("clip_sequence", tokens.shape[1])),
            graphs.give(mesh, ends, batch))
        shape = mtf.convert_to_shape(mesh_shape)
        devices = [f"cpu:{i}" for i in range(shape.size)] if mesh_shape else [""]
        lowering = mtf.Lowering(graph, {mesh: mtf.placement_mesh_impl.PlacementMeshImpl(
            shape, mtf.convert_to_layout_rules(layout), devices)}, autostack=False)
        tf.train.get_or_create_global_step()
        saver = tf.train.Saver(tf.global_variables())
        with tf.Session(config=tf.ConfigProto(device_count={"CPU": 4})) as session:
            saver.restore(session, checkpoints.latest(directory))
            session.run(lowering.copy_masters_to_slices())
            return session.run(lowering.export_to_tf_tensor(y))


def openai_embeddings(state, tokens, ends, heads, activation):
    """OpenAI's text transformer, step by step, on a state dict under its names."""
    def norm(x, name):
        return torch.nn.functional.layer_norm(
            x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"])

    def dense(x, name):
        return x @ state[name + ".weight"].T + state[name + ".bias"]

    tokens, ends = torch.tensor(tokens).long(), torch.tensor(ends).long()
    n = tokens.shape[1]
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"][:n]
    mask = torch.full([n, n], -torch.inf).triu(1)
    layer = 0
    while f"transformer.resblocks.{layer}.ln_1.weight" in state:
        block = f"transformer.resblocks.{layer}."
        h = norm(x, block + "ln_1").transpose(0, 1)
        h, _ = torch.nn.functional.multi_head_attention_forward(
            h, h, h, x.shape[-1], heads, state[block + "attn.in_proj_weight"],
            state[block + "attn.in_proj_bias"], None, None, False, 0.0,
            state[block + "attn.out_proj.weight"], state[block + "attn.out_proj.bias"],
            training=False, attn_mask=mask)
        x = x + h.transpose(0, 1)
        h = dense(norm(x, block + "ln_2"), block + "mlp.c_fc")
        x = x + dense(activation(h), block + "mlp.c_proj")
        layer += 1
    x = norm(x, "ln_final")[torch.arange(len(tokens)), ends]
    return (x @ state["text_projection"]).numpy()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("mesh_shape, layout", [
    ("", ""), ("x:2,y:2", "batch:x,clip_vocab:y,clip_heads:y,clip_intermediate:y")])
def test_embeddings_equal_transformers(capsys, tmp_path, activation, mesh_shape, layout):
    model = clip_models.text_model(seed=3, activation=activation, **ODD)
    summary = do_import(capsys, save(model, tmp_path / "hf"), tmp_path / "run").summary
    assert summary == {
        "model_path": str(tmp_path / "run"), "parameters": sum(p.numel() for p in
                                                               model.parameters()),
        "width": 48, "layers": 3, "heads": 4, "context": 9, "vocab": 70, "out": 20,
        "activation": {"gelu": "gelu_exact"}.get(activation, activation), "encoder": None}
    tokens, ends = clip_models.texts(1, context=9, vocab=70)
    expected = model(input_ids=torch.tensor(tokens, dtype=torch.long)).text_embeds.detach()
    found = embeddings(str(tmp_path / "run"), tokens, ends, mesh_shape, layout)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert abs(found).max() > 0.5


def test_embeddings_equal_openais(capsys, tmp_path):
    model = clip_models.text_model(seed=4, **OPENAI)
    source = save(model, tmp_path / "openai", "openai")
    assert do_import(capsys, source, tmp_path / "run").summary["heads"] == 1
    tokens, ends = clip_models.texts(2, context=9, vocab=70)
    expected = openai_embeddings(torch.load(source), tokens, ends, 1,
                                 lambda x: x * torch.sigmoid(1.702 * x))
    np.testing.assert_allclose(embeddings(str(tmp_path / "run"), tokens, ends), expected,
                               atol=1e-4)


def test_the_run_is_like_any_other(capsys, tmp_path):
    model = clip_models.text_model(**ODD)
    directory = str(tmp_path / "run")
    do_import(capsys, save(model, tmp_path / "hf"), directory)
    config = schema.load(f"{directory}/config.json")
    assert config.model == "clip" and config.model_path == directory
    assert str(tmp_path / "hf") in config.about
    record = checkpoints.read_record(directory)
    checkpoints.check_fits(config, record)
    assert record.legs == [] and set(record.encoder.values()) == {None}
    assert keeping.step_of(checkpoints.latest(directory)) == 0
    reader = tf.train.load_checkpoint(checkpoints.latest(directory))
    types_of = reader.get_variable_to_dtype_map()
    assert types_of.pop("global_step") == tf.int64 and reader.get_tensor("global_step") == 0
    assert set(types_of.values()) == {tf.float32}
    table = reader.get_tensor("clip_text/wte")
    assert table.shape == (128, 48) and not table[70:].any()
    np.testing.assert_array_equal(
        table[:70], model.text_model.embeddings.token_embedding.weight.detach())
    shown = run_main(capsys, "--model", f"{directory}/config.json", "--print_config").stdout
    assert "clip.out" in shown
    # The directory may be moved: its checkpoint file says where nothing is.
    (tmp_path / "run").rename(tmp_path / "moved")
    assert checkpoints.latest(str(tmp_path / "moved")) == str(tmp_path / "moved/model.ckpt-0")


@pytest.mark.parametrize("found", [True, False])
def test_clips_number_of_ids_means_clips_encoder(tmp_path, monkeypatch, capsys, found):
    def load(spec):
        assert spec == "clip"
        if not found:
            raise UserError("no merges here")
        return types.SimpleNamespace(hash="0123456789abcdef")

    monkeypatch.setattr(import_clip.encoders, "load", load)
    model = clip_models.text_model(width=8, heads=1, layers=1, out=4, vocab=49408,
                                   intermediate=32)
    summary = do_import(capsys, save(model, tmp_path / "hf"), tmp_path / "run").summary
    assert summary["encoder"] == "clip"
    assert checkpoints.read_record(str(tmp_path / "run")).encoder == {
        "spec": "clip", "hash": "0123456789abcdef" if found else None, "n_vocab": 49408,
        "eos_id": 49407}


def test_a_terminal_shows_how_far_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(progress.tqdm, "silent", False)  # --quiet of another test
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    clip_runs.teacher(tmp_path, 259)
    assert re.search(r"reading: .*0/1 .*writing: .* 0/17 ", shown.getvalue())


def test_a_run_is_replaced_with_new_alone(capsys, tmp_path):
    first, second = (save(clip_models.text_model(seed, **ODD), tmp_path / f"hf{seed}")
                     for seed in (1, 2))
    directory = tmp_path / "run"
    do_import(capsys, first, directory)

    def contents():
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    before = contents()
    assert f"{directory}: holds a run; give --new" in do_import(capsys, second, directory).error
    assert "give --yes as well" in do_import(capsys, second, directory, "--new").error
    # What cannot be imported does not cost the run that is there.
    damaged = clip_models.openai_names(clip_models.text_model(**OPENAI))
    del damaged["ln_final.bias"]
    torch.save(damaged, tmp_path / "damaged.pt")
    message = do_import(capsys, tmp_path / "damaged.pt", directory, "--new", "--yes").error
    assert "ln_final.bias is missing" in message
    assert contents() == before
    assert do_import(capsys, second, directory, "--new", "--yes").status == 0
    assert set(contents()) == set(before) and contents() != before


@pytest.mark.parametrize("kind, message", [
    ("intermediate", "feed-forward width is 96; this release takes only .* it is 128"),
    ("ids", "start token's id is 5; this release takes only .* it is 48"),
    ("BERT", "no CLIP text tower: .*; docs/interop.md lists what can be imported"),
    ("absent", "absent: no such file"),
    ("text", "notes.txt: "),
])
def test_what_cannot_be_imported_leaves_nothing_behind(capsys, tmp_path, kind, message):
    source = tmp_path / "source"
    if kind == "BERT":
        import transformers

        transformers.BertModel(transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            vocab_size=10, max_position_embeddings=4)).save_pretrained(source)
    elif kind == "absent":
        source = tmp_path / "absent"
    elif kind == "text":
        source = tmp_path / "notes.txt"
        source.write_text("no tensors")
    else:
        keys = {"intermediate": 96} if kind == "intermediate" else {}
        save(clip_models.text_model(**keys), source)
        if kind == "ids":
            config = json.loads((source / "config.json").read_text())
            (source / "config.json").write_text(json.dumps({**config, "bos_token_id": 5}))
    before = sorted(tmp_path.iterdir())
    error = do_import(capsys, source, tmp_path / "run").error
    assert str(source) in error
    with pytest.raises(UserError, match=message):
        import_clip.import_clip(str(source), str(tmp_path / "run"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_that_cannot_be_written_is_named(capsys, tmp_path):
    source = save(clip_models.text_model(), tmp_path / "hf")
    (tmp_path / "file").write_text("")
    message = do_import(capsys, source, tmp_path / "file" / "run").error
    assert f"{tmp_path}/file/run: cannot be written" in message


def test_paths_with_a_scheme(capsys, tmp_path):
    model = clip_models.text_model(**ODD)
    local = save(model, tmp_path / "hf")
    for name in ("model.safetensors", "config.json"):
        tf.io.gfile.copy(f"{local}/{name}", f"ram://import_clip/hf/{name}", overwrite=True)
    summary = do_import(capsys, "ram://import_clip/hf", "ram://import_clip/run").summary
    assert summary["model_path"] == "ram://import_clip/run"
    tokens, ends = clip_models.texts(5, context=9, vocab=70)
    expected = clip_models.embeddings(model, tokens, ends).detach()
    np.testing.assert_allclose(embeddings("ram://import_clip/run", tokens, ends), expected,
                               atol=1e-4)
