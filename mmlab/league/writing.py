"""Cells of the systems that write: captions of scenes, and answers to questions about them.

Captions: BLIP's decoder, BLIP-2's Q-Former, and OSCAR, which writes by filling in masks. Answers:
the decoders of ALBEF and BLIP. Each learns by the module of its own paper; steps, batches and rates
are those of ``FineTuning``, as for every other task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from mmlab.analysis.cost import count_parameters
from mmlab.datasets import Scenes
from mmlab.datasets.regions import Regions
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.league.budget import step_cost
from mmlab.league.figures import accuracy, by_kind, chance, commonest, counts, right
from mmlab.league.figures import vqa_score as mean_score
from mmlab.league.finetuning import FineTuning, counted_flops, other_images
from mmlab.models.albef import ALBEF
from mmlab.models.blip2 import BLIP2Pretraining
from mmlab.models.blip_tasks import (
    BLIPCaptioning,
    blip_captioner,
    generate_answers,
    generate_captions,
)
from mmlab.models.oscar import lesson_regions
from mmlab.models.oscar_tasks import OscarCaptioning, oscar_caption_lesson, write_captions
from mmlab.nn import beam_search
from mmlab.tasks.captioning import caption_figures
from mmlab.tasks.captions import CaptionedImages
from mmlab.tasks.downstream.hallucination import asks_for_existence, hallucination
from mmlab.tasks.downstream.items import Items
from mmlab.tasks.preparation import image_statistics
from mmlab.tasks.query_captions import LONGEST_CAPTION, Describer
from mmlab.tasks.region_scenes import region_entries
from mmlab.tasks.reranking import Reranker, load_reranker
from mmlab.training.batches import TrainingData
from mmlab.training.blip2_system import load_trained, saved_tokenizer
from mmlab.training.checkpoints import WEIGHTS
from mmlab.training.loop import make_state
from mmlab.training.loop import train as train_module
from mmlab.training.recipe import Recipe, check_known
from mmlab.training.region_systems import load_trained_regions
from mmlab.training.run import CONFIG, device, make_batches, run, training_data
from mmlab.training.systems import SYSTEMS

CAPTION_KIND = "medium"
"""What is learned to be written: color, shape, size, texture, and one place or relation."""
NUM_BEAMS = 3
LONGEST_ANSWER = 10
"""In tokens, the first and [SEP] among them; the usual choice of ``generate_answers``."""
BATCH_SIZE = 64
NUM_EXAMPLES = 8
"""How many captions of a cell are kept as they were written."""
COUNTED_STEPS = 8
"""Steps to count FLOPs on: texts differ in length."""


# Captions.


@dataclass(frozen=True)
class Writer:
    """A system that writes captions.

    ``module`` is what it learns it with, from what ``lessons`` makes of scenes; ``write`` gives one
    caption of each scene. ``taught`` says whether pretraining has taught it to write already.
    """

    module: nn.Module
    lessons: Callable[[Scenes], TrainingData]
    write: Callable[[Scenes], list[str]]
    taught: bool


def captioning_cell(
    recipe: Recipe,
    weights: str | Path,
    train: Scenes,
    test: Scenes,
    settings: FineTuning,
    seed: int,
) -> dict[str, object]:
    """What a pretrained system writes about ``test``, before and after learning it from ``train``.

    - ``"finetuned"``, and ``"pretrained"`` where that taught it to write: see ``caption_figures``,
      with ``"wrong_image"``, the same for the captions that were written of the next scene.
    - ``"truth"``: the same for true captions; ``"blind"``: for always the commonest of ``train``.
    - ``"examples"``: the first captions of the fine-tuned system.
    - ``"flops"``, ``"steps"``: of the fine-tuning; ``"num_parameters"``: of the network.

    ValueError for a system that writes none.
    """
    writer = load_writer(recipe, weights)
    true, seen = test.true_captions("en", CAPTION_KIND), train.captions("en", CAPTION_KIND)
    blind = Counter(seen).most_common(1)[0][0]
    figures: dict[str, object] = {
        "truth": caption_figures(true, test),
        "blind": caption_figures([blind] * len(test), test),
    }
    if writer.taught:
        figures["pretrained"] = _judged(writer.write(test), test)
    flops = _learn(writer, recipe, train, settings, seed)
    written = writer.write(test)
    return {
        **figures,
        "finetuned": _judged(written, test),
        "examples": written[:NUM_EXAMPLES],
        "num_images": len(test),
        "steps": settings.steps,
        "flops": flops,
        "num_parameters": count_parameters(writer.module.network),
    }


def _judged(written: list[str], test: Scenes) -> dict[str, object]:
    others = [*written[1:], *written[:1]]
    return {**caption_figures(written, test), "wrong_image": caption_figures(others, test)}


def load_writer(recipe: Recipe, weights: str | Path) -> Writer:
    """The pretrained system of a recipe, ready to write; ValueError if it is none that does."""
    check_known("system that writes captions", recipe.system, CAPTIONING)
    return _WRITERS[recipe.system](recipe, weights)


def _learn(
    writer: Writer, recipe: Recipe, scenes: Scenes, settings: FineTuning, seed: int
) -> float:
    """Fine-tune the writer; the FLOPs of all steps."""
    given = Recipe(recipe.system, recipe.size, "scenes", seed=seed, **_rates(settings))
    accelerator = Accelerator()
    batches = make_batches(writer.lessons(scenes), given, accelerator)
    state = make_state(writer.module, given, accelerator, SYSTEMS[recipe.system].decays)
    train_module(state, batches, given, accelerator, lambda figures: None)
    flops = _flops(writer.module, [batches[i] for i in range(min(COUNTED_STEPS, given.steps))])
    writer.module.eval()
    return flops * given.steps


def _rates(settings: FineTuning) -> dict[str, object]:
    """What a recipe takes of the fine-tuning that is alike for all; gradients are clipped to 1."""
    names = ("steps", "lr", "weight_decay", "warmup")
    same = {name: getattr(settings, name) for name in names}
    return {**same, "batch_size": settings.views, "schedule": "linear"}


def _flops(module: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Of a step, forward and backward."""
    where = next(module.parameters()).device
    counts = []
    for batch in batches:
        moved = {name: value.to(where) for name, value in batch.items()}
        counts.append(counted_flops(lambda moved=moved: sum(module.losses(moved).values())))
        module.zero_grad()
    return sum(counts) / len(counts)


def _pixel_lessons(scenes: Scenes, tokenizer: Tokenizer, config: object) -> CaptionedImages:
    """Each picture with its caption, from [CLS] to [SEP]."""
    texts = scenes.captions("en", CAPTION_KIND)
    ids = tokenizer(texts, config.context_length).input_ids[:, None]
    drawings, statistics = torch.arange(len(scenes))[:, None], image_statistics(config)
    return CaptionedImages(scenes, drawings, ids, tokenizer, statistics=statistics)


def _blip(recipe: Recipe, weights: str | Path) -> Writer:
    """The decoder of the pretrained model, by beam search as in its paper."""
    model = load_reranker(recipe.model_name, weights)
    network, words = blip_captioner(model.network).eval().to(device()), model.tokenizer
    captioner = replace(model, network=network)
    search = {"num_beams": NUM_BEAMS, "max_length": _longest(network.config)}

    def write(scenes: Scenes) -> list[str]:
        captions = []
        for rows in torch.arange(len(scenes)).split(BATCH_SIZE):
            images = captioner.prepared(scenes, rows)
            found = generate_captions(network, images, end_id=words.sep_id, **search)
            captions += words.decode(found[:, 1:])
        return captions

    lessons = partial(_pixel_lessons, tokenizer=words, config=network.config)
    return Writer(BLIPCaptioning(network), lessons, write, taught=True)


def _longest(config: object) -> int:
    return min(LONGEST_CAPTION, config.context_length)


class QueryCaptioning(BLIP2Pretraining):
    """A ``BLIP2`` going on with the third of its three lessons alone: to write captions.

    The paper fine-tunes captions with the language model of stage 2 (BLIP-2, section 4.2); the
    Q-Former of stage 1 writes without any.
    """

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The language-modelling loss of ``"input_ids"`` (from [CLS] to [SEP]) for ``"images"``."""
        _, past = self.network.qformer.look(self.network.image_tokens(batch["images"]))
        return {"language_modeling": self.write(batch, past).loss()}


def _blip2(recipe: Recipe, weights: str | Path) -> Writer:
    network, words = load_trained(recipe, weights).to(device()), saved_tokenizer(weights)
    lessons = partial(_pixel_lessons, tokenizer=words, config=network.config)
    describer = Describer(network, words, NUM_BEAMS)
    return Writer(QueryCaptioning(network), lessons, describer.describe, taught=True)


@dataclass(frozen=True)
class TaggedScenes:
    """Captions with the tags and regions of a detector: what OSCAR learns to write from.

    Words are hidden anew in each batch (``oscar_caption_lesson``).
    """

    input_ids: Int64[Tensor, "num tokens"]
    regions: Regions
    tokenizer: Tokenizer
    context_length: int

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """The lesson of ``rows[share]``; words are drawn for all rows."""
        words, ids = self.tokenizer, self.input_ids[rows]
        pairs = {"input_ids": ids, "attention_mask": ids != words.pad_id}
        pairs |= region_entries(self.regions.select(rows), words)
        given = (pairs, words.mask_id, words.vocab_size, generator)
        lesson = oscar_caption_lesson(*given, context_length=self.context_length)
        return {name: value[share] for name, value in lesson.items()}


def _oscar(recipe: Recipe, weights: str | Path) -> Writer:
    """Its words head, which pretraining taught to fill in masks that see both sides."""
    model = load_trained_regions(recipe, weights)
    network, words = model.network.to(device()), model.tokenizer
    special_ids = (words.cls_id, words.sep_id, words.mask_id)

    def lessons(scenes: Scenes) -> TaggedScenes:
        ids = words(scenes.captions("en", CAPTION_KIND)).input_ids
        return TaggedScenes(ids, model.prepared(scenes), words, network.config.context_length)

    def write(scenes: Scenes) -> list[str]:
        captions = []
        for rows in torch.arange(len(scenes)).split(BATCH_SIZE):
            pairs = region_entries(model.prepared(scenes, rows), words)
            batch = {name: pairs[name] for name in ("tag_ids", "tag_mask")} | lesson_regions(pairs)
            moved = {name: value.to(model.device) for name, value in batch.items()}
            found = write_captions(network, moved, special_ids, NUM_BEAMS, LONGEST_CAPTION)
            captions += words.decode(found)
        return captions

    return Writer(OscarCaptioning(network), lessons, write, taught=False)


_WRITERS = {"blip": _blip, "blip2": _blip2, "oscar": _oscar}
CAPTIONING = tuple(_WRITERS)
"""Systems that write captions."""


# Answers.

ANSWERING = ("albef", "blip")
"""Systems with a decoder for answers."""


def vqa_written_cell(
    recipe: Recipe,
    weights: str | Path,
    folder: str | Path,
    test: Scenes,
    items: Items,
    train_items: Items,
    settings: FineTuning,
    seed: int,
) -> dict[str, object]:
    """Questions answered by a decoder: learned from the training scenes, asked about ``test``.

    The run of the fine-tuning is in ``folder``; one that was cut short goes on. ``items`` are those
    of the task ``vqa``, so that figures can be compared with those of its classifiers;
    ``train_items`` only tell the commonest answer.

    - ``"ranked_…"``: the likeliest answer of all is chosen (``rank_answers``): ``"accuracy"``,
      ``"by_kind"``, ``"other_image"``, ``"blank_image"`` and, where there are scores,
      ``"vqa_score"``.
    - ``"written_…"``: the answer is written freely, by beam search: ``"accuracy"`` and
      ``"by_kind"`` of exactly the right word, and ``"no_answer"``, the share that is none of the
      answers at all.
    - ``"hallucination"``: of the ranked answers, where existence is asked for.
    - ``"counts"``, ``"chance"``, ``"commonest"``, ``"num_items"`` as in ``cell_figures``;
      ``"flops"``, ``"steps"``, ``"num_parameters"``.

    ValueError for a system that writes no answers.
    """
    check_known("system that writes answers", recipe.system, ANSWERING)
    folder, given = Path(folder), answering_recipe(recipe, weights, settings, seed)
    run(given, folder, resume=(folder / CONFIG).is_file())
    model = load_reranker(given.model_name, folder / WEIGHTS)
    model.network.to(device())
    figures = answer_figures(model, test, items)
    cost = step_cost(given, training_data(given), min(COUNTED_STEPS, given.steps))
    return {
        **figures,
        "chance": chance(items),
        "commonest": commonest(items, train_items),
        "steps": given.steps,
        "flops": cost.flops * given.steps,
        "num_parameters": count_parameters(model.network),
    }


def answering_recipe(
    recipe: Recipe, weights: str | Path, settings: FineTuning, seed: int
) -> Recipe:
    """The recipe by which the system of ``recipe`` learns to answer, from its own weights.

    The words are those of pretraining. ALBEF keeps its twin, whose say rises anew, over an epoch.
    """
    kept = ("decay", "alpha") if recipe.system == "albef" else ()
    return replace(
        recipe,
        model={**recipe.model, "heads": ("answers",)},
        pretraining={k: v for k, v in recipe.pretraining.items() if k in kept},
        start=str(weights),
        start_image="",
        start_text="",
        tokenizer="",
        seed=seed,
        clip_norm=1.0,
        end_lr=0.0,
        ema_decay=0.0,
        **_rates(settings),
    )


def answer_figures(model: Reranker, test: Scenes, items: Items) -> dict[str, object]:
    """How often a decoder's answers are right, ranked and written; see ``vqa_written_cell``."""
    ranked = _ranked(model, test, items)
    others = _ranked(model, test, replace(items, images=other_images(items.images)))
    texts = _written(model, test, items)
    truth = [items.classes[label] for label in items.labels.tolist()]
    exact = torch.tensor([a == b for a, b in zip(texts, truth, strict=True)]).double()
    figures: dict[str, object] = {
        "ranked_accuracy": accuracy(ranked, items),
        "ranked_by_kind": by_kind(right(ranked, items), items.kinds),
        "ranked_other_image": accuracy(others, items),
        "ranked_blank_image": accuracy(_ranked(model, test, items, blank=True), items),
        "written_accuracy": exact.mean().item(),
        "written_by_kind": by_kind(exact, items.kinds),
        "written_no_answer": sum(text not in items.classes for text in texts) / len(texts),
        "counts": counts(items.kinds),
        "num_items": len(items),
    }
    if items.scores is not None:
        figures["ranked_vqa_score"] = mean_score(ranked, items)
    if asks_for_existence(items):
        figures["hallucination"] = hallucination(ranked, items)
    return figures


Part = tuple[Float[Tensor, "batch 3 height width"], list[str]]


def _parts(model: Reranker, test: Scenes, items: Items) -> list[Callable[[], Part]]:
    """Pictures and questions of some items at a time, prepared when asked for."""

    def part(rows: Tensor) -> Part:
        images = model.prepared(test, items.images[rows, 0])
        return images, [items.texts[i][0] for i in rows.tolist()]

    return [partial(part, rows) for rows in torch.arange(len(items)).split(BATCH_SIZE)]


def _ranked(
    model: Reranker, test: Scenes, items: Items, blank: bool = False
) -> Float[Tensor, "items classes"]:
    """How likely each answer is; the mean color is all there is to be seen of a ``blank`` image."""
    if tuple(model.answers) != tuple(items.classes):
        raise ValueError(f"the model must know the {len(items.classes)} answers of the items")
    found = []
    for part in _parts(model, test, items):
        images, texts = part()
        found.append(model.answer(torch.zeros_like(images) if blank else images, texts))
    return torch.cat(found)


def _written(model: Reranker, test: Scenes, items: Items) -> list[str]:
    written = []
    for part in _parts(model, test, items):
        written += write_answers(model, *part())
    return written


@torch.no_grad()
def write_answers(
    model: Reranker, images: Float[Tensor, "batch 3 height width"], questions: Sequence[str]
) -> list[str]:
    """The likeliest text that follows one question about each image, any text at all.

    ValueError without an ``"answers"`` head.
    """
    network, words, ids = model.network, model.tokenizer, model.tokens(questions)
    network.head("answers")
    search = {"num_beams": NUM_BEAMS, "max_length": LONGEST_ANSWER, "min_length": 1}
    if not isinstance(network, ALBEF):
        found = generate_answers(network, images, ids, end_id=words.sep_id, **search)
    else:
        writing = AnswerWriting(network, network(ids, images).fused, ids != 0)
        prompt = torch.full((len(ids), 1), words.cls_id, device=ids.device)
        found = beam_search(writing, prompt, words.sep_id, **search)
    return words.decode(found[:, 1:])


class AnswerWriting:
    """An ``ALBEF`` in the middle of writing answers; see ``mmlab.nn.decoding``.

    It reads all of an answer anew for each word: answers have a word or two. The paper only ranks a
    list of answers (section 5.3).
    """

    def __init__(
        self,
        network: ALBEF,
        question: Float[Tensor, "rows tokens text_dim"],
        question_valid: Tensor,
    ):
        self.network, self.question, self.valid = network, question, question_valid
        self.rows = torch.arange(len(question), device=question.device)
        self.ids = self.rows[:, None][:, :0]

    def next(self, ids: Int64[Tensor, "rows new_tokens"]) -> Float[Tensor, "rows vocab"]:
        """Scores of the word after ``ids``, which come after all that it was given before."""
        self.ids = torch.cat([self.ids, ids], dim=1)
        given = (self.ids, self.question, self.valid, torch.ones_like(self.ids))
        return self.network.answer_logits(*given, question_rows=self.rows)[:, -1]

    def repeat(self, times: int) -> None:
        """Each row ``times`` times, next to each other."""
        self.select(torch.arange(len(self.rows), device=self.rows.device).repeat_interleave(times))

    def select(self, rows: Int64[Tensor, " rows"]) -> None:
        """Go on from these rows."""
        self.rows, self.ids = self.rows[rows], self.ids[rows]
