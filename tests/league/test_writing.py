"""Cells of systems that write: they learn eight pictures by heart, and tell right from wrong."""

import json
from dataclasses import replace

import pytest
import torch

from mmlab import datasets
from mmlab.hub import create_model
from mmlab.league.finetuning import FineTuning
from mmlab.league.writing import (
    ANSWERING,
    CAPTIONING,
    AnswerWriting,
    answer_figures,
    answering_recipe,
    captioning_cell,
    load_writer,
    vqa_written_cell,
    write_answers,
)
from mmlab.tasks.downstream.vqa import vqa_items
from mmlab.tasks.paired_scenes import ANSWERS
from mmlab.tasks.reranking import load_reranker
from mmlab.training.run import read_metrics, recipe_of, run
from tests.training.tiny import TINY, TINY_ALBEF, TINY_BLIP, TINY_BLIP2, write_vit

_SHORT = {"num_images": 8, "batch_size": 8, "steps": 2, "most_objects": 1, "ema_decay": 0.0}
_SHORT["checkpoint_every"] = 1000
_OSCAR = {"dim": 32, "num_heads": 2, "mlp_dim": 64, "depth": 1}
RECIPES = {
    "albef": replace(TINY_ALBEF, **_SHORT),
    "blip": replace(TINY_BLIP, **_SHORT),
    "blip2": replace(TINY_BLIP2, **_SHORT),
    "oscar": replace(TINY, system="oscar", data="scenes", **{**_SHORT, "model": _OSCAR}),
}
RECIPES = {
    name: replace(recipe, model={**recipe.model, "dropout": 0.0})
    for name, recipe in RECIPES.items()
}
BY_HEART = FineTuning(steps=150, views=8, lr=5e-3, warmup=10)
STEPS = {"blip": 100, "blip2": 150, "oscar": 400}
"""OSCAR learns at most three words of a caption a step."""


@pytest.fixture(scope="module")
def scenes():
    """The scenes that all of these systems have been pretrained on."""
    return datasets.scenes(8, "train", 32, num_objects=(1, 1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    vit = write_vit(folder / "vit.safetensors")
    for name, recipe in RECIPES.items():
        run(replace(recipe, start=vit) if name == "blip2" else recipe, folder / name)
    return folder


def pretrained(runs, name):
    file = runs / name / "model.safetensors"
    return recipe_of(file), file


# Captions.


@pytest.mark.parametrize("name", CAPTIONING)
def test_captions_learned_by_heart_are_truer_than_blind_ones(name, runs, scenes):
    settings = replace(BY_HEART, steps=STEPS[name])
    figures = captioning_cell(*pretrained(runs, name), scenes, scenes, settings, seed=0)
    json.dumps(figures, allow_nan=False)
    tuned, blind = figures["finetuned"], figures["blind"]
    assert tuned["true"] > blind["true"] + 0.5 and tuned["named"] > blind["named"] + 0.5
    assert tuned["chair_instance"] < blind["chair_instance"] - 0.5
    assert tuned["cider"] > blind["cider"] and tuned["bleu4"] > blind["bleu4"]
    assert tuned["true"] > tuned["wrong_image"]["true"] + 0.5
    truth = figures["truth"]
    assert (truth["true"], truth["exact"], truth["chair_sentence"]) == (1, 1, 0)
    assert len(figures["examples"]) == figures["num_images"] == 8
    assert figures["flops"] > 0 and figures["num_parameters"] > 0
    # Only who was taught to write is measured before; two steps have taught it nothing yet.
    assert ("pretrained" in figures) == (name != "oscar")
    if name != "oscar":
        assert figures["pretrained"]["true"] == 0 == figures["pretrained"]["wrong_image"]["true"]


def test_the_same_seed_gives_the_same_captions(runs, scenes):
    settings = replace(BY_HEART, steps=5)
    one, two = (
        captioning_cell(*pretrained(runs, "blip"), scenes, scenes, settings, seed=3)
        for _ in range(2)
    )
    assert one == two


def test_what_is_frozen_stays_as_it_is(runs, scenes):
    writer = load_writer(*pretrained(runs, "blip2"))
    assert not any(p.requires_grad for p in writer.module.network.image_encoder.parameters())
    batch = writer.lessons(scenes).batch(torch.arange(8), slice(None), torch.Generator())
    assert list(writer.module.losses(batch)) == ["language_modeling"]


def test_who_cannot_write_is_told(runs, scenes):
    recipe, file = pretrained(runs, "albef")
    with pytest.raises(ValueError, match="unknown system that writes captions 'albef'"):
        captioning_cell(recipe, file, scenes, scenes, BY_HEART, seed=0)
    recipe, file = pretrained(runs, "oscar")
    items = vqa_items(scenes, 8)
    with pytest.raises(ValueError, match="unknown system that writes answers 'oscar'"):
        vqa_written_cell(recipe, file, runs / "no", scenes, items, items, BY_HEART, seed=0)
    assert not (runs / "no").exists()


# Answers.


@pytest.mark.parametrize("name", ANSWERING)
def test_answers_learned_by_heart(name, runs, scenes, tmp_path):
    items = vqa_items(scenes, 40)
    given = (*pretrained(runs, name), tmp_path / "run", scenes, items, items)
    figures = vqa_written_cell(*given, BY_HEART, seed=0)
    json.dumps(figures, allow_nan=False)
    for way in ("ranked", "written"):
        assert figures[f"{way}_accuracy"] > figures["commonest"] + 0.2
    assert figures["ranked_accuracy"] > figures["ranked_blank_image"]
    assert figures["ranked_accuracy"] > figures["ranked_other_image"]
    assert figures["written_no_answer"] < 0.2
    assert figures["ranked_vqa_score"] == pytest.approx(figures["ranked_accuracy"], abs=0.2)
    assert sum(figures["counts"].values()) == figures["num_items"] == 40
    assert figures["chance"] == 1 / len(ANSWERS) and figures["flops"] > 0
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    assert vqa_written_cell(*given, BY_HEART, seed=0) == figures
    assert (tmp_path / "run/metrics.jsonl").read_text() == lines  # it was not trained again


@pytest.mark.parametrize("name", ANSWERING)
def test_the_recipe_for_answers_goes_on_from_the_weights(name, runs):
    recipe, file = pretrained(runs, name)
    made = answering_recipe(recipe, file, BY_HEART, seed=0)
    assert made.start == str(file) and made.tokenizer == "" and made.model["heads"] == ("answers",)
    assert made.pretraining == ({"decay": 0.9} if name == "albef" else {})
    assert (made.steps, made.batch_size, made.lr) == (150, 8, 5e-3)
    assert (made.num_images, made.most_objects, made.schedule) == (8, 1, "linear")


@pytest.mark.parametrize("name", ANSWERING)
def test_what_is_no_answer_is_counted(name, runs, scenes, tmp_path, monkeypatch):
    recipe, file = pretrained(runs, name)
    settings = replace(BY_HEART, steps=1)
    items = vqa_items(scenes, 12)
    given = (recipe, file, tmp_path / "run", scenes, items, items)
    vqa_written_cell(*given, settings, seed=0)
    model = load_reranker(recipe.model_name, tmp_path / "run/model.safetensors")
    truth = [items.classes[label] for label in items.labels.tolist()]
    said = ["a red red", *truth[1:6], *("yes" if t != "yes" else "no" for t in truth[6:])]
    monkeypatch.setattr("mmlab.league.writing.write_answers", lambda *given: said)
    figures = answer_figures(model, scenes, items)
    assert figures["written_no_answer"] == pytest.approx(1 / 12)
    assert figures["written_accuracy"] == pytest.approx(5 / 12)


def test_an_albef_writes_what_it_finds_likeliest():
    """Word by word as in one pass, and the best first word first."""
    sizes = {"dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64, "image_size": 32}
    text = {"text_dim": 32, "text_depth": 1, "fusion_depth": 1, "text_num_heads": 2}
    network = create_model(
        "albef-mini",
        **{**sizes, **text, "text_mlp_dim": 64, "vocab_size": 50, "heads": ("answers",)},
    ).eval()
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 32, 32, generator=draws)
    ids = torch.randint(5, 50, (3, 6), generator=draws)
    question = network(ids, images).fused
    answers = torch.randint(5, 50, (3, 4), generator=draws)
    with torch.no_grad():
        whole = network.answer_logits(answers, question, ids != 0)
        writing = AnswerWriting(network, question, ids != 0)
        for place in range(4):
            scores = writing.next(answers[:, place : place + 1])
            torch.testing.assert_close(scores, whole[:, place])
        writing = AnswerWriting(network, question, ids != 0)
        writing.next(answers[:, :2])
        writing.repeat(2)
        writing.select(torch.tensor([5, 4, 0, 1, 3, 2]))
        rows = torch.tensor([2, 2, 0, 0, 1, 1])
        scores = writing.next(answers[rows][:, 2:3])
        torch.testing.assert_close(scores, whole[rows, 2])


def test_written_answers_are_words(runs, scenes, tmp_path):
    recipe, file = pretrained(runs, "albef")
    items = vqa_items(scenes, 8)
    given = (recipe, file, tmp_path / "run", scenes, items, items)
    vqa_written_cell(*given, replace(BY_HEART, steps=2), seed=0)
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 2
    model = load_reranker(recipe.model_name, tmp_path / "run/model.safetensors")
    questions = [own[0] for own in items.texts]
    texts = write_answers(model, model.prepared(scenes, items.images[:, 0]), questions)
    assert len(texts) == 8 and all("[" not in text for text in texts)
