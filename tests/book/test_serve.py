"""The little server: right types, a port in use, and a clean end."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

from tests.book.pages import ROOT

SCRIPT = ROOT / "scripts" / "serve.py"


@pytest.fixture
def folder(tmp_path):
    for name in ("index.html", "widget.mjs", "script.js", "chapter.ipynb"):
        (tmp_path / name).write_text("<h1>x</h1>")
    return tmp_path


@contextmanager
def busy_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@contextmanager
def serving(folder, port):
    """The running server and what it printed up to its address."""
    command = [sys.executable, "-u", SCRIPT, "--port", str(port), "--site", folder]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = []
    while not lines or "http://" not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    try:
        yield process, "".join(lines)
    finally:
        process.kill()
        process.communicate()


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_a_busy_port_is_named_and_the_next_free_one_taken(folder):
    with busy_port() as port, serving(folder, port) as (_process, said):
        assert f"Port {port} is in use" in said
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
        assert int(address[1]) > port
        assert urllib.request.urlopen(address[0]).read() == b"<h1>x</h1>"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("index.html", "text/html; charset=utf-8"),
        ("script.js", "text/javascript; charset=utf-8"),
        ("widget.mjs", "text/javascript; charset=utf-8"),
        ("chapter.ipynb", "application/x-ipynb+json"),
    ],
)
def test_types(folder, name, kind):
    with busy_port() as port, serving(folder, port) as (_process, said):
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)[0]
        assert urllib.request.urlopen(address + name).headers["Content-Type"] == kind


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_without_a_traceback(folder, how):
    with busy_port() as port, serving(folder, port) as (process, _said):
        process.send_signal(how)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, "")
    assert "Stopped." in out


@pytest.mark.parametrize("port", ["0", "70000", "eighty", "-1"])
def test_a_port_that_is_none_is_refused_in_one_sentence(folder, port):
    result = run(f"--port={port}", "--site", str(folder))
    assert result.returncode == 2
    assert f"{port!r} is not a port; use a number from 1 to 65535" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_book_that_is_not_built_is_said_so(tmp_path):
    result = run("--site", str(tmp_path))
    assert (result.returncode, result.stderr) == (2, "There is no built book yet; run: make book\n")
