import json
from pathlib import Path

import pytest
import torch

import mmlab
from mmlab.datasets import emoji
from mmlab.hub import CheckpointError, list_mini_checkpoints, mini_checkpoint, read_checkpoint
from mmlab.tasks.classification import accuracy, emoji_images
from mmlab.tasks.dual_encoder import dataset_retrieval, load_dual_encoder
from mmlab.tasks.fusion import load_fusion
from mmlab.tasks.questions import answer_questions
from mmlab.training.evaluation import joint_figures
from mmlab.training.recipe import parse_recipe

NAMES = tuple(list_mini_checkpoints())


def test_vit_mini_is_there():
    assert mini_checkpoint("vit-mini") == list_mini_checkpoints()["vit-mini"]


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(CheckpointError, match=r"no trained 'vit-mni'; did you mean 'vit-mini'\?$"):
        mini_checkpoint("vit-mni")
    with pytest.raises(CheckpointError, match=r"no trained '../emoji'; there are .*vit-mini"):
        mini_checkpoint("../emoji")
    with pytest.raises(CheckpointError, match=r"no trained 'clip-base'; there are .*vit-mini"):
        mini_checkpoint("clip-base")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_small_and_in_half_precision(name):
    path = mini_checkpoint(name)
    assert path.stat().st_size <= 5_000_000
    tensors = read_checkpoint(path).tensors
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    assert all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_tells_where_it_comes_from(name):
    metadata = read_checkpoint(mini_checkpoint(name)).metadata
    recipe = parse_recipe(metadata["mmlab.recipe"], name)
    assert recipe.model_name == name and int(metadata["mmlab.seed"]) == recipe.seed
    assert (Path(mmlab.__file__).parents[1] / metadata["mmlab.data_card"]).is_file()
    assert metadata["mmlab.card"].startswith(f"# {name}\n")
    for part in ("Use", "Training", "Limits", "Licence"):
        assert f"**{part}.**" in metadata["mmlab.card"]
    assert json.loads(metadata["mmlab.made_with"])["threads"] == 1


@pytest.fixture(scope="module")
def vit_mini():
    path = mini_checkpoint("vit-mini")
    classes = json.loads(read_checkpoint(path).metadata["mmlab.classes"])
    return mmlab.create_model("vit-mini", pretrained=path, num_classes=len(classes)).eval()


def test_the_model_computes_in_single_precision(vit_mini):
    assert {t.dtype for t in vit_mini.parameters()} == {torch.float32}


@pytest.mark.parametrize(("name", "split"), [("fluent", "train"), ("fluent_held_out", "held_out")])
def test_the_recorded_accuracy_is_met_again(name, split, vit_mini):
    metadata = read_checkpoint(mini_checkpoint("vit-mini")).metadata
    recorded = json.loads(metadata["mmlab.metrics"])[name]
    images = emoji_images(48, "group", split, "fluent")
    assert list(images.classes) == json.loads(metadata["mmlab.classes"])
    measured = accuracy(vit_mini, images)
    assert abs(measured.accuracy - recorded["accuracy"]) <= 0.005
    assert recorded["num_images"] == measured.num_images
    assert measured.accuracy > 2 * recorded["commonest_class"]


@pytest.mark.parametrize(("language", "name"), [("en", "fluent"), ("zh", "fluent_chinese")])
def test_clip_mini_finds_names_in_a_style_it_never_saw(language, name):
    file = mini_checkpoint("clip-mini")
    recorded = json.loads(read_checkpoint(file).metadata["mmlab.metrics"])[name]
    clip_mini = load_dual_encoder("clip-mini", file)
    found = dataset_retrieval(clip_mini, emoji("train", "fluent"), language).figures()
    assert found["num_texts"] >= 1400
    assert found["image_to_text"]["r@1"] >= 0.35 and found["image_to_text"]["r@5"] >= 0.6
    for way in ("image_to_text", "text_to_image"):
        assert abs(found[way]["r@1"] - recorded[way]["r@1"]) <= 0.005


@pytest.mark.parametrize("split", ["test", "held_out"])
def test_vilt_mini_answers_from_the_picture_and_tells_pairs(split):
    """Held-out scenes show colors on shapes that never met in training."""
    file = mini_checkpoint("vilt-mini")
    recorded = json.loads(read_checkpoint(file).metadata["mmlab.metrics"])
    model, images = load_fusion("vilt-mini", file), mmlab.datasets.scenes(100, split, 64)
    answered, paired = answer_questions(model, images), joint_figures(model, images)
    assert abs(answered.accuracy - recorded[f"questions_{split}"]["accuracy"]) <= 0.05
    assert answered.accuracy > answered.question_only + 0.05
    assert answered.accuracy > answered.wrong_image + 0.05
    before = recorded[f"pairs_{split}"]
    assert abs(paired["matching_accuracy"] - before["matching_accuracy"]) <= 0.005
    assert abs(paired["image_to_text"]["r@1"] - before["image_to_text"]["r@1"]) <= 0.02


def test_a_fresh_head_and_other_sizes_fit_half_precision_weights():
    path = mini_checkpoint("vit-mini")
    model = mmlab.create_model("vit-mini", pretrained=path, num_classes=5, image_size=64).eval()
    assert model(torch.zeros(1, 3, 64, 64)).dtype == torch.float32
