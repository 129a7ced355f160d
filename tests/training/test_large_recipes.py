"""The recipes at paper scale are read as all others are; what they cost is in tests/analysis."""

from pathlib import Path

import pytest
import torch

from mmlab.datasets.shards import _expand
from mmlab.hub import create_model
from mmlab.training.recipe import read_recipe
from mmlab.training.system import pretraining_settings
from mmlab.training.systems import SYSTEMS

LARGE = sorted((Path(__file__).parents[2] / "recipes" / "large").glob("*.yaml"))


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_the_engine_reads_it_and_knows_the_model(path):
    recipe = read_recipe(path)
    with torch.device("meta"):
        create_model(recipe.model_name, **recipe.model)
    pretraining_settings(recipe, SYSTEMS[recipe.system].settings)
    assert recipe.data == "shards" and len(_expand(*recipe.shards)) >= 8 * recipe.workers
    assert recipe.precision == "bf16" and recipe.warmup < recipe.steps
