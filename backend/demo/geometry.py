"""Curves and parts from which the demo's outlines are built.

Coordinates are in the square [-1, 1]², x to the right, y downwards; the scene scales them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Point = tuple[float, float]
Tint = Literal["body", "accent", "dark", "light", "glass"]


@dataclass(frozen=True)
class Part:
    """One painted piece of an outline.

    `points` is float64 [N, 2]. Without `stroke` they enclose an area that is filled; with it they
    are an open line of that width, in the same units as the points.
    """

    points: FloatArray
    tint: Tint = "body"
    stroke: float | None = None


def area(points: Sequence[Point] | FloatArray, tint: Tint = "body") -> Part:
    """A filled polygon through points [N, 2]."""
    return Part(np.asarray(points, dtype=np.float64), tint)


def line(points: Sequence[Point] | FloatArray, width: float, tint: Tint = "body") -> Part:
    """An open line through points [N, 2]."""
    return Part(np.asarray(points, dtype=np.float64), tint, width)


def arc(
    centre: Point, radii: Point, start: float = 0.0, stop: float = 360.0, steps: int = 40
) -> FloatArray:
    """Points [steps, 2] on an ellipse, from `start` to `stop` degrees, clockwise on the screen."""
    angle = np.deg2rad(np.linspace(start, stop, steps))
    return np.stack(
        [centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1
    )


def box(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> FloatArray:
    """A rectangle's points [N, 2], its corners rounded by the radius `corner`."""
    if corner <= 0:
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    corner = min(corner, (right - left) / 2, (bottom - top) / 2)
    round_ = (corner, corner)
    return np.concatenate(
        [
            arc((right - corner, top + corner), round_, -90, 0, 8),
            arc((right - corner, bottom - corner), round_, 0, 90, 8),
            arc((left + corner, bottom - corner), round_, 90, 180, 8),
            arc((left + corner, top + corner), round_, 180, 270, 8),
        ]
    )


def symmetric(right_side: Sequence[Point]) -> FloatArray:
    """Points [2N, 2] of an outline that is its own mirror image, from its right side top-down."""
    right = np.asarray(right_side, dtype=np.float64)
    left = right[::-1] * np.array([-1.0, 1.0])
    return np.concatenate([right, left])


def smooth(points: Sequence[Point] | FloatArray, closed: bool = True, steps: int = 8) -> FloatArray:
    """A Catmull-Rom spline through points [N, 2], as points [about N·steps, 2]."""
    knots = np.asarray(points, dtype=np.float64)
    padded = (
        np.concatenate([knots[-1:], knots, knots[:2]])
        if closed
        else np.concatenate([knots[:1], knots, knots[-1:]])
    )
    before, here, there, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (
        2 * here[:, None]
        + (there - before)[:, None] * t
        + (2 * before - 5 * here + 4 * there - after)[:, None] * t**2
        + (3 * here - before - 3 * there + after)[:, None] * t**3
    )
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, knots[-1:]])
