"""What a task asks: views of pictures with texts, and the right answer among several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int64
from torch import Tensor

FORMS = ("classes", "choice", "boxes")


@dataclass(frozen=True)
class Items:
    """Questions of one task about one data set of scenes.

    An item has as many views as every other, each a picture with a text: view ``v`` of item ``i``
    is picture ``images[i, v]`` with ``texts[i][v]``. What is asked is one of ``FORMS``:

    - ``"classes"``: all views together are of one of ``classes``;
    - ``"choice"``: one of the views is the right one;
    - ``"boxes"``: one of the ``boxes`` of the item's only picture is meant. Boxes are fractions of
      the image, x1 y1 x2 y2; of ``box_valid`` ones there are as many as the picture has objects.

    ``labels`` are the right class, view or box. ``scores``, where there are some, are how good each
    class is, from 0 to 1 (several people gave several answers). ``kinds`` are names of sorts of
    items, to tell apart what a model can and what it cannot.
    """

    form: str
    images: Int64[Tensor, "items views"]
    texts: Sequence[Sequence[str]]
    labels: Int64[Tensor, " items"]
    kinds: Sequence[str]
    classes: Sequence[str] = ()
    scores: Float[Tensor, "items classes"] | None = None
    boxes: Float[Tensor, "items boxes 4"] | None = None
    box_valid: Bool[Tensor, "items boxes"] | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        for name in ("texts", "labels", "kinds"):
            given = len(getattr(self, name))
            if given != len(self.images):
                raise ValueError(f"{name} must be {len(self.images)}, one an item, got {given}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_views(self) -> int:
        """Pictures with texts an item."""
        return self.images.shape[1]

    @property
    def num_options(self) -> int:
        """Among how many an answer is chosen, at most."""
        if self.form == "classes":
            return len(self.classes)
        return self.num_views if self.form == "choice" else self.boxes.shape[1]

    def select(self, rows: Int64[Tensor, " rows"]) -> Items:
        """Some of the items."""
        chosen = rows.tolist()
        tensors = {
            name: None if value is None else value[rows]
            for name, value in vars(self).items()
            if value is None or isinstance(value, Tensor)
        }
        lists = {name: [getattr(self, name)[i] for i in chosen] for name in ("texts", "kinds")}
        return Items(self.form, classes=self.classes, **tensors, **lists)
