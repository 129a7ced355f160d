"""Transport alignment: how cheaply a caption's words are carried to the places of a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Bool, Float, Float64
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmlab.datasets.example import Caption, Example
from mmlab.objectives.transport import cosine_cost, ipot, sinkhorn, transport_distance
from mmlab.widgets.base import Widget, listed, module_source, within
from mmlab.widgets.pictures import float32_bytes, middle_square, named_images, webp_bytes

METHODS = ("ipot", "sinkhorn")
VIEWS = ("plan", "compare")
MAX_WORDS = 24
MAX_CELLS = 2048
REGULARIZATION_RANGE = (0.01, 1.0)
ITERATION_RANGE = (1, 200)
_ROUNDING = 1e-4


@dataclass(frozen=True)
class WordsAndPlaces:
    """A caption in words, and what a model says of each word and each place of the picture.

    Places are patches in raster order, or regions. Give ``word_features`` (``words dim``) and
    ``place_features`` (``places dim``), whose cosines make the cost as in
    ``mmlab.objectives.transport.cosine_cost``, or the ``cost`` itself, from 0 to 2, which the
    comparison with FILIP takes for 1 - cosine. ``attention`` is what each word gives each place, at
    least 0; only its proportions count. ``truth`` is True where a word speaks of a place
    (``true_places`` makes it for scenes). ``attention`` and ``truth`` may be left out. ValueError
    for what does not fit.
    """

    words: Sequence[str]
    word_features: Float[Tensor, "words dim"] | None = None
    place_features: Float[Tensor, "places dim"] | None = None
    cost: Float[Tensor, "words places"] | None = None
    attention: Float[Tensor, "_ _"] | None = None
    truth: Bool[Tensor, "_ _"] | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.words) <= MAX_WORDS:
            raise ValueError(f"words has {len(self.words):,} entries; allowed are 1 to {MAX_WORDS}")
        both = self.word_features is not None and self.place_features is not None
        if both == (self.cost is not None):
            raise ValueError("give word_features and place_features, or cost, and not both")
        cost = self.cost_matrix()
        if cost.shape[0] != len(self.words):
            raise ValueError(
                f"the cost has shape {tuple(cost.shape)} for {len(self.words)} words; allowed is a "
                "row for each word"
            )
        # Beyond 2 no cosine gets, and the page's plain exponentials would underflow.
        if not ((cost >= -_ROUNDING) & (cost <= 2 + _ROUNDING)).all():
            raise ValueError("the cost holds values that are no numbers from 0 to 2")
        for name in ("attention", "truth"):
            given = getattr(self, name)
            if given is not None and given.shape != cost.shape:
                raise ValueError(
                    f"{name} has shape {tuple(given.shape)}; allowed is {tuple(cost.shape)}"
                )
        if self.attention is not None and not (
            self.attention.isfinite().all() and (self.attention >= 0).all()
        ):
            raise ValueError("attention holds values that are not finite or below 0")

    def cost_matrix(self) -> Float[Tensor, "words places"]:
        """The cost of carrying each word to each place."""
        if self.cost is not None:
            return self.cost.detach().cpu().float()
        features = self.word_features, self.place_features
        return cosine_cost(*(f.detach().cpu()[None] for f in features))[0]


def true_places(
    example: Example, caption: Caption, spans: Sequence[tuple[int, int]], grid: int | None = None
) -> Bool[Tensor, "words places"]:
    """Which places each word of a caption speaks of, where a data set knows.

    ``spans`` are the words' places in ``caption.text`` (start, end). The places are the example's
    regions; with ``grid`` the patches of ``grid`` × ``grid`` whose middle lies in such a region, or
    of a region that holds no middle the patch that its own middle lies in.
    """
    regions = torch.zeros(len(spans), len(example.regions), dtype=torch.bool)
    for word, (start, end) in enumerate(spans):
        for link in caption.alignment:
            regions[word, link.region] |= start < link.end and link.start < end
    if grid is None:
        return regions
    height, width = example.image.shape[1:]
    covers = torch.zeros(len(example.regions), grid * grid, dtype=torch.bool)
    for region, (x0, y0, x1, y1) in enumerate(r.box for r in example.regions):
        across, down = _covered(x0, x1, width, grid), _covered(y0, y1, height, grid)
        covers[region] = (down[:, None] & across).flatten()
    return (regions.float() @ covers.float()) > 0


def _covered(start: float, end: float, size: int, grid: int) -> Bool[Tensor, " grid"]:
    middles = (torch.arange(grid) + 0.5) * size / grid
    covered = (start <= middles) & (middles < end)
    if not covered.any():
        covered[min(grid - 1, int((start + end) / 2 * grid / size))] = True
    return covered


def _patch_boxes(places: int) -> list[list[float]]:
    """Boxes of the patches, in shares of the picture's side."""
    grid = math.isqrt(places)
    if grid * grid != places:
        raise ValueError(
            f"the cost has {places} places without boxes; allowed is a square number of patches"
        )
    corners = [(i % grid / grid, i // grid / grid) for i in range(places)]
    return [[x, y, x + 1 / grid, y + 1 / grid] for x, y in corners]


def _region_boxes(
    boxes: Sequence[Sequence[float | int]], places: int, size: int
) -> list[list[float]]:
    if len(boxes) != places:
        raise ValueError(f"boxes has {len(boxes)} entries for {places} places; allowed is one each")
    shares = [[float(edge) / size for edge in box] for box in boxes]
    for i, (x0, y0, x1, y1) in enumerate(shares):
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(
                f"boxes[{i}]={tuple(boxes[i])}; allowed are x0 < x1 and y0 < y1 within {size} "
                "pixels"
            )
    return shares


def _state_of(caption: WordsAndPlaces, matched: bool) -> dict[str, Any]:
    truth, attention = caption.truth, caption.attention
    return {
        "words": [str(word) for word in caption.words],
        "matched": matched,
        "cost": float32_bytes(caption.cost_matrix()),
        "truth": b"" if truth is None else truth.cpu().numpy().astype(np.uint8).tobytes(),
        "attention": b"" if attention is None else float32_bytes(attention),
    }


class TransportAlignment(Widget):
    """Words carried to the places of a picture by optimal transport, iteration by iteration.

    ``image`` is the square picture the model saw (uint8, ``3 side side``); ``matched`` is its own
    caption, ``mismatched`` another's beside the same picture. The places are its patches, or with
    ``boxes`` (pixels) regions. ``method`` is ``"ipot"`` (UNITER, ViLT) or ``"sinkhorn"``;
    ``regularization`` is IPOT's beta or Sinkhorn's weight of the entropy. The loss is that of
    ``word_patch_alignment_loss``: the distance of a matched pair counts as it is,
    that of a mismatched one with a minus. ``caption`` is 0 for matched, 1 for mismatched; ``view``
    is one of ``VIEWS``; the second sets the plan beside the attention and beside the single best
    place of each word, which FILIP trains with. ValueError on wrong pictures, captions or values.
    """

    _esm = module_source("transport_alignment")
    _strings = "transport_alignment"

    picture = traitlets.Bytes(help="WebP").tag(sync=True)
    image_size = traitlets.Int().tag(sync=True)
    boxes = traitlets.List(help="of the places, in shares of the side").tag(sync=True)
    grid = traitlets.Int(help="patches along a side; 0 for regions").tag(sync=True)
    captions = traitlets.List(help="words, matched, cost, truth, attention").tag(sync=True)
    caption = traitlets.Int(0).tag(sync=True)
    method = traitlets.Unicode("ipot").tag(sync=True)
    regularization = traitlets.Float(0.5).tag(sync=True)
    regularization_range = traitlets.List(list(REGULARIZATION_RANGE)).tag(sync=True)
    iterations = traitlets.Int(50).tag(sync=True)
    iteration_range = traitlets.List(list(ITERATION_RANGE)).tag(sync=True)
    word = traitlets.Int(0).tag(sync=True)
    view = traitlets.Unicode("plan").tag(sync=True)

    def __init__(
        self,
        image: Tensor,
        matched: WordsAndPlaces,
        mismatched: WordsAndPlaces | None = None,
        boxes: Sequence[Sequence[float | int]] | None = None,
        *,
        image_size: int = 192,
        language: str = "en",
        **traits: Any,
    ):
        picture = named_images({"image": image}, "TransportAlignment")["image"]
        side, places = picture.shape[-1], matched.cost_matrix().shape[1]
        if picture.shape[1] != side:
            raise ValueError(
                f"image has shape {tuple(picture.shape)}; allowed is a square, as the model saw it"
            )
        captions = [matched] if mismatched is None else [matched, mismatched]
        for caption in captions:
            _check_places(caption, places)
        state = {
            "picture": webp_bytes(middle_square(picture, image_size)),
            "image_size": image_size,
            "boxes": _patch_boxes(places) if boxes is None else _region_boxes(boxes, places, side),
            "grid": math.isqrt(places) if boxes is None else 0,
            "captions": [_state_of(c, matched=i == 0) for i, c in enumerate(captions)],
        }
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("method", "view")
    def _name_is_known(self, proposal):
        return listed(proposal, {"method": METHODS, "view": VIEWS}[proposal["trait"].name])

    @traitlets.validate("regularization", "iterations")
    def _is_in_range(self, proposal):
        is_weight = proposal["trait"].name == "regularization"
        return within(proposal, *(REGULARIZATION_RANGE if is_weight else ITERATION_RANGE))

    @traitlets.validate("caption")
    def _caption_is_there(self, proposal):
        return within(proposal, 0, len(self.captions) - 1)

    @traitlets.validate("word")
    def _word_is_an_index(self, proposal):
        # No upper limit here: it moves with the caption, and the figure takes the last word.
        return within(proposal, 0)

    @property
    def words(self) -> list[str]:
        """The words of the present caption."""
        return self.captions[self.caption]["words"]

    def _matrix(self, name: str, dtype: str, caption: int | None) -> Tensor:
        state = self.captions[self.caption if caption is None else caption]
        values = np.frombuffer(state[name], dtype).reshape(len(state["words"]), -1)
        return torch.from_numpy(values.astype(np.float64))

    def cost(self, caption: int | None = None) -> Float64[Tensor, "words places"]:
        """Cost of the present caption, or of another, as the page has it."""
        return self._matrix("cost", "<f4", caption)

    def plan(self, caption: int | None = None) -> Float64[Tensor, "words places"]:
        """The plan after the present number of iterations."""
        solve = ipot if self.method == "ipot" else sinkhorn
        cost = self.cost(caption)[None]
        return solve(cost, None, None, self.regularization, self.iterations)[0]

    def distance(self, caption: int | None = None) -> float:
        """What the plan costs."""
        return transport_distance(self.plan(caption)[None], self.cost(caption)[None]).item()

    def loss(self) -> float:
        """Distance of the matched pair, minus that of the mismatched one, over the pairs."""
        signs = [1 if caption["matched"] else -1 for caption in self.captions]
        parts = [sign * self.distance(i) for i, sign in enumerate(signs)]
        return sum(parts) / len(parts)

    def scores(self) -> dict[str, tuple[float, int]]:
        """Of plan, attention and maximum: mean share on the true places, and words whose best is.

        Only words that speak of some place count. Empty without a truth.
        """
        if not self.captions[self.caption]["truth"]:
            return {}
        rows = {"plan": self.plan(), "maximum": _best_only(1 - self.cost())}
        if self.captions[self.caption]["attention"]:
            rows["attention"] = self._matrix("attention", "<f4", None)
        truth = self._matrix("truth", "u1", None)
        named = truth.any(dim=1)
        return {name: _score(row[named], truth[named]) for name, row in rows.items()}

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        return self.strings["sentence"].format(
            method=self.strings[f"method_{self.method}"],
            kind=self.strings["matched" if self.captions[self.caption]["matched"] else "other"],
            caption=" ".join(self.words),
            places=len(self.boxes),
            iterations=self.iterations,
            regularization=f"{self.regularization:.3g}",
            distance=f"{self.distance():.4f}",
        )

    def still(self) -> Figure:
        """The picture, the cost and the plan."""
        figure = Figure(figsize=(7.2, 0.12 * len(self.words) + 1.4), layout="constrained")
        shown, *boards = figure.subplots(1, 3, width_ratios=[1.2, 2, 2])
        shown.imshow(Image.open(BytesIO(self.picture)).convert("RGB"))
        shown.set_axis_off()
        for axes, name, values in zip(
            boards, ("cost", "plan"), (self.cost(), self.plan()), strict=True
        ):
            axes.imshow(values.numpy(), cmap="Greens", aspect="auto")
            axes.set_title(self.strings[f"matrix_{name}"], fontsize=8)
            axes.set_xticks([])
            axes.set_yticks(range(len(self.words)))
            axes.set_yticklabels([f"{i + 1}" for i in range(len(self.words))], fontsize=7)
        lead = self.strings["lead"].replace("*", "")
        told = lead.format(
            iterations=self.iterations,
            method=self.strings[f"method_{self.method}"],
            distance=f"{self.distance():.4f}",
        )
        figure.suptitle(told, fontsize=9)
        return figure


def _check_places(caption: WordsAndPlaces, places: int) -> None:
    words, own = caption.cost_matrix().shape
    if own != places:
        raise ValueError(f"mismatched has {own} places and matched {places}; allowed are as many")
    if words * places > MAX_CELLS:
        raise ValueError(
            f"{words} words with {places} places are {words * places:,} pairs; allowed are "
            f"{MAX_CELLS:,}"
        )


def _best_only(similarity: Float64[Tensor, "words places"]) -> Float64[Tensor, "words places"]:
    best = torch.zeros_like(similarity)
    return best.scatter_(1, similarity.argmax(dim=1, keepdim=True), 1.0)


def _score(
    rows: Float64[Tensor, "words places"], truth: Float64[Tensor, "words places"]
) -> tuple[float, int]:
    share = (rows * truth).sum(dim=1) / rows.sum(dim=1).clamp_min(1e-300)
    hits = truth.gather(1, rows.argmax(dim=1, keepdim=True)).sum()
    return (share.mean().item() if len(share) else 0.0), int(hits)
