"""Training on shards: what is read, that a killed run goes on exactly, what is refused."""

import io
import signal
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmlab import cli
from mmlab.datasets.example import Caption, Example
from mmlab.datasets.shards import ShardOptions, ShardStream, write_shards
from mmlab.datasets.transforms import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from mmlab.hub import CheckpointError
from mmlab.tasks import streamed_captions
from mmlab.tasks.preparation import random_square
from mmlab.tasks.streamed_captions import learn_tokenizer
from mmlab.training.recipe import read_recipe, to_recipe
from mmlab.training.run import load_encoder, read_metrics, read_skipped, recipe_of, run
from mmlab.training.systems import captioned_images
from tests.training.tiny import (
    PAIR,
    TINY,
    TINY_ALBEF,
    TINY_BLIP,
    TINY_CLIP,
    TINY_VLMO,
    start,
    write_recipe,
)

LARGE = Path(__file__).parents[2] / "recipes" / "large" / "clip-vit-b-16-cc12m.yaml"


def example(number):
    """Pictures of several sizes; the color is what the caption tells."""
    height, width = 20 + number % 3, 20 + number % 5
    color = torch.tensor([(8 * number) % 256, 64 * (number % 4), 255 - 4 * number])
    image = color.to(torch.uint8)[:, None, None].expand(3, height, width).contiguous()
    return Example(f"e{number}", image, "", (Caption(f"picture number {number}"),))


def add_broken_shard(folder):
    """Three samples that cannot be used, one that can, and no end."""
    source = write_shards([example(60)], folder / "one")[0]
    with tarfile.open(source) as archive:
        png = archive.extractfile("000000000.png").read()
    members = [("a.png", png), ("b.png", png), ("b.txt", b" "), ("c.png", b"no"), ("c.txt", b"c")]
    members += [("d.png", png), ("d.txt", b"picture number 60"), ("e.png", 9000 * b"x")]
    path = folder / "broken.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(path.read_bytes()[:-12_000])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A pattern of nine shards, one of them broken."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(map(example, range(48)), folder, max_samples=6)
    add_broken_shard(folder)
    return f"{folder}/*.tar"


def recipe_on(pattern, **changes):
    model = {**TINY_CLIP.model, "image_size": 32, "patch_size": 16}
    tiny = {"data": "shards", "shards": (pattern,), "buffer": 8, "model": model}
    return replace(TINY_CLIP, **tiny | {"batch_size": 8} | changes)


def flip_on(pattern, **changes):
    recipe = recipe_on(pattern)
    model = {name: value for name, value in recipe.model.items() if name != "stem"}
    return replace(recipe, system="flip", size="mini", model=model, **changes)


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ----------------------------------------------------------------------------------------- systems


def pairs_on(pattern, system):
    tiny = {"albef": TINY_ALBEF, "blip": TINY_BLIP, "vlmo": TINY_VLMO}[system]
    ramp = {"ramp_steps": 3} if tiny.pretraining else {}
    changes = {"data": "shards", "shards": (pattern,), "buffer": 8, "steps": 5}
    return replace(tiny, **changes, pretraining={**tiny.pretraining, **ramp})


@pytest.mark.parametrize("system", ["albef", "blip", "vlmo"])
def test_other_readers_of_pairs_go_on_as_well(system, shards, tmp_path):
    """With twins and queues, and words that are masked only when a batch is there."""
    recipe = pairs_on(shards, system)
    run(recipe, tmp_path / "whole")
    with pytest.raises(Killed):
        run(recipe, tmp_path / "broken", report=killed_at(4))
    run(recipe, tmp_path / "broken", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    states = [
        torch.load(folder / "checkpoints/step-00000005/state.pt", weights_only=True)["own"]
        for folder in (tmp_path / "whole", tmp_path / "broken")
    ]
    assert same(*states)


def test_nobody_knows_the_epochs_of_a_stream(shards, tmp_path):
    recipe = replace(pairs_on(shards, "albef"), pretraining={"queue_size": 20})
    with pytest.raises(ValueError, match="ramp_steps must be told in pretraining with data: shar"):
        run(recipe, tmp_path / "run")


# ---------------------------------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    run(recipe_on(shards, steps=14), folder)
    return folder


def test_what_was_skipped_is_told(unbroken):
    counts = [line["skipped"] for line in read_metrics(unbroken / "metrics.jsonl")]
    assert counts == sorted(counts) and counts[-1] >= 4
    report = read_skipped(unbroken)
    # 14 steps of 8 are two epochs and a bit.
    assert report.num_examples == 14 * 8
    for reason in ("no caption", "broken image", "broken shard"):
        assert report.skipped[reason] >= 1
    assert any("broken.tar" in name for name in report.named)
    assert sum(report.skipped.values()) == counts[-1]


def test_the_vocabulary_comes_from_the_captions_and_stays_with_the_weights(unbroken, shards):
    last = unbroken / "checkpoints/step-00000014/model.safetensors"
    for file in (unbroken / "model.safetensors", last):
        recipe = recipe_of(file)
        encoder = load_encoder(recipe, file)
        assert encoder.tokenizer.decode(encoder.tokenizer("picture number 7").input_ids) == [
            "picture number 7"
        ]
        assert encoder.network.config.vocab_size == encoder.tokenizer.vocab_size
    assert recipe == recipe_on(shards, steps=14)


def test_training_learns(shards, tmp_path):
    run(recipe_on(shards, steps=120, warmup=5, ema_decay=0.0, checkpoint_every=120), tmp_path)
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.5


class Killed(Exception):
    pass


def killed_at(step):
    def report(figures):
        if figures["step"] == step:
            raise Killed

    return report


@pytest.mark.parametrize("steps", [(5,), (3, 9, 12)])
def test_a_broken_run_ends_with_the_weights_of_an_unbroken_one(steps, unbroken, shards, tmp_path):
    """Checkpoints are every two steps, 16 pairs: in the middle of shards and of the buffer."""
    recipe = recipe_on(shards, steps=14)
    for i, step in enumerate(steps):
        with pytest.raises(Killed):
            run(recipe, tmp_path, resume=i > 0, report=killed_at(step))
    run(recipe, tmp_path, resume=True)
    assert same(weights(tmp_path), weights(unbroken))
    broken, whole = (read_metrics(f / "metrics.jsonl") for f in (tmp_path, unbroken))
    for name in ("loss", "skipped"):
        assert [line[name] for line in broken] == [line[name] for line in whole]
    assert read_skipped(tmp_path) == read_skipped(unbroken)


def test_flip_with_two_readers_goes_on_exactly(shards, tmp_path):
    recipe = flip_on(shards, steps=9, workers=2)
    run(recipe, tmp_path / "whole")
    with pytest.raises(Killed):
        run(recipe, tmp_path / "broken", report=killed_at(5))
    run(recipe, tmp_path / "broken", resume=True)
    assert same(weights(tmp_path / "broken"), weights(tmp_path / "whole"))


def test_other_captions_are_not_gone_on_with(shards, tmp_path, monkeypatch):
    recipe = recipe_on(shards)
    with pytest.raises(Killed):
        run(recipe, tmp_path, report=killed_at(4))
    monkeypatch.setattr(streamed_captions, "CAPTIONS_TO_LEARN_FROM", 3)
    with pytest.raises(CheckpointError, match="was trained with another vocabulary"):
        run(recipe, tmp_path, resume=True)


# ---------------------------------------------------------------------------------------- the data


def test_every_pair_comes_once_an_epoch_with_its_own_picture(shards):
    data = captioned_images(recipe_on(shards))
    examples = list(ShardStream(shards, ShardOptions(epochs=1)))
    batch = data.collate(iter(examples), torch.Generator().manual_seed(0))
    texts = data.tokenizer.decode(batch["input_ids"])
    assert sorted(texts) == sorted({e.captions[0].text for e in examples}) and len(texts) == 49
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (CLIP_MEAN, CLIP_STD))
    for example, image in zip(examples, batch["images"], strict=True):
        told = (image * std + mean) * 255
        assert (told - example.image[:, :1, :1]).abs().max() < 0.6


def test_flip_s_pictures_are_normalised_with_imagenet_s_statistics(shards):
    assert captioned_images(recipe_on(shards)).statistics == (CLIP_MEAN, CLIP_STD)
    assert captioned_images(flip_on(shards)).statistics == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_caption_without_a_word_is_an_empty_one(shards):
    data = captioned_images(recipe_on(shards))
    silent = replace(example(1), captions=(Caption("\u200b"),))
    ids = data.collate([silent, example(2)], torch.Generator())["input_ids"]
    cls, sep, pad = data.tokenizer.cls_id, data.tokenizer.sep_id, data.tokenizer.pad_id
    assert ids[0].tolist() == [cls, sep] + [pad] * (ids.shape[1] - 2)


def test_a_random_square_lies_anywhere_and_fits_into_memory():
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 10, 200)
    draws = torch.Generator().manual_seed(0)
    squares = [random_square(ramp, 5, draws) for _ in range(60)]
    assert all(square.shape == (3, 5, 5) for square in squares)
    starts = [int(square[0, 0, 0]) for square in squares]
    assert min(starts) < 20 and max(starts) > 170
    # Resized first, it would be 30,000 times as wide as high: 70 GB.
    banner = torch.zeros(3, 1, 30_000, dtype=torch.uint8)
    assert random_square(banner, 512, draws).shape == (3, 512, 512)


def test_a_given_vocabulary_is_used(shards, tmp_path):
    path, few = tmp_path / "words.json", learn_tokenizer([shards], 48)
    few.save(path)
    recipe = recipe_on(shards, tokenizer=str(path))
    learned = captioned_images(replace(recipe, tokenizer="")).tokenizer
    assert learned.vocab_size > few.vocab_size
    of_emoji = replace(recipe, data="emoji", shards=())
    for data in (captioned_images(recipe), captioned_images(of_emoji)):
        assert data.tokenizer.to_json() == few.to_json()


# ----------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": ()}, "shards must be the tar files to read, got ()"),
        ({"data": "emoji"}, "shards must be left out with data: emoji"),
        ({"system": "vit", "model": {}}, "data must be emoji or scenes: shards hold no classes"),
        ({"shards": ("nowhere-{0..3}.tar",)}, "4 of 4 shards are missing"),
        ({"workers": 10}, "9 shards cannot be shared by 10 parts"),
        ({"tokenizer": "nowhere.json"}, "there is no tokenizer at 'nowhere.json'"),
        ({"buffer": 0}, "buffer must be an integer of at least 1"),
        ({"target": "group"}, "target must be left out"),
        ({"beta2": 1.0}, "beta2 must be in [0, 1)"),
        ({"eps": 0.0}, "eps must be a positive number"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(changes, message, shards, tmp_path):
    with pytest.raises(ValueError) as caught:
        run(recipe_on(shards, **changes), tmp_path / "run")
    assert message in str(caught.value) and not (tmp_path / "run").exists()


def test_a_classifier_takes_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="tokenizer must be left out"):
        run(replace(TINY, tokenizer="words.json"), tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_without_a_usable_pair_end_in_one_line(workers, shards, tmp_path, capsys):
    path = tmp_path / "words.json"
    learn_tokenizer([shards], 60).save(path)
    write_shards([replace(example(n), captions=()) for n in range(4)], tmp_path, max_samples=2)
    recipe = recipe_on(f"{tmp_path}/*.tar", tokenizer=str(path), workers=workers)
    code = cli.main(["train", "--config", write_recipe(recipe, tmp_path), "--out", f"{tmp_path}/r"])
    told = capsys.readouterr().err
    assert code == 2 and told.count("\n") == 1
    assert told.startswith("mmlab: no usable sample in a whole round of 2 shards")


def test_a_list_of_shards_survives_its_file(tmp_path):
    one, two = (to_recipe({"data": "shards", "shards": s}) for s in ("a.tar", ["a.tar", "b.tar"]))
    assert one.shards == ("a.tar",) and two.shards == ("a.tar", "b.tar")
    assert read_recipe(write_recipe(two, tmp_path)) == two
    with pytest.raises(ValueError, match="shards must be a text, or a list of texts, got 3"):
        to_recipe({"data": "shards", "shards": 3})


def test_a_model_of_shards_is_measured_on_other_data(unbroken, capsys):
    command = ["evaluate", "clip", "--checkpoint", str(unbroken)]
    assert cli.main(command) == 2
    assert "unknown data to measure on 'shards'; there are emoji, scenes" in capsys.readouterr().err
    assert cli.main([*command, "--data", "scenes", "--num-images", "8"]) == 0


# ------------------------------------------------------------------------------- the large recipe


@pytest.mark.slow
def test_the_large_recipe_runs_on_two_processes_and_goes_on_after_a_kill(shards, tmp_path):
    """As it is, but for sizes: a tiny model, few steps, our shards, one of them broken."""
    words = tmp_path / "words.json"
    learn_tokenizer([shards], 60).save(words)
    tiny = recipe_on(shards, tokenizer=str(words))
    sizes = {n: getattr(tiny, n) for n in ("shards", "tokenizer", "model", "buffer", "batch_size")}
    sizes |= {"steps": 40, "warmup": 4, "checkpoint_every": 3, "workers": 2}
    path = write_recipe(replace(read_recipe(LARGE), **sizes), tmp_path)

    def pair(folder, *more):
        options = ("--config", path, "--out", str(folder), *more)
        return start("train", *options, launcher=PAIR)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = pair(whole)
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    killed = pair(broken)
    while len(read_metrics(broken / "metrics.jsonl")) < 14:
        assert killed.poll() is None
    # The launcher passes it on to both processes.
    killed.send_signal(signal.SIGTERM)
    killed.communicate()
    assert killed.returncode != 0 and not (broken / "model.safetensors").exists()

    alone = start("train", "--config", path, "--out", str(broken), "--resume")
    _, errors = alone.communicate()
    assert alone.returncode == 2 and "is a run of 2 processes that read shards" in errors

    resumed = pair(broken, "--resume")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert same(weights(whole), weights(broken))
    lines = read_metrics(broken / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 41))
    for name in ("loss", "skipped"):
        assert [line[name] for line in lines] == [
            line[name] for line in read_metrics(whole / "metrics.jsonl")
        ]
    report = read_skipped(broken)
    assert report == read_skipped(whole) and report.num_examples == 40 * sizes["batch_size"]
    assert {"no caption", "broken image", "broken shard"} <= report.skipped.keys()
    assert f"{report.num_examples} examples" in errors
