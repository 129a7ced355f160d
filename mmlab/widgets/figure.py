"""A still figure of the book: drawn once for light pages and once for dark, with alt text."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure


@dataclass(frozen=True)
class Theme:
    """The colours of a drawing; ``accent`` and ``warm`` stay apart for colour-blind readers."""

    name: str
    ink: str
    muted: str
    line: str
    surface: str
    accent: str
    warm: str


LIGHT = Theme("light", "#1d2529", "#56646b", "#c9d1d4", "#ffffff", "#0b6e75", "#b4540a")
DARK = Theme("dark", "#e6ebed", "#a3b1b8", "#48545a", "#14181b", "#5cc8c4", "#f0a35e")

MEDIA_TYPES = {"svg": "image/svg+xml", "webp": "image/webp"}
# No date: the same figure is the same file.
_SAVING = {"svg": {"metadata": {"Date": None}}, "webp": {"pil_kwargs": {"quality": 85}}}

# Both drawings travel; the page shows the one of its theme (Jupyter Book, then JupyterLab).
_STYLE = """
.mmlab-figure{margin:1rem 0;text-align:center}
.mmlab-figure img{max-width:100%;height:auto;background:none!important;filter:none!important}
.mmlab-figure .mmlab-dark{display:none}
html[data-theme="dark"] .mmlab-figure .mmlab-light,
body[data-jp-theme-light="false"] .mmlab-figure .mmlab-light{display:none}
html[data-theme="dark"] .mmlab-figure .mmlab-dark,
body[data-jp-theme-light="false"] .mmlab-figure .mmlab-dark{display:inline}
.mmlab-figure figcaption{font-size:.9em;text-align:left}
"""


def _settings(theme: Theme) -> dict:
    return {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.edgecolor": theme.line,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "grid.color": theme.line,
        "axes.prop_cycle": matplotlib.cycler(color=[theme.accent, theme.warm, theme.muted]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "font.size": 10,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP"],
        "svg.hashsalt": "mmlab",
    }


class Figure:
    """Shows ``draw(figure, theme)`` in the colours of the reader's page.

    Args:
        draw: fills a Matplotlib figure; it is called once for each theme.
        alt: what a reader who cannot see the figure needs to know.
        size: width and height in inches; the book's column is 7.2 wide.
        caption: an optional line under the figure, shown as text.
        format: ``"svg"`` for lines and text, ``"webp"`` for pictures.

    Raises:
        ValueError: if ``alt`` is empty or ``format`` is unknown.
    """

    def __init__(
        self,
        draw: Callable[[MatplotlibFigure, Theme], None],
        *,
        alt: str,
        size: tuple[float, float] = (7.2, 2.6),
        caption: str = "",
        format: str = "svg",
    ):
        if not alt.strip():
            raise ValueError("alt is empty: say in a sentence what the figure shows")
        if format not in MEDIA_TYPES:
            raise ValueError(f"format={format!r}; allowed are 'svg' and 'webp'")
        self.draw, self.alt, self.size = draw, alt, size
        self.caption, self.format = caption, format

    def render(self, theme: Theme, format: str) -> bytes:
        """The drawing in the colours of one theme, as a ``"svg"``, ``"png"`` or ``"webp"`` file."""
        with matplotlib.rc_context(_settings(theme)):
            figure = MatplotlibFigure(figsize=self.size, layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure, theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=format, dpi=144, **_SAVING.get(format, {}))
        return buffer.getvalue()

    @cached_property
    def _images(self) -> tuple[bytes, bytes]:
        return self.render(LIGHT, self.format), self.render(DARK, self.format)

    def _tag(self, image: bytes, name: str) -> str:
        data = base64.b64encode(image).decode()
        # dark-light tells the book's theme that this picture needs no white card in the dark.
        return (
            f'<img class="mmlab-{name} dark-light" alt="{html.escape(self.alt)}" '
            f'src="data:{MEDIA_TYPES[self.format]};base64,{data}">'
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        light, dark = self._images
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        page = (
            f'<style>{_STYLE}</style><figure class="mmlab-figure">'
            f"{self._tag(light, 'light')}{self._tag(dark, 'dark')}{caption}</figure>"
        )
        return {
            "text/html": page,
            "image/png": base64.b64encode(self.render(LIGHT, "png")).decode(),
            "text/plain": f"Figure: {self.alt}",
        }
