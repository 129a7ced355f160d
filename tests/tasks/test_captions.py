import pytest
import torch

from mmlab.datasets import Emoji
from mmlab.datasets.transforms import CLIP_MEAN, CLIP_STD, denormalize, to_uint8
from mmlab.tasks.captions import augment_drawings, emoji_captions, same_labels, scene_captions


@pytest.fixture(scope="module")
def emoji():
    return emoji_captions(image_size=48, context_length=24)


def draw(data, rows, share=slice(None), seed=0):
    return data.batch(rows, share, torch.Generator().manual_seed(seed))


def test_an_image_comes_with_one_of_its_own_captions(emoji):
    rows = torch.arange(0, 600, 7)
    batch = draw(emoji, rows)
    texts = emoji.tokenizer.decode(batch["input_ids"])
    for row, text in zip(rows.tolist(), texts, strict=True):
        concept = emoji.dataset.concepts[emoji.drawings[row, -1]]
        own = {concept.text(lang, kind) for lang in ("en", "zh") for kind in ("name", "keywords")}
        known = emoji.tokenizer.decode(emoji.input_ids[row])
        assert text in known and len(set(known)) <= len(own)
    images = to_uint8(denormalize(batch["images"], CLIP_MEAN, CLIP_STD))
    for row, image in zip(rows.tolist(), images.int(), strict=True):
        own = emoji.dataset.images(emoji.drawings[row]).int()
        assert (own - image).abs().flatten(1).amax(1).min() <= 1


def test_all_captions_come_up_in_both_languages(emoji):
    rows = torch.zeros(200, dtype=torch.int64)
    texts = emoji.tokenizer.decode(draw(emoji, rows)["input_ids"])
    assert set(texts) == set(emoji.tokenizer.decode(emoji.input_ids[0]))
    assert any("一" <= letter <= "龥" for text in texts for letter in text)
    assert "grinning face" in texts


def test_captions_are_cut_to_the_longest(emoji):
    batch = draw(emoji, torch.arange(8))["input_ids"]
    pads = batch == emoji.tokenizer.pad_id
    assert not pads.all(0).any() and (batch[:, 0] == emoji.tokenizer.cls_id).all()
    assert ((batch == emoji.tokenizer.sep_id).sum(1) == 1).all()


@pytest.mark.parametrize("augment", [False, True])
def test_shares_of_a_batch_make_the_whole(augment):
    data = emoji_captions(image_size=32, context_length=24, vendors="noto", augment=augment)
    rows = torch.arange(12)
    whole = draw(data, rows)
    parts = [draw(data, rows, slice(start, start + 6)) for start in (0, 6)]
    for name in ("images", "input_ids"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    again = draw(data, rows, seed=1)
    assert torch.equal(again["images"], whole["images"]) != augment


def test_only_the_share_is_drawn(monkeypatch):
    data = emoji_captions(image_size=32, context_length=24, vendors="noto", augment=True)
    asked, images = [], Emoji.images
    monkeypatch.setattr(
        Emoji, "images", lambda self, rows: asked.append(rows.tolist()) or images(self, rows)
    )
    draw(data, torch.arange(12), slice(4, 8))
    # A concept has one drawing in one style, so the other drawing is the same.
    assert asked == [[4, 5, 6, 7]] * 2


def test_augmentation_changes_each_picture_and_keeps_its_form():
    images = emoji_captions(48, 24, vendors="noto").dataset.images(range(20))
    changed = augment_drawings(images, images.flip(-1), torch.Generator().manual_seed(0))
    assert changed.shape == images.shape and changed.dtype == torch.uint8
    assert all(not torch.equal(a, b) for a, b in zip(images, changed, strict=True))


def test_the_other_drawing_is_the_fainter_of_the_two():
    black, white = torch.zeros(200, 3, 8, 8).byte(), torch.full((200, 3, 8, 8), 255).byte()
    blends = augment_drawings(black, white, torch.Generator().manual_seed(0))[:, 0, 0, 0]
    assert 0 <= blends.min() < 10 and 118 < blends.max() <= 128


def test_a_concept_comes_with_its_drawings_and_no_others(emoji):
    labels = emoji.dataset.labels[emoji.drawings]
    assert len(emoji) == len(labels) == len(emoji.dataset.labels.unique())
    assert (labels == labels[:, :1]).all() and len(labels[:, 0].unique()) == len(labels)
    assert set(emoji.drawings.flatten().tolist()) == set(range(len(emoji.dataset)))


def test_all_drawings_of_a_concept_come_up(emoji):
    images = draw(emoji, torch.zeros(60, dtype=torch.int64))["images"]
    assert len(images.flatten(1).unique(dim=0)) == 3


def test_rows_with_the_same_label():
    labels = torch.tensor([5, 9, 5, 7, 5, 9])
    assert same_labels(labels).tolist() == [[0, 2, 4], [3, 3, 3], [1, 5, 1]]


def test_an_english_name_comes_up_in_half_of_the_batches(emoji):
    texts = emoji.tokenizer.decode(emoji.input_ids[0])
    assert texts.count("grinning face") == 4 and len(texts) == 8 and len(set(texts)) == 4


def test_no_held_out_concept_and_no_fluent_drawing_is_trained_on(emoji):
    assert {concept.split for concept in emoji.dataset.concepts} == {"train"}
    assert "fluent" not in emoji.dataset.vendors and "openmoji" not in emoji.dataset.vendors


def test_scenes_with_captions_of_each_level():
    data = scene_captions(image_size=32, context_length=64, num_images=20)
    assert data.input_ids.shape == (20, 3, 64) and not data.augment
    texts = data.tokenizer.decode(data.input_ids[3])
    assert texts[0] == data.dataset.captions("en", "short")[3]


def test_a_tokenizer_can_be_given(emoji):
    again = emoji_captions(48, 24, vendors="noto", tokenizer=emoji.tokenizer)
    assert again.tokenizer is emoji.tokenizer
