"""Five families: who sees whom in each, layer by layer, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmlab.analysis import families as toys
from mmlab.datasets.example import Example
from mmlab.widgets.base import Widget, listed, module_source, within
from mmlab.widgets.pictures import middle_square, named_images, webp_bytes

VIEWS = ("looks", "reach")
MAX_WORDS = 32
MAX_MAP_BYTES = 1_000_000
LEVELS = 65535
"""Code of an attention weight of 1; the weights travel as 16-bit codes."""

WORD_RANGE = (1, 64)
GRID_RANGE = (2, 24)
COUNT_RANGE = (1, 1_000_000)
SEARCHES = (
    ("Flickr30k", 1000, 5000, 128),
    ("COCO", 5000, 25000, 256),
)
"""Test sets as (name, images, captions, k): BLIP (Li et al. 2022), section 5.1."""

Pair = tuple[Tensor, str | Sequence[str]]
"""A picture and its caption; a caption that has no spaces comes as a list of words."""


def _named_pairs(pairs: Mapping[str, Pair] | Sequence[Example]) -> dict[str, Pair]:
    """Name → pair; an example is named by its id and brings its first caption."""
    if not pairs:
        raise ValueError("pairs is empty; Families needs at least one picture with a caption")
    if isinstance(pairs, Mapping):
        return dict(pairs)
    return {example.id: (example.image, example.caption()) for example in pairs}


def _words(name: str, caption: str | Sequence[str]) -> list[str]:
    words = caption.split() if isinstance(caption, str) else [str(word) for word in caption]
    if not 1 <= len(words) <= MAX_WORDS:
        raise ValueError(
            f"pairs[{name!r}] has a caption of {len(words):,} words; allowed are 1 to {MAX_WORDS}"
        )
    return words


def _check_sizes(image_size: int, patch_size: int) -> None:
    if patch_size < 1 or image_size % patch_size or not 2 <= image_size // patch_size <= 8:
        raise ValueError(
            f"patch_size={patch_size} does not cut image_size={image_size} into 2 to 8 patches "
            "a side"
        )


def _recorded(
    words: list[str], image: Tensor, patch_size: int
) -> Float[Tensor, "steps tokens tokens"]:
    """The attention of every layer of every family on one pair, families one after the other."""
    pair = toys.embed_words(words), toys.embed_patches(image, patch_size)
    return torch.cat(
        [toys.attention_by_layer(toys.make_toy(family), *pair) for family in toys.FAMILIES]
    )


def _codes(maps: Float[Tensor, "steps tokens tokens"]) -> bytes:
    """A weight above 0 keeps a code above 0: whether a token looks at another is never lost."""
    codes = (maps * LEVELS).round().where(maps == 0, (maps * LEVELS).round().clamp_min(1))
    return codes.numpy().astype("<u2").tobytes()


def _family(name: str) -> dict[str, Any]:
    """What the page needs to know of a family; every number is measured on the toy."""
    layers = toys.layer_costs(name)
    return {
        "name": name,
        "layers": [
            {
                "looks": [list(pair) for pair in layer.looks],
                "thinks": list(layer.thinks),
                "per_word": layer.per_word,
                "per_patch": layer.per_patch,
            }
            for layer in layers
        ],
        "meets": list(toys.meeting_layers(name)),
        "parameters": sum(layer.parameters for layer in layers),
    }


class Families(Widget):
    """Five families of vision-and-language networks on the same pair: who sees whom, at what cost.

    ``pairs`` maps names to (picture, caption), the picture an RGB tensor (uint8, ``3 height
    width``), or lists ``Example``s; each picture is cropped to its middle square and resized to
    ``image_size`` pixels. The networks are the untrained toys of ``mmlab.analysis.families``; their
    attention was recorded, and who can have influenced whom follows from it in the browser.
    ``family`` is one of ``mmlab.analysis.families.FAMILIES``; ``layer`` and ``token`` (words first,
    then patches in raster order) count from 0; ``view`` is one of ``VIEWS``. ``num_words``,
    ``patch_grid``, ``num_images``, ``num_captions`` and ``top_k`` set the sizes that the costs are
    computed for, at BERT-base's width. ValueError on wrong pairs or values.
    """

    _esm = module_source("families")
    _strings = "families"

    pairs = traitlets.List(help="name, picture and words of each").tag(sync=True)
    pair = traitlets.Int(0, help="index into pairs").tag(sync=True)
    families = traitlets.List(help="name, layers, meets, parameters").tag(sync=True)
    family = traitlets.Unicode("single_stream").tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(0, help="index into words and patches").tag(sync=True)
    view = traitlets.Unicode("looks").tag(sync=True)
    grid = traitlets.Int(help="patches along a side of the pictures").tag(sync=True)
    image_size = traitlets.Int().tag(sync=True)
    maps = traitlets.Bytes(help="for each pair: families layers tokens tokens, uint16").tag(
        sync=True
    )
    levels = traitlets.Int(LEVELS, help="the code of 1 in maps").tag(sync=True)
    dim = traitlets.Int(toys.BASE_WIDTH.dim, help="width that costs are for").tag(sync=True)
    num_words = traitlets.Int(10).tag(sync=True)
    patch_grid = traitlets.Int(14, help="patches along a side, for the costs").tag(sync=True)
    num_images = traitlets.Int(SEARCHES[0][1]).tag(sync=True)
    num_captions = traitlets.Int(SEARCHES[0][2]).tag(sync=True)
    top_k = traitlets.Int(SEARCHES[0][3]).tag(sync=True)
    ranges = traitlets.Dict(help="least and greatest values").tag(sync=True)
    searches = traitlets.List([list(search) for search in SEARCHES]).tag(sync=True)

    def __init__(
        self,
        pairs: Mapping[str, Pair] | Sequence[Example],
        patch_size: int = 16,
        image_size: int = 64,
        *,
        language: str = "en",
        **traits: Any,
    ):
        _check_sizes(image_size, patch_size)
        named = _named_pairs(pairs)
        words = {name: _words(name, caption) for name, (_, caption) in named.items()}
        pictures = named_images({name: image for name, (image, _) in named.items()}, "Families")
        squares = {name: middle_square(image, image_size) for name, image in pictures.items()}
        state = {
            "pairs": [
                {"name": name, "bytes": webp_bytes(squares[name]), "words": words[name]}
                for name in named
            ],
            "families": [_family(name) for name in toys.FAMILIES],
            "grid": image_size // patch_size,
            "image_size": image_size,
            "ranges": {
                "num_words": list(WORD_RANGE),
                "patch_grid": list(GRID_RANGE),
                "count": list(COUNT_RANGE),
            },
        }
        _check_weight(state)
        state["maps"] = b"".join(
            _codes(_recorded(words[name], _pixels(squares[name]), patch_size)) for name in named
        )
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("family")
    def _family_is_known(self, proposal):
        return listed(proposal, toys.FAMILIES)

    @traitlets.validate("view")
    def _view_is_known(self, proposal):
        return listed(proposal, VIEWS)

    @traitlets.validate("pair")
    def _pair_is_there(self, proposal):
        return within(proposal, 0, len(self.pairs) - 1)

    @traitlets.validate("layer", "token")
    def _is_an_index(self, proposal):
        # No upper limit here: it moves with the family and the pair, and the figure takes the last.
        return within(proposal, 0)

    @traitlets.validate("num_words", "patch_grid", "num_images", "num_captions", "top_k")
    def _is_in_range(self, proposal):
        ranges = {"num_words": WORD_RANGE, "patch_grid": GRID_RANGE}
        return within(proposal, *ranges.get(proposal["trait"].name, COUNT_RANGE))

    @property
    def words(self) -> list[str]:
        """The words of the present caption."""
        return self.pairs[self.pair]["words"]

    @property
    def num_layers(self) -> int:
        """Layers of the present family."""
        return len(next(f for f in self.families if f["name"] == self.family)["layers"])

    @property
    def shown_layer(self) -> int:
        """The present layer; the last one where the family has fewer."""
        return min(self.layer, self.num_layers - 1)

    def attention(self) -> Float[Tensor, "layers tokens tokens"]:
        """Attention of the present family on the present pair, as the page has it; words first."""
        tokens = [len(pair["words"]) + self.grid**2 for pair in self.pairs]
        steps = {family["name"]: len(family["layers"]) for family in self.families}
        before = list(steps)[: list(steps).index(self.family)]
        start = sum(t * t for t in tokens[: self.pair]) * sum(steps.values())
        size = tokens[self.pair] ** 2
        start += size * sum(steps[name] for name in before)
        codes = np.frombuffer(self.maps, "<u2")[start : start + size * steps[self.family]]
        shape = (steps[self.family], tokens[self.pair], tokens[self.pair])
        return torch.from_numpy(codes.reshape(shape).astype(np.float32)) / LEVELS

    def reach(self) -> Bool[Tensor, "layers tokens tokens"]:
        """Who can have influenced whom after each layer."""
        return toys.reach(self.attention())

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        return self.strings["sentence"].format(
            family=self.strings[f"family_{self.family}"],
            layer=self.shown_layer + 1,
            layers=self.num_layers,
            caption=" ".join(self.words),
            words=len(self.words),
            patches=self.grid**2,
            known=int(self.reach()[self.shown_layer].sum()),
            pairs=(len(self.words) + self.grid**2) ** 2,
        )

    def still(self) -> Figure:
        """The picture, and the attention of all layers of the present family."""
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        picture, *boards = figure.subplots(1, self.num_layers + 1)
        picture.imshow(Image.open(BytesIO(self.pairs[self.pair]["bytes"])))
        picture.set_title(self.strings["pair"], fontsize=8)
        maps = self.reach().float() if self.view == "reach" else self.attention()
        for layer, (axes, attention) in enumerate(zip(boards, maps, strict=True)):
            axes.imshow(attention, cmap="Greens", vmin=0, vmax=maps.max())
            for line in (axes.axhline, axes.axvline):
                line(len(self.words) - 0.5, color="#b4530a", linewidth=0.8)
            weight = "bold" if layer == self.shown_layer else "normal"
            title = self.strings["layer_number"].format(layer=layer + 1)
            axes.set_title(title, fontsize=8, fontweight=weight)
        for axes in (picture, *boards):
            axes.set_xticks([])
            axes.set_yticks([])
        figure.suptitle(self.strings[f"family_{self.family}"], fontsize=10)
        return figure


def _check_weight(state: dict[str, Any]) -> None:
    """ValueError with the size if the maps would make the page too heavy."""
    steps = sum(len(family["layers"]) for family in state["families"])
    patches = state["grid"] ** 2
    size = sum(2 * steps * (len(pair["words"]) + patches) ** 2 for pair in state["pairs"])
    if size > MAX_MAP_BYTES:
        raise ValueError(
            f"{len(state['pairs'])} pairs with {patches} patches each take {size / 1e6:.1f} MB of "
            f"attention; a page allows {MAX_MAP_BYTES / 1e6:.1f} MB: pass fewer pairs"
        )


def _pixels(square: Image.Image) -> Tensor:
    """The very pixels that the page shows."""
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
