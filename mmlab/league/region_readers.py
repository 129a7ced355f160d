"""Systems that are told what a detector sees, as readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlab.datasets import Scenes
from mmlab.datasets.regions import Regions
from mmlab.datasets.scenes.dataset import SceneConfig
from mmlab.models.checks import check
from mmlab.models.vilbert import ViLBERT, ViLBERTFeatures
from mmlab.models.visualbert import VisualBERTFeatures
from mmlab.nn.region_locations import corner_locations
from mmlab.nn.single_stream import JointFeatures
from mmlab.tasks.downstream.reading import Reader, Reading
from mmlab.tasks.region_fusion import RegionModel
from mmlab.training.recipe import Recipe
from mmlab.training.region_systems import load_trained_regions
from mmlab.training.system import image_size

READ_REGIONS = ("vilbert", "lxmert", "uniter", "oscar", "visualbert")
"""Systems that ``RegionReader`` reads."""
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
"""The box of everything, as fractions of the image."""


def check_size(dataset: Scenes, wanted: int) -> None:
    """ValueError for scenes of another size than a reader is shown."""
    found = dataset.config.image_size
    check(found == wanted, "image_size of the scenes", found, f"the {wanted} of this system")


class RegionReader(Reader):
    """A system that is told the regions of a detector: those of ``READ_REGIONS``.

    Its "images" are ``Regions``. Each data set is looked at once; what was seen is kept.
    """

    def __init__(self, model: RegionModel, image_size: int):
        super().__init__()
        self.network, self.tokenizer, self.model = model.network, model.tokenizer, model
        self.image_size = image_size
        self.dim, self.token_dim = _widths(model.network)
        self._seen: dict[SceneConfig, Regions] = {}

    @classmethod
    def load(cls, recipe: Recipe, weights: str | Path) -> RegionReader:
        """The reader that a finished run of ``recipe`` left, in evaluation mode."""
        model = load_trained_regions(recipe, weights)
        return cls(model, image_size(recipe)).eval()

    def prepared(self, dataset: Scenes, rows: Int64[Tensor, " batch"]) -> Regions:
        """What the detector of pretraining tells. ValueError for scenes of another size."""
        check_size(dataset, self.image_size)
        if dataset.config not in self._seen:
            self._seen[dataset.config] = self.model.prepared(dataset)
        return self._seen[dataset.config].select(rows)

    def tokens(self, texts: Sequence[str]) -> Int64[Tensor, "batch tokens"]:
        """As in ``Reader``; OSCAR's tags come later. ValueError for an empty text."""
        return self.model.tokens(texts)

    def forward(self, images: Regions, input_ids: Int64[Tensor, "batch tokens"]) -> Reading:
        """As in ``Reader``; the places are the regions after the last block, which saw the text.

        That of ViLBERT for the whole image is left out: it would lie in every box as much as the
        region that fills it.
        """
        pairs = self.model.raw_pairs(images, input_ids)
        features, device = self.model.features(pairs), self.model.device
        boxes = corner_locations(pairs["boxes"], pairs["image_sizes"]).to(device)
        regions = features.regions[:, isinstance(self.network, ViLBERT) :]
        joint = _joint(self.network, features)
        return Reading(joint, regions, boxes, pairs["region_valid"].to(device))

    def blank(self, images: Regions) -> Regions:
        """One region a picture, the whole of it: background, with a feature of zeros and no tag."""
        fields = {name: value for name, value in vars(images).items() if value is not None}
        sizes = fields.pop("image_sizes")
        told = {name: torch.zeros_like(value[:, :1]) for name, value in fields.items()}
        told["mask"] = torch.ones_like(told["mask"])
        told["boxes"] = sizes.new_tensor(WHOLE_IMAGE) * sizes.repeat(1, 2)[:, None]
        if "class_distributions" in told:
            told["class_distributions"][..., 0] = 1  # Column 0 is the background, which has no tag.
        return Regions(image_sizes=sizes, **told)


def _widths(network: nn.Module) -> tuple[int, int]:
    """Those of the vector of the pair and of a region."""
    config = network.config
    if isinstance(network, ViLBERT):
        return config.fusion_dim, config.region_dim
    return config.dim, config.dim


def _joint(
    network: nn.Module, features: JointFeatures | ViLBERTFeatures | VisualBERTFeatures
) -> Float[Tensor, "batch dim"]:
    """The pooled vector; of ViLBERT's two streams the product, as its own heads take it."""
    return network.fuse(features) if isinstance(network, ViLBERT) else features.pooled
