"""Run a league: every cell in a process of its own, as many at a time as there are cores to spare.

A cell that is finished is never run again, a pretraining that was cut short goes on from its last
checkpoint, and a cell that fails is told and costs no other cell but those that stand on it.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from mmlab.league.place import DONE, FAILED, PLAN, Cell, Result, read_result, write_result
from mmlab.league.plan import PRETRAINING, TEXT_ONLY, Plan
from mmlab.league.tasks import TASKS, suits
from mmlab.models.checks import check
from mmlab.training.checkpoints import write_text
from mmlab.training.recipe import check_known

Say = Callable[[str], None]


def cells_of(plan: Plan) -> list[Cell]:
    """All cells of a plan, one seed after the other, pretraining before what stands on it."""
    cells = []
    for seed in plan.seeds:
        cells += [Cell(entry.name, seed, PRETRAINING) for entry in plan.entries if entry.stages]
        for entry in plan.entries:
            tasks = [task for task in plan.tasks_of(entry) if suits(task, entry)]
            cells += [Cell(entry.name, seed, task) for task in tasks]
    return cells


def check_plan(plan: Plan, folder: Path) -> None:
    """Keep the plan in the folder; ValueError if the folder holds another league."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file, not a folder for a league")
    text = json.dumps(plan_figures(plan), indent=1) + "\n"
    file = folder / PLAN
    if file.is_file():
        if json.loads(file.read_text("utf-8")) != json.loads(text):
            raise ValueError(f"{str(folder)!r} holds a league of another plan; see {file}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def plan_figures(plan: Plan) -> dict[str, object]:
    """A plan as plain values, for JSON."""
    made = {name: value for name, value in vars(plan).items() if name != "entries"}
    made["finetuning"] = asdict(plan.finetuning)
    made["systems"] = {
        entry.name: [{**stage.settings, "share": stage.share} for stage in entry.stages]
        for entry in plan.entries
    }
    return made


def run_league(
    plan: Plan,
    folder: str | Path,
    jobs: int = 1,
    say: Say = lambda text: None,
    only: Callable[[Cell], bool] = lambda cell: True,
) -> list[Result]:
    """Run the cells that are not finished; those that failed before are tried again.

    ``jobs`` processes share the cores evenly. ``only`` leaves cells out for now. Returns what came
    of all cells that are finished or failed. ValueError for a folder of another league.
    """
    check(jobs >= 1, "jobs", jobs, "at least 1")
    folder = Path(folder)
    check_plan(plan, folder)
    waiting = [cell for cell in cells_of(plan) if only(cell) and not _is_done(folder, cell)]
    total, running = len(waiting), {}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        while waiting or running:
            waiting = _settle(plan, folder, waiting, running)
            for cell in _ready(folder, waiting):
                if len(running) == jobs:
                    break
                waiting.remove(cell)
                running[cell] = _start(plan, folder, cell, threads)
            for cell in _ended(plan, folder, running):
                result = read_result(folder, cell)
                say(f"[{total - len(waiting) - len(running)}/{total}] {_line(cell, result)}")
    finally:
        for process in running.values():
            process.terminate()
    return [r for cell in cells_of(plan) if (r := read_result(folder, cell)) is not None]


def chosen_cells(
    plan: Plan, systems: str | None, tasks: str | None, seeds: str | None
) -> Callable[[Cell], bool]:
    """What leaves out the cells that are not asked for, by lists such as ``"clip,vilt"``.

    Pretraining is always part of it. ValueError for a name that the plan does not have.
    """
    names = tuple(entry.name for entry in plan.entries)
    numbers = tuple(map(str, plan.seeds))
    wanted = [
        _listed(what, text, known)
        for what, text, known in (
            ("system of this league", systems, names),
            ("task of this league", tasks, plan.tasks),
            ("seed of this league", seeds, numbers),
        )
    ]
    return lambda cell: (
        cell.entry in wanted[0]
        and cell.task in (*wanted[1], PRETRAINING)
        and str(cell.seed) in wanted[2]
    )


def _listed(what: str, text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if not text:
        return known
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        check_known(what, name, known)
    return names


def _is_done(folder: Path, cell: Cell) -> bool:
    result = read_result(folder, cell)
    return result is not None and result.status == DONE


def _base(cell: Cell) -> Cell:
    return replace(cell, task=PRETRAINING)


def _ready(folder: Path, waiting: list[Cell]) -> Iterator[Cell]:
    """Those that need nothing, or whose pretraining is done; in order."""
    for cell in list(waiting):
        base = _base(cell)
        needs_none = cell.task == PRETRAINING or cell.entry == TEXT_ONLY
        if needs_none or _is_done(folder, base):
            yield cell


def _settle(plan: Plan, folder: Path, waiting: list[Cell], running: dict) -> list[Cell]:
    """What waits for a pretraining that failed, or will not come, is told to have failed."""
    left = []
    for cell in waiting:
        base = _base(cell)
        comes = base in waiting or base in running or cell.entry == TEXT_ONLY
        if cell.task == PRETRAINING or comes or _is_done(folder, base):
            left.append(cell)
        else:
            write_result(folder, cell, _failed(plan, cell, "its pretraining is not there"))
    return left


def _failed(plan: Plan, cell: Cell, error: str) -> Result:
    system = plan.entry(cell.entry).system
    return Result(cell.entry, system, cell.seed, cell.task, FAILED, error, code=code_version())


def _start(plan: Plan, folder: Path, cell: Cell, threads: int) -> BaseProcess:
    # Forks of a process that has imported PyTorch once, and has done nothing with it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmlab.league.run"])
    process = context.Process(target=run_cell, args=(plan, folder, cell, threads), daemon=False)
    process.start()
    return process


def _ended(plan: Plan, folder: Path, running: dict) -> list[Cell]:
    """Wait until one ends; those that ended leave ``running``."""
    if not running:
        return []
    multiprocessing.connection.wait([process.sentinel for process in running.values()])
    ended = [cell for cell, process in running.items() if not process.is_alive()]
    for cell in ended:
        process = running.pop(cell)
        process.join()
        if process.exitcode:
            reason = f"its process ended with exit code {process.exitcode}"
            if process.exitcode < 0:
                reason = f"its process was killed by signal {-process.exitcode}"
            write_result(folder, cell, _failed(plan, cell, reason))
    return ended


def run_cell(plan: Plan, folder: Path, cell: Cell, threads: int) -> None:
    """Run one cell here and write its file, whatever happens to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    torch.set_num_threads(threads)
    # Of the processor, as a machine that does other things, too, makes the clock's mean nothing.
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    try:
        result = TASKS[cell.task](plan, folder, plan.entry(cell.entry), cell.seed)
    except Exception as error:
        result = _failed(plan, cell, " ".join(f"{type(error).__name__}: {error}".split()))
        (folder / cell.path).mkdir(parents=True, exist_ok=True)
        write_text(folder / cell.path / "traceback.txt", traceback.format_exc())
    if result.seconds is not None:
        result.seconds = clock() - started
    result.memory_mib = peak_memory_mib()
    result.code = code_version()
    write_result(folder, cell, result)


def peak_memory_mib() -> float:
    """The most memory that this process has held, in MiB; on a GPU the most that it held there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if os.uname().sysname == "Darwin" else 2**10)


def code_version() -> str:
    """The commit of mmlab that runs, or its version where there is no repository."""
    given = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(given, capture_output=True, text=True, check=True)
        return found.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        return version("mmlab")
    except PackageNotFoundError:
        return "unknown"


def _line(cell: Cell, result: Result | None) -> str:
    if result is None:
        return f"{cell}: nothing was written"
    told = f"failed: {result.error}" if result.status == FAILED else _told(result)
    return f"{cell}: {told}" + (f" ({result.seconds:.0f} s)" if result.seconds else "")


def _told(result: Result) -> str:
    figures = result.figures or {}
    if "accuracy" in figures:
        return f"{figures['accuracy']:.1%} right"
    if result.task == PRETRAINING:
        return f"{result.steps} steps, {result.flops / 1e12:.2f} TFLOPs"
    return "done"
