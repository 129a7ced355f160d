"""What a check says: solved, not yet and why, or not answered yet."""

from __future__ import annotations

import html
from dataclasses import dataclass

# State → the symbol, which is never alone, and the words.
LABELS = {
    "solved": ("✓", "Solved."),
    "hint": ("✕", "Not yet."),
    "unanswered": ("○", "Not answered yet."),
    "unknown": ("?", "No such exercise."),
}

# The colours of the book's page where it defines them; JupyterLab gets the second value.
_STYLE = """
.mmlab-check{--edge:var(--mmlab-muted,#56646b);--line:var(--mmlab-line,#c9d1d4);margin:.25rem 0;
padding:.6rem 1rem;border:1px solid var(--line);border-inline-start:4px solid var(--edge);
border-radius:0 8px 8px 0;color:var(--mmlab-ink,#1d2529);line-height:1.5;overflow-wrap:anywhere}
.mmlab-check-solved{--edge:var(--mmlab-accent,#0b6e75)}
.mmlab-check-hint,.mmlab-check-unknown{--edge:var(--mmlab-warm,#a84d08)}
body[data-jp-theme-light="false"] .mmlab-check{--edge:#a3b1b8;--line:#48545a;color:#e6ebed}
body[data-jp-theme-light="false"] .mmlab-check-solved{--edge:#5cc8c4}
body[data-jp-theme-light="false"] :is(.mmlab-check-hint,.mmlab-check-unknown){--edge:#f0a35e}
.mmlab-check p{margin:0;color:inherit}
.mmlab-check strong{color:var(--edge)}
.mmlab-check dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.1rem .9rem;
margin:.5rem 0 0;font-size:.92em}
.mmlab-check dt{margin:0;font-weight:400;color:inherit;opacity:.85}
.mmlab-check dd{margin:0!important}
.mmlab-check code{white-space:pre-wrap;color:inherit}
"""


class Hint(Exception):
    """An answer is not right yet.

    ``message`` says why; ``facts`` are pairs of a name and a piece of code: the call, what it
    should give, what it gave.
    """

    def __init__(self, message: str, facts: tuple[tuple[str, str], ...] = ()):
        super().__init__(message)
        self.message, self.facts = message, facts


class Unanswered(Exception):
    """The answer is still the ``...`` that the page came with."""


@dataclass(frozen=True)
class Result:
    """The outcome of a check; it is true if the exercise is solved.

    ``state`` is one of ``LABELS``; ``message`` is a sentence or two in which backticks mark code.
    """

    exercise: str
    state: str
    message: str
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return self.state == "solved"

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        symbol, words = LABELS[self.state]
        facts = [f"  {name}: {value}" for name, value in self.facts]
        return "\n".join([f"{symbol} {self.exercise}: {words} {self.message}", *facts])

    __repr__ = __str__

    def _html(self) -> str:
        symbol, words = LABELS[self.state]
        mark = f'<strong><span aria-hidden="true">{symbol}</span> {words}</strong>'
        facts = "".join(
            f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(value)}</code></dd>"
            for name, value in self.facts
        )
        return (
            f'<style>{_STYLE}</style><div class="mmlab-check mmlab-check-{self.state}">'
            f"<p>{mark} {_code(self.message)}</p>{f'<dl>{facts}</dl>' if facts else ''}</div>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self._html(), "text/plain": str(self)}


def _code(sentence: str) -> str:
    """The sentence as HTML, with what stands between backticks as code."""
    parts = html.escape(sentence).split("`")
    marked = [f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)]
    return "".join(marked)
