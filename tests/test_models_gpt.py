"""models/gpt.py against transformers' GPT-2 and GPT-NeoX, and on meshes."""

import functools

import graphs
import numpy as np
import pytest

from mesh import ops
from mesh.compat import mtf, tf
from models import gpt, layers

torch = pytest.importorskip("torch", reason="compares with transformers")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

TOKENS = np.random.RandomState(0).randint(0, 61, [8, 17]).astype(np.int32)
BATCH, SEQUENCE = graphs.dim("batch", 8), graphs.dim("sequence", 16)


def run(config, weights=None, gradients=False):
    """Logits and mean loss for TOKENS, and gradients of every variable ("d_<variable>")."""
    def build(mesh):
        model, ctx = gpt.GPT(config, 61), layers.Context(mesh, config)
        tokens, targets = (graphs.give(mesh, x, BATCH, SEQUENCE)
                           for x in (TOKENS[:, :-1], TOKENS[:, 1:]))
        hidden = model.hidden(ctx, tokens)
        logits = model.logits(ctx, hidden)
        losses, _ = ops.softmax_cross_entropy(logits, targets, model.vocab, model.n_valid)
        outputs = {"hidden": hidden, "logits": logits, "loss": mtf.reduce_mean(losses)}
        if not gradients:
            return outputs
        variables = {v.name: v.value for v in mesh.graph.trainable_variables}
        return graphs.with_gradients(outputs, variables, {"loss": mtf.ones(mesh, [], tf.float32)})

    return graphs.run(build, config.mesh_shape, config.layout, weights)


def shake(module):
    """Random weights of a size that makes every one of them matter, biases and gains too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.15 + float(is_gain))
    return module.eval()


def reference(module):
    """(logits, loss, {name: (weight, gradient)}) of a transformers model for TOKENS."""
    tokens, targets = (torch.tensor(x.astype(np.int64)) for x in (TOKENS[:, :-1], TOKENS[:, 1:]))
    logits = module(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]),
                                             targets.reshape(-1))
    loss.backward()
    both = {name: (p.detach().numpy(), p.grad.numpy()) for name, p in module.named_parameters()}
    return logits.detach().numpy(), loss.item(), both


def padded(table, rows=64):
    return np.pad(table, [(0, rows - len(table)), (0, 0)])


def gpt2_names(name):
    """(our name, how to bring the array into our shape) of a parameter of GPT2LMHeadModel."""
    parts = name.split(".")[1:]
    if parts[0] in ("wte", "wpe"):
        return f"gpt/{parts[0]}", padded if parts[0] == "wte" else np.asarray
    suffix = {"weight": "gain", "bias": "bias"}[parts[-1]]
    if parts[0] == "ln_f":
        return f"gpt/norm_f/{suffix}", np.asarray
    where = f"gpt/h{parts[1]}"
    if parts[2].startswith("ln_"):
        return f"{where}/norm_{parts[2][-1]}/{suffix}", np.asarray
    layer, shape = {
        ("attn", "c_attn"): ("attn/qkv", [-1, 3, 4, 8]),
        ("attn", "c_proj"): ("attn/out", [4, 8, 32]),
        ("mlp", "c_fc"): ("mlp/in", [32, 128]), ("mlp", "c_proj"): ("mlp/out", [128, 32]),
    }[parts[2], parts[3]]
    if suffix == "bias":
        shape = [3, 4, 8] if layer == "attn/qkv" else -1
        return f"{where}/{layer}/bias", lambda x: x.reshape(shape)
    return f"{where}/{layer}/kernel", lambda x: x.reshape(shape)


def neox_names(name):
    """(our name, how to bring the array into our shape) of a parameter of GPTNeoXForCausalLM."""
    parts = name.split(".")
    if name in ("gpt_neox.embed_in.weight", "embed_out.weight", "lm_head.weight"):
        if parts[0] == "gpt_neox":
            return "gpt/wte", padded
        return "gpt/head/kernel", lambda x: padded(x).T
    suffix = {"weight": "gain", "bias": "bias"}[parts[-1]]
    if parts[1] == "final_layer_norm":
        return f"gpt/norm_f/{suffix}", np.asarray
    where = f"gpt/h{parts[2]}"
    norms = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
    if parts[3] in norms:
        return f"{where}/{norms[parts[3]]}/{suffix}", np.asarray
    layer = {"query_key_value": "attn/qkv", "dense": "attn/out", "dense_h_to_4h": "mlp/in",
             "dense_4h_to_h": "mlp/out"}[parts[4]]
    if layer == "attn/qkv":
        # NeoX packs [heads, qkv, features]; and torch's kernels are [out, in].
        if suffix == "bias":
            return f"{where}/{layer}/bias", lambda x: x.reshape(4, 3, 8).transpose(1, 0, 2)
        return (f"{where}/{layer}/kernel",
                lambda x: x.reshape(4, 3, 8, 32).transpose(3, 1, 0, 2))
    if suffix == "bias":
        return f"{where}/{layer}/bias", np.asarray
    shape = [4, 8, 32] if layer == "attn/out" else [32, 128] if layer == "mlp/in" else [128, 32]
    return f"{where}/{layer}/kernel", lambda x: x.T.reshape(shape)


def neo_names(name):
    """(our name, how to bring the array into our shape) of what `neo_parameters` gives."""
    parts = name.split(".")[1:]
    if parts[0] in ("wte", "wpe"):
        return f"gpt/{parts[0]}", padded if parts[0] == "wte" else np.asarray
    suffix = {"weight": "gain", "bias": "bias"}[parts[-1]]
    if parts[0] == "ln_f":
        return f"gpt/norm_f/{suffix}", np.asarray
    where = f"gpt/h{parts[1]}"
    if parts[2].startswith("ln_"):
        return f"{where}/norm_{parts[2][-1]}/{suffix}", np.asarray
    layer, shape = {"qkv": ("attn/qkv", [3, 4, 8, 32]), "out_proj": ("attn/out", [4, 8, 32]),
                    "c_fc": ("mlp/in", [32, 128]), "c_proj": ("mlp/out", [128, 32])}[parts[-2]]
    if suffix == "bias":
        return f"{where}/{layer}/bias", np.asarray
    if layer == "attn/qkv":
        return f"{where}/{layer}/kernel", lambda x: x.reshape(shape).transpose(3, 0, 1, 2)
    return f"{where}/{layer}/kernel", lambda x: x.T.reshape(shape)


def neo_parameters(parameters):
    """GPT-Neo's with q, k and v packed; its scores lack our 1/√d, so its q is √d times as large."""
    packed = {}
    for name, (weight, gradient) in parameters.items():
        if name.endswith(".q_proj.weight"):
            (k, d_k), (v, d_v) = (parameters[name.replace("q_proj", kind)]
                                  for kind in ("k_proj", "v_proj"))
            packed[name.replace("q_proj", "qkv")] = (
                np.stack([weight * 8 ** 0.5, k, v]), np.stack([gradient * 8 ** -0.5, d_k, d_v]))
        elif not name.endswith((".k_proj.weight", ".v_proj.weight")):
            packed[name] = weight, gradient
    return packed


def compare(module, names, config, untouched=(), converted=dict):
    logits, loss, parameters = reference(module)
    parameters = converted(parameters)
    weights, grads = {}, {}
    for name, (weight, gradient) in parameters.items():
        ours, convert = names(name)
        weights[ours], grads[ours] = convert(weight), convert(gradient)
    result = run(config, weights, gradients=True)
    assert set(result.weights) == set(weights) | set(untouched)
    np.testing.assert_allclose(result["logits"][..., :61], logits, atol=1e-4)
    assert abs(logits).max() > 1, "the comparison would prove little"
    np.testing.assert_allclose(result["loss"], loss, atol=1e-5)
    for name, gradient in grads.items():
        np.testing.assert_allclose(result[f"d_{name}"], gradient, atol=1e-5, err_msg=name)
        assert abs(gradient).max() > 1e-4, name
    return result


MESHES = [("", ""), ("x:2,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y")]
# Layouts that split what attention works along, among them that of GPT-Neo's configs for the Pile.
ALONG = [("x:2", "sequence:x"), ("x:2", "sequence:x,embed_sequence:x"),
         ("x:2", "features_per_head:x,vocab:x,intermediate_expanded:x"),
         ("x:2,y:2", "batch:x,sequence:y"), ("x:2,y:2", "batch:x,heads:y,embed_sequence:y"),
         ("x:2,y:2", "batch:x,memory_length:y,embd:y"), ("x:2,y:2", "sequence:x,memory_length:y"),
         ("x:2,y:2", "sequence:x,features_per_head:y,vocab:y")]


@pytest.mark.parametrize(("mesh_shape", "layout"), MESHES + ALONG)
def test_gpt2_equals_transformers(mesh_shape, layout):
    module = shake(transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4,
        activation_function="gelu_new", layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0)))
    compare(module, gpt2_names, graphs.config(mesh_shape=mesh_shape, layout=layout))


@pytest.mark.parametrize(("mesh_shape", "layout", "rotary_dims"),
                         [(*MESHES[0], 8), (*MESHES[0], 4), *((*mesh, 4) for mesh in MESHES[1:]),
                          *((*ALONG[i], 8) for i in (0, 2, 5, 7))])
def test_rotary_gpt_equals_transformers_gpt_neox(mesh_shape, layout, rotary_dims):
    neox = transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, hidden_act="gelu", max_position_embeddings=16,
        use_parallel_residual=False, tie_word_embeddings=False, layer_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                         "partial_rotary_factor": rotary_dims / 8})
    config = graphs.config(
        position="rotary", rotary_dims=rotary_dims, activation_function="gelu_exact",
        no_weight_tie=True, mesh_shape=mesh_shape, layout=layout)
    result = compare(shake(transformers.GPTNeoXForCausalLM(neox)), neox_names, config,
                     untouched=["gpt/head/bias"])
    np.testing.assert_array_equal(result.weights["gpt/head/bias"], np.zeros(64))


@pytest.mark.parametrize(("mesh_shape", "layout"), [*MESHES, *(ALONG[i] for i in (2, 5, 6))])
def test_local_attention_equals_transformers_gpt_neo(mesh_shape, layout):
    """Two global and two local layers, in turns, that see 5 tokens."""
    neo = transformers.GPTNeoConfig(
        vocab_size=61, max_position_embeddings=16, hidden_size=32, num_layers=4, num_heads=4,
        attention_types=[[["global", "local"], 2]], window_size=5, activation_function="gelu_new",
        layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0, attention_dropout=0.0,
        embed_dropout=0.0, resid_dropout=0.0)
    config = graphs.config(n_layer=4, attention_types=("global", "local") * 2,
                           local_attention_radius=5, mesh_shape=mesh_shape, layout=layout)
    compare(shake(transformers.GPTNeoForCausalLM(neo)), neo_names, config,
            untouched=[f"gpt/h{i}/attn/qkv/bias" for i in range(4)], converted=neo_parameters)


def test_a_whole_head_rotates_where_rotary_dims_is_0():
    first, second = (run(graphs.config(position="rotary", rotary_dims=dims))["logits"]
                     for dims in (0, 8))
    np.testing.assert_array_equal(first, second)


@functools.cache
def one_device():
    """The reference of the test below."""
    return run(graphs.config(no_weight_tie=True), gradients=True)


@pytest.mark.parametrize(("mesh_shape", "layout"), [
    MESHES[1], ("x:2", "batch:x"), ("x:2", "embd:x"), ("x:2", "embed_sequence:x"), *ALONG])
def test_weights_are_split_as_the_rules_say(mesh_shape, layout):
    result = run(graphs.config(mesh_shape=mesh_shape, layout=layout, no_weight_tie=True),
                 gradients=True)
    sizes = dict(batch=8, sequence=16, embd=32, vocab=64, heads=4, features_per_head=8, qkv=3,
                 intermediate_expanded=128, embed_sequence=16)
    shapes = {
        "gpt/wte": "vocab embd", "gpt/wpe": "embed_sequence embd", "gpt/head/kernel": "embd vocab",
        "gpt/head/bias": "vocab", "gpt/norm_f/gain": "embd",
        "gpt/h0/attn/qkv/kernel": "embd qkv heads features_per_head",
        "gpt/h0/attn/qkv/bias": "qkv heads features_per_head",
        "gpt/h0/attn/out/kernel": "heads features_per_head embd",
        "gpt/h1/mlp/in/kernel": "embd intermediate_expanded",
        "gpt/h1/mlp/out/kernel": "intermediate_expanded embd",
        "gpt/h1/mlp/out/bias": "embd"}
    for name, names in shapes.items():
        dims = [graphs.dim(n, sizes[n]) for n in names.split()]
        assert result.weights[name].shape == tuple(d.size for d in dims), name
        expected = graphs.slice_shape(dims, mesh_shape, layout)
        assert result.weight_slices[name] == expected, name
        assert result.slice_shapes[f"d_{name}"] == expected, name
    for name, value in one_device().values.items():
        np.testing.assert_allclose(result[name], value, atol=1e-5, err_msg=name)
    for name, names in [("hidden", "batch sequence embd"), ("logits", "batch sequence vocab")]:
        dims = [graphs.dim(n, sizes[n]) for n in names.split()]
        assert result.slice_shapes[name] == graphs.slice_shape(dims, mesh_shape, layout), name


def test_no_one_hot_anywhere():
    result = run(graphs.config(mesh_shape="x:2", layout="vocab:x"), gradients=True)
    for op in result.operations:
        assert op.type != "OneHot", op.name
        for y in op.outputs:
            # [.., vocab] or [vocab, tokens] of integers or booleans is a one-hot in disguise.
            if y.dtype.is_integer or y.dtype.is_bool:
                assert y.shape.rank is None or y.shape.rank < 2 or not {32, 64} & set(
                    y.shape.as_list()), y


def test_bfloat16_is_near_and_its_masters_are_float32():
    exact, rounded = (run(graphs.config(precision=precision), gradients=True)
                      for precision in ("float32", "bfloat16"))
    assert rounded["logits"].dtype == tf.bfloat16.as_numpy_dtype
    assert all(w.dtype == np.float32 for w in rounded.weights.values())
    np.testing.assert_allclose(rounded["loss"], exact["loss"], atol=2e-2)
    for name in ("d_gpt/wte", "d_gpt/h0/attn/qkv/kernel", "d_gpt/h1/mlp/out/kernel"):
        a, b = (r[name].astype(np.float32).ravel() for r in (exact, rounded))
        assert np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.99, name


def deviations(**changes):
    """{variable: standard deviation at the start} of a wider GPT."""
    config = graphs.config(n_embd=64, n_head=4, n_layer=4, n_ctx=16, n_vocab=2048,
                           no_weight_tie=True, **changes)
    return {name: w.std() for name, w in run(config).weights.items()}


@pytest.mark.parametrize(("changes", "inputs", "hidden", "outputs", "mlp_out"), [
    ({}, .02, .02, .02, .02),
    (dict(initializer_range=.05), .05, .05, .05, .05),
    (dict(scale_by_depth=True), .02, .02, .01, .01),
    (dict(scale_by_in=True, initializer_range=.8), .8, .1, .1, .05),
    (dict(scale_by_in=True, scale_by_depth=True, initializer_range=.8), .8, .1, .05, .025),
    (dict(scale_by_in=True, initializer_range=.8, activation_function="crelu"), .8, .1, .1,
     .8 / 512 ** .5)])
def test_initial_standard_deviations(changes, inputs, hidden, outputs, mlp_out):
    found = deviations(**changes)
    expected = {"gpt/wte": inputs, "gpt/head/kernel": inputs, "gpt/wpe": inputs / 2}
    for layer in range(4):
        expected.update({
            f"gpt/h{layer}/attn/qkv/kernel": hidden, f"gpt/h{layer}/attn/out/kernel": outputs,
            f"gpt/h{layer}/mlp/in/kernel": hidden, f"gpt/h{layer}/mlp/out/kernel": mlp_out})
    for name, deviation in found.items():
        if name in expected:
            # 1,024 samples or more: known to 1/45.
            assert deviation == pytest.approx(expected[name], rel=5 / 45), name
        else:
            assert deviation == 0.0 and name.endswith(("bias", "gain")), name
    assert set(expected) <= set(found)


def test_initial_weights_are_a_function_of_seed_and_name_alone():
    base = run(graphs.config()).weights
    deeper = run(graphs.config(n_layer=3, no_weight_tie=True)).weights
    for name in base:
        np.testing.assert_array_equal(base[name], deeper[name], err_msg=name)
    split = run(graphs.config(mesh_shape="x:2", layout="embd:x")).weights
    for name in base:
        np.testing.assert_array_equal(base[name], split[name], err_msg=name)
    other = run(graphs.config(seed=2)).weights
    kernels = [n for n in base if n.endswith("kernel")]
    assert not any(np.array_equal(base[n], other[n]) for n in kernels)
    assert not np.array_equal(base["gpt/h0/mlp/in/kernel"], base["gpt/h1/mlp/in/kernel"])


EVERY_KIND = ("linear", "none", "local", "global")
EXPERTS = dict(moe_layers=[1], local_attention_radius=4,
               moe_params={"num_experts": 4, "capacity_factor_eval": 4.0})


@pytest.mark.parametrize(("changes", "mesh_shape", "layout"), [
    *[({"position": position}, "x:2", "heads:x") for position in ("learned", "rotary")],
    *[({}, *ALONG[i]) for i in (1, 4, 5)],
    ({}, "x:2", "batch:x,embed_sequence:x"),
    *[(dict(position="rotary", attention_types=EVERY_KIND, n_layer=4, num_mem_kv=3,
            local_attention_radius=4), *mesh)
      for mesh in (*MESHES, *ALONG[1:], ("x:2,y:2", "embd:y,vocab:x"))],
    *[(dict(position="alibi", attention_types=("local", "global"), num_mem_kv=2,
            local_attention_radius=4), *mesh) for mesh in (*MESHES, ALONG[2], ALONG[5])],
    (dict(activation_function="crelu", scale_by_in=True), "x:2", "intermediate_expanded:x"),
    (dict(activation_function="rrelu", macaron=True), "x:2", "embd:x"),
    # Experts that have room for all, in blocks of every style.
    *[(dict(EXPERTS, **style), "x:2,y:2", "batch:x,experts:x,heads:y,expert_hidden:y")
      for style in (dict(macaron=True, rezero=True, position="alibi"),
                    dict(share_parameters=True, norm="scale", attention_types=("local", "linear")),
                    dict(parallel_residual="one_norm", mlp_glu=True, norm="rms"))]])
def test_incremental_hidden_states_equal_full_ones(changes, mesh_shape, layout):
    """Rows of several lengths, of whose first tokens the surplus ones count for nothing."""
    config = graphs.config(mesh_shape=mesh_shape, layout=layout, initializer_range=0.2, **changes)
    held = np.array([5, 3, 1, 4, 6, 2, 1, 6], np.int32)

    def build(mesh):
        model, ctx = gpt.GPT(config, 61), layers.Context(mesh, config)
        outputs = {"full": model.hidden(ctx, graphs.give(mesh, TOKENS[:, :16], BATCH, SEQUENCE))}
        caches = model.empty_caches(ctx, BATCH, 16)
        at, new = np.zeros(8, np.int32), TOKENS[:, :6]
        for step in range(4):
            dims = [BATCH, graphs.dim("new_tokens", new.shape[1])]
            count = graphs.give(mesh, held, BATCH) if step == 0 else None
            outputs[f"y{step}"], caches = model.hidden_incremental(
                ctx, graphs.give(mesh, new, *dims), graphs.give(mesh, at, BATCH), caches, count)
            at = held + np.int32(step)
            new = np.take_along_axis(TOKENS, at[:, None], 1)
        return outputs

    result = graphs.run(build, config.mesh_shape, config.layout)
    for row, n in enumerate(held):
        full = result["full"][row]
        np.testing.assert_allclose(result["y0"][row, :n], full[:n], atol=2e-5)
        for step in range(3):
            np.testing.assert_allclose(result[f"y{step + 1}"][row, 0], full[n + step], atol=2e-5)


def test_a_layer_without_attention_has_none_of_its_variables():
    """It does what one does whose attention adds nothing."""
    mixed = run(graphs.config(attention_types=("none", "global")))
    whole = run(graphs.config())
    gone = {name for name in whole.weights if name.startswith(("gpt/h0/attn/", "gpt/h0/norm_1/"))}
    assert set(mixed.weights) == set(whole.weights) - gone and len(gone) == 6
    weights = {name: np.zeros_like(w) if name.startswith("gpt/h0/attn/out/") else w
               for name, w in whole.weights.items()}
    np.testing.assert_allclose(mixed["logits"], run(graphs.config(), weights)["logits"], atol=1e-6)


def test_memories_begin_as_gpt_neos():
    config = graphs.config(attention_types=("linear", "local"), num_mem_kv=200)
    weights = run(config).weights
    assert {name for name in weights if "mem_" in name} == {"gpt/h1/attn/mem_k",
                                                            "gpt/h1/attn/mem_v"}
    for name in ("mem_k", "mem_v"):
        found = weights[f"gpt/h1/attn/{name}"]
        assert found.shape == (200, 4, 8)
        assert found.std() == pytest.approx(8 ** -0.5, rel=0.05)  # 6,400 samples


def test_a_model_that_sees_both_ways():
    """What comes later matters to it, for global, local and linear layers each."""
    changed = TOKENS[:, :16].copy()
    changed[:, 15] = (changed[:, 15] + 1) % 61
    for kind in ("global", "local", "linear"):
        config = graphs.config(attention_types=(kind,) * 2, local_attention_radius=4)

        def build(mesh, config=config):
            ctx, outputs = layers.Context(mesh, config), {}
            for causal in (True, False):
                model = gpt.GPT(config, 61, causal)
                for name, tokens in (("first", TOKENS[:, :16]), ("second", changed)):
                    outputs[f"{name} {causal}"] = model.hidden(
                        ctx, graphs.give(mesh, tokens, BATCH, SEQUENCE))
            return outputs

        result = graphs.run(build)
        np.testing.assert_array_equal(result["first True"][:, :15], result["second True"][:, :15])
        late = np.abs(result["first False"] - result["second False"])[:, :15].max((0, 2))
        assert (late[-4:] > 1e-5).all(), kind
        # Two layers that see four tokens ahead each.
        assert (late[:7] == 0).all() == (kind == "local"), kind


def test_dropout_is_of_embeddings_and_not_of_the_tables():
    """Each place of a token has a mask of its own, and the head reads the whole table."""
    config = graphs.config(embed_dropout=0.5)

    def build(mesh):
        ctx = layers.Context(mesh, config, graphs.give(mesh, np.int32(3)))
        model, tokens = gpt.GPT(config, 61), np.full([8, 16], 7, np.int32)
        hidden = model.hidden(ctx, graphs.give(mesh, tokens, BATCH, SEQUENCE))
        return {"hidden": hidden, "logits": model.logits(ctx, hidden)}

    result = graphs.run(build)
    table = result.weights["gpt/wte"]
    np.testing.assert_allclose(result["logits"], result["hidden"] @ table.T, atol=1e-5)
    assert (np.abs(table) > 0).all()
    # With one mask for the table, rows of the same tokens would be equal.
    assert (np.abs(result["hidden"][:1] - result["hidden"][1:]).max((1, 2)) > 0.1).all()


@pytest.mark.parametrize("activations", [
    {}, {"activation_function": "rrelu", "moe_activation": "aria", "moe_layers": [1]},
    {"activation_function": "prelu", "mlp_glu": True}], ids=str)
def test_blocks_computed_again_give_the_same_gradients(activations):
    """With every type of attention, memories, dropout and chance in activations."""
    results = []
    for recompute in (False, True):
        config = graphs.config(n_layer=4, attention_types=EVERY_KIND, num_mem_kv=2,
                               local_attention_radius=4, attn_dropout=0.3, res_dropout=0.2,
                               recompute_grad=recompute, **activations)

        def build(mesh, config=config):
            ctx = layers.Context(mesh, config, graphs.give(mesh, np.int32(5)))
            hidden = gpt.GPT(config, 61).hidden(
                ctx, graphs.give(mesh, TOKENS[:, :16], BATCH, SEQUENCE))
            variables = {v.name: v.value for v in mesh.graph.trainable_variables}
            return graphs.with_gradients({"hidden": hidden}, variables, {"hidden": hidden})

        results.append(graphs.run(build))
    first, second = results
    assert len(first.values) > 40
    for name, value in first.values.items():
        np.testing.assert_allclose(second[name], value, atol=1e-5 * max(1, np.abs(value).max()),
                                   err_msg=name)
