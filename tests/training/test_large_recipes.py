"""The recipes at paper scale are read as all others are; what they cost is in tests/analysis."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from mmlab.datasets.shards import _expand
from mmlab.hub import create_model, model_config
from mmlab.hub.files import CheckpointFile
from mmlab.hub.starting import (
    start_from_bert,
    start_from_image_encoder,
    start_vlmo_from_beit,
    untouched,
)
from mmlab.training.blip2_system import PLACES as QFORMER_PLACES
from mmlab.training.momentum_systems import ALBEF_PLACES, BLIP_PLACES
from mmlab.training.recipe import read_recipe
from mmlab.training.schedules import rate_factor
from mmlab.training.starting import check_parts
from mmlab.training.system import pretraining_settings
from mmlab.training.systems import SYSTEMS
from tests.hub.published import beit_shapes, bert_shapes, deit_shapes, eva_shapes

FOLDER = Path(__file__).parents[2] / "recipes" / "large"
LARGE = sorted(FOLDER.glob("*.yaml"))
UNTRAINED = sorted((FOLDER.parent / "untrained").glob("*.yaml"))


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_the_engine_reads_it_and_knows_the_model(path):
    recipe = read_recipe(path)
    with torch.device("meta"):
        create_model(recipe.model_name, **recipe.model)
    pretraining_settings(recipe, SYSTEMS[recipe.system].settings)
    check_parts(recipe, SYSTEMS[recipe.system].starts)
    assert recipe.data == "shards" and len(_expand(*recipe.shards)) >= 8 * recipe.workers
    assert recipe.precision == "bf16" and recipe.warmup < recipe.steps


@pytest.mark.parametrize("path", UNTRAINED, ids=lambda path: path.stem)
def test_recipes_that_wait_for_their_run_are_read_too(path):
    recipe = read_recipe(path)
    known = {field.name for field in fields(model_config(recipe.model_name))}
    assert recipe.model.keys() <= known and recipe.data == "scenes"
    pretraining_settings(recipe, SYSTEMS[recipe.system].settings)
    check_parts(recipe, SYSTEMS[recipe.system].starts)


def rates(name):
    recipe = read_recipe(FOLDER / f"{name}.yaml")
    end = recipe.end_lr / recipe.lr
    given = (recipe.schedule, recipe.steps, recipe.warmup)
    places = (recipe.warmup, (recipe.warmup + recipe.steps) // 2, recipe.steps)
    return [recipe.lr * rate_factor(given[0], step, *given[1:], end) for step in places]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("albef-b-16-4m", (1e-4, 5.5e-5, 1e-5)),
        # Twenty times 0.9; half of them in the middle.
        ("blip-b-16-14m", (3e-4, 3e-4 * 0.9**10, 3e-4 * 0.9**20)),
        ("blip2-g-14-129m", (1e-4, 5.5e-5, 1e-5)),
        ("blip2-g-14-opt-2.7b-129m", (1e-4, 7.5e-5, 5e-5)),
        ("blip2-g-14-flan-t5-xl-129m", (1e-4, 7.5e-5, 5e-5)),
        ("vlmo-b-16-4m", (2e-4, 1e-4, 0)),
        ("clip-vit-b-16-cc12m", (5e-4, 2.5e-4, 0)),
    ],
)
def test_rates_end_where_the_paper_s_or_the_code_s_do(name, expected):
    assert rates(name) == pytest.approx(expected, rel=2e-3, abs=1e-9)


# The files that the recipes name, at their full size.

BERT = bert_shapes(30522, 768, 12, 3072, 512, old=True)
DEIT = deit_shapes(224, 16, 768, 12, 3072, classes=1000)
EVA = eva_shapes(224, 14, 1408, 40, 6144)
BEIT = beit_shapes(224, 16, 768, 12, 12, 3072, codes=8192)
STARTS = {
    "albef-b-16-4m": (DEIT, ALBEF_PLACES, 0),
    "blip-b-16-14m": (DEIT, BLIP_PLACES, 2),
    "blip2-g-14-129m": (EVA, QFORMER_PLACES, 1),
}


def published(name, shapes):
    """A file without memory for its weights."""
    return CheckpointFile(name, {k: torch.empty(s, device="meta") for k, s in shapes.items()})


@pytest.mark.parametrize("name", STARTS)
def test_the_files_that_it_names_fit_at_full_size(name):
    recipe = read_recipe(FOLDER / f"{name}.yaml")
    assert recipe.start_image and recipe.start_text and recipe.tokenizer
    images, places, num_added = STARTS[name]
    with torch.device("meta"):
        network = create_model(recipe.model_name, **recipe.model)
        taken = [
            start_from_image_encoder(network, published(recipe.start_image, images)),
            start_from_bert(network, published("bert", BERT), places, num_added),
        ]
    fresh = untouched(network, taken)
    # BLIP's words head is a part of its decoder.
    heads = {"heads"} if recipe.system == "blip" else {"heads.contrast", "heads.match"}
    assert heads == {part for part in fresh if part.startswith("heads")}
    others = [part for part in fresh if part not in heads]
    expected = ("cross_attention", "cross_norm", "queries", "image_norm")
    assert others and all(part.endswith(expected) for part in others)
    stretched = "197 positions are interpolated to 257" in taken[0].notes
    assert stretched == (name == "albef-b-16-4m")


def test_a_beit_fits_the_stage_of_texts_at_full_size():
    recipe = read_recipe(FOLDER / "vlmo-b-16-language.yaml")
    with torch.device("meta"):
        network = create_model(recipe.model_name, **recipe.model)
        taken = start_vlmo_from_beit(network, published(recipe.start_image, BEIT))
    fresh = untouched(network, [taken])
    assert fresh == [
        "blocks.*.experts.text",
        "heads",
        "modality_embedding",
        "pooler",
        "text_embeddings",
    ]
    # The stage of pairs starts with the finished weights of this one.
    assert read_recipe(FOLDER / "vlmo-b-16-4m.yaml").start
    check_parts(replace(recipe, start_image=""), ())
