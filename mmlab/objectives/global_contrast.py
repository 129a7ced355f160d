"""Contrast over all processes the way VLMo has it: everybody computes the whole table.

Bao et al. 2021 (arXiv 2111.02358), section 3; microsoft/unilm, ``vlmo/modules/objectives.py``.

Each process puts its own rows first and gathers those of the others without a gradient. It thus
knows the gradient of the whole loss for its own rows, and only for those. Training averages
gradients over ``W`` processes, which leaves exactly 1/W of the true gradient for all weights that
features depend on, but all of it for the scale. ``mmlab.objectives.contrastive`` has the other
way, ``contrastive_loss``, whose average is the true gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mmlab.objectives.contrastive import Scale


class GlobalContrast(NamedTuple):
    """One step's similarities, times the scale, of the rows of all processes, own rows first.

    Row ``i`` and column ``i`` belong together. ``own`` is how many rows are this process's.
    """

    image_to_text: Float[Tensor, "all all"]
    own: int

    @property
    def text_to_image(self) -> Float[Tensor, "all all"]:
        """The same numbers with texts as rows."""
        return self.image_to_text.T

    @property
    def belongs(self) -> Bool[Tensor, "own all"]:
        """Which columns are the partners of the own rows."""
        everything = torch.eye(len(self.image_to_text), dtype=torch.bool)
        return everything[: self.own].to(self.image_to_text.device)

    def loss(self) -> Float[Tensor, ""]:
        """Symmetric cross-entropy of the whole table: the same value in every process."""
        places = torch.arange(len(self.image_to_text), device=self.image_to_text.device)
        image_loss = F.cross_entropy(self.image_to_text, places)
        return (image_loss + F.cross_entropy(self.text_to_image, places)) / 2


def global_contrast(
    image_features: Float[Tensor, "batch dim"],
    text_features: Float[Tensor, "batch dim"],
    scale: Scale,
) -> GlobalContrast:
    """The table of all processes' images and texts; features have length 1.

    All processes must call it, with equally many rows.
    """
    images, texts = gather_own_first(image_features), gather_own_first(text_features)
    similarity = scale * images @ texts.T
    single = torch.promote_types(similarity.dtype, torch.float32)
    return GlobalContrast(similarity.to(single), len(image_features))


def gather_own_first(x: Tensor) -> Tensor:
    """The rows of all processes: its own, which keep their gradient, then the others' in order.

    Without other processes this is ``x`` itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    rank = dist.get_rank()
    return torch.cat([x, *parts[:rank], *parts[rank + 1 :]])
