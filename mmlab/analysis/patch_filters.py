"""What the patch embedding looks for: its principal components (ViT, figure 7 left)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PatchFilters:
    """Principal components of the patch embedding, the strongest first.

    ``explained_variance`` is each component's share of the variance over all filters; all shares
    together are 1.
    """

    components: Float[Tensor, "components 3 height width"]
    explained_variance: Float[Tensor, " components"]

    def pictures(self) -> Float[Tensor, "components 3 height width"]:
        """The components as RGB pictures in [0, 1]; 0.5 is zero, each scaled on its own."""
        largest = self.components.abs().amax(dim=(1, 2, 3), keepdim=True)
        return 0.5 + 0.5 * self.components / largest


def patch_filters(
    kernels: Float[Tensor, "dim channels height width"], num_components: int = 28
) -> PatchFilters:
    """Principal components of ``kernels``, such as ``vit.patch_embedding.projection.weight``.

    Each kernel is one sample of ``3 P^2`` values, and their mean is taken off first. A component is
    a unit vector whose sign is free: here its largest entry is positive. 28 is the paper's number.
    ValueError if the kernels are not RGB (those of a conv stem are not), are all the same, or are
    too few for ``num_components``.
    """
    _check_kernels(kernels, num_components)
    samples = kernels.detach().flatten(1).double()
    _, singular_values, directions = torch.linalg.svd(
        samples - samples.mean(0), full_matrices=False
    )
    variance = singular_values.square()
    if variance.sum() == 0:
        raise ValueError("kernels must differ from each other to have principal components")
    components = _fix_signs(directions[:num_components]).unflatten(1, kernels.shape[1:])
    shares = (variance / variance.sum())[:num_components]
    return PatchFilters(components.float(), shares.float())


def _fix_signs(
    directions: Float[Tensor, "components values"],
) -> Float[Tensor, "components values"]:
    largest = directions.abs().argmax(dim=1, keepdim=True)
    return directions * directions.gather(1, largest).sign()


def _check_kernels(kernels: Tensor, num_components: int) -> None:
    dim, channels, height, width = kernels.shape
    if channels != 3:
        raise ValueError(
            f"kernels must have the 3 channels of RGB images, got {channels}; "
            "a conv stem has no patch filters"
        )
    most = min(dim, channels * height * width)
    if not 1 <= num_components <= most:
        raise ValueError(f"num_components must be from 1 to {most}, got {num_components}")
