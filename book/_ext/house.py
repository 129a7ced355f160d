"""Mends what the theme and its extensions get wrong on every page."""

from __future__ import annotations

from sphinx.application import Sphinx


def remove_thebe(app: Sphinx) -> None:
    """Disconnect sphinx-thebe: it declares the same constant twice, an error on every page."""
    for listeners in list(app.events.listeners.values()):
        for listener in list(listeners):
            if listener.handler.__module__.startswith("sphinx_thebe"):
                app.disconnect(listener.id)


def drop_thebe_files(app, pagename, templatename, context, doctree) -> None:
    """The style sheet of sphinx-thebe goes with it."""
    # In place, so that files which extensions add later come to the page.
    context["css_files"][:] = [f for f in context["css_files"] if "thebe" not in str(f.filename)]


def mend_citations(app, pagename, templatename, context, doctree) -> None:
    """Make the entries of the bibliography items of their list (axe: aria-required-children)."""
    old, new = 'role="doc-biblioentry"', 'role="listitem"'
    context["body"] = context.get("body", "").replace(old, new)


def drop_widget_state(app, pagename, templatename, context, doctree) -> None:
    """Our figures carry their own data; the state that ipywidgets would load repeats it."""
    state = "application/vnd.jupyter.widget-state+json"
    context["script_files"] = [
        f for f in context["script_files"] if getattr(f, "attributes", {}).get("type") != state
    ]


def load_mathjax_in_parts(app: Sphinx) -> None:
    """Start MathJax with its reader of TeX, its fonts and its hidden MathML for screen readers.

    Its ready-made bundle also holds the menu of the right mouse button: a third of its weight. The
    menu made formulas reachable by keyboard; ``formulas.js`` does that where they scroll.
    """
    app.config.mathjax_path = "mathjax/startup.js"
    parts = ["input/tex", "output/chtml", "a11y/assistive-mml"]
    app.config.mathjax3_config = {"loader": {"load": parts}}
    app.add_js_file("formulas.js", loading_method="defer")


def setup(app: Sphinx) -> dict:
    """Called by Sphinx once every extension of Jupyter Book is loaded."""
    remove_thebe(app)
    load_mathjax_in_parts(app)
    app.connect("html-page-context", drop_thebe_files)
    # After myst-nb, which adds the state to the page at the default priority of 500.
    app.connect("html-page-context", drop_widget_state, priority=900)
    app.connect("html-page-context", mend_citations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
