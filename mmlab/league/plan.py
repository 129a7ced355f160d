"""What a league is: which systems, how they learn, for how many FLOPs, on which tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path

from mmlab.league.finetuning import FineTuning
from mmlab.models.checks import check, check_integers
from mmlab.training.recipe import Recipe, check_known, to_recipe, typed

PRETRAINING = "pretraining"
"""The cell that all others of a system and a seed stand on."""
TASK_NAMES = (
    *("probe", "matching", "vqa", "nlvr2", "entailment", "answer", "rationale", "grounding"),
    *("binding", "captioning", "vqa_written", "emoji"),
)
"""All cells besides; ``mmlab.league.tasks`` has a function for each."""
PLANS = ("full", "small")
"""The plans that come with mmlab."""
TEXT_ONLY = "text-only"
"""The baseline that no picture is shown to, and that is not pretrained: it has no stages."""
GIVEN = ("data", "num_images", "most_objects", "tokenizer", "start", "steps", "seed")
"""What the recipes of a league do not set: the plan does, alike for all."""


@dataclass(frozen=True)
class Stage:
    """One run of a system's pretraining: what its recipe sets, and its share of the budget."""

    settings: Mapping[str, object]
    share: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A system of the league: its stages, one after the other, each starting with the one before.

    ``tasks`` are those of the plan's tasks that it can do; empty means all.
    """

    name: str
    stages: tuple[Stage, ...]
    tasks: tuple[str, ...] = ()

    @property
    def system(self) -> str:
        """What the engine calls it; ``TEXT_ONLY`` is none of the engine's."""
        return str(self.stages[-1].settings["system"]) if self.stages else self.name


@dataclass(frozen=True)
class Plan:
    """A whole league.

    - ``budget``: FLOPs of each system's pretraining, counted (``mmlab.league.budget``).
    - ``seeds``: of everything random; each is a whole league of its own.
    - ``num_images``, ``most_objects``: the scenes that all learn from; ``test_images`` others to
      measure on.
    - ``retrieved``: among how many pictures and captions is searched.
    - ``tasks``: some of ``TASK_NAMES``.

    A wrong value raises ValueError.
    """

    entries: tuple[Entry, ...]
    tasks: tuple[str, ...]
    budget: float
    seeds: tuple[int, ...] = (0, 1, 2)
    num_images: int = 8000
    most_objects: int = 2
    test_images: int = 1000
    retrieved: int = 100
    finetuning: FineTuning = field(default_factory=FineTuning)

    def __post_init__(self) -> None:
        check_integers(self, "num_images", "most_objects", "test_images", "retrieved")
        check(self.budget > 0, "budget", self.budget, "a positive number of FLOPs")
        check(bool(self.seeds), "seeds", self.seeds, "at least one")
        for task in self.tasks:
            check_known("task", task, TASK_NAMES)
        check(bool(self.entries), "systems", self.entries, "at least one")
        fits = self.retrieved <= self.test_images
        check(fits, "retrieved", self.retrieved, f"at most test_images={self.test_images}")
        for entry in self.entries:
            total = sum(stage.share for stage in entry.stages) or entry.name == TEXT_ONLY
            right = abs(total - 1) < 1e-6
            check(right, f"the shares of {entry.name}", total, "1 together")
            for stage in entry.stages:
                self.recipe(stage, 0)

    def entry(self, name: str) -> Entry:
        """The system of that name; ValueError, with the nearest, if there is none."""
        names = tuple(entry.name for entry in self.entries)
        check_known("system of this league", name, names)
        return self.entries[names.index(name)]

    def recipe(self, stage: Stage, seed: int, **given: object) -> Recipe:
        """The recipe of one stage; ``given`` are fields that only the run knows.

        ValueError if it sets what the plan sets for all.
        """
        for name in GIVEN:
            if name in stage.settings:
                raise ValueError(f"a system of a league must not set {name}: the plan sets it")
        made = to_recipe(dict(stage.settings))
        shown = {"num_images": self.num_images, "most_objects": self.most_objects}
        return replace(made, data="scenes", seed=seed, **shown, **given)

    def tasks_of(self, entry: Entry) -> tuple[str, ...]:
        """The tasks of the plan that a system does."""
        return tuple(t for t in self.tasks if not entry.tasks or t in entry.tasks)


def read_plan(source: str | Path) -> Plan:
    """A plan that comes with mmlab, by its name, or one in a YAML file.

    ValueError says what is wrong with it.
    """
    import yaml

    if str(source) in PLANS:
        text = resources.files("mmlab.league").joinpath(f"{source}.yaml").read_text("utf-8")
    else:
        text = _read(Path(source))
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"plan {str(source)!r} cannot be read: {reason}") from None
    try:
        return to_plan(given)
    except ValueError as error:
        raise ValueError(f"plan {str(source)!r}: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        known = ", ".join(PLANS)
        raise ValueError(f"there is no plan {str(path)!r}; mmlab comes with {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"plan {str(path)!r} cannot be read: {error}") from None


def to_plan(given: object) -> Plan:
    """A plan from what YAML holds; ValueError for an unknown or missing key."""
    if not isinstance(given, dict) or not isinstance(given.get("systems"), dict):
        raise ValueError("it must hold 'systems:' with a recipe for each, 'tasks:' and 'budget:'")
    known = [f.name for f in fields(Plan) if f.name != "entries"]
    for name in given.keys() - {"systems"}:
        check_known("plan key", str(name), tuple(known))
    for name in ("tasks", "budget"):
        check(name in given, name, None, "told")
    settings = {name: given[name] for name in known if name in given}
    settings |= {name: tuple(settings[name]) for name in ("tasks", "seeds") if name in settings}
    settings["budget"] = typed("budget", settings["budget"], 1.0)
    tuning = {k: typed(k, v, _tuning(k)) for k, v in settings.get("finetuning", {}).items()}
    settings["finetuning"] = FineTuning(**tuning)
    entries = tuple(_entry(str(name), own) for name, own in given["systems"].items())
    return Plan(entries, **settings)


def _tuning(name: str) -> object:
    usual = asdict(FineTuning())
    check_known("fine-tuning setting", name, tuple(usual))
    return usual[name]


def _entry(name: str, given: object) -> Entry:
    """One recipe, or a list of ``stages`` of which each has a ``share``."""
    if name == TEXT_ONLY:
        check(not given, name, given, "left empty: it is not pretrained")
        return Entry(name, ())
    check(isinstance(given, dict), name, given, "the settings of a recipe")
    rest = dict(given)
    tasks = tuple(rest.pop("tasks", ()))
    stages: Sequence[Mapping[str, object]] = rest.pop("stages", None) or [{}]
    made = []
    for own in stages:
        settings = {"system": name, **rest, **own}
        share = float(settings.pop("share", 1.0))
        made.append(Stage(settings, share))
    return Entry(name, tuple(made), tasks)
