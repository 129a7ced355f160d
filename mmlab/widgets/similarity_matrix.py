"""Similarity matrix: every picture against every caption, and the loss that trains CLIP."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmlab.datasets.example import Example
from mmlab.tasks.dual_encoder import DualEncoder
from mmlab.widgets.base import Widget, listed, module_source, within
from mmlab.widgets.clip_pack import tower_contents
from mmlab.widgets.clip_search import FOLDER, is_shipped, packed_towers
from mmlab.widgets.pictures import float32_bytes, middle_square, named_images, webp_bytes

VIEWS = ("image_to_text", "text_to_image", "cosine")
MAX_PAIRS = 12
MAX_OWN_CAPTIONS = 4
MAX_CAPTION_LENGTH = 200
SCALE_RANGE = (1.0, 100.0)
"""Least and greatest factor on cosines, CLIP's own limits: temperatures from 1 to 0.01."""

_SAME = 0.999
"""Least cosine of a vector with the one that the same model makes of the same input."""

Encoder = Callable[[list[str]], Tensor]
"""Captions to features (``captions dim``), such as a model's text tower behind its tokenizer."""


def _check_captions(captions: Sequence[str], num_images: int) -> None:
    if not 2 <= num_images <= MAX_PAIRS:
        raise ValueError(f"images has {num_images} pictures; allowed are 2 to {MAX_PAIRS}")
    if len(captions) != num_images:
        raise ValueError(
            f"captions has {len(captions)} texts for {num_images} pictures; allowed is one each"
        )
    for i, caption in enumerate(captions):
        if not isinstance(caption, str) or len(caption) > MAX_CAPTION_LENGTH:
            raise ValueError(
                f"captions[{i}] is {caption!r:.60}; allowed is text of at most "
                f"{MAX_CAPTION_LENGTH} characters"
            )


def _check_features(name: str, features: Tensor, rows: int, dim: int) -> None:
    if tuple(features.shape) != (rows, dim):
        raise ValueError(f"{name} has shape {tuple(features.shape)}; allowed is ({rows}, {dim})")
    if not (features.is_floating_point() and features.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite floats")
    if (features.float().norm(dim=-1) == 0).any():
        raise ValueError(f"{name} holds a row of zeros; allowed are rows that have a direction")


def _check_origin(name: str, features: Tensor, encoded: Tensor) -> None:
    """Features of one model and captions encoded by another would have meaningless cosines."""
    same = features.shape == encoded.shape
    if not same or F.cosine_similarity(features.cpu().float(), encoded).min() < _SAME:
        raise ValueError(
            f"{name} are not what encoder makes of the pictures and captions; allowed are "
            "features of encoder itself, or encode_text in its place"
        )


def _learned_scale(logit_scale: Tensor | float) -> float:
    scale = math.exp(torch.as_tensor(logit_scale).item())
    low, high = SCALE_RANGE
    # The rounding of a half-precision ln 100 is no reason to refuse a released model.
    if not 0.99 * low <= scale <= 1.01 * high:
        raise ValueError(
            f"logit_scale={float(logit_scale):g} is a factor of {scale:g}; allowed are logarithms "
            f"of {low:g} to {high:g}"
        )
    return min(max(scale, low), high)


class SimilarityMatrix(Widget):
    """Pictures × captions: cosines, softmax either way, the loss, and what pulls on each logit.

    ``images`` maps names to RGB tensors (uint8, ``3 height width``) or lists ``Example``s; picture
    ``i`` belongs to ``captions[i]``. ``image_features`` and ``text_features`` (``pairs dim``) need
    no unit length. ``logit_scale`` is CLIP's parameter, the logarithm of the factor on cosines.
    The loss is symmetric InfoNCE (CLIP, figure 3; ``mmlab.objectives.contrastive_loss``), and
    ``order[i]`` the caption that counts as picture ``i``'s: the reader exchanges captions. The
    reader adds captions of their own, which stand in every picture's softmax and belong to none:
    with a kernel by ``encoder``, the model that made the features, or by ``encode_text``, a text
    encoder alone. Without a kernel the text tower of ``encoder`` runs in the page if it is the
    shipped ``clip-mini``, or if ``folder`` names where its weights lie on the site
    (``CLIPSearch.write_weights``). ``view`` is one of ``VIEWS``; ``scale`` the present factor.
    ValueError on wrong pictures, captions, features or values, and on features that are not
    ``encoder``'s.
    """

    _esm = module_source("similarity_matrix", "wordpiece", "clip_network", "weights")
    _strings = "similarity_matrix"

    pictures = traitlets.List(help="name and bytes of each").tag(sync=True)
    captions = traitlets.List(help="given ones first, then the reader's own").tag(sync=True)
    image_features = traitlets.Bytes(help="pictures × dim, float32").tag(sync=True)
    text_features = traitlets.Bytes(help="captions × dim, float32").tag(sync=True)
    dim = traitlets.Int().tag(sync=True)
    image_size = traitlets.Int().tag(sync=True)
    order = traitlets.List(help="index of each picture's caption").tag(sync=True)
    learned_scale = traitlets.Float().tag(sync=True)
    scale = traitlets.Float(help="factor on cosines, 1 / temperature").tag(sync=True)
    scale_range = traitlets.List(list(SCALE_RANGE)).tag(sync=True)
    view = traitlets.Unicode("image_to_text").tag(sync=True)
    gradients = traitlets.Bool(True, help="mark where each logit is pushed").tag(sync=True)
    image = traitlets.Int(0, help="row of the chosen cell").tag(sync=True)
    caption = traitlets.Int(0, help="column of the chosen cell").tag(sync=True)
    own = traitlets.Unicode("absent", help="absent, live, page or needs_kernel").tag(sync=True)
    typed = traitlets.Unicode("", help="the caption the reader asks for").tag(sync=True)
    most_captions = traitlets.Int(help="with the reader's own").tag(sync=True)
    folder = traitlets.Unicode(FOLDER, help="of the text tower's scripts").tag(sync=True)
    tower = traitlets.Dict(help="files and size of the text tower, if any").tag(sync=True)
    problem = traitlets.Unicode("", help="why the last one could not be added").tag(sync=True)

    def __init__(
        self,
        images: Mapping[str, Tensor] | Sequence[Example],
        captions: Sequence[str],
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        *,
        encoder: DualEncoder | None = None,
        encode_text: Encoder | None = None,
        folder: str | None = None,
        image_size: int = 96,
        language: str = "en",
        **traits: Any,
    ):
        named = named_images(images, "SimilarityMatrix")
        captions = list(captions)
        _check_captions(captions, len(named))
        dim = image_features.shape[-1]
        _check_features("image_features", image_features, len(named), dim)
        _check_features("text_features", text_features, len(named), dim)
        if not 16 <= image_size <= 224:
            raise ValueError(f"image_size={image_size}; allowed are 16 to 224 pixels")
        if encoder is not None:
            of_images = encoder.encode_images([*named.values()])
            _check_origin("image_features", image_features, of_images)
            _check_origin("text_features", text_features, encoder.encode_texts(captions))
            encode_text = encode_text or encoder.encode_texts
        self._encode_text = encode_text
        learned = _learned_scale(logit_scale)
        state = {
            "pictures": [
                {"name": name, "bytes": webp_bytes(middle_square(image, image_size))}
                for name, image in named.items()
            ],
            "captions": captions,
            "image_features": float32_bytes(image_features),
            "text_features": float32_bytes(text_features),
            "dim": dim,
            "image_size": image_size,
            "order": list(range(len(named))),
            "learned_scale": learned,
            "scale": learned,
            "own": "absent" if encode_text is None else "live",
            "most_captions": len(named) + MAX_OWN_CAPTIONS,
            "folder": FOLDER if folder is None else folder,
            "tower": _page_tower(encoder, folder),
        }
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("view")
    def _view_is_known(self, proposal):
        return listed(proposal, VIEWS)

    @traitlets.validate("scale")
    def _scale_is_in_range(self, proposal):
        return within(proposal, *SCALE_RANGE)

    @traitlets.validate("image", "caption")
    def _cell_is_there(self, proposal):
        there = self.pictures if proposal["trait"].name == "image" else self.captions
        return within(proposal, 0, len(there) - 1)

    @traitlets.validate("order")
    def _order_gives_each_picture_a_caption(self, proposal):
        order, allowed = proposal["value"], set(range(len(self.captions)))
        if len(order) != len(self.pictures) or len(allowed & set(order)) != len(order):
            raise ValueError(
                f"order={order}; allowed are {len(self.pictures)} different indices of captions"
            )
        return order

    @traitlets.observe("typed")
    def _add_caption(self, change):
        """What the reader typed becomes a column, or ``problem`` says why not."""
        if not change.new.strip() or self._encode_text is None:
            return
        try:
            self.add_caption(change.new.strip())
            self.problem = ""
        # Of an exception in a callback the reader would see nothing.
        except Exception as error:
            self.problem = str(error) or type(error).__name__

    def add_caption(self, caption: str) -> None:
        """One more column, by ``encode_text``; a caption that is there already is only chosen."""
        if self._encode_text is None:
            raise ValueError("encode_text is None; a caption needs one to become features")
        if caption not in self.captions:
            if len(self.captions) >= self.most_captions:
                raise ValueError(
                    f"captions has {self.most_captions} texts already; no more are allowed"
                )
            _check_captions([caption] * len(self.pictures), len(self.pictures))
            with torch.no_grad():
                features = self._encode_text([caption])
            _check_features("encode_text's answer", features, 1, self.dim)
            with self.hold_sync():
                self.text_features = self.text_features + float32_bytes(features)
                self.captions = [*self.captions, caption]
        self.caption = self.captions.index(caption)

    def page_state(self) -> dict[str, Any]:
        """The traits for a page, which has no kernel to encode another caption."""
        without_kernel = "page" if self.tower else "needs_kernel"
        state = super().page_state()
        return state if self.own == "absent" else state | {"own": without_kernel}

    def cosines(self) -> Float[Tensor, "pictures captions"]:
        """Cosines of all pictures with all captions, from the features as the page has them."""
        images, texts = (
            F.normalize(torch.from_numpy(np.frombuffer(data, "<f4").copy()).view(-1, self.dim))
            for data in (self.image_features, self.text_features)
        )
        return images @ texts.T

    def probabilities(self) -> Float[Tensor, "pictures captions"]:
        """What the present view shows: softmax over rows or columns, or the cosines."""
        if self.view == "cosine":
            return self.cosines()
        return (self.scale * self.cosines()).softmax(dim=1 if self.view == "image_to_text" else 0)

    def loss(self) -> float:
        """Symmetric InfoNCE at the present pairs; captions without a picture are negatives only."""
        logits, own = self.scale * self.cosines(), torch.tensor(self.order)
        image_loss = F.cross_entropy(logits, own)
        text_loss = F.cross_entropy(logits[:, own].T, torch.arange(len(own)))
        return (image_loss + text_loss).item() / 2

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        best = self.cosines().argmax(dim=1).tolist()
        return self.strings["sentence"].format(
            pictures=len(self.pictures),
            captions=len(self.captions),
            temperature=f"{1 / self.scale:.3g}",
            loss=f"{self.loss():.3f}",
            found=sum(a == b for a, b in zip(best, self.order, strict=True)),
        )

    def still(self) -> Figure:
        """The matrix of the present view, pictures beside it and captions above."""
        figure = Figure(figsize=(7.2, 0.55 * len(self.pictures) + 2.2), layout="constrained")
        thumbnails, board = figure.subplots(1, 2, width_ratios=[1, 9])
        pictures = [Image.open(BytesIO(p["bytes"])).convert("RGB") for p in self.pictures]
        column = np.concatenate([np.array(picture) for picture in pictures])
        thumbnails.imshow(column, aspect="auto")  # each picture beside its row
        thumbnails.set_axis_off()
        values = self.probabilities()
        most = 2 * values.max().item() - values.min().item()  # pale enough for dark numbers
        board.imshow(values.numpy(), cmap="GnBu", aspect="auto", vmax=most)
        for i, row in enumerate(values.tolist()):
            for j, value in enumerate(row):
                weight = "bold" if self.order[i] == j else "normal"
                board.text(j, i, f"{value:.2f}", ha="center", va="center", fontweight=weight)
        board.set_yticks([])
        names = [_shortened(caption, j) for j, caption in enumerate(self.captions)]
        board.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
        board.set_title(self.strings[f"view_{self.view}"], fontsize=10)
        return figure


def _page_tower(encoder: DualEncoder | None, folder: str | None) -> dict[str, object]:
    """Of the text tower that lies on the site; nothing if it does not."""
    if encoder is None or (folder is None and not is_shipped(encoder)):
        return {}
    return tower_contents(packed_towers(encoder)["text"])


def _shortened(caption: str, j: int) -> str:
    # The font of the still picture has European letters only.
    if not all(" " <= character < "\u0500" for character in caption):
        return chr(ord("A") + j)
    short = caption if len(caption) <= 24 else caption[:23] + "…"
    # A dollar sign would begin a formula.
    return short.replace("$", r"\$")
