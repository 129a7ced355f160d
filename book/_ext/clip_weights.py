"""Puts the weights that CLIPSearch loads on demand beside the pages of the site."""

from __future__ import annotations

from pathlib import Path

from mmlab.widgets.clip_search import FOLDER, shipped_weight_files, write_files
from sphinx.application import Sphinx


def write_weights(app: Sphinx, exception: Exception | None) -> None:
    """Write the scripts; a build that failed, or one of another kind, has no use for them."""
    if exception is None and app.builder.format == "html":
        write_files(shipped_weight_files(), Path(app.outdir) / FOLDER)


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.connect("build-finished", write_weights)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
