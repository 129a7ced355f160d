"""What every experiment of the book shares: seeds, intervals, verdicts and the result file.

An experiment is a script beside this one. It says what it runs (``conditions`` and ``run``) and,
before it runs, what would confirm each claim (``judge``, a function of the figures alone). Called
as a script it runs every condition with every seed and writes ``data/results/<name>.json``:

    python book/experiments/d06_pooling.py            # all seeds; goes on where it was stopped
    python book/experiments/d06_pooling.py --jobs 2   # two runs at a time, the same figures

A chapter reads the file with ``load("d06_pooling")`` and calls ``run`` itself with one seed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "data" / "results"
# Figures of runs that are over, kept until the experiment is complete.
UNFINISHED = ROOT / "_build" / "experiments"

CONFIRMED, REFUTED, NO_DIFFERENCE = (
    "confirmed",
    "refuted",
    "no difference seen",
)
VERDICTS = (CONFIRMED, REFUTED, NO_DIFFERENCE)

# Two-sided 95 % quantiles of Student's t with 1, 2, … degrees of freedom.
_T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
)

Figures = Mapping[str, Mapping[str, Sequence[float]]]
"""Condition → name of a measure → one figure a seed, in the order of the seeds."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_digits(self.mean)} [{_digits(self.low)}, {_digits(self.high)}]"

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies inside: no difference seen."""
        return self.low <= 0 <= self.high


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of one figure a seed and its 95 % interval.

    Raises:
        ValueError: there are fewer than two or more than thirteen values.
    """
    if not 2 <= len(values) <= len(_T95) + 1:
        raise ValueError(
            f"an interval needs 2 to {len(_T95) + 1} seeds, not {len(values)}"
        )
    mean = statistics.fmean(values)
    half = (
        _T95[len(values) - 2]
        * statistics.stdev(values)
        / math.sqrt(len(values))
    )
    return Interval(mean, mean - half, mean + half)


def difference(
    first: Sequence[float], second: Sequence[float]
) -> Interval:
    """The mean of ``first - second``, seed by seed: paired, as both saw the same data."""
    return interval([a - b for a, b in zip(first, second, strict=True)])


@dataclass(frozen=True)
class Finding:
    """What the figures say of one statement, by the rule that was written before the run."""

    claims: tuple[str, ...]
    statement: str
    rule: str
    verdict: str
    measured: str
    estimate: Interval | None = None

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(
                f"verdict is {self.verdict!r}; it must be one of {VERDICTS}"
            )


def verdict(confirmed: bool, undecided: bool = False) -> str:
    """The word for an outcome; ``undecided`` where the interval holds zero."""
    return (
        NO_DIFFERENCE
        if undecided
        else CONFIRMED
        if confirmed
        else REFUTED
    )


def points(about: Interval) -> str:
    """A difference of shares in percentage points, with its interval."""
    return (
        f"{100 * about.mean:+.1f} points "
        f"[{100 * about.low:+.1f}, {100 * about.high:+.1f}]"
    )


def above_zero(
    claims: tuple[str, ...],
    statement: str,
    values: Sequence[float],
    what: str,
) -> Finding:
    """The commonest rule: confirmed if the interval of the shares in ``values`` lies above zero."""
    estimate = interval(values)
    return Finding(
        claims,
        statement,
        "Confirmed: the interval lies above zero. Refuted: below zero.",
        verdict(estimate.low > 0, undecided=estimate.holds_zero),
        f"{what}: {points(estimate)}.",
        estimate,
    )


@dataclass(frozen=True)
class Experiment:
    """One row of the book's catalogue of demonstrations.

    ``run(condition, seed)`` gives the figures of one run by name; it must depend on nothing else.
    ``judge(figures)`` turns all of them into findings. ``config`` holds what a reader needs to
    know of the set-up: steps, sizes, rates.
    """

    name: str
    title: str
    claims: tuple[str, ...]
    conditions: tuple[str, ...]
    run: Callable[[str, int], dict[str, float]]
    judge: Callable[[Figures], list[Finding]]
    config: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


def script_hash(name: str) -> str:
    """The hash of what the script of an experiment says, its comments and layout left out."""
    source = (HERE / f"{name}.py").read_text()
    return hashlib.sha256(
        ast.dump(ast.parse(source)).encode()
    ).hexdigest()


def load(name: str) -> dict[str, Any]:
    """The result file of an experiment."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def names() -> list[str]:
    """The names of all experiments: the scripts d*.py beside this one."""
    return sorted(path.stem for path in HERE.glob("d[0-9]*.py"))


def main(experiment: Experiment) -> None:
    """Run an experiment from the command line and write its result file."""
    parser = argparse.ArgumentParser(description=experiment.title)
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time, one thread each",
    )
    jobs = parser.parse_args().jobs
    started = time.perf_counter()
    done = _finished_runs(experiment)
    for (condition, seed), figures, seconds in _runs(
        experiment, jobs, done
    ):
        done[_key(condition, seed)] = {
            "figures": figures,
            "seconds": seconds,
        }
        _write(
            UNFINISHED / f"{experiment.name}.json",
            _unfinished(experiment, done),
        )
        print(
            f"{condition:>24} seed {seed}: {_shown(figures)}  ({seconds:.1f} s)",
            flush=True,
        )
    figures = collect(experiment, done)
    findings = experiment.judge(figures)
    seconds = sum(run["seconds"] for run in done.values())
    _write(
        RESULTS / f"{experiment.name}.json",
        _result(experiment, figures, findings, seconds),
    )
    (UNFINISHED / f"{experiment.name}.json").unlink()
    for finding in findings:
        print(
            f"{finding.verdict.upper()}: {finding.statement} Measured: {finding.measured}"
        )
    print(f"{time.perf_counter() - started:.0f} s")


def collect(
    experiment: Experiment, done: Mapping[str, Any]
) -> dict[str, dict[str, list[float]]]:
    """The figures of all runs, by condition and measure, in the order of the seeds."""
    figures: dict[str, dict[str, list[float]]] = {}
    for condition in experiment.conditions:
        runs = [
            done[_key(condition, seed)]["figures"]
            for seed in experiment.seeds
        ]
        figures[condition] = {
            name: [run[name] for run in runs] for name in runs[0]
        }
    return figures


def _runs(
    experiment: Experiment, jobs: int, done: Mapping[str, Any]
) -> Iterable[tuple[tuple[str, int], dict[str, float], float]]:
    """Every run that is not done yet, as it ends."""
    # By seed first: a stopped experiment has whole seeds, and can be looked at.
    todo = [
        (c, s) for s in experiment.seeds for c in experiment.conditions
    ]
    todo = [run for run in todo if _key(*run) not in done]
    if jobs == 1:
        for run in todo:
            yield run, *_timed(experiment.run, *run)
        return
    # Spawned and not forked: torch's threads do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        started = {
            pool.submit(_timed, experiment.run, *run): run for run in todo
        }
        for future in as_completed(started):
            yield started[future], *future.result()


def _timed(
    run: Callable, condition: str, seed: int
) -> tuple[dict[str, float], float]:
    """One run on one thread, so that its figures do not depend on how many run beside it.

    The seconds are the processor's own, which other work on the machine does not stretch.
    """
    torch.set_num_threads(1)
    started = time.process_time()
    figures = {
        name: float(value) for name, value in run(condition, seed).items()
    }
    return figures, time.process_time() - started


def _key(condition: str, seed: int) -> str:
    return f"{condition} / {seed}"


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" for name, value in figures.items()
    )


def _finished_runs(experiment: Experiment) -> dict[str, Any]:
    """What an earlier call left, if the script has not changed since."""
    try:
        left = json.loads(
            (UNFINISHED / f"{experiment.name}.json").read_text()
        )
    except (OSError, ValueError):
        return {}
    return (
        left["runs"]
        if left["script"] == script_hash(experiment.name)
        else {}
    )


def _unfinished(
    experiment: Experiment, done: Mapping[str, Any]
) -> dict[str, Any]:
    return {"script": script_hash(experiment.name), "runs": dict(done)}


def _result(
    experiment: Experiment,
    figures: Figures,
    findings: list[Finding],
    seconds: float,
) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "title": experiment.title,
        "claims": list(experiment.claims),
        "seeds": list(experiment.seeds),
        "config": dict(experiment.config),
        "figures": figures,
        "findings": [asdict(finding) for finding in findings],
        "script": script_hash(experiment.name),
        "processor_seconds": round(seconds, 1),
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """What the figures were computed on; nothing that names one computer."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":")[1].strip()
            for line in lines
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Written aside and renamed, so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    )
    aside.replace(path)


if __name__ == "__main__":
    sys.exit(
        "Run one of the experiments beside this file: "
        + ", ".join(names())
    )
