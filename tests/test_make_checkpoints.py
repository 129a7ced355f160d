import json
import os
from dataclasses import replace

import pytest
import torch

from mmlab.datasets import emoji, scenes
from mmlab.hub import read_checkpoint
from mmlab.tasks.dual_encoder import dataset_retrieval, load_dual_encoder
from mmlab.tasks.fusion import load_fusion
from mmlab.tasks.questions import answer_questions
from mmlab.training.recipe import read_recipe, recipe_text
from mmlab.training.run import run
from scripts import make_checkpoints
from tests.training.tiny import (
    TINY,
    TINY_ALBEF,
    TINY_BLIP,
    TINY_BLIP2,
    TINY_CLIP,
    TINY_VILT,
    TINY_VLMO,
    write_vit,
)

CARD = "# tiny\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which to make checkpoints; the recipe ``tiny`` is there."""
    for name, folder in {
        "RECIPES": "recipes",
        "CHECKPOINTS": "data/checkpoints",
        "UNFINISHED": "unfinished",
    }.items():
        monkeypatch.setattr(make_checkpoints, name, tmp_path / folder)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/tiny.md").write_text(CARD)
    set_recipe(tmp_path, TINY)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def set_recipe(place, recipe):
    (place / "recipes/tiny.yaml").write_text(recipe_text(recipe))


def checkpoint(place):
    return place / "data/checkpoints/tiny.safetensors"


def forbid_training(monkeypatch):
    def run(*args):
        raise AssertionError("it trains")

    monkeypatch.setattr(make_checkpoints, "run", run)


def test_every_shipped_checkpoint_is_made_from_its_recipe_and_card():
    names = make_checkpoints.known_recipes()
    assert "vit-mini" in names
    for name in names:
        recipe = read_recipe(make_checkpoints.RECIPES / f"{name}.yaml")
        made = make_checkpoints.read_metadata(make_checkpoints.CHECKPOINTS / f"{name}.safetensors")
        assert make_checkpoints.is_made_from(recipe, made), f"run make checkpoints for {name}"
        assert made["mmlab.card"] == make_checkpoints.read_card(name)
    shipped = sorted(p.stem for p in make_checkpoints.CHECKPOINTS.glob("*"))
    assert shipped == names


def test_a_second_call_does_nothing(place, monkeypatch, capsys):
    assert make_checkpoints.main([]) == 0
    before = checkpoint(place).stat()
    forbid_training(monkeypatch)
    assert make_checkpoints.main([]) == 0
    assert checkpoint(place).stat().st_mtime_ns == before.st_mtime_ns
    assert capsys.readouterr().out.endswith("tiny is up to date\n")
    assert not list((place / "unfinished").glob("*"))


@pytest.mark.parametrize("change", ["recipe", "data", "damage"])
def test_another_recipe_other_data_or_a_damaged_file_train_again(change, place, monkeypatch):
    make_checkpoints.main([])
    before = checkpoint(place).read_bytes()
    if change == "recipe":
        set_recipe(place, replace(TINY, seed=1))
    elif change == "data":
        monkeypatch.setattr(make_checkpoints, "read_data", lambda folder, name: b"other")
    else:
        checkpoint(place).write_bytes(before[:1000])
    assert make_checkpoints.main([]) == 0
    assert checkpoint(place).read_bytes() != before
    assert "mmlab.metrics" in read_checkpoint(checkpoint(place)).metadata


def test_another_card_is_put_in_without_training(place, monkeypatch):
    make_checkpoints.main([])
    before = read_checkpoint(checkpoint(place))
    (place / "recipes/tiny.md").write_text("# tiny\nA better card.\n")
    forbid_training(monkeypatch)
    assert make_checkpoints.main([]) == 0
    after = read_checkpoint(checkpoint(place))
    assert after.metadata == before.metadata | {"mmlab.card": "# tiny\nA better card.\n"}
    assert all(torch.equal(after.tensors[k], t) for k, t in before.tensors.items())


def test_a_stopped_run_goes_on_and_ends_alike(place, monkeypatch, capsys):
    make_checkpoints.main([])
    whole = read_checkpoint(checkpoint(place)).tensors
    os.remove(checkpoint(place))

    def stopped(recipe, folder, resume, report):
        def stop(figures):
            if figures["step"] == 3:
                raise KeyboardInterrupt

        return run(recipe, folder, resume, stop)

    monkeypatch.setattr(make_checkpoints, "run", stopped)
    assert make_checkpoints.main([]) == 130
    assert not checkpoint(place).exists()
    assert "goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(make_checkpoints, "run", run)
    assert make_checkpoints.main([]) == 0
    assert "step 2/" not in capsys.readouterr().out
    again = read_checkpoint(checkpoint(place)).tensors
    assert all(torch.equal(again[k], t) for k, t in whole.items())


WRONG = {
    "name": (["tinny"], "unknown recipe 'tinny'; did you mean 'tiny'?"),
    "card": ([], "the recipe 'tiny' has no model card 'tiny.md' beside it"),
    "size": ([], "tiny.safetensors would have "),
    "half": ([], "is too large for half precision"),
    "disk": ([], "No space left on device"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_made_costs_one_line_and_leaves_nothing(what, place, monkeypatch, capsys):
    arguments, message = WRONG[what]

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def huge(*args):
        network = run(*args)
        network.head.bias.data.fill_(1e6)
        return network

    if what == "card":
        os.remove(place / "recipes/tiny.md")
    if what == "size":
        monkeypatch.setattr(make_checkpoints, "LARGEST", 1000)
    if what == "half":
        monkeypatch.setattr(make_checkpoints, "run", huge)
    if what == "disk":
        monkeypatch.setattr("safetensors.torch.save_file", full)
    assert make_checkpoints.main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not [path for path in (place / "data").rglob("*") if path.is_file()]


def test_a_dual_encoder_is_measured_and_brings_its_tokenizer(place, capsys):
    set_recipe(place, TINY_CLIP)
    assert make_checkpoints.main([]) == 0
    metadata = read_checkpoint(checkpoint(place)).metadata
    figures = json.loads(metadata["mmlab.metrics"])
    assert set(figures) == set(make_checkpoints.PAIR_TESTS)
    assert figures["fluent"]["num_texts"] >= 1400
    assert "fluent_held_out" in capsys.readouterr().out
    encoder = load_dual_encoder("clip-mini", checkpoint(place))
    found = dataset_retrieval(encoder, emoji("held_out", "fluent")).figures()
    assert found["text_to_image"]["r@10"] == pytest.approx(
        figures["fluent_held_out"]["text_to_image"]["r@10"], abs=0.01
    )


def test_a_model_of_pairs_is_measured_beside_held_out_combinations(place, monkeypatch, capsys):
    monkeypatch.setattr(make_checkpoints, "NUM_ASKED", 12)
    monkeypatch.setattr(make_checkpoints, "NUM_PAIRED", 5)
    set_recipe(place, TINY_VILT)
    assert make_checkpoints.main([]) == 0
    assert "questions_held_out" in capsys.readouterr().out
    figures = json.loads(read_checkpoint(checkpoint(place)).metadata["mmlab.metrics"])
    assert list(figures) == ["questions_test", "pairs_test", "questions_held_out", "pairs_held_out"]
    assert figures["pairs_held_out"]["num_texts"] == 5
    model = load_fusion("vilt-mini", checkpoint(place))
    found = answer_questions(model, scenes(12, "held_out", 32))
    assert found.accuracy == pytest.approx(figures["questions_held_out"]["accuracy"], abs=0.03)
    # Another card is put in without training.
    (place / "recipes/tiny.md").write_text("# tiny\nA better card.\n")
    forbid_training(monkeypatch)
    assert make_checkpoints.main([]) == 0


READERS_OF_PAIRS = {
    "albef": (TINY_ALBEF, ("pairs",)),
    "blip": (TINY_BLIP, ("pairs",)),
    "vlmo": (TINY_VLMO, ("pairs",)),
    "blip2": (TINY_BLIP2, ("pairs", "captions")),
}


@pytest.mark.parametrize("name", READERS_OF_PAIRS)
def test_each_reader_of_pairs_is_measured_on_both_splits(name, place, monkeypatch, capsys):
    monkeypatch.setattr(make_checkpoints, "NUM_ASKED", 5)
    monkeypatch.setattr(make_checkpoints, "NUM_PAIRED", 4)
    recipe, kinds = READERS_OF_PAIRS[name]
    if name == "blip2":
        recipe = replace(recipe, start=write_vit(place / "vit.safetensors"))
    set_recipe(place, replace(recipe, steps=2))
    assert make_checkpoints.main([]) == 0
    assert "pairs_held_out" in capsys.readouterr().out
    metadata = read_checkpoint(checkpoint(place)).metadata
    figures = json.loads(metadata["mmlab.metrics"])
    assert list(figures) == [f"{kind}_{split}" for split in ("test", "held_out") for kind in kinds]
    assert figures["pairs_test"]["num_texts"] == (4 if name == "blip2" else 5)
    assert 0 <= figures["pairs_test"]["matching_accuracy"] <= 1
    # Another card is put in without training.
    (place / "recipes/tiny.md").write_text("# tiny\nA better card.\n")
    forbid_training(monkeypatch)
    before = read_checkpoint(checkpoint(place)).tensors
    assert make_checkpoints.main([]) == 0
    after = read_checkpoint(checkpoint(place)).tensors
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize(("name", "head"), [("blip", "answers"), ("vlmo", "answer")])
def test_one_that_answers_is_asked(name, head, place, monkeypatch, capsys):
    monkeypatch.setattr(make_checkpoints, "NUM_ASKED", 3)
    monkeypatch.setattr("mmlab.tasks.questions.NUM_GUESSED_FROM", 20)
    recipe = READERS_OF_PAIRS[name][0]
    model = {**recipe.model, "heads": (head,)}
    set_recipe(place, replace(recipe, model=model, pretraining={}, steps=1))
    assert make_checkpoints.main([]) == 0
    assert "questions_held_out" in capsys.readouterr().out
