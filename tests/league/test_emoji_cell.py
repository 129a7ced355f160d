"""The emoji track: a style that nothing was trained on."""

from dataclasses import replace

import pytest

from mmlab import datasets
from mmlab.league import emoji as track
from mmlab.league.emoji import emoji_figures
from mmlab.training.evaluation import choose, measure
from mmlab.training.run import run
from tests.training.tiny import TINY, TINY_CLIP


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    recipe = replace(TINY_CLIP, steps=2, warmup=0)
    folder = tmp_path_factory.mktemp("runs") / "clip"
    run(recipe, folder)
    return recipe, folder / "model.safetensors"


def test_the_figures_are_those_of_the_engine_beside_chance(done):
    found = emoji_figures(*done)
    assert found["vendor"] == "fluent" and "fluent" not in datasets.emoji().vendors
    known, new = len(datasets.emoji("train", "fluent")), len(datasets.emoji("held_out", "fluent"))
    for figures, num in ((found, known), (found["held_out"], new)):
        retrieval, zero_shot = figures["retrieval"], figures["zero_shot"]
        assert retrieval["num_images"] == retrieval["num_texts"] == num == zero_shot["num_images"]
        chance = {"r@1": 1 / num, "r@5": 5 / num, "r@10": 10 / num}
        assert retrieval["chance"] == pytest.approx(chance)
        classes = zero_shot["num_classes"]
        assert classes == len(datasets.emoji().classes)
        assert zero_shot["chance"] == pytest.approx({"accuracy": 1 / classes, "top5": 5 / classes})
        assert 0 <= zero_shot["accuracy"] <= zero_shot["top5"] <= 1
    measured = measure(*done, "retrieval", choose("emoji", {"split": "held_out"}), "en")
    assert measured.items() <= found["held_out"]["retrieval"].items()


def test_each_figure_is_of_its_own_split_and_task(done, monkeypatch):
    asked = []

    def told(recipe, weights, task, where, language):
        asked.append((task, where["split"], where["vendor"]))
        number = len(asked)
        if task == "retrieval":
            return {"r": number, "num_images": 4, "num_texts": 4}
        return {"top1": number, "top5": number, "num_images": 4, "num_classes": 3}

    monkeypatch.setattr(track, "measure", told)
    found = emoji_figures(*done)
    assert asked == [
        *(("retrieval", "train", "fluent"), ("zero-shot", "train", "fluent")),
        *(("retrieval", "held_out", "fluent"), ("zero-shot", "held_out", "fluent")),
    ]
    assert (found["retrieval"]["r"], found["zero_shot"]["accuracy"]) == (1, 2)
    assert found["held_out"]["retrieval"]["r"] == 3
    assert found["held_out"]["zero_shot"]["accuracy"] == 4
    # Five of three classes are all.
    assert found["zero_shot"]["chance"]["top5"] == 1


def test_only_dual_encoders_on_emoji(done):
    recipe, weights = done
    with pytest.raises(ValueError, match="data must be emoji"):
        emoji_figures(replace(recipe, data="scenes"), weights)
    with pytest.raises(ValueError, match="system must be a dual encoder, clip or flip"):
        emoji_figures(TINY, weights)
