"""A headless Chromium that can reach nothing but the pages under test.

``open_page`` serves a folder on 127.0.0.1, blocks every other address and writes down what the
page asked for and what it complained about::

    with open_page("book/_build/html") as (page, log):
        page.goto("index.html")
    assert log.external == [] and log.errors == []
"""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@dataclass
class Log:
    """What a page did: requests that left the machine, and errors (console, script, HTTP)."""

    external: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 - the parent's own form
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *args):
        pass


@contextmanager
def serve(root: str | Path) -> Iterator[str]:
    """Serve ``root`` on a free port of 127.0.0.1; yields the address, ending in a slash."""
    handler = functools.partial(_Handler, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def _watch(page, log: Log, base: str) -> None:
    local = (base, base.replace("http", "ws", 1), "data:", "blob:", "file:", "about:")

    def route(route):
        if route.request.url.startswith(local):
            route.continue_()
        else:
            log.external.append(route.request.url)
            route.abort()

    def console(message):
        if message.type in ("error", "warning"):
            log.errors.append(f"{message.type}: {message.text}")

    def response(response):
        if response.status >= 400:
            log.errors.append(f"HTTP {response.status} {response.url}")

    page.route("**/*", route)
    page.on("console", console)
    page.on("response", response)
    page.on("pageerror", lambda error: log.errors.append(f"pageerror: {error}"))


@contextmanager
def open_browser(root: str | Path) -> Iterator[Callable[..., tuple]]:
    """One browser for several pages over ``root``: yields ``new_page(**options) -> (page, log)``.

    The options are those of ``open_page``. Only one browser can be open at a time.
    """
    from playwright.sync_api import sync_playwright

    with serve(root) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)

        def new_page(*, viewport=(1280, 900), **context):
            size = {"width": viewport[0], "height": viewport[1]}
            page = browser.new_context(base_url=base, viewport=size, **context).new_page()
            log = Log()
            _watch(page, log, base)
            return page, log

        try:
            yield new_page
        finally:
            browser.close()


@contextmanager
def open_page(root: str | Path, **options) -> Iterator[tuple]:
    """A fresh page over ``root``: yields ``(page, log)``; ``page.goto("a/b.html")`` is relative.

    ``viewport=(width, height)``; the rest goes to Playwright's ``new_context``
    (``color_scheme="dark"``, ``has_touch=True``, ``reduced_motion="reduce"`` …).
    """
    with open_browser(root) as new_page:
        yield new_page(**options)
