"""mmlab: vision-and-language models, complete and readable.

The package stands on floors, and no import runs upward: ``nn`` → ``objectives`` → ``models`` →
``hub``, ``training``, ``tasks``, ``analysis``, ``widgets`` → ``exercises``, ``cli``. ``datasets``
stands alone.

>>> import mmlab
>>> model = mmlab.create_model("vit-b-16")
>>> with mmlab.record_attention(model) as maps:
...     logits = model(images)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmlab import analysis, datasets, exercises, hub, models, nn, tasks, training, widgets
    from mmlab.analysis.attention import record_attention
    from mmlab.exercises.checker import check
    from mmlab.hub.create import create_model, list_models

__version__ = "0.1.0"
__all__ = [
    "analysis",
    "check",
    "create_model",
    "datasets",
    "exercises",
    "hub",
    "list_models",
    "models",
    "nn",
    "record_attention",
    "tasks",
    "training",
    "widgets",
]

# Resolved on first use: `import mmlab` stays quick, and a data set can be read without the widgets.
_HOME = {
    "check": "mmlab.exercises.checker",
    "create_model": "mmlab.hub.create",
    "list_models": "mmlab.hub.create",
    "record_attention": "mmlab.analysis.attention",
}


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in __all__:
        return import_module(f"mmlab.{name}")
    raise AttributeError(f"module 'mmlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
