import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmlab.datasets.photos import NAMES, photos

pytest.importorskip("skimage", reason='needs pip install "mmlab[photos]"')
pytest.importorskip("sklearn", reason='needs pip install "mmlab[photos]"')


def mean_color(image, box):
    x0, y0, x1, y1 = map(round, box)
    return image[:, y0:y1, x0:x1].float().mean((1, 2))


def test_the_pictures_are_those_of_the_packages():
    skimage_data = pytest.importorskip("skimage.data")
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        expected = torch.from_numpy(getattr(skimage_data, name)().copy()).permute(2, 0, 1)
        assert torch.equal(photos()[name].image, expected)


def test_names_and_numbers_find_the_same_example():
    dataset = photos()
    assert len(dataset) == len(NAMES) == 6
    for i, name in enumerate(NAMES):
        assert dataset[i].id == dataset[name].id == f"photo-{name}"
        assert dataset[i].label == dataset.classes[int(dataset.labels[i])]
    assert dataset[-1].id == "photo-flower"


def test_every_photograph_has_captions_regions_author_and_licence():
    for example in photos():
        assert {(c.language, c.kind) for c in example.captions} == {
            (language, kind) for language in ("en", "zh") for kind in ("short", "detailed")
        }
        assert example.regions and example.license and example.extra["author"]
        assert example.regions[0].category == example.label


def test_the_data_card_names_size_author_and_licence():
    card = (Path(__file__).parents[2] / "data" / "photographs.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in card.splitlines()]
    table = {row[0].strip("`"): row for row in rows if len(row) == 7}
    for name, example in zip(NAMES, photos(), strict=True):
        _, label, pixels, regions, package, author, license = table[name]
        height, width = example.image.shape[-2:]
        assert (label, pixels) == (example.label, f"{width} × {height}")
        assert regions == str(len(example.regions))
        assert (package, license) == (example.source.split(":")[0], example.license)
        assert author.startswith(example.extra["author"])


def test_captions_are_in_the_order_of_the_examples():
    dataset = photos()
    for language in ("en", "zh"):
        for kind in ("short", "detailed"):
            assert dataset.captions(language, kind) == [e.caption(language, kind) for e in dataset]
    assert all(c.isascii() for c in dataset.captions("en"))
    assert not any(c.isascii() for c in dataset.captions("zh"))


@pytest.mark.parametrize("image_size", [None, 224])
def test_boxes_are_inside_and_captions_point_at_them(image_size):
    for example in photos(image_size):
        height, width = example.image.shape[-2:]
        for region in example.regions:
            x0, y0, x1, y1 = region.box
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        for caption in example.captions:
            assert caption.alignment and "[" not in caption.text
            for link in caption.alignment:
                words = caption.text[link.start : link.end]
                region = example.regions[link.region]
                if caption.language == "en":
                    assert any(part in words for part in region.category.split())


def test_boxes_hold_the_objects():
    """Colors that only the objects have: box by box, before and after the crop."""
    for image_size in (None, 160):
        dataset = photos(image_size)
        dahlia, rocket = dataset["flower"], dataset["rocket"]
        red, _, blue = mean_color(dahlia.image, dahlia.regions[0].box)
        assert red > 2 * blue
        assert mean_color(dahlia.image, (0, 0, 20, 20))[0] < 30
        on, sky = mean_color(rocket.image, rocket.regions[0].box), rocket.regions[0].box
        beside = mean_color(rocket.image, (sky[0] - 20, sky[1], sky[0] - 4, sky[3] - 40))
        assert on.mean() > 1.5 * beside.mean()


def test_squares_are_the_middle_of_the_picture():
    example, original = photos(150)["chelsea"], photos()["chelsea"].image
    assert example.image.shape == (3, 150, 150)
    middle = original[None, :, :, 75:375].float()  # 451 x 300: the middle 300 columns
    expected = F.interpolate(middle, (25, 25), mode="area")[0]
    difference = F.interpolate(example.image[None].float(), (25, 25), mode="area")[0] - expected
    assert difference.abs().mean() < 3


def test_boxes_move_with_the_crop():
    original, cropped = photos()["chelsea"].regions, photos(150)["chelsea"].regions
    x0, y0, x1, y1 = original[1].box  # the left eye, wholly inside; half the size, 75 pixels off
    expected = ((x0 - 75.5) / 2, y0 / 2, (x1 - 75.5) / 2, y1 / 2)
    assert cropped[1].box == pytest.approx(expected, abs=0.6)


def test_regions_out_of_the_square_are_dropped_with_their_links():
    full, cropped = photos()["rocket"], photos(224)["rocket"]
    assert len(full.regions) == 5 and len(cropped.regions) == 3
    (links,) = [c.alignment for c in cropped.captions if (c.language, c.kind) == ("en", "detailed")]
    assert sorted(link.region for link in links) == [0, 1, 2]
    assert [cropped.regions[link.region].category for link in links] == ["rocket", "tower", "tower"]


def test_images_needs_one_size():
    with pytest.raises(ValueError, match=r"differ in size; choose one: photos\(image_size=224\)"):
        photos().images()
    assert photos().images(["rocket", "china"]).shape == (2, 3, 427, 640)
    batch = photos(64).images()
    assert batch.shape == (6, 3, 64, 64)
    assert torch.equal(batch[1], photos(64)["chelsea"].image)
    assert photos(64).images([]).shape == (0, 3, 64, 64)


def test_writing_into_an_image_changes_nothing_in_the_data_set():
    dataset = photos()
    before = dataset["coffee"].image.clone()
    dataset["coffee"].image.zero_()
    assert torch.equal(dataset["coffee"].image, before)


def test_unknown_names_and_numbers():
    with pytest.raises(KeyError, match=r"'chelsae' \(did you mean 'chelsea'\?\)"):
        photos()["chelsae"]
    with pytest.raises(IndexError, match="index 6 is out of range for 6 images"):
        photos()[6]
    with pytest.raises(ValueError, match="image_size is 0"):
        photos(0)
    with pytest.raises(ValueError, match="language is 'fr'"):
        photos().captions("fr")


@pytest.mark.parametrize(
    ("module", "package"), [("skimage", "scikit-image"), ("sklearn", "scikit-learn")]
)
def test_a_missing_package_gives_the_command_to_run(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{package}: run `pip install "mmlab\[photos\]"`'):
        photos()
