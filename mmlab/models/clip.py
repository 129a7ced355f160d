"""CLIP: an image encoder and a text encoder that meet in one space, trained by contrast.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision" (arXiv
2103.00020); the official code, inference only, is openai/CLIP. The ResNets that CLIP also uses as
image encoder are in ``mmlab.models.clip_resnet``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlab.models.checks import check, check_choice, check_integers, check_multiple, check_positive
from mmlab.models.clip_resnet import CLIPResNet
from mmlab.models.image_checks import check_images
from mmlab.nn import (
    ACTIVATIONS,
    Attention,
    ConvStem,
    PatchEmbedding,
    TransformerBlock,
    causal_mask,
    conv_stem_widths,
    init_joint_projections,
    interpolate_positions,
    run_blocks,
    shared_checkpointing,
)
from mmlab.objectives.contrastive import INITIAL_SCALE, MAX_SCALE, contrastive_loss


@dataclass(frozen=True)
class CLIPConfig:
    """Everything that fixes the shape of a ``CLIP``.

    ``dim``, ``depth``, ``num_heads`` and ``mlp_dim`` are the image encoder's, ``text_…`` the text
    encoder's; ``embed_dim`` is the width of the space that both are projected to.

    - ``stem``: ``"linear"`` patches or, not in the paper, a ``"conv"`` stem (Xiao et al. 2021).
    - ``stages``: the number of blocks in each of the four stages makes the image encoder a ResNet
      whose first stage is ``dim`` wide; ``patch_size``, ``depth``, ``num_heads``, ``mlp_dim`` and
      ``stem`` then mean nothing. ``()`` makes it a transformer.
    - ``context_length``: the most tokens of a caption.
    - ``end_id``: the token that ends a caption, whose vector is read out. None takes the highest
      number in the row, as the official code does: CLIP's own vocabulary ends with it.

    A wrong value raises ValueError.
    """

    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    stem: str = "linear"
    stages: tuple[int, ...] = ()
    vocab_size: int = 49408
    context_length: int = 77
    end_id: int | None = None
    text_dim: int = 512
    text_depth: int = 12
    text_num_heads: int = 8
    text_mlp_dim: int = 2048
    embed_dim: int = 512
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_integers(self, "image_size", "patch_size", "num_channels", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "vocab_size", "context_length")
        check_integers(self, "text_dim", "text_depth", "text_num_heads", "text_mlp_dim")
        check_integers(self, "embed_dim")
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "stem", ("linear", "conv"))
        check_positive(self, "norm_eps")
        if self.end_id is not None:
            check_integers(self, "end_id", minimum=0)
            below = f"below vocab_size={self.vocab_size}"
            check(self.end_id < self.vocab_size, "end_id", self.end_id, below)
        check_multiple(self, "text_dim", "text_num_heads")
        self._check_resnet() if self.stages else self._check_transformer()

    def _check_transformer(self) -> None:
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "dim", "num_heads")
        if self.stem == "conv":
            conv_stem_widths(self.patch_size, self.dim)

    def _check_resnet(self) -> None:
        four = len(self.stages) == 4 and all(type(n) is int and n > 0 for n in self.stages)
        check(four, "stages", self.stages, "() or four numbers of at least 1")
        check(self.image_size % 32 == 0, "image_size", self.image_size, "a multiple of 32")
        check(self.dim % 2 == 0, "dim", self.dim, "a multiple of 2 with stages")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches, or cells of the last feature map, per column and per row."""
        return (self.image_size // (32 if self.stages else self.patch_size),) * 2

    @property
    def num_image_tokens(self) -> int:
        """The class token and the patches; in a ResNet the average and the cells."""
        return 1 + math.prod(self.grid)


class CLIP(nn.Module):
    """Contrastive language-image pretraining (CLIP, section 2).

    Images are floats, normalised with CLIP's own mean and standard deviation (see
    ``mmlab.datasets.transforms``). Set ``model.activation_checkpointing = True`` to trade time for
    memory in training: the blocks are then recomputed during the backward pass. New weights come
    from PyTorch's global random state.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.image_encoder, self.image_projection = _image_side(config)
        self.text_encoder = CLIPTextEncoder(config)
        self.text_projection = nn.Linear(config.text_dim, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        _init_clip(self)

    activation_checkpointing = shared_checkpointing("image_encoder", "text_encoder")

    def forward(
        self,
        images: Float[Tensor, "images channels height width"],
        input_ids: Int[Tensor, "texts tokens"],
    ) -> Float[Tensor, "images texts"]:
        """Logits of every caption for every image: ``scale()`` times the cosine.

        Their transpose are the logits of every image for every caption. ValueError if images or
        captions do not fit the configuration.
        """
        return self.scale() * self.encode_image(images) @ self.encode_text(input_ids).T

    def scale(self) -> Float[Tensor, ""]:
        """The learned factor on cosines, ``exp(logit_scale)``; close to 100 in released models."""
        return self.logit_scale.exp()

    def encode_image(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Image features of length 1. ValueError if the images do not fit the configuration."""
        check_images(images, self.config.num_channels, self.config.image_size)
        features = self.image_encoder(images)
        if self.image_projection is not None:
            features = self.image_projection(features)
        return F.normalize(features, dim=-1)

    def encode_text(
        self, input_ids: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Text features of length 1. ValueError if a caption is too long.

        Nothing after the end of a caption takes part, so it does not matter with what, and how far,
        captions are filled up.
        """
        return F.normalize(self.text_projection(self.text_encoder(input_ids)), dim=-1)

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Bring ``scale()`` back to between 1 and 100 (CLIP, section 2.5; the 1 is open_clip's)."""
        self.logit_scale.clamp_(0, math.log(MAX_SCALE))

    def resize_positions(self, image_size: int, variant: str = "bicubic") -> CLIP:
        """Take images of ``image_size`` pixels from now on; returns the model itself.

        The positions of the image encoder are interpolated (see ``mmlab.nn.interpolate_positions``)
        into a new parameter: call this before making an optimiser.
        """
        new = replace(self.config, image_size=image_size)
        holder = self.image_encoder.pool if new.stages else self.image_encoder
        old_table = holder.position_embedding.detach()
        table = interpolate_positions(old_table, self.config.grid, new.grid, variant)
        holder.position_embedding = nn.Parameter(table.clone())
        self.config = new
        return self


class CLIPImageEncoder(nn.Module):
    """CLIP's Vision Transformer: a ViT with one more norm, before the blocks (CLIP, section 2.4).

    Unlike in a ViT, the patches are embedded without bias, and the last norm is for the class token
    alone.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.activation_checkpointing = False
        self.patch_embedding = _stem(config)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        table = torch.zeros(1, config.num_image_tokens, config.dim)
        self.position_embedding = nn.Parameter(table)
        self.norm_pre = nn.LayerNorm(config.dim, eps=config.norm_eps)
        sizes = (config.dim, config.num_heads, config.mlp_dim)
        self.blocks = nn.ModuleList(_block(config, *sizes) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim"]:
        """The class token after the last norm."""
        return self.norm(self.forward_tokens(images)[:, 0])

    def forward_tokens(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Class token and patches after the blocks, before the last norm."""
        return run_blocks(self.blocks, self.embed(images), None, self.activation_checkpointing)

    def embed(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens that enter the first block."""
        class_token = self.class_token.expand(len(images), -1, -1)
        tokens = torch.cat([class_token, self.patch_embedding(images)], dim=1)
        return self.norm_pre(tokens + self.position_embedding)


class CLIPTextEncoder(nn.Module):
    """A transformer in which each token sees itself and those before it (CLIP, section 2.4).

    The vector of the end token, which alone sees the whole caption, stands for it.
    """

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_dim)
        table = torch.zeros(1, config.context_length, config.text_dim)
        self.position_embedding = nn.Parameter(table)
        sizes = (config.text_dim, config.text_num_heads, config.text_mlp_dim)
        self.blocks = nn.ModuleList(_block(config, *sizes) for _ in range(config.text_depth))
        self.norm = nn.LayerNorm(config.text_dim, eps=config.norm_eps)

    def forward(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch dim"]:
        """The end token after the last norm. ValueError if a caption is too long."""
        tokens = self.forward_tokens(input_ids)
        return tokens[torch.arange(len(tokens), device=tokens.device), self.ends(input_ids)]

    def forward_tokens(
        self, input_ids: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """All tokens after the last norm; those after the end mean nothing."""
        num_tokens = input_ids.shape[1]
        longest = self.config.context_length
        if num_tokens > longest:
            raise ValueError(
                f"a caption may have {longest} tokens, got {num_tokens}; cut them with the "
                "tokenizer's max_length"
            )
        tokens = self.token_embedding(input_ids) + self.position_embedding[:, :num_tokens]
        mask = causal_mask(num_tokens, input_ids.device)
        return self.norm(run_blocks(self.blocks, tokens, mask, self.activation_checkpointing))

    def ends(self, input_ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, " batch"]:
        """The place of the end token in each row, the first where there are several."""
        end_id = self.config.end_id
        # argmax takes the first of equal values on every device only for whole numbers.
        return (input_ids if end_id is None else (input_ids == end_id).int()).argmax(dim=1)


def _image_side(config: CLIPConfig) -> tuple[nn.Module, nn.Linear | None]:
    """The image encoder and its projection; a ResNet's pooling already projects."""
    if config.stages:
        sizes = (config.stages, config.dim, config.embed_dim, config.num_image_tokens)
        return CLIPResNet(*sizes, config.num_channels), None
    return CLIPImageEncoder(config), nn.Linear(config.dim, config.embed_dim, bias=False)


def _stem(config: CLIPConfig) -> nn.Module:
    sizes = (config.patch_size, config.dim, config.num_channels)
    return ConvStem(*sizes) if config.stem == "conv" else PatchEmbedding(*sizes, bias=False)


def _block(config: CLIPConfig, dim: int, num_heads: int, mlp_dim: int) -> TransformerBlock:
    return TransformerBlock(dim, num_heads, mlp_dim, config.activation, config.norm_eps)


def _init_clip(model: CLIP) -> None:
    """Initialisation of openai/CLIP (``model.py``), attention as ``nn.MultiheadAttention`` has it.

    The blocks of the image encoder keep PyTorch's defaults; those of the text encoder get smaller
    the deeper the stack, as in GPT-2.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            _init_attention(module)
    image, text = model.image_encoder, model.text_encoder
    if isinstance(image, CLIPImageEncoder):
        for parameter in (
            image.class_token,
            image.position_embedding,
            model.image_projection.weight,
        ):
            nn.init.normal_(parameter, std=model.config.dim**-0.5)
    nn.init.normal_(text.token_embedding.weight, std=0.02)
    nn.init.normal_(text.position_embedding, std=0.01)
    for block in text.blocks:
        _init_text_block(block, model.config.text_dim, model.config.text_depth)
    nn.init.normal_(model.text_projection.weight, std=model.config.text_dim**-0.5)


def _init_attention(attention: Attention) -> None:
    """The defaults of PyTorch, whose attention starts without biases."""
    init_joint_projections(attention)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        nn.init.zeros_(projection.bias)


def _init_text_block(block: TransformerBlock, dim: int, depth: int) -> None:
    attention, mlp = block.attention, block.mlp
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        nn.init.normal_(projection.weight, std=dim**-0.5)
    for projection in (attention.out_proj, mlp.fc2):
        nn.init.normal_(projection.weight, std=dim**-0.5 * (2 * depth) ** -0.5)
    nn.init.normal_(mlp.fc1.weight, std=(2 * dim) ** -0.5)


# Sizes: CLIP, tables 19 and 20, and the shapes of the released files.
CLIP_VIT_B_32 = CLIPConfig()
CLIP_VIT_B_16 = replace(CLIP_VIT_B_32, patch_size=16)
CLIP_VIT_L_14 = CLIPConfig(
    patch_size=14,
    dim=1024,
    depth=24,
    num_heads=16,
    mlp_dim=4096,
    text_dim=768,
    text_num_heads=12,
    text_mlp_dim=3072,
    embed_dim=768,
)
CLIP_VIT_L_14_336 = replace(CLIP_VIT_L_14, image_size=336)

_TEXT_640 = {"text_dim": 640, "text_num_heads": 10, "text_mlp_dim": 2560}
_TEXT_768 = {"text_dim": 768, "text_num_heads": 12, "text_mlp_dim": 3072}
_TEXT_1024 = {"text_dim": 1024, "text_num_heads": 16, "text_mlp_dim": 4096}
CLIP_RN50 = CLIPConfig(stages=(3, 4, 6, 3), dim=64, embed_dim=1024)
CLIP_RN101 = CLIPConfig(stages=(3, 4, 23, 3), dim=64, embed_dim=512)
CLIP_RN50X4 = CLIPConfig(stages=(4, 6, 10, 6), dim=80, image_size=288, embed_dim=640, **_TEXT_640)
CLIP_RN50X16 = CLIPConfig(stages=(6, 8, 18, 8), dim=96, image_size=384, embed_dim=768, **_TEXT_768)
CLIP_RN50X64 = CLIPConfig(
    stages=(3, 15, 36, 10), dim=128, image_size=448, embed_dim=1024, **_TEXT_1024
)

# Ours, for small drawings. Captions are word pieces of mmlab.datasets.train_wordpiece, where [SEP]
# is token 3; give the vocabulary of your tokenizer:
# create_model("clip-mini", vocab_size=tokenizer.vocab_size).
_TEXT_MINI = {
    "vocab_size": 4096,
    "context_length": 16,
    "end_id": 3,
    "text_dim": 128,
    "text_depth": 2,
    "text_num_heads": 4,
    "text_mlp_dim": 512,
    "embed_dim": 128,
}
# A ResNet, because it learns from a few thousand drawings: see recipes/clip-mini.md.
CLIP_MINI = CLIPConfig(stages=(1, 1, 1, 1), dim=16, image_size=64, **_TEXT_MINI)
# Four convolutions see the drawings' details, so that nine patches are enough.
CLIP_VIT_MINI = CLIPConfig(
    image_size=48,
    patch_size=16,
    dim=256,
    depth=2,
    num_heads=4,
    mlp_dim=384,
    stem="conv",
    **_TEXT_MINI,
)


class CLIPPretraining(nn.Module):
    """A ``CLIP`` in training: each image finds its caption in the batch, each caption its image.

    ``network`` is the model. With several processes the batch is that of all of them.
    ``chunk_size`` rows of the table of similarities at a time save memory where the batch is very
    large.
    """

    def __init__(self, network: CLIP, chunk_size: int | None = None):
        super().__init__()
        self.network = network
        self.chunk_size = chunk_size

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss on ``batch["images"]`` (floats) and their captions, ``batch["input_ids"]``.

        Before anything else the scale is brought back to at most 100, where a step has taken it
        beyond: with the gradient, so that it may go down again.
        """
        self.network.clamp_scale()
        image_features = self.network.encode_image(batch["images"])
        text_features = self.network.encode_text(batch["input_ids"])
        scale = self.network.scale()
        loss = contrastive_loss(image_features, text_features, scale, self.chunk_size)
        return {"contrastive": loss}
