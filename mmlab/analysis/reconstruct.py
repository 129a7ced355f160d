"""What an MAE fills in: images with their removed patches grey, predicted, and as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mmlab.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, denormalize, normalize
from mmlab.models.mae import MAE
from mmlab.nn import PatchMask, patchify, unpatchify

Pictures = Float[Tensor, "batch 3 height width"]


@dataclass(frozen=True)
class Reconstruction:
    """Three RGB pictures of each image, values in [0, 1].

    ``masked`` has grey where patches were removed, ``filled`` the predictions there; both show the
    other patches as they are.
    """

    masked: Pictures
    filled: Pictures
    original: Pictures

    def strips(self, gap: int = 2) -> Float[Tensor, "batch 3 height strip_width"]:
        """Masked, filled and original side by side, with ``gap`` white columns between them."""
        first, second = (F.pad(part, (0, gap), value=1.0) for part in (self.masked, self.filled))
        return torch.cat([first, second, self.original], dim=-1)


@torch.no_grad()
def reconstruct(
    model: MAE,
    images: Pictures,
    mask: PatchMask,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Reconstruction:
    """Fill the patches that ``mask`` removes from ``images`` (MAE, figures 2 to 4).

    ``images`` are normalised by ``mean`` and ``std``, as the model takes them; ``mask`` comes from
    ``mmlab.nn.random_masking``. A model with ``norm_pix`` predicts the pattern of a patch, not its
    light and contrast: those are taken from the original then, so its pictures look better than
    what the model knows. Values outside [0, 1] are cut off.
    """
    config = model.config
    patches = patchify(images, config.patch_size)
    predicted = model(images, mask).to(patches.dtype)
    if config.norm_pix:
        predicted = _with_light_of(patches, predicted)
    grey = patchify(normalize(torch.full_like(images, 0.5), mean, std), config.patch_size)

    def picture(inserted: Float[Tensor, "batch patches values"]) -> Pictures:
        mixed = _insert(patches, inserted, mask.removed)
        pixels = unpatchify(mixed, config.patch_size, config.encoder.grid)
        return denormalize(pixels, mean, std).clamp(0, 1)

    return Reconstruction(
        masked=picture(grey),
        filled=picture(predicted),
        original=picture(patches),
    )


def _with_light_of(
    patches: Float[Tensor, "batch patches values"], predicted: Float[Tensor, "batch patches values"]
) -> Float[Tensor, "batch patches values"]:
    """Undo ``norm_pix`` with the mean and variance of the true patches."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return predicted * (variance + 1e-6).sqrt() + mean


def _insert(
    patches: Float[Tensor, "batch patches values"],
    inserted: Float[Tensor, "batch patches values"],
    removed: Bool[Tensor, "batch patches"],
) -> Float[Tensor, "batch patches values"]:
    return torch.where(removed[..., None], inserted, patches)
