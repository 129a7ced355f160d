"""The mini checkpoints that travel with mmlab."""

from __future__ import annotations

import difflib
from pathlib import Path

from mmlab.datasets.resources import data_folder
from mmlab.hub.mapping import CheckpointError


def mini_checkpoint(name: str) -> Path:
    """The file of a trained mini model, such as ``"vit-mini"``, for ``create_model(pretrained=)``.

    >>> path = mini_checkpoint("vit-mini")
    >>> model = mmlab.create_model("vit-mini", pretrained=path, num_classes=9)

    The weights are in half precision (``create_model`` makes float32 of them). The metadata of the
    file hold the recipe, the seed, what was measured, the names of the classes and the model card:
    ``mmlab.hub.read_checkpoint(path).metadata``.

    Raises:
        CheckpointError: there is none of this name.
    """
    shipped = list_mini_checkpoints()
    if name not in shipped:
        # A high bar: 'vit-mini' is no misspelling of 'clip-mini'.
        near = difflib.get_close_matches(name.lower(), shipped, n=1, cutoff=0.8)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(shipped) or 'none'}"
        raise CheckpointError(f"mmlab comes with no trained {name!r}; {hint}")
    return shipped[name]


def list_mini_checkpoints() -> dict[str, Path]:
    """Name → file of every mini checkpoint that came with mmlab."""
    folder = Path(str(data_folder("checkpoints")))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
