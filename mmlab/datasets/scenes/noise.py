"""Caption noise of the kinds that web data has, put in on purpose so that its truth is known."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from random import Random

from mmlab.datasets.example import Caption
from mmlab.datasets.scenes.language import caption, describe, indefinite, near_miss
from mmlab.datasets.scenes.referee import View, judge
from mmlab.datasets.scenes.world import Pair, Scene


@dataclass(frozen=True)
class SceneNoise:
    """Shares of images whose captions are spoiled, by kind; each in [0, 1], together at most 1.

    - ``swapped_pair``: the caption of another scene, false of this one.
    - ``wrong_attribute``: one color or shape is wrong.
    - ``file_name``: the name of an image file.
    - ``advertising``: a slogan.
    - ``duplicate``: true, but so unspecific that many images share it ('a circle').
    """

    swapped_pair: float = 0.0
    wrong_attribute: float = 0.0
    file_name: float = 0.0
    advertising: float = 0.0
    duplicate: float = 0.0

    def __post_init__(self):
        for name, rate in self.rates():
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise ValueError(f"{name} is {rate!r}; a noise rate must be between 0 and 1")
        total = sum(rate for _, rate in self.rates())
        if total > 1 + 1e-9:
            raise ValueError(f"the noise rates sum to {total:g}; together they may reach 1 at most")

    def rates(self) -> list[tuple[str, float]]:
        """The kinds of noise with their rates, in a fixed order."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def kind(self, uniform: float) -> str | None:
        """The kind that a number drawn from [0, 1) stands for; None for a clean caption."""
        for name, rate in self.rates():
            if uniform < rate:
                return name
            uniform -= rate
        return None


NOISE_KINDS = tuple(field.name for field in fields(SceneNoise))


def view_of(scene: Scene) -> View:
    """The scene as the referee sees it, in an image one pixel wide."""
    return View(tuple(o.region(1) for o in scene.objects), 1, scene.background)


def is_true_of(told: Scene, scene: Scene) -> bool:
    """Whether a short caption of ``told`` happens to be true of ``scene`` as well."""
    return bool(judge(caption(told).text, view_of(scene)))


def wrong_attribute(scene: Scene, rng: Random, pairs: frozenset[Pair]) -> Scene:
    """The scene with the color or the shape of one object changed so that captions turn false."""
    index = rng.randrange(len(scene.objects))
    thing = scene.objects[index]
    color, shape = near_miss(scene, thing, rng, pairs)
    objects = list(scene.objects)
    objects[index] = replace(thing, color=color, shape=shape)
    return replace(scene, objects=tuple(objects))


def file_name(rng: Random, language: str) -> str:
    """What a camera or a download calls an image."""
    number, stamp = rng.randrange(10_000), 20_100_000 + rng.randrange(140_000)
    templates = {
        "en": (f"IMG_{number:04}.jpg", f"DSC{number:05}.JPG", f"image ({number % 100}).png"),
        "zh": (f"图片_{number:04}.jpg", f"截图_{stamp}.png", f"未命名 ({number % 100}).png"),
    }
    return rng.choice(templates[language])


def advertising(rng: Random, language: str) -> str:
    """A slogan that says nothing of the image."""
    percent = rng.choice((10, 20, 30, 50, 70))
    templates = {
        "en": (
            f"Up to {percent}% off, free shipping today only!",
            "Buy two, get one free! Click here for more.",
            f"New collection now in store, save {percent}%.",
            "Subscribe to our newsletter for the best deals.",
        ),
        "zh": (
            f"全场优惠{percent}%，今日包邮！",
            "买二送一，点击查看更多！",
            f"新品上架，立省{percent}%。",
            "关注我们，获取最新优惠。",
        ),
    }
    return rng.choice(templates[language])


def unspecific(scene: Scene, rng: Random, language: str) -> str:
    """True words that many images share."""
    thing = rng.choice(scene.objects)
    attribute = rng.choice(("shape", "color"))
    return indefinite(describe(thing, (attribute,)), language)


def noisy_caption(
    scene: Scene, noise: str, told: Scene, rng: Random, kind: str, language: str, variant: int
) -> Caption:
    """A spoiled caption that says how; ``told`` is the scene that it tells of."""
    if noise in ("swapped_pair", "wrong_attribute"):
        spoiled = caption(told, kind, language, variant)
        # Only a wrong attribute still speaks of this image's objects.
        kept = spoiled.alignment if noise == "wrong_attribute" else ()
        return replace(spoiled, alignment=kept, noise=noise)
    if noise == "duplicate":
        return Caption(unspecific(scene, rng, language), language, kind, noise=noise)
    write = {"file_name": file_name, "advertising": advertising}[noise]
    return Caption(write(rng, language), language, kind, noise=noise)
