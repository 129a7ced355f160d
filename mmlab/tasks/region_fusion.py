"""A trained model of words and detected regions, with its tokenizer, its detector and its answers.

What the papers call an image is here what a detector tells of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmlab.datasets import Scenes
from mmlab.datasets.regions import Regions, ToyDetector
from mmlab.models.visualbert import join_texts
from mmlab.tasks.fusion import BATCH_SIZE, FusionModel, load_fusion
from mmlab.tasks.region_scenes import Pairs, region_entries

Entries = Callable[[Pairs], dict[str, Tensor]]
"""From raw pairs to what the network takes, by the names of its arguments."""


@dataclass(frozen=True, kw_only=True)
class RegionModel(FusionModel):
    """``network`` reads words and regions; ``entries`` makes its arguments from raw pairs.

    "Images" of its methods are ``Regions``, as ``prepared`` gives them. ``matched`` is the output
    of the matching head that means "fits": papers number it differently.
    """

    detector: ToyDetector
    entries: Entries
    matched: int = 1

    def prepared(self, dataset: Scenes, rows: Int64[Tensor, " batch"] | None = None) -> Regions:
        """The regions of images of a data set; of all without ``rows``."""
        return self.detector.detect(dataset, rows)

    def _match_logit(self, features: tuple[Tensor | None, ...]) -> Float[Tensor, " batch"]:
        logits = self.network.matching_logits(features)
        others = torch.arange(logits.shape[1], device=logits.device) != self.matched
        return logits[:, self.matched] - logits[:, others].logsumexp(1)

    def raw_pairs(self, images: Regions, ids: Int64[Tensor, "batch tokens"]) -> Pairs:
        """Texts and regions as ``entries`` takes them, on the CPU.

        What is padding in all rows is cut off.
        """
        images, ids = images.to("cpu"), ids.cpu()
        valid = ids != self.tokenizer.pad_id
        pairs = {"input_ids": ids[:, valid.any(0)], "attention_mask": valid[:, valid.any(0)]}
        pairs["mask_id"] = torch.tensor(self.tokenizer.mask_id)
        return pairs | region_entries(images, self.tokenizer)

    def features(self, pairs: Pairs) -> tuple[Tensor | None, ...]:
        """What the network makes of raw pairs."""
        given = self.entries(pairs)
        return self.network(**{name: value.to(self.device) for name, value in given.items()})

    def _read(self, images: Regions, ids: Tensor, read) -> Tensor:
        return read(self.features(self.raw_pairs(images, ids))).cpu()


def second_caption_figures(
    model: RegionModel, dataset: Scenes, language: str = "en"
) -> dict[str, float | int]:
    """How often a VisualBERT tells rightly whether a second caption is of the image as well.

    The first caption, a short one, is always right; the second is the image's own or the next
    one's, as often. ``wrong_image`` is the same with the regions of a third image: what can be told
    from the two captions alone. Chance is 0.5. ValueError without a ``"match"`` head.
    """
    model.network.head("match")
    regions, own = model.prepared(dataset), torch.arange(len(dataset))
    short, long = (model.tokens(dataset.captions(language, kind)) for kind in ("short", "medium"))

    def accuracy(shown: Regions) -> float:
        true = _second_logits(model, shown, short, long) > 0
        false = _second_logits(model, shown, short, long[own.roll(1)]) > 0
        return ((true.float().mean() + 1 - false.float().mean()) / 2).item()

    return {
        "matching_accuracy": accuracy(regions),
        "wrong_image": accuracy(regions.select(own.roll(2))),
        "num_images": len(dataset),
    }


@torch.no_grad()
def _second_logits(
    model: RegionModel,
    regions: Regions,
    first: Int64[Tensor, "batch tokens"],
    second: Int64[Tensor, "batch more_tokens"],
) -> Float[Tensor, " batch"]:
    pad_id, logits = model.tokenizer.pad_id, []
    for rows in torch.arange(len(first)).split(BATCH_SIZE):
        texts = (first[rows], first[rows] != pad_id, second[rows], second[rows] != pad_id)
        ids, valid, types = join_texts(*texts)
        pairs = {"input_ids": ids, "attention_mask": valid}
        pairs |= region_entries(regions.select(rows), model.tokenizer)
        given = {**model.entries(pairs), "types": types}
        features = model.network(**{k: v.to(model.device) for k, v in given.items()})
        logits.append(model._match_logit(features).cpu())
    return torch.cat(logits)


def load_regions(
    name: str, file: str | Path, detector: ToyDetector, entries: Entries, matched: int = 1
) -> RegionModel:
    """As ``load_fusion``, with what else a ``RegionModel`` has."""
    found = load_fusion(name, file)
    return RegionModel(**vars(found), detector=detector, entries=entries, matched=matched)
