"""Every chapter and every solution runs from top to bottom, with the real ipywidgets.

By hand: ``pytest --nbval-lax --nbval-current-env book/*.ipynb``.
"""

import os
import subprocess
import sys

import pytest

from tests.book.pages import ROOT

NOTEBOOKS = [
    *sorted((ROOT / "book").glob("*.ipynb")),
    *sorted((ROOT / "book/solutions").glob("*.ipynb")),
]
OPTIONS = [
    "--nbval-lax",
    "--nbval-current-env",
    "--nbval-cell-timeout=600",
    "-q",
    "-p",
    "no:cacheprovider",
]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_notebook_runs(path):
    command = [sys.executable, "-m", "pytest", *OPTIONS, str(path)]
    quiet = {"JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1", "PYTEST_ADDOPTS": ""}
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **quiet}, capture_output=True, text=True
    )
    tail = "\n".join(run.stdout.splitlines()[-60:])
    assert run.returncode == 0, f"{path.name} does not run:\n{tail}\n{run.stderr[-2000:]}"
