"""CLIP in the browser: a caption ranks pictures, and the model that does it runs in the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from mmlab.datasets import emoji
from mmlab.datasets.example import Example
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.hub.shipped import list_mini_checkpoints, mini_checkpoint
from mmlab.tasks.dual_encoder import DualEncoder, load_dual_encoder
from mmlab.tasks.preparation import image_statistics
from mmlab.widgets.base import Widget, listed, module_source, within
from mmlab.widgets.clip_pack import pack_towers, script_parts, tower_contents
from mmlab.widgets.pictures import middle_square, named_images

VIEWS = ("probability", "cosine")
EXAMPLES = (
    "red heart",
    "a green apple",
    "a blue book",
    "guitar",
    "dog",
    "fruit",
    "红心",
    "苹果",
    "汽车",
    "月亮",
)
GALLERY = (
    "😀😂😉😍😘🤔😎😭😡😱😴🤒🤠👻👽🤖"
    "😺😹😻😿😾🙈❤💔💙💚💛💜💕💋👀👍👎"
    "👏🐶🐕🐩🐺🦊🐈🦁🐯🐴🦄🦓🐮🐷🐑"
    "🐫🦒🐘🐭🐹🐰🐻🐼🐔🐧🐦🦅🦆🦉🐸🐢"
    "🐍🐉🐳🐬🐟🦈🐙🦋🐝🐞🕷🌹🌻🌲🌴🌵"
    "🍀🍄🍇🍉🍊🍋🍌🍍🍎🍏🍐🍓🍅🍆🥕🌽"
    "🍞🧀🍔🍟🍕🌭🍳🍚🍜🍣🍦🍩🍪🎂🍫🍯"
    "🥛☕🍷🍺🌋🏠🏥🚂🚌🚗🚲🚢🚀🚁⏰🌙"
    "🌞⭐🌈🌧⛄🔥🌊🎄🎁🎈🏆⚽🏀🎲🎨👓"
    "👕👗👟👑🎵🎤🎸🎹🎻🥁📱💻📷💡📖✂🔑"
)
"""Emoji with plain names, each a picture of the gallery."""

FOLDER = "_static/clip"
"""Where on the site the weights lie; ``book/_ext/clip_weights.py`` writes them there."""

MAX_PICTURES = 400
_COLUMNS = 16
_STEPS = 32_767  # an entry of a unit vector as a 16-bit whole number
_RESULTS = 12


@cache
def shipped_encoder() -> DualEncoder:
    """The mini CLIP that comes with mmlab; CheckpointError if it did not come."""
    return load_dual_encoder("clip-mini", mini_checkpoint("clip-mini"))


def packed_towers(encoder: DualEncoder) -> dict[str, bytes]:
    """``pack_towers(encoder)``; those of the shipped model, also under another name, once only."""
    return _shipped_towers() if is_shipped(encoder) else pack_towers(encoder)


def is_shipped(encoder: DualEncoder) -> bool:
    """Whether these are the weights and the tokenizer of the mini CLIP that comes with mmlab."""
    if "clip-mini" not in list_mini_checkpoints():
        return False
    shipped = shipped_encoder()
    if encoder is shipped:
        return True
    own, known = encoder.network.state_dict(), shipped.network.state_dict()
    return (
        type(encoder.network) is type(shipped.network)
        and encoder.network.config == shipped.network.config
        and encoder.tokenizer.engine.to_str() == shipped.tokenizer.engine.to_str()
        and all(torch.equal(own[name].cpu(), known[name]) for name in known)
    )


@cache
def _shipped_towers() -> dict[str, bytes]:
    return pack_towers(shipped_encoder())


def gallery() -> list[Example]:
    """The drawings of ``GALLERY`` in a style that no model trains on."""
    data = emoji("all", "fluent")
    # Some end in a sign that asks for colours.
    places = {c.emoji.removesuffix("\ufe0f"): row for row, c in enumerate(data.concepts)}
    return data.__getitems__([places[character] for character in GALLERY])


class CLIPSearch(Widget):
    """Type a caption: the text encoder runs in the page and ranks the pictures.

    ``encoder`` is a CLIP with a WordPiece tokenizer (default: the shipped ``clip-mini``);
    ``images`` maps names to RGB tensors (uint8, ``3 height width``) or lists ``Example``s (default:
    ``gallery()``). The page holds the pictures, their features, and those of ``examples``, which
    PyTorch computed. For captions of the reader's own it loads the text encoder, for a picture of
    the reader's own the image encoder (where a page can run it, see ``pack_towers``): with a kernel
    from a trait, without one from the scripts of ``folder``, an address from the root of the site
    (see ``write_weights``). A page that does not lie on a site of Sphinx takes it from the page
    itself.

    ``query`` is the caption, ``view`` one of ``VIEWS``, ``chosen`` the picture whose captions are
    ranked, -1 for none. ValueError on what a page cannot run, and on wrong pictures or values.
    """

    _esm = module_source("clip_search", "wordpiece", "clip_network", "weights")
    _strings = "clip_search"

    names = traitlets.List(help="of the pictures").tag(sync=True)
    captions = traitlets.List(help="text, and the picture it is about").tag(sync=True)
    sprite = traitlets.Bytes(help="all pictures in rows, WebP").tag(sync=True)
    columns = traitlets.Int(_COLUMNS).tag(sync=True)
    picture_size = traitlets.Int(48).tag(sync=True)
    image_features = traitlets.Bytes(help="pictures × dim, int16").tag(sync=True)
    caption_features = traitlets.Bytes(help="captions × dim, int16").tag(sync=True)
    example_features = traitlets.Bytes(help="examples × dim, int16").tag(sync=True)
    examples = traitlets.List(help="text and its tokens").tag(sync=True)
    dim = traitlets.Int().tag(sync=True)
    scale = traitlets.Float(help="the model's factor on cosines").tag(sync=True)
    mean = traitlets.List(help="of the image encoder's pixels").tag(sync=True)
    std = traitlets.List(help="of the image encoder's pixels").tag(sync=True)
    query = traitlets.Unicode().tag(sync=True)
    view = traitlets.Unicode("probability").tag(sync=True)
    chosen = traitlets.Int(-1).tag(sync=True)
    folder = traitlets.Unicode(FOLDER).tag(sync=True)
    towers = traitlets.Dict(help="files and size of each tower").tag(sync=True)
    source = traitlets.Unicode("live", help="live or page").tag(sync=True)
    asked = traitlets.List(help="towers that the page waits for").tag(sync=True)
    text_weights = traitlets.Bytes().tag(sync=True)
    image_weights = traitlets.Bytes().tag(sync=True)

    def __init__(
        self,
        encoder: DualEncoder | None = None,
        images: Mapping[str, Tensor] | Sequence[Example] | None = None,
        *,
        examples: Sequence[str] = EXAMPLES,
        language: str = "en",
        **traits: Any,
    ):
        encoder = shipped_encoder() if encoder is None else encoder
        images = gallery() if images is None else images
        named = named_images(images, "CLIPSearch")
        if not 2 <= len(named) <= MAX_PICTURES:
            raise ValueError(f"images has {len(named)} pictures; allowed are 2 to {MAX_PICTURES}")
        if not examples:
            raise ValueError("examples is empty; CLIPSearch needs at least one caption to show")
        self._encoder = encoder
        self._packed = packed_towers(encoder)
        # The page ranks by what PyTorch made of the caption until the model is there.
        query = traits.setdefault("query", examples[0])
        texts = list(dict.fromkeys([*examples, query]))
        captions = _captions(images, list(named))
        size = encoder.network.config.image_size
        mean, std = image_statistics(encoder.network.config)
        state = {
            "mean": list(mean),
            "std": list(std),
            "names": list(named),
            "captions": captions,
            "sprite": _sprite([middle_square(image, size) for image in named.values()]),
            "picture_size": size,
            "image_features": _int16(encoder.encode_images(list(named.values()))),
            "caption_features": _int16(encoder.encode_texts([c["text"] for c in captions])),
            "example_features": _int16(encoder.encode_texts(texts)),
            "examples": [_tokens(encoder, text) for text in texts],
            "dim": encoder.network.config.embed_dim,
            "scale": encoder.network.scale().item(),
            "towers": {name: tower_contents(data) for name, data in self._packed.items()},
        }
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("view")
    def _view_is_known(self, proposal):
        return listed(proposal, VIEWS)

    @traitlets.validate("chosen")
    def _picture_is_there(self, proposal):
        # One more than there are: the reader's own, which only the page has.
        return within(proposal, -1, len(self.names))

    @traitlets.observe("asked")
    def _give_weights(self, change):
        for tower in set(change.new) & set(self._packed):
            setattr(self, f"{tower}_weights", self._packed[tower])

    def page_state(self) -> dict[str, Any]:
        """The traits for a page, which asks its site for the weights."""
        nothing = {"source": "page", "asked": [], "text_weights": b"", "image_weights": b""}
        return super().page_state() | nothing

    def weight_files(self) -> dict[str, bytes]:
        """Name → content of the scripts from which a page without a kernel gets the weights."""
        return _script_files(self._packed.values())

    def write_weights(self, folder: str | Path) -> None:
        """Write ``weight_files()``; ``folder`` is made if it is not there."""
        write_files(self.weight_files(), folder)

    def ranking(self) -> list[tuple[str, float]]:
        """Name and probability of every picture for the present caption, best first."""
        query = self._encoder.encode_texts([self.query])[0]
        images = torch.from_numpy(np.frombuffer(self.image_features, "<i2") / _STEPS)
        cosines = images.view(-1, self.dim).float() @ query
        probabilities = (self.scale * cosines).softmax(dim=0)
        order = probabilities.argsort(descending=True).tolist()
        return [(self.names[i], probabilities[i].item()) for i in order]

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        name, probability = self.ranking()[0]
        return self.strings["sentence"].format(
            count=len(self.names), caption=self.query, name=name, probability=f"{probability:.2f}"
        )

    def still(self) -> Figure:
        """The first twelve pictures for the present caption, with their probabilities."""
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        sheet = Image.open(BytesIO(self.sprite)).convert("RGB")
        axes = figure.subplots(2, _RESULTS // 2).flatten()
        for place in axes:
            place.set_axis_off()
        for place, (name, probability) in zip(axes, self.ranking(), strict=False):
            row, column = divmod(self.names.index(name), self.columns)
            size = self.picture_size
            box = (column * size, row * size, (column + 1) * size, (row + 1) * size)
            place.imshow(np.array(sheet.crop(box)))
            place.set_title(f"{probability:.3f}", fontsize=9)
        return figure


def shipped_weight_files() -> dict[str, bytes]:
    """``weight_files()`` of the figure with the shipped model; nothing if none is there."""
    if "clip-mini" not in list_mini_checkpoints():
        return {}
    return _script_files(packed_towers(shipped_encoder()).values())


def _script_files(packed: Iterable[bytes]) -> dict[str, bytes]:
    parts = (script_parts(data) for data in packed)
    return {f"{name}.js": script for scripts in parts for name, script in scripts.items()}


def write_files(files: Mapping[str, bytes], folder: str | Path) -> None:
    """Write each into ``folder``, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _captions(
    images: Mapping[str, Tensor] | Sequence[Example], names: list[str]
) -> list[dict[str, object]]:
    """The names of the pictures, in every language that the examples have, each once."""
    if isinstance(images, Mapping):
        texts = [[name] for name in names]
    else:
        texts = [[c.text for c in example.captions if c.kind == "name"] for example in images]
    found = {text: i for i, words in enumerate(texts) for text in words}
    return [{"text": text, "picture": picture} for text, picture in found.items()]


def _sprite(pictures: list[Image.Image]) -> bytes:
    """All pictures in one, row by row."""
    size = pictures[0].width
    sheet = Image.new("RGB", (_COLUMNS * size, -(-len(pictures) // _COLUMNS) * size), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % _COLUMNS * size, i // _COLUMNS * size))
    buffer = BytesIO()
    sheet.save(buffer, "WEBP", quality=75, method=6)
    return buffer.getvalue()


def _int16(features: Float[Tensor, "rows dim"]) -> bytes:
    return (features * _STEPS).round().to(torch.int16).numpy().astype("<i2").tobytes()


def _tokens(encoder: DualEncoder, text: str) -> dict[str, object]:
    """What ``wordpiece.js`` would say of a caption."""
    tokenizer: Tokenizer = encoder.tokenizer
    batch = tokenizer(text, encoder.network.config.context_length)
    tokens = tokenizer.tokens(batch.input_ids[0])
    words: dict[int, dict[str, Any]] = {}
    for token, number, span in zip(
        tokens, batch.word_ids[0].tolist(), batch.offsets[0].tolist(), strict=True
    ):
        if number >= 0:
            word = words.setdefault(number, {"word": "", "pieces": []})
            word["word"] += text[slice(*span)]
            word["pieces"].append(token)
    return {
        "text": text,
        "tokens": tokens,
        "unknown": "[UNK]",
        "words": list(words.values()),
        "dropped": batch.num_dropped.item(),
    }
