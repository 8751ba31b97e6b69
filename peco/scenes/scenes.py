"""`scenes`: a procedural image data set for pre-training and for ten-way recognition of objects.

Every image is a *dead-leaves* picture: ellipses and polygons whose radii follow a power law are dropped on one another until they
cover the canvas. This gives the occlusion edges and the spectrum of photographs. One object of ten classes lies among the leaves,
partly covered by a few more leaves.

A class is a **shape with a surface pattern** of its own (a striped crescent, a checked cross) in any two tones of any colour. The
colour is chosen to contrast with the pixels that the object covers, independently of its class. Shading, faint stripes and grain
follow one distribution for leaves and objects. All classes have the same area; pose, period and phase vary. So colour histograms
stay at chance and a linear model on pixels scores low (`benchmarks/scenes_baselines.py` measures both).

An image is made in three steps:

1. *layout*: every leaf, object and occluder is painted, back to front, as polygons into one 8-bit map that holds at each pixel the
   number of the topmost item. Visible masks are read from this map.
2. *materials*: a table with one row for each item (colour, gradient, stripes, grain) is looked up through the map, so texturing
   costs a few array operations for an image, for any number of items.
3. *averaging*: both happen on a raster `_SUPER` times finer, which is averaged down in integer arithmetic.

**Frozen pixels.** Results are comparable only while the pixels don't change, so `fingerprint` hashes a few images and a test pins
its value. A change of the pixels must raise `VERSION`, which also re-keys every random stream. Only `Generator.random` is drawn
from (the most stable of numpy's methods), lengths are rounded to integers before drawing, and colours are averaged as integers.

Coordinates are (x, y) with y pointing down. The layout uses units of the image side, so a scene looks the same at every size
except for rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

VERSION: int = 1  # part of every random key; raised whenever any pixel or label changes
CLASSES: tuple[str, ...] = (
    "ring", "cross", "star", "crescent", "arrow", "heart", "hourglass", "gear", "spiral", "comb",
)  # fmt: skip
MIN_VISIBLE: float = 0.6  # least visible fraction of the main object's area
MAX_OBJECTS: int = 8  # in a scene; more would be too small to recognise

_SUPER = 2  # raster cells along each side of a pixel
_LEAVES = 70  # background leaves; with the radii below they cover the canvas several times
_LEAF_RADII = (0.09, 0.5)  # image sides; density proportional to radius ** -3, as in dead-leaves models
_OCCLUDERS = 2  # leaves drawn for the top of the main object; those that would hide too much are left out
_OCCLUDER_RADII = (0.05, 0.14)  # image sides
_KEPT = 0.25  # least visible fraction of a further object in the ground truth
_POSES = 6  # poses tried for each of several objects; the one with the least overlap is taken
_AREA = 1.7  # area of every shape in a frame of half-side 1 (area 4)
_HALF_SIDE = (0.34, 0.42)  # half-side of the main object's frame, in image sides
_WANDER = 0.6  # fraction of the free room in which a single object lies; several objects use all of it
_TURN = 0.3  # largest rotation either way, radians
_SCATTER = 0.25  # spread of the leaves' colours within an image, relative to that over all images
_CHROMA = 0.12  # largest distance of a colour from grey
_LIGHT = (0.3, 0.7)  # lightness of colours
_PERIOD = (0.08, 0.11)  # of the objects' patterns, in image sides
_RELIEF = (0.24, 0.34)  # lightness that an object's pattern adds and takes away
_CONTRAST = 0.35  # least RGB distance (channels in 0..1) between an object's colour and the mean below it

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Outline = tuple[Floats, int]  # a polygon's (K, 2) vertices; 1 to add its inside to the shape, 0 to cut it


@dataclass(frozen=True)
class Scene:
    """One image with its ground truth: N objects, the main one first."""

    image: Bytes  # RGB pixels (H, W, 3)
    label: int  # class of the main object, which has the largest visible area
    boxes: NDArray[np.float32]  # (N, 4) x0, y0, x1, y1 in pixels around the visible part, x1 and y1 exclusive
    classes: NDArray[np.int64]  # (N,)
    masks: NDArray[np.bool_]  # (N, H, W), visible part; masks of one scene are disjoint
    visible: NDArray[np.float32]  # (N,) visible fraction of the object's whole area


# --- shapes ---
#
# Each takes three uniform numbers in [0, 1) that vary its proportions within the class, and returns outlines of any position and
# scale (`_shape` normalises them). Outlines that add must not overlap one another, and those that cut must lie inside, so that the
# signed polygon areas sum to the area of the shape.


def _arc(radius: float | Floats, start: float, stop: float, count: int, center: float = 0.0) -> Floats:
    """`count` points (count, 2) at angles start..stop (both included) about (centre, 0)."""
    angle = np.linspace(start, stop, count)
    return np.stack([center + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _ring(u: Floats) -> list[Outline]:
    return [(_arc(1.0, 0.0, 2 * np.pi, 49), 1), (_arc(0.5 + 0.15 * u[0], 0.0, 2 * np.pi, 37), 0)]


def _cross(u: Floats) -> list[Outline]:
    w = 0.25 + 0.12 * u[0]
    corner = np.array([[1.0, -w], [1.0, w], [w, w]])
    turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return [(np.concatenate([corner @ turn for turn in turns]), 1)]


def _star(u: Floats) -> list[Outline]:
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.36 + 0.12 * u[0])
    return [(_arc(radius, -0.5 * np.pi, 1.3 * np.pi, 10), 1)]


def _crescent(u: Floats) -> list[Outline]:
    half = 0.75 + 0.2 * u[0]  # the tips lie at this angle from the opening's axis
    depth = 0.35 + 0.15 * u[1]  # half the thickness in the middle
    x, y = np.cos(half), np.sin(half)
    bottom = -1.0 + 2 * depth  # where the inner arc crosses the axis
    center = (x * x + y * y - bottom * bottom) / (2 * (x - bottom))
    radius = center - bottom
    tip = float(np.arctan2(y, x - center))
    inner = _arc(radius, 2 * np.pi - tip, tip, 25, center)
    return [(np.concatenate([_arc(1.0, half, 2 * np.pi - half, 33), inner]), 1)]


def _arrow(u: Floats) -> list[Outline]:
    shaft, neck, barb = 0.2 + 0.1 * u[0], 0.25 * u[1] - 0.1, 0.75 + 0.2 * u[2]
    upper = np.array([[-1.0, shaft], [neck, shaft], [neck, barb], [1.0, 0.0]])
    return [(np.concatenate([upper, upper[2::-1] * [1, -1]]), 1)]


def _heart(u: Floats) -> list[Outline]:
    t = np.linspace(0.0, 2 * np.pi, 41)
    dip = 4.0 + 3.0 * u[0]
    y = -(13 * np.cos(t) - dip * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [(np.stack([16 * np.sin(t) ** 3, y], axis=1), 1)]


def _hourglass(u: Floats) -> list[Outline]:
    neck, wide = 0.1 + 0.12 * u[0], 0.75 + 0.2 * u[1]
    right = np.array([[wide, -1.0], [wide, -0.8], [neck, 0.0], [wide, 0.8], [wide, 1.0]])
    return [(np.concatenate([right, right[::-1] * [-1, 1]]), 1)]


def _gear(u: Floats) -> list[Outline]:
    teeth = 7 + int(3 * u[0])
    radius = np.where(np.arange(4 * teeth) % 4 < 2, 1.0, 0.66 + 0.08 * u[1])
    rim = _arc(radius, 0.0, 2 * np.pi * (1 - 0.25 / teeth), 4 * teeth)
    return [(rim, 1), (_arc(0.2 + 0.1 * u[2], 0.0, 2 * np.pi, 25), 0)]


def _spiral(u: Floats) -> list[Outline]:
    angle = np.linspace(0.0, 2 * np.pi * (1.6 + 0.3 * u[0]), 49)
    middle = 0.12 + 0.88 * angle / angle[-1]
    width = 0.12 + 0.03 * u[1]
    rim = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return [(np.concatenate([rim * (middle + width)[:, None], (rim * (middle - width)[:, None])[::-1]]), 1)]


def _comb(u: Floats) -> list[Outline]:
    spine, tooth, wide = 0.4 + 0.15 * u[0], 0.2 + 0.05 * u[1], 0.7 + 0.2 * u[2]
    x0, x1 = -wide, spine - wide
    gap = 1 - 2 * tooth
    upper = np.array([[x0, 1.0], [wide, 1.0], [wide, gap], [x1, gap], [x1, tooth], [wide, tooth]])
    return [(np.concatenate([upper, upper[::-1] * [1, -1]]), 1)]


_SHAPES: tuple[Callable[[Floats], list[Outline]], ...] = (
    _ring, _cross, _star, _crescent, _arrow, _heart, _hourglass, _gear, _spiral, _comb,
)  # fmt: skip


def _polygon_area(points: Floats) -> float:
    """Area of a polygon (K, 2) by the shoelace formula, for either orientation."""
    x, y = points.T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def _shape(label: int, half_side: float, wander: float, rng: np.random.Generator) -> list[Outline]:
    """Outlines of one object in image sides, in a random pose, inside the canvas.

    `wander`: fraction of the free room around the middle of the canvas in which the object may lie, 0..1.
    """
    u = rng.random(9)
    outlines = _SHAPES[label](u[:3])
    area = sum(_polygon_area(p) * (1 if add else -1) for p, add in outlines)
    scale = half_side * np.sqrt(_AREA / area)
    turn, shear, stretch = _TURN * (2 * u[3] - 1), 0.3 * (u[4] - 0.5), 1 + 0.3 * (u[5] - 0.5)
    mirror = 1.0 if u[6] < 0.5 else -1.0
    # Shear, stretch and mirror keep the area: their determinants are 1, 1 and -1.
    pose = np.array([[mirror * stretch, 0.0], [shear, 1 / stretch]])
    pose = scale * pose @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    placed = [(p @ pose, add) for p, add in outlines]
    low, high = placed[0][0].min(axis=0), placed[0][0].max(axis=0)  # the first outline encloses the rest
    room = np.maximum(1.0 - 0.04 - (high - low), 0.0)
    shift = 0.5 * (1.0 - (high - low)) + room * wander * (u[7:9] - 0.5) - low
    return [(p + shift, add) for p, add in placed]


# --- layout ---


def _leaves(
    count: int, radii: tuple[float, float], middle: Floats, reach: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Random leaves with centres within +-`reach` of `middle` (2,) along each axis, in image sides.

    Returns vertices (count, 24, 2) and centre with radius (count, 3).
    """
    u = rng.random((count, 6))
    # Inverse of the distribution function of a density proportional to radius ** -3.
    low, high = radii[0] ** -2, radii[1] ** -2
    radius = (low - u[:, 0] * (low - high)) ** -0.5
    center = middle + reach * (2 * u[:, 1:3] - 1)
    # 24 vertices serve all kinds: triangles, quadrilaterals and hexagons visit each corner several times.
    corners = np.array([3, 4, 4, 6, 24, 24, 24, 24])[(u[:, 3] * 8).astype(int), None]
    angle = 2 * np.pi * (np.arange(24) * corners // 24 / corners)
    stretch = (1.0 + 0.8 * u[:, 4])[:, None]
    x, y = np.cos(angle) * stretch, np.sin(angle) / stretch
    turn = 2 * np.pi * u[:, 5:6]
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    points = center[:, None] + radius[:, None, None] * np.stack([x, y], axis=2)
    return points, np.concatenate([center, radius[:, None]], axis=1)


def _fill(polygons: Iterable[Outline], raster: int) -> Bytes:
    """Paint polygons, given in image sides, one over another, each with its number: (raster, raster)."""
    canvas = Image.new("L", (raster, raster))
    draw = ImageDraw.Draw(canvas)
    for points, number in polygons:  # whole cells, so that no rounding differs between machines
        draw.polygon(np.rint(points * raster - 0.5).astype(np.int64).ravel().tolist(), fill=number)
    return np.array(canvas)


# --- materials ---


def _colors(count: int, rng: np.random.Generator) -> Floats:
    """Random RGB (count, 3) in 0..1: broad in lightness, moderate in chroma, as in photographs."""
    u = rng.random((count, 3))
    hue, chroma = 2 * np.pi * u[:, 0], _CHROMA * u[:, 1]
    warm, green = chroma * np.cos(hue), chroma * np.sin(hue)
    light = _LIGHT[0] + (_LIGHT[1] - _LIGHT[0]) * u[:, 2]
    return light[:, None] + np.stack([warm - 0.5 * green, green, -warm - 0.5 * green], axis=1)


@lru_cache(maxsize=8)
def _grain(raster: int) -> NDArray[np.float32]:
    """Three periodic noise tiles (3, raster, raster), fine, medium and coarse, of unit deviation."""
    rng = np.random.default_rng([VERSION, 3])
    tiles = np.zeros((3, raster, raster))
    for octave in range(3, raster.bit_length()):
        cells = 2**octave  # across the tile; never finer than the raster
        lattice = rng.random((3, cells, cells)) - 0.5
        at = np.arange(raster) * cells / raster
        near = at.astype(int)
        far, part = (near + 1) % cells, at - near
        rows = lattice[:, near] * (1 - part)[:, None] + lattice[:, far] * part[:, None]
        smooth = rows[:, :, near] * (1 - part) + rows[:, :, far] * part
        tiles += smooth * (2.0 ** -(octave * np.array([-0.1, 0.4, 0.9])))[:, None, None]
    unit: NDArray[np.float32] = (tiles / tiles.std(axis=(1, 2), keepdims=True)).astype(np.float32)
    unit.flags.writeable = False  # every caller shares it
    return unit


def _pattern(label: int, x: NDArray[np.float32], y: NDArray[np.float32], u: Floats) -> NDArray[np.float32]:
    """Surface of a class at points (x, y) in image sides relative to the object's middle: about half +1, half -1.

    `u` (4,) in 0..1 varies period, phase and direction within the class. The classes' periods overlap, so that they differ in the
    arrangement and not in the scale.
    """
    f32 = np.float32
    turn = f32(0.5 * (u[0] - 0.5))
    a, b = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    period = f32(_PERIOD[0] + (_PERIOD[1] - _PERIOD[0]) * u[1])
    a, b = a / period + f32(u[2]), b / period + f32(u[3])

    def wave(phase: NDArray[np.float32]) -> NDArray[np.float32]:
        """Triangle wave of period 1 between -1 and 1."""
        fold: NDArray[np.float32] = 4 * np.abs(phase - np.floor(phase) - f32(0.5)) - 1
        return fold

    radius = np.sqrt(x * x + y * y).astype(f32)
    kinds: tuple[Callable[[], NDArray[np.float32]], ...] = (
        lambda: wave(radius / period + f32(u[2])),  # ring: concentric rings
        lambda: wave(a / 2) * wave(b / 2),  # cross: checks
        lambda: wave((np.arctan2(y, x) * f32(1.75) + f32(u[2])).astype(f32)),  # star: rays
        lambda: wave(a),  # crescent: upright stripes
        lambda: wave(b + wave(a / 2) / 2),  # arrow: zigzag
        lambda: f32(0.1) - wave(a) - wave(b),  # heart: dots
        lambda: np.full_like(a, 1 if u[2] < 0.5 else -1),  # hourglass: plain
        lambda: np.maximum(wave(a * f32(0.75)), wave(b * f32(0.75))) - f32(0.45),  # gear: a grid of lines
        lambda: wave(b),  # spiral: level stripes
        lambda: wave(np.floor(b) / 2 + a / 2),  # comb: bricks
    )
    surface: NDArray[np.float32] = np.sign(kinds[label]()).astype(np.float32)
    return surface


def _paint(ids: Bytes, frames: Floats, colors: Floats, surfaces: dict[int, int], rng: np.random.Generator) -> Bytes:
    """Texture the item map.

    ids (R, R): number of the visible item at each raster cell; frames (M, 3): centre and radius of each item in image sides;
    colors (M, 3): RGB in 0..1; surfaces: class of those items that are objects. Returns RGB (R, R, 3) at raster resolution.
    """
    raster, count = ids.shape[0], len(frames)
    u = rng.random((count, 9))
    f32 = np.float32
    # Shading: a linear ramp across the item that reaches +-`depth` at its rim.
    depth, facing = 0.02 + 0.16 * u[:, 0], 2 * np.pi * u[:, 1]
    ramp = (depth / frames[:, 2])[:, None] * np.stack([np.cos(facing), np.sin(facing)], axis=1)
    level = -np.sum(ramp * frames[:, :2], axis=1)
    # Stripes: a triangle wave, on about a third of the items, 5 to 16 periods in an image side.
    bold = np.maximum(u[:, 2] - 0.65, 0.0) * 0.4
    pitch, along = 5.0 * 3.2 ** u[:, 3], 2 * np.pi * u[:, 4]
    wave = pitch[:, None] * np.stack([np.cos(along), np.sin(along)], axis=1)
    # Grain: each item reads one of the tiles at an offset of its own.
    rough = 0.04 + 0.15 * u[:, 5] ** 2
    tile = (3 * u[:, 6] ** 2).astype(np.int64)
    start = (u[:, 7:9] * raster).astype(np.int64)
    # From here on, arrays over the raster.
    row = np.arange(raster)
    x = ((row + 0.5) / raster).astype(f32)[None, :]
    y = ((row + 0.5) / raster).astype(f32)[:, None]
    table = np.concatenate([ramp, level[:, None], wave, bold[:, None], rough[:, None]], axis=1).astype(f32)
    gx, gy, g0, wx, wy, amp, grit = (np.take(column, ids) for column in np.ascontiguousarray(table.T))
    light = gx * x + gy * y + g0
    phase = wx * x + wy * y
    light += amp * (4 * np.abs(phase - np.floor(phase) - f32(0.5)) - 1)
    from_x = (np.take(start[:, 0], ids) + row) % raster
    from_y = (np.take(start[:, 1], ids) + row[:, None]) % raster
    light += grit * np.take(_grain(raster), (np.take(tile, ids) * raster + from_y) * raster + from_x)
    for item, label in surfaces.items():
        v = rng.random(5)
        inside = ids == item
        at_y, at_x = np.nonzero(inside)
        px = ((at_x + 0.5) / raster - frames[item, 0]).astype(f32)
        py = ((at_y + 0.5) / raster - frames[item, 1]).astype(f32)
        light[inside] += f32(_RELIEF[0] + (_RELIEF[1] - _RELIEF[0]) * v[4]) * _pattern(label, px, py, v[:4])
    rgb = np.take(colors.astype(f32), ids, axis=0) + light[:, :, None]
    rounded: Bytes = (np.clip(rgb, 0.0, 1.0) * f32(255) + f32(0.5)).astype(np.uint8)
    return rounded


# --- scenes ---


def _label(seed: int, index: int) -> int:
    """Class of an image: every ten consecutive indices from a multiple of ten hold each class once."""
    block, place = divmod(index, len(CLASSES))
    order = np.argsort(np.random.default_rng([VERSION, 1, seed, block]).random(len(CLASSES)))
    return int(order[place])


def _contrasting(behind: Floats, rng: np.random.Generator) -> Floats:
    """A random colour (3,) that contrasts with the mean colour `behind` (3,)."""
    choices = _colors(8, rng)
    distance = np.sqrt(np.sum((choices - behind) ** 2, axis=1))
    # The first that differs by `_CONTRAST`, or the most different if none does.
    chosen: Floats = choices[np.argmax(np.minimum(distance, _CONTRAST))]
    return chosen


def _sum_cells(planes: NDArray[Any], size: int) -> NDArray[np.uint16]:
    """Sum the raster cells of each pixel: (C, R, R) bool or uint8 -> (C, size, size)."""
    grid = planes.reshape(len(planes), size, _SUPER, size, _SUPER)
    total: NDArray[np.uint16] = np.zeros((len(planes), size, size), dtype=np.uint16)
    for i, j in np.ndindex(_SUPER, _SUPER):  # far faster than summing over two short axes
        total += grid[:, :, i, :, j]
    return total


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Tight box (4,) x0, y0, x1, y1 around a non-empty mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def render(seed: int, index: int, size: int = 64, objects: int = 1) -> Scene:
    """Draw image `index` of the data set `seed`: a pure function of its arguments.

    seed, index: non-negative; `size`: side in pixels, 32..512; `objects`: number of placed objects, 1..`MAX_OBJECTS`, of different
    classes. Further objects are smaller than the main one and lie below it; those that are mostly hidden are left out of the ground
    truth. At least `MIN_VISIBLE` of the main object's area is visible.

    Raises:
        ValueError: an argument is out of range.
    """
    if min(seed, index) < 0 or not 32 <= size <= 512 or not 1 <= objects <= MAX_OBJECTS:
        raise ValueError(f"arguments must be in range, got {seed=} {index=} {size=} {objects=}")
    rng = np.random.default_rng([VERSION, 2, seed, index])
    raster = size * _SUPER
    label = _label(seed, index)

    # Background. Item 0 is the ground, which is visible only where no leaf falls.
    leaves, frames = _leaves(_LEAVES, _LEAF_RADII, np.array([0.5, 0.5]), 0.6, rng)
    ids = _fill(zip(leaves, range(1, _LEAVES + 1), strict=True), raster)
    frames = np.concatenate([[[0.5, 0.5, 0.7]], frames])
    # The leaves' colours scatter about one colour, as under one light; occluders share it.
    palette = _colors(1, rng) - 0.5 * _SCATTER
    colors = palette + _SCATTER * _colors(len(frames), rng)

    # Objects, the main one last: it lies on top.
    others = np.argsort(rng.random(len(CLASSES)))
    labels = [label, *(int(c) for c in others if c != label)][:objects]
    wholes: list[NDArray[np.bool_]] = []
    surfaces: dict[int, int] = {}
    first = len(frames)
    for kind in reversed(labels):
        half_side = (_HALF_SIDE[0] + (_HALF_SIDE[1] - _HALF_SIDE[0]) * rng.random()) * objects**-0.35
        half_side *= 1.0 if kind == label else 0.6
        if objects == 1:
            poses = [_shape(kind, half_side, _WANDER, rng)]
        else:
            poses = [_shape(kind, half_side, 1.0, rng) for _ in range(_POSES)]
        areas = [_fill(pose, raster) > 0 for pose in poses]
        best = int(np.argmin([np.count_nonzero(ids[area] >= first) for area in areas]))
        outlines, whole = poses[best], areas[best]
        behind = np.bincount(ids[whole], minlength=len(colors)) @ colors / whole.sum()
        middle = 0.5 * (outlines[0][0].min(axis=0) + outlines[0][0].max(axis=0))
        ids[whole] = len(frames)
        surfaces[len(frames)] = kind
        frames = np.concatenate([frames, [[*middle, half_side]]])
        colors = np.concatenate([colors, _contrasting(behind, rng)[None]])
        wholes.append(whole)

    # Occluders, each dropped on the main object unless too little of it would stay visible.
    covers, cover_frames = _leaves(_OCCLUDERS, _OCCLUDER_RADII, frames[-1, :2], 1.2 * half_side, rng)
    main, least = len(frames) - 1, MIN_VISIBLE * wholes[-1].sum()
    for item, points in enumerate(covers, start=len(frames)):
        covered = ids.copy()
        covered[_fill([(points, 1)], raster) > 0] = item
        left = np.bincount(covered.ravel(), minlength=main + 1)[first : main + 1]
        if left[-1] > least and left[-1] == left.max():
            ids = covered
    frames = np.concatenate([frames, cover_frames])
    colors = np.concatenate([colors, palette + _SCATTER * _colors(_OCCLUDERS, rng)])

    parts = np.stack([ids == main - n for n in range(objects)])  # main first
    whole_areas = np.array([whole.sum() for whole in reversed(wholes)])
    visible = (parts.sum(axis=(1, 2)) / whole_areas).astype(np.float32)
    # A pixel belongs to an object that holds more than half its cells, so masks never overlap.
    masks = _sum_cells(parts, size) * 2 > _SUPER**2
    keep = (visible >= _KEPT) & masks.any(axis=(1, 2))
    keep[0] = True
    rgb = np.moveaxis(_paint(ids, frames, colors, surfaces, rng), 2, 0)
    image = (_sum_cells(rgb, size) + _SUPER**2 // 2) // _SUPER**2
    return Scene(
        image=np.ascontiguousarray(np.moveaxis(image, 0, 2).astype(np.uint8)),
        label=label,
        boxes=np.stack([_box(mask) for mask in masks[keep]]),
        classes=np.array(labels, dtype=np.int64)[keep],
        masks=masks[keep],
        visible=visible[keep],
    )


def fingerprint(count: int = 32, seed: int = 0, size: int = 64) -> str:
    """SHA-256 (hex) of the pixels and labels of the first `count` images, to detect any change."""
    digest = hashlib.sha256()
    for index in range(count):
        scene = render(seed, index, size)
        digest.update(scene.image.tobytes())
        digest.update(bytes([scene.label]))
    return digest.hexdigest()
