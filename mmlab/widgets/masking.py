"""Masking: what BERT, MAE and FLIP hide, who encodes what is left, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Float64
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmlab.analysis.cost import (
    block_activations,
    flip_image_macs,
    flip_text_macs,
    mae_decoder_macs,
    mae_encoder_macs,
)
from mmlab.datasets.example import Example
from mmlab.models.flip import FLIP_L_16, FLIPConfig
from mmlab.models.mae import MAE_L_16, MAEConfig
from mmlab.nn import num_kept, random_masking
from mmlab.widgets.base import Widget, listed, module_source, within
from mmlab.widgets.patch_splitter import random_integers
from mmlab.widgets.pictures import middle_square, named_images, webp_bytes

WAYS = ("bert", "mae", "flip")
MEASURES = ("compute", "memory")
USUAL = (("bert", 15), ("flip", 50), ("mae", 75))
"""Percentages that the papers hide: BERT of the words, FLIP and MAE of the patches."""
PERCENT_RANGE = (0, 90)
GRID_RANGE = (4, 16)
MAX_WORDS = 32
BYTES_PER_VALUE = 2
"""In half precision."""


def masking_noise(num_tokens: int, seed: int) -> Float64[Tensor, "1 tokens"]:
    """Noise of one image for ``mmlab.nn.random_masking``, the same as the figure draws in the page.

    The figure takes the first ``num_patches`` numbers for the patches and the next for the words.
    """
    draws = [u / 2**32 for u in islice(random_integers(seed), num_tokens)]
    return torch.tensor([draws], dtype=torch.float64)


def _words(caption: str | Sequence[str]) -> list[str]:
    words = caption.split() if isinstance(caption, str) else [str(word) for word in caption]
    if not 1 <= len(words) <= MAX_WORDS:
        raise ValueError(f"caption has {len(words):,} words; allowed are 1 to {MAX_WORDS}")
    return words


def _check_configs(mae: MAEConfig, flip: FLIPConfig) -> None:
    """ValueError unless both have the same image encoder: else sizes are compared, not masking."""
    names = ("image_size", "patch_size", "num_channels", "dim", "depth", "num_heads", "mlp_dim")
    for name in names:
        if getattr(mae, name) != getattr(flip, name):
            raise ValueError(
                f"mae has {name}={getattr(mae, name)} and flip {getattr(flip, name)}; allowed are "
                "two with the same image encoder"
            )
    rows, columns = mae.encoder.grid
    low, high = GRID_RANGE
    if rows != columns or not low <= rows <= high:
        raise ValueError(
            f"mae cuts pictures into {rows} × {columns} patches; allowed are {low} to {high} a side"
        )


def _sizes(mae: MAEConfig, flip: FLIPConfig) -> dict[str, Any]:
    """What the page needs to compute every cost itself."""
    return {
        "patches": mae.encoder.num_patches,
        "patch_values": mae.patch_values,
        "image": [mae.dim, mae.depth, mae.num_heads, mae.mlp_dim],
        "text": [flip.text_dim, flip.text_depth, flip.text_num_heads, flip.text_mlp_dim],
        "decoder": [
            mae.decoder_dim,
            mae.decoder_depth,
            mae.decoder_num_heads,
            mae.decoder_mlp_dim,
        ],
        "context": flip.context_length,
        "embed": flip.embed_dim,
        "bytes": BYTES_PER_VALUE,
    }


class Masking(Widget):
    """BERT's, MAE's and FLIP's way of hiding tokens, side by side on a picture and its caption.

    ``image`` is an RGB tensor (uint8, ``3 height width``), cropped to its middle square, or an
    ``Example``, which brings its caption. All three encode the patches with the same ViT, that of
    ``mae`` and ``flip``: in BERT's way hidden tokens are replaced and all are encoded (on patches
    as BEiT does, Bao et al. 2021), MAE drops them and a decoder gets mask tokens in their places,
    FLIP drops them for good. ``percent`` of the patches are hidden and, in BERT's way, of the
    words; ``seed`` draws which. ``token`` counts the words first, then the patches in raster order;
    ``measure`` is one of ``MEASURES``.

    ``reconstructions`` maps percentages to pictures (uint8, ``3 image_size image_size``) that a
    trained MAE made of this picture with ``masking_noise(num_patches, seed)``. ValueError on wrong
    pictures, captions, configurations or values.
    """

    _esm = module_source("masking")
    _strings = "masking"

    picture = traitlets.Bytes(help="the middle square, WebP").tag(sync=True)
    image_size = traitlets.Int().tag(sync=True)
    grid = traitlets.Int(help="patches along a side").tag(sync=True)
    words = traitlets.List(help="of the caption").tag(sync=True)
    percent = traitlets.Int(75, help="share that is hidden").tag(sync=True)
    percent_range = traitlets.List(list(PERCENT_RANGE)).tag(sync=True)
    usual = traitlets.List([list(pair) for pair in USUAL]).tag(sync=True)
    seed = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(help="index into words and patches").tag(sync=True)
    measure = traitlets.Unicode("compute").tag(sync=True)
    sizes = traitlets.Dict(help="what the costs are computed from").tag(sync=True)
    reconstructions = traitlets.List(help="percent, seed and bytes of each").tag(sync=True)

    def __init__(
        self,
        image: Tensor | Example,
        caption: str | Sequence[str] | None = None,
        mae: MAEConfig = MAE_L_16,
        flip: FLIPConfig = FLIP_L_16,
        *,
        reconstructions: Mapping[int | float, Tensor] | None = None,
        seed: int = 0,
        language: str = "en",
        **traits: Any,
    ):
        _check_configs(mae, flip)
        if isinstance(image, Example):
            image, caption = image.image, image.caption() if caption is None else caption
        if caption is None:
            raise ValueError("caption is None; an image that is a tensor needs one")
        words, grid, size = _words(caption), mae.encoder.grid[0], mae.image_size
        self._mae, self._flip = mae, flip
        square = middle_square(named_images({"image": image}, "Masking")["image"], size)
        state = {
            "picture": webp_bytes(square),
            "image_size": size,
            "grid": grid,
            "words": words,
            "seed": seed,
            "token": len(words) + grid * (grid // 2) + grid // 2,
            "sizes": _sizes(mae, flip),
            "reconstructions": _reconstructed(reconstructions or {}, size, seed),
        }
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("percent")
    def _percent_is_in_range(self, proposal):
        return within(proposal, *PERCENT_RANGE)

    @traitlets.validate("seed")
    def _seed_is_an_integer_of_32_bits(self, proposal):
        return within(proposal, 0, 2**32 - 1)

    @traitlets.validate("token")
    def _token_is_there(self, proposal):
        return within(proposal, 0, len(self.words) + self.grid**2 - 1)

    @traitlets.validate("measure")
    def _measure_is_known(self, proposal):
        return listed(proposal, MEASURES)

    @property
    def num_patches(self) -> int:
        """Patches of the picture."""
        return self.grid**2

    @property
    def num_kept(self) -> int:
        """Patches that MAE and FLIP encode at the present ratio."""
        return num_kept(self.num_patches, self.percent / 100)

    def hidden_patches(self) -> list[int]:
        """The hidden patches, in raster order."""
        mask = random_masking(masking_noise(self.num_patches, self.seed), self.percent / 100)
        return mask.removed[0].nonzero().flatten().tolist()

    def hidden_words(self) -> list[int]:
        """The words that BERT's way hides, in their order; unlike the patches, they may be all."""
        noise = masking_noise(self.num_patches + len(self.words), self.seed)[0, self.num_patches :]
        kept = int(len(self.words) * (1 - self.percent / 100))
        return sorted(noise.argsort()[kept:].tolist())

    def macs(self) -> dict[str, tuple[int, int, int]]:
        """Multiply-adds of (image encoder, text encoder, decoder) for a pair, of each way."""
        ratio, mae, flip = self.percent / 100, self._mae, self._flip
        words = flip_text_macs(flip)
        return {
            "bert": (mae_encoder_macs(mae, 0.0), words, 0),
            "mae": (mae_encoder_macs(mae, ratio), 0, mae_decoder_macs(mae, ratio)),
            "flip": (flip_image_macs(flip, ratio), words, 0),
        }

    def activation_bytes(self) -> dict[str, tuple[int, int, int]]:
        """What the blocks keep for the backward pass, in half precision, in the same order."""
        kept, patches = self.num_kept + 1, self.num_patches + 1
        image = {tokens: self._kept_bytes("image", tokens) for tokens in (kept, patches)}
        words = self._kept_bytes("text", self.sizes["context"])
        return {
            "bert": (image[patches], words, 0),
            "mae": (image[kept], 0, self._kept_bytes("decoder", patches)),
            "flip": (image[kept], words, 0),
        }

    def _kept_bytes(self, part: str, num_tokens: int) -> int:
        dim, depth, num_heads, mlp_dim = self.sizes[part]
        return BYTES_PER_VALUE * depth * block_activations(num_tokens, dim, num_heads, mlp_dim)

    def share(self) -> float:
        """FLIP's multiply-adds for a pair, as a share of those with nothing dropped."""
        whole = flip_image_macs(self._flip) + flip_text_macs(self._flip)
        return sum(self.macs()["flip"]) / whole

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        return self.strings["sentence"].format(
            percent=self.percent,
            patches=self.num_patches,
            kept=self.num_kept,
            share=f"{100 * self.share():.1f}",
            caption=" ".join(self.words),
        )

    def still(self) -> Figure:
        """What goes into the encoder in each way, and the multiply-adds below."""
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        boards = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.2])
        pixels = np.array(Image.open(BytesIO(self.picture)).convert("RGB"))
        patch = self.image_size // self.grid
        hidden = np.zeros((self.grid, self.grid), bool)
        hidden.flat[self.hidden_patches()] = True
        hidden = hidden.repeat(patch, 0).repeat(patch, 1)
        colours = {"bert": (180, 83, 10), "mae": (236, 240, 242), "flip": (236, 240, 242)}
        for way, axes in zip(WAYS, boards, strict=False):
            shown = np.where(hidden[..., None], np.uint8(colours[way]), pixels)
            axes.imshow(shown)
            axes.set_axis_off()
            encoded = self.num_patches if way == "bert" else self.num_kept
            words = {"encoded": encoded, "patches": self.num_patches}
            axes.set_title(
                f"{self.strings[f'way_{way}']}\n{self.strings['encoded'].format(**words)}",
                fontsize=8,
            )
        totals = [sum(self.macs()[way]) / 1e9 for way in WAYS]
        names = [self.strings[f"way_{way}"] for way in WAYS]
        boards[-1].barh(names[::-1], totals[::-1], color="#0b6e75")
        boards[-1].set_title(self.strings["measure_compute"] + ", GMAC", fontsize=8)
        boards[-1].tick_params(labelsize=8)
        return figure


def _reconstructed(
    pictures: Mapping[int | float, Tensor], size: int, seed: int
) -> list[dict[str, Any]]:
    low, high = PERCENT_RANGE
    for percent, picture in pictures.items():
        if not (isinstance(percent, int) and low < percent <= high):
            raise ValueError(
                f"reconstructions has the key {percent!r}; allowed are percentages as whole "
                f"numbers from {low + 1} to {high}"
            )
        if tuple(picture.shape) != (3, size, size):
            raise ValueError(
                f"reconstructions[{percent}] has shape {tuple(picture.shape)}; allowed is "
                f"(3, {size}, {size})"
            )
    if not pictures:
        return []
    named_images({f"{percent} %": picture for percent, picture in pictures.items()}, "Masking")
    return [
        {"percent": p, "seed": seed, "bytes": webp_bytes(middle_square(pictures[p], size))}
        for p in sorted(pictures)
    ]
