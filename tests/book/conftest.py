import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.book.pages import ROOT
from tests.browser import CHROMIUM

sys.path.insert(0, str(ROOT / "book" / "_ext"))


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the build, brought up to date: the pages, and what the chapters' cells gave."""
    command = [sys.executable, ROOT / "scripts" / "build_book.py"]
    build = subprocess.run(command, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout + build.stderr
    return ROOT / "_build"


@pytest.fixture(scope="session")
def chromium() -> None:
    """A browser; without one a skip, and on CI a failure."""
    if CHROMIUM is None and os.environ.get("CI"):
        pytest.fail("CI has no Chromium, so nothing would test the site")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")


@pytest.fixture(scope="session")
def site(chromium, built) -> Path:
    """The pages of the built site, for a browser."""
    return built / "html"
