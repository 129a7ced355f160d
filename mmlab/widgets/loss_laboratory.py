"""Loss laboratory: pairs on a circle, and where a contrastive loss pulls and pushes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
import traitlets
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from mmlab.objectives.contrastive import contrastive_loss, sigmoid_loss
from mmlab.widgets.base import Widget, listed, module_source, within
from mmlab.widgets.patch_splitter import random_integers

OBJECTIVES = ("softmax", "sigmoid")
PAIR_RANGE = (2, 8)
SCALE_RANGE = (1.0, 100.0)
BIAS_RANGE = (-20.0, 20.0)
RATE_RANGE = (0.01, 1.0)
# Of the still picture, as --pair-0 to --pair-7 in the style sheet.
COLOURS = ("#0b6e75", "#b4530a", "#6b3fa0", "#1f5fbf", "#a3184f", "#4d6b0a", "#7a4a2b", "#3d4852")


def alignment(
    image_features: Float[Tensor, "pairs dim"], text_features: Float[Tensor, "pairs dim"]
) -> Float[Tensor, ""]:
    """Mean squared distance within the pairs; 0 is best (Wang & Isola 2020, L_align, α = 2).

    Features of unit length; arXiv 2005.10242, section 4.2.
    """
    return (image_features - text_features).square().sum(dim=-1).mean()


def uniformity(features: Float[Tensor, "points dim"]) -> Float[Tensor, ""]:
    """Log of the mean Gaussian potential of all pairs of points (Wang & Isola 2020, t = 2).

    Features of unit length; 0 where all points are one, and the lower the more evenly they spread.
    """
    return torch.pdist(features).square().mul(-2).exp().mean().log()


def starting_angles(num_pairs: int, seed: int) -> tuple[list[float], list[float]]:
    """Angles of pictures and of captions, drawn evenly from the circle, as the page draws them."""
    draws = [2 * math.pi * u / 2**32 for u in islice(random_integers(seed), 2 * num_pairs)]
    return draws[:num_pairs], draws[num_pairs:]


def on_circle(angles: Float[Tensor, " points"]) -> Float[Tensor, "points 2"]:
    """The points of the unit circle at these angles, in radians."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


class LossLaboratory(Widget):
    """Pictures and captions as points of the unit circle under a contrastive loss.

    ``names`` are the pairs' names (2 to 8); the points start at random angles drawn from ``seed``.
    ``objective`` is ``"softmax"`` (InfoNCE: CLIP, figure 3) or ``"sigmoid"`` (SigLIP, algorithm 1,
    with ``bias``). Arrows are the exact negative gradient with respect to the angle: the pull of a
    point's own partner and the push of all others. A gradient step moves every angle by
    ``-learning_rate`` times its gradient. ``selected`` counts pictures first, then captions.
    ValueError on wrong names or values.
    """

    _esm = module_source("loss_laboratory")
    _strings = "loss_laboratory"

    names = traitlets.List(help="the pairs' names").tag(sync=True)
    image_angles = traitlets.List(help="radians").tag(sync=True)
    text_angles = traitlets.List(help="radians").tag(sync=True)
    objective = traitlets.Unicode("softmax").tag(sync=True)
    scale = traitlets.Float(10.0, help="factor on cosines, 1 / temperature").tag(sync=True)
    bias = traitlets.Float(-10.0, help="added to every logit, sigmoid only").tag(sync=True)
    learning_rate = traitlets.Float(0.1).tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    selected = traitlets.Int(0, help="index into pictures and captions").tag(sync=True)
    ranges = traitlets.Dict(help="least and greatest values").tag(sync=True)

    def __init__(
        self,
        names: Sequence[str] = ("1", "2", "3", "4", "5"),
        *,
        seed: int = 0,
        language: str = "en",
        **traits: Any,
    ):
        low, high = PAIR_RANGE
        if not low <= len(names) <= high:
            raise ValueError(f"names has {len(names)} pairs; allowed are {low} to {high}")
        images, texts = starting_angles(len(names), seed)
        state = {
            "names": [str(name) for name in names],
            "image_angles": images,
            "text_angles": texts,
            "seed": seed,
            "ranges": {
                "scale": list(SCALE_RANGE),
                "bias": list(BIAS_RANGE),
                "learning_rate": list(RATE_RANGE),
            },
        }
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("objective")
    def _objective_is_known(self, proposal):
        return listed(proposal, OBJECTIVES)

    @traitlets.validate("scale", "bias", "learning_rate")
    def _is_in_range(self, proposal):
        ranges = {"scale": SCALE_RANGE, "bias": BIAS_RANGE}
        return within(proposal, *ranges.get(proposal["trait"].name, RATE_RANGE))

    @traitlets.validate("image_angles", "text_angles")
    def _angles_are_numbers(self, proposal):
        angles = proposal["value"]
        if len(angles) != len(self.names) or not all(map(math.isfinite, angles)):
            raise ValueError(
                f"{proposal['trait'].name}={angles}; allowed are {len(self.names)} finite radians"
            )
        return angles

    @traitlets.validate("selected")
    def _selected_is_a_point(self, proposal):
        return within(proposal, 0, 2 * len(self.names) - 1)

    def angles(self) -> Float[Tensor, "2 pairs"]:
        """Angles of the pictures and of the captions, double precision."""
        return torch.tensor([self.image_angles, self.text_angles], dtype=torch.float64)

    def loss(self, angles: Float[Tensor, "2 pairs"] | None = None) -> Float[Tensor, ""]:
        """The present objective at the present angles, or at others; differentiable."""
        images, texts = map(on_circle, self.angles() if angles is None else angles)
        if self.objective == "softmax":
            return contrastive_loss(images, texts, self.scale)
        return sigmoid_loss(images, texts, self.scale, self.bias)

    def forces(self) -> Float[Tensor, "2 pairs"]:
        """The negative gradient of the loss with respect to each angle."""
        angles = self.angles().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(angles), angles)
        return -gradient

    def measures(self) -> tuple[float, float]:
        """Alignment of the pairs; uniformity, the mean of that of pictures and of captions."""
        images, texts = map(on_circle, self.angles())
        spread = (uniformity(images) + uniformity(texts)) / 2
        return alignment(images, texts).item(), spread.item()

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        aligned, spread = self.measures()
        return self.strings["sentence"].format(
            pairs=len(self.names),
            objective=self.strings[f"objective_{self.objective}"],
            temperature=f"{1 / self.scale:.3g}",
            loss=f"{self.loss().item():.3f}",
            alignment=f"{aligned:.3f}",
            uniformity=f"{spread:.3f}",
        )

    def still(self) -> Figure:
        """The points on their circle, with the force on each."""
        figure = Figure(figsize=(4.6, 4.6), layout="constrained")
        axes = figure.subplots()
        turn = torch.linspace(0, 2 * math.pi, 200)
        axes.plot(turn.cos(), turn.sin(), color="#d3dbe0", zorder=0)
        lengths = self.forces() * len(self.names) / self.scale / 2
        # Pictures just outside the circle, captions just inside: a pair that has met stays two.
        rows = zip(self.angles(), lengths, "so", (1.07, 0.93), strict=True)
        for angles, force, marker, far in rows:
            points, tangents = far * on_circle(angles), on_circle(angles + math.pi / 2)
            for k, ((x, y), (dx, dy)) in enumerate(
                zip(points.tolist(), (tangents * force[:, None]).tolist(), strict=True)
            ):
                tip = {"arrowstyle": "->", "color": "#1c262e", "linewidth": 1.5}
                axes.annotate("", (x + dx, y + dy), (x, y), arrowprops=tip)
                axes.plot(x, y, marker, color=COLOURS[k], markersize=13)
                axes.text(x, y, str(k + 1), color="white", ha="center", va="center", fontsize=8)
        axes.set_title(self.strings[f"objective_{self.objective}"], fontsize=10)
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
        axes.set_axis_off()
        return figure
