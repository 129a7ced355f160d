"""The shapes as signed distances: negative inside, zero on the outline, positive outside.

Coordinates are in units of the object's radius, ``x`` to the right and ``y`` down; the bounding box
of every shape is centred on (0, 0). The distances are exact along the straight and round parts of
the outline, which is all that antialiasing looks at. Only ``+ - * / sqrt min max abs`` are used:
IEEE 754 fixes how each of these rounds, so an image has the same bytes in every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

X = Float[Tensor, "batch #height width"]
Y = Float[Tensor, "batch height #width"]
Distance = Float[Tensor, "batch height width"]

_CIRCLE = 0.94
_RING = (0.50, 0.94)
_SQUARE = 0.84
_CROSS = 0.34
_HEART = 1 / (0.5 + math.sqrt(0.5))
_HEART_SHIFT = (1 - _HEART) / 2
_SQRT3 = math.sqrt(3)
# Normals of the five lines of a pentagram; they point to its tips, the first to the top.
_STAR = [(math.sin(k * math.tau / 5), -math.cos(k * math.tau / 5)) for k in range(5)]
_STAR_SHIFT = (1 - math.cos(math.pi / 5)) / 2


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt()


def circle(x: X, y: Y) -> Distance:
    """A disc."""
    return _length(x, y) - _CIRCLE


def ring(x: X, y: Y) -> Distance:
    """The area between two concentric circles."""
    inner, outer = _RING
    return (_length(x, y) - (inner + outer) / 2).abs() - (outer - inner) / 2


def square(x: X, y: Y) -> Distance:
    """A square standing on its side."""
    return torch.maximum(x.abs(), y.abs()) - _SQUARE


def diamond(x: X, y: Y) -> Distance:
    """A square standing on its corner."""
    return (x.abs() + y.abs() - 1) / math.sqrt(2)


def triangle(x: X, y: Y) -> Distance:
    """An equilateral triangle with a corner at the top."""
    slanted = (x.abs() * _SQRT3 - y - _SQRT3 / 2) / 2
    return torch.maximum(slanted, y - _SQRT3 / 2)


def cross(x: X, y: Y) -> Distance:
    """Two bars at a right angle."""
    x, y = x.abs(), y.abs()
    upright = torch.maximum(x - _CROSS, y - 1)
    lying = torch.maximum(x - 1, y - _CROSS)
    return torch.minimum(upright, lying)


def heart(x: X, y: Y) -> Distance:
    """A square on its corner with half discs on its two upper sides."""
    x, y = x.abs(), y - _HEART_SHIFT
    body = (x + y.abs() - _HEART) / math.sqrt(2)
    lobe = _length(x - _HEART / 2, y + _HEART / 2) - _HEART / math.sqrt(2)
    return torch.minimum(body, lobe)


def star(x: X, y: Y) -> Distance:
    """A pentagram: the points inside at least four of its five lines, so the second distance."""
    y = y - _STAR_SHIFT
    largest = torch.full_like(x + y, -torch.inf)
    second = largest
    for normal_x, normal_y in _STAR:
        line = normal_x * x + normal_y * y - math.cos(math.tau / 5)
        second = torch.maximum(second, torch.minimum(largest, line))
        largest = torch.maximum(largest, line)
    return second


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "diamond": diamond,
    "star": star,
    "heart": heart,
    "cross": cross,
    "ring": ring,
}

HALF_EXTENTS: dict[str, tuple[float, float]] = {
    "circle": (_CIRCLE, _CIRCLE),
    "square": (_SQUARE, _SQUARE),
    "triangle": (1.0, _SQRT3 / 2),
    "diamond": (1.0, 1.0),
    "star": (math.sin(math.tau / 5), (1 + math.cos(math.pi / 5)) / 2),
    "heart": (1.0, (1 + _HEART) / 2),
    "cross": (1.0, 1.0),
    "ring": (_RING[1], _RING[1]),
}
"""Half the width and half the height of each shape, in units of the radius."""


def box_distance(name: str, x: X, y: Y) -> Distance:
    """Distance to the bounding box: it keeps the antialiasing of pointed corners inside."""
    half_x, half_y = HALF_EXTENTS[name]
    return torch.maximum(x.abs() - half_x, y.abs() - half_y)
