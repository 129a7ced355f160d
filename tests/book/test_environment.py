"""environment.yml and constraints-oldest.txt say the same as pyproject.toml."""

import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.book.pages import ROOT


def normal(lines) -> dict[str, str]:
    """``{name: versions}`` with the spellings of a name made one."""
    requirements = [Requirement(line) for line in lines]
    return {r.name.lower().replace("_", "-"): str(r.specifier) for r in requirements}


def wanted() -> dict[str, str]:
    """Core dependencies and the extra ``book``, with the extras that one names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines, extras = list(project["dependencies"]), ["book"]
    while extras:
        for line in project["optional-dependencies"][extras.pop()]:
            requirement = Requirement(line)
            if requirement.name == project["name"]:
                extras += requirement.extras
            else:
                lines.append(line)
    return normal(lines)


def test_environment_holds_the_same_set():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(d["pip"] for d in dependencies if isinstance(d, dict))
    conda = [d for d in dependencies if isinstance(d, str) and d != "pip"]
    given = normal(conda + pip)
    assert given.pop("python") == ">=3.11"
    assert given == wanted()


def test_environment_asks_for_the_python_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"


def test_oldest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["photos"]
    bounds = {
        name: Version(specifier.removeprefix(">=")) for name, specifier in normal(lines).items()
    }
    pinned = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    oldest = normal(line for line in pinned if not line.startswith("#"))
    assert {n: Version(v.removeprefix("==")) for n, v in oldest.items()} == bounds
