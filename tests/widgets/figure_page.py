"""A page that holds figures, as the book's own pages do."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = """<!doctype html>
<html lang="en" data-theme="light">
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Figures</title><link rel="icon" href="data:,">
<style>
  body {{ margin: 16px auto; max-width: 760px; padding: 0 16px; font-family: sans-serif }}
</style>
<main><h1>Figures</h1>{body}</main>
</html>"""


HOSTILE = '<img src="x" onerror="window.hacked=1"></script><script>window.hacked=1</script><!--'


def write_page(path: Path, *widgets) -> Path:
    body = "\n".join(widget.to_html() for widget in widgets)
    path.write_text(PAGE.format(body=body), encoding="utf-8")
    return path


# Every text a reader or a screen reader meets in the figures.
ALL_TEXT = """() => {
  const texts = [];
  for (const root of document.querySelectorAll(".mmlab-widget")) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) texts.push(walker.currentNode.textContent);
    for (const node of [root, ...root.querySelectorAll("*")])
      for (const name of ["aria-label", "aria-valuetext", "title", "alt", "placeholder"])
        if (node.hasAttribute(name)) texts.push(node.getAttribute(name));
  }
  return texts;
}"""

# The WCAG contrast of the figure's text colours on its surface, in the page's present theme.
CONTRASTS = """() => {
  const root = document.querySelector(".mmlab-widget");
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (name) => {
    probe.fillStyle = getComputedStyle(root).getPropertyValue("--" + name).trim();
    probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...probe.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  return Object.fromEntries(["ink", "muted", "accent", "warm"].map(
    (name) => [name, ratio(luminance(name), luminance("surface"))]));
}"""


# Milliseconds from each of 15 moves of the first slider to the end of the drawing it causes.
ANSWER_TIMES = """async () => {
  const slider = document.querySelector("input[type=range]"), times = [];
  const request = window.requestAnimationFrame;
  const timed = (draw, done) => request(() => {
    const start = performance.now();
    draw();
    done(performance.now() - start);
  });
  for (let k = 0; k < 15; k++) {
    const drawn = new Promise((done) => {
      window.requestAnimationFrame = (draw) => timed(draw, done);
    });
    slider.value = -1.9 + k / 10;
    const start = performance.now();
    slider.dispatchEvent(new Event("input"));
    times.push(performance.now() - start + (await drawn));
  }
  return times;
}"""


def marked(strings: dict[str, str]) -> dict[str, str]:
    """Every Latin word made one foreign letter: a word left on a figure came from elsewhere."""

    def foreign(match: re.Match) -> str:
        return match[1] or "ж"

    return {
        key: value if key == "locale" else re.sub(r"(\{\w+\})|[A-Za-z]+", foreign, value)
        for key, value in strings.items()
    }


def latin_words(texts: list[str]) -> list[str]:
    return [text for text in texts if re.search("[A-Za-z]{2,}", text)]


def settle(page) -> None:
    """Wait until the figure has drawn what has just changed."""
    page.evaluate("new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")


def boards(page) -> list:
    """The canvases that can be pointed at."""
    return page.locator("canvas[role=application]").all()
