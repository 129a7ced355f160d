import pytest
import torch

from mmlab.datasets.transforms import CLIP_MEAN, CLIP_STD, denormalize, to_uint8
from mmlab.tasks.captions import augment_drawings, emoji_captions, scene_captions


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
        concept = emoji.dataset.concepts[row]
        own = {concept.text(lang, kind) for lang in ("en", "zh") for kind in ("name", "keywords")}
        known = emoji.tokenizer.decode(emoji.input_ids[row])
        assert text in known and len(set(known)) <= len(own)
    images = to_uint8(denormalize(batch["images"], CLIP_MEAN, CLIP_STD))
    assert (images.int() - emoji.dataset.images(rows).int()).abs().max() <= 1


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


def test_augmentation_changes_each_picture_and_keeps_its_form():
    images = emoji_captions(48, 24, vendors="noto").dataset.images(range(20))
    changed = augment_drawings(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape and changed.dtype == torch.uint8
    assert all(not torch.equal(a, b) for a, b in zip(images, changed, strict=True))


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
