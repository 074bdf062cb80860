"""Where rays meet solids, and what the surface is like there.

Every solid is centred at the origin of its own frame (x right, y up, z away) and fits into a ball of radius 1.
Points and directions are (3, n) float32 arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scalekv.scenes.camera import Array

MISS = np.float32(1e9)

CUBE = 0.8
CAN_RADIUS, CAN_HALF = 0.74, 0.85
CONE_RADIUS, CONE_HALF = 0.92, 0.92
RING_LARGE, RING_SMALL = 0.68, 0.30
_RING_STEPS = 14


@dataclass(frozen=True)
class Hit:
    """Where n rays meet a solid.

    Args:
        reach: (n,) multiples of the direction; `MISS` without a hit.
        normal: (3, n) outward, of unit length.
        point: (3, n) on the surface, in the solid's own frame.
    """

    reach: Array
    normal: Array
    point: Array


def _quadratic(a: Array, half_b: Array, c: Array) -> tuple[Array, Array]:
    """Both roots of a t^2 + 2 half_b t + c, smaller first; `MISS` where there are none."""
    inside = half_b * half_b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
    low, high = (-half_b - root) / a, (-half_b + root) / a
    swap = low > high
    low, high = np.where(swap, high, low), np.where(swap, low, high)
    return np.where(inside >= 0, low, MISS), np.where(inside >= 0, high, MISS)


def _at(eye: Array, ray: Array, reach: Array) -> Array:
    return eye[:, None] + ray * np.where(reach < MISS, reach, 0)


def sphere(eye: Array, ray: Array) -> Hit:
    """The unit ball."""
    reach, _ = _quadratic((ray * ray).sum(0), eye @ ray, np.float32(eye @ eye - 1) + 0 * ray[0])
    point = _at(eye, ray, reach)
    return Hit(reach, point, point)


def cube(eye: Array, ray: Array) -> Hit:
    """An upright cube."""
    safe = np.where(np.abs(ray) < 1e-9, np.float32(1e-9), ray)
    first, second = (-CUBE - eye[:, None]) / safe, (CUBE - eye[:, None]) / safe
    near, far = np.minimum(first, second), np.maximum(first, second)
    enter, leave = near.max(0), far.min(0)
    reach = np.where(enter <= leave, enter, MISS)
    axis = near.argmax(0)
    normal = np.zeros_like(ray)
    normal[axis, np.arange(ray.shape[1])] = -np.sign(ray[axis, np.arange(ray.shape[1])])
    return Hit(reach, normal, _at(eye, ray, reach))


def cylinder(eye: Array, ray: Array) -> Hit:
    """An upright can with a lid."""
    flat_eye, flat = eye[[0, 2]], ray[[0, 2]]
    start, _ = _quadratic((flat * flat).sum(0), flat_eye @ flat, flat_eye @ flat_eye - CAN_RADIUS**2 + 0 * flat[0])
    height = eye[1] + ray[1] * np.where(start < MISS, start, 0)
    side = np.where(np.abs(height) <= CAN_HALF, start, MISS)
    lid = (CAN_HALF - eye[1]) / ray[1]
    across = flat_eye[:, None] + flat * lid
    lid = np.where((across * across).sum(0) <= CAN_RADIUS**2, lid, MISS)
    reach = np.minimum(side, lid)
    point = _at(eye, ray, reach)
    normal: Array = (np.stack([point[0], 0 * point[1], point[2]]) / CAN_RADIUS).astype(np.float32)
    normal[:, lid < side] = np.array([[0], [1], [0]], dtype=np.float32)
    return Hit(reach, normal, point)


def cone(eye: Array, ray: Array) -> Hit:
    """An upright cone on its base; the base itself is never seen."""
    slope = np.float32(CONE_RADIUS / (2 * CONE_HALF))
    down = CONE_HALF - eye[1]
    a = ray[0] ** 2 + ray[2] ** 2 - slope**2 * ray[1] ** 2
    half_b = eye[0] * ray[0] + eye[2] * ray[2] + slope**2 * down * ray[1]
    c = eye[0] ** 2 + eye[2] ** 2 - slope**2 * down**2 + 0 * ray[0]
    reach = np.full_like(ray[0], MISS)
    for root in _quadratic(a, half_b, c):
        height = eye[1] + ray[1] * np.where(root < MISS, root, 0)
        reach = np.where((np.abs(height) <= CONE_HALF) & (root > 0), np.minimum(reach, root), reach)
    point = _at(eye, ray, reach)
    outward = np.stack([point[0], slope * np.hypot(point[0], point[2]), point[2]])
    return Hit(reach, outward / np.maximum(np.sqrt((outward * outward).sum(0)), 1e-6), point)


def torus(eye: Array, ray: Array) -> Hit:
    """An upright ring that faces the viewer; found by walking along the rays that enter its ball."""
    start, stop = _quadratic((ray * ray).sum(0), eye @ ray, np.float32(eye @ eye - 1) + 0 * ray[0])
    (alive,) = np.nonzero(start < MISS)
    reach = np.full_like(start, MISS)
    way, length = start[alive], np.sqrt((ray[:, alive] ** 2).sum(0))
    for _ in range(_RING_STEPS):
        point = eye[:, None] + ray[:, alive] * way
        gap = np.hypot(np.hypot(point[0], point[1]) - RING_LARGE, point[2]) - RING_SMALL
        way = way + gap / length
    met = (gap < 0.03) & (way < stop[alive])
    reach[alive[met]] = way[met]
    point = _at(eye, ray, reach)
    around = np.maximum(np.hypot(point[0], point[1]), 1e-6)
    core = np.stack([point[0] / around, point[1] / around, 0 * point[2]]) * RING_LARGE
    outward = point - core
    return Hit(reach, outward / np.maximum(np.sqrt((outward * outward).sum(0)), 1e-6), point)


SOLIDS: dict[str, Callable[[Array, Array], Hit]] = {
    "sphere": sphere,
    "cube": cube,
    "cylinder": cylinder,
    "cone": cone,
    "torus": torus,
}
"""Intersections by shape."""
