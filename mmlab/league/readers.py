"""Every system of the league as a ``Reader``: a vector of picture and text, and image tokens.

Systems that are shown pixels, and the baseline that sees no picture; those of detected regions are
in ``mmlab.league.region_readers``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.datasets import Scenes
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.datasets.transforms import VIT_MEAN, VIT_STD, normalize
from mmlab.hub import CheckpointError, create_model, read_checkpoint
from mmlab.hub.load import saved_config
from mmlab.league.region_readers import READ_REGIONS, WHOLE_IMAGE, RegionReader, check_size
from mmlab.models.albef import ALBEF
from mmlab.models.blip import BLIP
from mmlab.models.blip2 import BLIP2
from mmlab.models.clip import CLIP
from mmlab.models.flip import FLIP
from mmlab.models.vilt import ViLT
from mmlab.models.vit import ViT
from mmlab.models.vlmo import VLMo
from mmlab.nn import init_xavier
from mmlab.nn.bert import BertConfig, BertEmbeddings, init_bert
from mmlab.nn.single_stream import SingleStream
from mmlab.tasks.downstream.reading import Reader, Reading
from mmlab.tasks.dual_encoder import TOKENIZER, other_settings, read_saved_tokenizer
from mmlab.tasks.fusion import Images
from mmlab.tasks.preparation import image_statistics
from mmlab.training.blip2_system import load_trained
from mmlab.training.recipe import Recipe, check_known, parse_recipe
from mmlab.training.run import RECIPE
from mmlab.training.seeds import seed_everything

TEXT_SIZES = {"dim": 128, "depth": 4, "num_heads": 4, "mlp_dim": 512, "max_positions": 64}
"""The BERT of the baseline that reads the text alone."""
_WEIGHTS_SEED = 5

_Images = Float[Tensor, "batch 3 height width"]
_Ids = Int64[Tensor, "batch tokens"]
_Valid = Bool[Tensor, "batch tokens"]
_Read = tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch places token_dim"]]


def load_reader(recipe: Recipe, weights: str | Path, tokenizer: Tokenizer | None = None) -> Reader:
    """The reader that a finished run of ``recipe`` left in ``weights``, in evaluation mode.

    ``tokenizer`` is for a file that holds none, such as that of a ViT. CheckpointError if the file
    is of another model, or if there is no tokenizer; ValueError for a system that has no reader.
    """
    check_known("system with a reader", recipe.system, (*READ_PIXELS, *READ_REGIONS))
    _check_system(recipe, weights)
    if recipe.system in READ_REGIONS:
        return RegionReader.load(recipe, weights)
    words = _tokenizer(weights, tokenizer)
    return PatchReader(_network(recipe, weights), words, READ_PIXELS[recipe.system]).eval()


def _check_system(recipe: Recipe, weights: str | Path) -> None:
    """CheckpointError if the file tells that it comes from a run of another model."""
    text = read_checkpoint(weights).metadata.get(RECIPE)
    found = parse_recipe(text, str(weights)).model_name if text else recipe.model_name
    if found != recipe.model_name:
        raise CheckpointError(f"{str(weights)!r} is a {found!r}, not a {recipe.model_name!r}")


def _tokenizer(weights: str | Path, tokenizer: Tokenizer | None) -> Tokenizer:
    metadata = read_checkpoint(weights).metadata
    if tokenizer is None or TOKENIZER in metadata:
        return read_saved_tokenizer(metadata, weights)
    return tokenizer


def _network(recipe: Recipe, weights: str | Path) -> nn.Module:
    if recipe.system == "blip2":
        return load_trained(recipe, weights)
    settings = other_settings(recipe.model_name, saved_config(read_checkpoint(weights).metadata))
    return create_model(recipe.model_name, pretrained=weights, **settings)


class PatchReader(Reader):
    """A system that is shown pixels.

    ``read`` makes the vector of the pair and the places of the image, row by row, of the network,
    images, texts and where these are no padding: one of ``READ_PIXELS``.
    """

    def __init__(self, network: nn.Module, tokenizer: Tokenizer, read: Callable[..., _Read]):
        super().__init__()
        self.network, self.tokenizer, self._read = network, tokenizer, read
        self.image_size = network.config.image_size
        self.dim, self.token_dim = self._widths()

    @torch.no_grad()
    def _widths(self) -> tuple[int, int]:
        """Those that come out, whatever the network is called and made of."""
        self.network.eval()
        device = next(self.network.parameters()).device
        ids = torch.tensor([[self.tokenizer.cls_id, self.tokenizer.sep_id]], device=device)
        image = torch.zeros(1, 3, self.image_size, self.image_size, device=device)
        reading = self(image, ids)
        return reading.joint.shape[-1], reading.tokens.shape[-1]

    def prepared(self, dataset: Scenes, rows: Int64[Tensor, " batch"]) -> Images:
        """Pixels, normalised as in training. ValueError for scenes of another size."""
        check_size(dataset, self.image_size)
        return normalize(dataset.images(rows), *_statistics(self.network))

    def tokens(self, texts: Sequence[str]) -> Int64[Tensor, "batch tokens"]:
        """As in ``Reader``; ALBEF's texts have no [SEP]. ValueError for an empty text."""
        longest = getattr(self.network.config, "context_length", None)
        ends = not isinstance(self.network, ALBEF)
        return self.tokenizer(list(texts), longest, add_last=ends).input_ids

    def forward(self, images: Images, input_ids: Int64[Tensor, "batch tokens"]) -> Reading:
        """As in ``Reader``; the places are the squares of a grid."""
        valid = input_ids != self.tokenizer.pad_id
        joint, tokens = self._read(self.network, images, input_ids, valid)
        boxes = square_boxes(math.isqrt(tokens.shape[1])).to(tokens.device)
        seen = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Reading(joint, tokens, boxes.expand(len(tokens), -1, -1), seen)

    def blank(self, images: Images) -> Images:
        """The gray that normalisation makes zero."""
        return torch.zeros_like(images)


def _statistics(network: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    if isinstance(network, ViT):
        return VIT_MEAN, VIT_STD
    return image_statistics(network.config)


def square_boxes(side: int) -> Float[Tensor, "places 4"]:
    """The ``side`` x ``side`` squares of an image, row by row, as fractions: x1 y1 x2 y2."""
    edges = torch.arange(side + 1) / side
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    corners = (edges[x], edges[y], edges[x + 1], edges[y + 1])
    return torch.stack(corners, dim=-1).reshape(-1, 4)


# What each system makes of a batch.


def read_clip(network: CLIP, images: _Images, input_ids: _Ids, valid: _Valid) -> _Read:
    """Both features beside each other, compared; the image tower's places before pooling.

    Of a transformer these are the patches, through the norm that is trained on the class token
    alone; of a ResNet the cells of the last feature map. They have not seen the text.
    """
    encoder, text = network.image_encoder, network.encode_text(input_ids)
    if network.config.stages:
        cells = encoder.forward_map(images)
        return _compared(encoder.pool(cells), text), cells.flatten(2).transpose(1, 2)
    tokens = encoder.norm(encoder.forward_tokens(images))
    return _compared(network.image_projection(tokens[:, 0]), text), tokens[:, 1:]


def read_flip(network: FLIP, images: _Images, input_ids: _Ids, valid: _Valid) -> _Read:
    """As ``read_clip``, of whole images; FLIP's image feature is the average of all tokens."""
    tokens = network.image_encoder.forward_tokens(images)
    image = network.image_projection(tokens.mean(dim=1))
    return _compared(image, network.encode_text(input_ids)), tokens[:, 1:]


def _compared(
    image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch 4*dim"]:
    """[u, v, u v, |u - v|] of unit vectors: nothing else brings the two together."""
    image = F.normalize(image, dim=-1)
    return torch.cat([image, text, image * text, (image - text).abs()], dim=-1)


def read_vit(network: ViT, images: _Images, input_ids: _Ids, valid: _Valid) -> _Read:
    """The class token, or the average token, and the patches: the text does not enter."""
    tokens = network.forward_tokens(images)
    patches = tokens[:, network.config.num_prefix_tokens :]
    averaged = network.config.pool != "class_token"
    return (tokens.mean(dim=1) if averaged else tokens[:, 0]), patches


def read_vilt(network: ViLT, images: _Images, input_ids: _Ids, valid: _Valid) -> _Read:
    """The pooled vector; the patches after the last block, which have seen the text."""
    features = network(input_ids, images, valid)
    return features.pooled, features.patches


def read_vlmo(network: VLMo, images: _Images, input_ids: _Ids, valid: _Valid) -> _Read:
    """As ``read_vilt``."""
    features = network(input_ids, images, valid)
    return features.pooled, features.image[:, 1:]


def read_albef(network: ALBEF, images: _Images, input_ids: _Ids, valid: _Valid) -> _Read:
    """The first token of the fused text; the image tokens, which have not seen the text."""
    features = network(input_ids, images, valid)
    return features.fused[:, 0], features.images[0][:, 1:]


def read_blip(network: BLIP, images: _Images, input_ids: _Ids, valid: _Valid) -> _Read:
    """The first token of the grounded text, [ENC]; the image tokens, which have not seen it."""
    tokens = network.image_tokens(images)
    return network.ground(input_ids, (tokens,), valid)[:, 0], tokens[:, 1:]


def read_blip2(network: BLIP2, images: _Images, input_ids: _Ids, valid: _Valid) -> _Read:
    """The mean of the queries beside the text; the frozen encoder's tokens after the norm.

    The matching head takes the queries so: the mean of its logits is that of their mean. The tokens
    have not seen the text.
    """
    tokens = network.image_tokens(images)
    fused = network.fuse(input_ids, tokens, valid)
    return fused[:, : network.config.num_queries].mean(dim=1), tokens[:, 1:]


READ_PIXELS: dict[str, Callable[..., _Read]] = {
    "vit": read_vit,
    "clip": read_clip,
    "flip": read_flip,
    "vilt": read_vilt,
    "vlmo": read_vlmo,
    "albef": read_albef,
    "blip": read_blip,
    "blip2": read_blip2,
}


# The text alone.


class TextEncoder(nn.Module):
    """A BERT with fresh weights, from PyTorch's global random state."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.trunk = SingleStream(config)
        self.apply(init_bert)
        self.apply(init_xavier)

    def forward(
        self, input_ids: Int64[Tensor, "batch tokens"], text_valid: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch dim"]:
        """The pooled vector. ValueError if the text is too long."""
        text = self.embeddings(input_ids)
        return self.trunk(text, text[:, :0], text_valid).pooled


class TextReader(Reader):
    """The baseline that no picture is shown to: one place, the whole image, that holds nothing."""

    def __init__(self, network: TextEncoder, tokenizer: Tokenizer, image_size: int):
        super().__init__()
        self.network, self.tokenizer, self.image_size = network, tokenizer, image_size
        self.dim = self.token_dim = network.config.dim

    def prepared(self, dataset: Scenes, rows: Int64[Tensor, " batch"]) -> Images:
        """A gray pixel each: nobody will look. ValueError for scenes of another size."""
        check_size(dataset, self.image_size)
        return torch.zeros(len(rows), 3, 1, 1)

    def tokens(self, texts: Sequence[str]) -> Int64[Tensor, "batch tokens"]:
        """As in ``Reader``. ValueError for an empty text."""
        return self.tokenizer(list(texts), self.network.config.max_positions).input_ids

    def forward(self, images: Images, input_ids: Int64[Tensor, "batch tokens"]) -> Reading:
        """As in ``Reader``; ``images`` may be anything."""
        joint = self.network(input_ids, input_ids != self.tokenizer.pad_id)
        tokens = joint.new_zeros(len(joint), 1, self.token_dim)
        boxes = joint.new_tensor(WHOLE_IMAGE).expand(len(joint), 1, -1)
        return Reading(joint, tokens, boxes, torch.ones_like(tokens[..., 0], dtype=torch.bool))

    def blank(self, images: Images) -> Images:
        """The same: there is nothing to take away."""
        return images


def text_reader(tokenizer: Tokenizer, image_size: int, seed: int) -> TextReader:
    """A BERT of ``TEXT_SIZES`` whose fresh weights are drawn from ``seed``."""
    sizes = {**TEXT_SIZES, "dropout": 0.0, "attention_dropout": 0.0, "num_types": 0}
    config = BertConfig(vocab_size=tokenizer.vocab_size, **sizes)
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed, _WEIGHTS_SEED)
        network = TextEncoder(config)
    return TextReader(network, tokenizer, image_size).eval()
