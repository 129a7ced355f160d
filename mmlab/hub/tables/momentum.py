"""Rows of what ALBEF and BLIP share: the heads that align and match, momentum twins and queues.

Their official files hold the network, its momentum twin (the same names, ``_m`` after the first
word) and the queues. What only training needs has our names of the pretraining modules
(``momentum.…``, ``queue.…``), everything else those of the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mmlab.hub.mapping import Row, linear

TEMPERATURE = Row("heads.contrast.temperature", "temp", "", "contrast")
CONTRAST = (
    *linear("heads.contrast.image_projection", "vision_proj", "embed_dim dim", "contrast"),
    *linear("heads.contrast.text_projection", "text_proj", "embed_dim text_dim", "contrast"),
)
MATCH = linear("heads.match", "itm_head", "outcomes text_dim", "match")
CLASSES = (
    *linear("heads.classes.0", "cls_head.0", "hidden text_dim", "classes"),
    *linear("heads.classes.2", "cls_head.2", "classes hidden", "classes"),
)


def queue_rows(pointer: str = "queue_ptr") -> tuple[Row, ...]:
    """The queues, where the next features go, and, in retrieval, whose they are."""
    return (
        Row("queue.images", "image_queue", "embed_dim size", "queue"),
        Row("queue.texts", "text_queue", "embed_dim size", "queue"),
        Row("queue.pointer", pointer, "1", "queue"),
        Row("queue.ids", "idx_queue", "1 size -> size", "ids of the queue"),
    )


def twin_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The same rows of the momentum twin: all of them, or none."""

    def theirs(key: str) -> str:
        first, _, rest = key.partition(".")
        return f"{first}_m.{rest}"

    return tuple(
        replace(
            row,
            ours=_momentum(row.our_keys),
            theirs=theirs(row.theirs),
            group=f"momentum {row.group}".strip(),
            scope=f"momentum {row.scope}".strip(),
        )
        for row in rows
    )


def _momentum(keys: tuple[str, ...]) -> str | tuple[str, ...]:
    named = tuple(f"momentum.network.{key}" for key in keys)
    return named if len(named) > 1 else named[0]
