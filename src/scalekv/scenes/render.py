"""Scenes to pictures: one ray per sample, one light, soft shadows on the floor."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scalekv.scenes import camera, words
from scalekv.scenes.camera import Array
from scalekv.scenes.graph import Placed, Scene
from scalekv.scenes.solids import MISS, SOLIDS
from scalekv.scenes.surfaces import marked
from scalekv.scenes.textures import paint

_AMBIENT, _DIFFUSE, _SHINE = 0.42, 0.66, 0.30
_DARK, _LIGHT = (0.10, 0.10, 0.14), (0.97, 0.97, 0.95)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene.

    Returns:
        (128, 128, 3) RGB.
    """
    light = np.array([0.55 * scene.surroundings.light, 0.75, -0.55])
    light /= np.sqrt((light * light).sum())
    canvas = _background(scene, light)
    depth = np.full(canvas.shape[1:], MISS, dtype=np.float32)
    for placed in scene.placed:
        _draw(placed, canvas, depth, light)
    side, samples = camera.SIDE, camera.SAMPLES
    pixels = canvas.reshape(3, side, samples, side, samples).mean((2, 4))
    out: NDArray[np.uint8] = (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
    return out


def _background(scene: Scene, light: NDArray[np.float64]) -> Array:
    where = scene.surroundings
    rows, wall_x, wall_y, floor_x, floor_z = camera.backdrop()
    canvas = np.empty((3, camera.SIDE * camera.SAMPLES, camera.SIDE * camera.SAMPLES), dtype=np.float32)
    canvas[:, :rows] = paint(where.wall, wall_x, wall_y, where.seed)
    canvas[:, rows:] = paint(where.floor, floor_x, floor_z, where.seed + 1)
    canvas[:, :rows] *= 0.90 + 0.05 * where.light * wall_x / 2
    lit = np.ones_like(floor_x)
    for placed in scene.placed:
        _shade_floor(placed, lit, floor_x, floor_z, light)
    canvas[:, rows:] *= lit
    edge = np.exp(-np.abs(np.arange(canvas.shape[1]) - rows) / 2.5).astype(np.float32)
    canvas *= 1 - 0.25 * edge[None, :, None]
    return canvas


def _shade_floor(placed: Placed, lit: Array, x: Array, z: Array, light: NDArray[np.float64]) -> None:
    """Darken the floor where the way to the light passes through the thing, taken as a ball."""
    offset_x, offset_z = placed.x - x, placed.z - z
    along = offset_x * light[0] + placed.y * light[1] + offset_z * light[2]
    away = np.sqrt(np.maximum(offset_x**2 + placed.y**2 + offset_z**2 - along**2, 0))
    size = 0.82 * placed.thing.radius
    inner = np.clip((1.18 * size - away) / (0.36 * size), 0, 1)
    lit *= (1 - 0.45 * inner * (along > 0)).astype(np.float32)
    contact = np.hypot(offset_x, offset_z) / size
    close = max(0.0, 1 - 2 * (placed.y - placed.thing.half_height))
    lit *= (1 - 0.35 * close * np.clip(1.25 - contact, 0, 1)).astype(np.float32)


def _draw(placed: Placed, canvas: Array, depth: Array, light: NDArray[np.float64]) -> None:
    """Draw one thing where it is nearer than what is there."""
    thing = placed.thing
    rows, columns = camera.window(placed.x, placed.y, placed.z, thing.radius)
    rays = camera.rays()[:, rows, columns]
    shape = rays.shape[1:]
    if 0 in shape:
        return
    turn = np.array(
        [
            [math.cos(placed.turn), 0, math.sin(placed.turn)],
            [0, 1, 0],
            [-math.sin(placed.turn), 0, math.cos(placed.turn)],
        ],
        dtype=np.float32,
    )
    eye = (turn @ ((camera.EYE - (placed.x, placed.y, placed.z)) / thing.radius)).astype(np.float32)
    ray = (turn @ rays.reshape(3, -1)) / np.float32(thing.radius)
    hit = SOLIDS[thing.shape](eye, ray)
    seen = hit.reach < depth[rows, columns].reshape(-1)
    if not seen.any():
        return
    normal, point, ray = hit.normal[:, seen], hit.point[:, seen], ray[:, seen]
    colour = _colour(thing.shape, thing.colour, thing.pattern, point, normal)
    shaded = _light(colour, normal, ray, (turn @ light).astype(np.float32))
    flags = seen.reshape(shape)
    canvas[:, rows, columns][:, flags] = shaded
    depth[rows, columns][flags] = hit.reach[seen]


def _colour(shape: str, name: str, pattern: str, point: Array, normal: Array) -> Array:
    base = np.array(words.RGB[name], dtype=np.float32)[:, None]
    if pattern == "plain":
        return np.repeat(base, point.shape[1], axis=1)
    second = np.array(_DARK if name in words.DARK_MARKS else _LIGHT, dtype=np.float32)[:, None]
    return np.where(marked(shape, pattern, point, normal), second, base)


def _light(colour: Array, normal: Array, ray: Array, light: Array) -> Array:
    """Ambient, diffuse and a highlight (Blinn's half vector)."""
    toward = -ray / np.sqrt((ray * ray).sum(0))
    half = toward + light[:, None]
    half /= np.sqrt((half * half).sum(0))
    facing = light @ normal
    bright = _AMBIENT + _DIFFUSE * np.maximum(facing, 0) + 0.10 * np.minimum(facing, 0)
    shine = _SHINE * np.maximum((normal * half).sum(0), 0) ** 32
    out: Array = colour * bright + shine
    return out
