"""Resizing and cropping: every image alike, or each at its own random place."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from mmlab.datasets.transforms.images import (
    Batch,
    Images,
    Interpolation,
    Number,
    PerImage,
    ResizedImages,
    Size,
    check_choice,
    check_images,
    check_range,
    flatten_batch,
    random_integers,
    restore_kind,
    to_float,
    uniform,
)


def resize(
    images: Images,
    size: Size,
    interpolation: Interpolation = "bilinear",
    antialias: bool = True,
) -> ResizedImages:
    """Resize to ``size``: an int is the new shorter side, ``(height, width)`` is exact.

    With ``antialias`` it agrees with Pillow's ``Image.resize``. The longer side is rounded down,
    as torchvision does, whose ``Resize`` the official CLIP, ALBEF and BLIP code calls.
    """
    flat, batch = flatten_batch(images)
    check_choice("interpolation", interpolation, _KERNELS)
    target = _target_size(flat, size)
    if target == flat.shape[-2:]:
        return images
    work = _as_torch_resizes(flat, target)
    resized = F.interpolate(work, target, mode=interpolation, antialias=antialias)
    return restore_kind(resized, images).reshape(*batch, 3, *target)


def _as_torch_resizes(images: Tensor, target: tuple[int, int]) -> Tensor:
    """The images in a form that ``F.interpolate`` resizes correctly."""
    if target[1] == 1:
        # To a width of one pixel, torch 2.13 is right only for floats in channels-last order.
        return to_float(images).float().contiguous(memory_format=torch.channels_last)
    if images.dtype == torch.uint8 and images.device.type == "cpu":
        return images
    return images if images.dtype == torch.float64 else to_float(images).float()


def center_crop(images: Images, size: Size) -> ResizedImages:
    """Cut ``size`` (an int is a square) out of the middle of every image."""
    check_images(images)
    height, width = _crop_size(images, size)
    top = round((images.shape[-2] - height) / 2)
    left = round((images.shape[-1] - width) / 2)
    return images[..., top : top + height, left : left + width]


def random_crop(images: Images, size: Size, generator: Generator | None = None) -> ResizedImages:
    """Cut ``size`` (an int is a square) out of every image, each at its own random place.

    CLIP's only augmentation (Radford et al. 2021, section 2.3) is this on the resized image.
    """
    flat, batch = flatten_batch(images)
    height, width = _crop_size(flat, size)
    num_images = len(flat)
    top = random_integers(num_images, flat.shape[-2] - height, generator).to(flat.device)
    left = random_integers(num_images, flat.shape[-1] - width, generator).to(flat.device)
    rows = top[:, None, None] + torch.arange(height, device=flat.device)[:, None]
    columns = left[:, None, None] + torch.arange(width, device=flat.device)
    image = torch.arange(num_images, device=flat.device)[:, None, None]
    crops = flat.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
    return crops.reshape(*batch, 3, height, width)


def random_resized_crop(
    images: Images,
    size: Size,
    scale: tuple[Number, Number] = (0.08, 1.0),
    ratio: tuple[Number, Number] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
    generator: Generator | None = None,
) -> ResizedImages:
    """Cut a random box out of every image and resize it to ``size`` (an int is a square).

    Boxes are those of ``sample_crop_boxes``. The crop of Inception's training (Szegedy et al.
    2015, section 6), with the numbers that became customary.
    """
    flat, batch = flatten_batch(images)
    boxes = sample_crop_boxes(len(flat), *flat.shape[-2:], scale, ratio, generator)
    resized = crop_and_resize(flat, boxes.to(flat.device), size, interpolation)
    return resized.reshape(*batch, *resized.shape[1:])


def sample_crop_boxes(
    num_images: int,
    height: int,
    width: int,
    scale: tuple[Number, Number] = (0.08, 1.0),
    ratio: tuple[Number, Number] = (3 / 4, 4 / 3),
    generator: Generator | None = None,
) -> Int64[Tensor, "num_images 4"]:
    """One box ``(x0, y0, x1, y1)`` in whole pixels for each image of ``height`` by ``width``.

    ``scale`` bounds the box's share of the image's area, ``ratio`` its width over its height (drawn
    evenly on a logarithmic scale). Where none of ten draws fits into the image, the box is the
    largest centred one with an allowed ratio, as in torchvision's ``RandomResizedCrop``.
    """
    check_range("scale", scale, upper=1)
    check_range("ratio", ratio)
    area = height * width * uniform((num_images, 10), *scale, generator)
    aspect = uniform((num_images, 10), math.log(ratio[0]), math.log(ratio[1]), generator).exp()
    box_width, box_height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (box_width <= width) & (box_height <= height) & (box_width >= 1) & (box_height >= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    sides = torch.stack([box_width, box_height], dim=-1)
    sides = sides.gather(1, first[..., None].expand(-1, 1, 2)).squeeze(1)
    room = torch.tensor([width, height], device=sides.device)
    corner = (uniform((num_images, 2), 0, 1, generator) * (room - sides + 1)).floor()
    largest = _largest_sides(height, width, ratio).to(room.device)
    sides = torch.where(fits.any(1, keepdim=True), sides, largest)
    corner = torch.where(fits.any(1, keepdim=True), corner, ((room - largest) / 2).floor())
    return torch.cat([corner, corner + sides], dim=1).long()


def crop_and_resize(
    images: UInt8[Tensor, "batch 3 height width"] | Batch,
    boxes: Int64[Tensor, "batch 4"],
    size: Size,
    interpolation: Interpolation = "bilinear",
) -> UInt8[Tensor, "batch 3 new_height new_width"] | Float[Tensor, "batch 3 new_height new_width"]:
    """Cut ``boxes[i]`` (``x0, y0, x1, y1`` in pixels) from ``images[i]`` and resize it to ``size``.

    Antialiased, as Pillow's crop followed by its resize. An int ``size`` is a square. On the CPU
    torch's resize goes over the boxes one by one, which is ten times as fast as matrix products at
    256 pixels; elsewhere all boxes go through ``resample_boxes`` at once.
    """
    flat, _ = flatten_batch(images)
    check_choice("interpolation", interpolation, _KERNELS)
    height, width = _pair("size", size)
    _check_boxes(boxes, flat)
    if flat.device.type != "cpu":
        work = to_float(flat).float()
        return restore_kind(resample_boxes(work, boxes, height, width, interpolation), images)
    corners = zip(flat, boxes.tolist(), strict=True)
    crops = [image[:, y0:y1, x0:x1] for image, (x0, y0, x1, y1) in corners]
    return torch.stack([resize(crop, (height, width), interpolation) for crop in crops])


def resample_boxes(
    images: Batch,
    boxes: Int64[Tensor, "batch 4"],
    height: int,
    width: int,
    interpolation: Interpolation = "bilinear",
) -> Float[Tensor, "batch 3 {height} {width}"]:
    """``crop_and_resize`` of a whole batch in two matrix products, ``W_y @ image @ W_x.T``.

    Resizing is linear and separable: a new pixel is a weighted mean of old ones, along rows and
    then along columns. So a box of any size is one matrix per axis, and a batch of boxes is a batch
    of matrices. ``grid_sample`` reads four pixels however much a box shrinks, and aliases; these
    weights widen with the box.
    """
    x0, y0, x1, y1 = boxes.to(images).unbind(dim=1)
    weights_x = resampling_weights(x0, x1, images.shape[-1], width, interpolation)
    weights_y = resampling_weights(y0, y1, images.shape[-2], height, interpolation)
    return weights_y[:, None] @ images @ weights_x[:, None].mT


def resampling_weights(
    start: PerImage,
    stop: PerImage,
    num_pixels: int,
    num_new: int,
    interpolation: Interpolation = "bilinear",
) -> Float[Tensor, "batch num_new num_pixels"]:
    """Row ``k`` holds the shares of the old pixels in new pixel ``k``; every row sums to 1.

    New pixels divide ``[start, stop)`` evenly. A kernel sits on the centre of each and is stretched
    when pixels are merged, so that none of them is skipped (antialiasing).
    """
    scale = (stop - start) / num_new
    steps = torch.arange(num_new, device=start.device) + 0.5
    centers = start[:, None] + steps * scale[:, None]
    pixels = torch.arange(num_pixels, device=start.device) + 0.5
    distance = (pixels - centers[..., None]).abs() / scale.clamp(min=1)[:, None, None]
    inside = (pixels > start[:, None]) & (pixels < stop[:, None])
    weights = _KERNELS[interpolation](distance) * inside[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel; a = -0.5 as in Pillow and torch's antialiased resize."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def _target_size(images: Tensor, size: object) -> tuple[int, int]:
    """Height and width after ``resize``."""
    height, width = images.shape[-2:]
    if not isinstance(size, int):
        return _pair("size", size)
    shorter, _ = _pair("size", size)
    if height <= width:
        return shorter, max(1, int(shorter * width / height))
    return max(1, int(shorter * height / width)), shorter


def _crop_size(images: Tensor, size: object) -> tuple[int, int]:
    height, width = _pair("size", size)
    if height > images.shape[-2] or width > images.shape[-1]:
        have = f"{images.shape[-2]} x {images.shape[-1]}"
        raise ValueError(f"a crop of {height} x {width} does not fit into images of {have}")
    return height, width


def _pair(name: str, value: object) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else value
    whole = isinstance(pair, tuple | list) and all(type(side) is int for side in pair)
    if not (whole and len(pair) == 2 and min(pair) >= 1):
        raise ValueError(f"{name} must be a positive int or (height, width) of them, got {value!r}")
    return pair[0], pair[1]


def _largest_sides(height: int, width: int, ratio: tuple[Number, Number]) -> Tensor:
    """Width and height of the largest box with an allowed ratio (at least one pixel each)."""
    aspect = min(max(width / height, ratio[0]), ratio[1])
    sides = [round(min(width, height * aspect)), round(min(height, width / aspect))]
    return torch.tensor(sides).clamp(min=1)


def _check_boxes(boxes: Tensor, images: Tensor) -> None:
    if boxes.shape != (len(images), 4):
        raise ValueError(f"boxes must have shape ({len(images)}, 4), got {tuple(boxes.shape)}")
    height, width = images.shape[-2:]
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    fits = (x0 >= 0) & (y0 >= 0) & (x1 <= width) & (y1 <= height) & (x1 - x0 >= 1) & (y1 - y0 >= 1)
    if not fits.all():
        bad = int(fits.int().argmin())
        raise ValueError(
            f"boxes[{bad}] = {boxes[bad].tolist()} must be (x0, y0, x1, y1), at least a pixel wide "
            f"and high, inside an image of width {width} and height {height}"
        )
