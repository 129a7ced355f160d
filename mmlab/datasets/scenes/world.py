"""Which objects a scene holds, and where: sampled for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from mmlab.datasets.example import Box, Region, Relation
from mmlab.datasets.scenes.draws import Draws, choose
from mmlab.datasets.scenes.shapes import HALF_EXTENTS
from mmlab.datasets.scenes.vocabulary import BACKGROUNDS, COLORS, INVERSE, SHAPES, SIZES, TEXTURES

MAX_OBJECTS = 4
Pair = tuple[str, str]
"""A combination ``(color, shape)``."""

SPLITS = ("train", "validation", "test", "held_out")
LAYOUTS = ("free", "left_right")

# Each shape and each color occurs at most once, so that nothing but the combination is new.
HELD_OUT: tuple[Pair, ...] = (
    ("red", "circle"),
    ("blue", "star"),
    ("yellow", "square"),
    ("green", "heart"),
    ("purple", "triangle"),
    ("orange", "cross"),
)

# Lengths are fractions of the image's width.
RADII = {"small": (0.105, 0.115), "large": (0.17, 0.18)}
LEAD = 1.15  # The largest object is larger by at least this factor: never a matter of taste.
GAP = 0.03  # Between any two boxes, and between a box and the frame.
MARGIN = 0.1  # Centers must differ by more than this before one is called left of the other.
ATTEMPTS = 24
TEXTURE_WEIGHTS = (3.0, 1.0, 1.0, 1.0)
SHARED = 0.25  # Chance that a further object copies the color, or the shape, of the first one.


@dataclass(frozen=True)
class SceneBatch:
    """Scene graphs of a batch as tensors; slots from ``count`` on are empty and mean nothing.

    ``center`` and ``radius`` are fractions of the image's width. ``tint`` and ``phase`` choose the
    colors and the offset of the background.
    """

    count: Int64[Tensor, " batch"]
    shape: Int64[Tensor, "batch slots"]
    color: Int64[Tensor, "batch slots"]
    size: Int64[Tensor, "batch slots"]
    texture: Int64[Tensor, "batch slots"]
    center: Float64[Tensor, "batch slots 2"]
    radius: Float64[Tensor, "batch slots"]
    background: Int64[Tensor, " batch"]
    tint: Float64[Tensor, " batch"]
    phase: Float64[Tensor, "batch 2"]

    def select(self, rows: Int64[Tensor, " rows"]) -> SceneBatch:
        """The scenes of ``rows`` only."""
        return SceneBatch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene; ``center`` and ``radius`` are fractions of the image's width."""

    shape: str
    color: str
    size: str
    texture: str
    center: tuple[float, float]
    radius: float

    def box(self, image_size: int) -> Box:
        """The exact bounding box in pixels of an image of this size."""
        x, y = self.center
        half_x, half_y = (self.radius * extent for extent in HALF_EXTENTS[self.shape])
        corners = (x - half_x, y - half_y, x + half_x, y + half_y)
        return tuple(image_size * c for c in corners)

    def region(self, image_size: int) -> Region:
        """The object as a region; its attributes are (color, size, texture)."""
        return Region(self.box(image_size), self.shape, (self.color, self.size, self.texture))


@dataclass(frozen=True)
class Scene:
    """The whole truth about one image: its objects and the kind of its background."""

    objects: tuple[SceneObject, ...]
    background: str


def allowed_pairs(held_out: tuple[Pair, ...]) -> frozenset[Pair]:
    """The combinations that are not held out."""
    return frozenset((c, s) for c in COLORS for s in SHAPES) - frozenset(held_out)


def pair_mask(pairs: frozenset[Pair]) -> Bool[Tensor, "colors shapes"]:
    """``mask[color, shape]`` is true for the combinations in ``pairs``."""
    return torch.tensor([[(color, shape) in pairs for shape in SHAPES] for color in COLORS])


def sample_free(
    draws: Draws, held_out: tuple[Pair, ...], novel: bool, objects: tuple[int, int]
) -> SceneBatch:
    """Scenes of ``objects[0]`` to ``objects[1]`` shapes, placed anywhere without touching.

    Without ``novel`` no held-out combination occurs; with it every scene holds at least one.
    """
    low, high = objects
    count = low + draws.integers("count", high - low + 1)
    color, shape = _sample_pairs(draws, held_out, novel, count)
    size = draws.integers("size", len(SIZES), MAX_OBJECTS)
    radius = _sample_radius(draws, size, count)
    return SceneBatch(
        count=count,
        shape=shape,
        color=color,
        size=size,
        texture=_sample_texture(draws, color, shape, size),
        center=_sample_centers(draws, radius, count),
        radius=radius,
        background=draws.integers("background", len(BACKGROUNDS)),
        tint=draws.uniform("tint"),
        phase=draws.uniform("phase", 2),
    )


def _sample_pairs(
    draws: Draws, held_out: tuple[Pair, ...], novel: bool, count: Int64[Tensor, " batch"]
) -> tuple[Int64[Tensor, "batch slots"], Int64[Tensor, "batch slots"]]:
    """Colors and shapes; later objects often share one of the two with the first."""
    everything = pair_mask(allowed_pairs(())).double()
    common = everything if novel else pair_mask(allowed_pairs(held_out)).double()
    rare = pair_mask(frozenset(held_out)).double() if novel else common
    # The novel object may stand in any slot, or its place in the caption would give it away.
    rare_slot = (draws.uniform("rare slot") * count).long()
    pick, share = draws.uniform("pair", MAX_OBJECTS), draws.uniform("share", MAX_OBJECTS)
    chosen: list[Tensor] = []
    for slot in range(MAX_OBJECTS):
        weights = torch.where((rare_slot == slot)[:, None, None], rare, common)
        if chosen:
            weights = _restrict(weights, chosen[0], share[:, slot], rare_slot == slot)
        chosen.append(choose(weights.flatten(1), pick[:, slot]))
    pairs = torch.stack(chosen, 1)
    return pairs // len(SHAPES), pairs % len(SHAPES)


def _restrict(
    weights: Float64[Tensor, "batch colors shapes"],
    first: Int64[Tensor, " batch"],
    share: Float64[Tensor, " batch"],
    fixed: Bool[Tensor, " batch"],
) -> Float64[Tensor, "batch colors shapes"]:
    """Leave only the color, or only the shape, of the first object where ``share`` says so."""
    same_color = torch.arange(len(COLORS)) == (first // len(SHAPES))[:, None]
    same_shape = torch.arange(len(SHAPES)) == (first % len(SHAPES))[:, None]
    keep_color = (share < SHARED) & ~fixed
    keep_shape = (share >= SHARED) & (share < 2 * SHARED) & ~fixed
    weights = weights * (same_color | ~keep_color[:, None])[:, :, None]
    return weights * (same_shape | ~keep_shape[:, None])[:, None, :]


def _sample_radius(
    draws: Draws, size: Int64[Tensor, "batch slots"], count: Int64[Tensor, " batch"]
) -> Float64[Tensor, "batch slots"]:
    low, high = torch.tensor([RADII[name] for name in SIZES], dtype=torch.float64).T
    radius = low[size] + draws.uniform("radius", MAX_OBJECTS) * (high - low)[size]
    radius = torch.where(torch.arange(MAX_OBJECTS) < count[:, None], radius, 0)
    largest = torch.nn.functional.one_hot(radius.argmax(1), MAX_OBJECTS).bool()
    return torch.where(largest, radius * LEAD, radius)


def _sample_texture(
    draws: Draws,
    color: Int64[Tensor, "batch slots"],
    shape: Int64[Tensor, "batch slots"],
    size: Int64[Tensor, "batch slots"],
) -> Int64[Tensor, "batch slots"]:
    """Textures such that no two objects of a scene agree in color, shape, size and texture."""
    look = (color * len(SHAPES) + shape) * len(SIZES) + size
    pick = draws.uniform("texture", MAX_OBJECTS)
    texture = torch.zeros_like(look)
    for slot in range(MAX_OBJECTS):
        weights = torch.tensor(TEXTURE_WEIGHTS, dtype=torch.float64).repeat(len(look), 1)
        for earlier in range(slot):
            twin = look[:, earlier] == look[:, slot]
            weights[twin, texture[twin, earlier]] = 0
        texture[:, slot] = choose(weights, pick[:, slot])
    return texture


def _sample_centers(
    draws: Draws, radius: Float64[Tensor, "batch slots"], count: Int64[Tensor, " batch"]
) -> Float64[Tensor, "batch slots 2"]:
    """The first of ``ATTEMPTS`` random placements in which nothing touches, else a 2 × 2 grid."""
    u = draws.uniform("center", ATTEMPTS, MAX_OBJECTS, 2)
    reach = (radius + GAP)[:, None, :, None]
    center = reach + u * (1 - 2 * reach)
    fits = torch.ones(len(radius), ATTEMPTS, dtype=torch.bool)
    for second in range(MAX_OBJECTS):
        for first in range(second):
            distance = (center[:, :, first] - center[:, :, second]).abs().amax(-1)
            apart = distance >= (radius[:, first] + radius[:, second] + GAP)[:, None]
            fits &= apart | (count <= second)[:, None]
    found = center[torch.arange(len(radius)), fits.int().argmax(1)]
    return torch.where(fits.any(1)[:, None, None], found, _grid_centers(draws, radius))


def _grid_centers(
    draws: Draws, radius: Float64[Tensor, "batch slots"]
) -> Float64[Tensor, "batch slots 2"]:
    """One object in each quarter of the image, in random order, moved as far as there is room."""
    quarter = draws.uniform("quarter", MAX_OBJECTS).argsort(1)
    middle = torch.stack([quarter % 2, quarter // 2], -1) * 0.5 + 0.25
    room = (0.25 - GAP / 2 - radius)[..., None]
    return middle + (2 * draws.uniform("shift", MAX_OBJECTS, 2) - 1) * room


def sample_left_right(
    seed: int, stream: str, indices: Int64[Tensor, " batch"], held_out: tuple[Pair, ...]
) -> SceneBatch:
    """Scenes of one red and one blue shape in two cells of a 4 × 4 grid, in different columns.

    Images 2k and 2k + 1 are twins: the contents of the two cells are exchanged and nothing else is.
    So the patches of the twins are the same patches in another order (for every patch size that
    divides a quarter of the image), and exactly one of the twins has red left of blue.
    """
    draws = Draws(seed, f"{stream}/left_right", indices // 2)
    batch, colors = len(indices), torch.tensor([COLORS.index("red"), COLORS.index("blue")])
    column = draws.uniform("column", 4).argsort(1)[:, :2]
    cell = torch.stack([column, draws.integers("row", 4, 2)], -1)
    cell = torch.where((indices % 2 == 1)[:, None, None], cell.flip(1), cell)
    # A ring of half a pixel at 32 pixels stays free, so that antialiasing never leaves the cell.
    radius = 0.09 + 0.01 * draws.uniform("radius", 2)
    room = (0.125 - 1 / 64 - radius)[..., None]
    # Rounded to a fraction that float32 holds in every cell, so that twins agree to the last bit.
    jitter = ((2 * draws.uniform("jitter", 2, 2) - 1) * room * 2**20).round() / 2**20
    return SceneBatch(
        count=torch.full((batch,), 2),
        shape=_sample_shapes(draws, colors, held_out),
        color=colors.repeat(batch, 1),
        size=torch.zeros(batch, 2, dtype=torch.long),
        texture=torch.zeros(batch, 2, dtype=torch.long),
        center=(cell + 0.5) / 4 + jitter,
        radius=radius,
        background=torch.zeros(batch, dtype=torch.long),
        tint=draws.uniform("tint"),
        phase=draws.uniform("phase", 2),
    )


def _sample_shapes(
    draws: Draws, colors: Int64[Tensor, " slots"], held_out: tuple[Pair, ...]
) -> Int64[Tensor, "batch slots"]:
    weights = pair_mask(allowed_pairs(held_out))[colors].double()
    pick = draws.uniform("shape", len(colors))
    drawn = [choose(w.expand(len(pick), -1), u) for w, u in zip(weights, pick.T, strict=True)]
    return torch.stack(drawn, 1)


def to_scenes(batch: SceneBatch) -> list[Scene]:
    """The tensors as readable objects, one scene a row."""
    columns = (batch.shape, batch.color, batch.size, batch.texture, batch.center, batch.radius)
    counts, backgrounds = batch.count.tolist(), batch.background.tolist()
    rows = zip(counts, backgrounds, *(c.tolist() for c in columns), strict=True)
    return [_to_scene(*row) for row in rows]


def _to_scene(count: int, background: int, *slots: list) -> Scene:
    objects = (
        SceneObject(SHAPES[s], COLORS[c], SIZES[z], TEXTURES[t], (center[0], center[1]), radius)
        for s, c, z, t, center, radius in list(zip(*slots, strict=True))[:count]
    )
    return Scene(tuple(objects), BACKGROUNDS[background])


def predicates(subject: SceneObject, other: SceneObject) -> list[str]:
    """Everything that holds of ``subject`` with respect to ``other``."""
    dx = other.center[0] - subject.center[0]
    dy = other.center[1] - subject.center[1]
    tests = {
        "left of": dx > MARGIN,
        "right of": dx < -MARGIN,
        "above": dy > MARGIN,
        "below": dy < -MARGIN,
        "larger than": (subject.size, other.size) == ("large", "small"),
        "smaller than": (subject.size, other.size) == ("small", "large"),
        "same color as": subject.color == other.color,
        "same shape as": subject.shape == other.shape,
    }
    return [predicate for predicate in INVERSE if tests[predicate]]


def main_relation(subject: SceneObject, other: SceneObject) -> str:
    """The spatial relation along the axis on which the two centers differ most."""
    dx = other.center[0] - subject.center[0]
    dy = other.center[1] - subject.center[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def relations(scene: Scene) -> tuple[Relation, ...]:
    """All edges of the scene graph, in both directions."""
    return tuple(
        Relation(i, predicate, j)
        for i, subject in enumerate(scene.objects)
        for j, other in enumerate(scene.objects)
        if i != j
        for predicate in predicates(subject, other)
    )


def ninth(center: tuple[float, float]) -> tuple[int, int]:
    """Row and column (0, 1 or 2 each) of the ninth of the image that ``center`` falls in."""
    x, y = center
    return min(int(3 * y), 2), min(int(3 * x), 2)
