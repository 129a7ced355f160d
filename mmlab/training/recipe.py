"""A recipe: everything that decides what a run does, in one flat file."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmlab.models.checks import check, check_integers, check_rates

SYSTEMS = (
    *("vit", "clip", "flip", "vilt", "albef", "blip", "blip2", "vlmo"),
    *("vilbert", "lxmert", "uniter", "oscar", "visualbert", "unicoder-vl", "vlbert"),
)
DATA = ("emoji", "scenes", "shards")
SCHEDULES = ("cosine", "linear", "exponential", "constant")
PRECISIONS = ("no", "bf16")
MOST_OBJECTS = 4
"""``mmlab.datasets.scenes.world.MAX_OBJECTS``, whose module would slow ``--help`` down."""


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, and how.

    Two runs of one recipe on one machine end with the same weights, bit for bit.

    - ``system``, ``size``: the model; ``"vit"`` and ``"mini"`` make ``"vit-mini"``.
    - ``data``, ``target``: the data set and what a classifier tells from its images; an empty
      ``target`` is the usual one (the group of an emoji, the largest shape of a scene).
    - ``num_images``: how many scenes to draw. Emoji and shards are what they are; of shards it may
      tell how many pairs they hold, which changes nothing.
    - ``most_objects``: scenes show one to this many objects.
    - ``shards``: the tar files of ``data: shards``, as paths, addresses or patterns (see
      ``mmlab.datasets.shards.list_shards``); ``buffer`` samples are shuffled together. A VLMo's
      stages before pairs take shards of images alone, or of texts alone.
    - ``tokenizer``: the file with the vocabulary for captions (see
      ``mmlab.datasets.tokenizer.read_tokenizer``); empty learns one from the captions.
    - ``model``: fields of the model's configuration to replace, as ``{"depth": 2}``. The ``heads``
      of a ViLT say what it learns, and so do those of a VLMo (``mmlab.training.vlmo_system``); an
      ALBEF or BLIP with ``"answers"``, a model of regions with ``"answer"`` alone learns from
      questions.
    - ``pretraining``: settings of the pretraining module, for systems that have some, as
      ``{"queue_size": 1024}`` (``mmlab.training.momentum_systems``, ``…blip2_system``,
      ``…region_systems``, where it also says how a detector errs).
    - ``start``: a file of weights to begin with; empty begins afresh. A ViLT begins with a ViLT,
      whose fitting heads it keeps, or its trunk with a ViT; an ALBEF, BLIP or VLMo with one of its
      own; a BLIP-2 too, or its frozen image encoder with a ViT (empty: with the one of mmlab).
    - ``start_image``, ``start_text``: instead, files of others for parts of an ALBEF, BLIP or
      BLIP-2: a ViT or DeiT for the image encoder (EVA or CLIP for a BLIP-2 that has it), a BERT for
      the text, whose vocabulary ``tokenizer`` then names. A VLMo takes a BEiT as ``start_image``, a
      model of regions a BERT as ``start_text`` (not LXMERT, which its paper starts from nothing).
    - ``batch_size``: images a step, over all processes together.
    - ``warmup``: steps until the rate has risen to ``lr``; then it follows ``schedule`` down to
      ``end_lr``, which the step after the last would take.
    - ``beta2``, ``eps``: AdamW's; the CLIP paper takes 0.98 and 1e-6 for its transformers.
    - ``clip_norm``: longest gradient; 0 clips nothing.
    - ``ema_decay``: of the moving average of the weights; 0 keeps none.
    - ``workers``: processes a process prepares batches with. They change no result, but for shards,
      which they share: another number reads in another order.
    - ``checkpoint_every``, ``keep``: steps between two checkpoints; how many to keep.

    A wrong value raises ValueError.
    """

    system: str = "vit"
    size: str = "mini"
    data: str = "emoji"
    target: str = ""
    num_images: int = 10_000
    most_objects: int = MOST_OBJECTS
    shards: tuple[str, ...] = ()
    buffer: int = 1000
    tokenizer: str = ""
    model: Mapping[str, object] = field(default_factory=dict)
    pretraining: Mapping[str, object] = field(default_factory=dict)
    start: str = ""
    start_image: str = ""
    start_text: str = ""
    steps: int = 300
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    beta2: float = 0.999
    eps: float = 1e-8
    warmup: int = 60
    schedule: str = "cosine"
    end_lr: float = 0.0
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    seed: int = 0
    precision: str = "no"
    workers: int = 0
    checkpoint_every: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("model", "pretraining"):
            object.__setattr__(self, name, _without_lists(getattr(self, name)))
        for name, choices in _CHOICES.items():
            check_known(name, getattr(self, name), choices)
        check_integers(self, "num_images", "steps", "batch_size", "checkpoint_every", "keep")
        check_integers(self, "buffer", "most_objects")
        most = self.most_objects
        check(most <= MOST_OBJECTS, "most_objects", most, f"at most {MOST_OBJECTS}")
        check_integers(self, "warmup", "workers", "seed", minimum=0)
        check_rates(self, "label_smoothing", "ema_decay", "beta2")
        for name in ("lr", "eps"):
            value = getattr(self, name)
            check(0 < value < math.inf, name, value, "a positive number")
        self._check_end()
        streamed = self.data == "shards"
        wanted = "the tar files to read" if streamed else f"left out with data: {self.data}"
        check(streamed == bool(self.shards), "shards", self.shards, wanted)
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            check(0 <= value < math.inf, name, value, "a number of at least 0")

    def _check_end(self) -> None:
        name, end = "end_lr", self.end_lr
        fixed, falls_by_a_factor = (self.schedule == s for s in ("constant", "exponential"))
        check(end == 0 or not fixed, name, end, "left out with schedule: constant")
        check(0 <= end <= self.lr, name, end, f"from 0 to lr={self.lr}")
        check(end > 0 or not falls_by_a_factor, name, end, "above 0: no factor leads to 0")

    @property
    def model_name(self) -> str:
        """The name that ``mmlab.create_model`` knows."""
        return f"{self.system}-{self.size}"


def _without_lists(settings: Mapping[str, object]) -> dict[str, object]:
    """YAML has no tuples, and a configuration no lists."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}


_CHOICES = {"system": SYSTEMS, "data": DATA, "schedule": SCHEDULES, "precision": PRECISIONS}


def check_known(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError with the nearest of ``choices`` unless ``value`` is one of them."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(choices)}"
        raise ValueError(f"unknown {name} {value!r}; {hint}")


def to_recipe(settings: Mapping[str, object]) -> Recipe:
    """A recipe from names and values; ValueError for an unknown name, with the nearest one."""
    known = asdict(Recipe())
    for name in settings:
        check_known("recipe key", str(name), tuple(known))
    return Recipe(**{name: typed(name, v, known[name]) for name, v in settings.items()})


_WANTED = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a text, or a list of texts",
    dict: "names with their values",
    bool: "true or false",
}


def typed(name: str, value: object, default: object) -> object:
    """``value`` as the type of ``default``; ValueError if it is of another."""
    kind = type(default)
    if kind is float:
        value = _number(value)
    if kind is tuple:
        value = _texts(value)
    right = type(value) is kind and (kind is not dict or all(type(k) is str for k in value))
    check(right, name, value, _WANTED[kind])
    return value


def _number(value: object) -> object:
    """A float where it means one: YAML 1.1 reads 2e-3 as a text, and 1 as a whole number."""
    try:
        return value if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return value


def _texts(value: object) -> object:
    """One text, or a list of them, as a tuple; anything else as it is."""
    texts = [value] if isinstance(value, str) else value
    is_list = isinstance(texts, list | tuple) and all(type(text) is str for text in texts)
    return tuple(texts) if is_list else value


def read_recipe(path: str | Path) -> Recipe:
    """Read a YAML file; ValueError says what is wrong with it."""
    try:
        text = Path(path).read_text("utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no recipe {str(path)!r}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {str(path)!r} cannot be read: {_one_line(error)}") from None
    return parse_recipe(text, str(path))


def parse_recipe(text: str, source: str) -> Recipe:
    """The recipe in a text of YAML; ValueError calls it ``source`` and says what is wrong."""
    import yaml

    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {source!r} cannot be read: {_one_line(error)}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"recipe {source!r} must hold lines of 'key: value'")
    try:
        return to_recipe(settings)
    except ValueError as error:
        raise ValueError(f"recipe {source!r}: {error}") from None


def _one_line(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML; ``read_recipe`` gives it back."""
    import yaml

    settings = asdict(recipe)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
