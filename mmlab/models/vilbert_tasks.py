"""ViLBERT after pre-training: questions, choices, entailment, pairs of images, referring phrases.

Lu et al. 2019 (arXiv 1908.02265), section 3.2, and Lu et al. 2020, "12-in-1" (arXiv 1912.02315);
the losses as in facebookresearch/vilbert-multi-task (``vilbert/task_utils.py``).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.models.vilbert import WHOLE_IMAGE, ViLBERT, ViLBERTFeatures, mean_feature
from mmlab.nn.region_locations import Boxes, ImageSizes, box_iou, corner_area_locations

TASKS = {
    "vqa": 1,
    "genome_qa": 2,
    "visual_dialog": 3,
    "visual7w": 4,
    "vcr_answer": 5,
    "vcr_rationale": 6,
    "coco_retrieval": 7,
    "flickr30k_retrieval": 8,
    "refcoco": 9,
    "refcoco+": 10,
    "refcocog": 11,
    "nlvr2": 12,
    "snli_ve": 13,
    "guesswhat": 14,
    "gqa": 15,
    "foil": 16,
    "guesswhat_pointing": 17,
    "flickr30k_grounding": 18,
}
"""The numbers of task tokens (``vilbert_tasks.yml``)."""

TEXTS = ("input_ids", "attention_mask", "types")
REGIONS = ("features", "locations", "region_valid")
"""What a batch may tell of its texts and images."""

HIT = 0.5
"""The overlap from which on a region is the right one."""
NUM_NEIGHBOURS = 100
"""Among how many similar images a hard caption is looked for."""


def vilbert_for(
    model: ViLBERT,
    heads: tuple[str, ...],
    num_classes: int = 0,
    num_gqa_classes: int = 0,
    num_tasks: int = 0,
) -> ViLBERT:
    """A ViLBERT for fine-tuning: the pretrained ``model`` with these ``heads``.

    Heads that ``model`` has, of the same size, go on as they are; others, and task tokens that it
    lacks, start fresh.
    """
    sizes = {"num_classes": num_classes, "num_gqa_classes": num_gqa_classes}
    fresh = ViLBERT(replace(model.config, heads=heads, num_tasks=num_tasks, **sizes))
    own, state = fresh.state_dict(), model.state_dict()
    fitting = {key: t for key, t in state.items() if key in own and own[key].shape == t.shape}
    fresh.load_state_dict(own | fitting)
    return fresh


class _Task(nn.Module):
    """A ``ViLBERT`` with the head of one task, told by its name in ``TASKS`` if it has task tokens.

    ValueError for a network without the head, or with task tokens and no known ``task``.
    """

    def __init__(self, network: ViLBERT, head: str, task: str):
        super().__init__()
        network.head(head)
        self.network = network
        self.task_id = None
        if network.config.num_tasks:
            if task not in TASKS:
                known = ", ".join(map(repr, TASKS))
                raise ValueError(f"task must be one of {known}, got {task!r}")
            self.task_id = TASKS[task]

    def features(self, batch: dict[str, Tensor]) -> ViLBERTFeatures:
        """Those of ``batch``, by the names in ``TEXTS`` and ``REGIONS``; only masks may be missing.

        So may types, which are 0 then.
        """
        ids, task_ids = batch["input_ids"], None
        if self.task_id is not None:
            task_ids = ids.new_full((len(ids),), self.task_id)
        return self.network(
            ids,
            batch["features"],
            batch["locations"],
            batch.get("attention_mask"),
            batch.get("region_valid"),
            batch.get("types"),
            task_ids,
        )


class ViLBERTQuestionAnswering(_Task):
    """Learning to answer questions (ViLBERT, section 3.2): VQA, or GQA with ``head="gqa"``."""

    def __init__(self, network: ViLBERT, head: str = "answer", task: str = "vqa"):
        super().__init__(network, head, task)
        self.head = head

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy with ``"scores"``, how right each answer is (0 to 1), summed.

        The mean is over the batch.
        """
        features, scores = self.features(batch), batch["scores"]
        answer = self.network.gqa_logits if self.head == "gqa" else self.network.answer_logits
        loss = F.binary_cross_entropy_with_logits(answer(features), scores) * scores.shape[1]
        return {"answers": loss}


class ViLBERTChoice(_Task):
    """Learning which of some pairs is the right one: VCR's answers, captions and images.

    Flickr30k is a choice among four (see ``four_way_choice``), VCR as well: there the texts are the
    question with each answer, or the question and its answer with each rationale, and the answer
    has type 1 (ViLBERT, section 3.2; the task ``"vcr_answer"`` or ``"vcr_rationale"``).
    """

    def __init__(self, network: ViLBERT, task: str = "flickr30k_retrieval"):
        super().__init__(network, "rank", task)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``, the right one's place; the first if there are none.

        ``"input_ids"``, ``"attention_mask"`` and ``"types"`` have shape (batch, choices, tokens);
        regions have choices on that axis, too, or are the same for all.
        """
        scores = self.scores(batch)
        first = scores.new_zeros(len(scores), dtype=torch.int64)
        return {"choices": F.cross_entropy(scores, batch.get("labels", first))}

    def scores(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch choices"]:
        """How well each pair fits."""
        count = batch["input_ids"].shape[1]
        shared = REGIONS if batch["features"].ndim == 3 else ()
        flat = {
            name: batch[name].repeat_interleave(count, 0)
            if name in shared
            else batch[name].flatten(0, 1)
            for name in (*TEXTS, *REGIONS)
            if name in batch
        }
        scores = self.network.rank_scores(self.features(flat))
        return scores.unflatten(0, (-1, count))


class ViLBERTReasoning(_Task):
    """Learning whether a text is true of two images (NLVR2; 12-in-1)."""

    def __init__(self, network: ViLBERT, task: str = "nlvr2"):
        super().__init__(network, "pair", task)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy of both outputs with ``"labels"``, 0 or 1; the mean over all.

        Regions have shape (batch, 2, regions, …), texts (batch, tokens): each image is looked at
        with the whole text.
        """
        flat = {
            name: batch[name].repeat_interleave(2, 0)
            if name in TEXTS
            else batch[name].flatten(0, 1)
            for name in (*TEXTS, *REGIONS)
            if name in batch
        }
        logits = self.network.pair_logits(self.features(flat))
        return {"answers": _class_loss(logits, batch["labels"])}


class ViLBERTEntailment(_Task):
    """Learning whether an image entails a text, contradicts it, or neither (SNLI-VE; 12-in-1)."""

    def __init__(self, network: ViLBERT, task: str = "snli_ve"):
        super().__init__(network, "entailment", task)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy of the three outputs with ``"labels"``; the mean over all."""
        logits = self.network.entailment_logits(self.features(batch))
        return {"answers": _class_loss(logits, batch["labels"])}


class ViLBERTGrounding(_Task):
    """Learning which region a phrase speaks of (RefCOCO+; ViLBERT, section 3.2)."""

    def __init__(self, network: ViLBERT, task: str = "refcoco+"):
        super().__init__(network, "grounding", task)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy with ``"targets"`` (see ``grounding_targets``), summed over regions.

        The mean is over the batch.
        """
        logits = self.network.grounding_logits(self.features(batch))
        loss = F.binary_cross_entropy_with_logits(logits, batch["targets"])
        return {"grounding": loss * logits.shape[1]}


def grounding_targets(
    boxes: Boxes,
    image_sizes: ImageSizes,
    true_boxes: Float[Tensor, "batch 4"],
    region_valid: Bool[Tensor, "batch regions"] | None = None,
) -> Float[Tensor, "batch 1+regions"]:
    """The overlap of each region with the true box, 0 where it is below a half.

    The first is that of the whole image, which the model looks at as well. Boxes are in pixels, x2
    and y2 the last ones inside (``vilbert/datasets/refer_expression_dataset.py``).
    """
    sizes = image_sizes.repeat(1, 2)[:, None]
    whole = sizes * boxes.new_tensor(WHOLE_IMAGE[:4])
    overlaps = box_iou(torch.cat([whole, boxes], dim=1), true_boxes[:, None], pixel=1).squeeze(-1)
    if region_valid is not None:
        overlaps = overlaps * F.pad(region_valid, (1, 0), value=True)
    return overlaps.where(overlaps >= HIT, 0.0)


def grounded(
    logits: Float[Tensor, "batch places"], targets: Float[Tensor, "batch places"]
) -> Bool[Tensor, " batch"]:
    """Whether the best-scored region overlaps the true box by more than a half (RefCOCO+)."""
    return targets.gather(1, logits.argmax(1, keepdim=True)).squeeze(1) > HIT


def four_way_choice(pairs: dict[str, Tensor], hard: Int64[Tensor, " batch"]) -> dict[str, Tensor]:
    """A batch for ``ViLBERTChoice``: the true pair, then three false ones (section 3.2).

    They are the image with the caption of another one, another image with the caption, and the
    image with a hard caption, that of row ``hard`` (see ``similar_images``). ``pairs`` are those of
    ``vilbert_lesson``, with the other image's regions under the same names after ``"other_"``.
    """
    batch = {}
    for name, strange in (("input_ids", "other_ids"), ("attention_mask", "other_mask")):
        own, false = _same_length(pairs[name], pairs[strange])
        batch[name] = torch.stack([own, false, own, own[hard]], dim=1)
    regions, others = _regions(pairs), _regions(pairs, "other_")
    for name in regions:
        own, false = _same_length(regions[name], others[name])
        batch[name] = torch.stack([own, own, false, own], dim=1)
    return batch


def _regions(pairs: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """What the network wants to know of the regions."""
    boxes, sizes = pairs[f"{prefix}boxes"], pairs[f"{prefix}image_sizes"]
    told = {name: pairs[prefix + name] for name in ("features", "region_valid")}
    return told | {"locations": corner_area_locations(boxes, sizes)}


def similar_images(
    features: Float[Tensor, "batch regions feature_dim"],
    region_valid: Bool[Tensor, "batch regions"] | None = None,
    count: int = NUM_NEIGHBOURS,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, " batch"]:
    """For each image another one, drawn among the ``count`` that are most like it.

    Images are compared by the cosine of their mean features. ValueError for a single image.
    """
    if len(features) < 2:
        raise ValueError("a single image has no image like it; give two or more")
    means = F.normalize(mean_feature(features, region_valid), dim=1)
    likeness = (means @ means.T).fill_diagonal_(-torch.inf)
    nearest = likeness.topk(min(count, len(means) - 1), dim=1).indices
    drawn = torch.randint(nearest.shape[1], (len(means), 1), generator=generator)
    return nearest.gather(1, drawn.to(nearest.device)).squeeze(1)


def _same_length(*tensors: Tensor) -> list[Tensor]:
    """Padded with zeros to the longest on axis 1; ``F.pad`` counts axes from the last one."""
    longest = max(t.shape[1] for t in tensors)
    return [F.pad(t, (0, 0) * (t.ndim - 2) + (0, longest - t.shape[1])) for t in tensors]


def _class_loss(
    logits: Float[Tensor, "batch classes"], labels: Int64[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Each class is a yes-or-no question of its own, as in 12-in-1."""
    return F.binary_cross_entropy_with_logits(
        logits, F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    )
