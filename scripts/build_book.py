"""Build the site in ``_build/html``; when nothing has changed, say so and stop.

Chapters keep their results between builds. Jupyter's own cache sees a change in a chapter but
not in the library it imports, so it is cleared when ``mmlab/``, ``data/`` or the versions change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"
SITE = BUILD / "html"
STAMP = BUILD / "book.json"
# What the results in the cache were computed with; it outlives a build that fails or is stopped.
CODE_STAMP = BUILD / "code.sha256"
LOG = BUILD / "book.log"

# What the results of a chapter depend on, and what else the pages depend on.
CODE = ("mmlab", "data", "book/experiments", "constraints.txt", "pyproject.toml")
PAGES = ("book", "_config.yml", "_toc.yml", "scripts/build_book.py")
IGNORED = {"__pycache__", ".ipynb_checkpoints", ".pytest_cache"}

# Lines shown of the report of a cell that failed, or of a build that crashed.
TAIL = 25

COMMAND = ("-W", "-n", "--keep-going", "--all")
# Lines of the build that a reader wants to see; the rest is in the log.
PROGRESS = re.compile(r"^(reading|writing) \S*\.\.\. \[|Execut(ing|ed) notebook")
PROBLEM = re.compile(r"\b(WARNING|ERROR|CRITICAL): ")


def files(names: Iterable[str]) -> list[Path]:
    """Every file under the named files and folders of the repository, in a fixed order."""
    found = []
    for name in names:
        path = ROOT / name
        inside = path.rglob("*") if path.is_dir() else [path]
        found += [p for p in inside if p.is_file() and not IGNORED & set(p.parts)]
    return sorted(found)


def digest(names: Iterable[str]) -> str:
    """One hash over names and contents."""
    total = hashlib.sha256()
    for path in files(names):
        total.update(str(path.relative_to(ROOT)).encode() + b"\0")
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def read_stamp() -> dict:
    """What the last good build was made from; empty when there was none."""
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def write_stamp(stamp: dict) -> None:
    """Written aside and renamed, so that it is there whole or not at all."""
    aside = STAMP.with_suffix(".tmp")
    aside.write_text(json.dumps(stamp, indent=1) + "\n")
    aside.replace(STAMP)


def forget(code: str, fresh: bool) -> None:
    """Remove the pages, and the chapters' results when what they came from has changed."""
    if fresh or not CODE_STAMP.exists() or CODE_STAMP.read_text() != code:
        shutil.rmtree(BUILD / ".jupyter_cache", ignore_errors=True)
    shutil.rmtree(SITE, ignore_errors=True)
    STAMP.unlink(missing_ok=True)
    BUILD.mkdir(exist_ok=True)
    CODE_STAMP.write_text(code)


def environment() -> dict[str, str]:
    """The kernel of this environment, and no attempt to reach the network."""
    quiet = {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONWARNINGS": "ignore::UserWarning:zmq"}
    return {
        **os.environ,
        **quiet,
        "JUPYTER_PREFER_ENV_PATH": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def plain(text: str) -> str:
    """Without the codes that colour a terminal."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)


def run_jupyter_book() -> int:
    """Run the build: progress on the screen, everything in the log. Returns its exit status."""
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", *COMMAND, str(ROOT)]
    with (
        LOG.open("w") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        for line in process.stdout:
            log.write(line)
            said = plain(line).strip()
            if PROGRESS.search(said) or PROBLEM.search(said):
                print("   ", said.replace(f"{ROOT}{os.sep}", ""), flush=True)
    return process.returncode


def explain() -> None:
    """After a failure: the end of every failed cell's report, or of the log of a crash."""
    reports = sorted((SITE / "reports").rglob("*.log"))
    if not reports and not PROBLEM.search(LOG.read_text()):
        reports = [LOG]
    for report in reports:
        text = plain(report.read_text()).split("\n\nThe above exception was")[0]
        print(f"\n---- {report.name}", *text.splitlines()[-TAIL:], sep="\n", file=sys.stderr)
    print(f"The book was not built; the log is {LOG.relative_to(ROOT)}", file=sys.stderr)


def build(fresh: bool = False) -> int:
    """Build the site when something has changed. Returns an exit status."""
    start = time.perf_counter()
    old, stamp = read_stamp(), {"code": digest(CODE), "pages": digest(PAGES)}
    address = (SITE / "book" / "index.html").relative_to(ROOT)
    if not fresh and stamp == old and (ROOT / address).exists():
        print(f"Nothing has changed since the last build: {address}")
        return 0
    print("==> Building the book (a chapter that changed is run; this takes minutes)", flush=True)
    forget(stamp["code"], fresh)
    status = run_jupyter_book()
    if status:
        explain()
        return 1
    write_stamp(stamp)
    print(f"==> Built {address} in {time.perf_counter() - start:.0f} s")
    return 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="run every chapter again")
    try:
        return build(parser.parse_args().fresh)
    except KeyboardInterrupt:
        print("\nStopped; the next run starts where the finished chapters end.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
