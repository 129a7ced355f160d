"""Resolve ``mmlab[test]`` afresh and write the exact versions to constraints.txt."""

import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADER = """\
# Exact versions that `make` installs; pyproject.toml holds the ranges. Written by `make lock`.
"""
# The newest PyTorch is taken by hand, since on Linux a plain upgrade is a download of gigabytes.
HELD = ["torch==2.13.0"]


def main() -> None:
    """Install into a throw-away environment and freeze it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(pathlib.Path(folder, "bin", "python"))
        held = pathlib.Path(folder, "held.txt")
        held.write_text("\n".join(HELD) + "\n")
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-c", str(held), f"{ROOT}[test]"], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    lines = [line.split("+")[0] for line in frozen.splitlines() if "==" in line]
    lines = [line for line in lines if not line.startswith(("mmlab==", "pip==", "setuptools=="))]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(sorted(lines, key=str.lower)) + "\n")


if __name__ == "__main__":
    main()
