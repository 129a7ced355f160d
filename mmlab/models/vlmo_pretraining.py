"""How VLMo is pretrained: images first, then texts, then pairs of both.

Bao et al. 2021 (arXiv 2111.02358), section 3. Of the stage that learns from texts alone
the paper says that attention and vision expert stay as the images left them. The released code
(microsoft/unilm, ``vlmo``) forgets it: nothing there is ever frozen. Here each stage freezes what
it should not change.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.models.checks import check
from mmlab.models.vilt import masked_words_of, mean_shades
from mmlab.models.vlmo import VLMo, VLMoPaths
from mmlab.nn import valid_tokens
from mmlab.objectives.global_contrast import GlobalContrast, gather_own_first, global_contrast
from mmlab.objectives.masked_language import (
    IGNORED,
    MaskedTokens,
    masked_language_loss,
    share_masked_loss,
)
from mmlab.objectives.matching import PairMatching, sample_negative_pairs

STAGES = ("vision", "language", "pairs")
MASKED_SHARE = 0.4
"""How many patches are to be predicted (BEiT, section 2.3)."""
WORDS_WEIGHT = 0.25
"""Of masked words beside contrast and matching; in the official code only."""

_TRAINED = {
    "vision": r"(class_token|mask_token|position_embedding|heads\.codes\..*"
    r"|(patch_embedding|position_bias|modality_embedding|norm)\..*"
    r"|blocks\.\d+\.(norm1|attention|gamma[12]|experts\.image)\b.*)",
    "language": r"((text_embeddings|position_bias|heads\.words|blocks\.\d+\.experts\.text)\..*)",
    "pairs": r"(?!mask_token|heads\.codes\.).*",
}


# From stage to stage.


def trained_in(model: VLMo, stage: str) -> list[str]:
    """Names of the parameters that learn in a stage, one of ``STAGES``; all others are frozen.

    - ``"vision"``: what an image passes through, and the codes head.
    - ``"language"``: the text experts, the word embeddings, the words head, and the table of
      relative positions, of which a text reaches only rows of its own. Attention, the norms that
      all modalities share, layer scales and modality rows are frozen, so that an image's features
      stay what they are. The paper names attention and vision expert alone; the rest follows from
      that aim.
    - ``"pairs"``: everything but what only ``"vision"`` needs.

    The text's position table never learns where positions are relative. ValueError for another
    stage.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(map(repr, STAGES))}, got {stage!r}")
    unused = "text_embeddings.position_embedding.weight" if model.position_bias is not None else ""
    names = (name for name, _ in model.named_parameters())
    return [name for name in names if re.fullmatch(_TRAINED[stage], name) and name != unused]


def freeze_for(model: VLMo, stage: str) -> VLMo:
    """Let only the parameters of ``trained_in`` learn from now on; returns the model itself.

    Call it before making an optimiser. The rows of the relative position table that belong to
    images get a zero gradient in the stage ``"language"``; they stay as they are if the optimiser
    is new and does not let the table decay, as ``mmlab.training`` and the official code don't.
    """
    trained = set(trained_in(model, stage))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


@torch.no_grad()
def continue_vlmo(model: VLMo, **changes: object) -> VLMo:
    """A model for the next stage or a task: ``model`` with ``changes`` to its configuration.

    Everything that has a place in it is taken over; new heads and fusion experts are fresh. With
    another ``context_length`` the text's position table is cut, or gets fresh rows at its end; a
    second image starts with the modality row of the first; for another ``image_size`` positions are
    interpolated. ValueError where the two differ in anything else.
    """
    fresh = VLMo(replace(model.config, **changes))
    if fresh.config.image_size != model.config.image_size:
        model = copy.deepcopy(model).resize_positions(fresh.config.image_size)
    state, own = dict(model.state_dict()), fresh.state_dict()
    _fit_rows(state, own)
    fitting = {key for key in own.keys() & state.keys() if own[key].shape == state[key].shape}
    others = (own.keys() | state.keys()) - fitting
    exchangeable = re.compile(r"heads\..*|mask_token|blocks\.\d+\.experts\.fusion\..*")
    unfit = sorted(key for key in others if not exchangeable.match(key))
    if unfit:
        raise ValueError(f"the two VLMos must have the same trunk; they differ in {unfit[0]!r}")
    fresh.load_state_dict(own | {key: state[key] for key in fitting})
    return fresh


def _fit_rows(state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    places, modalities = "text_embeddings.position_embedding.weight", "modality_embedding.weight"
    old, new = state[places], own[places]
    state[places] = torch.cat([old[: len(new)], new[len(old) :]])
    rows = state[modalities]
    state[modalities] = torch.cat([rows, rows[1:2].expand(len(own[modalities]), -1)])
    state[modalities] = state[modalities][: len(own[modalities])]


# The three stages.


class VLMoVisionPretraining(nn.Module):
    """A ``VLMo`` learning from images alone: masked image modelling as in BEiT.

    VLMo's authors take a BEiT for this stage (section 3). BEiT (Bao et al. 2021, arXiv
    2106.08254) predicts the codes that a trained tokenizer gives to masked patches, drawn in
    blocks; a batch may bring both. Without them, codes are those of ``color_codes`` and each patch
    is masked with the same probability. ``network`` needs a codes head; all that an image does not
    pass through is frozen. Draws come from ``generator``, or from PyTorch's global random state.
    """

    def __init__(self, network: VLMo, generator: torch.Generator | None = None):
        super().__init__()
        network.head("codes")
        self.network = freeze_for(network, "vision")
        self.generator = generator

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the codes of masked patches.

        ``batch`` has ``"images"`` and, if they are not to be drawn and computed,
        ``"masked_patches"`` (True where the patch is hidden) and ``"codes"``, both (batch,
        patches).
        """
        network, images = self.network, batch["images"]
        config = network.config
        codes = batch.get("codes")
        if codes is None:
            codes = color_codes(images, config.patch_size, config.num_codes)
        masked = batch.get("masked_patches")
        if masked is None:
            masked = self._draw(codes) < MASKED_SHARE
        tokens = network.image_paths(images, masked, fused=False).tokens
        labels = torch.where(masked, codes, IGNORED)
        loss = masked_language_loss(network.code_logits(tokens), labels)
        return share_masked_loss({"masked_patches": loss}, batch)

    def _draw(self, like: Tensor) -> Float[Tensor, "batch patches"]:
        own = like.device if self.generator is None else self.generator.device
        return torch.rand(like.shape, generator=self.generator, device=own).to(like.device)


def color_codes(
    images: Float[Tensor, "batch channels height width"], patch_size: int, num_codes: int
) -> Int64[Tensor, "batch patches"]:
    """A code for each patch that needs no tokenizer: its mean color, coarsely.

    Each of ``channels`` has ``num_codes ** (1 / channels)`` levels; ValueError if that is no whole
    number. Images are normalised with 0.5 and 0.5.
    """
    channels = images.shape[1]
    levels = round(num_codes ** (1 / channels))
    allowed = f"a whole number to the power of {channels} channels"
    check(levels**channels == num_codes, "num_codes", num_codes, allowed)
    digits = mean_shades(images, patch_size) * levels // 256
    weights = levels ** torch.arange(channels, device=images.device)
    return (digits * weights).sum(-1)


class VLMoLanguagePretraining(nn.Module):
    """A ``VLMo`` learning from texts alone: masked words (VLMo, section 3).

    Attention stays as images have formed it (see ``trained_in``), which the released code forgets:
    ``freeze=False`` trains everything, as it does. ``mask_id`` is the number of the tokenizer's
    mask token (103 in BERT's vocabulary). Masks are drawn from ``generator``, or from PyTorch's
    global random state. ValueError without a words head, or for a ``mask_id`` beyond the
    vocabulary.
    """

    def __init__(
        self,
        network: VLMo,
        mask_id: int = 103,
        freeze: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        network.head("words")
        _check_mask_id(network, mask_id)
        self.network = freeze_for(network, "language" if freeze else "pairs")
        self.mask_id, self.generator = mask_id, generator

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of masked words.

        ``batch`` has ``"input_ids"``, ``"attention_mask"`` where texts are padded with anything but
        0, and ``"word_ids"``, with which whole words are masked; or ``"masked_ids"`` and
        ``"labels"``.
        """
        network = self.network
        masked = masked_words_of(batch, self.mask_id, network.config.vocab_size, self.generator)
        tokens = network.text_paths(masked.ids, _valid(batch), fused=False).tokens
        loss = masked_language_loss(network.word_logits(tokens), masked.labels)
        return share_masked_loss({"masked_words": loss}, batch)


class VLMoWords(NamedTuple):
    """One step's masked text, read together with its image."""

    masked: MaskedTokens
    logits: Float[Tensor, "batch tokens vocab"]

    def loss(self) -> Float[Tensor, ""]:
        """A quarter of the cross-entropy."""
        return WORDS_WEIGHT * masked_language_loss(self.logits, self.masked.labels)


class VLMoStep(NamedTuple):
    """All that one step computes; ``fusion_contrast`` is None in a model without that head."""

    images: VLMoPaths
    texts: VLMoPaths
    contrast: GlobalContrast
    fusion_contrast: GlobalContrast | None
    matching: PairMatching
    words: VLMoWords

    def losses(self) -> dict[str, Tensor]:
        """The losses by name; their sum is the loss."""
        contrasts = [c for c in (self.contrast, self.fusion_contrast) if c is not None]
        contrastive = sum(contrast.loss() for contrast in contrasts) / len(contrasts)
        return {
            "contrastive": contrastive,
            "matching": self.matching.loss(),
            "masked_words": self.words.loss(),
        }


class VLMoPretraining(nn.Module):
    """A ``VLMo`` learning from pairs (VLMo, section 3); ``network`` is the model.

    Everything learns. ``mask_id`` is the number of the tokenizer's mask token. Every random choice
    is drawn from ``generator``, or from PyTorch's global random state. ValueError if the network
    lacks one of the heads ``"contrast"``, ``"match"`` and ``"words"``, or for a ``mask_id`` beyond
    the vocabulary.
    """

    def __init__(self, network: VLMo, mask_id: int = 103, generator: torch.Generator | None = None):
        super().__init__()
        for head in ("contrast", "match", "words"):
            network.head(head)
        _check_mask_id(network, mask_id)
        self.network = freeze_for(network, "pairs")
        self.mask_id, self.generator = mask_id, generator

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Contrast of two kinds, matching with hard negatives of all processes, masked words.

        ``batch`` has ``"images"``, ``"input_ids"``, ``"attention_mask"`` where texts are padded
        with anything but 0, and ``"word_ids"``, with which whole words are masked. What is
        otherwise drawn may be given: ``"negative_images"`` (for each text) and ``"negative_texts"``
        (for each image) are rows of the batch of all processes, this process's first;
        ``"masked_ids"`` and ``"labels"`` are the masked text.

        Processes average gradients as ``mmlab.objectives.global_contrast`` says: the contrast's are
        1/W of the true ones, as in the official code.
        """
        return share_masked_loss(self.step(batch).losses(), batch)

    def step(self, batch: dict[str, Tensor]) -> VLMoStep:
        """All that ``losses`` computes, in the order of the paper."""
        by_experts = "fusion_contrast" in self.network.heads
        images = self.network.image_paths(batch["images"], fused=by_experts)
        valid = batch.get("attention_mask")
        texts = self.network.text_paths(batch["input_ids"], valid, fused=by_experts)
        contrast = self._contrast(images.tokens, texts.tokens, "contrast")
        fusion = (
            self._contrast(images.fused, texts.fused, "fusion_contrast") if by_experts else None
        )
        matching, words = self._match(batch, contrast), self._predict_words(batch)
        return VLMoStep(images, texts, contrast, fusion, matching, words)

    def _contrast(
        self,
        images: Float[Tensor, "batch image_tokens dim"],
        texts: Float[Tensor, "batch text_tokens dim"],
        head: str,
    ) -> GlobalContrast:
        network = self.network
        features = network.image_features(images, head), network.text_features(texts, head)
        return global_contrast(*features, network.scale(head))

    def _match(self, batch: dict[str, Tensor], contrast: GlobalContrast) -> PairMatching:
        """The true pairs, and as many false ones of either kind, read together.

        Wrong images and texts come from all processes, as pixels and token numbers: without a
        gradient to whoever holds them.
        """
        images, ids, valid = batch["images"], *self._padded(batch)
        wrong_images, wrong_texts = self._negatives(batch, contrast)
        all_ids, all_valid = gather_own_first(ids), gather_own_first(valid.long()).bool()
        features = self.network(
            torch.cat([ids, ids, all_ids[wrong_texts]]),
            torch.cat([images, gather_own_first(images)[wrong_images], images]),
            torch.cat([valid, valid, all_valid[wrong_texts]]),
        )
        logits = self.network.matching_logits(features)
        return PairMatching(wrong_images, wrong_texts, features.text, logits)

    def _negatives(
        self, batch: dict[str, Tensor], contrast: GlobalContrast
    ) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
        """A wrong image for each text, then a wrong text for each image, drawn by similarity."""
        if "negative_images" in batch:
            return batch["negative_images"], batch["negative_texts"]
        to_images = contrast.text_to_image[: contrast.own]
        to_texts = contrast.image_to_text[: contrast.own]
        return sample_negative_pairs(to_images, to_texts, contrast.belongs, self.generator)

    def _padded(
        self, batch: dict[str, Tensor]
    ) -> tuple[Int64[Tensor, "batch longest"], Bool[Tensor, "batch longest"]]:
        """Token numbers and what is valid of them, as long in every process."""
        ids, valid = batch["input_ids"], _valid(batch)
        more = (0, self.network.config.context_length - ids.shape[1])
        return F.pad(ids, more), F.pad(valid, more)

    def _predict_words(self, batch: dict[str, Tensor]) -> VLMoWords:
        network = self.network
        masked = masked_words_of(batch, self.mask_id, network.config.vocab_size, self.generator)
        features = network(masked.ids, batch["images"], _valid(batch))
        return VLMoWords(masked, network.word_logits(features.text))


def _valid(batch: dict[str, Tensor]) -> Bool[Tensor, "batch tokens"]:
    return valid_tokens(batch["input_ids"], batch.get("attention_mask"))


def _check_mask_id(network: VLMo, mask_id: int) -> None:
    below = f"from 0 to below vocab_size={network.config.vocab_size}"
    check(0 <= mask_id < network.config.vocab_size, "mask_id", mask_id, below)
