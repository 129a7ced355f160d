"""ViLBERT, LXMERT, UNITER, OSCAR, VisualBERT, Unicoder-VL and VL-BERT in the engine.

They read what the toy detector tells of scenes, see ``DETECTOR``; all else that is random in their
pretraining is drawn by the lessons of their papers. Questions are learned afterwards, by a model
with the head ``"answer"`` alone; LXMERT's pretraining asks some, too, if it has that head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from mmlab.datasets.regions import ATTRIBUTES, ToyDetector
from mmlab.datasets.scenes import SHAPES
from mmlab.datasets.tokenizer import read_tokenizer
from mmlab.hub import create_model, model_config
from mmlab.models.checks import check
from mmlab.models.lxmert import (
    MASKED_SHARE,
    REGION_LOSSES,
    LXMERTPretraining,
    lxmert_decays,
    lxmert_lesson,
)
from mmlab.models.lxmert_tasks import LXMERTQuestionAnswering
from mmlab.models.oscar import OscarPretraining, Pollution, append_tags, oscar_lesson
from mmlab.models.oscar_tasks import OscarQuestionAnswering
from mmlab.models.unicoder_vl import UnicoderVLPretraining, unicoder_vl_lesson
from mmlab.models.uniter import IN_DOMAIN_POOLS, UNITERPretraining, uniter_decays, uniter_lesson
from mmlab.models.uniter_tasks import UNITERQuestionAnswering
from mmlab.models.vilbert import BERT_PLACES, ViLBERTPretraining, vilbert_decays, vilbert_lesson
from mmlab.models.vilbert_tasks import ViLBERTQuestionAnswering
from mmlab.models.visualbert import (
    VisualBERT,
    VisualBERTPretraining,
    append_locations,
    special_visual_initialize,
    visualbert_lesson,
)
from mmlab.models.visualbert_tasks import VisualBERTQuestionAnswering
from mmlab.models.vlbert import (
    VLBERTPretraining,
    VLBERTQuestionAnswering,
    ask,
    vlbert_lesson,
    with_whole_image,
)
from mmlab.nn.region_locations import (
    corner_area_locations,
    corner_locations,
    corner_size_area_locations,
    corner_size_locations,
)
from mmlab.tasks.paired_scenes import ANSWERS
from mmlab.tasks.region_fusion import Entries, RegionModel, load_regions
from mmlab.tasks.region_scenes import SHARE, Lesson, Pairs, RegionScenes, region_scenes
from mmlab.training.optim import Rule, decays
from mmlab.training.pair_data import words_and_answers
from mmlab.training.recipe import Recipe
from mmlab.training.starting import Places, has_parts, start_with_parts
from mmlab.training.system import (
    REGION_IMAGE_SIZE,
    System,
    config_of,
    load_started,
    overrides,
    pretraining_settings,
    start_with,
    started_tokenizer,
)

Settings = Mapping[str, object]

DETECTOR = {
    "missed": 0.05,
    "wrong_class": 0.05,
    "wrong_attribute": 0.05,
    "overlapping": 0.3,
    "jitter": 0.05,
    "image_size": REGION_IMAGE_SIZE,
}
"""What ``Recipe.pretraining`` may set of the ``ToyDetector``, and of the scenes that it sees."""

EXTRA_NUMBERS = 6
"""What VisualBERT's ``locations`` append to a feature."""


@dataclass(frozen=True)
class Manner:
    """What one of these systems has of its own.

    - ``lesson``, ``module``: its pretraining, of which ``lesson_settings`` and ``module_settings``
      may be set; ``answering``: its module for questions.
    - ``entries``: from a recipe to what makes the arguments of its network of raw pairs.
    - ``asked``: which loss is a mean over what, see ``RegionScenes``.
    - ``given``: fields of its configuration that the detector tells.
    - ``matched``: the output of its matching head that means "fits".
    - ``places``: where a BERT goes, with which its paper begins; without any it begins afresh.
    - ``texts``: how many texts share its context.
    """

    lesson: Lesson
    module: Callable[..., nn.Module]
    answering: Callable[[nn.Module], nn.Module]
    entries: Callable[[Recipe], Entries]
    asked: Mapping[str, str]
    lesson_settings: Settings = field(default_factory=dict)
    module_settings: Settings = field(default_factory=dict)
    given: Settings = field(default_factory=dict)
    decays: Rule = decays
    matched: int = 1
    texts: int = 1
    places: Places = ()

    @property
    def settings(self) -> dict[str, object]:
        """All that ``Recipe.pretraining`` may set, with the usual values."""
        return {**DETECTOR, **self.lesson_settings, **self.module_settings}


# From raw pairs to what a network takes.


def located_entries(pairs: Pairs, locate: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Words and regions, with the locations of one paper."""
    locations = locate(pairs["boxes"], pairs["image_sizes"])
    return {**plain_entries(pairs), "locations": locations}


def plain_entries(pairs: Pairs, locations: bool = False) -> dict[str, Tensor]:
    """Words and regions; with ``locations`` these are part of the features (VisualBERT)."""
    features = pairs["features"]
    if locations:
        features = append_locations(features, pairs["boxes"], pairs["image_sizes"])
    return {
        "input_ids": pairs["input_ids"],
        "text_valid": pairs["attention_mask"],
        "features": features,
        "region_valid": pairs["region_valid"],
    }


def tagged_entries(pairs: Pairs, context_length: int, use_tags: bool) -> dict[str, Tensor]:
    """Words with the detected classes behind them, and regions (OSCAR)."""
    made = located_entries(pairs, corner_size_locations)
    if not use_tags:
        return made
    names = ("input_ids", "attention_mask", "tag_ids", "tag_mask")
    text = append_tags(*(pairs[name] for name in names), context_length)
    return made | {"input_ids": text.ids, "text_valid": text.valid, "token_types": text.types}


def whole_image_entries(pairs: Pairs, asks: bool) -> dict[str, Tensor]:
    """Words, the whole image and regions; a question has a [MASK] behind it (VL-BERT)."""
    names = ("features", "boxes", "image_sizes", "region_valid")
    features, locations, valid = with_whole_image(*(pairs[name] for name in names))
    made = {"features": features, "locations": locations, "region_valid": valid}
    ids, mask = pairs["input_ids"], pairs["attention_mask"]
    if not asks:
        return {**made, "input_ids": ids, "text_valid": mask}
    sep_id = ids[0, mask[0].sum() - 1].item()
    text = ask(ids, mask, pairs["mask_id"].item(), sep_id)
    return {"text_valid": text.pop("attention_mask"), **text, **made}


def _located(locate: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Recipe], Entries]:
    return lambda recipe: partial(located_entries, locate=locate)


def _plain(recipe: Recipe) -> Entries:
    return partial(plain_entries, locations=_settings(recipe)["locations"])


def _tagged(recipe: Recipe) -> Entries:
    length, use_tags = config_of(recipe).context_length, _settings(recipe)["use_tags"]
    return partial(tagged_entries, context_length=length, use_tags=use_tags)


def _whole_image(recipe: Recipe) -> Entries:
    return partial(whole_image_entries, asks=heads_of(recipe) == ("answer",))


def question_lesson(
    pairs: Pairs,
    mask_id: int,
    vocab_size: int,
    special_ids: tuple[int, ...],
    generator: Generator,
    *,
    entries: Entries,
) -> dict[str, Tensor]:
    """Each image's question and the ``"scores"`` of its answers; nothing is left to draw."""
    questions = {"input_ids": pairs["question_ids"], "attention_mask": pairs["question_mask"]}
    made = entries(pairs | questions | {"mask_id": torch.tensor(mask_id)})
    scores = F.one_hot(pairs["answers"], len(ANSWERS)).float()
    return {"attention_mask": made.pop("text_valid"), "scores": scores, **made}


def tagged_lesson(*given: object, context_length: int, **settings: object) -> dict[str, Tensor]:
    """``oscar_lesson`` with the fields of its ``Pollution`` one by one."""
    share = settings.pop("question_share")
    more = {"context_length": context_length, "question_share": share}
    return oscar_lesson(*given, pollution=Pollution(**settings), **more)


_TRUNK, _WORDS = ("trunk.", ""), ("heads.words.", "words.")
UNITER_PLACES = (("text_embeddings.", "embeddings."), _TRUNK, _WORDS)
VISUALBERT_PLACES = (("embeddings.", "embeddings."), _TRUNK, _WORDS)
OSCAR_PLACES = (("embeddings.", "embeddings."), _TRUNK, ("heads.words.transform.", "words."))

MANNERS: dict[str, Manner] = {
    "vilbert": Manner(
        vilbert_lesson,
        ViLBERTPretraining,
        ViLBERTQuestionAnswering,
        _located(corner_area_locations),
        asked={"masked_words": "labels", "masked_regions": "masked_regions"},
        lesson_settings={"objective": 0},
        given={"num_region_classes": len(SHAPES) + 1},
        decays=vilbert_decays,
        matched=0,
        places=BERT_PLACES,
    ),
    "lxmert": Manner(
        lxmert_lesson,
        LXMERTPretraining,
        LXMERTQuestionAnswering,
        _located(corner_locations),
        asked={
            "masked_words": "labels",
            "masked_region_features": "region_valid",
            "masked_region_classes": "region_valid",
            "masked_region_attributes": "region_valid",
            "answers": "answers",
        },
        lesson_settings={"question_share": 1 / 3},
        module_settings={"region_losses": REGION_LOSSES, "region_weight": 1 / MASKED_SHARE},
        given={"num_region_classes": len(SHAPES), "num_attributes": len(ATTRIBUTES)},
        decays=lxmert_decays,
    ),
    "uniter": Manner(
        uniter_lesson,
        UNITERPretraining,
        UNITERQuestionAnswering,
        _located(corner_size_area_locations),
        asked={
            "masked_words": "labels",
            "masked_region_features": "masked_regions",
            "masked_region_distributions": "masked_regions",
            "masked_region_classes": "masked_regions",
        },
        lesson_settings={"pool": IN_DOMAIN_POOLS["coco"], "joint": False},
        module_settings={"alignment_weight": 0.1, "iterations": 50},
        given={"num_region_classes": len(SHAPES) + 1},
        decays=uniter_decays,
        places=UNITER_PLACES,
    ),
    "oscar": Manner(
        tagged_lesson,
        OscarPretraining,
        OscarQuestionAnswering,
        _tagged,
        asked={"masked_words": "labels"},
        lesson_settings={
            "textb_sample_mode": 0,
            "texta_false_prob": 0.0,
            "mask_loss_for_unmatched": True,
            "use_tags": True,
            "question_share": 0.0,
        },
        matched=0,
        places=OSCAR_PLACES,
    ),
    "visualbert": Manner(
        visualbert_lesson,
        VisualBERTPretraining,
        VisualBERTQuestionAnswering,
        _plain,
        asked={"masked_words": "labels"},
        lesson_settings={"locations": False},
        texts=2,
        places=VISUALBERT_PLACES,
    ),
    "unicoder-vl": Manner(
        unicoder_vl_lesson,
        UnicoderVLPretraining,
        UNITERQuestionAnswering,
        _located(corner_area_locations),
        asked={"masked_words": "labels", "masked_region_classes": "masked_regions"},
        given={"num_region_classes": len(SHAPES)},
        places=UNITER_PLACES,
    ),
    "vlbert": Manner(
        vlbert_lesson,
        VLBERTPretraining,
        VLBERTQuestionAnswering,
        _whole_image,
        asked={"masked_words": "labels", "masked_regions": "asked_regions"},
        given={"num_region_classes": len(SHAPES) + 1},
    ),
}


# Data and modules of a recipe.


def heads_of(recipe: Recipe) -> tuple[str, ...]:
    """The heads of the recipe's model; ``"answer"`` alone means that it learns from questions.

    ValueError for heads that no lesson of scenes is for.
    """
    heads = recipe.model.get("heads", model_config(recipe.model_name).heads)
    unlearned = sorted(set(heads) - {"words", "match", "features", "classes", "regions", "answer"})
    check(not unlearned, "heads", heads, f"without {', '.join(unlearned)}: no lesson is for it")
    asks_too = recipe.system == "lxmert"
    alone = "'answer' alone, as questions are learned after pretraining"
    check("answer" not in heads or heads == ("answer",) or asks_too, "heads", heads, alone)
    return heads


def scenes_with_regions(recipe: Recipe) -> RegionScenes:
    """The scenes that a model of regions trains on.

    ValueError if the recipe names other data, or sets what only classifiers have.
    """
    allowed = f"scenes: {recipe.system} learns from what a detector tells of them"
    check(recipe.data == "scenes", "data", recipe.data, allowed)
    for name in ("target", "label_smoothing"):
        value = getattr(recipe, name)
        check(not value, name, value, f"left out: {recipe.system} learns from captions")
    manner, config, heads = MANNERS[recipe.system], config_of(recipe), heads_of(recipe)
    target = getattr(config, "region_target", "")
    # The false features of its contrast are numbered in a batch, which processes would cut.
    check(target != "contrast", "region_target", target, "'classes' or 'features' in the engine")
    tokenizer = started_tokenizer(recipe)
    if recipe.tokenizer:
        tokenizer = read_tokenizer(recipe.tokenizer)
    data = region_scenes(
        _settings(recipe)["image_size"],
        config.context_length // manner.texts,
        recipe.num_images,
        detector_of(recipe),
        _lesson(recipe),
        manner.asked,
        heads,
        recipe.seed,
        tokenizer,
        recipe.most_objects,
    )
    source, pad_id = recipe.tokenizer or recipe.start, data.tokenizer.pad_id
    check(pad_id == 0, "tokenizer", source, f"one that pads with 0, not {pad_id}")
    # What a lesson cannot do, it tells at its first batch: here, and not in the middle of a run.
    data.batch(torch.arange(2), slice(None), Generator().manual_seed(recipe.seed))
    return data


def _settings(recipe: Recipe) -> dict[str, object]:
    return pretraining_settings(recipe, MANNERS[recipe.system].settings)


def detector_of(recipe: Recipe) -> ToyDetector:
    """The detector that tells the model of a recipe what there is.

    ValueError for rates that cannot be.
    """
    settings, config = _settings(recipe), config_of(recipe)
    rates = {name: settings[name] for name in DETECTOR if name != "image_size"}
    appended = EXTRA_NUMBERS if settings.get("locations") else 0
    return ToyDetector(**rates, feature_dim=config.feature_dim - appended, seed=recipe.seed)


def entries_of(recipe: Recipe) -> Entries:
    """From raw pairs to the arguments of the recipe's network."""
    return MANNERS[recipe.system].entries(recipe)


def _lesson(recipe: Recipe) -> Lesson:
    if heads_of(recipe) == ("answer",):
        return partial(question_lesson, entries=entries_of(recipe))
    manner, settings = MANNERS[recipe.system], _settings(recipe)
    switches = {name: settings[name] for name in manner.lesson_settings}
    if recipe.system == "oscar":
        switches["context_length"] = config_of(recipe).context_length
    return partial(manner.lesson, **switches)


class RegionLessons(nn.Module):
    """What a model of regions learns, in a batch that processes share; ``network`` is the model."""

    def __init__(self, lessons: nn.Module):
        super().__init__()
        self.network = lessons.network
        # Its only weights are those of the network, which a checkpoint is to hold once.
        self._lessons = (lessons,)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the lessons, each times its share: see ``RegionScenes.batch``."""
        losses = self._lessons[0].losses(batch)
        return {name: loss * batch.get(SHARE + name, 1) for name, loss in losses.items()}


def _module(recipe: Recipe, data: RegionScenes) -> nn.Module:
    manner, heads, settings = MANNERS[recipe.system], heads_of(recipe), _settings(recipe)
    given = {"vocab_size": data.tokenizer.vocab_size, **manner.given, **_classes(recipe)}
    given["num_classes"] = len(data.answers) if "answer" in heads else 0
    network = create_model(recipe.model_name, **{**overrides(recipe, *given), **given})
    if recipe.start:
        start_with(network, load_started(recipe), recipe)
    elif has_parts(recipe):
        start_with_parts(network, recipe, manner.places)
        if isinstance(network, VisualBERT):
            special_visual_initialize(network)
    if heads == ("answer",):
        return RegionLessons(manner.answering(network))
    switches = {name: settings[name] for name in manner.module_settings}
    return RegionLessons(manner.module(network, **switches))


def _classes(recipe: Recipe) -> dict[str, int]:
    """The outputs of OSCAR's matching head, which its pollution tells."""
    if recipe.system != "oscar":
        return {}
    settings = _settings(recipe)
    names = MANNERS["oscar"].lesson_settings.keys() - {"question_share"}
    pollution = Pollution(**{name: settings[name] for name in names})
    return {"num_contrast_classes": pollution.num_classes}


def load_trained_regions(recipe: Recipe, file: str | Path) -> RegionModel:
    """The model of a recipe in a file, with the detector that it learned from.

    CheckpointError if the file is of another model.
    """
    given = (detector_of(recipe), entries_of(recipe), MANNERS[recipe.system].matched)
    return load_regions(recipe.model_name, file, *given)


REGION_SYSTEMS = {
    name: System(
        scenes_with_regions,
        _module,
        words_and_answers,
        manner.settings,
        manner.decays,
        takes_turns=True,
        starts=("start_text",) if manner.places else (),
    )
    for name, manner in MANNERS.items()
}
