import json
from dataclasses import asdict, replace

import pytest

from mmlab.training.recipe import read_recipe
from scripts import flip_arms, make_checkpoints


def test_the_figures_that_ship_are_of_the_recipe_that_ships():
    told = json.loads(flip_arms.RESULT.read_text())
    recipe = json.loads(json.dumps(asdict(read_recipe(flip_arms.RECIPE))))
    # Recipes may have learnt new fields since.
    assert told["recipe"] == {name: recipe[name] for name in told["recipe"]}
    assert [arm["mask_ratio"] for arm in told["arms"]] == list(flip_arms.SHARES)


def test_an_arm_drops_its_share_and_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(flip_arms, "SHARES", (0.75,))
    for module in (make_checkpoints, flip_arms):
        monkeypatch.setattr(module, "UNFINISHED", tmp_path / "runs")
    held_out = make_checkpoints.PAIR_TESTS["fluent_held_out"]
    monkeypatch.setattr(make_checkpoints, "PAIR_TESTS", {"fluent_held_out": held_out})
    recipe = replace(read_recipe(flip_arms.RECIPE), steps=2, batch_size=8, warmup=1)
    result = tmp_path / "arms.json"
    for _ in range(2):
        flip_arms.main(recipe, result)
    told = json.loads(result.read_text())
    (arm,) = told["arms"]
    assert arm["processor_seconds"] > 0 and arm["last_loss"] == pytest.approx(2, abs=1)
    assert arm["retrieval"]["fluent_held_out"]["num_images"] > 100
    trained = read_recipe(tmp_path / "runs" / "flip-emoji-75" / "config.yaml")
    assert trained.model == {"mask_ratio": 0.75}
