"""main.py --preflight: refusals, and tiny steps compiled by the TPU compiler where it is there."""

import math
import time
import types

import graphs
import jobs
import psutil
import pytest

from configs import schema
from mesh import buffers, compile_cache, estimate, hlo, pjrt, tpus
from mesh import preflight as mesh_preflight
from mesh.compat import mtf
from models import clip
from training import ahead, contrastive, flops, objectives, proxies, remedies
from training import compiled as compiled_step
from training import preflight as preflight_run

compiled = pytest.mark.skipif(pjrt.library() is None,
                              reason="libtpu compiles: requirements-preflight.txt")
ABSENT = [["nowhere", 1, None, 1.0]]  # no data are needed
SPLIT = dict(mesh_shape="x:8", layout="batch:x", n_vocab=60, n_embd=16, n_ctx=16)


def preflight(capsys, directory, name, **keys):
    return jobs.here(capsys, jobs.config(directory, ABSENT, **{**SPLIT, **keys}), "--preflight",
                     name)


def test_refusals(tmp_path, capsys, monkeypatch):
    assert "no such TPU slice; there are v3-8" in preflight(capsys, tmp_path, "v3-9").error
    error = preflight(capsys, tmp_path, "v3-32").error
    assert "mesh_shape x:8 has 8 positions, and v3-32 has 32 cores" in error
    monkeypatch.setattr(pjrt, "library", lambda: None)
    error = preflight(capsys, tmp_path, "v3-8").error
    assert "make preflight-env" in error and "requirements-preflight.txt" in error


def test_a_masked_step_is_made_without_data(tmp_path):
    """Its rows begin with a token of their own, so that windows are a token shorter."""
    config = schema.load(jobs.config(tmp_path, ABSENT, **{
        **SPLIT, "mesh_shape": "x:2", "mlm_training": True, "mlm_cls_token_id": 1, "n_layer": 1}))
    facts, specs = preflight_run._data(config)
    program, _ = ahead.program(config, objectives.of_run(config, facts), specs)
    assert program.cores == 2


@pytest.mark.parametrize("vocab", ["", ",vocab:y"])
def test_nothing_is_looked_up_in_the_logits(tmp_path, vocab):
    """For that the compiler would write them in float32, and in an order of its own."""
    config = schema.load(jobs.config(tmp_path, ABSENT, **{
        **SPLIT, "mesh_shape": "x:2,y:2", "layout": f"batch:x{vocab}", "n_layer": 1}))
    facts, specs = proxies.facts_and_specs(config)
    program, _ = ahead.program(config, objectives.of_run(config, facts), specs)
    logits = config.train_batch_size // 2 * config.n_ctx * config.n_vocab_padded // (2 if vocab
                                                                                     else 1)
    sizes = {}
    for computation in hlo.parse(program.module).computations:
        shapes = {one.id: one.shape for one in computation.instructions}
        for one in computation.instructions:
            of = shapes[one.operand_ids[0]] if one.operand_ids else one.shape
            sizes.setdefault(one.opcode, set()).add(math.prod(of.dimensions))
    assert logits in sizes["compare"] | sizes["select"]
    assert sizes["gather"] and logits not in sizes["gather"] | sizes.get("scatter", set())


def test_a_step_of_gpt_c_is_made_without_its_student(tmp_path, capsys, monkeypatch):
    """The student is what the config of its run's name says; the program has all its weights."""
    programs = []

    def compile_for(program, tpu, mesh):
        programs.append(program)
        return mesh_preflight.Compiled({"arguments": 1}, types.SimpleNamespace(moved=[]), [],
                                       {"compute": 1.0})

    monkeypatch.setattr(mesh_preflight, "compile_for", compile_for)
    monkeypatch.setattr(mesh_preflight, "check_installed", lambda: None)
    keys = dict(model="gpt_c", n_layer=1, tokens_per_mb_per_replica=0)
    done = preflight(capsys, tmp_path, "v3-8", **keys,
                     clip={"student": f"{tmp_path}/nowhere/demo_student"})
    assert done.summary["fits"]
    student = schema.load("demo_student")
    blocks = {name.split("/")[1] for name in programs[0].arguments
              if name.startswith("clip_student/") and "/h" in name}
    assert "clip_student/wte" in programs[0].arguments and len(blocks) == student.n_layer
    error = preflight(capsys, tmp_path, "v3-8", **keys,
                      clip={"student": f"{tmp_path}/nowhere/unknown"}).error
    assert "clip.student" in error and len(programs) == 1


@pytest.mark.parametrize("name", ["text_clip", "demo_student"])
def test_a_teacher_that_is_not_there_has_its_configs_sizes(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = schema.load(name)
    taken = proxies.frozen_of(config)
    sizes = contrastive.text_sizes(taken.config)
    if name == "text_clip":  # its teacher is imported: OpenAI's ViT-B/32
        assert sizes == clip.ClipSizes() and sizes.longest_text == config.clip.window
    else:
        assert taken.config == schema.load("demo_clip")


@pytest.mark.parametrize("name", ["demo_student", "demo_clip"])
def test_steps_with_clip_are_made_from_nothing(tmp_path, monkeypatch, name):
    """Neither data nor a teacher, and few layers: all weights are in the program."""
    monkeypatch.chdir(tmp_path)
    config = proxies.of_layers(schema.load(name), [1]).replace(
        mesh_shape="x:2", layout="batch:x", train_batch_size=4)
    facts, specs = preflight_run._data(config)
    objective = proxies.objective(config, facts, preflight_run._frozen(config))
    program, impl = ahead.program(config, objective, specs)
    assert {"tokens", "valid", "core"} <= set(program.arguments)
    towers = {"demo_student": ["clip_student/h0/mlp/out/kernel", "clip_text/h1/mlp/out/kernel"],
              "demo_clip": ["clip_text/h0/mlp/out/kernel", "clip_image/projection"]}
    assert {*towers[name]} <= set(program.arguments) and program.cores == 2


def test_model_flops_count_what_a_token_passes():
    def of_token(config, **sizes):
        shapes = {name: mtf.Shape([mtf.Dimension(d, n) for d, n in dims])
                  for name, dims in sizes.items()}
        return flops.of_token(config, [
            types.SimpleNamespace(name=name, shape=shape, trainable=True)
            for name, shape in shapes.items()])

    plain = graphs.config(n_layer=2, n_ctx=8, n_embd=16)
    assert of_token(plain, a=[("x", 5)]) == 6 * 5 + 12 * 2 * 8 * 16
    table = {"gpt/wte": [("vocab", 60), ("embd", 16)], "gpt/wpe": [("x", 8)]}
    assert of_token(plain, **table) == 6 * 60 * 16 + 12 * 2 * 8 * 16  # the head's kernel too
    assert of_token(plain.replace(no_weight_tie=True), **table) == 12 * 2 * 8 * 16
    mixed = plain.replace(attention_types=["local", "none"], local_attention_radius=4)
    assert of_token(mixed, a=[("x", 5)]) == 6 * 5 + 12 * 4 * 16
    experts = graphs.config(n_layer=2, n_ctx=8, n_embd=16, moe_layers=[1],
                            moe_params={"num_experts": 4, "gating": "top_2"})
    assert of_token(experts, a=[("x", 5)], b=[("experts", 4), ("x", 6)]) == (
        6 * (5 + 2 * 6) + 12 * 2 * 8 * 16)


def test_few_layers_stand_for_all():
    """One of each kind, and one more of each: what layers of a kind cost comes out of it."""
    def told(**keys):
        config = graphs.config(n_layer=6, **keys)
        models = compiled_step._of_few(config)
        assert sum(times for times, _ in models) == 1
        found = {}
        for times, model in models:
            for layer, kind in enumerate(model.attention_types):
                kind += "_moe" if layer in (model.moe_layers or ()) else ""
                found[kind] = found.get(kind, 0) + times
        return [model.n_layer for _, model in models], found

    assert told(attention_types=["global"] * 6) == ([1, 2], {"global": 6})
    assert told(attention_types=["global", "local", "local"] * 2) == (
        [2, 3, 3], {"global": 2, "local": 4})
    experts = dict(moe_layers=[1, 4, 5], moe_params={"num_experts": 4, "gating": "top_2"})
    assert told(attention_types=["global"] * 6, **experts) == (
        [2, 3, 3], {"global": 3, "global_moe": 3})
    assert told(attention_types=["global"] * 5 + ["none"]) == ([2, 3], {"global": 5, "none": 1})
    short = graphs.config(n_layer=2)
    assert compiled_step._of_few(short) == [(1, short)]


def test_figures_of_few_layers_add_up():
    def found(layers):
        row = estimate.Traffic("x", "all-reduce", 2 + layers, 10 + layers, 1.0 + layers)
        return compiled_step.Found(
            {"arguments": 100 * layers + 7}, {"compute": 2.0 * layers + 1}, [row],
            {"count": 3, "bytes": 5 * layers}, 11.0 * layers, [], [], layers)

    whole = compiled_step._added([(-4, found(1)), (5, found(2))])
    assert whole._replace(arguments=[], buffers=[], peak=6) == found(6)
    assert whole.peak == 2  # of the largest model that was compiled


HLO = """
HloModule step, is_scheduled=true, input_output_alias={ {}: (0, {}, may-alias) }

body {
  state = (s32[], f32[256]) parameter(0)
  i = s32[] get-tuple-element(state), index=0
  total = f32[256] get-tuple-element(state), index=1
  one = s32[] constant(1)
  next = s32[] add(i, one)
  wide = f32[4,256] broadcast(total), dimensions={1}, metadata={op_name="gpt/h3/mlp/in"}
  narrow = f32[1,256] slice(wide), slice={[0:1], [0:256]}, metadata={op_name="gpt/h3/mlp/out"}
  part = f32[256] bitcast(narrow)
  sum = f32[256] add(total, part)
  ROOT out = (s32[], f32[256]) tuple(next, sum)
}

condition {
  state = (s32[], f32[256]) parameter(0)
  i = s32[] get-tuple-element(state), index=0
  four = s32[] constant(4)
  ROOT less = pred[] compare(i, four), direction=LT
}

ENTRY main {
  weight = f32[256] parameter(0)
  zero = s32[] constant(0)
  early = f32[64,256] broadcast(weight), dimensions={1}, metadata={op_name="read at once"}
  cut = f32[1,256] slice(early), slice={[0:1], [0:256]}
  start = f32[256] bitcast(cut)
  held = f32[2,256] broadcast(weight), dimensions={1}, metadata={op_name="gpt/h0/attn"}
  HELD
  begun = (s32[], f32[256]) tuple(zero, start)
  looped = (s32[], f32[256]) while(begun), condition=condition, body=body
  found = f32[256] get-tuple-element(looped), index=1
  late = f32[1,256] slice(held), slice={[0:1], [0:256]}
  flat = f32[256] bitcast(late)
  ROOT sum = f32[256] add(found, flat)
}
"""


@pytest.mark.parametrize("second", [False, True])
def test_what_fills_memory_is_told_by_the_order_of_operations(second):
    """A program in XLA's own text: what is live when most is, and where it comes from."""
    from jaxlib import xla_client

    again = ('other = f32[62,256] broadcast(weight), dimensions={1}\n'
             '  used = f32[1,256] slice(other), slice={[0:1], [0:256]}')
    parsed = xla_client._xla.hlo_module_from_text(HLO.replace("HELD", again if second else ""))
    module = hlo.parse(parsed.as_serialized_hlo_module_proto())
    total, found = buffers.at_peak(module)
    kb = 1024  # 256 floats
    if second:  # beside it: held, and what the loop begins with
        assert total == 66 * kb and found[0].bytes == 62 * kb
    else:  # when `early` is cut it is alone with the cut
        assert total == 65 * kb and found[0] == (64 * kb, 1, "f32[64,256]", "read at once")
    [argument] = buffers.arguments(module, ["gpt/wte"])
    assert argument == (kb, 1, "f32[256]", "gpt/wte")
    for computation in module.computations:  # without `early` and `other` the loop needs most
        for instruction in computation.instructions:
            if len(instruction.shape.dimensions) == 2 and instruction.shape.dimensions[0] > 60:
                instruction.shape.dimensions[0] = 1
    total, found = buffers.at_peak(module)
    assert total == 8 * kb
    assert [(one.bytes // kb, one.place) for one in found[:2]] == [
        (4, "gpt/h3/mlp/in"), (2, "gpt/h0/attn")]


@compiled
def test_a_program_is_compiled_once(tmp_path, monkeypatch):
    """The program that another process made has the same key; a damaged answer is left out."""
    monkeypatch.setenv("GPTC_COMPILE_CACHE", f"{tmp_path}/kept")
    keys = dict(n_layer=1, mesh_shape="x:4,y:2", layout="batch:x,heads:y,intermediate_expanded:y")
    config = jobs.config(tmp_path, ABSENT, **{**SPLIT, **keys})
    alone = jobs.process(config, "--preflight", "v3-8").summary
    [kept] = (tmp_path / "kept").iterdir()
    kept.with_name("other.gz").write_bytes(kept.read_bytes()[:50])
    made = kept.stat().st_mtime_ns
    assert jobs.process(config, "--preflight", "v3-8").summary == alone
    assert {path.name for path in kept.parent.iterdir()} == {kept.name, "other.gz"}
    assert kept.stat().st_mtime_ns == made
    assert compile_cache.get(kept.name[:-3]) and compile_cache.get("other") is None
    # On the torus the pairs of y are the two cores of a chip: they need no link.
    assert {row["axes"] for row in alone["collectives"]} >= {"x", "y"}


def gone(process):
    """Whether it ended; who should clear it away may be slow, or not there in a container."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@compiled
def test_the_compiler_ends_with_the_command(tmp_path):
    """Stopped in its work, it would stay for ever; the kernel kills it when its parent is gone."""
    running = jobs.start(jobs.config(tmp_path, ABSENT, **SPLIT), "--preflight", "v3-8")
    parent = psutil.Process(running.pid)
    try:
        while not (compilers := [child for child in parent.children()
                                 if any("libtpu" in part.path for part in child.memory_maps())]):
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        compilers[0].suspend()
        running.terminate()
        assert running.wait(60) != 0
        psutil.wait_procs(compilers, 20)
        assert gone(compilers[0])
    finally:
        running.kill()
        running.communicate()


@compiled
def test_data_parallel_step_on_v3_8(tmp_path, capsys):
    done = preflight(capsys, tmp_path, "v3-8", n_layer=1, tokens_per_mb_per_replica=0)
    found = done.summary
    assert set(found) == {"fits", "hbm_gib", "hbm_limit_gib", "step_seconds", "tokens_per_second",
                          "mfu", "collectives"}
    assert found["fits"] and 0 < found["hbm_gib"] < 1 and found["hbm_limit_gib"] == 15.48
    shown = done.stdout.partition("largest arguments")[2]
    assert "64,16]" in shown and "gpt/wte" in shown and "when they need most" in shown
    assert found["tokens_per_second"] == pytest.approx(8 * 16 / found["step_seconds"], rel=1e-2)
    # Only gradients, in float32, and a few scalars are added up: 64 rows of tokens, whose table's
    # two uses are one sum by then, 16 positions, a block of 12·16² weights and 13·16 biases and
    # gains, and the last norm.
    parameters = 64 * 16 + 16 * 16 + 12 * 16**2 + 13 * 16 + 2 * 16
    [row] = found["collectives"]
    assert (row["axes"], row["kind"]) == ("x", "all-reduce")
    assert 4 * parameters <= row["bytes"] < 4 * parameters + 100
    assert "does not fit" not in done.stdout and "v3-8: fits" in done.stdout


@pytest.mark.slow
@compiled
def test_a_step_that_does_not_fit_is_refused_and_made_to_fit(tmp_path, capsys, monkeypatch):
    """65,536 rows a core: hidden features of 64 positions are 16 GiB; a row at a time is little."""
    keys = dict(n_layer=1, n_embd=256, n_ctx=64, train_batch_size=8 * 65536, recompute_grad=True,
                tokens_per_mb_per_replica=0)
    monkeypatch.setenv("GPTC_COMPILE_CACHE", f"{tmp_path}/kept")
    done = preflight(capsys, tmp_path, "v2-8", **keys)
    found = done.summary
    assert not found["fits"] and found["hbm_limit_gib"] == 7.48 and found["hbm_gib"] > 7.48
    assert "v2-8: does not fit" in done.stdout and "exceed memory" in done.stdout
    [remedy] = found["remedies"]
    assert remedy["fits"] and remedy["hbm_gib"] < 7.48
    again = preflight(capsys, tmp_path, "v2-8", **{**keys, **remedy["set"]}).summary
    assert again["fits"] and again["hbm_gib"] == pytest.approx(remedy["hbm_gib"], abs=1e-5)


@pytest.mark.parametrize(("name", "mesh", "split"), [
    ("gptc_162M", "x:4,y:2", "heads:y"), ("text_clip", "x:4,y:2", "clip_heads:y"),
    ("gpt2_1.5B", "x:16,y:8", "features_per_head:y"),  # 25 heads, and shared among 4 already
    ("gpt_moe_125M", "x:16,y:2", "experts:x"), ("gpt_6.7B", "x:8,y:32", "heads:y")])
def test_layouts_that_are_tried_split_what_the_config_has(name, mesh, split):
    found = [change for change, _ in remedies.of_run(schema.load(name)) if "layout" in change]
    assert found[0]["mesh_shape"] == mesh
    assert split in found[0]["layout"].split(",")


def test_a_refusal_of_few_layers_says_so(tmp_path, capsys, monkeypatch):
    """The compiler's answer is made up here."""
    monkeypatch.setattr(mesh_preflight, "compile_for", lambda *_: mesh_preflight.TooLarge(1, ""))
    monkeypatch.setattr(mesh_preflight, "check_installed", lambda: None)
    done = jobs.here(capsys, jobs.config(tmp_path, ABSENT, **SPLIT, n_layer=4), "--preflight",
                     "v3-8", "--preflight_layers", "few")
    assert done.summary["extrapolated_from_layers"] == [1]
    assert done.stdout.startswith("EXTRAPOLATED: a model of 1 layers is too large already")


def test_remedies_are_tried_until_one_fits(tmp_path, capsys, monkeypatch):
    """The compiler's answers are made up here: what takes part in them is the config's program."""
    fit = tpus.find("v3-8").generation.memory

    def compile_for(program, tpu, mesh):
        if dict(mesh) == {"x": 8}:
            return mesh_preflight.TooLarge(2 * fit, "the compiler's words")
        return mesh_preflight.Compiled({"arguments": fit // 2}, types.SimpleNamespace(moved=[]),
                                       [], {"compute": 1.0})

    monkeypatch.setattr(mesh_preflight, "compile_for", compile_for)
    monkeypatch.setattr(mesh_preflight, "check_installed", lambda: None)
    done = preflight(capsys, tmp_path, "v3-8", n_layer=1, train_batch_size=16,
                     tokens_per_mb_per_replica=0)
    assert not done.summary["fits"]
    sets = [row["set"] for row in done.summary["remedies"]]
    assert [row["fits"] for row in done.summary["remedies"]] == [False, False, True]
    assert sets[0] == {"recompute_grad": True}
    assert sets[1] == {"recompute_grad": True, "tokens_per_mb_per_replica": 16}
    assert sets[2]["mesh_shape"] == "x:4,y:2" and "heads:y" in sets[2]["layout"]
    assert "tried --set recompute_grad=true: does not fit, 30.96 GiB" in done.stdout
    assert "--set mesh_shape=x:4,y:2" in done.stdout and ": fits, 7.74 GiB" in done.stdout
