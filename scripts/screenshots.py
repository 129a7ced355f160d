"""Take the README's pictures, one in light and one in dark, from the built site."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import open_page  # noqa: E402

TARGET = ROOT / "docs"


def main() -> None:
    """Open the ViT chapter at its first figure and save what a reader sees."""
    TARGET.mkdir(exist_ok=True)
    for scheme in ("light", "dark"):
        options = {"viewport": (1280, 900), "color_scheme": scheme}
        with open_page(ROOT / "_build" / "html", **options) as (page, _):
            page.goto("book/vit.html")
            page.wait_for_selector(".mmlab-widget canvas")
            page.evaluate("scrollTo(0, document.querySelector('.mmlab-widget').offsetTop - 60)")
            page.get_by_role("button", name="Shuffle", exact=True).click()
            page.wait_for_timeout(1500)
            page.screenshot(path=TARGET / f"site-{scheme}.png")
            print(f"docs/site-{scheme}.png")


if __name__ == "__main__":
    main()
