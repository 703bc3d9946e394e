"""Pictures of scenes, by signed distances in numpy, and how much two shapes look alike.

Only +, -, *, /, square root, minimum and maximum of float32 are used, which IEEE 754 rounds
correctly, so that the same scene gives the same bytes on every machine.
"""

import functools

import numpy as np
from scenes_world import SHAPES

# Outlines: u to the right and v downwards from the shape's centre, in units of its radius, to the
# distance from the outline in the same units, negative inside. [..., height, width] each.


def _length(u, v):
    return np.sqrt(u * u + v * v)


def _circle(u, v):
    return _length(u, v) - 0.9


def _ellipse(u, v, a, b):
    """First-order distance from an ellipse of half axes a and b."""
    near = _length(u / a, v / b)
    return near * (near - 1) / np.maximum(_length(u / a ** 2, v / b ** 2), 1e-6)


def _egg(u, v):
    width = 0.66 + 0.13 * v
    return (_length(u / np.maximum(width, 0.4), v / 0.98) - 1) * 0.75


def _annulus(u, v, radius, half):
    return np.abs(_length(u, v) - radius) - half


def _rectangle(u, v, a, b, corner=0.0):
    """A rectangle of half sides a and b, its corners rounded by a radius."""
    u, v = np.abs(u) - (a - corner), np.abs(v) - (b - corner)
    sharp = np.maximum(u, v)
    if not corner:
        return sharp
    return _length(np.maximum(u, 0), np.maximum(v, 0)) + np.minimum(sharp, 0) - corner


def _triangle(u, v, half):
    """An upright triangle, its base 2 * half wide."""
    norm = (1.67 ** 2 + half ** 2) ** 0.5
    return np.maximum((1.67 * np.abs(u) - half * (v + 0.95)) / norm, v - 0.72)


def _wedge(u, v):
    """A triangle whose tip lies left of its middle."""
    left = (-1.62 * (u + 0.4) - 0.55 * (v + 0.9)) / (1.62 ** 2 + 0.55 ** 2) ** 0.5
    right = (1.62 * (u + 0.4) - 1.35 * (v + 0.9)) / (1.62 ** 2 + 1.35 ** 2) ** 0.5
    return np.maximum(np.maximum(left, right), v - 0.72)


def _cross(u, v, half):
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(u, v) - half, np.maximum(u, v) - 0.95)


def _star(u, v, inner):
    """A star of five points; a fifth of the plane is folded over all others."""
    cos, sin = 0.809016994, 0.587785252  # of 36 degrees
    x, y = np.abs(u), -v
    fold = 2 * np.maximum(cos * x - sin * y, 0)
    x, y = x - fold * cos, y + fold * sin
    fold = 2 * np.maximum(-cos * x - sin * y, 0)
    x, y = np.abs(x + fold * cos), y + fold * sin
    along_x, along_y = inner * sin, inner * cos - 1  # from the tip to the notch
    return ((y - 1) * along_x - x * along_y) / (along_x ** 2 + along_y ** 2) ** 0.5


def _diamond(u, v, half):
    return (np.abs(u) / half + np.abs(v) - 1) / (1 / half ** 2 + 1) ** 0.5


def _gem(u, v):
    return np.maximum(_diamond(u, v, 0.92), -0.62 - v)


def _kite(u, v):
    """A diamond whose widest line lies above its centre."""
    across = np.abs(u) / 0.72
    upper, lower = across - (v + 0.3) / 0.65 - 1, across + (v + 0.3) / 1.3 - 1
    return np.maximum(upper * 0.48, lower * 0.63)


def _hexagon(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.maximum(0.866025404 * u + 0.5 * v, v) - 0.82


def _crescent(u, v, bite, at):
    return np.maximum(_length(u, v) - 0.93, bite - _length(u - at, v))


OUTLINES = {
    "circle": _circle, "disc": _circle,
    "oval": functools.partial(_ellipse, a=1.06, b=0.62),
    "ellipse": functools.partial(_ellipse, a=1.03, b=0.7), "egg": _egg,
    "ring": functools.partial(_annulus, radius=0.7, half=0.23),
    "hoop": functools.partial(_annulus, radius=0.8, half=0.14),
    "donut": functools.partial(_annulus, radius=0.65, half=0.29),
    "square": functools.partial(_rectangle, a=0.8, b=0.8),
    "box": functools.partial(_rectangle, a=0.8, b=0.8),
    "tile": functools.partial(_rectangle, a=0.83, b=0.83, corner=0.3),
    "rectangle": functools.partial(_rectangle, a=1.03, b=0.52),
    "bar": functools.partial(_rectangle, a=1.08, b=0.44),
    "slab": functools.partial(_rectangle, a=1.02, b=0.6),
    "triangle": functools.partial(_triangle, half=0.98),
    "cone": functools.partial(_triangle, half=0.72), "wedge": _wedge,
    "cross": functools.partial(_cross, half=0.34), "plus": functools.partial(_cross, half=0.27),
    "star": functools.partial(_star, inner=0.42), "starfish": functools.partial(_star, inner=0.48),
    "diamond": functools.partial(_diamond, half=0.78), "gem": _gem, "kite": _kite,
    "crescent": functools.partial(_crescent, bite=0.8, at=0.45),
    "moon": functools.partial(_crescent, bite=0.78, at=0.54),
    "hexagon": _hexagon,
}
LYING = {"oval", "ellipse", "rectangle", "bar", "slab"}  # turned by a right angle, others mirrored


def _coverage(shape, turned, x, y, radius, size):
    """How much of each pixel a shape covers.

    Args:
        shape: the shape word.
        turned: bool [n].
        x, y, radius: float32 [n], the frame being from -1 to 1.
        size: pixels a side.

    Returns:
        float32 [n, size, size] of 0–1.
    """
    line = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size)
            - np.float32(1))
    u = (line[None, None, :] - x[:, None, None]) / radius[:, None, None]
    v = (line[None, :, None] - y[:, None, None]) / radius[:, None, None]
    if shape in LYING:
        u, v = np.where(turned[:, None, None], v, u), np.where(turned[:, None, None], u, v)
    else:
        u = np.where(turned[:, None, None], -u, u)
    pixels = OUTLINES[shape](u, v) * (radius[:, None, None] * np.float32(size / 2))
    return np.clip(np.float32(0.5) - pixels, 0, 1)


def render(scenes, size=32):
    """Draws scenes.

    Args:
        scenes: list of scenes_sample.Scene; later things lie upon earlier ones.
        size: pixels a side.

    Returns:
        uint8 [scenes, size, size, 3].
    """
    image = np.empty((len(scenes), size, size, 3), np.float32)
    image[:] = np.array([scene.backdrop for scene in scenes], np.float32).reshape(-1, 1, 1, 3)
    for layer in range(max((len(scene.things) for scene in scenes), default=0)):
        groups = {}
        for number, scene in enumerate(scenes):
            if layer < len(scene.things):
                groups.setdefault(scene.things[layer].shape, []).append(number)
        for shape, numbers in groups.items():
            things = [scenes[number].things[layer] for number in numbers]
            where = np.array([(thing.x, thing.y, thing.radius) for thing in things], np.float32)
            cover = _coverage(shape, np.array([thing.turned for thing in things]), *where.T,
                              size)[..., None]
            colour = np.array([thing.rgb for thing in things], np.float32)[:, None, None, :]
            below = image[numbers]
            image[numbers] = below + (colour - below) * cover
    return np.floor(image + np.float32(0.5)).astype(np.uint8)


@functools.lru_cache(maxsize=len(SHAPES) * 2)
def silhouette(shape, turned=False):
    """The shape at radius 0.8 of a frame from -1 to 1: bool [128, 128]."""
    half = np.array([0.8], np.float32)
    return _coverage(shape, np.array([turned]), half * 0, half * 0, half, 128)[0] >= 0.5


@functools.lru_cache(maxsize=len(SHAPES) ** 2)
def shape_similarity(one, other):
    """How much two shape words look alike: intersection over union of their silhouettes at equal
    radius, turned so that they agree best; 0–1."""
    pairs = [(silhouette(one, turn), silhouette(other, other_turn))
             for turn in (False, True) for other_turn in (False, True)]
    return max(float((first & second).sum() / (first | second).sum()) for first, second in pairs)
