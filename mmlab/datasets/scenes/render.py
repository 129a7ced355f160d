"""From scene graphs to pixels, a batch at a time.

An object touches only the pixels around it, so each is painted in a small window: its signed
distance gives the coverage of every pixel (antialiasing), its texture the tone, and the two are
blended into the canvas. Nothing in here mixes rows of the batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mmlab.datasets.scenes.draws import Draws
from mmlab.datasets.scenes.shapes import DISTANCES, box_distance
from mmlab.datasets.scenes.vocabulary import BACKGROUNDS, PALETTE, SHAPES, SIZES, TEXTURES
from mmlab.datasets.scenes.world import LEAD, RADII, SceneBatch

CHUNK = 2**20  # Pixels painted together: enough to hide the cost of calls, few enough to cache.
INK = 0.1  # A pixel belongs to an object's mask when at least this share of it is covered.

# The first ones are light, the last two dark; none comes near a color of the palette.
TINTS = (
    (250, 249, 245),
    (238, 241, 246),
    (244, 237, 226),
    (230, 239, 231),
    (240, 232, 240),
    (222, 225, 229),
    (44, 49, 60),
    (60, 54, 52),
)
LIGHT_TINTS = 6

Canvas = Float[Tensor, "batch 3 height width"]


def render(batch: SceneBatch, image_size: int) -> UInt8[Tensor, "batch 3 height width"]:
    """Paint the scenes as RGB images of ``image_size`` pixels a side."""
    images = torch.empty(len(batch.count), 3, image_size, image_size, dtype=torch.uint8)
    for rows in torch.arange(len(images)).split(max(1, CHUNK // image_size**2)):
        images[rows] = _render_chunk(batch.select(rows), image_size)
    return images


def _render_chunk(batch: SceneBatch, image_size: int) -> UInt8[Tensor, "batch 3 height width"]:
    canvas = paint_background(batch, image_size)
    for brush in _brushes(batch, image_size):
        _paint(canvas, brush)
    return (canvas * 255 + 0.5).to(torch.uint8)


def coverage(batch: SceneBatch, image_size: int) -> Float[Tensor, "batch slots height width"]:
    """The share of every pixel that each object covers, 0 for empty slots."""
    covered = torch.zeros(*batch.shape.shape, image_size, image_size)
    for brush in _brushes(batch, image_size):
        plane = (brush.rows * covered.shape[1] + brush.slot)[:, None, None]
        covered.view(-1)[plane * image_size**2 + brush.pixels] = brush.coverage()
    return covered


def _brushes(batch: SceneBatch, image_size: int) -> Iterator[Brush]:
    """All objects in groups that can be painted at once: one of an image, alike in size."""
    for slot in range(batch.shape.shape[1]):
        for size in range(len(SIZES)):
            rows = ((batch.count > slot) & (batch.size[:, slot] == size)).nonzero().squeeze(1)
            if len(rows):
                yield Brush(batch, rows, slot, image_size)


class Brush:
    """The object in ``slot`` of each of ``rows`` (all of one size class), seen in its window.

    ``x`` and ``y`` are the positions of the window's pixel centers in units of the object's radius.
    """

    def __init__(self, batch: SceneBatch, rows: Int64[Tensor, " rows"], slot: int, image_size: int):
        self.rows, self.slot, self.image_size = rows, slot, image_size
        self.shape, self.color = batch.shape[rows, slot], batch.color[rows, slot]
        self.texture = batch.texture[rows, slot]
        self.dark = (batch.tint[rows] * len(TINTS)).long() >= LIGHT_TINTS
        self.radius = (batch.radius[rows, slot] * image_size).float()
        center = batch.center[rows, slot] * image_size
        size_class = SIZES[int(batch.size[rows[0], slot])]
        window = min(math.ceil(2 * LEAD * RADII[size_class][1] * image_size) + 2, image_size)
        corner = (center - window / 2).round().long().clamp(0, image_size - window)
        steps = torch.arange(window)
        x, y = corner[:, :1] + steps, corner[:, 1:] + steps
        self.pixels = y[:, :, None] * image_size + x[:, None, :]
        self.x = ((x + 0.5 - center[:, :1]).float() / self.radius[:, None])[:, None, :]
        self.y = ((y + 0.5 - center[:, 1:]).float() / self.radius[:, None])[:, :, None]
        self.distance = self._distance()

    def _distance(self) -> Float[Tensor, "rows height width"]:
        """Signed distance to the outline in pixels."""
        distance = torch.empty(len(self.x), self.y.shape[1], self.x.shape[2])
        for index, name in enumerate(SHAPES):
            mine = (self.shape == index).nonzero().squeeze(1)
            if len(mine):
                x, y = self.x[mine], self.y[mine]
                distance[mine] = torch.maximum(DISTANCES[name](x, y), box_distance(name, x, y))
        return distance * self.radius[:, None, None]

    def coverage(self) -> Float[Tensor, "rows height width"]:
        """The share of each pixel that lies inside the outline."""
        return (0.5 - self.distance).clamp(0, 1)

    def tone(self) -> Float[Tensor, "rows height width"]:
        """How much of the second color each pixel takes: the texture."""
        tone = torch.zeros_like(self.distance)
        for index, name in enumerate(TEXTURES[1:], start=1):
            mine = (self.texture == index).nonzero().squeeze(1)
            if len(mine):
                radius = self.radius[mine, None, None]
                x, y = self.x[mine] * radius, self.y[mine] * radius
                tone[mine] = _PATTERNS[name](x, y, _period(radius))
        return tone


def _period(radius: Tensor) -> Tensor:
    """Length of one repeat in pixels: a share of the object, but no finer than can be seen."""
    return (0.62 * radius).clamp(min=3.4)


def _wave(x: Tensor, period: Tensor) -> Tensor:
    """1 on every second half period, 0 on the others, with one pixel of transition."""
    phase = x / period
    return ((0.25 - (phase - phase.round()).abs()) * period + 0.5).clamp(0, 1)


def _stripes(x: Tensor, y: Tensor, period: Tensor) -> Tensor:
    return _wave((x + y) / math.sqrt(2), period)


def _dots(x: Tensor, y: Tensor, period: Tensor) -> Tensor:
    x, y = x - (x / period).round() * period, y - (y / period).round() * period
    return (0.33 * period - (x * x + y * y).sqrt() + 0.5).clamp(0, 1)


def _checks(x: Tensor, y: Tensor, period: Tensor) -> Tensor:
    period = period * 1.4
    a, b = _wave(x - period / 4, period), _wave(y - period / 4, period)
    return a + b - 2 * a * b


_PATTERNS = {"striped": _stripes, "dotted": _dots, "checkered": _checks}


def _paint(canvas: Canvas, brush: Brush) -> None:
    """Blend the objects of ``brush`` into the canvas."""
    plane = (brush.rows[:, None] * 3 + torch.arange(3))[..., None, None]
    # One flat index: four times faster here than indexing by batch, row and column.
    where = (plane * brush.image_size**2 + brush.pixels[:, None]).flatten()
    ink, flat = _ink(brush), canvas.view(-1)
    below = flat.index_select(0, where).view_as(ink)
    flat.scatter_(0, where, (below + brush.coverage()[:, None] * (ink - below)).flatten())


def _ink(brush: Brush) -> Float[Tensor, "rows 3 height width"]:
    """Color of every pixel of the window: texture, light from above, and a rim."""
    base, second = _colors()[brush.color].unbind(1)
    ink = base[..., None, None] + brush.tone()[:, None] * (second - base)[..., None, None]
    # The rim sets a light object off from a light ground, and a dark one from a dark ground.
    rim = (brush.distance + 0.5 + brush.image_size / 64).clamp(0, 1)
    shade = torch.where(brush.dark, 0.0, 0.22)[:, None, None]
    glow = torch.where(brush.dark, 0.7 * (0.8 - _lightness(base)), 0.0)[:, None, None]
    light = 1.03 - 0.07 * brush.y - rim * shade
    return (ink * light[:, None] + (rim * glow)[:, None]).clamp(0, 1)


def _lightness(color: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch"]:
    red, green, blue = color.unbind(-1)
    return 0.3 * red + 0.6 * green + 0.1 * blue


@functools.cache
def _colors() -> Float[Tensor, "colors 2 3"]:
    """Each color of the palette with the second color of its textures: a tint or a shade of it."""
    base = torch.tensor(list(PALETTE.values())) / 255
    tint, shade = base + 0.72 * (1 - base), base * 0.58
    second = torch.where((_lightness(base) > 0.62)[:, None], shade, tint)
    return torch.stack([base, second], 1)


def paint_background(batch: SceneBatch, image_size: int) -> Canvas:
    """Paint the empty scenes: one tint, brightened and darkened by a quiet pattern."""
    tints = torch.tensor(TINTS) / 255
    base = tints[(batch.tint * len(TINTS)).long()]
    pattern = torch.zeros(len(base), image_size, image_size)
    for index, name in enumerate(BACKGROUNDS[1:], start=1):
        mine = (batch.background == index).nonzero().squeeze(1)
        if len(mine):
            pattern[mine] = _GROUNDS[name](batch.phase[mine].float(), image_size)
    return (base[..., None, None] + pattern[:, None]).clamp(0, 1)


def _gradient(phase: Float[Tensor, "rows 2"], size: int) -> Float[Tensor, "rows size size"]:
    """From darker to lighter along a random direction."""
    direction = (2 * phase - 1).clamp(-1, 1)
    across = (torch.arange(size) + 0.5) / size - 0.5
    slope = across * direction[:, :1], across * direction[:, 1:]
    length = direction.abs().amax(1).clamp(min=0.2)[:, None, None]
    return 0.16 * (slope[0][:, None, :] + slope[1][:, :, None]) / length - 0.06


def _cloudy(phase: Float[Tensor, "rows 2"], size: int) -> Float[Tensor, "rows size size"]:
    """A window of the smooth noise tile."""
    tile = _noise_tile()
    corner = (phase * len(tile)).long()
    steps = ((torch.arange(size) + 0.5) * len(tile) / size).long()
    y, x = (corner[:, 1:] + steps) % len(tile), (corner[:, :1] + steps) % len(tile)
    return 0.17 * (tile[y[:, :, None], x[:, None, :]] - 0.6)


@functools.cache
def _noise_tile() -> Float[Tensor, "256 256"]:
    """Value noise in [0, 1] that repeats without a seam: random lattices, smoothly joined."""
    draws = Draws(0, "noise tile", torch.zeros(1, dtype=torch.long))
    tile = torch.zeros(256, 256)
    for cells, weight in ((4, 0.5), (8, 0.3), (16, 0.2)):
        lattice = draws.uniform(f"lattice {cells}", cells, cells)[0].float()
        tile += weight * _smooth(_smooth(lattice).T).T
    return tile


def _smooth(lattice: Float[Tensor, "rows columns"]) -> Float[Tensor, "more columns"]:
    """Stretch the rows to 256 with smoothstep weights, the first row following the last."""
    position = torch.arange(256) * (len(lattice) / 256)
    low = position.long()
    t = (position - low)[:, None]
    t = t * t * (3 - 2 * t)
    return lattice[low] + t * (lattice[(low + 1) % len(lattice)] - lattice[low])


def _checkerboard(phase: Float[Tensor, "rows 2"], size: int) -> Float[Tensor, "rows size size"]:
    """Squares of an eighth of the image."""
    steps = torch.arange(size) * 8 // size
    parity = (steps[:, None] + steps + (phase[:, 0] * 2).long()[:, None, None]) % 2
    return 0.09 * parity - 0.07


_GROUNDS = {"gradient": _gradient, "cloudy": _cloudy, "checkered": _checkerboard}
