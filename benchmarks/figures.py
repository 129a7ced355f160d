"""How long the figures of the built site take to answer a move of each of their sliders.

    make book && python benchmarks/figures.py [--page book/flip.html]

Told are the median and the longest milliseconds that the page's main thread computes for a move:
scripts, style, layout and the orders to paint. It is the thread's own time, which other work on the
machine does not stretch. The budget is one frame, 16 ms.
"""

import argparse
import statistics
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.browser import open_page  # noqa: E402

SITE = ROOT / "_build" / "html"
MOVES, BUDGET, SETTLED = 20, 16, 2000

# The page has drawn twice when this is done, so all that the move has caused is computed.
MOVE = """async (slider, place) => {
  slider.value = +slider.min + (slider.max - slider.min) * place;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  for (let k = 0; k < 2; k++) await new Promise((next) => requestAnimationFrame(next));
}"""


def measure(pages=None):
    """Milliseconds by page, figure and slider: ``[median, longest]``."""
    pages = pages or sorted(str(p.relative_to(SITE)) for p in SITE.glob("book/*.html"))
    return {address: times for address in pages if (times := page_times(address))}


def page_times(address):
    """``measure`` for one page."""
    found = {}
    with open_page(SITE) as (page, _):
        clock = page.context.new_cdp_session(page)
        clock.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(address, wait_until="networkidle")
        for number, figure in enumerate(page.query_selector_all(".mmlab-widget")):
            # A figure is made once it comes into view.
            figure.scroll_into_view_if_needed()
            page.wait_for_timeout(SETTLED)
            for slider in figure.query_selector_all("input[type=range]"):
                if not slider.is_visible() or not slider.is_enabled():
                    continue
                times = slider_times(clock, slider)
                name = f"{figure.get_attribute('aria-label') or number}: {label(slider)}"
                found[name] = [statistics.median(times), max(times)]
                told(address, name, *found[name])
    return found


def slider_times(clock, slider):
    """Milliseconds of the main thread for each of some moves from one end to the other."""
    slider.scroll_into_view_if_needed()
    slider.evaluate(MOVE, 0)
    times = [thread_time(clock)]
    for move in range(1, MOVES + 1):
        slider.evaluate(MOVE, move / MOVES)
        times.append(thread_time(clock))
    return [1e3 * (after - before) for before, after in pairwise(times)]


def thread_time(clock):
    """Seconds that the page's main thread has computed so far."""
    metrics = clock.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def label(slider):
    """What the reader knows a slider by."""
    return slider.evaluate("e => e.getAttribute('aria-label') || e.labels[0]?.innerText || e.id")


def told(address, name, median, longest):
    mark = "" if median <= BUDGET else "  over the budget"
    print(f"{address:28s} {name[:70]:70s} {median:6.1f} {longest:6.1f} ms{mark}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="append", help="an address in the site; without it, all")
    measure(parser.parse_args().page)
