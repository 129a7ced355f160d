"""Scenes: what is drawn is what the scene graph says, and each image stands alone."""

import pytest
import torch

from mmlab.datasets.scenes import (
    COLORS,
    HELD_OUT,
    PALETTE,
    SHAPES,
    Scenes,
    scenes,
)
from mmlab.datasets.scenes.vocabulary import INVERSE


@pytest.fixture(scope="module")
def train() -> Scenes:
    return scenes(300, image_size=48)


def extent(mask: torch.Tensor) -> tuple[int, int, int, int]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return tuple(int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


@pytest.mark.parametrize("image_size", [32, 64, 96])
def test_boxes_agree_with_the_drawn_masks_within_a_pixel(image_size):
    data = scenes(40, image_size=image_size, seed=3)
    worst = 0.0
    for i, example in enumerate(data):
        masks = data.masks(i)
        assert len(masks) == len(example.regions)
        for mask, region in zip(masks, example.regions, strict=True):
            gaps = [abs(a - b) for a, b in zip(extent(mask), region.box, strict=True)]
            worst = max(worst, *gaps)
    assert worst <= 1.0


def test_every_shape_has_an_exact_box():
    """At 256 pixels a pixel is a hundredth of the smallest object."""
    data, seen = scenes(60, image_size=256), set()
    for i in range(len(data)):
        for mask, thing in zip(data.masks(i), data.scene(i).objects, strict=True):
            seen.add(thing.shape)
            box = thing.box(256)
            assert max(abs(a - b) for a, b in zip(extent(mask), box, strict=True)) <= 1.0
    assert seen == set(SHAPES)


def test_objects_stay_inside_and_apart(train):
    for i, scene in enumerate(train.scenes):
        boxes = [o.box(1) for o in scene.objects]
        for a, box in enumerate(boxes):
            assert min(box) >= 0 and max(box) <= 1, i
            for other in boxes[:a]:
                apart = max(
                    other[0] - box[2], box[0] - other[2], other[1] - box[3], box[1] - other[3]
                )
                assert apart > 0.02, i


def test_masks_do_not_overlap(train):
    for i in range(40):
        assert train.masks(i).sum(0).max() <= 1


def test_solid_objects_have_the_color_of_the_palette():
    data = scenes(70, image_size=96)
    images = data.images()
    checked = set()
    for i, scene in enumerate(data.scenes):
        for mask, thing in zip(data.masks(i), scene.objects, strict=True):
            if thing.texture == "solid" and thing.size == "large":
                pixels = images[i][:, mask].float().T
                median = pixels.median(0).values
                distance = {c: (median - torch.tensor(PALETTE[c])).norm() for c in COLORS}
                assert min(distance, key=distance.get) == thing.color
                checked.add(thing.color)
    assert checked == set(COLORS)


def test_textures_change_the_look(train):
    """Within an object, a solid one varies less in color than a textured one."""
    spread = {"solid": [], "other": []}
    images = train.images()
    for i, scene in enumerate(train.scenes):
        for thing in scene.objects:
            if thing.size == "large" and thing.shape == "square":
                x0, y0, x1, y1 = (int(v) for v in thing.box(48))
                inside = images[i][:, y0 + 4 : y1 - 4, x0 + 4 : x1 - 4].float()
                key = "solid" if thing.texture == "solid" else "other"
                spread[key].append(float(inside.std(dim=(1, 2)).max()))
    assert max(spread["solid"]) < min(spread["other"])


def test_image_depends_on_seed_split_and_index_alone(train):
    chosen = [250, 3, 3, -1, 17]
    assert torch.equal(train.images(chosen), train.images()[chosen])
    assert torch.equal(train[17].image, train.images([17])[0])
    larger = scenes(900, image_size=48)
    assert torch.equal(larger.images(range(50)), train.images(range(50)))
    assert larger.captions()[:50] == train.captions()[:50]
    assert [e.questions for e in larger.__getitems__([7, 8])] == [
        train[7].questions,
        train[8].questions,
    ]


def test_seeds_and_splits_are_different_streams(train):
    first = {im.numpy().tobytes() for im in train.images()}
    for other in (
        scenes(300, image_size=48, seed=1),
        scenes(300, "validation", image_size=48),
        scenes(300, "test", image_size=48),
        scenes(300, "held_out", image_size=48),
    ):
        assert not first & {im.numpy().tobytes() for im in other.images()}


def test_same_scene_at_every_size():
    small, large = scenes(20, image_size=32), scenes(20, image_size=96)
    assert small.scenes == large.scenes
    assert small.captions() == large.captions()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_held_out_combinations_never_occur(split):
    for scene in scenes(1500, split).scenes:
        assert not {(o.color, o.shape) for o in scene.objects} & set(HELD_OUT)


def test_held_out_split_always_shows_one_and_in_any_place():
    data, first = scenes(600, "held_out"), 0
    for scene in data.scenes:
        novel = [(o.color, o.shape) in HELD_OUT for o in scene.objects]
        assert any(novel)
        first += novel[0]
    assert first < 500


def test_own_held_out_combinations():
    pairs = [["pink", "ring"], ["blue", "cross"]]
    shown = {(o.color, o.shape) for s in scenes(2000, held_out=pairs).scenes for o in s.objects}
    assert len(shown) == len(COLORS) * len(SHAPES) - 2
    assert not shown & {("pink", "ring"), ("blue", "cross")}


def test_no_two_objects_look_the_same():
    for scene in scenes(2000, held_out=()).scenes:
        looks = [(o.shape, o.color, o.size, o.texture) for o in scene.objects]
        assert len(set(looks)) == len(looks)


def test_relations_agree_with_boxes_and_with_their_inverse(train):
    for example in train.__getitems__(list(range(80))):
        edges = {(r.subject, r.predicate, r.object) for r in example.relations}
        assert {(o, INVERSE[p], s) for s, p, o in edges} == edges
        centers = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (r.box for r in example.regions)]
        for i, (x, y) in enumerate(centers):
            for j, (other_x, other_y) in enumerate(centers):
                if i != j:
                    assert ((i, "left of", j) in edges) == (other_x - x > 4.8)
                    assert ((i, "below", j) in edges) == (y - other_y > 4.8)
                    spatial = {"left of", "right of", "above", "below"}
                    assert any((i, p, j) in edges for p in spatial)


def test_largest_object_leads_by_fifteen_percent(train):
    labels, classes = train.targets("largest_shape")
    assert torch.equal(labels, train.labels) and classes == train.classes
    for i, scene in enumerate(train.scenes):
        radii = sorted(o.radius for o in scene.objects)
        assert len(radii) == 1 or radii[-1] >= 1.15 * radii[-2] * (1 - 1e-9)
        largest = max(scene.objects, key=lambda o: o.radius)
        assert classes[labels[i]] == largest.shape
    assert train[5].label == classes[labels[5]]


def test_targets_name_what_the_scene_holds(train):
    for name, truth in {
        "count": lambda s: str(len(s.objects)),
        "background": lambda s: s.background,
        "largest_color": lambda s: max(s.objects, key=lambda o: o.radius).color,
        "largest_texture": lambda s: max(s.objects, key=lambda o: o.radius).texture,
    }.items():
        labels, classes = train.targets(name)
        assert [classes[k] for k in labels] == [truth(s) for s in train.scenes]


def patches(image: torch.Tensor, size: int) -> list[bytes]:
    grid = image.unfold(1, size, size).unfold(2, size, size)
    return [p.numpy().tobytes() for p in grid.permute(1, 2, 0, 3, 4).flatten(0, 1)]


@pytest.mark.parametrize(
    ("image_size", "patch_sizes"), [(32, (4, 8)), (64, (4, 8, 16)), (96, (12,))]
)
def test_bag_of_patches_says_nothing_of_left_and_right(image_size, patch_sizes):
    data = scenes(120, image_size=image_size, layout="left_right")
    images, (labels, classes) = data.images(), data.targets("left_right")
    assert classes == ("red right of blue", "red left of blue")
    for i in range(0, 120, 2):
        assert labels[i] != labels[i + 1]
        for size in patch_sizes:
            first, second = (patches(images[k], size) for k in (i, i + 1))
            assert sorted(first) == sorted(second)
            assert first != second
    assert 0.3 < labels[::2].float().mean() < 0.7


def test_left_right_label_agrees_with_the_boxes():
    data = scenes(30, layout="left_right")
    labels, _ = data.targets("left_right")
    for label, example in zip(labels, data, strict=True):
        x = {r.attributes[0]: r.box[0] for r in example.regions}
        assert (x["red"] < x["blue"]) == bool(label)


def test_num_objects():
    assert {len(s.objects) for s in scenes(200, num_objects=(2, 3)).scenes} == {2, 3}
    assert {len(s.objects) for s in scenes(400).scenes} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": -3}, "num_images is -3"),
        ({"image_size": 8}, "image_size is 8; .* 32 to 256"),
        ({"image_size": 300}, "image_size is 300"),
        ({"seed": -1}, "seed is -1"),
        ({"split": "trian"}, "trian.*train, validation, test, held_out"),
        ({"layout": "grid"}, "grid.*free, left_right"),
        ({"num_objects": (0, 4)}, r"num_objects is \(0, 4\)"),
        ({"num_objects": (3, 2)}, "low <= high"),
        ({"held_out": (("red", "cube"),)}, "cube.*circle"),
        ({"held_out": [("red", s) for s in SHAPES]}, "no image with red"),
        ({"held_out": (), "split": "held_out"}, "held_out is empty"),
        ({"layout": "left_right", "split": "held_out"}, "no split 'held_out'"),
        ({"layout": "left_right", "image_size": 50}, "multiple of 4"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        scenes(**arguments)


def test_bad_indices_and_targets(train):
    for index in (300, -301):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 300"):
            train[index]
        with pytest.raises(IndexError):
            train.images([0, index])
        with pytest.raises(IndexError):
            train.masks(index)
    with pytest.raises(ValueError, match="booleans"):
        train.images(torch.ones(300, dtype=torch.bool))
    with pytest.raises(ValueError, match="largest_shape"):
        train.targets("largest")
    with pytest.raises(ValueError, match="layout='left_right'"):
        train.targets("left_right")


def test_no_indices_give_no_images(train):
    assert train.images([]).shape == (0, 3, 48, 48)
    assert train.__getitems__([]) == []
