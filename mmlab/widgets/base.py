"""The base of every figure that answers the hand: live in Jupyter, alive on a static page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Collection
from html import escape
from importlib import resources
from typing import Any

import anywidget
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from mmlab.widgets.strings import strings_for

# On a page without a kernel this object stands in for the Jupyter model. Like the real one it
# reports a change only when the value is another one.
_STAND_IN = """\
const state = JSON.parse(data.textContent, (key, value) => value?.$bytes === undefined ? value
  : new DataView(Uint8Array.from(atob(value.$bytes), (c) => c.charCodeAt(0)).buffer));
const listeners = {}, heard = (name) => (listeners[name] ??= new Set());
const model = {
  get: (name) => state[name],
  set(name, value) {
    if (state[name] === value) return;
    state[name] = value;
    heard("change:" + name).forEach((f) => f());
  },
  on: (name, f) => heard(name).add(f),
  off: (name, f) => f ? heard(name).delete(f) : heard(name).clear(),
  save_changes() {},
};"""

_PAGE = """\
<div class="mmlab-static" data-figure="{key}"><noscript><p>{sentence}</p></noscript></div>
<script type="application/json" data-state="{key}">{state}</script>
<script type="module">
const fresh = (query) => document.querySelector(query + ":not([data-used])");
const el = fresh('[data-figure="{key}"]'), data = fresh('[data-state="{key}"]');
for (const node of [el, data]) node.dataset.used = "";
{stand_in}
const figure = await import("data:text/javascript;base64,{module}");
figure.default.render({{ model, el }});
</script>"""


def module_source(name: str, *parts: str) -> str:
    """The one self-contained ES module of a figure.

    It is the style sheet, the toolkit, ``<part>.js`` of each of the parts, then ``<name>.js``.
    """
    here = resources.files("mmlab.widgets")
    style, *scripts = (
        here.joinpath(file).read_text("utf-8")
        for file in ("toolkit.css", "toolkit.js", *(f"{part}.js" for part in (*parts, name)))
    )
    return "\n".join([f"const TOOLKIT_CSS = {json.dumps(style)};", *scripts])


def _encode_bytes(value: Any) -> dict[str, str]:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"a widget's trait holds {type(value).__name__}, which no page can read")


def to_script_json(state: dict[str, Any]) -> str:
    """JSON that is safe inside ``<script>``: no ``<``, so neither ``</script>`` nor ``<!--``.

    ``bytes`` become ``{"$bytes": base64}``; the page turns them into the DataView that a live
    widget gets. Raises TypeError for other values that JSON lacks, ValueError for NaN.
    """
    text = json.dumps(state, default=_encode_bytes, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def listed(proposal: dict[str, Any], allowed: Collection[str]) -> Any:
    """The proposed value of a trait; ValueError, with what is allowed, if it is none of these."""
    name, value = proposal["trait"].name, proposal["value"]
    if value not in allowed:
        raise ValueError(f"{name}={value!r}; allowed are {', '.join(allowed)}")
    return value


def within(proposal: dict[str, Any], low: float | int, high: float | int = math.inf) -> Any:
    """The proposed value of a trait; ValueError if it is less than ``low`` or more than ``high``.

    Without ``high`` there is no upper limit.
    """
    name, value = proposal["trait"].name, proposal["value"]
    if not low <= value <= high:
        limits = f"{low:.10g} and up" if high == math.inf else f"{low:.10g} to {high:.10g}"
        raise ValueError(f"{name}={value}; allowed are {limits}")
    return value


class Widget(anywidget.AnyWidget):
    """A figure whose module draws in the browser from synced traits.

    A subclass sets ``_esm = module_source(name)`` and ``_strings = name``, and says what it shows
    in ``sentence()`` (one line of text) and ``still()`` (a matplotlib figure, for print).
    """

    _strings = ""

    strings = traitlets.Dict(help="every word on the figure").tag(sync=True)

    def __init__(self, language: str = "en", **traits: Any):
        super().__init__(strings=strings_for(self._strings, language), **traits)

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        raise NotImplementedError(f"{type(self).__name__} must say what it shows")

    def still(self) -> Figure:
        """A picture of the figure with its present values."""
        raise NotImplementedError(f"{type(self).__name__} must draw its still picture")

    def page_state(self) -> dict[str, Any]:
        """The traits that the module reads: ours, not those that Jupyter's machinery adds."""
        inherited = anywidget.AnyWidget.class_traits()
        names = [n for n in self.traits(sync=True) if n not in inherited and n[0] != "_"]
        return {name: getattr(self, name) for name in sorted(names)}

    def to_html(self) -> str:
        """The figure as a fragment of HTML that works with no kernel and no network."""
        state, module = to_script_json(self.page_state()), self._esm.encode("utf-8")
        key = hashlib.sha256(state.encode("ascii") + module).hexdigest()[:16]
        return _PAGE.format(
            key=key,
            sentence=escape(self.sentence()),
            state=state,
            stand_in=_STAND_IN,
            module=base64.b64encode(module).decode("ascii"),
        )

    def to_png(self, dpi: int = 100) -> bytes:
        """The still picture as PNG, in 256 colours: it travels in every saved notebook."""
        buffer, small = io.BytesIO(), io.BytesIO()
        self.still().savefig(buffer, format="png", dpi=dpi)
        Image.open(buffer).convert("RGB").quantize(256).save(small, "PNG", optimize=True)
        return small.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        data["text/plain"] = self.sentence()
        data["text/html"] = self.to_html()
        data["image/png"] = base64.b64encode(self.to_png()).decode("ascii")
        return data, metadata
