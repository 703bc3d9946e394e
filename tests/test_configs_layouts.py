"""Layout rules of CLIP runs: which kind has which dimension, sizes, and what shares a tensor."""

import itertools

import graphs
import numpy as np
import pytest

from configs import layouts
from configs.errors import UserError
from mesh.compat import mtf, tf
from models import clip, clip_image, clip_student, layers

KINDS = {
    "GPT": {},
    "clip": {"activation_function": "quick_gelu", "clip": {"out": 24}},
    "clip_student": {"activation_function": "quick_gelu", "position": "rotary",
                     "clip": {"teacher": "runs/clip", "window": 5}},
    "gpt_c": {"clip": {"student": "runs/student"}},
}
# What a layout may split, by kind of model.
SPLITTABLE = {
    "GPT": {"batch", "embd", "heads", "vocab", "intermediate_expanded", "embed_sequence"},
    "clip": {"batch", "clip_embd", "clip_heads", "clip_vocab", "clip_intermediate", "clip_out",
             "clip_embed_sequence"},
    "clip_student": {"batch", "clip_embd", "clip_heads", "clip_vocab", "clip_intermediate",
                     "clip_out", "clip_embed_sequence"},
}
SPLITTABLE["gpt_c"] = SPLITTABLE["GPT"] | SPLITTABLE["clip"] - {"clip_embed_sequence"}
IMAGE = {"clip_image_embd", "clip_image_heads", "clip_image_intermediate"}


def config(kind, mesh_shape="x:2", layout="", **changes):
    keys = {**KINDS[kind], "mesh_shape": mesh_shape, "layout": layout, **changes}
    return graphs.config(model=kind, **keys)


def refused(kind, *args, **changes):
    with pytest.raises(UserError) as caught:
        config(kind, *args, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_needs_a_dimension_that_the_kind_has(kind):
    own = SPLITTABLE[kind]
    for name in own:
        assert dict(config(kind, layout=f"{name}:x").layout_rules) == {name: "x"}
    for name in set().union(*SPLITTABLE.values()) - own:
        message = refused(kind, layout=f"{name}:x")
        assert f"layout: {name}:x: model {kind} has no {name}; remove the rule" in message
    for name in IMAGE:
        if kind == "clip":
            assert "only clip.image_tower = \"vit\" has it" in refused(kind, layout=f"{name}:x")
            vit = {**KINDS["clip"]["clip"], "image_tower": "vit"}
            config(kind, layout=f"{name}:x", clip=vit)
        else:
            assert f"model {kind} has no {name}" in refused(kind, layout=f"{name}:x")


def test_the_dimension_of_the_other_kind_is_named():
    assert "remove the rule or write clip_heads:x" in refused("clip", layout="heads:x")
    assert "remove the rule or write embd:x" in refused("GPT", layout="clip_embd:x")
    assert refused("GPT", layout="clip_out:x").endswith("remove the rule")


@pytest.mark.parametrize("name", ["clip_sequence", "clip_memory_length", "clip_candidates",
                                  "clip_features_per_head", "clip_image_features"])
def test_what_no_layout_splits(name):
    with pytest.raises(ValueError, match=f"{name} cannot be split in this release"):
        layouts.parse_layout(f"{name}:x")


@pytest.mark.parametrize("kind, rule, size, changes, named", [
    ("clip", "clip_embd", 5, {}, "n_embd = 32"),
    ("clip", "clip_heads", 3, {}, "n_head = 4"),
    ("clip", "clip_vocab", 3, {}, "the padded n_vocab = 64"),
    ("clip", "clip_intermediate", 3, {}, "4 × n_embd = 128"),
    ("clip", "clip_out", 5, {}, "clip.out = 24"),
    ("clip", "clip_out", 3, {"clip": {}}, "clip.out = 32"),
    ("clip", "clip_embed_sequence", 3, {}, "n_ctx = 16"),
    ("clip", "clip_image_heads", 3, {"clip": {"image_tower": "vit"}}, "clip.image_heads = 4"),
    ("clip", "clip_image_embd", 3, {"clip": {"image_tower": "vit"}}, "clip.image_width = 64"),
    ("clip", "clip_image_intermediate", 3, {"clip": {"image_tower": "vit"}},
     "4 × clip.image_width = 256"),
    ("clip_student", "clip_embd", 5, {}, "n_embd = 32"),
    ("clip_student", "clip_heads", 3, {}, "n_head = 4"),
    ("clip_student", "clip_vocab", 3, {}, "the padded n_vocab = 64"),
    ("gpt_c", "heads", 3, {}, "n_head = 4"),
])
def test_a_size_of_the_run_that_the_mesh_does_not_divide(kind, rule, size, changes, named):
    message = refused(kind, f"x:{size}", f"{rule}:x", **changes)
    assert f"layout: {rule}:x splits {named} over x:{size}, which does not divide it" in message


@pytest.mark.parametrize("kind, tower, key", [("clip_student", "clip", "clip.teacher"),
                                              ("gpt_c", "clip_student", "clip.student")])
@pytest.mark.parametrize("rule, size, named", [
    ("clip_embd", 2, "n_embd = 27"), ("clip_heads", 2, "n_head = 9"),
    ("clip_vocab", 2, "the padded n_vocab = 61"), ("clip_intermediate", 8, "4 × n_embd = 108"),
    ("clip_out", 2, "the width of its outputs = 15"), ("clip_embed_sequence", 2, "n_ctx = 9")])
def test_a_size_of_another_run_that_the_mesh_does_not_divide(kind, tower, key, rule, size, named):
    if rule not in SPLITTABLE[kind]:
        return
    # The run's own sizes are all divided; the other run's are odd.
    run = config(kind, f"x:{size}", f"{rule}:x", n_head=8)
    odd = config(tower, "", n_embd=27, n_head=9, n_ctx=9, pad_vocab_multiple=1, **(
        {"rotary_dims": 2} if tower == "clip_student" else {}))
    with pytest.raises(UserError) as caught:
        layouts.check_tower(run, key, odd, 15)
    assert (f"layout: {rule}:x splits {named} of {key} over x:{size}, which does not divide it; "
            "change mesh_shape or remove the rule") == str(caught.value)
    layouts.check_tower(run, key, config(tower, ""), 16)


def test_a_rule_of_the_gpt_says_nothing_of_its_student():
    run = config("gpt_c", "x:2", "heads:x")
    layouts.check_tower(run, "clip.student", config("clip_student", "", n_embd=27, n_head=9,
                                                    rotary_dims=2), 15)


CLASHING = {("batch", other) for other in ("clip_embd", "clip_heads", "clip_vocab",
                                           "clip_intermediate", "clip_out")}
CLASHING |= {("clip_embd", other) for other in ("clip_heads", "clip_vocab", "clip_intermediate",
                                                "clip_out", "clip_embed_sequence")}
CLASHING |= {("embd", "clip_out")}
CLASHING |= {("batch", other) for other in ("embd", "vocab", "heads", "intermediate_expanded")}
CLASHING |= {("embd", other) for other in ("vocab", "heads", "intermediate_expanded",
                                           "embed_sequence")}


@pytest.mark.parametrize("kind", ["clip", "clip_student", "gpt_c"])
def test_dimensions_of_one_tensor_cannot_share_an_axis(kind):
    for first, second in itertools.combinations(sorted(SPLITTABLE[kind]), 2):
        layout = f"{first}:x,{second}:x"
        if {(first, second), (second, first)} & CLASHING:
            assert "would split two dimensions of" in refused(kind, layout=layout), layout
        else:
            config(kind, layout=layout)


def variables(kind):
    """(config, the mtf variables of the model of a kind)."""
    with tf.Graph().as_default():
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        changes = {"clip": {"out": 24, "image_tower": "vit"}} if kind == "clip" else {}
        run = config(kind, **changes)
        ctx = layers.Context(mesh, run)
        batch = mtf.Dimension("batch", 8)
        tokens = mtf.zeros(mesh, [batch, mtf.Dimension("clip_sequence", 16)], tf.int32)
        if kind == "clip":
            sizes = dict(width=32, layers=2, heads=4, context=16, vocab=64, out=24)
            clip.TextTower(clip.ClipSizes(**sizes)).embed(
                ctx, tokens, mtf.zeros(mesh, [batch], tf.int32))
            image = clip_image.tower(clip_image.ImageSizes("vit", out=24))
            image.embed(ctx, mtf.zeros(mesh, [batch, *image.sizes.pixels()]))
        else:
            clip_student.Student(clip_student.StudentSizes(
                width=32, layers=2, heads=4, vocab=64, out=24, window=5,
                rotary_dims=4)).outputs(ctx, tokens)
        return run, graph.all_variables


@pytest.mark.parametrize("kind", ["clip", "clip_student"])
def test_the_models_own_tensors_are_those_of_the_table(kind):
    run, found = variables(kind)
    splittable = {name for name, dim in layouts.DIMENSIONS.items()
                  if dim.splittable and kind in dim.models}
    assert splittable == SPLITTABLE[kind] | (IMAGE if kind == "clip" else set())
    seen = set()
    for variable in found:
        dims = {dim.name: dim.size for dim in variable.shape.dims if dim.name in splittable}
        assert any(set(dims) <= set(tensor) for tensor in layouts.TENSORS.values()), variable
        for name, size in dims.items():
            assert [size] * bool(layouts._sizes(run, name)) == [
                known for _, known in layouts._sizes(run, name)], name
        seen |= set(dims)
    assert seen == splittable - {"batch"} - ({"clip_embed_sequence"} if kind != "clip" else set())


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [
    pair for pair in itertools.combinations(sorted(SPLITTABLE["clip"]), 2)
    if not {pair, pair[::-1]} & CLASHING])
def test_dimensions_that_may_share_an_axis_do_so(first, second):
    """A text tower laid out so gives what one device gives."""
    random = np.random.RandomState(0)
    tokens, ends = random.randint(0, 64, [8, 16]), random.randint(1, 16, [8])

    def build(mesh):
        tower = clip.TextTower(clip.ClipSizes(width=32, layers=1, heads=4, context=16, vocab=64,
                                              out=24))
        batch, sequence = graphs.dim("batch", 8), graphs.dim("clip_sequence", 16)
        return {"y": tower.embed(layers.Context(mesh, graphs.config()),
                                 graphs.give(mesh, tokens.astype(np.int32), batch, sequence),
                                 graphs.give(mesh, ends.astype(np.int32), batch))}

    one, many = graphs.run(build), graphs.run(build, "x:2", f"{first}:x,{second}:x")
    np.testing.assert_allclose(many["y"], one["y"], atol=1e-5)
