"""models/gpt_c.py: the input variant in full and incremental form, and sampled from a run."""

import clip_runs
import graphs
import jobs
import numpy as np
import pytest

import encoders
from configs import schema
from mesh import devices
from mesh.compat import mtf, tf
from models import gpt_c, layers
from training import language_models, predictor

N_CTX, ROWS, WINDOW, OUT = 16, 4, 3, clip_runs.SIZES["out"]
TOKENS = np.random.RandomState(0).randint(0, 61, [ROWS, N_CTX]).astype(np.int32)
MESHES = [("", ""),
          ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y,clip_heads:y,"
                      "clip_intermediate:y,clip_vocab:y,clip_out:y")]


def config(**keys):
    return graphs.config(position="rotary", rotary_dims=4, n_vocab=61, **keys)


def student():
    return clip_runs.student_config("unused", n_vocab=61, clip={"window": WINDOW})


def model_of(run, weights=None):
    """A GPTWithStudent whose student's weights come from `weights`."""
    def stored(name):
        def initialise(shape, dtype=None, partition_info=None):
            value = np.zeros(shape, np.float32) if weights is None else weights[name]
            return tf.constant(value)
        return initialise

    return gpt_c.GPTWithStudent(run, 61, language_models.student(student(), OUT), stored)


def full(run, weights=None, tokens=TOKENS, mesh_shape="", layout=""):
    def build(mesh):
        ctx = layers.Context(mesh, run)
        dims = graphs.dim("batch", ROWS), graphs.dim("sequence", N_CTX)
        return {"y": model_of(run, weights).hidden(ctx, graphs.give(mesh, tokens, *dims))}

    return local_run(build, mesh_shape, layout, weights)


def local_run(build, mesh_shape, layout, weights):
    """graphs.run, where the student's variables are local ones."""
    with pytest.MonkeyPatch.context() as patch:
        everything = tf.global_variables_initializer
        patch.setattr(tf, "global_variables_initializer",
                      lambda: tf.group(everything(), tf.local_variables_initializer()))
        return graphs.run(build, mesh_shape, layout, weights)


@pytest.fixture(scope="module")
def weights():
    return clip_runs.shaken({name: value.shape for name, value in full(config()).weights.items()})


MIXED = dict(n_layer=4, attention_types=["linear", "none", "local", "global"], num_mem_kv=2,
             local_attention_radius=4, norm="rms", parallel_residual="two_norms", mlp_glu=True)


@pytest.mark.parametrize(("keys", "mesh_shape", "layout"),
                         [({}, *MESHES[0]), ({}, *MESHES[1]), (MIXED, *MESHES[1])])
def test_incremental_equals_full(keys, mesh_shape, layout):
    """Rows of different lengths, shorter and longer than the student's reach of 2 · 2 + 1."""
    run, held, steps = config(**keys), np.array([9, 3, 1, 6], np.int32), [2, 1]
    weights = clip_runs.shaken({name: value.shape for name, value in full(run).weights.items()})
    wanted = full(run, weights)["y"]

    def build(mesh):
        ctx, model = layers.Context(mesh, run), model_of(run, weights)
        batch = graphs.dim("batch", ROWS)
        caches, at, outputs = model.empty_caches(ctx, batch, N_CTX), np.zeros(4, np.int32), {}
        assert len(caches) == run.n_layer + 2
        for i, n in enumerate([9, *steps]):
            new = np.stack([TOKENS[row, a:a + n] for row, a in enumerate(at)])
            outputs[f"y{i}"], caches = model.hidden_incremental(
                ctx, graphs.give(mesh, new, batch, graphs.dim("new_tokens", n)),
                graphs.give(mesh, at, batch), caches,
                count=graphs.give(mesh, held, batch) if i == 0 else None)
            at = held if i == 0 else at + np.int32(n)
        return outputs

    result = local_run(build, mesh_shape, layout, weights)
    at = np.zeros(4, np.int32)
    for i, n in enumerate([9, *steps]):
        for row in range(ROWS):
            count = held[row] if i == 0 else n
            np.testing.assert_allclose(result[f"y{i}"][row, :count],
                                       wanted[row, at[row]:at[row] + count], atol=2e-5,
                                       err_msg=f"call {i}, row {row}")
        at = held if i == 0 else at + np.int32(n)


def test_the_first_blocks_input_is_a_sum(weights):
    """Layer norm of the embeddings, and a projection of what the student says, by numpy."""
    run = config()
    seen = {}

    def build(mesh):
        ctx, model = layers.Context(mesh, run), model_of(run, weights)
        blocks = model.blocks

        def spy(ctx, x, layer, attend):
            seen.setdefault(layer, x)
            return blocks(ctx, x, layer, attend)

        model.blocks = spy
        dims = graphs.dim("batch", ROWS), graphs.dim("sequence", N_CTX)
        model.hidden(ctx, graphs.give(mesh, TOKENS, *dims))
        return {"x": seen[0]}

    found = local_run(build, "", "", weights)["x"]
    x = weights["gpt/wte"][TOKENS].astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * weights["gpt/clip_input/norm/gain"] + weights["gpt/clip_input/norm/bias"]
    said = clip_runs.said(student(), TOKENS, {
        name: value for name, value in weights.items() if name.startswith("clip_student/")})["y"]
    x += said @ weights["gpt/clip_input/projection/kernel"]
    x += weights["gpt/clip_input/projection/bias"]
    np.testing.assert_allclose(found, x, atol=1e-4)


def test_layouts_equal_one_device(weights):
    wanted = full(config(), weights)["y"]
    for mesh_shape, layout in [("x:2", "sequence:x"), ("x:2", "clip_embd:x,embd:x")]:
        result = full(config(), weights, mesh_shape=mesh_shape, layout=layout)
        np.testing.assert_allclose(result["y"], wanted, atol=2e-5, err_msg=layout)


def test_the_future_does_not_matter_and_the_past_does(weights):
    changed = TOKENS.copy()
    changed[:, 9] = (changed[:, 9] + 1) % 61
    one, other = (full(config(), weights, tokens)["y"] for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(one[:, :9], other[:, :9])
    assert (abs(one[:, 9:] - other[:, 9:]).max((0, 2)) > 1e-4).all()


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """(config path, weights of the run and its student) of a trained input variant."""
    directory = tmp_path_factory.mktemp("input")
    source, weights = clip_runs.student(directory / "student")
    path = jobs.config(directory, jobs.dataset(directory), model="gpt_c", n_layer=2, train_steps=3,
                       n_ctx=N_CTX, position="rotary", rotary_dims=4, initializer_range=0.3,
                       eval_steps=1, sample_tokens=4, clip={"student": source, "mode": "input"})
    assert jobs.process(path).summary["step"] == 3
    return path


def greedy(run, prompt, number):
    """The likeliest tokens one after the other, each by a full pass without caches."""
    mesh = mtf.Mesh(mtf.Graph(), "mesh")
    with tf.Graph().as_default():
        model, ctx = language_models.build(run, 257), layers.Context(mesh, run)
        given = tf.placeholder(tf.int32, [1, N_CTX])
        row = mtf.Shape([mtf.Dimension("batch", 1), mtf.Dimension("sequence", N_CTX)])
        logits = model.logits(ctx, model.hidden(ctx, mtf.import_tf_tensor(mesh, given, row)))
        lowering = mtf.Lowering(mesh.graph, {mesh: devices.mesh_impl(run)}, autostack=False)
        fetched = lowering.export_to_tf_tensor(logits)
        masters = tf.global_variables()
        with tf.Session() as session:
            session.run(tf.local_variables_initializer())
            tf.train.Saver(masters).restore(session, tf.train.latest_checkpoint(run.model_path))
            session.run(lowering.copy_masters_to_slices())
            tokens = list(prompt)
            for _ in range(number):
                padded = np.zeros([1, N_CTX], np.int32)
                padded[0, :len(tokens)] = tokens
                scores = session.run(fetched, {given: padded})[0, len(tokens) - 1, :257]
                top = np.sort(scores)[-2:]
                assert top[1] - top[0] > 1e-4, "too close to tell"
                tokens.append(int(scores.argmax()))
    return tokens[len(prompt):]


def test_predicted_tokens_are_those_of_full_passes(run_of):
    """Prompts of different lengths in one batch, beyond the student's reach."""
    run = schema.load(run_of)
    prompts = [[97], list(b"abc ea"), list(b"deab cade b")]
    model = predictor.Predictor(run, encoders.load("byte"))
    # top_k of 1 is the likeliest token.
    found = [s.tokens for s in model.generate(prompts, 1, 5, top_k=1)]
    model.close()
    for prompt, tokens in zip(prompts, found, strict=True):
        wanted = greedy(run, prompt, 5)
        end = wanted.index(256) if 256 in wanted else 5
        assert tokens == wanted[:end], prompt
    assert len({tuple(tokens) for tokens in found}) > 1


def test_predict_from_the_command_line(run_of, capsys):
    once, again = (jobs.here(capsys, run_of, "--predict", "--prompt", "abc", "--top_k", "1",
                             "--max_new_tokens", "6") for _ in range(2))
    assert once.status == 0 and once.stdout == again.stdout
    assert once.stdout.startswith("abc")
    # Samples of the training run come from the same graph.
    assert 3 in jobs.shown_text(schema.load(run_of).model_path, "sample")
