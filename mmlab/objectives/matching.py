"""Image-text matching: does this caption belong to this image?

A classifier with two outputs on the fused pair, 1 for a match. What matters is where the false
pairs come from: ALBEF (Li et al. 2021, section 3.2) draws them by the similarity that its
contrastive loss has just computed, so that they are hard; BLIP and VLMo do the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor


class PairMatching(NamedTuple):
    """One step's pairs: true ones, each text with a wrong image, each image with a wrong text.

    The negatives are rows of what they were drawn from, the batch as a rule.
    """

    negative_images: Int64[Tensor, " batch"]
    negative_texts: Int64[Tensor, " batch"]
    fused: Float[Tensor, "pairs tokens text_dim"]
    logits: Float[Tensor, "pairs 2"]

    def loss(self) -> Float[Tensor, ""]:
        """The image-text matching loss (ALBEF, equation 4)."""
        places = torch.arange(len(self.logits), device=self.logits.device)
        return matching_loss(self.logits, places < len(self.negative_images))


def sample_negative_pairs(
    text_to_image: Float[Tensor, "batch items"],
    image_to_text: Float[Tensor, "batch items"],
    belongs: Bool[Tensor, "batch items"],
    generator: torch.Generator | None = None,
    floor: float = 0.0,
) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
    """A wrong image for each text, then a wrong text for each image; see below."""
    images = sample_hard_negatives(text_to_image, belongs, generator, floor)
    return images, sample_hard_negatives(image_to_text, belongs, generator, floor)


def sample_hard_negatives(
    similarity: Float[Tensor, "queries items"],
    belongs: Bool[Tensor, "queries items"],
    generator: torch.Generator | None = None,
    floor: float = 0.0,
) -> Int64[Tensor, " queries"]:
    """One wrong item for each query, drawn by the softmax of its similarities.

    ``similarity`` is already divided by the temperature. What ``belongs`` to the query, itself
    included, is never drawn. ``floor`` is added to every probability (BLIP: 1e-4), so that items
    that look nothing alike come up, too. ALBEF's ``models/model_pretrain.py`` draws row by row from
    probabilities; this is the same distribution in one call, by adding Gumbel noise to logarithms,
    where nothing underflows. No gradient. ValueError if all items belong to some query.
    """
    return sample_several_hard_negatives(similarity, belongs, 1, generator, floor)[:, 0]


def sample_several_hard_negatives(
    similarity: Float[Tensor, "queries items"],
    belongs: Bool[Tensor, "queries items"],
    count: int,
    generator: torch.Generator | None = None,
    floor: float = 0.0,
) -> Int64[Tensor, "queries count"]:
    """``count`` different wrong items for each query, one after the other, as above.

    The ``count`` greatest of the noisy logarithms are a draw without replacement (Kool et al. 2019,
    arXiv 1903.06059). ValueError if some query has fewer wrong items.
    """
    wrong = (~belongs).sum(1)
    if (wrong < count).any():
        row = int((wrong < count).nonzero()[0])
        what = f"no wrong item for query {row}: all {belongs.shape[1]} belong"
        few = f"only {int(wrong[row])} wrong items for query {row}, of {count} to draw"
        raise ValueError(f"there is {what}" if count == 1 else f"there are {few}")
    log_weights = similarity.detach().float().log_softmax(-1)
    if floor > 0:
        log_weights = torch.log(log_weights.exp() + floor)
    log_weights = log_weights.masked_fill(belongs, -torch.inf)
    noise = torch.rand(similarity.shape, generator=generator, device=_device(generator, similarity))
    gumbel = -torch.log(-torch.log(noise.clamp_min(torch.finfo(noise.dtype).tiny)))
    return (log_weights + gumbel.to(log_weights.device)).topk(count, dim=-1).indices


def images_of_pairs(
    own: Float[Tensor, "batch image_tokens dim"],
    candidates: Float[Tensor, "items image_tokens dim"],
    wrong: Int64[Tensor, " batch"],
) -> tuple[Float[Tensor, "images image_tokens dim"], Int64[Tensor, " pairs"]]:
    """The images of the pairs of a ``PairMatching``, each once, and for every pair its image's row.

    ``wrong`` are rows of ``candidates``: the batch's ``own`` images, or those of all processes, of
    which only the chosen ones are then put behind the own.
    """
    places = torch.arange(len(own), device=own.device)
    if candidates is own:
        return own, torch.cat([places, wrong, places])
    images = torch.cat([own, candidates[wrong]])
    return images, torch.cat([places, places + len(own), places])


def matching_loss(
    logits: Float[Tensor, "pairs 2"], matched: Bool[Tensor, " pairs"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the two-way classifier, mean over the pairs; output 1 means a match."""
    return F.cross_entropy(logits, matched.long())


def own_or_other(
    own_wanted: Bool[Tensor, " batch"],
    own: Shaped[Tensor, "batch _ ..."],
    other: Shaped[Tensor, "batch _ ..."],
) -> Shaped[Tensor, "batch _ ..."]:
    """False pairs by exchange: rows of ``own`` where wanted, else of ``other``.

    Texts, regions or masks; the shorter of the two is padded with zeros.
    """
    longest = max(own.shape[1], other.shape[1])
    own, other = (
        torch.cat([t, t.new_zeros(len(t), longest - t.shape[1], *t.shape[2:])], dim=1)
        for t in (own, other)
    )
    return torch.where(own_wanted.view(-1, *(1,) * (own.ndim - 1)), own, other)


def _device(generator: torch.Generator | None, tensor: Tensor) -> torch.device:
    """A generator draws on its own device."""
    return tensor.device if generator is None else generator.device
