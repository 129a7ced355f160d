"""The rules of the house, read off the source: who imports whom, what is never called."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmlab"

# What each part may import, itself aside. An objective never knows a model; data knows neither.
GROUND = {"nn", "objectives", "models", "datasets"}
UPPER = {"hub", "analysis", "widgets", "training", "tasks"}
ALLOWED = {
    "nn": set(),
    "datasets": set(),
    "objectives": {"nn"},
    "models": {"nn", "objectives"},
    **{part: GROUND | UPPER for part in UPPER},
    "exercises": GROUND | UPPER,
    "league": GROUND | UPPER,
}
TOP = {"__init__", "__main__", "cli"}

UNPICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, ast.Module]:
    return {module_name(p): ast.parse(p.read_text("utf-8")) for p in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.Module, module: str, is_package: bool, known: set[str]) -> set[str]:
    """Modules of ours that ``tree`` imports, inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".")
                anchor = anchor[: len(anchor) + is_package - node.level]
                base = ".".join([*anchor, base] if base else anchor)
            submodules = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in known else base for name in submodules}
        elif isinstance(node, ast.Call) and called(node).endswith("import_module"):
            found |= {a.value for a in node.args if isinstance(getattr(a, "value", 0), str)}
    return {name for name in found if name.split(".")[0] == "mmlab"} - {module}


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


@cache
def graph() -> dict[str, set[str]]:
    known = set(modules())
    packages = {module_name(p) for p in PACKAGE.rglob("__init__.py")}
    return {m: imports(tree, m, m in packages, known) for m, tree in modules().items()}


def part(module: str) -> str:
    """``mmlab.nn.attention`` belongs to ``nn``; ``mmlab`` itself is its ``__init__``."""
    return [*module.split("."), "__init__"][1]


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports that the table of floors does not allow."""
    return [
        f"{module} imports {target}"
        for module, targets in edges.items()
        for target in sorted(targets)
        if part(module) not in TOP
        and part(target) != part(module)
        and part(target) not in ALLOWED.get(part(module), set())
    ]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """One path of imports that comes back to where it began; empty if there is none."""
    done = set()

    def visit(module, path):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        done.add(module)
        found = (visit(target, [*path, module]) for target in sorted(edges.get(module, ())))
        return next((loop for loop in found if loop), [])

    return next((loop for module in sorted(edges) if (loop := visit(module, []))), [])


def between_parts(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    merged = {}
    for module, targets in edges.items():
        if part(module) not in TOP:
            merged.setdefault(part(module), set()).update(part(t) for t in targets)
    return {name: targets - {name} for name, targets in merged.items()}


def unsafe(tree: ast.Module) -> list[str]:
    """Calls and imports that could run code hidden in a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            statement = ast.unparse(node)
            names = {getattr(node, "module", None) or alias.name for alias in node.names}
            # The exception alone runs nothing: torch.load raises it for what it refuses.
            roots = {name.split(".")[0] for name in names}
            if UNPICKLERS & roots and statement != "from pickle import UnpicklingError":
                found.append(statement)
        elif isinstance(node, ast.Call):
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if keywords.get("allow_pickle", False) is not False:
                found.append(f"line {node.lineno}: allow_pickle must be False")
            if called(node) == "torch.load" and keywords.get("weights_only") is not True:
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            if called(node) in {"eval", "exec"}:
                found.append(f"line {node.lineno}: {called(node)}")
    return found


def undocumented(tree: ast.Module) -> list[str]:
    """The module and its public classes, functions and methods that have no docstring."""
    missing = [] if ast.get_docstring(tree) else ["the module"]
    pending = [("", node) for node in tree.body]
    while pending:
        prefix, node = pending.pop()
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
        if node.name.startswith("_") or decorators & {"overload", "setter"}:
            continue
        if not ast.get_docstring(node):
            missing.append(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            pending += [(f"{prefix}{node.name}.", child) for child in node.body]
    return missing


# --------------------------------------------------------------------------------- the house itself


def test_every_part_has_a_floor():
    parts = {part(module) for module in modules()}
    unknown = parts - ALLOWED.keys() - TOP
    assert not unknown, f"give {sorted(unknown)} a floor in ALLOWED (design: the house)"


def test_no_import_runs_upward():
    assert not upward(graph())


def test_no_circle_of_modules():
    assert not circle(graph())


def test_no_circle_of_parts():
    assert not circle(between_parts(graph()))


def scripts() -> list[Path]:
    folders = [ROOT / name for name in ("mmlab", "data", "scripts", "benchmarks", "book")]
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize("path", scripts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_or_evaluated(path):
    assert not unsafe(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("module", modules())
def test_everything_public_has_a_docstring(module):
    assert not undocumented(modules()[module])


# ------------------------------------------------------------------------- the checks can fail, too


KNOWN = {"mmlab", "mmlab.nn", "mmlab.nn.masks", "mmlab.models.vit", "mmlab.hub", "mmlab.hub.files"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import mmlab.hub", {"mmlab.hub"}),
        ("from mmlab import hub", {"mmlab.hub"}),
        ("from mmlab import create_model", {"mmlab"}),
        ("from mmlab.hub.files import load", {"mmlab.hub.files"}),
        ("def f():\n    from mmlab.hub import files", {"mmlab.hub.files"}),
        ("from .masks import causal", {"mmlab.nn.masks"}),
        ("from . import masks", {"mmlab.nn.masks"}),
        ("from ..hub import files", {"mmlab.hub.files"}),
        ("import_module('mmlab.hub')", {"mmlab.hub"}),
        ("importlib.import_module('mmlab.hub')", {"mmlab.hub"}),
        ("import torch, mmlabelled", set()),
    ],
)
def test_imports_are_found(source, expected):
    assert imports(ast.parse(source), "mmlab.nn.attention", False, KNOWN) == expected


def test_relative_imports_of_a_package_start_inside_it():
    assert imports(ast.parse("from .masks import x"), "mmlab.nn", True, KNOWN) == {"mmlab.nn.masks"}


@pytest.mark.parametrize(
    ("module", "target", "fine"),
    [
        ("mmlab.models.vit", "mmlab.nn.masks", True),
        ("mmlab.nn.masks", "mmlab.nn.attention", True),
        ("mmlab.hub.files", "mmlab.models.vit", True),
        ("mmlab", "mmlab.hub", True),
        ("mmlab.nn.masks", "mmlab.models.vit", False),
        ("mmlab.objectives.contrastive", "mmlab.models.clip", False),
        ("mmlab.models.vit", "mmlab.hub.files", False),
        ("mmlab.models.vit", "mmlab.datasets", False),
        ("mmlab.datasets.scenes", "mmlab.nn.masks", False),
        ("mmlab.hub.files", "mmlab", False),
    ],
)
def test_floors_are_enforced(module, target, fine):
    assert (upward({module: {target}}) == []) == fine


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    ("source", "safe"),
    [
        ("np.load(f)", True),
        ("np.load(f, allow_pickle=False)", True),
        ("np.load(f, allow_pickle=True)", False),
        ("np.load(f, allow_pickle=flag)", False),
        ("torch.load(f, weights_only=True)", True),
        ("torch.load(f, map_location='cpu')", False),
        ("torch.load(f, weights_only=False)", False),
        ("import pickle", False),
        ("from pickle import loads", False),
        ("import os, dill.source", False),
        ("from pickle import UnpicklingError", True),
        ("model.eval()", True),
        ("eval('1')", False),
    ],
)
def test_unsafe_calls_are_found(source, safe):
    assert (unsafe(ast.parse(source)) == []) == safe


def test_missing_docstrings_are_found():
    source = "class A:\n def f(self): ...\n def _g(self): ...\ndef h():\n 'Yes.'\n def inner(): ..."
    assert sorted(undocumented(ast.parse(source))) == ["A", "A.f", "the module"]
    assert undocumented(ast.parse("'Yes.'\ndef h():\n 'Yes.'")) == []
