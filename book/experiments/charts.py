"""How the book draws and tells the result of an experiment.

Every seed is a point, a mean has its interval as a bar, and each row or line carries its own name.
``told`` says the same in words, for the alternative text; ``findings`` gives the verdicts as the
page shows them, with the links to the script and to its result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.protocol import interval

Values = Mapping[str, Sequence[float]]
"""Name as the reader sees it → one figure a seed."""


def rows(axes, theme, values: Values, color: str | None = None) -> None:
    """One row a name, from top to bottom: a point for each seed, the mean and its interval."""
    color = color or theme.accent
    for row, figures in enumerate(values.values()):
        axes.plot(
            figures,
            [row] * len(figures),
            "o",
            ms=5,
            mew=0,
            alpha=0.45,
            color=color,
        )
        about = interval(figures)
        axes.plot(
            [about.low, about.high],
            [row + 0.28] * 2,
            lw=2,
            color=theme.ink,
        )
        axes.plot(
            about.mean, row + 0.28, "|", ms=9, mew=2, color=theme.ink
        )
    axes.set_yticks(range(len(values)), list(values))
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.grid(axis="x", lw=0.6)
    axes.set_axisbelow(True)


def line(
    axes,
    theme,
    x: Sequence[float],
    figures: Sequence[Sequence[float]],
    color: str,
    style: str = "-",
) -> None:
    """Means over the seeds joined by a line, intervals as bars, a point for each seed."""
    abouts = [interval(seeds) for seeds in figures]
    for place, seeds, about in zip(x, figures, abouts, strict=True):
        axes.plot(
            [place] * len(seeds),
            seeds,
            "o",
            ms=3.5,
            mew=0,
            alpha=0.4,
            color=color,
        )
        axes.plot(
            [place] * 2, [about.low, about.high], lw=1.6, color=color
        )
    axes.plot(
        x, [about.mean for about in abouts], style, lw=1.6, color=color
    )


def told(values: Values, form: str = ".2f") -> str:
    """The rows in words: name, mean, and the range over the seeds."""
    return "; ".join(
        f"{name}: mean {interval(seeds).mean:{form}}, seeds from "
        f"{min(seeds):{form}} to {max(seeds):{form}}"
        for name, seeds in values.items()
    )


def sentence(text: str) -> str:
    """With one full stop at its end."""
    return text.rstrip(".") + "."


def findings(result: Mapping[str, Any]) -> str:
    """Every statement of a result with its verdict and figures, then where they come from."""
    lines = [
        f"- {{verdict}}`{finding['verdict']}` {finding['statement']} *Measured:* "
        f"{sentence(finding['measured'])} ({', '.join(finding['claims'])})"
        for finding in result["findings"]
    ]
    name = result["name"]
    lines.append("")
    lines.append(
        f"{len(result['seeds'])} seeds. The script with its rules: "
        f"[{name}.py](experiments/{name}.py); every figure: "
        f"[{name}.json](../data/results/{name}.json)."
    )
    return "\n".join(lines)


def end_labels(
    axes, x: float, ends: Sequence[tuple[float, str, str]]
) -> None:
    """Names at the right ends of lines, ``(height, name, color)``, moved apart where they meet.

    Call it when the limits and the scale of the axes are final.
    """
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(axes.get_ylim())
    place = -math.inf
    for end, name, color in sorted(ends):
        gap = (high - low) * 0.08 * (name.count("\n") + 1)
        place = max(float(scale.transform([end])[0]), place + gap)
        axes.annotate(
            name,
            (x, scale.inverted().transform([place])[0]),
            xytext=(6, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
        )


def short(number: int) -> str:
    """``500``, ``1.5k``, ``32k``: a count for the tick of an axis."""
    return f"{number / 1000:g}k" if number >= 1000 else str(number)
