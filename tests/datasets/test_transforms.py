"""Image transforms against Pillow, against exact cases, and against bad input."""

import inspect
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from mmlab.datasets import transforms as T
from mmlab.datasets.transforms.randaugment import rotate, shear_x, translate_x, translate_y

PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8)


def picture(height, width, seed=0):
    """Smooth in places, sharp in others, like a photograph."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin(x / (3 + c)) * torch.cos(y / (5 - c)) for c in range(3)]
    image = (torch.stack(waves) * 90 + 128).to(torch.uint8)
    image[:, height // 3 : height // 2, width // 4 : width // 2] = 250
    return torch.where(torch.rand(height, width, generator=seeded(seed)) < 0.1, 7, image)


def to_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pillow(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def difference(a, b):
    """Largest difference in 8-bit levels."""
    return (a.int() - b.int()).abs().max().item()


# ---------------------------------------------------------------------------------- number formats


def test_every_uint8_value_survives_the_way_to_float_and_back():
    values = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    floats = T.to_float(values)
    assert floats.min() == 0 and floats.max() == 1
    assert torch.equal(T.to_uint8(floats), values)
    assert torch.equal(T.to_uint8(T.to_float(floats)), values)


def test_to_uint8_clamps_instead_of_wrapping_around():
    assert T.to_uint8(torch.tensor([-0.1, 0.5, 1.2])[:, None, None]).flatten().tolist() == [
        0,
        128,
        255,
    ]


@pytest.mark.parametrize("name", ["IMAGENET", "CLIP", "VIT"])
def test_denormalize_undoes_normalize(name):
    mean, std = getattr(T, f"{name}_MEAN"), getattr(T, f"{name}_STD")
    images = noise(2, 4, 3, 5, 6)
    normal = T.normalize(images, mean, std)
    assert torch.equal(T.to_uint8(T.denormalize(normal, mean, std)), images)
    assert torch.allclose(
        normal[..., 1, :, :], (T.to_float(images)[..., 1, :, :] - mean[1]) / std[1]
    )


# ------------------------------------------------------------------------------- resizing, cropping


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (17, 61), (224, 180), (1, 1), (5, 1), (1, 5)])
def test_resize_equals_pillow(interpolation, size):
    height, width = size

    def pillow(image):
        return from_pillow(to_pillow(image).resize((width, height), PILLOW_FILTERS[interpolation]))

    image = picture(96, 130)
    assert difference(T.resize(image, size, interpolation), pillow(image)) <= 1
    # Half the contrast: between its two passes Pillow clips what the bicubic kernel overshoots.
    soft = image // 2 + 64
    as_float = T.to_uint8(T.resize(T.to_float(soft), size, interpolation))
    assert difference(as_float, pillow(soft)) <= 2


def test_antialiasing_keeps_the_mean_of_a_fine_pattern():
    """Every second column white: shrunk by four it is grey, and without antialiasing it is not."""
    stripes = torch.zeros(3, 64, 64)
    stripes[..., ::4] = 1
    smooth, aliased = T.resize(stripes, 16), T.resize(stripes, 16, antialias=False)
    assert torch.allclose(smooth[..., 1:-1], torch.tensor(0.25), atol=0.02)
    assert (aliased - 0.25).abs().max() > 0.2


def test_an_int_size_is_the_shorter_side():
    assert T.resize(noise(3, 40, 100), 20).shape == (3, 20, 50)
    assert T.resize(noise(3, 100, 40), 20).shape == (3, 50, 20)
    assert T.resize(noise(3, 224, 301), 224).shape == (3, 224, 301)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_resize_keeps_the_kind_of_tensor(dtype):
    images = T.to_float(picture(20, 30)).to(dtype) if dtype.is_floating_point else picture(20, 30)
    resized = T.resize(images, 9)
    assert resized.dtype == dtype
    expected = T.to_uint8(T.resize(T.to_float(picture(20, 30)), 9))
    assert difference(T.to_uint8(resized), expected) <= 2


def test_extreme_sizes():
    pixel = noise(3, 1, 1)
    assert torch.equal(T.resize(pixel, 5), pixel.expand(3, 5, 5))
    assert T.resize(noise(3, 2, 20_000), 1).shape == (3, 1, 10_000)


def test_center_crop_takes_the_middle():
    images = noise(2, 3, 9, 12)
    assert torch.equal(T.center_crop(images, (3, 4)), images[..., 3:6, 4:8])
    assert torch.equal(T.center_crop(images, (9, 12)), images)


def find_crops(crops, image, height, width):
    """Where each crop was cut from; every pixel of ``image`` has its own value."""
    corners = crops[:, 0, 0, 0].long() * 256 + crops[:, 1, 0, 0].long()
    corners = [divmod(int(corner), image.shape[-1]) for corner in corners]
    for crop, (top, left) in zip(crops, corners, strict=True):
        assert torch.equal(crop, image[:, top : top + height, left : left + width])
    return corners


def numbered(height, width):
    index = torch.arange(height * width).reshape(height, width)
    return torch.stack([index // 256, index % 256, index * 0]).to(torch.uint8)


def test_random_crops_are_exact_cuts_at_every_place():
    image = numbered(20, 24)
    crops = T.random_crop(image.expand(300, 3, 20, 24), (17, 22), seeded())
    places = find_crops(crops, image, 17, 22)
    assert set(places) == {(top, left) for top in range(4) for left in range(3)}


def test_crop_boxes_hold_their_bounds():
    height, width, scale, ratio = 120, 90, (0.2, 0.7), (0.5, 2.0)
    boxes = T.sample_crop_boxes(2000, height, width, scale, ratio, seeded()).float()
    x0, y0, x1, y1 = boxes.unbind(1)
    assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
    share = (x1 - x0) * (y1 - y0) / (height * width)
    aspect = (x1 - x0) / (y1 - y0)
    # Sides are whole pixels, hence the slack.
    assert share.min() > 0.2 - 0.02 and share.max() < 0.7 + 0.02
    assert aspect.min() > 0.5 - 0.03 and aspect.max() < 2 + 0.1
    assert share.min() < 0.23 and share.max() > 0.67 and aspect.max() > 1.6


def test_crop_boxes_reach_every_place():
    boxes = T.sample_crop_boxes(300, 4, 5, scale=(0.2, 0.2), ratio=(1, 1), generator=seeded())
    places = {(x, y, x + 2, y + 2) for x in range(4) for y in range(3)}
    assert set(map(tuple, boxes.tolist())) == places


def test_crop_boxes_fall_back_to_the_centre_when_nothing_fits():
    boxes = T.sample_crop_boxes(5, 10, 400, scale=(0.9, 1.0), generator=seeded())
    # The largest box with ratio 4/3 in 10 x 400 is 10 high and 13 wide.
    assert boxes.tolist() == [[193, 0, 206, 10]] * 5
    assert T.sample_crop_boxes(1, 1, 1, generator=seeded()).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [8, (30, 21), 64])
def test_crop_and_resize_is_pillows_crop_then_resize(interpolation, size):
    images = torch.stack([picture(50, 70, seed) for seed in range(6)]) // 2 + 64
    boxes = T.sample_crop_boxes(6, 50, 70, scale=(0.05, 1), generator=seeded())
    ours = T.crop_and_resize(images, boxes, size, interpolation)
    height, width = (size, size) if isinstance(size, int) else size
    batched = T.resample_boxes(T.to_float(images), boxes, height, width, interpolation)
    for image, box, a, b in zip(images, boxes.tolist(), ours, T.to_uint8(batched), strict=True):
        crop = to_pillow(image).crop(box).resize((width, height), PILLOW_FILTERS[interpolation])
        assert difference(a, from_pillow(crop)) <= 2
        assert difference(b, from_pillow(crop)) <= 2


def test_resampling_weights_are_shares():
    start, stop = torch.tensor([0.0, 3.0]), torch.tensor([10.0, 4.0])
    weights = T.resampling_weights(start, stop, 10, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 5))
    # Halving: each new pixel centres on the border of two old ones, which share alike.
    assert torch.allclose(weights[0, 2, 4:6], torch.tensor([0.375, 0.375]))
    # A box of a single pixel copies it.
    assert torch.equal(weights[1], torch.eye(10)[3].expand(5, 10))


def test_whole_image_box_at_its_own_size_changes_nothing():
    images = noise(2, 3, 12, 15)
    boxes = torch.tensor([[0, 0, 15, 12]] * 2)
    assert torch.equal(T.crop_and_resize(images, boxes, (12, 15)), images)
    assert torch.equal(T.to_uint8(T.resample_boxes(T.to_float(images), boxes, 12, 15)), images)


@pytest.mark.parametrize(
    "transform",
    [
        lambda images, g: T.resize(images, 7, "bicubic"),
        lambda images, g: T.resize(images, 40, "bicubic"),
        lambda images, g: T.center_crop(images, 9),
        lambda images, g: T.random_crop(images, 9, g),
        lambda images, g: T.random_resized_crop(images, 13, generator=g),
        lambda images, g: T.random_flip(images, generator=g),
    ],
)
def test_constant_images_stay_constant(transform):
    colors = noise(8, 3, 1, 1)
    result = transform(colors.expand(8, 3, 20, 24), seeded())
    assert torch.equal(result, colors.expand_as(result))


# ------------------------------------------------------------------------------------------- random

RANDOM = {
    "random_crop": lambda images, g: T.random_crop(images, 24, g),
    "random_resized_crop": lambda images, g: T.random_resized_crop(images, 16, generator=g),
    "random_flip": lambda images, g: T.random_flip(images, generator=g),
    "random_erasing": lambda images, g: T.random_erasing(images, 1.0, generator=g),
    "rand_augment": lambda images, g: T.rand_augment(images, generator=g),
    "mixup": lambda images, g: T.mixup(T.to_float(images), torch.eye(len(images)), generator=g)[1],
    "cutmix": lambda images, g: T.cutmix(T.to_float(images), torch.eye(len(images)), generator=g)[
        1
    ],
}


@pytest.mark.parametrize("transform", RANDOM.values(), ids=RANDOM)
def test_the_generator_decides_everything(transform):
    images = torch.stack([picture(32, 32)] * 12)
    before = images.clone()
    first, again = transform(images, seeded(1)), transform(images, seeded(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, transform(images, seeded(2)))
    assert torch.equal(images, before), "the input was written to"
    state = torch.get_rng_state()
    transform(images, seeded(1))
    assert torch.equal(torch.get_rng_state(), state), "a draw bypassed the generator"


@pytest.mark.parametrize("transform", RANDOM.values(), ids=RANDOM)
def test_images_of_a_batch_get_draws_of_their_own(transform):
    """Twelve copies of one picture come out in more than one way (two, for a flip)."""
    results = transform(torch.stack([picture(32, 32)] * 12), seeded(3))
    assert len({result.numpy().tobytes() for result in results}) > 1


@pytest.mark.parametrize(
    "name", ["random_crop", "random_resized_crop", "random_flip", "rand_augment"]
)
def test_leading_dimensions_are_one_batch(name):
    images = noise(6, 3, 32, 40)
    flat = RANDOM[name](images, seeded())
    nested = RANDOM[name](images.reshape(2, 3, 3, 32, 40), seeded())
    assert torch.equal(nested.reshape(flat.shape), flat)
    assert RANDOM[name](images[0], seeded()).ndim == 3


def test_flipping_twice_is_the_identity():
    images = noise(5, 3, 8, 9)
    once = T.random_flip(images, probability=1)
    assert torch.equal(once[..., 0], images[..., -1])
    assert torch.equal(T.random_flip(once, probability=1), images)
    assert torch.equal(T.random_flip(images, probability=0), images)


def test_flips_happen_as_often_as_asked():
    images = torch.zeros(4000, 3, 1, 2)
    images[..., 0] = 1
    share = T.random_flip(images, 0.3, seeded())[:, 0, 0, 1].mean().item()
    # Four standard deviations of a binomial share.
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_random_erasing_covers_one_box_and_nothing_else():
    images = torch.full((200, 3, 40, 50), 9, dtype=torch.uint8)
    erased = T.random_erasing(images, 0.5, generator=seeded())
    changed = (erased != images).all(dim=1)
    assert torch.equal(changed, (erased != images).any(dim=1)), "channels must share the box"
    areas = changed.sum((1, 2))
    for mask in changed[areas > 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])
    assert 60 < (areas > 0).sum() < 140
    assert areas[areas > 0].float().mean() / 2000 == pytest.approx((0.02 + 0.33) / 2, abs=0.03)
    assert (erased[:, 0][changed] == 128).all()


def test_mixup_blends_images_and_targets_alike():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 2, 2) / 5
    mixed, targets = T.mixup(images, torch.eye(6), generator=seeded())
    assert torch.allclose(targets.sum(1), torch.ones(6))
    # The value of a pixel is the index of its image: so its expectation under the targets.
    assert torch.allclose(mixed[:, 0, 0, 0], targets @ (torch.arange(6.0) / 5), atol=1e-6)
    assert ((targets > 0).sum(1) <= 2).all() and (targets.diagonal() < 1).any()


def test_cutmix_targets_count_pixels():
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 15, 20) / 7
    mixed, targets = T.cutmix(images, torch.eye(8), generator=seeded())
    for image, target in zip(mixed, targets, strict=True):
        pixels = (image[0] * 7).round().long().flatten()
        share = torch.bincount(pixels, minlength=8) / 300
        assert torch.allclose(share, target, atol=1e-6)


# -------------------------------------------------------------------------------------- RandAugment


def apply(name, image, m):
    """One operation on one uint8 image."""
    result = T.RAND_AUGMENT[name](T.to_float(image)[None], torch.tensor([float(m)]))
    assert result.min() >= -1e-6 and result.max() <= 1 + 1e-6
    return T.to_uint8(result[0])


STRENGTHLESS = {"autocontrast", "equalize"}


@pytest.mark.parametrize("name", sorted(set(T.RAND_AUGMENT) - STRENGTHLESS))
def test_strength_zero_changes_nothing_and_strength_one_does(name):
    for image in [picture(31, 40), torch.full((3, 5, 6), 255, dtype=torch.uint8), noise(3, 1, 1)]:
        assert torch.equal(apply(name, image, 0), image)
    if name != "identity":
        assert not torch.equal(apply(name, picture(31, 40), 1), picture(31, 40))


PILLOW_OPERATIONS = {
    "autocontrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "solarize": lambda image, m: ImageOps.solarize(image, round(256 * (1 - abs(m)))),
    "posterize": lambda image, m: ImageOps.posterize(image, 8 - round(4 * abs(m))),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(1 + 0.9 * m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(1 + 0.9 * m),
    "saturation": lambda image, m: ImageEnhance.Color(image).enhance(1 + 0.9 * m),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * m),
}


@pytest.mark.parametrize("m", [-1.0, -0.5, 0.5, 1.0])
@pytest.mark.parametrize("name", PILLOW_OPERATIONS)
def test_colour_operations_equal_pillow(name, m):
    """Within rounding: Pillow rounds grey values to 8 bits before it blends."""
    for image in [picture(31, 40), noise(3, 16, 16), picture(64, 64)]:
        theirs = from_pillow(PILLOW_OPERATIONS[name](to_pillow(image), m))
        exact = name in {"equalize", "solarize", "posterize"}
        assert difference(apply(name, image, m), theirs) <= (0 if exact else 2)


def test_geometry_is_exact_where_it_can_be():
    image = T.to_float(noise(1, 3, 16, 16))
    quarter = rotate(image, torch.tensor([90.0]))
    assert torch.allclose(quarter, torch.rot90(image, 1, (2, 3)), atol=1e-4)
    right = translate_x(image, torch.tensor([3.0]))
    assert torch.allclose(right[..., 3:], image[..., :-3], atol=1e-4)
    assert torch.allclose(right[..., :3], torch.tensor(0.5), atol=1e-4)
    down = translate_y(image, torch.tensor([2.0]))
    assert torch.allclose(down[..., 2:, :], image[..., :-2, :], atol=1e-4)
    # With slope 2 the row half a pixel below the centre moves by one pixel.
    sheared = shear_x(image, torch.tensor([2.0]))
    assert torch.allclose(sheared[..., 8, :-1], image[..., 8, 1:], atol=1e-4)
    assert torch.allclose(sheared[..., 7, 1:], image[..., 7, :-1], atol=1e-4)


def test_rotation_agrees_with_pillow_on_an_oblong_image():
    y, x = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    smooth = torch.stack([x * 3, y * 4, 190 - x]).to(torch.uint8)
    ours = T.to_uint8(rotate(T.to_float(smooth)[None], torch.tensor([25.0]))[0])
    theirs = from_pillow(to_pillow(smooth).rotate(25, Image.Resampling.BILINEAR))
    inside = (slice(None), slice(18, 30), slice(20, 44))
    assert difference(ours[inside], theirs[inside]) <= 2


@pytest.mark.parametrize("name", T.RAND_AUGMENT)
def test_an_operation_treats_each_image_by_itself(name):
    images = torch.stack([T.to_float(picture(20, 24, seed)) for seed in range(3)])
    strengths = torch.tensor([0.3, -0.9, 0.6])
    together = T.RAND_AUGMENT[name](images, strengths)
    for i in range(3):
        alone = T.RAND_AUGMENT[name](images[i : i + 1], strengths[i : i + 1])
        assert torch.allclose(together[i], alone[0], atol=1e-6)


def test_rand_augment_applies_the_operations_it_is_given_in_turn():
    images = torch.stack([picture(20, 24)] * 40)
    twice = T.rand_augment(images, 2, 5, operations=("equalize",), generator=seeded())
    expected = apply("equalize", apply("equalize", picture(20, 24), 0), 0)
    assert all(torch.equal(image, expected) for image in twice)
    assert torch.equal(T.rand_augment(images, num_ops=0), images)
    turned = T.rand_augment(images, 1, 10, operations=("rotate",), generator=seeded())
    both = [apply("rotate", picture(20, 24), m) for m in (1, -1)]
    signs = [next(s for s in (0, 1) if difference(t, both[s]) <= 1) for t in turned]
    assert 8 < sum(signs) < 32


def test_rand_augment_reaches_every_operation():
    """With strength 10 on one picture, each of the 14 leaves its own mark."""
    picture_ = T.to_float(picture(24, 24))
    results = T.rand_augment(picture_.expand(600, 3, 24, 24), 1, 10, generator=seeded())
    unique = {T.to_uint8(result).numpy().tobytes() for result in results}
    expected = {
        apply(name, picture(24, 24), m).numpy().tobytes()
        for name in T.RAND_AUGMENT
        for m in (-1, 1)
    }
    assert unique == expected


def test_albef_operations_are_known():
    assert set(T.ALBEF_OPERATIONS) < set(T.RAND_AUGMENT)


# ---------------------------------------------------------------------------------------- bad input


def plain(function):
    """As a user calls it, without the shape checks that only the tests install."""
    return inspect.unwrap(function)


IMAGE = torch.zeros(2, 3, 8, 10)

BAD = {
    "grey": (lambda: plain(T.resize)(torch.zeros(2, 1, 8, 8), 4), "repeat a grey image"),
    "RGBA": (lambda: plain(T.to_float)(torch.zeros(4, 8, 8)), r"\(4, 8, 8\)"),
    "two dimensions": (lambda: plain(T.center_crop)(torch.zeros(8, 8), 4), r"\(8, 8\)"),
    "integers": (lambda: plain(T.random_flip)(IMAGE.long()), "torch.int64"),
    "an array": (lambda: plain(T.rand_augment)(np.zeros((3, 4, 4))), "ndarray"),
    "empty batch": (lambda: T.random_flip(IMAGE[:0]), "not be empty"),
    "no pixels": (lambda: T.resize(IMAGE[..., :0], 4), "not be empty"),
    "crop too big": (lambda: T.center_crop(IMAGE, 9), "9 x 9 does not fit into images of 8 x 10"),
    "random crop too big": (lambda: T.random_crop(IMAGE, (8, 11)), "8 x 11 does not fit"),
    "size 0": (lambda: T.resize(IMAGE, 0), "got 0"),
    "size of three": (lambda: plain(T.resize)(IMAGE, (1, 2, 3)), r"got \(1, 2, 3\)"),
    "size in words": (lambda: plain(T.resize)(IMAGE, "large"), "got 'large'"),
    "size True": (lambda: T.resize(IMAGE, True), "got True"),
    "interpolation": (
        lambda: plain(T.resize)(IMAGE, 4, "nearest"),
        "bilinear, bicubic; got 'nearest'",
    ),
    "scale": (
        lambda: T.random_resized_crop(IMAGE, 4, scale=(0.5, 1.5)),
        r"scale .* got \(0.5, 1.5\)",
    ),
    "scale 0": (lambda: T.random_resized_crop(IMAGE, 4, scale=(0, 1)), "0 < low"),
    "ratio": (lambda: T.random_resized_crop(IMAGE, 4, ratio=(2.0, 1.0)), "ratio"),
    "NaN ratio": (lambda: T.random_resized_crop(IMAGE, 4, ratio=(math.nan, 1.0)), "ratio"),
    "box": (
        lambda: T.crop_and_resize(IMAGE, torch.tensor([[0, 0, 4, 4], [0, 0, 11, 4]]), 4),
        r"boxes\[1\] = \[0, 0, 11, 4\]",
    ),
    "thin box": (
        lambda: T.crop_and_resize(IMAGE, torch.tensor([[2, 0, 2, 4], [0, 0, 4, 4]]), 4),
        r"boxes\[0\]",
    ),
    "probability": (lambda: T.random_flip(IMAGE, 1.5), "between 0 and 1, got 1.5"),
    "NaN magnitude": (lambda: T.rand_augment(IMAGE, magnitude=math.nan), "got nan"),
    "magnitude": (lambda: T.rand_augment(IMAGE, magnitude=11), "between 0 and 10, got 11"),
    "num_ops": (lambda: T.rand_augment(IMAGE, num_ops=-1), "got -1"),
    "operation": (lambda: T.rand_augment(IMAGE, operations=("rotat",)), "rotate, .* got"),
    "std 0": (lambda: T.normalize(IMAGE, (0, 0, 0), (1, 0, 1)), "std above 0"),
    "one mean": (lambda: T.normalize(IMAGE, (0.5,), (0.5,)), "three numbers"),
    "denormalize uint8": (lambda: plain(T.denormalize)(noise(3, 2, 2)), "got uint8"),
    "alpha": (lambda: T.mixup(IMAGE, torch.eye(2), alpha=0), "alpha .* got 0"),
    "targets": (lambda: plain(T.cutmix)(IMAGE, torch.eye(3)), r"\(2, classes\)"),
    "labels": (lambda: plain(T.mixup)(IMAGE, torch.tensor([0, 1])), "class shares"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RANDOM)
def test_a_cpu_generator_gives_the_same_result_on_the_gpu(name):
    images = torch.stack([picture(40, 48, seed) for seed in range(8)])
    here, there = RANDOM[name](images, seeded()), RANDOM[name](images.cuda(), seeded())
    assert (here.float() - there.cpu().float()).abs().max() <= 2
