"""main.py --preflight: refusals, and tiny steps compiled by the TPU compiler where it is there."""

import json
import types

import graphs
import jobs
import pytest

from configs import schema
from mesh import compile_cache, pjrt, tpus
from mesh import preflight as mesh_preflight
from mesh.compat import mtf
from training import ahead, flops, objectives
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


def test_model_flops_count_what_a_token_passes():
    def of_token(config, **sizes):
        shapes = {name: mtf.Shape([mtf.Dimension(d, n) for d, n in dims])
                  for name, dims in sizes.items()}
        return flops.of_token(config, [
            types.SimpleNamespace(name=name, shape=shape, trainable=True)
            for name, shape in shapes.items()])

    plain = graphs.config(n_layer=2, n_ctx=8, n_embd=16)
    assert of_token(plain, a=[("x", 5)]) == 6 * 5 + 12 * 2 * 8 * 16
    mixed = plain.replace(attention_types=["local", "none"], local_attention_radius=4)
    assert of_token(mixed, a=[("x", 5)]) == 6 * 5 + 12 * 4 * 16
    experts = graphs.config(n_layer=2, n_ctx=8, n_embd=16, moe_layers=[1],
                            moe_params={"num_experts": 4, "gating": "top_2"})
    assert of_token(experts, a=[("x", 5)], b=[("experts", 4), ("x", 6)]) == (
        6 * (5 + 2 * 6) + 12 * 2 * 8 * 16)


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


@compiled
def test_data_parallel_step_on_v3_8(tmp_path, capsys):
    done = preflight(capsys, tmp_path, "v3-8", n_layer=1, tokens_per_mb_per_replica=0)
    found = done.summary
    assert set(found) == {"fits", "hbm_gib", "hbm_limit_gib", "step_seconds", "tokens_per_second",
                          "mfu", "collectives"}
    assert found["fits"] and 0 < found["hbm_gib"] < 1 and found["hbm_limit_gib"] == 15.48
    assert found["tokens_per_second"] == pytest.approx(8 * 16 / found["step_seconds"], rel=1e-2)
    # Only gradients, in float32, and a few scalars are added up: 64 rows of tokens, once for each
    # of the two uses of their table, 16 positions, a block of 12·16² weights and 13·16 biases and
    # gains, and the last norm.
    parameters = 2 * 64 * 16 + 16 * 16 + 12 * 16**2 + 13 * 16 + 2 * 16
    [row] = found["collectives"]
    assert (row["axes"], row["kind"]) == ("x", "all-reduce")
    assert 4 * parameters <= row["bytes"] < 4 * parameters + 100
    assert "does not fit" not in done.stdout and "v3-8: fits" in done.stdout


@pytest.mark.slow
@compiled
def test_a_step_that_does_not_fit_is_refused_with_remedies(tmp_path, capsys):
    done = preflight(capsys, tmp_path, "v2-8", n_vocab=2**19, n_embd=2048, n_ctx=8)
    found = done.summary
    assert not found["fits"] and found["hbm_limit_gib"] == 7.48
    # The table of tokens alone has 4 GiB, and as much each for its gradient and two slots.
    assert found["hbm_gib"] > 7.48 and "gpt/wte" in done.stdout
    assert "v2-8: does not fit" in done.stdout and "recompute_grad=true" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == found


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
