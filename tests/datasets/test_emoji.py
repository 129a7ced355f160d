import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmlab.datasets.emoji import (
    TARGETS,
    TRAINING_VENDORS,
    VENDORS,
    emoji,
    emoji_concepts,
)


def find(dataset, name):
    """The row of the concept ``name`` in a selection with one vendor."""
    return [concept.names["en"] for concept in dataset.concepts].index(name)


# The table.


def test_concepts_have_text_in_both_languages_and_at_least_three_vendors():
    for concept in emoji_concepts():
        assert {"noto", "twemoji", "fluent"} <= set(concept.vendors) <= set(VENDORS)
        assert all(concept.names[language].strip() for language in ("en", "zh"))
        assert all(concept.keywords[language] for language in ("en", "zh"))
        assert concept.emoji == "".join(
            chr(int(c.removeprefix("U+"), 16)) for c in concept.code_points
        )


def test_the_data_card_has_the_true_numbers():
    card = (Path(__file__).parents[2] / "data" / "emoji.md").read_text(encoding="utf-8")
    assert f"same {len(emoji_concepts()):,} things" in card
    for vendor in VENDORS:
        counts = [len(emoji(split, vendor)) for split in ("all", "train", "held_out")]
        assert f"| `{vendor}` | " + " | ".join(f"{count:,}" for count in counts) + " |" in card
    for group in {c.group for c in emoji_concepts()}:
        splits = [c.split for c in emoji_concepts() if c.group == group]
        counts = (len(splits), splits.count("train"), splits.count("held_out"))
        assert f"| {group} | {counts[0]} | {counts[1]} | {counts[2]} |" in card


def test_names_identify_concepts():
    concepts = emoji_concepts()
    assert [c.index for c in concepts] == list(range(len(concepts)))
    assert len({c.emoji for c in concepts}) == len(concepts)
    for language in ("en", "zh"):
        assert len({c.names[language] for c in concepts}) == len(concepts)


def test_there_are_no_skin_tones_and_no_country_flags():
    points = {point for concept in emoji_concepts() for point in concept.code_points}
    assert not points & {f"U+{c:X}" for c in range(0x1F3FB, 0x1F400)}
    assert not points & {f"U+{c:X}" for c in range(0x1F1E6, 0x1F200)}


def test_a_tenth_of_every_group_is_held_out():
    for group in {c.group for c in emoji_concepts()}:
        splits = [c.split for c in emoji_concepts() if c.group == group]
        assert abs(splits.count("held_out") - len(splits) / 10) <= 1


def test_no_held_out_concept_has_its_other_gender_among_the_training_ones():
    split = {c.names["en"]: c.split for c in emoji_concepts()}
    pairs = [(n, "wo" + n) for n in split if n.startswith("man ") and "wo" + n in split]
    assert len(pairs) > 50
    assert all(split[man] == split[woman] for man, woman in pairs)


# Selections.


def test_fluent_and_the_other_test_styles_are_in_no_default():
    assert TRAINING_VENDORS == ("noto", "twemoji", "emojione")
    sources = {emoji()[i].extra["vendor"] for i in (0, len(emoji()) // 2, -1)}
    vendors, names = emoji().targets("vendor")
    used = {names[i] for i in vendors.tolist()}
    assert sources == used == set(TRAINING_VENDORS)


def test_train_and_held_out_share_no_concept_and_make_up_all():
    for vendor in VENDORS:
        train, held_out, everything = (
            set(emoji(split, vendor).labels.tolist()) for split in ("train", "held_out", "all")
        )
        assert not train & held_out
        assert train | held_out == everything


def test_one_example_for_each_concept_and_vendor():
    dataset = emoji("all", VENDORS)
    assert len(dataset) == sum(len(concept.vendors) for concept in emoji_concepts())
    assert len(dataset) == len(dataset.labels) == len(dataset.captions()) == len(dataset.images())


@pytest.mark.parametrize("vendor", VENDORS)
def test_no_vendor_shows_one_picture_under_two_names(vendor):
    images = emoji("all", vendor).images().flatten(1)
    assert len(torch.unique(images, dim=0)) == len(images)


def test_vendors_may_be_a_string_and_keep_their_order():
    dataset = emoji("all", ("fluent", "noto"))
    both = torch.cat([emoji("all", "fluent").images(), emoji("all", "noto").images()])
    assert torch.equal(dataset.images(), both)


def test_a_drawing_does_not_depend_on_what_else_was_selected():
    alone, train = emoji("all", "twemoji"), emoji()
    row = 2000
    assert train[row].extra["vendor"] == "twemoji"
    label = int(train.labels[row])
    (place,) = torch.nonzero(alone.labels == label).flatten().tolist()
    assert torch.equal(train[row].image, alone[place].image)


# Pictures.


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("name", "strongest"), [("red heart", 0), ("green heart", 1), ("blue heart", 2)]
)
def test_pictures_show_what_their_names_say(vendor, name, strongest):
    dataset = emoji("all", vendor)
    image = dataset[find(dataset, name)].image.float()
    colored = image.amin(0) < 160
    assert int(image[:, colored].mean(1).argmax()) == strongest


@pytest.mark.parametrize("vendor", VENDORS)
def test_mirrored_concepts_are_drawn_mirrored(vendor):
    dataset = emoji("all", vendor)
    left, right = (
        dataset[find(dataset, f"backhand index pointing {side}")].image.float() / 255
        for side in ("left", "right")
    )
    assert F.mse_loss(left.flip(-1), right) < F.mse_loss(left, right) / 2


@pytest.mark.parametrize("vendor", VENDORS)
def test_most_corners_are_white_and_no_picture_is_empty(vendor):
    images = emoji("all", vendor).images()
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).float().mean() > 0.8
    assert all(int(image.amin()) < 240 for image in images)


def test_styles_differ_but_a_concept_looks_more_like_itself():
    """Nearest neighbour on blurred pixels from Twemoji to Noto is far better than chance."""
    noto, twemoji = emoji("all", "noto"), emoji("all", "twemoji")
    a, b = (
        F.normalize(F.avg_pool2d(d.images() / 255.0 - 1, 6).flatten(1), dim=1)
        for d in (noto, twemoji)
    )
    assert not torch.equal(noto.images(), twemoji.images())
    hits = (a @ b.T).argmax(1) == torch.arange(len(noto))
    assert hits.float().mean() > 0.2  # chance: 1 / 1590


# Resizing and indexing.


@pytest.mark.parametrize("image_size", [16, 96])
def test_resizing_keeps_the_picture(image_size):
    rows = [0, 100, 500]
    resized = emoji("all", "noto", image_size=image_size).images(rows)
    assert resized.shape == (3, 3, image_size, image_size)
    back = F.interpolate(resized.float(), (16, 16), mode="area")
    original = F.interpolate(emoji("all", "noto").images(rows).float(), (16, 16), mode="area")
    assert (back - original).abs().mean() < 6


def test_images_takes_any_indices_and_checks_them():
    dataset = emoji("held_out", "fluent")
    everything = dataset.images()
    picked = dataset.images(torch.tensor([3, -1, 3]))
    assert torch.equal(picked, everything[[3, len(dataset) - 1, 3]])
    assert len(dataset.images([])) == 0
    with pytest.raises(IndexError, match=f"index {len(dataset)} is out of range"):
        dataset[len(dataset)]
    with pytest.raises(ValueError, match="mask of booleans"):
        dataset.images(torch.ones(len(dataset), dtype=torch.bool))


def test_writing_into_an_image_changes_nothing_in_the_data_set():
    dataset = emoji("held_out", "noto")
    before = dataset.images()
    dataset[0].image.zero_()
    dataset.images().zero_()
    assert torch.equal(dataset.images(), before)


def test_batches_equal_single_examples():
    dataset = emoji("held_out", "noto", image_size=32)
    for row, example in zip([4, 9], dataset.__getitems__([4, 9]), strict=True):
        assert example.id == dataset[row].id
        assert torch.equal(example.image, dataset[row].image)


def test_it_can_be_sent_to_a_worker_process():
    dataset = emoji("held_out", "noto")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.images(), dataset.images())


# Texts and labels.


def test_captions_follow_language_and_kind():
    dataset = emoji("all", "noto")
    row = find(dataset, "crab")
    assert dataset.captions()[row] == "crab"
    assert dataset.captions("zh")[row] == "蟹"
    assert "zodiac" in dataset.captions("en", kind="keywords")[row].split(", ")
    assert "、" in dataset.captions("zh", kind="keywords")[row]
    assert emoji("all", "noto", language="zh").captions()[row] == "蟹"


def test_an_example_agrees_with_the_lists():
    for language in ("en", "zh"):
        dataset = emoji("all", "openmoji", language=language)
        example = dataset[10]
        assert example.label == dataset.classes[int(dataset.labels[10])]
        assert example.captions[0].language == language
        for other in ("en", "zh"):
            for kind in ("name", "keywords"):
                assert example.caption(other, kind) == dataset.captions(other, kind)[10]
        assert example.license == "CC-BY-SA-4.0"
        assert torch.equal(example.image, dataset.images([10])[0])


def test_ids_are_unique():
    ids = [example.id for example in emoji("held_out", VENDORS)]
    assert len(set(ids)) == len(ids) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_targets_mean_the_same_in_every_selection(target):
    one, classes = emoji("held_out", "fluent").targets(target)
    other, other_classes = emoji("all", ("noto", "fluent")).targets(target)
    assert classes == other_classes
    assert one.dtype == torch.int64
    assert int(one.min()) >= 0
    assert int(other.max()) < len(classes)


def test_group_target_is_the_group_of_each_example():
    dataset = emoji("held_out", "noto")
    labels, groups = dataset.targets("group")
    assert [groups[i] for i in labels] == [dataset[i].extra["group"] for i in range(len(dataset))]


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "trian"}, r"split is 'trian' \(did you mean 'train'\?\); it must be one of"),
        ({"vendors": "Fluent"}, r"vendor is 'Fluent' \(did you mean 'fluent'\?\).*openmoji"),
        ({"vendors": ("noto", "apple")}, "vendor is 'apple'; it must be one of noto"),
        ({"vendors": ()}, "vendors is empty"),
        ({"vendors": ("noto", "noto")}, "each can be named once"),
        ({"language": "de"}, "language is 'de'; it must be one of en, zh"),
        ({"image_size": 0}, "image_size is 0; it must be a whole number, 1 to 1,024"),
        ({"image_size": 10**6}, "image_size is 1000000"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        emoji(**arguments)


def test_bad_caption_and_target_names_are_named():
    dataset = emoji("held_out", "noto")
    with pytest.raises(ValueError, match=r"kind is 'keyword' \(did you mean 'keywords'\?\)"):
        dataset.captions(kind="keyword")
    with pytest.raises(ValueError, match="language is 'fr'"):
        dataset.captions("fr")
    with pytest.raises(ValueError, match="target is 'style'"):
        dataset.targets("style")
