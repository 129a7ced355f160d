"""A real detector: regions of photographs, of which the toy detector of the scenes knows nothing.

Detectors of the DETR kind (Carion et al. 2020, arXiv 2005.12872) have a fixed number of tokens,
each with a box and a distribution over classes: all that ``Regions`` wants. Those of
``transformers`` are read, YOLOS (Fang et al. 2021, arXiv 2106.00666) first of all, which is a plain
ViT and needs no further library; its code and weights are under Apache-2.0 (``pip install
'mmlab[detector]'``).

The region era had another one, Faster R-CNN trained on Visual Genome, whose features of 2,048
numbers published models need (``FeatureTSV`` and ``FeatureLMDB`` read them). These features are as
wide as the detector, and it knows COCO's classes and no attributes: a model has to be trained on
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from mmlab.datasets.regions import Regions, collate_regions
from mmlab.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize, resize
from mmlab.models.checks import check
from mmlab.tasks.language_models import import_transformers

Image = UInt8[Tensor, "3 _ _"] | Float[Tensor, "3 _ _"]

KINDS = ("yolos", "detr")
"""Values of ``model_type`` whose last class is "no object", chosen by a softmax."""


class _Tokens(NamedTuple):
    """What the detector says of one image; a row is one of its tokens."""

    features: Float[Tensor, "tokens dim"]
    boxes: Float[Tensor, "tokens 4"]
    distributions: Float[Tensor, "tokens classes"]


@dataclass(frozen=True)
class Detector:
    """``network`` and how its findings are chosen.

    - ``classes``: the names of the classes, in their order.
    - ``shortest_side``, ``longest_side``: an image is resized to the first in pixels, or less, so
      that it does not pass the second.
    - Regions with a confidence of at least ``threshold`` are kept, but at least ``fewest`` and at
      most ``most`` (Anderson et al. 2018 keep 10 to 100).
    """

    network: nn.Module
    classes: tuple[str, ...]
    shortest_side: int = 512
    longest_side: int = 864
    threshold: float = 0.2
    fewest: int = 10
    most: int = 36

    def __post_init__(self) -> None:
        for name in ("shortest_side", "fewest"):
            value = getattr(self, name)
            check(isinstance(value, int) and value >= 1, name, value, "a whole number above 0")
        check(0 <= self.threshold <= 1, "threshold", self.threshold, "in [0, 1]")
        longest, shortest = self.longest_side, self.shortest_side
        check(longest >= shortest, "longest_side", longest, f"at least {shortest}, the shortest")
        check(self.most >= self.fewest, "most", self.most, f"at least fewest={self.fewest}")

    def detect(self, images: Sequence[Image]) -> Regions:
        """The regions of images (bytes, or floats in [0, 1]), the most confident ones first.

        Boxes are in pixels of the images given. ValueError for no image.
        """
        if not len(images):
            raise ValueError("images must not be empty")
        return collate_regions([self._regions(image) for image in images])

    def names(self, regions: Regions) -> list[list[str]]:
        """The names of the classes of each image's regions: OSCAR's tags."""
        rows = zip(regions.classes, regions.mask, strict=True)
        return [[self.classes[c] for c in classes[valid].tolist()] for classes, valid in rows]

    def _regions(self, image: Image) -> Regions:
        tokens = self._tokens(image)
        confidences, classes = tokens.distributions[:, 1:].max(1)
        rows = self._chosen(confidences)
        height, width = image.shape[1:]
        return Regions(
            features=tokens.features[rows][None],
            boxes=tokens.boxes[rows][None] * torch.tensor([width, height] * 2),
            image_sizes=torch.tensor([[float(width), float(height)]]),
            mask=torch.ones(1, len(rows), dtype=torch.bool),
            classes=classes[rows][None],
            class_distributions=tokens.distributions[rows][None],
            confidences=confidences[rows][None],
        )

    def _chosen(self, confidences: Float[Tensor, " tokens"]) -> Int64[Tensor, " regions"]:
        order = confidences.argsort(descending=True, stable=True)
        confident = int((confidences >= self.threshold).sum())
        return order[: min(max(confident, self.fewest), self.most)]

    @torch.no_grad()
    def _tokens(self, image: Image) -> _Tokens:
        device = next(self.network.parameters()).device
        pixels = normalize(self._resized(image)[None], IMAGENET_MEAN, IMAGENET_STD).to(device)
        found = self.network(pixel_values=pixels)
        boxes = found.pred_boxes[0].float().cpu()
        features = found.last_hidden_state[0, -len(boxes) :].float().cpu()
        probabilities = found.logits[0].float().softmax(-1).cpu()
        # "No object" stands last there, and first in ``Regions``.
        return _Tokens(features, _corners(boxes), probabilities.roll(1, dims=1))

    def _resized(self, image: Image) -> Image:
        sides = image.shape[1:]
        scale = min(self.shortest_side / min(sides), self.longest_side / max(sides))
        return resize(image, tuple(max(1, round(side * scale)) for side in sides))


def load_detector(source: str | Path, **settings: object) -> Detector:
    """The detector in a folder of ``transformers``, or of that name on the Hugging Face Hub.

    The smallest published one is ``"hustvl/yolos-tiny"``. ``settings`` are further fields of
    ``Detector``. ValueError if it cannot be read or is of another kind; ImportError without
    ``transformers``.
    """
    library, name = import_transformers("a detector"), str(source)
    if not Path(name).is_dir() and name.count("/") != 1:
        raise ValueError(f"there is no detector {name!r}: name a folder or 'owner/name' on the Hub")
    try:
        config = library.AutoConfig.from_pretrained(name)
        known = config.model_type in KINDS
        kind = library.AutoModelForObjectDetection
        network = kind.from_pretrained(name, use_safetensors=True) if known else None
    except Exception as error:  # of many kinds, and of many lines
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"the detector {name!r} cannot be read ({reason})") from None
    check(known, "detector", config.model_type, "one of " + ", ".join(map(repr, KINDS)))
    classes = tuple(config.id2label[c] for c in range(config.num_labels))
    return Detector(network.eval(), classes, **settings)


def _corners(boxes: Float[Tensor, "tokens 4"]) -> Float[Tensor, "tokens 4"]:
    """From center and size, in fractions of the image, to corners that lie within it."""
    center, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([center - half, center + half], dim=1).clamp(0, 1)
