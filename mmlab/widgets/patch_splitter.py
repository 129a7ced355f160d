"""Patch splitter: a picture becomes a sequence, and what becomes of the sequence's order."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmlab.datasets.example import Example
from mmlab.widgets.base import Widget, listed, module_source, within
from mmlab.widgets.pictures import (
    check_normalisation,
    float32_bytes,
    middle_square,
    named_images,
    webp_bytes,
)

ORDERS = ("raster", "column", "snake", "shuffled")
HEAD_DIM = 12
UNTRAINED_DIM = 12
MAX_IMAGE_SIZE = 224
MAX_GRID = 28
MAX_PATCH_SIZE = 32
MAX_KERNEL_BYTES = 1_000_000

Kernel = Tensor | tuple[Tensor, Tensor]
"""A projection ``dim 3 P P``, or the pair (projection, bias ``dim``)."""


def random_integers(seed: int):
    """mulberry32, as in toolkit.js: Python and the browser shuffle alike."""
    mask, state = 0xFFFFFFFF, seed & 0xFFFFFFFF
    while True:
        state = (state + 0x6D2B79F5) & mask
        x = ((state ^ (state >> 15)) * (state | 1)) & mask
        x ^= (x + (x ^ (x >> 7)) * (x | 61)) & mask
        yield x ^ (x >> 14)


def _shuffled(count: int, seed: int) -> list[int]:
    order, draws = list(range(count)), random_integers(seed)
    for i in range(count - 1, 0, -1):
        j = next(draws) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def reading_order(order: str, grid: int, seed: int = 0) -> list[int]:
    """Raster indices of a ``grid`` × ``grid`` picture's patches in the order they are read.

    ``order`` is one of ``ORDERS``; ``seed`` matters to ``"shuffled"`` only.
    """
    rows = [[row * grid + column for column in range(grid)] for row in range(grid)]
    if order == "shuffled":
        return _shuffled(grid * grid, seed)
    if order == "column":
        rows = [list(column) for column in zip(*rows, strict=True)]
    if order == "snake":
        rows = [row[::-1] if i % 2 else row for i, row in enumerate(rows)]
    return [index for row in rows for index in row]


def _check_image_size(image_size: int) -> None:
    if not 8 <= image_size <= MAX_IMAGE_SIZE:
        raise ValueError(f"image_size={image_size}; allowed are 8 to {MAX_IMAGE_SIZE} pixels")


def _usual_patch_sizes(image_size: int) -> list[int]:
    """The patch sizes worth a button: they divide the image, in a grid of 2 to 28 a side."""
    sizes = range(4, MAX_PATCH_SIZE + 1)
    return [p for p in sizes if image_size % p == 0 and 2 <= image_size // p <= MAX_GRID]


def _check_patch_size(patch_size: int, image_size: int, allowed: list[int]) -> None:
    if patch_size in allowed:
        return
    why = (
        "" if patch_size > 0 and image_size % patch_size == 0 else " does not divide the image and"
    )
    raise ValueError(
        f"patch_size={patch_size}{why} is not offered for image_size={image_size}; "
        f"allowed are {', '.join(map(str, allowed)) or 'none'}"
    )


def _untrained_kernels(patch_sizes: list[int], generator: torch.Generator) -> dict[int, Kernel]:
    """Normal weights of variance 1/(3P²): embeddings keep the scale of the pixels."""
    return {
        p: torch.randn(UNTRAINED_DIM, 3, p, p, generator=generator) / (3 * p * p) ** 0.5
        for p in patch_sizes
    }


def _check_kernel(patch_size: int, weight: Tensor, bias: Tensor, dim: int) -> None:
    shape = (dim, 3, patch_size, patch_size)
    if tuple(weight.shape) != shape or tuple(bias.shape) != (dim,):
        raise ValueError(
            f"embedding[{patch_size}] has shape {tuple(weight.shape)} and a bias of "
            f"{tuple(bias.shape)}; allowed is {shape} and ({dim},), the same dim for every size"
        )
    if not (weight.is_floating_point() and weight.isfinite().all() and bias.isfinite().all()):
        raise ValueError(f"embedding[{patch_size}] holds values that are not finite floats")
    if 4 * weight.numel() > MAX_KERNEL_BYTES:
        raise ValueError(
            f"embedding[{patch_size}] takes {4 * weight.numel():,} bytes; a page allows "
            f"{MAX_KERNEL_BYTES:,}: pass fewer rows, for instance projection[:64]"
        )


def _with_bias(kernel: Kernel) -> tuple[Tensor, Tensor]:
    return kernel if isinstance(kernel, tuple) else (kernel, torch.zeros(kernel.shape[0]))


def _checked_kernels(
    embedding: Mapping[int, Kernel], image_size: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """The kernels whose patches fill the image, each with a bias."""
    fitting = {p: k for p, k in sorted(embedding.items()) if image_size % p == 0}
    if not fitting:
        given = ", ".join(map(str, embedding)) or "empty"
        raise ValueError(
            f"embedding is {given}; allowed are kernels by patch size, {{patch_size: projection}}, "
            f"at least one of which divides image_size={image_size}"
        )
    kernels = {p: _with_bias(kernel) for p, kernel in fitting.items()}
    dim = next(iter(kernels.values()))[0].shape[0]
    for patch_size, (weight, bias) in kernels.items():
        _check_kernel(patch_size, weight, bias, dim)
    return kernels


def _head(dim: int, generator: torch.Generator) -> list[Tensor]:
    """Class token, then query, key and value maps of one attention head, all untrained.

    The factor 1.5 spreads the logits a little, so that attention is neither flat nor a single peak.
    """
    maps = [1.5 * torch.randn(HEAD_DIM, dim, generator=generator) / dim**0.5 for _ in range(3)]
    return [torch.randn(dim, generator=generator) / 2, *maps]


class PatchSplitter(Widget):
    """Cut a picture into patches, reorder them, and see what a Transformer makes of the order.

    ``images`` maps names to RGB tensors (uint8, ``3 height width``) or lists ``Example``s; each is
    cropped to its middle square and resized to ``image_size`` pixels. ``embedding`` maps patch
    sizes to trained projections (``dim 3 P P``, optionally with a bias ``dim``), for instance
    ``{16: model.patch_embedding.projection.weight}``; without it the weights are random and the
    figure says so. ``mean`` and ``std`` normalise pixels in [0, 1] before the projection.
    The class output is that of one untrained attention head over ViT's input (Dosovitskiy et al.
    2021, eq. 1) with and without ``E_pos``. ValueError on wrong images, sizes or kernels.
    """

    _esm = module_source("patch_splitter")
    _strings = "patch_splitter"

    images = traitlets.List().tag(sync=True)
    image = traitlets.Int(0, help="index into images").tag(sync=True)
    image_size = traitlets.Int().tag(sync=True)
    patch_size = traitlets.Int().tag(sync=True)
    patch_sizes = traitlets.List().tag(sync=True)
    order = traitlets.Unicode("raster").tag(sync=True)
    shuffle_seed = traitlets.Int(0).tag(sync=True)
    positions = traitlets.Bool(False, help="add position vectors to the tokens").tag(sync=True)
    selected = traitlets.Int(help="raster index of the highlighted patch").tag(sync=True)
    dim = traitlets.Int().tag(sync=True)
    head_dim = traitlets.Int(HEAD_DIM).tag(sync=True)
    kernels = traitlets.Dict(help="patch size → weight and bias, float32").tag(sync=True)
    head = traitlets.Bytes(help="class token, query, key, value; float32").tag(sync=True)
    position_table = traitlets.Bytes(help="tokens × dim, float32").tag(sync=True)
    mean = traitlets.List().tag(sync=True)
    std = traitlets.List().tag(sync=True)
    trained = traitlets.Bool().tag(sync=True)

    def __init__(
        self,
        images: Mapping[str, Tensor] | Sequence[Example],
        patch_size: int = 16,
        image_size: int = MAX_IMAGE_SIZE,
        *,
        embedding: Mapping[int, Kernel] | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        seed: int = 0,
        language: str = "en",
        **traits: Any,
    ):
        named = named_images(images, "PatchSplitter")
        _check_image_size(image_size)
        check_normalisation(mean, std)
        generator = torch.Generator().manual_seed(seed)
        if embedding is None:
            embedding, trained = (
                _untrained_kernels(_usual_patch_sizes(image_size), generator),
                False,
            )
        else:
            trained = True
        kernels = _checked_kernels(embedding, image_size)
        patch_sizes = list(kernels)
        _check_patch_size(patch_size, image_size, patch_sizes)
        grid = image_size // patch_size
        state = {
            "images": [
                {"name": name, "bytes": webp_bytes(middle_square(image, image_size))}
                for name, image in named.items()
            ],
            "image_size": image_size,
            "patch_size": patch_size,
            "patch_sizes": patch_sizes,
            "selected": grid * (2 * grid // 5) + grid // 2,
            "mean": list(mean),
            "std": list(std),
            "trained": trained,
            **_weights(kernels, image_size // min(patch_sizes), generator),
        }
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("patch_size")
    def _patch_size_is_offered(self, proposal):
        _check_patch_size(proposal["value"], self.image_size, self.patch_sizes)
        return proposal["value"]

    @traitlets.validate("order")
    def _order_is_known(self, proposal):
        return listed(proposal, ORDERS)

    @traitlets.validate("image")
    def _image_is_there(self, proposal):
        return within(proposal, 0, len(self.images) - 1)

    @traitlets.validate("selected")
    def _selected_is_a_patch(self, proposal):
        # No upper limit here: it moves with the patch size, and the figure takes the nearest.
        return within(proposal, 0)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def sequence(self) -> list[int]:
        """Raster indices of the patches in the order the model reads them."""
        return reading_order(self.order, self.grid, self.shuffle_seed)

    def pixels(self) -> UInt8[Tensor, "3 size size"]:
        """The present picture as the page has it."""
        picture = Image.open(io.BytesIO(self.images[self.image]["bytes"])).convert("RGB")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        return self.strings["sentence"].format(
            name=self.images[self.image]["name"],
            size=self.image_size,
            grid=self.grid,
            patches=self.grid**2,
            P=self.patch_size,
            values=3 * self.patch_size**2,
            order=self.strings[f"order_{self.order}"],
        )

    def still(self) -> Figure:
        """The cut picture, and beside it the patches in reading order."""
        figure = Figure(figsize=(7.2, 3.7), layout="constrained")
        patches = _patches(self.pixels(), self.patch_size)
        left, right = figure.subplots(1, 2)
        left.imshow(_mosaic(patches, self.grid))
        right.imshow(_mosaic([patches[i] for i in self.sequence], self._line_length()))
        left.set_title(self.strings["picture"], fontsize=10)
        right.set_title(self.strings["sequence"], fontsize=10)
        for axes in (left, right):
            axes.set_axis_off()
            axes.set_anchor("N")
        return figure

    def _line_length(self) -> int:
        """Other than the grid, or the picture would reappear in the lines of the sequence."""
        return self.grid + 3


def _weights(kernels: dict, max_grid: int, generator: torch.Generator) -> dict[str, Any]:
    """The traits that carry numbers: kernels as given, the rest seeded."""
    dim = next(iter(kernels.values()))[0].shape[0]
    positions = torch.randn(max_grid**2 + 1, dim, generator=generator) / 2
    return {
        "dim": dim,
        "kernels": {
            str(p): {"weight": float32_bytes(weight), "bias": float32_bytes(bias)}
            for p, (weight, bias) in kernels.items()
        },
        "head": float32_bytes(*_head(dim, generator)),
        "position_table": float32_bytes(positions),
    }


def _patches(image: UInt8[Tensor, "3 size size"], patch_size: int) -> list[np.ndarray]:
    rows = image.permute(1, 2, 0).numpy()
    starts = range(0, rows.shape[0], patch_size)
    return [rows[y : y + patch_size, x : x + patch_size] for y in starts for x in starts]


def _mosaic(patches: list[np.ndarray], columns: int) -> np.ndarray:
    """Patches side by side in lines, with white gaps."""
    size, gap = patches[0].shape[0], 1 + patches[0].shape[0] // 10
    rows = -(-len(patches) // columns)
    canvas = np.full((rows * (size + gap), columns * (size + gap), 3), 255, np.uint8)
    for k, patch in enumerate(patches):
        y, x = (k // columns) * (size + gap), (k % columns) * (size + gap)
        canvas[y : y + size, x : x + size] = patch
    return canvas
