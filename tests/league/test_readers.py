"""Every system of the league as a reader, after one step of the engine."""

import copy
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from mmlab import datasets
from mmlab.datasets.regions import ToyDetector
from mmlab.datasets.tokenizer import read_tokenizer, train_wordpiece
from mmlab.hub import CheckpointError
from mmlab.league.finetuning import SEEN, FineTuning, finetune, predict
from mmlab.league.readers import load_reader, square_boxes, text_reader
from mmlab.league.region_readers import READ_REGIONS
from mmlab.nn import patchify
from mmlab.tasks.classification import scene_images
from mmlab.tasks.downstream.nlvr2 import nlvr2_items
from mmlab.tasks.dual_encoder import load_dual_encoder
from mmlab.tasks.fusion import load_fusion, pick
from mmlab.tasks.reranking import ReadApart
from mmlab.training.region_systems import detector_of, load_trained_regions
from mmlab.training.run import run, training_data
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

NUM_SCENES = 40
_FLIP = {name: value for name, value in TINY_CLIP.model.items() if name != "stem"}
_RECIPES = {
    "vit": TINY,
    "clip": replace(TINY, system="clip", model={}),
    "clip-vit": TINY_CLIP,
    "flip": replace(TINY_CLIP, system="flip", size="mini", model={**_FLIP, "patch_size": 8}),
    "vilt": replace(TINY_VILT, model={**TINY_VILT.model, "heads": ("words", "match")}),
    "vlmo": TINY_VLMO,
    "albef": TINY_ALBEF,
    "blip": TINY_BLIP,
    "blip2": TINY_BLIP2,
    **{name: replace(TINY, system=name, model={}) for name in READ_REGIONS},
}
_SHORT = {"data": "scenes", "num_images": NUM_SCENES, "most_objects": 2, "ema_decay": 0.0}
_SHORT |= {"steps": 1, "warmup": 0, "batch_size": 8}
RECIPES = {name: replace(recipe, **_SHORT) for name, recipe in _RECIPES.items()}
SYSTEMS = (*RECIPES, "text-only")
COMPARED = ("clip", "clip-vit", "flip")
TOKENS_SAW_TEXT = ("vilt", "vlmo", *READ_REGIONS)
MATCHING = ("vilt", "vlmo", "albef", "blip", "blip2", *READ_REGIONS)
ROWS = torch.arange(6)


class Trained(NamedTuple):
    name: str
    recipe: object
    weights: object
    reader: object
    dataset: object

    def images(self, rows=ROWS):
        return self.reader.prepared(self.dataset, rows)

    def ids(self, texts=None):
        return self.reader.tokens(texts or self.dataset.captions("en", "short")[:6])


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The file of a vocabulary that all systems share."""
    path = tmp_path_factory.mktemp("words") / "words.json"
    scenes = datasets.scenes(NUM_SCENES, num_objects=(1, 2))
    train_wordpiece([t for k in ("short", "medium") for t in scenes.captions("en", k)]).save(path)
    return path


@pytest.fixture(scope="module")
def train(tmp_path_factory, words):
    """Runs a recipe, once, and gives its recipe and the file of its weights."""
    found, folder = {}, tmp_path_factory.mktemp("runs")

    def trained(name):
        if name not in found:
            recipe = RECIPES[name]
            if name != "vit":
                recipe = replace(recipe, tokenizer=str(words))
            if name == "blip2":
                recipe = replace(recipe, start=write_vit(folder / "vit.safetensors"))
            run(recipe, folder / name)
            found[name] = recipe, folder / name / "model.safetensors"
        return found[name]

    return trained


@pytest.fixture(scope="module")
def load(train, words):
    found = {}

    def loaded(name):
        if name in found:
            return found[name]
        if name == "text-only":
            recipe, weights = None, None
            reader = text_reader(read_tokenizer(words), 64, seed=0)
        else:
            recipe, weights = train(name)
            reader = load_reader(recipe, weights, read_tokenizer(words))
        size = reader.image_size
        dataset = datasets.scenes(NUM_SCENES, "train", size, num_objects=(1, 2))
        found[name] = Trained(name, recipe, weights, reader, dataset)
        return found[name]

    return loaded


@pytest.fixture(params=SYSTEMS)
def system(request, load):
    made = load(request.param)
    made.reader.eval().zero_grad()
    return made


@torch.no_grad()
def read(system, images, ids):
    return system.reader(images, ids)


# What comes out.


def test_a_reading_has_the_widths_that_the_reader_tells(system):
    reading = read(system, system.images(), system.ids())
    assert reading.joint.shape == (6, system.reader.dim)
    assert reading.tokens.shape[::2] == (6, system.reader.token_dim)
    places = reading.tokens.shape[1]
    assert reading.boxes.shape == (6, places, 4) and reading.valid.shape == (6, places)
    assert reading.joint.isfinite().all() and reading.tokens.isfinite().all()
    assert reading.valid.any(1).all()
    assert reading.boxes.min() >= 0 and reading.boxes.max() <= 1


def test_a_loaded_reader_is_in_evaluation_and_says_the_same_twice(system):
    assert not system.reader.training
    given = system.images(), system.ids()
    first, second = (read(system, *given) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_row_does_not_depend_on_the_others(system):
    images, ids = system.images(), system.ids()
    together = read(system, images, ids)
    row = torch.tensor([4])
    alone = read(system, pick(images, row), ids[row])
    assert torch.allclose(alone.joint, together.joint[4:5], atol=1e-5)
    found = alone.tokens[alone.valid]
    assert torch.allclose(found, together.tokens[4:5][together.valid[4:5]], atol=1e-5)


def test_a_longer_text_beside_it_changes_nothing(system):
    short, long = "a circle", "a big red circle left of a small blue square on a white background"
    row, image = torch.tensor([0]), system.images(torch.tensor([0]))
    alone = read(system, image, system.ids([short]))
    beside = read(system, pick(image, torch.tensor([0, 0])), system.ids([short, long]))
    assert torch.allclose(alone.joint, beside.joint[row], atol=1e-5)
    assert torch.allclose(alone.tokens, beside.tokens[row], atol=1e-5)


# What it hangs on.


def changes(before, after, atol=1e-5):
    return ((before - after).abs() > atol).flatten(1).any(1)


def test_the_vector_depends_on_picture_and_text_where_both_are_read(system):
    images, ids = system.images(), system.ids(["a red circle"] * 6)
    other_ids = system.ids(["two blue squares"] * 6)
    before = read(system, images, ids)
    other_text = changes(before.joint, read(system, images, other_ids).joint)
    other_image = changes(before.joint, read(system, system.images(ROWS + 6), ids).joint)
    assert torch.equal(other_text, torch.full((6,), system.name != "vit"))
    assert torch.equal(other_image, torch.full((6,), system.name != "text-only"))


def test_only_some_systems_let_places_see_the_text(system):
    images = system.images()
    before = read(system, images, system.ids(["a red circle"] * 6)).tokens
    after = read(system, images, system.ids(["two blue squares"] * 6)).tokens
    if system.name in TOKENS_SAW_TEXT:
        assert changes(before, after).all()
    else:
        assert torch.equal(before, after)


def test_nothing_of_a_picture_is_left_in_a_blank_one(system):
    images, ids = system.images(), system.ids(["a red circle"] * 6)
    shown, blank = (read(system, x, ids) for x in (images, system.reader.blank(images)))
    assert all(torch.equal(part, part[:1].expand_as(part)) for part in blank)
    if system.name != "text-only":
        assert changes(shown.joint, blank.joint).all()


def test_no_blank_picture_has_a_tag(load):
    oscar = load("oscar")
    images = oscar.images()
    blank = oscar.reader.blank(images)
    text = oscar.ids(["a red circle"] * 6)
    tagged, bare = (oscar.reader.model.raw_pairs(x, text)["tag_mask"] for x in (images, blank))
    assert tagged.any(1).all() and not bare.any()
    assert blank.features.count_nonzero() == 0 and blank.mask.all()
    assert blank.boxes.tolist() == [[[0, 0, 64, 64]]] * 6


# Where places are.


@pytest.mark.parametrize("side", [1, 2, 3])
def test_squares_stand_where_patches_are_cut(side):
    pixels = (torch.arange(6 * side) + 0.5) / (6 * side)
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    means = patchify(torch.stack([x, y])[None], 6)[0].unflatten(1, (2, 36)).mean(-1)
    boxes = square_boxes(side)
    assert torch.allclose(means, (boxes[:, :2] + boxes[:, 2:]) / 2)
    assert torch.allclose((boxes[:, 2:] - boxes[:, :2]).prod(-1).sum(), torch.tensor(1.0))


PLACES = {
    **{"vit": 9, "clip": 4, "clip-vit": 9, "flip": 36, "vilt": 4, "vlmo": 4, "albef": 4},
    **{"blip": 4, "blip2": 4, "text-only": 1},
}


@pytest.mark.parametrize("name", PLACES)
def test_squares_cover_the_picture(name, load):
    system = load(name)
    reading = read(system, system.images(), system.ids())
    wanted = square_boxes(round(PLACES[name] ** 0.5))
    assert torch.equal(reading.boxes, wanted.expand(6, -1, -1)) and reading.valid.all()


@pytest.mark.parametrize("name", READ_REGIONS)
def test_places_of_regions_are_the_boxes_of_the_detector(name, load):
    system = load(name)
    reading = read(system, system.images(), system.ids())
    found = detector_of(system.recipe).detect(system.dataset, ROWS)
    boxes, valid = found.boxes / 64, found.mask
    # ViLBERT has one for the whole image besides, which is left out.
    assert reading.tokens.shape[1] == found.mask.shape[1]
    assert torch.equal(reading.valid, valid)
    assert torch.equal(reading.boxes[valid], boxes[valid])


# The vectors are those that pretraining made.


@pytest.mark.parametrize("name", COMPARED)
def test_dual_encoders_compare_their_own_features(name, load):
    system = load(name)
    encoder = load_dual_encoder(system.recipe.model_name, system.weights)
    images = encoder.encode_images(system.dataset.images(ROWS))
    texts = encoder.encode_texts(system.dataset.captions("en", "short")[:6])
    made = read(system, system.images(), system.ids()).joint.chunk(4, dim=1)
    wanted = images, texts, images * texts, (images - texts).abs()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made, wanted, strict=True))


@pytest.mark.parametrize("name", MATCHING)
def test_the_matching_head_of_pretraining_reads_the_vector(name, load):
    system, texts = load(name), load(name).dataset.captions("en", "short")[:6]
    images, ids = system.images(), system.ids()
    head = system.reader.network.head("match")
    logits = head(read(system, images, ids).joint).detach()
    if name in READ_REGIONS:
        model = load_trained_regions(system.recipe, system.weights)
        matched = logits[:, model.matched]
        others = logits[:, torch.arange(logits.shape[1]) != model.matched].logsumexp(1)
        assert torch.allclose(matched - others, model.match(images, texts), atol=1e-5)
    elif name in ("vilt", "vlmo"):
        model = load_fusion(system.recipe.model_name, system.weights)
        assert torch.allclose(logits[:, 1] - logits[:, 0], model.match(images, texts), atol=1e-5)
    else:
        found = ReadApart(system.reader.network, images, ids).fits(ROWS, ROWS)
        assert torch.allclose(logits[:, 1], found, atol=1e-5)


def test_a_vit_gives_what_it_classifies_by(load):
    system = load("vit")
    network = system.reader.network
    images = system.images()
    logits = network.head(read(system, images, system.ids()).joint)
    assert torch.allclose(logits, network(images), atol=1e-5)
    data = scene_images(48, "", "train", NUM_SCENES, 0, 2)
    batch = data.batch(ROWS, slice(None), torch.Generator())
    assert torch.equal(images, batch["images"])


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in (*READ_REGIONS, "vit")])
def test_pixels_are_those_of_training(name, load):
    system = load(name)
    data = training_data(system.recipe)
    batch = data.batch(ROWS, slice(None), torch.Generator().manual_seed(0))
    assert torch.allclose(system.images(), batch["images"])


# Learning.


ONLY_PRETRAINED = (
    *("network.heads.", "network.head.", "network.logit_scale", "network.text_decoder."),
    "network.region_embedding.mask_embedding.",
)
"""What begins the names of weights that no reading comes through."""


WORDS = ("word_embedding.weight", "token_embedding.weight")


def is_read(name):
    """VLMo's last blocks read pairs by their fusion experts alone."""
    alone = ".blocks.1.experts.image." in name or ".blocks.1.experts.text." in name
    return not name.startswith(ONLY_PRETRAINED) and not alone


def test_gradients_reach_all_that_reads(system):
    reader = system.reader
    reader.train()
    reading = reader(system.images(), system.ids())
    (reading.joint.square().sum() + reading.tokens.square().sum()).backward()
    learning = {name: p for name, p in reader.named_parameters() if p.requires_grad}
    reached = {name for name, p in learning.items() if p.grad is not None}
    assert reached == set(filter(is_read, learning))
    words = [learning[name].grad for name in reached if name.endswith(WORDS)]
    assert len(words) == (system.name != "vit") and all(grad.any() for grad in words)


@pytest.mark.parametrize("name", ["vit", "clip-vit", "blip2", "oscar", "text-only"])
def test_a_task_is_learned_on_a_copy_alone(name, load):
    system, before = load(name), load(name).reader.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    copied, items = copy.deepcopy(system.reader), nlvr2_items(system.dataset, 8)
    model = finetune(copied, system.dataset, items, FineTuning(steps=2, views=8), seed=0)
    for see in SEEN:
        logits = predict(model, system.dataset, items, see)
        assert logits.shape == (8, 2) and logits.isfinite().all()
    after, own = copied.state_dict(), system.reader.state_dict()
    assert all(torch.equal(before[key], own[key]) for key in own)
    changed = {key for key in own if not torch.equal(own[key], after[key])}
    assert changed
    assert not any(key.startswith("network.image_encoder.") for key in changed) or name != "blip2"


def test_the_frozen_part_of_blip2_stays_as_it_is(load):
    reader = load("blip2").reader
    reader.train()
    encoder = reader.network.image_encoder
    assert reader.network.qformer.training and not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    reader.eval()


# Data sets, texts, files.


def test_each_data_set_is_looked_at_once(load, monkeypatch):
    system, calls, detect = load("uniter"), [], ToyDetector.detect
    monkeypatch.setattr(ToyDetector, "detect", lambda *given: calls.append(1) or detect(*given))
    others = [datasets.scenes(8, "train", 64, seed=seed) for seed in (7, 8, 7)]
    shown = [system.reader.prepared(other, torch.tensor([5, 2, 5])) for other in others]
    assert len(calls) == 2
    for other, regions in zip(others, shown, strict=True):
        own = detector_of(system.recipe).detect(other).select(torch.tensor([5, 2, 5]))
        assert torch.equal(own.features, regions.features)
        assert torch.equal(own.boxes, regions.boxes)


def test_a_text_that_is_too_long_is_cut(system):
    long = "a red circle left of a blue square and " * 20 + "a ring"
    ids = system.ids(["a circle", long])
    read(system, system.images(torch.tensor([0, 1])), ids)
    assert (ids[1] == system.reader.tokenizer.pad_id).sum() == 0


def test_only_texts_of_albef_have_no_end(system):
    ends = system.ids(["a circle"])[0, -1] == system.reader.tokenizer.sep_id
    assert ends == (system.name != "albef")


def test_scenes_of_another_size_are_refused(system):
    small = datasets.scenes(4, "train", 80)
    with pytest.raises(ValueError, match="image_size of the scenes"):
        system.reader.prepared(small, ROWS[:2])


def test_a_vit_needs_a_tokenizer(train):
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_reader(*train("vit"))


def test_the_tokenizer_of_the_file_comes_first(train):
    other = train_wordpiece(["a wholly different text", "no scene at all"])
    recipe, weights = train("vilt")
    reader = load_reader(recipe, weights, other)
    assert reader.tokenizer.to_json() == read_tokenizer(recipe.tokenizer).to_json()


OTHERS = {"vilt": "vlmo", "vlmo": "vilt", "uniter": "oscar", "clip": "clip-vit", "blip2": "albef"}


@pytest.mark.parametrize("name", OTHERS)
def test_the_weights_of_another_system_are_refused(name, train):
    (recipe, _), (_, weights) = train(name), train(OTHERS[name])
    wanted = f"not a {recipe.model_name!r}"
    with pytest.raises(CheckpointError, match=wanted) as caught:
        load_reader(recipe, weights)
    assert "\n" not in str(caught.value)


def test_a_system_without_a_reader_is_refused(train):
    recipe, weights = train("uniter")
    with pytest.raises(ValueError, match="unknown system with a reader 'vlbert'"):
        load_reader(replace(recipe, system="vlbert"), weights)


def test_the_text_reader_is_drawn_from_its_seed_alone(words):
    tokenizer = read_tokenizer(words)
    before = torch.random.get_rng_state()
    first, same, other = (text_reader(tokenizer, 64, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(
        first["network.embeddings.word_embedding.weight"],
        other["network.embeddings.word_embedding.weight"],
    )
