"""Where the book is and which pages it has."""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def toc_pages() -> list[str]:
    """Every page of ``_toc.yml``, as ``book/vit``."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    pages = [toc["root"]]
    for part in toc["parts"]:
        for chapter in part["chapters"]:
            pages += [chapter["file"], *(s["file"] for s in chapter.get("sections", []))]
    return pages
