import pytest
import torch

from mmlab.datasets import Emoji
from mmlab.datasets.transforms import CLIP_MEAN, CLIP_STD, denormalize, to_uint8
from mmlab.tasks import captions
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


def only(monkeypatch, name):
    """Nothing but ``name`` changes a drawing."""
    still = {"BLEND": 0, "TURN": 0, "SLANT": 0, "ZOOM": 1, "STRETCH": 1, "SHIFT": 0, "GAMMA": 1}
    for other, nothing in {**still, "SATURATION": 0}.items():
        if other != name:
            monkeypatch.setattr(captions, f"LARGEST_{other}", nothing)


def augmented(image, count=200):
    """``count`` changed copies of one image, with its negative as the other drawing."""
    images = image.expand(count, -1, -1, -1)
    return augment_drawings(images, 255 - images, torch.Generator().manual_seed(0))


def test_the_other_drawing_is_the_fainter_of_the_two(monkeypatch):
    only(monkeypatch, "BLEND")
    blends = augmented(torch.zeros(3, 8, 8).byte()).flatten(1)
    assert (blends == blends[:, :1]).all()
    assert 0 <= blends.min() < 10 and 118 < blends.max() <= 128


@pytest.fixture
def spot():
    """Black on white, at the end of a horizontal arm from the centre."""
    image = torch.full((3, 41, 41), 255).byte()
    image[:, 19:22, 32:35] = 0
    return image


def places(images):
    """Centres of gravity of what is dark, from the image's centre: x and y."""
    dark = 1 - images[:, 0].float() / 255
    axis = torch.arange(41) - 20.0
    mass = dark.sum((1, 2))
    return (dark.sum(1) @ axis) / mass, (dark.sum(2) @ axis) / mass


def test_a_turn_keeps_the_distance_and_stays_within_its_angle(monkeypatch, spot):
    only(monkeypatch, "TURN")
    x, y = places(augmented(spot))
    angle = torch.rad2deg(torch.atan2(y, x)).abs().max()
    assert 0.9 * captions.LARGEST_TURN < angle < 1.05 * captions.LARGEST_TURN
    assert (torch.hypot(x, y) - 13).abs().max() < 0.3


@pytest.mark.parametrize("name", ["ZOOM", "STRETCH"])
def test_a_zoom_and_a_stretch_move_along_the_arm(monkeypatch, spot, name):
    only(monkeypatch, name)
    x, y = places(augmented(spot))
    largest = getattr(captions, f"LARGEST_{name}")
    assert 13 / largest - 0.3 < x.min() < 13 * (1.03 / largest)
    assert y.abs().max() < 0.1


def test_a_slant_and_a_shift_go_no_further_than_they_may(monkeypatch, spot):
    only(monkeypatch, "SHIFT")
    x, y = places(augmented(spot))
    most = captions.LARGEST_SHIFT * 41
    assert 0.9 * most < (x - 13).abs().max() <= most + 0.1
    assert 0.9 * most < y.abs().max() <= most + 0.1
    monkeypatch.undo()
    only(monkeypatch, "SLANT")
    x, y = places(augmented(spot.transpose(1, 2)))
    assert 0.9 * captions.LARGEST_SLANT < (x / y).abs().max() < 1.05 * captions.LARGEST_SLANT
    assert (y - 13).abs().max() < 0.1


def test_what_comes_in_from_outside_is_white():
    white = torch.full((50, 3, 8, 8), 255).byte()
    assert (augment_drawings(white, white, torch.Generator().manual_seed(0)) == 255).all()


def test_colours_change_channel_by_channel_and_white_and_black_stay(monkeypatch):
    only(monkeypatch, "GAMMA")
    image = torch.tensor([[0, 128, 255]]).byte().expand(3, 4, 3)
    black, grey, white = augmented(image).unbind(-1)
    assert (black == 0).all() and (white == 255).all()
    bounds = [255 * (128 / 255) ** power for power in (1.2, 1 / 1.2)]
    assert (
        bounds[0] - 1 <= grey.min() < bounds[0] + 3 and bounds[1] - 3 < grey.max() <= bounds[1] + 1
    )
    assert not torch.equal(grey[:, 0], grey[:, 1])


def test_saturation_changes_colours_and_leaves_grey(monkeypatch):
    only(monkeypatch, "SATURATION")
    grey = torch.full((3, 4, 4), 90).byte()
    assert (augmented(grey) == 90).all()
    red = torch.tensor([200, 100, 100]).byte()[:, None, None].expand(3, 4, 4)
    spread = (lambda x: x[:, 0, 0, 0] - x[:, 1, 0, 0])(augmented(red).float())
    assert 70 <= spread.min() < 75 and 125 < spread.max() <= 130


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
