"""The model function by what a run of it leaves: losses, norms and scores, against transformers."""

import math
import re

import jobs
import numpy as np
import pytest
import shard_files
import tfrecord_runs
from test_models_gpt import gpt2_names

import inputs
from configs import schema
from mesh.compat import tf
from training import language, model_fn

torch = pytest.importorskip("torch", reason="compares with transformers")
transformers = pytest.importorskip("transformers", reason="compares with transformers")


def gpt2(weights, config):
    """transformers' GPT-2 with the weights of one of our checkpoints, without dropout."""
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=config.n_vocab, n_positions=config.n_ctx, n_embd=config.n_embd,
        n_layer=config.n_layer, n_head=config.n_head, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0))
    seen = set()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            ours, _ = gpt2_names(name)
            seen.add(ours)
            value = weights[ours][:config.n_vocab] if ours == "gpt/wte" else weights[ours]
            parameter.copy_(torch.tensor(value.reshape(parameter.shape)))
    trained = {name for name in weights if "/adam_" not in name} - {"global_step"}
    assert seen == trained
    return module


def negative_log_likelihoods(module, tokens):
    """Of each target: [rows, n_ctx] for tokens [rows, n_ctx + 1]."""
    tokens = torch.tensor(np.asarray(tokens, np.int64))
    logits = module(tokens[:, :-1]).logits
    flat = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="none")
    return flat.reshape(len(tokens), -1)


# By group of weights, transformers' names of its parameters and how many the run below has.
GROUPS = {"embeddings": (r"\.w[tp]e\.", 2), "attention": (r"\.attn\.", 8), "mlp": (r"\.mlp\.", 8),
          "norms": (r"\.ln_", 10)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, with a checkpoint and an evaluation after each: its config."""
    directory = tmp_path_factory.mktemp("run")
    path = jobs.config(directory, jobs.dataset(directory), n_embd=32, n_layer=2, train_steps=2,
                       steps_per_checkpoint=1, warmup_steps=2, eval_steps=None, weight_decay=0.0,
                       initializer_range=0.2, gradient_clipping=0.5, eval_batch_size=3,
                       log_grads=True)
    assert jobs.process(path).summary["step"] == 2
    return schema.load(path)


def test_step_equals_transformers_and_torch(run):
    """The second step: loss, norms and rate, and the AdamW update with its clipped gradient."""
    before, after = jobs.weights(run.model_path, 1), jobs.weights(run.model_path, 2)
    module = gpt2(before, run)
    batch = shard_files.rows(run, start=run.train_batch_size, count=run.train_batch_size)
    loss = negative_log_likelihoods(module, batch).mean()
    loss.backward()
    gradients = [p.grad for p in module.parameters()]
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    masters = [v for name, v in before.items() if "/adam_" not in name and name != "global_step"]
    shown = {tag: curve[2] for tag, curve in jobs.scalars(run.model_path).items()}
    assert norm > run.gradient_clipping, "nothing would be clipped"
    assert shown["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert shown["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert shown["parameter_norm"] == pytest.approx(
        math.sqrt(sum((v.astype(np.float64) ** 2).sum() for v in masters)), rel=1e-6)
    assert shown["learning_rate"] == pytest.approx(run.lr)
    for group, (part, others) in GROUPS.items():
        of_group = [p.grad for name, p in module.named_parameters() if re.search(part, name)]
        assert len(of_group) == others
        assert shown[f"gradient_norm/{group}"] == pytest.approx(
            math.sqrt(sum(float((g.double() ** 2).sum()) for g in of_group)), rel=1e-4)
    assert {tag for tag in shown if tag.startswith("gradient_norm/")} == {
        f"gradient_norm/{group}" for group in GROUPS}
    of_weights = {gpt2_names(name)[0]: p.grad for name, p in module.named_parameters()}
    assert {tag for tag in shown if tag.startswith("gradient_norms/")} == {
        f"gradient_norms/{name}" for name in of_weights}
    for name, gradient in of_weights.items():
        assert shown[f"gradient_norms/{name}"] == pytest.approx(
            gradient.double().norm().item(), rel=1e-4, abs=1e-8)
    for kind in ("gradient", "parameter"):
        assert shown[f"{kind}_norm"] == pytest.approx(
            math.sqrt(sum(shown[f"{kind}_norm/{group}"] ** 2 for group in GROUPS)), rel=1e-5)

    for name, parameter in module.named_parameters():
        ours, _ = gpt2_names(name)
        g = parameter.grad.numpy() * run.gradient_clipping / norm
        if ours == "gpt/wte":
            g = np.pad(g, [(0, run.n_vocab_padded - run.n_vocab), (0, 0)])
        g = g.reshape(before[ours].shape)
        m = run.beta1 * before[f"{ours}/adam_m"] + (1 - run.beta1) * g
        v = run.beta2 * before[f"{ours}/adam_v"] + (1 - run.beta2) * g * g
        np.testing.assert_allclose(after[f"{ours}/adam_m"], m, atol=1e-6)
        np.testing.assert_allclose(after[f"{ours}/adam_v"], v, atol=1e-7)
        # Where the gradient all but vanishes, rounding decides its direction.
        clear = np.sqrt(v) > 1e-5
        step = m / (1 - run.beta1 ** 2) / (np.sqrt(v / (1 - run.beta2 ** 2)) + run.epsilon)
        np.testing.assert_allclose((after[ours] - before[ours])[clear], -run.lr * step[clear],
                                   atol=2e-5)


@pytest.mark.parametrize("step", [1, 2])
def test_evaluation_equals_transformers(run, step):
    """Every target of the validation stream once, whatever the batches."""
    directory = run.datasets[0].id.removesuffix(".json")
    [manifest] = tf.io.gfile.glob(f"{directory}/*_manifest.json")
    [shard] = tf.io.gfile.glob(f"{directory}/*_val_0_*.tfrecords")
    stream = np.concatenate(tfrecord_runs.records(shard))
    module = gpt2(jobs.weights(run.model_path, step), run).eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(stream) - 1, run.n_ctx):
            window = stream[None, start:start + run.n_ctx + 1]
            total += negative_log_likelihoods(module, window).double().sum().item()
    mean = total / (len(stream) - 1)
    assert (len(stream) - 1) % run.n_ctx and (len(stream) - 1) % run.eval_batch_size
    line = jobs.metrics(run.model_path)[step - 1]
    assert line["step"] == step
    assert line["eval_loss"] == pytest.approx(mean, rel=2e-6)
    assert line["perplexity"] == pytest.approx(math.exp(mean), rel=2e-5)

    texts = [bytes(part[:-1].astype(np.uint8)) for part in np.split(
        stream, np.flatnonzero(stream == 256) + 1)[:-1]]
    assert {text.decode() for text in texts} < set(jobs.texts())
    # The mean over targets stands for the first token as well, which is no target.
    bits = mean * len(stream) / math.log(2)
    assert line["bits_per_byte"] == pytest.approx(bits / sum(map(len, texts)), rel=2e-6)
    assert line["bits_per_decoded_byte"] == line["bits_per_byte"]


def test_padding_rows_do_not_count_and_half_rows_count_half(run):
    """A batch of a full row, a row with three targets and an empty one."""
    tokens = np.random.RandomState(0).randint(0, 257, [8, run.n_ctx + 1]).astype(np.int32)
    valid = np.array([8, 3, 0, 0, 0, 0, 0, 0], np.int32)
    objective = language.Language(run, inputs.dataset_facts(run, "train"))
    with tf.Graph().as_default():
        tf.train.create_global_step()
        features = {"tokens": tf.constant(tokens), "valid": tf.constant(valid)}
        spec = model_fn.model_fn(features, tf.estimator.ModeKeys.EVAL, {}, run, objective)
        function, tensors = spec.eval_metrics
        value, update = function(**tensors)["lm"]
        saver = tf.train.Saver()
        with tf.train.SingularMonitoredSession(spec.evaluation_hooks) as session:
            saver.restore(session.raw_session(), f"{run.model_path}/model.ckpt-2")
            for hook in spec.evaluation_hooks:
                hook.after_create_session(session.raw_session(), None)
            session.run(update)
            found = session.run([value, spec.loss])
    module = gpt2(jobs.weights(run.model_path, 2), run).eval()
    with torch.no_grad():
        each = negative_log_likelihoods(module, tokens[:2]).numpy()
    wanted = (each[0].sum() + each[1, :3].sum()) / 11
    np.testing.assert_allclose(found, [wanted, wanted], rtol=1e-5)
