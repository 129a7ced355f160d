"""Six photographs out of the wheels of scikit-image and scikit-learn, with captions and boxes.

``data/photographs.md`` tells who took them and under which licence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mmlab.datasets.checks import check_choice, check_image_size, check_rows, not_allowed
from mmlab.datasets.example import Alignment, Box, Caption, Example, Region
from mmlab.datasets.images import load_image
from mmlab.datasets.transforms import center_crop, resize

LANGUAGES = ("en", "zh")
KINDS = ("short", "detailed")
MAX_IMAGE_SIZE = 2048
MIN_VISIBLE = 0.25
"""A region stays when at least this part of its area is inside the cropped square."""

_PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class _Photo:
    """A photograph and what we wrote about it.

    In ``captions``, ``[2:the nose]`` says that these words speak of region 2, ``[1,3:…]`` of two.
    """

    name: str
    label: str
    module: str
    file: str
    author: str
    license: str
    regions: tuple[Region, ...]
    captions: tuple[tuple[str, str, str], ...]


def _region(x0: int, y0: int, x1: int, y1: int, category: str, *attributes: str) -> Region:
    return Region((float(x0), float(y0), float(x1), float(y1)), category, attributes)


# The boxes were placed by hand on the pictures, in pixels of the originals.
_PHOTOS = (
    _Photo(
        name="astronaut",
        label="astronaut",
        module="skimage",
        file="data/astronaut.png",
        author="NASA",
        license="public domain",
        regions=(
            _region(20, 15, 363, 512, "astronaut", "smiling"),
            _region(277, 343, 512, 512, "helmet", "black", "white"),
            _region(0, 0, 97, 512, "flag", "striped"),
            _region(353, 0, 473, 290, "space shuttle", "model"),
        ),
        captions=(
            ("en", "short", "[0:An astronaut] in an orange suit smiles."),
            (
                "en",
                "detailed",
                "[0:An astronaut] in an orange suit holds [1:a helmet]; behind her stand "
                "[2:a flag] and [3:a model of a space shuttle].",
            ),
            ("zh", "short", "[0:一位宇航员]穿着橙色航天服微笑。"),
            (
                "zh",
                "detailed",
                "[0:一位宇航员]穿着橙色航天服，抱着[1:头盔]，身后是[2:一面旗帜]和[3:航天飞机模型]。",
            ),
        ),
    ),
    _Photo(
        name="chelsea",
        label="cat",
        module="skimage",
        file="data/chelsea.png",
        author="Stefan van der Walt",
        license="CC0-1.0",
        regions=(
            _region(0, 0, 397, 300, "cat", "tabby"),
            _region(134, 84, 205, 149, "eye", "green"),
            _region(295, 109, 345, 165, "eye", "green"),
            _region(230, 225, 293, 266, "nose", "pink"),
        ),
        captions=(
            ("en", "short", "[0:A tabby cat] looks past the camera."),
            (
                "en",
                "detailed",
                "The face of [0:a tabby cat] from near, with [1,2:green eyes], [3:a pink nose] "
                "and long white whiskers.",
            ),
            ("zh", "short", "[0:一只虎斑猫]望着镜头旁边。"),
            (
                "zh",
                "detailed",
                "近看[0:一只虎斑猫]的脸：[1,2:绿色的眼睛]、[3:粉色的鼻子]和长长的白胡须。",
            ),
        ),
    ),
    _Photo(
        name="coffee",
        label="cup",
        module="skimage",
        file="data/coffee.png",
        author="Rachel Michetti",
        license="CC0-1.0",
        regions=(
            _region(173, 18, 412, 310, "cup", "red", "white"),
            _region(202, 95, 371, 195, "coffee", "brown"),
            _region(76, 66, 480, 390, "saucer", "red"),
            _region(325, 66, 425, 327, "spoon", "metal"),
        ),
        captions=(
            ("en", "short", "[0:A cup] of [1:coffee] on a wooden table."),
            (
                "en",
                "detailed",
                "[0:A red cup] of [1:coffee] and [3:a metal spoon] on [2:a red saucer], on a "
                "wooden table.",
            ),
            ("zh", "short", "木桌上有[0:一杯][1:咖啡]。"),
            ("zh", "detailed", "木桌上，[2:红色的碟子]里放着[0:一杯][1:咖啡]和[3:一把金属勺子]。"),
        ),
    ),
    _Photo(
        name="rocket",
        label="rocket",
        module="skimage",
        file="data/rocket.jpg",
        author="SpaceX",
        license="public domain",
        regions=(
            _region(309, 127, 336, 407, "rocket", "white"),
            _region(0, 0, 88, 420, "tower", "steel"),
            _region(167, 122, 206, 390, "tower", "steel"),
            _region(439, 122, 478, 400, "tower", "steel"),
            _region(558, 0, 640, 420, "tower", "steel"),
        ),
        captions=(
            ("en", "short", "[0:A rocket] stands on its launch pad."),
            (
                "en",
                "detailed",
                "[0:A white rocket] stands between [1,2,3,4:steel towers] under a dark blue "
                "evening sky, with bright lamps around it.",
            ),
            ("zh", "short", "[0:一枚火箭]竖立在发射台上。"),
            (
                "zh",
                "detailed",
                "深蓝色的夜空下，[0:一枚白色火箭]竖立在[1,2,3,4:钢铁塔架]之间，四周灯光明亮。",
            ),
        ),
    ),
    _Photo(
        name="china",
        label="tower",
        module="sklearn",
        file="datasets/images/china.jpg",
        author="danielbuechele",
        license="CC-BY-2.0",
        regions=(
            _region(63, 29, 373, 406, "tower", "red"),
            _region(331, 220, 556, 324, "lake", "grey"),
        ),
        captions=(
            ("en", "short", "[0:A Chinese tower] above [1:a lake]."),
            (
                "en",
                "detailed",
                "[0:A red Chinese tower] with orange and green roofs rises out of the trees above "
                "[1:a wide lake].",
            ),
            ("zh", "short", "[1:湖]边的[0:一座中式楼阁]。"),
            (
                "zh",
                "detailed",
                "[0:一座红色的中式楼阁]，屋顶橙绿相间，从树丛中升起，俯瞰[1:宽阔的湖面]。",
            ),
        ),
    ),
    _Photo(
        name="flower",
        label="flower",
        module="sklearn",
        file="datasets/images/flower.jpg",
        author="vultilion",
        license="CC-BY-2.0",
        regions=(
            _region(168, 85, 446, 359, "flower", "orange"),
            _region(288, 374, 470, 427, "flower", "orange"),
        ),
        captions=(
            ("en", "short", "[0:An orange flower] before dark leaves."),
            (
                "en",
                "detailed",
                "[0:An orange flower], a dahlia in full bloom, with [1:a second flower] below it "
                "and dark green leaves out of focus behind.",
            ),
            ("zh", "short", "深色叶子前的[0:一朵橙色的花]。"),
            (
                "zh",
                "detailed",
                "[0:一朵盛开的橙色大丽花]，下方还有[1:另一朵花]，背景是模糊的深绿色叶子。",
            ),
        ),
    ),
)
NAMES = tuple(photo.name for photo in _PHOTOS)


def _path(photo: _Photo) -> Path:
    """The file inside the installed package; the package itself is not imported."""
    spec = find_spec(photo.module)
    command = 'run `pip install "mmlab[photos]"`'
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the photographs need {_PACKAGES[photo.module]}: {command}")
    path = Path(spec.submodule_search_locations[0], photo.file)
    if not path.is_file():
        raise ImportError(f"the installed {_PACKAGES[photo.module]} lacks {photo.file}: {command}")
    return path


@cache
def _load(path: Path) -> UInt8[Tensor, "3 height width"]:
    return load_image(path)


def _read_caption(language: str, kind: str, marked: str) -> Caption:
    """Take the marks out of a caption and turn them into alignments."""
    text, alignment, position = "", [], 0
    for mark in re.finditer(r"\[([\d,]+):([^\]]+)\]", marked):
        text += marked[position : mark.start()]
        start, end = len(text), len(text) + len(mark[2])
        alignment += [Alignment(start, end, int(region)) for region in mark[1].split(",")]
        text, position = text + mark[2], mark.end()
    return Caption(text + marked[position:], language, kind, tuple(alignment))


class Photos(Dataset):
    """Six photographs; an example is found by its number or its name: ``photos()["chelsea"]``."""

    names = NAMES

    def __init__(self, image_size: int | None = None):
        if image_size is not None:
            check_image_size(image_size, MAX_IMAGE_SIZE)
        self.image_size = image_size
        self._paths = [_path(photo) for photo in _PHOTOS]

    def __len__(self) -> int:
        return len(_PHOTOS)

    def __getitem__(self, index: int | str) -> Example:
        row = self._row(index)
        photo = _PHOTOS[row]
        example = Example(
            id=f"photo-{photo.name}",
            image=_load(self._paths[row]).clone(),
            label=photo.label,
            captions=tuple(_read_caption(*caption) for caption in photo.captions),
            regions=photo.regions,
            tags=tuple(dict.fromkeys(region.category for region in photo.regions)),
            source=f"{_PACKAGES[photo.module]}: {photo.file}",
            license=photo.license,
            extra={"author": photo.author},
        )
        return example if self.image_size is None else _square(example, self.image_size)

    def images(
        self, indices: Iterable[int | str] | None = None
    ) -> UInt8[Tensor, "batch 3 height width"]:
        """The images ``indices`` (all without it), RGB from 0 to 255.

        Raises:
            ValueError: they differ in size, which they do without an ``image_size``.
        """
        rows = range(len(self)) if indices is None else indices
        images = [self[row].image for row in rows]
        if not images:
            size = self.image_size or 0
            return torch.empty(0, 3, size, size, dtype=torch.uint8)
        if len({image.shape for image in images}) > 1:
            raise ValueError("the photographs differ in size; choose one: photos(image_size=224)")
        return torch.stack(images)

    @property
    def labels(self) -> Int64[Tensor, " num"]:
        """The main object of each photograph, as an index into ``classes``."""
        return torch.arange(len(self))

    @property
    def classes(self) -> tuple[str, ...]:
        """What the main objects are."""
        return tuple(photo.label for photo in _PHOTOS)

    def captions(self, language: str = "en", kind: str = "short") -> list[str]:
        """One sentence a photograph, ``"short"`` or ``"detailed"``, in ``"en"`` or ``"zh"``."""
        check_choice("language", language, LANGUAGES)
        check_choice("kind", kind, KINDS)
        return [
            _read_caption(*caption).text
            for photo in _PHOTOS
            for caption in photo.captions
            if caption[:2] == (language, kind)
        ]

    def _row(self, index: int | str) -> int:
        if not isinstance(index, str):
            return int(check_rows([index], len(self)))
        if index not in NAMES:
            raise KeyError(not_allowed("photograph", index, NAMES))
        return NAMES.index(index)


def _square(example: Example, size: int) -> Example:
    """Resize the shorter side to ``size`` and cut the square out of the middle."""
    height, width = example.image.shape[-2:]
    resized = resize(example.image, size, interpolation="bicubic")
    new_height, new_width = resized.shape[-2:]
    scale = (new_width / width, new_height / height)
    corner = (round((new_width - size) / 2), round((new_height - size) / 2))
    boxes = [_crop_box(region.box, scale, corner, size) for region in example.regions]
    kept = [i for i, box in enumerate(boxes) if box is not None]
    regions = tuple(replace(example.regions[i], box=boxes[i]) for i in kept)
    captions = tuple(_keep_regions(caption, kept) for caption in example.captions)
    image = center_crop(resized, size)
    return replace(example, image=image, regions=regions, captions=captions)


def _crop_box(
    box: Box, scale: tuple[float, float], corner: tuple[int, int], size: int
) -> Box | None:
    """The box in the cropped image; None where too little of it is left."""
    moved = [value * scale[i % 2] - corner[i % 2] for i, value in enumerate(box)]
    x0, y0, x1, y1 = (min(max(value, 0.0), float(size)) for value in moved)
    visible = (x1 - x0) * (y1 - y0) / ((moved[2] - moved[0]) * (moved[3] - moved[1]))
    return (x0, y0, x1, y1) if visible >= MIN_VISIBLE else None


def _keep_regions(caption: Caption, kept: list[int]) -> Caption:
    """The caption with alignments to the regions that are left, under their new numbers."""
    alignment = tuple(
        replace(link, region=kept.index(link.region))
        for link in caption.alignment
        if link.region in kept
    )
    return replace(caption, alignment=alignment)


def photos(image_size: int | None = None) -> Photos:
    """Astronaut, chelsea (the cat), coffee, rocket, china and flower.

    Args:
        image_size: height and width in pixels, up to 2,048: the shorter side is resized (bicubic,
            antialiased) and the middle square kept, boxes with it. Without it, the sizes differ.

    Raises:
        ImportError: scikit-image or scikit-learn is missing; the message has the command to run.
        ValueError: ``image_size`` is out of range.
    """
    return Photos(image_size)
