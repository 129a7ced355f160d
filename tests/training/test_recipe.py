from dataclasses import replace

import pytest

from mmlab.datasets.scenes.world import MAX_OBJECTS
from mmlab.training.recipe import MOST_OBJECTS, Recipe, read_recipe, recipe_text, to_recipe
from mmlab.training.run import training_data
from tests.training.tiny import TINY


def test_a_recipe_survives_its_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(TINY))
    assert read_recipe(path) == TINY


def test_a_list_in_a_model_is_a_tuple(tmp_path):
    """As YAML gives it back, it is still the same recipe, and a run can be resumed."""
    path = tmp_path / "recipe.yaml"
    path.write_text("system: vilt\nmodel:\n  heads: [words, match]\n")
    recipe = read_recipe(path)
    assert recipe == Recipe(system="vilt", model={"heads": ("words", "match")})
    assert recipe == replace(recipe, model={"heads": ["words", "match"]})
    path.write_text(recipe_text(recipe))
    assert read_recipe(path) == recipe


def test_yaml_numbers_without_a_point_are_numbers(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 2e-3\nsteps: 7\n")
    assert read_recipe(path) == replace(Recipe(), lr=0.002, steps=7)


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("")
    assert read_recipe(path) == Recipe()


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match="unknown recipe key 'batchsize'; did you mean 'batch_siz"):
        to_recipe({"batchsize": 3})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("system", "vitt"),
        ("data", "imagenet"),
        ("schedule", "cosin"),
        ("precision", "fp16"),
        ("steps", 0),
        ("steps", 2.5),
        ("batch_size", True),
        ("lr", 0.0),
        ("lr", "fast"),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("weight_decay", -1.0),
        ("warmup", -1),
        ("ema_decay", 1.0),
        ("label_smoothing", 1.0),
        ("seed", -1),
        ("keep", 0),
        ("size", 16),
        ("model", [1]),
        ("model", {1: 2}),
    ],
)
def test_wrong_values_name_the_field_and_the_value(field, value):
    with pytest.raises(ValueError) as caught:
        to_recipe({field: value})
    assert field in str(caught.value) and repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end_lr": 3e-3}, r"end_lr must be from 0 to lr=0.002, got 0.003"),
        ({"end_lr": -1e-5}, "end_lr must be from 0 to lr=0.002, got -1e-05"),
        ({"end_lr": 1e-5, "schedule": "constant"}, "left out with schedule: constant, got 1e-05"),
        ({"schedule": "exponential"}, "end_lr must be above 0: no factor leads to 0, got 0.0"),
    ],
)
def test_the_last_rate_fits_the_schedule(settings, message):
    with pytest.raises(ValueError, match=message):
        to_recipe(settings)
    assert to_recipe({"end_lr": "1e-5", "schedule": "exponential"}).end_lr == 1e-5


@pytest.mark.parametrize("text", ["- a\n- b", "just text", "a: [", "\0"])
def test_files_that_are_no_recipe_are_refused_in_one_line(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml") as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_recipe_runs_no_code(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: !!python/object/apply:os.getpid []")
    with pytest.raises(ValueError, match="cannot be read"):
        read_recipe(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no recipe '.*none\.yaml'"):
        read_recipe(tmp_path / "none.yaml")


def test_scenes_show_as_many_objects_as_the_recipe_says(tmp_path):
    assert MOST_OBJECTS == MAX_OBJECTS
    recipe = Recipe(system="clip", data="scenes", num_images=40, most_objects=2)
    shown = [len(scene.objects) for scene in training_data(recipe).dataset.scenes]
    assert set(shown) == {1, 2}
    with pytest.raises(ValueError, match="most_objects must be at most 4, got 5"):
        Recipe(most_objects=5)
