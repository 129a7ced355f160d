"""Unicoder-VL: the trunk of UNITER, a simpler region embedding, all tasks at once.

Li et al. 2020, "Unicoder-VL: A Universal Encoder for Vision and Language by Cross-modal
Pre-training" (arXiv 1908.06066). Neither code nor weights were published, so there is nothing to
load and nothing to compare with; what the paper leaves open is said where it is decided.

What differs from UNITER:

- a region is ``LN(W f + V p)``: one norm instead of three, a location of five numbers (corners and
  share of the area) instead of seven, no token type and no mask embedding;
- words and regions are masked in the same pass, which also tells whether image and text match;
  UNITER draws one task a step and masks one modality;
- of a masked region the detector's class is predicted; there is no regression of its feature, no
  divergence from the detector's distribution, and no transport between words and regions;
- a masked region is not always zeroed: 80 % are, 10 % get the feature of another region, 10 % stay.

What differs from VisualBERT: regions have a location and lack type and position, masked regions are
predicted, and the data (Conceptual Captions, SBU) are not those of the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlab.models.uniter import (
    FALSE_SHARE,
    MASKED_SHARE,
    UNITER,
    UNITER_MINI,
    UNITERConfig,
    UNITERPretraining,
    hide_words,
    regions_of,
)
from mmlab.nn.region_locations import corner_area_locations
from mmlab.objectives.masked_language import IGNORED
from mmlab.objectives.masked_region import choose_regions, hide_regions
from mmlab.objectives.matching import own_or_other

LOCATION_DIM = 5
ZEROED, REPLACED = 0.8, 0.1
"""What becomes of masked regions; the rest stays."""


class UnicoderVLRegionEmbedding(nn.Module):
    """Feature and location, projected, added, normalised: ``LN(W f + V p)``, then dropout."""

    def __init__(self, config: UNITERConfig):
        super().__init__()
        self.feature_projection = nn.Linear(config.feature_dim, config.dim)
        self.location_projection = nn.Linear(LOCATION_DIM, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 5"],
    ) -> Float[Tensor, "batch regions dim"]:
        """Region vectors; ``locations`` are those of ``corner_area_locations``."""
        regions = self.feature_projection(features) + self.location_projection(locations)
        return self.dropout(self.norm(regions))


class UnicoderVL(UNITER):
    """A ``UNITER`` with the region embedding of Unicoder-VL; everything else is the same.

    The type row of regions is there, since the text part is a BERT, and has no effect.
    """

    region_embedding_class = UnicoderVLRegionEmbedding

    def embed_regions(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 5"],
        masked_regions: Bool[Tensor, "batch regions"] | None = None,
        types: Int[Tensor, "batch regions"] | None = None,
    ) -> Float[Tensor, "batch regions dim"]:
        """Regions as they enter the first block.

        ``masked_regions`` change nothing: what hides a region is its feature. ValueError for
        ``types``.
        """
        if types is not None:
            raise ValueError("region_types must be left out: regions of Unicoder-VL have no type")
        return self.region_embedding(features, locations)


# The one published size. Whether its BERT was cased is not said; this is the uncased vocabulary.
# Its detector's background is no class to be predicted.
UNICODER_VL_B = UNITERConfig(
    vocab_size=30522, num_region_classes=1600, heads=("words", "classes", "match")
)
UNICODER_VL_B_RETRIEVAL = replace(UNICODER_VL_B, heads=("match", "rank"))
UNICODER_VL_B_VCR = replace(UNICODER_VL_B, heads=("choice",), num_types=4)

# Ours, for the toy detector's regions of scenes: its eight shapes.
UNICODER_VL_MINI = replace(UNITER_MINI, num_region_classes=8, heads=("words", "classes", "match"))


def unicoder_vl_lesson(
    pairs: dict[str, Tensor],
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """One step of pre-training, all three tasks, and all that is random in it.

    ``pairs`` as in ``uniter_lesson``. The result has ``"input_ids"``, ``"attention_mask"``,
    ``"features"``, ``"locations"``, ``"region_valid"``; ``"matched"``, false for half of the rows;
    ``"labels"`` of masked words, ``"class_targets"`` and the ``"masked_regions"`` they are for.

    The paper samples the negatives without saying how often of which kind: here a false pair has
    another image or another text, equally likely. It is masked as a true one is, or else a [MASK]
    would give the answer away, but nobody is asked what was there.
    """
    luck = _uniform(pairs["input_ids"][:, :1], generator)[:, 0]
    matched, other_text = luck >= FALSE_SHARE, luck < FALSE_SHARE / 2
    batch = _mixed(pairs, matched, other_text)
    words = hide_words(batch, mask_id, vocab_size, special_ids, generator)
    valid = batch["region_valid"]
    chosen = choose_regions(valid, MASKED_SHARE, True, generator)
    strangers = _other_regions(batch["features"], valid, generator)
    hidden = hide_regions(batch["features"], chosen, ZEROED, REPLACED, strangers, generator)
    return batch | {
        "input_ids": words.ids,
        "labels": words.labels.masked_fill(~matched[:, None], IGNORED),
        "features": hidden,
        "masked_regions": chosen & matched[:, None],
        "matched": matched,
    }


def _mixed(
    pairs: dict[str, Tensor], matched: Bool[Tensor, " batch"], other_text: Bool[Tensor, " batch"]
) -> dict[str, Tensor]:
    """True pairs, and false ones whose text or whose image is another one."""
    own, other = (
        regions_of(pairs, corner_area_locations, prefix)
        | {"class_targets": pairs[f"{prefix}classes"]}
        for prefix in ("", "other_")
    )
    batch = {name: own_or_other(matched | other_text, own[name], other[name]) for name in own}
    for name, ours, theirs in (
        ("input_ids", "input_ids", "other_ids"),
        ("attention_mask", "attention_mask", "other_mask"),
    ):
        batch[name] = own_or_other(~other_text, pairs[ours], pairs[theirs])
    return batch | {"attention_mask": batch["attention_mask"].bool()}


def _other_regions(
    features: Float[Tensor, "batch regions dim"],
    valid: Bool[Tensor, "batch regions"],
    generator: torch.Generator | None,
) -> Float[Tensor, "batch regions dim"]:
    """For each place the feature of a region drawn from the whole batch."""
    pool = features[valid]
    drawn = (_uniform(valid, generator) * len(pool)).long().clamp_max(len(pool) - 1)
    return pool[drawn]


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)


class UnicoderVLPretraining(UNITERPretraining):
    """A ``UnicoderVL`` in pre-training: ``"masked_words"``, ``"masked_region_classes"``,
    ``"matching"``.

    ``losses`` takes a batch of ``unicoder_vl_lesson``.
    """

    def __init__(self, network: UnicoderVL):
        super().__init__(network, alignment_weight=0)
