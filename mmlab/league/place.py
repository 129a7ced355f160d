"""The run folder of a league: where each cell lies, and what is written of it.

``plan.json`` is what was asked for. ``cells/<system>/seed<k>/<task>/cell.json`` is what came of
one cell of the table; a cell without that file has not been finished. ``tokenizers/seed<k>.json``
is the vocabulary that all systems of a seed share.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mmlab.datasets import Scenes, scenes
from mmlab.league.plan import Plan
from mmlab.tasks.downstream.vocabulary import task_tokenizer
from mmlab.training.checkpoints import write_text

PLAN, CELLS, RESULT, TOKENIZERS = "plan.json", "cells", "cell.json", "tokenizers"
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Cell:
    """One cell of the table: a system, a seed and a task."""

    entry: str
    seed: int
    task: str

    @property
    def path(self) -> Path:
        """Its folder, from the run folder."""
        return Path(CELLS, self.entry, f"seed{self.seed}", self.task)

    def __str__(self) -> str:
        return f"{self.entry} seed {self.seed} {self.task}"


@dataclass
class Result:
    """What came of a cell; see ``mmlab.league`` for the figures of each task.

    ``flops`` and ``steps`` are those of training in this cell. ``seconds`` are those that its
    process had of the processor, or by the clock where a GPU works; None if not known.
    ``memory_mib`` is the most memory that the process held.
    """

    entry: str
    system: str
    seed: int
    task: str
    status: str = DONE
    error: str = ""
    figures: dict[str, object] | None = None
    flops: float = 0.0
    steps: int = 0
    num_parameters: int = 0
    seconds: float | None = 0.0
    memory_mib: float = 0.0
    code: str = ""


def read_result(folder: Path, cell: Cell) -> Result | None:
    """What came of a cell; None if it is not finished, or its file is damaged."""
    try:
        return Result(**json.loads((folder / cell.path / RESULT).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_result(folder: Path, cell: Cell, result: Result) -> None:
    """Write the cell's file, whole or not at all."""
    (folder / cell.path).mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result), indent=1, allow_nan=False)
    write_text(folder / cell.path / RESULT, text + "\n")


def training_scenes(plan: Plan, seed: int, image_size: int = 64) -> Scenes:
    """The scenes that pretraining and fine-tuning of a seed learn from."""
    shown = (1, plan.most_objects)
    return scenes(plan.num_images, "train", image_size, seed=seed, num_objects=shown)


def test_scenes(plan: Plan, image_size: int = 64, most_objects: int | None = None) -> Scenes:
    """The scenes that all seeds are measured on; more objects than in training if told."""
    shown = (1, most_objects or plan.most_objects)
    return scenes(plan.test_images, "test", image_size, seed=0, num_objects=shown)


def tokenizer_file(plan: Plan, folder: Path, seed: int) -> Path:
    """The vocabulary of a seed, learned from the texts of its training scenes when first needed."""
    path = folder / TOKENIZERS / f"seed{seed}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, task_tokenizer(training_scenes(plan, seed), seed).to_json())
    return path
