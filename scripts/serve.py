"""Serve the built book on this machine only."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import http.server
import signal
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "_build" / "html"
TRIES = 20


class Handler(http.server.SimpleHTTPRequestHandler):
    """Right types for scripts and modules (some systems map .js wrongly), and a quiet terminal."""

    extensions_map = {  # noqa: RUF012 - the parent's own form
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".mjs": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".ipynb": "application/x-ipynb+json",
        ".svg": "image/svg+xml",
        ".wasm": "application/wasm",
        ".woff": "font/woff",
        ".woff2": "font/woff2",
    }

    def log_message(self, *args):
        """Say nothing about a page that was served."""

    def copyfile(self, source, outputfile):
        """A reader who leaves in the middle of a page is no error."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().copyfile(source, outputfile)


class Server(http.server.ThreadingHTTPServer):
    """Refuses a port that another program listens on."""

    daemon_threads = True


def open_server(site: Path, port: int) -> Server | None:
    """A server on ``port`` or the next free one; None when all of ``TRIES`` are taken."""
    handler = functools.partial(Handler, directory=str(site))
    for candidate in range(port, min(port + TRIES, 65536)):
        try:
            return Server(("127.0.0.1", candidate), handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    return None


def stop(*_args) -> None:
    """A polite end is treated like Ctrl-C."""
    raise KeyboardInterrupt


def serve(site: Path, port: int) -> int:
    """Serve until stopped. Returns an exit status."""
    server = open_server(site, port)
    if server is None:
        last = min(port + TRIES, 65536) - 1
        print(
            f"Ports {port} to {last} are in use; choose another: make book PORT=9000",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, stop)
    with server, contextlib.suppress(KeyboardInterrupt):
        if server.server_port != port:
            print(f"Port {port} is in use, so the book is on {server.server_port}.")
        print(
            f"The book is at http://127.0.0.1:{server.server_port}/   (Ctrl-C stops it)", flush=True
        )
        server.serve_forever()
    print("\nStopped.")
    return 0


def port_number(argument: str) -> int:
    """A port a program may open."""
    if not argument.isdecimal() or not 1 <= int(argument) <= 65535:
        raise argparse.ArgumentTypeError(
            f"{argument!r} is not a port; use a number from 1 to 65535"
        )
    return int(argument)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=port_number, default=8000)
    parser.add_argument("--site", type=Path, default=SITE, help="folder to serve")
    options = parser.parse_args()
    if not (options.site / "index.html").exists():
        print("There is no built book yet; run: make book", file=sys.stderr)
        return 2
    return serve(options.site, options.port)


if __name__ == "__main__":
    sys.exit(main())
