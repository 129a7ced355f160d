"""Systems in the engine: what they train on, that they resume, how they are measured."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmlab import datasets
from mmlab.datasets.scenes import QUESTION_KINDS
from mmlab.hub import CheckpointError
from mmlab.tasks.fusion import load_fusion
from mmlab.training.evaluation import choose, tasks_of
from mmlab.training.run import load_encoder, read_metrics, recipe_of, run, training_data
from tests.training.tiny import TINY, TINY_CLIP, TINY_VILT, write_recipe

TINY_FLIP = replace(
    TINY_CLIP,
    system="flip",
    size="mini",
    data="scenes",
    num_images=64,
    model={k: v for k, v in TINY_CLIP.model.items() if k != "stem"} | {"image_size": 32},
)
DUAL_ENCODERS = ("clip", "flip")
RECIPES = {"clip": TINY_CLIP, "flip": TINY_FLIP, "vilt": TINY_VILT}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe in RECIPES.items():
        run(recipe, folder / name)
    return folder


def test_training_learns(tmp_path):
    run(replace(TINY_CLIP, steps=200, warmup=5, ema_decay=0.0), tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.15


@pytest.mark.parametrize("name", RECIPES)
def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(name, runs, tmp_path):
    class Stopped(Exception):
        pass

    def stop(figures):
        if figures["step"] == 5:
            raise Stopped

    with pytest.raises(Stopped):
        run(RECIPES[name], tmp_path / "run", report=stop)
    run(RECIPES[name], tmp_path / "run", resume=True)
    ones, twos = (load_file(f / "model.safetensors") for f in (runs / name, tmp_path / "run"))
    assert all(torch.equal(ones[key], twos[key]) for key in ones)


@pytest.mark.parametrize("name", DUAL_ENCODERS)
def test_finished_weights_bring_their_tokenizer(name, runs):
    file = runs / name / "model.safetensors"
    recipe = recipe_of(file)
    assert recipe == RECIPES[name]
    encoder = load_encoder(recipe, file)
    assert encoder.tokenizer.to_json() == training_data(recipe).tokenizer.to_json()
    assert encoder.encode_texts(["a red circle"]).shape == (1, 16)
    # So do checkpoints on the way.
    on_the_way = runs / name / "checkpoints" / "step-00000006" / "average.safetensors"
    torch.testing.assert_close(
        load_encoder(recipe, on_the_way).encode_texts(["a red circle"]),
        encoder.encode_texts(["a red circle"]),
    )


def test_weights_of_another_model_are_refused(runs):
    with pytest.raises(CheckpointError, match="is no 'flip-mini'"):
        load_encoder(TINY_FLIP, runs / "clip" / "model.safetensors")


def test_retrieval_is_printed_as_json(mmlab, runs):
    code, out, _ = mmlab("evaluate", "clip", "--checkpoint", runs / "clip", "--json")
    figures = json.loads(out)
    assert code == 0 and figures["task"] == "retrieval" and figures["vendor"] == "fluent"
    assert figures["num_images"] == figures["num_texts"] >= 1400
    for direction in ("image_to_text", "text_to_image"):
        assert list(figures[direction]) == ["r@1", "r@5", "r@10", "median_rank"]
        assert 0 <= figures[direction]["r@1"] <= figures[direction]["r@5"] < 0.1


def test_zero_shot_in_chinese(mmlab, runs):
    options = ("--task", "zero-shot", "--language", "zh", "--split", "held_out")
    code, out, _ = mmlab("evaluate", "clip", "--checkpoint", runs / "clip", *options)
    assert code == 0
    assert "num classes  1,591" in out and "top1" in out


def test_zero_shot_takes_a_target(mmlab, runs):
    options = ("--task", "zero-shot", "--target", "group", "--json")
    code, out, _ = mmlab("evaluate", "clip", "--checkpoint", runs / "clip", *options)
    assert code == 0 and json.loads(out)["num_classes"] == 9


def test_a_classifier_reads_no_language(mmlab):
    code, _, err = mmlab("evaluate", "vit", "--language", "zh")
    assert code == 2 and "--language means nothing for classification" in err


def test_figures_in_figures_are_told_in_lines(mmlab, runs):
    options = ("--num-images", 30)
    code, out, _ = mmlab("evaluate", "flip", "--checkpoint", runs / "flip", *options)
    assert code == 0
    assert "image to text r@1" in out and "text to image median rank" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "vqa"), "unknown task 'vqa'; there are retrieval, zero-shot"),
        (("--language", "fr"), "'fr'"),
        (("--num-images", "3"), "--num-images means nothing for emoji"),
        (("--target", "group"), "--target means nothing for retrieval"),
        (("--task", "zero-shot", "--target", "color"), "'color'"),
    ],
)
def test_wrong_options_cost_one_line(mmlab, runs, arguments, message):
    code, out, err = mmlab("evaluate", "clip", "--checkpoint", runs / "clip", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "group"}, "target must be left out: clip learns from captions"),
        ({"label_smoothing": 0.1}, "label_smoothing must be left out"),
        ({"model": {"vocab_size": 7}}, "model must not set vocab_size: the data give it"),
        ({"model": {"num_channels": 1}}, "num_channels must be 3"),
    ],
)
def test_what_captions_give_cannot_be_set(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(replace(TINY_CLIP, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_system_has_tasks():
    assert tasks_of("vit") == ("classification",)
    assert tasks_of("clip") == tasks_of("flip") == ("retrieval", "zero-shot")
    assert tasks_of("vilt") == ("retrieval", "vqa")


# Text and image read together.


def test_a_vilt_learns_with_all_of_its_heads(runs):
    first = read_metrics(runs / "vilt" / "metrics.jsonl")[0]
    parts = {"masked_words", "matching", "alignment", "answers"}
    assert parts < first.keys()
    assert first["loss"] == pytest.approx(sum(first[part] for part in parts), rel=1e-5)
    assert first["matching"] == pytest.approx(math.log(2), abs=0.3)


def test_a_finished_vilt_brings_its_words_and_answers(runs):
    file = runs / "vilt" / "model.safetensors"
    assert recipe_of(file) == TINY_VILT
    model, data = load_fusion("vilt-mini", file), training_data(TINY_VILT)
    assert model.tokenizer.to_json() == data.tokenizer.to_json()
    assert model.answers == data.answers and "yes" in model.answers


def test_questions_stand_beside_those_on_held_out_combinations(mmlab, runs):
    options = ("--task", "vqa", "--num-images", 10, "--json")
    code, out, _ = mmlab("evaluate", "vilt", "--checkpoint", runs / "vilt", *options)
    figures = json.loads(out)
    assert code == 0 and figures["split"] == "test" and figures["num_images"] == 10
    for part in (figures, figures["held_out"]):
        assert part["num_questions"] > 40 and set(part["by_kind"]) == set(QUESTION_KINDS)
        assert all(0 <= part[k] <= 1 for k in ("accuracy", "wrong_image", "question_only"))


def test_retrieval_scores_every_pair(mmlab, runs):
    options = ("--num-images", 6, "--split", "held_out", "--json")
    code, out, _ = mmlab("evaluate", "vilt", "--checkpoint", runs / "vilt", *options)
    figures = json.loads(out)
    assert code == 0 and figures["task"] == "retrieval" and "held_out" not in figures
    assert figures["num_images"] == figures["num_texts"] == 6
    assert figures["image_to_text"]["r@10"] == 1 and 0 <= figures["matching_accuracy"] <= 1


def test_joint_retrieval_is_usually_among_fewer():
    assert choose("scenes", {}, "vilt", "retrieval")["num_images"] == 100
    assert choose("scenes", {"num_images": 7}, "vilt", "retrieval")["num_images"] == 7
    assert choose("scenes", {}, "vilt", "vqa")["num_images"] == 1000


def continued(runs, **changes):
    start = str(runs / "vilt" / "model.safetensors")
    model = TINY_VILT.model | changes
    return replace(TINY_VILT, start=start, seed=5, steps=1, lr=1e-12, warmup=0, model=model)


def test_fine_tuning_starts_from_the_pretrained_weights(runs, tmp_path):
    recipe = continued(runs, heads=("answer",))
    run(recipe, tmp_path / "run")
    old, new = (load_file(f / "model.safetensors") for f in (runs / "vilt", tmp_path / "run"))
    assert all(key.startswith(("heads.words.", "heads.match.")) for key in old.keys() - new.keys())
    for key, tensor in new.items():
        torch.testing.assert_close(tensor, old[key], atol=1e-6, rtol=0)
    # Words are numbered as before, though these scenes would give others.
    words = [load_fusion("vilt-mini", f).tokenizer.to_json() for f in files_of(runs, tmp_path)]
    assert words[0] == words[1]


def files_of(runs, tmp_path):
    return runs / "vilt" / "model.safetensors", tmp_path / "run" / "model.safetensors"


def test_a_ranking_head_starts_as_the_matching_head(runs, tmp_path):
    run(continued(runs, heads=("rank",)), tmp_path / "run")
    old, new = map(load_file, files_of(runs, tmp_path))
    match, rank = old["heads.match.weight"][1:], new["heads.rank.weight"]
    torch.testing.assert_close(rank, match, atol=1e-6, rtol=0)


def test_the_command_line_tells_where_to_start(mmlab, runs, tmp_path):
    config = write_recipe(continued(runs, heads=("answer",)), tmp_path)
    options = ("--config", config, "--out", tmp_path / "run", "--start", "nowhere.safetensors")
    code, out, err = mmlab("train", *options)
    assert (code, out) == (2, "") and "'nowhere.safetensors'" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_trunk_starts_from_a_vit(tmp_path):
    model = {k: v for k, v in TINY_VILT.model.items() if k != "heads"} | {"stem": "linear"}
    run(replace(TINY, data="scenes", num_images=24, steps=1, model=model), tmp_path / "vit")
    start = str(tmp_path / "vit" / "model.safetensors")
    run(replace(TINY_VILT, start=start, steps=1, lr=1e-12, warmup=0), tmp_path / "run")
    vit, vilt = (load_file(tmp_path / f / "model.safetensors") for f in ("vit", "run"))
    trunk = [key for key in vit if key.startswith(("blocks.", "norm.", "patch_embedding."))]
    assert len(trunk) > 10
    for key in trunk:
        torch.testing.assert_close(vilt[key], vit[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "emoji"}, "data must be scenes: a vilt learns from their captions"),
        ({"target": "count"}, "target must be left out: the heads of a vilt say what it learns"),
        ({"label_smoothing": 0.1}, "label_smoothing must be left out"),
        ({"model": {"heads": ["sound"]}}, r"heads must be some of words, .* got \('sound',\)"),
        ({"model": {"heads": []}}, "heads must be the heads to train, and not empty"),
        ({"model": {"heads": ["words"]}}, "no 'match' head"),
        ({"model": {"num_classes": 3}}, "model must not set num_classes: the data give it"),
        ({"start": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"num_images": 1, "batch_size": 1}, "num_images must be at least 2, for false pairs"),
    ],
)
def test_a_vilt_that_cannot_be_trained_is_told(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(replace(TINY_VILT, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_of_another_shape_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"cannot start with .* must have the same shape"):
        run(continued(runs, dim=64), tmp_path / "run")
    with pytest.raises(CheckpointError, match="is no 'vilt-mini'"):
        start = str(runs / "clip" / "model.safetensors")
        run(replace(TINY_VILT, start=start), tmp_path / "run")


@pytest.mark.parametrize("recipe", [TINY, TINY_CLIP])
def test_other_systems_begin_afresh(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"start must be left out: a .* begins afresh"):
        run(replace(recipe, start="x.safetensors"), tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "zero-shot"), "unknown task 'zero-shot'; there are retrieval, vqa"),
        (("--language", "zh"), "--language must be en for a vilt"),
        (("--vendor", "fluent"), "--vendor means nothing for scenes"),
        (("--data", "emoji"), "unknown data to measure on 'emoji'; there are scenes"),
        (("--task", "vqa", "--target", "count"), "--target means nothing for vqa"),
    ],
)
def test_wrong_options_for_a_vilt_cost_one_line(mmlab, runs, arguments, message):
    code, out, err = mmlab("evaluate", "vilt", "--checkpoint", runs / "vilt", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


# Search in a folder.


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(datasets.emoji("train", "noto").images(range(6))):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    (folder / "broken.png").write_text("no picture")
    return folder


def test_search_reads_each_picture_once(mmlab, runs, pictures):
    options = ("--images", pictures, "--checkpoint", runs / "clip")
    code, out, err = mmlab("search", "a happy cat", *options, "-k", 3)
    assert code == 0 and len(out.splitlines()) == 3
    assert "broken.png' is not an image" in err
    code, out, err = mmlab("embed", *options, "--json")
    done = json.loads(out)
    assert (done["added"], done["kept"], len(done["broken"])) == (0, 6, 1)
    code, out, _ = mmlab("search", "猫", *options, "--json")
    hits = json.loads(out)
    assert len(hits) == 5 and hits[0]["score"] >= hits[-1]["score"]


@pytest.mark.parametrize(
    ("question", "folder", "message"),
    [
        ("", "pictures", "the question is empty"),
        ("cat", "nowhere", "there is no folder of pictures"),
    ],
)
def test_a_search_that_cannot_be_costs_one_line(mmlab, runs, pictures, question, folder, message):
    options = ("--images", pictures.parent / folder, "--checkpoint", runs / "clip")
    code, out, err = mmlab("search", question, *options)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_pictures_are_searched_with_a_dual_encoder(mmlab, pictures, tmp_path):
    run(replace(TINY, steps=1), tmp_path / "vit")
    code, _, err = mmlab("search", "cat", "--images", pictures, "--checkpoint", tmp_path / "vit")
    assert code == 2 and "with a clip or a flip, not 'vit-mini'" in err
