"""Recipes that begin with an image encoder and a BERT of others."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.hub import CheckpointError
from mmlab.training.blip2_system import load_trained
from mmlab.training.run import new_model, run, training_data
from mmlab.training.starting import check_parts
from mmlab.training.systems import SYSTEMS
from tests.hub.published import beit_shapes, bert_shapes, deit_shapes, eva_shapes, write
from tests.training.tiny import (
    TINY_ALBEF,
    TINY_BLIP,
    TINY_BLIP2,
    TINY_VILT,
    TINY_VLMO,
    on_shards,
    write_recipe,
)

PARTS = ("start_image", "start_text")
ADDED = {"albef": 0, "blip": 2, "blip2": 1}
WORDS = {"albef": "text_encoder", "blip": "text_encoder", "blip2": "qformer"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A vocabulary, and files of others that fit it and the tiny models."""
    folder = tmp_path_factory.mktemp("files")
    lines = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    letters = [chr(number) for number in range(97, 123)]
    lines += [
        "red",
        "circle",
        "##s",
        *letters,
        *(f"##{letter}" for letter in letters if letter != "s"),
    ]
    lines += list("0123456789.,?")
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    write(folder / "bert.bin", bert_shapes(len(lines), depth=2, positions=64, old=True))
    write(folder / "deit.pth", deit_shapes(48))
    write(folder / "eva.pth", eva_shapes(32, depth=2))
    write(folder / "beit.pth", beit_shapes(48, 8, depth=2))
    return folder


def recipe_of(system, files, **changes):
    tiny = {"albef": TINY_ALBEF, "blip": TINY_BLIP, "blip2": TINY_BLIP2}[system]
    model = dict(tiny.model)
    if system != "albef":
        model["text_depth"] = 2
    if system == "blip2":
        model |= {"image_encoder": "eva", "stem": "linear"}
    image = "eva.pth" if system == "blip2" else "deit.pth"
    given = {"start_image": str(files / image), "start_text": str(files / "bert.bin")}
    given |= {"tokenizer": str(files / "vocab.txt"), "model": model}
    return replace(tiny, **given | changes)


def fresh(recipe):
    """The same network without the files."""
    recipe = replace(recipe, start_image="", start_text="")
    if recipe.system == "blip2":
        recipe = replace(recipe, model={**recipe.model, "freeze_images": False})
    return new_model(recipe, training_data(recipe))


@pytest.mark.parametrize("system", ADDED)
def test_the_network_and_its_twin_begin_with_both(system, files):
    recipe = recipe_of(system, files)
    data = training_data(recipe)
    module = new_model(recipe, data)
    theirs = torch.load(files / "bert.bin", weights_only=True)["model"]
    words = module.network.state_dict()[f"{WORDS[system]}.embeddings.word_embedding.weight"]
    table = theirs["bert.embeddings.word_embeddings.weight"]
    assert len(words) == data.tokenizer.vocab_size == len(table) + ADDED[system]
    assert torch.equal(words[: len(table)], table)
    same_class = module.network.image_encoder.state_dict()["class_token"]
    image = torch.load(recipe.start_image, weights_only=True)["model"]
    assert torch.equal(same_class, image["cls_token"])
    if system == "blip2":
        assert not any(p.requires_grad for p in module.network.image_encoder.parameters())
        return
    twin = dict(module.momentum.network.state_dict())
    for key in ("image_encoder.class_token", "text_encoder.blocks.0.mlp.fc1.weight"):
        assert torch.equal(twin[key], module.network.state_dict()[key])
    # What no file tells is drawn as it would be without them.
    other = fresh(recipe).network.state_dict()
    for key in ("heads.match.weight", "text_encoder.blocks.1.cross_attention.q_proj.weight"):
        if key in other:
            assert torch.equal(module.network.state_dict()[key], other[key])


def test_one_may_be_named_without_the_other(files):
    recipe = replace(recipe_of("albef", files), start_text="")
    module, other = new_model(recipe, training_data(recipe)), fresh(recipe)
    for part, kept in (("image_encoder", False), ("text_encoder", True)):
        pairs = (getattr(m.network, part).state_dict() for m in (module, other))
        ones, twos = pairs
        assert all(torch.equal(ones[key], twos[key]) for key in ones) == kept


def test_the_command_line_tells_what_was_taken(files, mmlab, tmp_path):
    config = write_recipe(replace(recipe_of("albef", files), steps=1), tmp_path)
    code, _, err = mmlab("train", "--config", config, "--out", tmp_path / "run")
    lines = [line for line in err.splitlines() if line.startswith(("start:", "afresh:"))]
    assert code == 0 and len(lines) == 3
    assert "deit.pth" in lines[0] and "10 positions are interpolated to 5" in lines[0]
    assert "head.weight" not in lines[0] and "left out are head" in lines[0]
    assert "bert.bin" in lines[1] and "left out are pooler" in lines[1]
    assert lines[2] == (
        "afresh: heads.contrast, heads.match, text_encoder.blocks.*.cross_attention, "
        "text_encoder.blocks.*.cross_norm"
    )


def test_the_files_may_be_told_on_the_command_line(files, mmlab, tmp_path):
    config = write_recipe(replace(TINY_ALBEF, steps=1), tmp_path)
    given = ("--start-image", files / "deit.pth", "--start-text", files / "bert.bin")
    given += ("--tokenizer", files / "vocab.txt", "--out", tmp_path / "run")
    code, _, err = mmlab("train", "--config", config, *given)
    assert code == 0 and "start: " in err
    assert (tmp_path / "run/model.safetensors").is_file()


def test_a_run_that_began_with_files_is_resumed_and_used_as_any_other(files, tmp_path):
    class Stopped(Exception):
        pass

    def stop(figures):
        if figures["step"] == 3:
            raise Stopped

    recipe = recipe_of("blip", files, steps=4)
    run(recipe, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(recipe, tmp_path / "broken", report=stop)
    run(recipe, tmp_path / "broken", resume=True)
    ones, twos = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "broken"))
    assert all(torch.equal(ones[key], twos[key]) for key in ones)
    # Its words and shapes are in the file: what comes next starts with it alone.
    start = str(tmp_path / "whole" / "model.safetensors")
    after = replace(recipe, start=start, start_image="", start_text="", tokenizer="")
    begun = new_model(after, training_data(after)).network.state_dict()
    assert all(torch.equal(begun[key], ones[key]) for key in ones)


def test_shards_are_read_with_the_words_of_the_bert(files, tmp_path):
    recipe = on_shards(recipe_of("albef", files, steps=2), tmp_path / "shards")
    recipe = replace(recipe, pretraining={**recipe.pretraining, "ramp_steps": 2})
    run(recipe, tmp_path / "run")
    assert (tmp_path / "run/model.safetensors").is_file()
    # As many tokens as the official code takes, though the model has room for more.
    data = training_data(replace(recipe, model={**recipe.model, "context_length": 64}))
    assert data.context_length == 25 and data.tokenizer.vocab_size > 60


def test_checkpoints_on_the_way_find_what_is_frozen_where_the_run_did(files, tmp_path):
    recipe = recipe_of("blip2", files, steps=2, ema_decay=0.0)
    run(recipe, tmp_path)
    on_the_way = tmp_path / "checkpoints/step-00000002/model.safetensors"
    assert not [key for key in load_file(on_the_way) if key.startswith("image_encoder")]
    # The BERT is not needed any more.
    recipe = replace(recipe, start_text="nowhere.bin")
    ones, twos = (
        load_trained(recipe, file).state_dict()
        for file in (tmp_path / "model.safetensors", on_the_way)
    )
    assert ones.keys() == twos.keys()
    assert all(torch.equal(ones[key], twos[key]) for key in ones)


# VLMo.


def vlmo_on(files, heads=("words",), **changes):
    model = {**TINY_VLMO.model, "image_size": 32, "patch_size": 8, "heads": heads}
    return replace(TINY_VLMO, model=model, start_image=str(files / "beit.pth"), **changes)


@pytest.mark.parametrize("heads", [("words",), ("contrast", "fusion_contrast", "match", "words")])
def test_a_vlmo_begins_with_a_beit(heads, files):
    recipe = vlmo_on(files, heads)
    module = new_model(recipe, training_data(recipe))
    theirs = torch.load(files / "beit.pth", weights_only=True)["model"]
    found = module.network.state_dict()
    for i in range(2):
        ours = found[f"blocks.{i}.experts.image.mlp.fc2.weight"]
        assert torch.equal(ours, theirs[f"blocks.{i}.mlp.fc2.weight"])
    # Of 6 x 6 patches there, 4 x 4 here.
    assert module.network.config.grid == (4, 4)
    learns = module.network.blocks[0].attention.q_proj.weight.requires_grad
    assert learns == (heads != ("words",))


# What cannot be.


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (TINY_VILT, {"start_image": "x"}, "start_image must be left out: a vilt takes none"),
        (TINY_VLMO, {"start_text": "x"}, "start_text must be left out: a vlmo takes none"),
        (TINY_ALBEF, {"start_image": "x", "start": "y"}, "start_image must be left out with start"),
        (TINY_BLIP, {"start_text": "x"}, "tokenizer must be told with start_text: the vocabulary"),
    ],
)
def test_files_where_none_belong_are_refused(recipe, changes, message):
    recipe = replace(recipe, **changes)
    with pytest.raises(ValueError, match=message):
        training_data(recipe)
    assert set(SYSTEMS["albef"].starts) == set(PARTS)
    check_parts(TINY_ALBEF, ())


@pytest.mark.parametrize(
    ("system", "changes", "message"),
    [
        ("albef", {"start_text": "nowhere.bin"}, "nowhere.bin"),
        ("albef", {"start_image": "bert.bin"}, "bert.bin' is a BERT, and no image encoder"),
        ("albef", {"start_text": "deit.pth"}, "deit.pth': it is no BERT"),
        ("blip", {"start_image": "eva.pth"}, "eva.pth'"),
        ("albef", {"tokenizer": "other.json"}, r"bert.bin' knows \d+ words, the tokenizer \d+; a"),
        ("blip", {"mlp_dim": 32}, r"deit.pth' is no image encoder .* mlp_dim=64 \(not 32\)"),
        ("blip2", {"text_mlp_dim": 32}, r"bert.bin' is no BERT .* mlp_dim=64 \(not 32\)"),
        ("albef", {"heads": ("answers",)}, "heads must be those of pretraining: questions are l"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(system, changes, message, files, tmp_path):
    words = [f"picture {number} of a cat" for number in range(30)]
    train_wordpiece(words, 60).save(files / "other.json")
    recipe = recipe_of(system, files)
    fields = {k: str(files / v) for k, v in changes.items() if k in (*PARTS, "tokenizer")}
    model = {k: v for k, v in changes.items() if k not in fields}
    if "answers" in model.get("heads", ()):
        fields["pretraining"] = {}
    recipe = replace(recipe, **fields, model={**recipe.model, **model})
    with pytest.raises(ValueError, match=message) as caught:
        run(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    if not model:
        assert isinstance(caught.value, CheckpointError)
