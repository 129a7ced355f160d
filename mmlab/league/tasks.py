"""What a league can measure: a function for each task, and which systems it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmlab.league.place import Result
from mmlab.league.plan import PRETRAINING, Entry, Plan
from mmlab.league.pretraining import pretrain

Task = Callable[[Plan, Path, Entry, int], Result]


def suits(task: str, entry: Entry) -> bool:
    """Whether a system can do a task at all."""
    return True


TASKS: dict[str, Task] = {PRETRAINING: pretrain}
