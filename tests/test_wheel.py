"""What ``pip install mmlab`` gives, away from the checkout: the README's code and the data."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]

# Reports every file of the checkout that is opened; the libraries may lie in a .venv inside it.
WATCH = """
import sys
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith({root!r}):
        if not arguments[0].startswith({libraries!r}):
            print("OPENED IN THE CHECKOUT:", arguments[0])
sys.addaudithook(watch)
"""


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def readme_code() -> str:
    """The first Python block of the README."""
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (path,) = folder.glob("mmlab-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel) -> Path:
    """A fresh environment with the wheel, and with the libraries of this one by a path file.

    Path files inside a folder added that way are not read: the checkout itself stays unknown.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    options = ("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run_outside(environment: Path, folder: Path, code: str) -> str:
    """Run ``code`` in an empty folder, with no path to the checkout and no network for the hub."""
    folder.mkdir()
    # Libraries keep caches (fonts, say) at home; theirs shall not depend on whose home this is.
    keep = {k: v for k, v in os.environ.items() if k in {"PATH", "LANG", "TMPDIR"}}
    variables = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    watch = WATCH.format(root=f"{ROOT}{os.sep}", libraries=sysconfig.get_path("purelib"))
    script = folder.parent / f"{folder.name}.py"
    script.write_text(watch + code, "utf-8")
    home = {"HOME": str(folder.parent)}
    return run(environment / "bin" / "python", script, cwd=folder, env=keep | variables | home)


@pytest.mark.slow
def test_the_readme_runs_from_an_empty_folder(environment, tmp_path):
    probe = "\nprint('HOME OF MMLAB:', mmlab.__file__)\n"
    output = run_outside(environment, tmp_path / "empty", readme_code() + probe)
    assert "OPENED IN THE CHECKOUT" not in output
    home = Path(re.search(r"HOME OF MMLAB: (.*)", output)[1])
    assert home.is_relative_to(environment)
    assert not any((tmp_path / "empty").iterdir()), "the code left files behind"


@pytest.mark.slow
def test_the_installed_package_finds_its_emoji(environment, tmp_path):
    code = "from mmlab.datasets import emoji\ne = emoji()\nprint(len(e), *e.images([0]).shape)\n"
    output = run_outside(environment, tmp_path / "empty", code)
    assert "OPENED IN THE CHECKOUT" not in output
    count, batch, channels, height, width = map(int, output.split())
    assert count > 1000 and (batch, channels) == (1, 3) and height == width


@pytest.mark.slow
def test_the_installed_package_loads_its_trained_model(environment, tmp_path):
    code = (
        "import torch, mmlab\n"
        "path = mmlab.hub.mini_checkpoint('vit-mini')\n"
        "model = mmlab.create_model('vit-mini', pretrained=path, num_classes=9).eval()\n"
        "print(path, *model(torch.zeros(1, 3, 48, 48)).shape)\n"
    )
    output = run_outside(environment, tmp_path / "empty", code)
    assert "OPENED IN THE CHECKOUT" not in output
    path, *shape = output.split()
    assert Path(path).is_relative_to(environment) and shape == ["1", "9"]


@pytest.mark.slow
def test_every_part_imports(environment, tmp_path):
    """With nothing but the wheel and its libraries, no test tool in sight."""
    code = (
        "import importlib, pkgutil, mmlab\n"
        "names = [m.name for m in pkgutil.walk_packages(mmlab.__path__, 'mmlab.')]\n"
        "[importlib.import_module(n) for n in names if not n.endswith('__main__')]\n"
        "print(len(names))\n"
    )
    modules = [p for p in (ROOT / "mmlab").rglob("*.py") if p != ROOT / "mmlab" / "__init__.py"]
    output = run_outside(environment, tmp_path / "empty", code)
    assert "OPENED IN THE CHECKOUT" not in output
    assert int(output) == len(modules)


@pytest.mark.slow
def test_the_wheel_holds_what_the_checkout_holds(wheel):
    names = set(ZipFile(wheel).namelist())
    files = [p for p in (ROOT / "mmlab").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    missing = {str(p.relative_to(ROOT)) for p in files} - names
    assert not missing
    data = [p for part in ("emoji", "checkpoints") for p in (ROOT / "data" / part).rglob("*")]
    data = [p.relative_to(ROOT / "data") for p in data if p.is_file()]
    assert not {f"mmlab/_data/{p}" for p in data} - names
    assert not [name for name in names if name.startswith(("tests", "book", "data"))]
    licences = {Path(name).name for name in names if "dist-info" in name}
    assert {"LICENSE", "NOTICE"} <= licences
