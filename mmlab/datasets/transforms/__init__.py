"""Image transforms: pure functions on batches of images, on any device.

An image is RGB, channels first. ``uint8`` tensors hold 0-255 and floating-point tensors hold 0-1;
every transform takes both and gives back the kind that it was given, unless its docstring says
otherwise. Any number of leading dimensions is a batch, and a random transform draws anew for every
image of it. Draws come from ``generator`` (default: torch's global one) on the generator's own
device, so that a CPU generator gives the same result wherever the images are.

Bad arguments raise one ``ValueError`` that says what was given and what is allowed.
"""

from mmlab.datasets.transforms.augmentation import cutmix, mixup, random_erasing, random_flip
from mmlab.datasets.transforms.cropping import (
    center_crop,
    crop_and_resize,
    random_crop,
    random_resized_crop,
    resample_boxes,
    resampling_weights,
    resize,
    sample_crop_boxes,
)
from mmlab.datasets.transforms.images import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    VIT_MEAN,
    VIT_STD,
    denormalize,
    normalize,
    to_float,
    to_uint8,
)
from mmlab.datasets.transforms.randaugment import ALBEF_OPERATIONS, RAND_AUGMENT, rand_augment

__all__ = [
    "ALBEF_OPERATIONS",
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "RAND_AUGMENT",
    "VIT_MEAN",
    "VIT_STD",
    "center_crop",
    "crop_and_resize",
    "cutmix",
    "denormalize",
    "mixup",
    "normalize",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_flip",
    "random_resized_crop",
    "resample_boxes",
    "resampling_weights",
    "resize",
    "sample_crop_boxes",
    "to_float",
    "to_uint8",
]
