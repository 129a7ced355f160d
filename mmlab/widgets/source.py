"""Shows the code of a function beside its equation, so that text and package never disagree."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def source_without_docstring(obj: Callable | type) -> str:
    """The dedented source of ``obj`` as it stands in its file, its own docstring left out."""
    source = textwrap.dedent(inspect.getsource(obj))
    definition = ast.parse(source).body[0]
    if ast.get_docstring(definition) is None:
        return source.rstrip()
    docstring = definition.body[0]
    lines = source.splitlines()
    del lines[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines).rstrip()


class Source:
    """Displays the source of functions or classes of ``mmlab`` with the place where they live.

    It renders as Markdown, which JupyterLab and the static site both highlight.
    """

    def __init__(self, *objects: Callable | type):
        # Under the tests a run-time type checker wraps every function.
        self.objects = [inspect.unwrap(obj) for obj in objects]

    def _where(self, obj: Callable | type) -> str:
        file = Path(inspect.getsourcefile(obj)).resolve()
        name = file.relative_to(PACKAGE.parent) if file.is_relative_to(PACKAGE) else file.name
        return f"# {name}, line {inspect.getsourcelines(obj)[1]}"

    def __str__(self) -> str:
        return "\n\n\n".join(
            f"{self._where(o)}\n{source_without_docstring(o)}" for o in self.objects
        )

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/markdown": f"```python\n{self}\n```", "text/plain": str(self)}
