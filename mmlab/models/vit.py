"""ViT, the Vision Transformer, and DeiT, the same network trained on less data.

Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words" (arXiv 2010.11929);
Touvron et al. 2020, "Training data-efficient image transformers" (arXiv 2012.12877).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.models.checks import (
    check,
    check_choice,
    check_integers,
    check_multiple,
    check_positive,
    check_rates,
)
from mmlab.nn import (
    ACTIVATIONS,
    ConvStem,
    PatchEmbedding,
    TransformerBlock,
    conv_stem_widths,
    interpolate_positions,
    run_blocks,
    sincos_positions,
)

STEMS = {"linear": PatchEmbedding, "conv": ConvStem}


@dataclass(frozen=True)
class ViTConfig:
    """Everything that fixes the shape and the training behaviour of a ``ViT``.

    Sizes are in pixels (``image_size``, ``patch_size``) and vector entries (``dim``, ``mlp_dim``).

    - ``num_classes``: 0 leaves the head out; ``forward`` then returns image features.
    - ``pool``: the image is the ``"class_token"`` or the ``"average"`` of the patch tokens (no
      class token then).
    - ``pre_logits``: the hidden tanh layer that the paper puts before the head in pre-training.
    - ``distilled``: DeiT's second learned token, with a head of its own.
    - ``positions``: ``"learned"``, ``"sincos2d"`` (fixed) or ``"none"``.
    - ``activation``: ``"gelu"`` is exact, ``"gelu_tanh"`` the approximation of Google's code.
    - ``drop_path``: rate of the last block; it rises linearly from 0 over the depth.
    - ``stem``: ``"linear"`` patches or a ``"conv"`` stem (Xiao et al. 2021).
    - ``init``: ``"flax"`` as in Google's code, ``"trunc_normal"`` as in DeiT's.

    A wrong value raises ValueError.
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    pool: str = "class_token"
    pre_logits: bool = False
    distilled: bool = False
    positions: str = "learned"
    activation: str = "gelu"
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    stem: str = "linear"
    init: str = "flax"

    def __post_init__(self) -> None:
        check_integers(self, "image_size", "patch_size", "num_channels", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim")
        check_integers(self, "num_classes", minimum=0)
        check_rates(self, "dropout", "attention_dropout", "drop_path")
        check_choice(self, "pool", ("class_token", "average"))
        check_choice(self, "positions", ("learned", "sincos2d", "none"))
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "stem", tuple(STEMS))
        check_choice(self, "init", tuple(INITS))
        check_positive(self, "norm_eps")
        self._check_combinations()

    def _check_combinations(self) -> None:
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "dim", "num_heads")
        if self.stem == "conv":
            conv_stem_widths(self.patch_size, self.dim)
        if self.positions == "sincos2d":
            check(self.dim % 4 == 0, "dim", self.dim, "a multiple of 4 with positions='sincos2d'")
        if self.distilled:
            check(self.pool == "class_token", "pool", self.pool, "'class_token' with distilled")
            check(not self.pre_logits, "pre_logits", self.pre_logits, "False with distilled")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def num_patches(self) -> int:
        """``N`` in the paper."""
        return math.prod(self.grid)

    @property
    def num_prefix_tokens(self) -> int:
        """Learned tokens before the patches: class, then distillation."""
        return (self.pool == "class_token") + self.distilled

    @property
    def num_tokens(self) -> int:
        """Length of the sequence in the blocks."""
        return self.num_prefix_tokens + self.num_patches


class ViT(nn.Module):
    """Vision Transformer (ViT, equations 1 to 4).

    Images are floats, normalised as the weights expect (see ``mmlab.datasets.transforms``). Set
    ``model.activation_checkpointing = True`` to trade time for memory in training: the blocks are
    then recomputed during the backward pass. New weights come from PyTorch's global random state.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        stem = STEMS[config.stem]
        self.patch_embedding = stem(config.patch_size, config.dim, config.num_channels)
        self.class_token = self._new_token(config.pool == "class_token")
        self.distillation_token = self._new_token(config.distilled)
        self.position_embedding = self._new_positions()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(map(self._new_block, range(config.depth)))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.pre_logits = nn.Linear(config.dim, config.dim) if config.pre_logits else None
        self.head = self._new_head(config.num_classes > 0)
        self.distillation_head = self._new_head(config.num_classes > 0 and config.distilled)
        INITS[config.init](self)

    def _new_token(self, wanted: bool) -> nn.Parameter | None:
        return nn.Parameter(torch.zeros(1, 1, self.config.dim)) if wanted else None

    def _new_head(self, wanted: bool) -> nn.Linear | None:
        return nn.Linear(self.config.dim, self.config.num_classes) if wanted else None

    def _new_positions(self) -> nn.Parameter | None:
        config = self.config
        if config.positions == "none":
            return None
        if config.positions == "sincos2d":
            table = sincos_positions(config.grid, config.dim, config.num_prefix_tokens)
            return nn.Parameter(table, requires_grad=False)
        return nn.Parameter(torch.zeros(1, config.num_tokens, config.dim))

    def _new_block(self, index: int) -> TransformerBlock:
        config = self.config
        return TransformerBlock(
            config.dim,
            config.num_heads,
            config.mlp_dim,
            activation=config.activation,
            norm_eps=config.norm_eps,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            drop_path=config.drop_path * index / max(config.depth - 1, 1),
        )

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits; image features if there is no head.

        A distilled model averages the logits of its two heads, as DeiT does at inference; train it
        on ``forward_distilled``. ValueError if the images do not fit the configuration.
        """
        if self.distillation_head is not None:
            return torch.stack(self.forward_distilled(images)).mean(dim=0)
        features = self.encode_image(images)
        return features if self.head is None else self.head(features)

    def forward_distilled(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Logits of the class token and of the distillation token (DeiT, section 4).

        ValueError if the model has no distillation head.
        """
        if self.distillation_head is None:
            raise ValueError("this model has no distillation head; it needs distilled=True")
        tokens = self.forward_tokens(images)
        return self.head(tokens[:, 0]), self.distillation_head(tokens[:, 1])

    def encode_image(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Image features: the class token or the average token, through ``pre_logits`` if any."""
        tokens = self.forward_tokens(images)
        features = tokens[:, 0] if self.config.pool == "class_token" else tokens.mean(dim=1)
        return features if self.pre_logits is None else self.pre_logits(features).tanh()

    def forward_tokens(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """All tokens after the last norm: class, distillation (where they exist), patches."""
        return self.norm(self.run_blocks(self.embed(images)))

    def embed(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens that enter the first block (ViT, equation 1)."""
        self._check_images(images)
        learned = (self.class_token, self.distillation_token)
        prefix = [token.expand(len(images), -1, -1) for token in learned if token is not None]
        tokens = torch.cat([*prefix, self.patch_embedding(images)], dim=1)
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding
        return self.dropout(tokens)

    def run_blocks(
        self, tokens: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """All blocks, without the last norm (ViT, equations 2 and 3)."""
        return run_blocks(self.blocks, tokens, None, self.activation_checkpointing)

    def resize_positions(self, image_size: int, variant: str = "bilinear_aligned") -> ViT:
        """Take images of ``image_size`` pixels from now on; returns the model itself.

        Learned positions are interpolated (see ``mmlab.nn.interpolate_positions`` for the two
        variants: Google's ``"bilinear_aligned"``, DeiT's ``"bicubic"``); sine-cosine positions are
        computed anew. The table becomes a new parameter: call this before making an optimiser.
        """
        new = replace(self.config, image_size=image_size)
        if self.position_embedding is not None and new.grid != self.config.grid:
            table = self._resized_positions(new, variant)
            trainable = self.position_embedding.requires_grad
            self.position_embedding = nn.Parameter(table, requires_grad=trainable)
        self.config = new
        return self

    @torch.no_grad()
    def _resized_positions(self, new: ViTConfig, variant: str) -> Float[Tensor, "1 tokens dim"]:
        table, old = self.position_embedding, self.config
        if new.positions == "sincos2d":
            return sincos_positions(new.grid, new.dim, new.num_prefix_tokens).to(table)
        return interpolate_positions(table, old.grid, new.grid, variant, new.num_prefix_tokens)

    def _check_images(self, images: Tensor) -> None:
        config = self.config
        size = config.image_size
        if not images.is_floating_point():
            raise ValueError(
                f"images must be floating point, got {images.dtype}; convert and normalise them "
                "with mmlab.datasets.transforms first"
            )
        if images.ndim != 4 or images.shape[1] != config.num_channels:
            raise ValueError(
                f"images must have shape (batch, {config.num_channels}, {size}, {size}), "
                f"got {tuple(images.shape)}"
            )
        if images.shape[-2:] != (size, size):
            height, width = images.shape[-2:]
            raise ValueError(
                f"images must have {size} x {size} pixels for this model, got {height} x {width}; "
                "resize the images, or the model with model.resize_positions(image_size)"
            )


def tokens_of_each(
    encoder: ViT, images: Float[Tensor, "batch ..."], num_images: int
) -> tuple[Float[Tensor, "batch tokens dim"], ...]:
    """The tokens of each of the ``num_images`` images of a row.

    ``images`` is (batch, channels, height, width), with several images (batch, ``num_images``,
    channels, height, width); else ValueError.
    """
    if num_images == 1:
        return (encoder.forward_tokens(images),)
    if images.ndim != 5 or images.shape[1] != num_images:
        raise ValueError(
            f"images must have shape (batch, {num_images}, channels, height, width), "
            f"got {tuple(images.shape)}"
        )
    tokens = encoder.forward_tokens(images.flatten(0, 1))
    return tokens.unflatten(0, images.shape[:2]).unbind(1)


def _init_flax(model: ViT) -> None:
    """Initialisation of google-research/vision_transformer (``models_vit.py``).

    The class token and the heads stay zero, so the first loss is exactly ``ln(num_classes)``.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _lecun_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for block in model.blocks:
        nn.init.normal_(block.mlp.fc1.bias, std=1e-6)
        nn.init.normal_(block.mlp.fc2.bias, std=1e-6)
    if model.pre_logits is not None:
        _lecun_normal_(model.pre_logits.weight)
    if model.config.positions == "learned":
        nn.init.normal_(model.position_embedding, std=0.02)
    for head in (model.head, model.distillation_head):
        if head is not None:
            nn.init.zeros_(head.weight)


def _lecun_normal_(weight: Tensor) -> None:
    """Variance 1 / fan-in, cut at two standard deviations and widened for it, as Flax does."""
    std = 1 / (math.sqrt(weight[0].numel()) * 0.87962566103423978)
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _init_trunc_normal(model: ViT) -> None:
    """Initialisation of facebookresearch/deit; convolutions keep PyTorch's default, as there."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    tokens = [model.class_token, model.distillation_token]
    if model.config.positions == "learned":
        tokens.append(model.position_embedding)
    for token in tokens:
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)


INITS = {"flax": _init_flax, "trunc_normal": _init_trunc_normal}

# Sizes: ViT, table 1; Ti and S from DeiT, table 1, and "How to train your ViT" (2106.10270).
VIT_TI_16 = ViTConfig(dim=192, depth=12, num_heads=3, mlp_dim=768)
VIT_S_16 = ViTConfig(dim=384, depth=12, num_heads=6, mlp_dim=1536)
VIT_S_32 = replace(VIT_S_16, patch_size=32)
VIT_B_16 = ViTConfig(dim=768, depth=12, num_heads=12, mlp_dim=3072)
VIT_B_8 = replace(VIT_B_16, patch_size=8)
VIT_B_32 = replace(VIT_B_16, patch_size=32)
VIT_L_16 = ViTConfig(dim=1024, depth=24, num_heads=16, mlp_dim=4096)
VIT_L_32 = replace(VIT_L_16, patch_size=32)
VIT_H_14 = ViTConfig(patch_size=14, dim=1280, depth=32, num_heads=16, mlp_dim=5120)

# DeiT trains with stochastic depth 0.1 and no dropout.
DEIT_TI_16 = replace(VIT_TI_16, init="trunc_normal", drop_path=0.1)
DEIT_S_16 = replace(VIT_S_16, init="trunc_normal", drop_path=0.1)
DEIT_B_16 = replace(VIT_B_16, init="trunc_normal", drop_path=0.1)
DEIT_TI_16_DISTILLED = replace(DEIT_TI_16, distilled=True)
DEIT_S_16_DISTILLED = replace(DEIT_S_16, distilled=True)
DEIT_B_16_DISTILLED = replace(DEIT_B_16, distilled=True)

# Ours: trains from scratch in under a minute on two CPU cores, on 48-pixel images.
VIT_MINI = ViTConfig(
    image_size=48,
    patch_size=8,
    dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    num_classes=10,
    stem="conv",
)


class ViTClassification(nn.Module):
    """A ``ViT`` in supervised training: cross-entropy of its logits (ViT, section 4.1).

    ``label_smoothing`` spreads that share of each label evenly over all classes (Szegedy et al.
    2016, section 7). ``network`` is the model; there is nothing else to keep.
    """

    def __init__(self, network: ViT, label_smoothing: float = 0.0):
        super().__init__()
        self.network = network
        self.label_smoothing = label_smoothing

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of ``batch["images"]`` (floats) under ``batch["labels"]`` (class numbers)."""
        logits = self.network(batch["images"])
        smoothing = self.label_smoothing
        loss = F.cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
        return {"cross_entropy": loss}
