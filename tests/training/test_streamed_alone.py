"""The stages of VLMo on shards of one kind: images alone, texts alone."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mmlab import datasets
from mmlab.datasets import shards as module
from mmlab.datasets.shards import ShardError, write_shards
from mmlab.tasks.fusion import load_fusion
from mmlab.tasks.streamed_captions import learn_tokenizer
from mmlab.training.run import read_metrics, read_skipped, run, training_data
from tests.training.tiny import TINY_VLMO


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The same scenes as pairs, as images alone, and as texts alone."""
    folder = tmp_path_factory.mktemp("shards")
    scenes = list(datasets.scenes(24, "train", 40))
    nothing = torch.zeros(3, 0, 0, dtype=torch.uint8)
    parts = {
        "pairs": scenes,
        "images": [replace(scene, captions=()) for scene in scenes],
        "texts": [replace(scene, image=nothing) for scene in scenes],
    }
    for name, examples in parts.items():
        write_shards(examples, folder / name, max_samples=6)
    learn_tokenizer([f"{folder}/texts/*.tar"], 200, wants="texts").save(folder / "words.json")
    return folder


def stage(shards, kind, heads, **changes):
    given = {"data": "shards", "shards": (f"{shards}/{kind}/*.tar",), "buffer": 8}
    return replace(TINY_VLMO, model={**TINY_VLMO.model, "heads": heads}, **given | changes)


class Stopped(Exception):
    pass


def stop(figures):
    if figures["step"] == 3:
        raise Stopped


@pytest.fixture(scope="module")
def vision(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "vision"
    words = str(shards / "words.json")
    run(stage(shards, "images", ("codes",), tokenizer=words), folder)
    return folder


def test_images_alone_are_the_first_stage(vision):
    assert read_skipped(vision).num_examples == 6 * 8 and not read_skipped(vision).skipped
    line = read_metrics(vision / "metrics.jsonl")[-1]
    assert 0 < line["loss"] < 10 and line["skipped"] == 0


def test_texts_alone_are_the_second_and_go_on_exactly(shards, vision, tmp_path):
    start = str(vision / "model.safetensors")
    recipe = stage(shards, "texts", ("words",), start=start)
    run(recipe, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(recipe, tmp_path / "broken", report=stop)
    run(recipe, tmp_path / "broken", resume=True)
    ones, twos = (load_file(tmp_path / f / "model.safetensors") for f in ("whole", "broken"))
    assert all(torch.equal(ones[key], twos[key]) for key in ones)
    # Words are numbered as in the stage before, and images are read as there.
    before, after = (
        load_fusion("vlmo-mini", f / "model.safetensors") for f in (vision, tmp_path / "whole")
    )
    assert before.tokenizer.to_json() == after.tokenizer.to_json()
    images = torch.randn(2, 3, 32, 32)
    paths = [model.network.image_paths(images).tokens for model in (before, after)]
    assert torch.equal(*paths)
    # Pairs come third.
    heads = ("contrast", "fusion_contrast", "match", "words")
    start = str(tmp_path / "whole" / "model.safetensors")
    run(stage(shards, "pairs", heads, start=start, steps=1), tmp_path / "pairs")


def test_texts_alone_bring_their_words_and_no_image_is_decoded(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "decode_image", lambda *given: pytest.fail("it is decoded"))
    for kind in ("texts", "pairs"):
        recipe = stage(shards, kind, ("words",), steps=1)
        assert training_data(recipe).tokenizer.vocab_size > 40
        run(recipe, tmp_path / kind)


def test_a_batch_has_what_its_stage_wants(shards):
    words = str(shards / "words.json")
    examples = list(datasets.scenes(4, "train", 40))
    for kind, heads, keys in (
        ("images", ("codes",), {"images"}),
        ("texts", ("words",), {"input_ids", "word_ids"}),
        ("pairs", ("contrast", "match", "words"), {"images", "input_ids", "word_ids"}),
    ):
        data = training_data(stage(shards, kind, heads, tokenizer=words))
        batch = data.collate(examples, torch.Generator().manual_seed(0))
        assert batch.keys() == keys and data.wants == kind


def test_what_is_missing_is_told(shards, tmp_path):
    with pytest.raises(ValueError, match="tokenizer must be told: images alone bring no words"):
        training_data(stage(shards, "images", ("codes",)))
    with pytest.raises(ShardError, match="no caption in 4 shards, and no tokenizer is named"):
        training_data(stage(shards, "images", ("words",)))
    words = str(shards / "words.json")
    with pytest.raises(ShardError, match=r"no usable sample .*48 no image"):
        run(stage(shards, "texts", ("codes",), tokenizer=words), tmp_path / "run")
