"""Pictures of the picture–caption world show what their scenes say, fast and always alike."""

import hashlib
import json
import os
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(__file__)), "datasets"))
import scenes_cloze  # noqa: E402
import scenes_world  # noqa: E402
from scene_checks import pictures  # noqa: E402
from scenes_render import render  # noqa: E402
from scenes_sample import Scene, Thing  # noqa: E402


def test_pictures_show_the_scenes():
    """Pixels of a thing's own colour are many, lie around its centre and nowhere else."""
    made, _ = pictures("train", 300)
    size, seen = 96, 0
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    for scene, image in zip(made, render(made, size), strict=True):
        for thing in scene.things:
            if any(max(np.abs(np.subtract(thing.rgb, other.rgb))) < 12
                   for other in scene.things if other is not thing):
                continue
            y, x = np.nonzero((image == thing.rgb).all(-1))
            area = np.pi * (thing.radius * size / 2) ** 2
            assert 0.15 * area < len(x) < area * 1.1
            far = np.hypot(axis[x] - thing.x, axis[y] - thing.y)
            assert far.max() < 1.25 * thing.radius
            assert np.hypot(axis[x].mean() - thing.x, axis[y].mean() - thing.y) < 0.5 * thing.radius
            seen += 1
        assert (image == scene.backdrop).all(-1).mean() > 0.3
    assert seen > 400


@pytest.mark.parametrize("shape, area", [
    ("circle", np.pi * 0.9 ** 2), ("square", 1.6 ** 2), ("ring", np.pi * (0.93 ** 2 - 0.47 ** 2)),
    ("rectangle", 4 * 1.03 * 0.52), ("diamond", 2 * 0.78), ("oval", np.pi * 1.06 * 0.62),
    ("triangle", 0.98 * 1.67), ("cross", 4 * (2 * 0.95 * 0.34 - 0.34 ** 2)),
    ("hexagon", 2 * 3 ** 0.5 * 0.82 ** 2), ("star", 10 * 0.5 * 0.42 * np.sin(np.pi / 5))])
def test_outlines_have_the_areas_of_geometry(shape, area):
    thing = Thing("red", (), (255, 0, 0), shape, "big", "center", 0.0, 0.0, 0.8, False)
    image = render([Scene("dark", (0, 0, 0), (thing,), False)], 256)[0]
    assert image[..., 0].sum() / 255 / 128 ** 2 == pytest.approx(area * 0.64, rel=0.01)


def test_shape_similarity_is_overlap_of_rendered_pictures():
    def mask(shape, turned=False):
        thing = Thing("red", (), (255, 0, 0), shape, "big", "center", 0.0, 0.0, 0.75, turned)
        return render([Scene("dark", (0, 0, 0), (thing,), False)], 200)[0, ..., 0] > 127
    for one, other in (("hoop", "ring"), ("slab", "oval"), ("cone", "kite"), ("moon", "crescent")):
        pairs = [(mask(one, turn), mask(other, way)) for turn in (0, 1) for way in (0, 1)]
        overlap = max((p & q).sum() / (p | q).sum() for p, q in pairs)
        assert scenes_cloze.shape_similarity(one, other) == pytest.approx(overlap, abs=0.02)
        assert scenes_cloze.shape_similarity(other, one) == pytest.approx(overlap, abs=0.02)


def test_final_test_and_renderer_are_frozen():
    """What final figures rest on; a change needs a new scenes_world.VERSION and new figures."""
    digest = hashlib.sha256(json.dumps(list(scenes_cloze.items("test", 1600))).encode())
    assert (scenes_world.VERSION, digest.hexdigest()[:16]) == (1, "af092b02380c12c2")
    digest = hashlib.sha256(render(pictures("train", 64)[0]).tobytes())
    assert digest.hexdigest()[:16] == "b789363fd6066720"


def test_rendering_is_fast():
    made, best = pictures("train", 1024)[0], 0
    for _ in range(3):
        begin = time.process_time()
        for start in range(0, 1024, 256):
            render(made[start:start + 256])
        best = max(best, 1024 / (time.process_time() - begin))
    assert best >= 2000, best
