"""Token calculator: image size and patch size in, tokens and cost out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import traitlets
from matplotlib.figure import Figure

from mmlab.widgets.base import Widget, module_source, within

PRESETS = {
    "ViT-Ti": (192, 12),
    "ViT-S": (384, 12),
    "ViT-B": (768, 12),
    "ViT-L": (1024, 24),
    "ViT-H": (1280, 32),
}
"""Name → (width D, layers L): Dosovitskiy et al. 2021, table 1; Ti and S: Touvron et al. 2021."""

PATCH_SIZES = (8, 14, 16, 32)
IMAGE_SIZES = (32, 1024)
EXAMPLES = ((224, 16), (224, 14), (256, 16), (384, 16), (384, 32))


@dataclass(frozen=True)
class TokenCost:
    """Tokens of one square image and the multiply-adds of one encoder pass, classifier left out.

    ``projection`` = N·3P²·D, ``linear`` = L·12TD², ``attention`` = L·2T²D, with N patches,
    T = N + 1 tokens, width D and L layers.
    """

    patches: int
    projection: int
    linear: int
    attention: int

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.patches + 1

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return self.projection + self.linear + self.attention


def token_cost(image_size: int, patch_size: int, dim: int, depth: int) -> TokenCost:
    """Cost of an image of ``image_size`` pixels a side; ValueError if patches do not fill it."""
    if image_size % patch_size:
        above = image_size - image_size % patch_size + patch_size
        raise ValueError(
            f"patch_size={patch_size} does not divide image_size={image_size}; "
            f"allowed is a multiple of {patch_size}, such as {above}"
        )
    patches = (image_size // patch_size) ** 2
    tokens = patches + 1
    return TokenCost(
        patches=patches,
        projection=patches * 3 * patch_size**2 * dim,
        linear=depth * 12 * tokens * dim**2,
        attention=depth * 2 * tokens**2 * dim,
    )


def _model_name(dim: int, depth: int) -> str | None:
    return next((name for name, sizes in PRESETS.items() if sizes == (dim, depth)), None)


class TokenCalculator(Widget):
    """Tokens, values per token, attention pairs and multiply-adds as the sizes change.

    ``image_size`` (32 to 1024) and ``patch_size`` (2 to 64) are pixels; an image that patches do
    not fill is shown and explained. ``dim`` and ``depth`` are the encoder's width and layers.
    ValueError on values out of range.
    """

    _esm = module_source("token_calculator")
    _strings = "token_calculator"

    image_size = traitlets.Int(224).tag(sync=True)
    patch_size = traitlets.Int(16).tag(sync=True)
    patch_sizes = traitlets.List(list(PATCH_SIZES)).tag(sync=True)
    image_sizes = traitlets.List(list(IMAGE_SIZES)).tag(sync=True)
    dim = traitlets.Int(768).tag(sync=True)
    depth = traitlets.Int(12).tag(sync=True)
    presets = traitlets.List([[name, *sizes] for name, sizes in PRESETS.items()]).tag(sync=True)
    examples = traitlets.List([list(sizes) for sizes in EXAMPLES]).tag(sync=True)

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        dim: int = 768,
        depth: int = 12,
        *,
        language: str = "en",
        **traits: Any,
    ):
        sizes = {"image_size": image_size, "patch_size": patch_size, "dim": dim, "depth": depth}
        offered = sorted({*PATCH_SIZES, patch_size})
        super().__init__(language=language, patch_sizes=offered, **sizes, **traits)

    @traitlets.validate("image_size", "patch_size", "dim", "depth")
    def _is_in_range(self, proposal):
        limits = {
            "image_size": IMAGE_SIZES,
            "patch_size": (2, 64),
            "dim": (1, 8192),
            "depth": (1, 128),
        }
        return within(proposal, *limits[proposal["trait"].name])

    @property
    def cost(self) -> TokenCost:
        """Tokens and multiply-adds at the present sizes; ValueError if they do not fit."""
        return token_cost(self.image_size, self.patch_size, self.dim, self.depth)

    def _model(self) -> str:
        name, sizes = _model_name(self.dim, self.depth), {"dim": self.dim, "depth": self.depth}
        return self.strings["preset" if name else "custom"].format(name=name, **sizes)

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        size, P = self.image_size, self.patch_size
        if size % P:
            return self.strings["sentence_uneven"].format(size=size, P=P, rest=size % P)
        cost = self.cost
        return self.strings["sentence"].format(
            size=size,
            P=P,
            grid=size // P,
            patches=cost.patches,
            tokens=cost.tokens,
            values=3 * P * P,
            gmacs=f"{cost.total / 1e9:.2f}",
            model=self._model(),
        )

    def still(self) -> Figure:
        """Multiply-adds against image size, the present size marked."""
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        sizes = range(2 * self.patch_size, IMAGE_SIZES[1] + 1, self.patch_size)
        costs = [token_cost(size, self.patch_size, self.dim, self.depth) for size in sizes]
        linear = [(cost.linear + cost.projection) / 1e9 for cost in costs]
        axes.plot(sizes, linear, color="#0b6e75", label=self.strings["chart_linear"])
        attention = [cost.attention / 1e9 for cost in costs]
        axes.plot(sizes, attention, color="#b4530a", label=self.strings["chart_attention"])
        axes.axvline(self.image_size, color="#50606c", linewidth=1, linestyle=":")
        axes.set_title(self._title(), fontsize=10)
        axes.set_xlabel(self.strings["chart_x"])
        axes.set_ylabel(self.strings["chart_y"])
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def _title(self) -> str:
        size, P = self.image_size, self.patch_size
        if size % P:
            return self.sentence()
        grid = size // P
        sizes = {"size": size, "P": P, "grid": grid, "patches": grid**2}
        return self.strings["lead"].format(**sizes).replace("*", "")
