"""What is put on top of a system for a task: the same small head for every system."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.models.checks import check
from mmlab.nn.heads import BertClassifier
from mmlab.nn.region_locations import shared_area
from mmlab.tasks.downstream.items import FORMS, Items
from mmlab.tasks.downstream.reading import Reading

HIDDEN_DIM = 256
"""The width of every head, whatever the width of the system below."""


class TaskHead(nn.Module):
    """From readings of all views of some items to a logit for each option.

    - ``"classes"``: one hidden layer on the joint vectors of all views side by side, then the
      classes (so ViLT joins NLVR2's two pictures, section 4.3).
    - ``"choice"``: the same layer gives each view one number; they compete in a softmax (VCR in
      ViLBERT, section 3.2). Items may then have more or fewer views than it was made for.
    - ``"boxes"``: a ``BoxPointer``.

    ValueError for another form, too few classes, or boxes in several views.
    """

    def __init__(
        self, reader_dim: int, token_dim: int, form: str, num_views: int, num_classes: int = 0
    ):
        super().__init__()
        check(form in FORMS, "form", form, f"one of {', '.join(FORMS)}")
        self.form = form
        if form == "boxes":
            check(num_views == 1, "num_views", num_views, "1 where boxes are asked for")
            self.pointer = BoxPointer(reader_dim, token_dim)
        elif form == "classes":
            check(num_classes >= 2, "num_classes", num_classes, "at least 2")
            self.classifier = BertClassifier(reader_dim * num_views, HIDDEN_DIM, num_classes)
        else:
            check(num_views >= 2, "num_views", num_views, "at least 2 to choose from")
            self.classifier = BertClassifier(reader_dim, HIDDEN_DIM, 1)

    def forward(self, reading: Reading, items: Items) -> Float[Tensor, "items options"]:
        """Logits; ``reading`` has the views of the first item first, then those of the second …"""
        if self.form == "boxes":
            device = reading.joint.device
            return self.pointer(reading, items.boxes.to(device), items.box_valid.to(device))
        if self.form == "classes":
            return self.classifier(reading.joint.reshape(len(items), -1))
        return self.classifier(reading.joint).reshape(len(items), items.num_views)


class BoxPointer(nn.Module):
    """Points at one of several boxes: a query from the pair, a key from what is in each box.

    The key sees the image tokens in the box and the four numbers of the box; the score is their
    scaled dot product.
    """

    def __init__(self, reader_dim: int, token_dim: int):
        super().__init__()
        self.query = nn.Linear(reader_dim, HIDDEN_DIM)
        self.key = nn.Linear(token_dim + 4, HIDDEN_DIM)

    def forward(
        self,
        reading: Reading,
        boxes: Float[Tensor, "batch boxes 4"],
        box_valid: Bool[Tensor, "batch boxes"],
    ) -> Float[Tensor, "batch boxes"]:
        """A logit for each box, -inf for those that only fill up."""
        inside = overlap_weights(boxes, reading.boxes, reading.valid) @ reading.tokens
        keys = self.key(torch.cat([inside, boxes], dim=-1))
        scores = (keys @ self.query(reading.joint)[..., None])[..., 0] / math.sqrt(HIDDEN_DIM)
        return scores.masked_fill(~box_valid, -math.inf)


def overlap_weights(
    boxes: Float[Tensor, "batch boxes 4"],
    places: Float[Tensor, "batch places 4"],
    valid: Bool[Tensor, "batch places"],
) -> Float[Tensor, "batch boxes places"]:
    """How much of each box lies in each place, scaled to sum to 1; 0 where nothing overlaps.

    For patches, which do not overlap each other, that is the share of the box in each.
    """
    shared = shared_area(boxes, places) * valid[:, None]
    total = shared.sum(-1, keepdim=True)
    return shared / total.clamp(min=torch.finfo(total.dtype).tiny)
