"""Attention-distance map: how far each head of a ViT looks, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn

from mmlab.analysis import attention_rollout, patch_distances, record_attention
from mmlab.datasets.example import Example
from mmlab.models.vit import ViTConfig
from mmlab.widgets.base import Widget, listed, module_source, within
from mmlab.widgets.pictures import (
    check_normalisation,
    float32_bytes,
    middle_square,
    named_images,
    unit_pixels,
    webp_bytes,
)

VIEWS = ("patch", "class", "rollout")
MAX_MAP_BYTES = 1_500_000
_CODES = {65535: np.dtype("<u2"), 255: np.dtype("u1")}
"""Largest code of the stored weights → its type, the finer one first."""


@dataclass(frozen=True)
class _Shape:
    """What all the models have in common."""

    image_size: int
    patch_size: int
    layers: int
    heads: int
    learned: int
    """Tokens before the patches; they have no place, so no distance."""

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        return self.grid**2

    @property
    def weights(self) -> int:
        """Attention weights on patches, of one image in one model."""
        return self.layers * self.heads * (self.learned + self.patches) * self.patches


def _shape_of(name: str, model: nn.Module) -> _Shape:
    config = getattr(model, "config", None)
    if not isinstance(config, ViTConfig):
        raise ValueError(f"models[{name!r}] is {type(model).__name__}; allowed is a ViT")
    return _Shape(
        image_size=config.image_size,
        patch_size=config.patch_size,
        layers=config.depth,
        heads=config.num_heads,
        learned=config.num_prefix_tokens,
    )


def _common_shape(models: Mapping[str, nn.Module]) -> _Shape:
    if not models:
        raise ValueError("models is empty; AttentionDistance needs at least one ViT")
    shapes = {name: _shape_of(name, model) for name, model in models.items()}
    first, *others = shapes
    for name in others:
        if shapes[name] != shapes[first]:
            raise ValueError(
                f"models[{name!r}] has {shapes[name]}, models[{first!r}] has {shapes[first]}; "
                "allowed are models of one shape"
            )
    return shapes[first]


def _levels(shape: _Shape, models: int, images: int) -> int:
    """The finest code that fits the page; ValueError with the size if none does."""
    count = models * images * shape.weights
    for levels, code in _CODES.items():
        if count * code.itemsize <= MAX_MAP_BYTES:
            return levels
    raise ValueError(
        f"{models} models × {images} images × {shape.layers} layers × {shape.heads} heads × "
        f"{shape.learned + shape.patches} tokens × {shape.patches} patches take "
        f"{count / 1e6:.1f} MB in one byte a weight; a page allows {MAX_MAP_BYTES / 1e6:.1f} MB: "
        "pass fewer images or models, or models with fewer layers or larger patches"
    )


@torch.no_grad()
def _record(
    model: nn.Module, images: Float[Tensor, "batch 3 size size"]
) -> Float[Tensor, "batch layers heads tokens tokens"]:
    """Attention of all layers, without dropout and drop path; the model stays as it was."""
    modes = {module: module.training for module in model.modules()}
    like = next(model.parameters())
    model.eval()
    try:
        with record_attention(model) as maps:
            model(images.to(like))
    finally:
        for module, training in modes.items():
            module.training = training
    return torch.stack([m.to("cpu", torch.float32) for m in maps.values()], dim=1)


def _check_finite(name: str, maps: Tensor) -> None:
    if not maps.isfinite().all():
        raise ValueError(f"the attention of models[{name!r}] holds NaN; allowed are finite weights")


def _quantise(on_patches: Float[Tensor, "... queries patches"], levels: int) -> bytes:
    """Codes 0 to ``levels``, the largest weight of each row being ``levels``.

    No scale travels: the page makes each row sum to 1, as the distance asks for anyway.
    """
    largest = on_patches.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (on_patches / largest * levels).round()
    return codes.numpy().astype(_CODES[levels]).tobytes()


def _recorded(
    models: Mapping[str, nn.Module], images: Float[Tensor, "batch 3 size size"], shape: _Shape
) -> dict[str, Any]:
    """The traits that carry the attention of all models."""
    levels = _levels(shape, len(models), len(images))
    codes, learned = [], []
    for name, model in models.items():
        maps = _record(model, images)
        _check_finite(name, maps)
        codes.append(_quantise(maps[..., shape.learned :], levels))
        learned.append(float32_bytes(maps[..., : shape.learned]))
    return {"maps": b"".join(codes), "learned_shares": b"".join(learned), "levels": levels}


class AttentionDistance(Widget):
    """Mean attention distance of every head in pixels, and each head's attention on the image.

    ``models`` maps names to ViTs of one shape, for instance ``{"trained": …, "untrained": …}``;
    ``images`` maps names to RGB tensors (uint8, ``3 height width``) or lists ``Example``s, each
    cropped to its middle square and resized to the models' image size. ``mean`` and ``std``
    normalise pixels in [0, 1]. ``layer``, ``head`` and ``query`` (a patch in raster order) count
    from 0; ``view`` is one of ``VIEWS``.

    The distance is that of Dosovitskiy et al. 2021, figure 7: ``sum_j a_ij ‖i - j‖ P`` over the
    patches j, the patch itself included, learned tokens dropped and the rest made to sum to 1;
    then the mean over the queries i. Rollout: Abnar & Zuidema 2020. Each weight is stored with an
    error of at most 1/131070 of the largest patch weight of its row, or 1/510 where the page
    would otherwise grow beyond 1.5 MB. ValueError on wrong models or images, or beyond that size.
    """

    _esm = module_source("attention_distance")
    _strings = "attention_distance"

    images = traitlets.List().tag(sync=True)
    image = traitlets.Int(0, help="index into images").tag(sync=True)
    models = traitlets.List(help="names").tag(sync=True)
    model = traitlets.Int(0, help="index into models").tag(sync=True)
    view = traitlets.Unicode("patch").tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    head = traitlets.Int(0).tag(sync=True)
    query = traitlets.Int(help="raster index of the patch that looks").tag(sync=True)
    image_size = traitlets.Int().tag(sync=True)
    patch_size = traitlets.Int().tag(sync=True)
    layers = traitlets.Int().tag(sync=True)
    heads = traitlets.Int().tag(sync=True)
    learned = traitlets.Int(help="tokens before the patches").tag(sync=True)
    maps = traitlets.Bytes(help="models images layers heads tokens patches, codes").tag(sync=True)
    levels = traitlets.Int(help="largest code in maps").tag(sync=True)
    learned_shares = traitlets.Bytes(help="models images layers heads tokens learned, float32").tag(
        sync=True
    )

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        images: Mapping[str, Tensor] | Sequence[Example],
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        language: str = "en",
        **traits: Any,
    ):
        shape = _common_shape(models)
        check_normalisation(mean, std)
        named = named_images(images, "AttentionDistance")
        squares = {n: middle_square(i, shape.image_size) for n, i in named.items()}
        pixels = torch.stack([unit_pixels(square) for square in squares.values()])
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
        state = {
            "images": [{"name": n, "bytes": webp_bytes(square)} for n, square in squares.items()],
            "models": list(models),
            "layers": shape.layers,
            "heads": shape.heads,
            "learned": shape.learned,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "query": shape.grid * (shape.grid // 2) + shape.grid // 3,
            **_recorded(models, (pixels - mean) / std, shape),
        }
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("image", "model", "layer", "head", "query")
    def _index_is_there(self, proposal):
        counts = {
            "image": len(self.images),
            "model": len(self.models),
            "layer": self.layers,
            "head": self.heads,
            "query": self.grid**2,
        }
        return within(proposal, 0, counts[proposal["trait"].name] - 1)

    @traitlets.validate("view")
    def _view_is_known(self, proposal):
        allowed = VIEWS if self.learned else ("patch", "rollout")
        return listed(proposal, allowed)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def uniform_distance(self) -> float:
        """Mean distance in pixels if every patch looked everywhere alike."""
        return self._apart().mean().item()

    def attention(self) -> Float[Tensor, "layers heads tokens patches"]:
        """Weights on the patches in the present model and image, as the page has them.

        Each row sums to 1; the queries begin with the learned tokens. NaN where a query gives the
        patches nothing.
        """
        weights = self._present(np.frombuffer(self.maps, _CODES[self.levels]), self.grid**2)
        return weights / weights.sum(dim=-1, keepdim=True)

    def _present(self, values: np.ndarray, keys: int) -> Float[Tensor, "layers heads tokens keys"]:
        queries = self.learned + self.grid**2
        shape = (len(self.models), len(self.images), self.layers, self.heads, queries, keys)
        present = values.reshape(shape)[self.model, self.image]
        return torch.from_numpy(present.astype(np.float64))

    def distances(self) -> Float[Tensor, "layers heads"]:
        """Mean attention distances in pixels, in the present model and image."""
        queries = self.attention()[:, :, self.learned :]
        return (queries * self._apart()).sum(dim=-1).nanmean(dim=-1)

    def rollout(self) -> Float[Tensor, " tokens"]:
        """What reaches the class token, or else the average patch, up to the present layer.

        Shares of all tokens, learned ones first; they sum to 1.
        """
        learned = self._present(np.frombuffer(self.learned_shares, "<f4"), self.learned)
        on_patches = self.attention().nan_to_num() * (1 - learned.sum(dim=-1, keepdim=True))
        maps = torch.cat([learned, on_patches], dim=-1)[: self.layer + 1]
        reach = attention_rollout(maps[:, None])[0]
        return reach[0] if self.learned else reach.mean(dim=0)

    def _apart(self) -> Float[Tensor, "patches patches"]:
        return patch_distances((self.grid, self.grid), self.patch_size).double()

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        key = "sentence_rollout" if self.view == "rollout" else "sentence"
        return self.strings[key].format(
            model=self.models[self.model],
            name=self.images[self.image]["name"],
            layer=self.layer + 1,
            layers=self.layers,
            head=self.head + 1,
            heads=self.heads,
            reader=self.strings["reader_class" if self.learned else "reader_average"],
            distance=f"{self.distances()[self.layer, self.head]:.1f}",
            uniform=f"{self.uniform_distance:.1f}",
        )

    def still(self) -> Figure:
        """All heads as points, and beside them the attention of the present view."""
        figure = Figure(figsize=(7.2, 3.5), layout="constrained")
        chart, board = figure.subplots(1, 2)
        self._draw_chart(chart)
        self._draw_attention(board)
        return figure

    def _draw_chart(self, axes) -> None:
        distances = self.distances().numpy()
        depths = np.arange(1, self.layers + 1)
        axes.plot(depths, distances, "o", color="#0b6e75", alpha=0.6)
        if self.view != "rollout":
            chosen = distances[self.layer, self.head]
            axes.plot([self.layer + 1], [chosen], "o", color="#b4530a", markersize=9)
        axes.axhline(self.uniform_distance, color="#50606c", linestyle="--", linewidth=1)
        axes.set_xticks(depths)
        axes.set_xlabel(self.strings["chart_x"])
        axes.set_ylabel(self.strings["chart_y"])
        axes.spines[["top", "right"]].set_visible(False)

    def _draw_attention(self, axes) -> None:
        picture = Image.open(BytesIO(self.images[self.image]["bytes"])).convert("L")
        extent = (0, self.grid, self.grid, 0)
        axes.imshow(picture, cmap="gray", extent=extent)
        heat = self._shares().nan_to_num().view(self.grid, self.grid).numpy()
        solid = np.full((*heat.shape, 3), (0.71, 0.33, 0.04))
        axes.imshow(solid, alpha=0.85 * heat / (heat.max() or 1), extent=extent)
        if self.view == "patch":
            corner = (self.query % self.grid, self.query // self.grid)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#0b6e75", linewidth=2.5))
        axes.set_title(self.strings[f"where_{self.view}_title"], fontsize=10)
        axes.set_axis_off()

    def _shares(self) -> Float[Tensor, " patches"]:
        """What the heat shows: the patches' shares among themselves."""
        if self.view == "rollout":
            reach = self.rollout()[self.learned :]
            return reach / reach.sum()
        token = self.learned + self.query if self.view == "patch" else 0
        return self.attention()[self.layer, self.head, token]
