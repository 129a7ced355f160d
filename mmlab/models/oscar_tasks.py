"""OSCAR and VinVL after pre-training: questions, statements about two images, retrieval, captions.

Li et al. 2020 (arXiv 2004.06165), section 4; the losses and the way captions are written as in
microsoft/Oscar (``oscar/run_*.py``, ``oscar/modeling/modeling_bert.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from mmlab.models.checks import check, check_rates
from mmlab.models.oscar import (
    MASKED_SHARE,
    VISIBLE,
    Oscar,
    TaggedText,
    Words,
    append_tags,
    batch_features,
    caption_mask,
    join_texts,
    lesson_regions,
    part_mask,
    special_tokens,
    tagged_text,
    text_entries,
    words_of_text,
)
from mmlab.nn import AttentionMask, JointFeatures, PostNormBlock, beam_search, causal_mask
from mmlab.nn.attention import KeysAndValues
from mmlab.objectives.masked_language import IGNORED, hide_tokens

CAPTION_LENGTH = 40
"""Places that a caption has before the tags begin, [CLS] and [SEP] among them."""

MOST_MASKED = 3


def oscar_with(model: Oscar, **changes: object) -> Oscar:
    """The same trunk with other heads: for fine-tuning, or for a third contrast class.

    ``changes`` are fields of the configuration. Heads that both have start with the weights of
    ``model``, others are fresh; so is a head whose size has changed. The official loader forgives
    exactly one such thing, two rows of the contrastive head in an old file where the new model has
    three: ``oscar_with(create_model("oscar-b", pretrained=…), num_contrast_classes=3)``.
    ValueError for a wrong field, or if anything but the heads would change its shape.
    """
    fresh = Oscar(replace(model.config, **changes))
    start_from_oscar(fresh, model)
    return fresh.train(model.training)


@torch.no_grad()
def start_from_oscar(model: Oscar, pretrained: Oscar) -> None:
    """Give ``model`` the weights of a pretrained Oscar, with those heads that both have alike.

    ValueError if anything but the heads is of another shape.
    """
    own, theirs = model.state_dict(), pretrained.state_dict()
    alike = {key for key in own.keys() & theirs.keys() if own[key].shape == theirs[key].shape}
    unfit = sorted(key for key in own.keys() ^ theirs.keys() if not key.startswith("heads."))
    unfit += sorted(key for key in own.keys() & theirs.keys() - alike if "heads." not in key)
    if unfit:
        raise ValueError(f"the two Oscars must have the same shape; they differ in {unfit[0]!r}")
    # A head is taken whole or not at all: half of one would be worth nothing.
    broken = {_head_of(key) for key in (own.keys() | theirs.keys()) - alike}
    taken = {key for key in alike if _head_of(key) is None or _head_of(key) not in broken}
    model.load_state_dict(own | {key: theirs[key] for key in taken})


def _head_of(key: str) -> str | None:
    return key.split(".")[1] if key.startswith("heads.") else None


class OscarQuestionAnswering(nn.Module):
    """An ``Oscar`` with an ``"answer"`` head learning to answer questions (VQA, GQA)."""

    def __init__(self, network: Oscar):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy with ``"scores"``, how right each answer is (0 to 1), summed: VQA.

        Or cross-entropy of ``"answers"``, the number of the right answer, where there are no
        scores: GQA. The text is the question, ``"input_ids"`` and ``"attention_mask"``; the tags
        stand behind it already (with ``"token_types"``), or are ``"tag_ids"`` and ``"tag_mask"``.
        """
        logits = self.network.answer_logits(batch_features(self.network, batch))
        if "scores" not in batch:
            return {"answers": F.cross_entropy(logits, batch["answers"])}
        scores = batch["scores"]
        loss = F.binary_cross_entropy_with_logits(logits, scores) * scores.shape[1]
        return {"answers": loss}


class OscarReasoning(nn.Module):
    """An ``Oscar`` for pairs of images: is the text true of them? (NLVR2)."""

    def __init__(self, network: Oscar):
        super().__init__()
        network.head("answer")
        self.network = network

    def logits(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch classes"]:
        """Every entry has the images as second axis, also the text: each image has its own tags.

        Each image is a forward pass of its own; the classifier sees both [CLS] in a row.
        """
        count = self.network.config.num_images
        parts = [{key: t[:, image] for key, t in batch.items()} for image in range(count)]
        features = [batch_features(self.network, part) for part in parts]
        return self.network.answer_logits(*features)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``; the rest of ``batch`` as in ``logits``."""
        inputs = {key: t for key, t in batch.items() if key != "labels"}
        return {"answers": F.cross_entropy(self.logits(inputs), batch["labels"])}


# Retrieval


def oscar_retrieval_lesson(
    pairs: Mapping[str, Tensor],
    generator: torch.Generator,
    context_length: int | None = None,
) -> dict[str, Tensor]:
    """Every pair beside a false one, for ``OscarRetrieval``: entries have shape (batch, 2, …).

    A false pair has a wrong caption or, as often, a wrong image with the tags of that image
    (``RetrievalDataset``). ``"labels"`` are 1 for true pairs: the other way round than in
    pretraining.
    """
    wrong_caption = torch.rand(len(pairs["input_ids"]), generator=generator) < 0.5
    other_regions = lesson_regions(pairs, "other_")
    text = pairs["input_ids"], pairs["attention_mask"]
    tags = pairs["tag_ids"], pairs["tag_mask"]
    other_text = pairs["other_ids"], pairs["other_mask"]
    other_tags = pairs["other_tag_ids"], pairs["other_tag_mask"]
    true, false_text, false_image = (
        append_tags(*words, *labels, context_length)
        for words, labels in ((text, tags), (other_text, tags), (text, other_tags))
    )
    own = text_entries(true) | lesson_regions(pairs)
    wrong_text = text_entries(false_text) | lesson_regions(pairs)
    wrong_image = text_entries(false_image) | other_regions
    lesson = {}
    for key in own:
        first, left, right = _same_width(own[key], wrong_text[key], wrong_image[key])
        rows = wrong_caption.reshape(-1, *(1,) * (first.ndim - 1))
        lesson[key] = torch.stack([first, torch.where(rows, left, right)], dim=1)
    labels = torch.tensor([1, 0]).expand(len(wrong_caption), 2)
    return lesson | {"labels": labels.clone()}


def _same_width(*tensors: Tensor) -> list[Tensor]:
    """Zeros behind the second axis."""
    width = max(t.shape[1] for t in tensors)
    return [F.pad(t, (0, 0) * (t.ndim - 2) + (0, width - t.shape[1])) for t in tensors]


class OscarRetrieval(nn.Module):
    """An ``Oscar`` that tells true pairs from false ones: an ``"answer"`` head with two classes.

    ``visible`` says which of caption, tags and regions see each other, see ``part_mask``.
    ValueError for another number of classes or another ``visible``.
    """

    def __init__(self, network: Oscar, visible: str = "CLR"):
        super().__init__()
        network.head("answer")
        count = network.config.num_classes
        check(count == 2, "num_classes", count, "2 for retrieval")
        check(visible in VISIBLE, "visible", visible, "one of " + ", ".join(map(repr, VISIBLE)))
        self.network = network
        self.visible = visible

    def logits(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "pairs 2"]:
        """Output 1 is for "the text fits the image"; its probability is the score to rank by."""
        mask = None if self.visible == "CLR" else self._mask(batch)
        return self.network.answer_logits(batch_features(self.network, batch, mask))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``, mean over true and false pairs alike.

        ``batch`` is that of ``oscar_retrieval_lesson``.
        """
        flat = {key: t.flatten(0, 1) for key, t in batch.items()}
        return {"matching": F.cross_entropy(self.logits(flat), flat["labels"])}

    def _mask(self, batch: Mapping[str, Tensor]) -> AttentionMask:
        text = tagged_text(batch, self.network.config.context_length)
        return part_mask(*_parts(text), batch["region_valid"].bool(), self.visible)


def _parts(text: TaggedText) -> tuple[Bool[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Which tokens are caption, which are tags."""
    return text.valid & (text.types == 0), text.valid & (text.types == 1)


# Captions


def oscar_caption_lesson(
    pairs: Mapping[str, Tensor],
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator,
    *,
    caption_length: int = CAPTION_LENGTH,
    context_length: int | None = None,
    most_masked: int = MOST_MASKED,
) -> dict[str, Tensor]:
    """One batch for ``OscarCaptioning``.

    A caption fills ``caption_length`` places with padding, so that tags always begin at the same
    position. Of each caption 15 % of the tokens are hidden, at least one and at most
    ``most_masked``; never [CLS], but [SEP] as any word: so the model learns where to end.
    """
    text = caption_with_tags(
        *(pairs[key] for key in ("input_ids", "attention_mask", "tag_ids", "tag_mask")),
        caption_length,
        context_length,
    )
    caption, _ = _parts(text)
    chosen = choose_caption_tokens(caption, most_masked, generator)
    masked = hide_tokens(text.ids, chosen, mask_id, vocab_size, generator)
    return {
        **text_entries(text._replace(ids=masked.ids)),
        "labels": masked.labels,
        **lesson_regions(pairs),
    }


def caption_with_tags(
    input_ids: Int64[Tensor, "batch tokens"],
    text_valid: Bool[Tensor, "batch tokens"],
    tag_ids: Int64[Tensor, "batch tags"],
    tag_valid: Bool[Tensor, "batch tags"],
    caption_length: int = CAPTION_LENGTH,
    context_length: int | None = None,
) -> TaggedText:
    """``[CLS] words [SEP]``, padding up to ``caption_length``, then ``tags [SEP]`` and padding.

    Either part is cut at its own end (``CaptionTensorizer``), the whole at ``context_length``.
    """
    cls_ids, sep_ids = special_tokens(input_ids, text_valid)
    words = words_of_text(input_ids, text_valid)
    nothing = Words(words.ids[:, :0], words.valid[:, :0])
    caption = join_texts(words, nothing, cls_ids, sep_ids, caption_length)
    caption = TaggedText(*(F.pad(t, (0, caption_length - t.shape[1])) for t in caption))
    room = None if context_length is None else context_length - caption_length
    ids, valid = closed_tags(tag_ids, tag_valid, sep_ids, room)
    tags = TaggedText(ids, valid, valid.long())
    return TaggedText(*(torch.cat(both, dim=1) for both in zip(caption, tags, strict=True)))


def closed_tags(
    tag_ids: Int64[Tensor, "batch tags"],
    tag_valid: Bool[Tensor, "batch tags"],
    sep_ids: Int64[Tensor, " batch"],
    longest: int | None = None,
) -> Words:
    """Tags with a [SEP] behind them, at most ``longest`` tokens; a row without tags stays empty."""
    count = tag_valid.sum(1, keepdim=True)
    if longest is not None:
        count = count.clamp(max=longest - 1)
    place = torch.arange(tag_ids.shape[1] + 1, device=tag_ids.device)
    ids = F.pad(tag_ids, (0, 1)) * (place < count)
    ids = torch.where((place == count) & (count > 0), sep_ids[:, None], ids)
    width = int((count + (count > 0)).max())
    return Words(ids[:, :width], ((place <= count) & (count > 0))[:, :width])


def choose_caption_tokens(
    caption: Bool[Tensor, "batch tokens"],
    most_masked: int = MOST_MASKED,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "batch tokens"]:
    """A fixed number in each row, drawn from all caption tokens but the first.

    The number is 15 % of all, rounded, at least 1 and at most ``most_masked``.
    """
    count = (MASKED_SHARE * caption.sum(1).double()).round().clamp(1, most_masked)
    drawn = torch.rand(caption.shape, generator=generator).to(caption.device)
    luck = drawn.masked_fill(~caption, 2.0)
    luck[:, 0] = 2.0
    return (luck.argsort(1).argsort(1) < count[:, None]) & (luck < 1)


class OscarCaptioning(nn.Module):
    """An ``Oscar`` with a ``"words"`` head learning to write captions.

    It fills in masked words that see only the words before them (``caption_mask``). VinVL has a
    ``label_smoothing`` of 0.1 and, after 20 000 steps, sets ``drop_worst`` to 0.2: the share of the
    masked words with the greatest losses that is left out. ValueError for a wrong share.
    """

    def __init__(self, network: Oscar, label_smoothing: float = 0.0, drop_worst: float = 0.0):
        super().__init__()
        network.head("words")
        self.network = network
        self.label_smoothing, self.drop_worst = label_smoothing, drop_worst
        check_rates(self, "label_smoothing", "drop_worst")

    def logits(self, batch: Mapping[str, Tensor]) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of words at each token of the text."""
        return self.network.word_logits(self._features(batch))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the masked words; ``batch`` is that of ``oscar_caption_lesson``."""
        asked = batch["labels"] != IGNORED
        logits = self.network.words_at(self._features(batch).text[asked])
        targets, options = batch["labels"][asked], (self.label_smoothing, self.drop_worst)
        return {"masked_words": captioning_loss(logits, targets, *options)}

    def _features(self, batch: Mapping[str, Tensor]) -> JointFeatures:
        mask = caption_mask(*_parts(tagged_text(batch)), batch["region_valid"].bool())
        return batch_features(self.network, batch, mask)


def captioning_loss(
    logits: Float[Tensor, "words vocab"],
    targets: Int64[Tensor, " words"],
    label_smoothing: float = 0.0,
    drop_worst: float = 0.0,
) -> Float[Tensor, ""]:
    """KL divergence from the smoothed target to the model's guess (``BertCaptioningLoss``).

    The true word has ``1 - label_smoothing``; what is taken from it is shared by all *other* words,
    which is not quite PyTorch's smoothing. Without smoothing it is the cross-entropy. The mean is
    over those that ``drop_worst`` leaves; 0 if there are none.
    """
    log_p = logits.float().log_softmax(-1)
    right = log_p.gather(1, targets[:, None])[:, 0]
    share = label_smoothing / (logits.shape[-1] - 1)
    losses = -(1 - label_smoothing) * right - share * (log_p.sum(-1) - right)
    if label_smoothing:
        # The entropy of the target, a constant that makes the best loss 0.
        entropy = (1 - label_smoothing) * math.log(1 - label_smoothing)
        losses = losses + entropy + label_smoothing * math.log(share)
    if drop_worst:
        losses = losses.topk(int(len(losses) * (1 - drop_worst)), largest=False).values
    return losses.sum() / max(1, len(losses))


class OscarWriting:
    """An ``Oscar`` in the middle of writing captions; see ``mmlab.nn.decoding``.

    To ask for the next word it puts [MASK] behind what is written: the network has learnt to fill
    in masks, not to look ahead. Tags and regions are encoded once, for they do not see the caption.
    ``sep_ids`` close the tags, which begin at position ``tags_start``, as they did in training.

    Kept are keys and values of all layers. The official code (``history_state``) keeps the layers'
    inputs and projects them anew at every step, which gives the same numbers.
    """

    def __init__(
        self,
        network: Oscar,
        tag_ids: Int64[Tensor, "rows tags"],
        tag_valid: Bool[Tensor, "rows tags"],
        features: Float[Tensor, "rows regions feature_dim"],
        locations: Float[Tensor, "rows regions 6"],
        region_valid: Bool[Tensor, "rows regions"],
        sep_ids: Int64[Tensor, " rows"],
        mask_id: int,
        tags_start: int = CAPTION_LENGTH,
    ):
        network.head("words")
        self.network, self.mask_id, self.length = network, mask_id, 0
        tags = closed_tags(tag_ids, tag_valid, sep_ids)
        text = network.embeddings(tags.ids, tags.valid.long(), start=tags_start)
        context = torch.cat([text, network.embed_regions(features, locations)], dim=1)
        self.context_valid = torch.cat([tags.valid, region_valid.bool()], dim=1)[:, None, None]
        self.past: list[KeysAndValues | None] = [None] * len(network.trunk.blocks)
        self._encode(context, self.context_valid, kept=context.shape[1])

    def next(self, ids: Int[Tensor, "rows new_tokens"]) -> Float[Tensor, "rows vocab"]:
        """Scores of the word after ``ids``, which come after all that it was given before."""
        new = F.pad(ids, (0, 1), value=self.mask_id)
        tokens = self.network.embeddings(new, start=self.length)
        seen = causal_mask(self.length + new.shape[1], ids.device)[:, :, -new.shape[1] :]
        context = self.context_valid.expand(-1, -1, new.shape[1], -1)
        mask = torch.cat([context, seen.expand(len(ids), -1, -1, -1)], dim=-1)
        self.length += ids.shape[1]
        # The [MASK] is forgotten: the word that takes its place is read at the next step.
        tokens = self._encode(tokens, mask, kept=context.shape[-1] + self.length)
        return self.network.words_at(tokens[:, -1])

    def repeat(self, times: int) -> None:
        """Each row ``times`` times, next to each other."""
        valid = self.context_valid
        rows = torch.arange(len(valid), device=valid.device).repeat_interleave(times)
        self.context_valid = valid[rows]
        self.select(rows)

    def select(self, rows: Int64[Tensor, " rows"]) -> None:
        """Go on from these rows; each must look at the same image as the row it replaces."""
        self.past = [(keys[rows], values[rows]) for keys, values in self.past]

    def _encode(
        self, tokens: Float[Tensor, "rows tokens dim"], mask: AttentionMask, kept: int
    ) -> Float[Tensor, "rows tokens dim"]:
        """Tokens behind the past, through all blocks; of past and tokens ``kept`` are the past."""
        for i, block in enumerate(self.network.trunk.blocks):
            tokens, (keys, values) = _extend(block, tokens, self.past[i], mask)
            self.past[i] = (keys[:, :, :kept], values[:, :, :kept])
        return tokens


def _extend(
    block: PostNormBlock,
    x: Float[Tensor, "rows new_tokens dim"],
    past: KeysAndValues | None,
    mask: AttentionMask,
) -> tuple[Float[Tensor, "rows new_tokens dim"], KeysAndValues]:
    x, own = block.attend_after(past, x, mask)
    return block.norm2(x + block.dropout(block.mlp(x))), own


@torch.no_grad()
def write_captions(
    network: Oscar,
    batch: Mapping[str, Tensor],
    special_ids: Sequence[int],
    num_beams: int = 5,
    max_length: int = 20,
    min_length: int = 1,
    tags_start: int = CAPTION_LENGTH,
) -> Int64[Tensor, "batch tokens"]:
    """A caption for each image by beam search: ``[CLS] words [SEP]``, then padding.

    ``batch`` has ``"tag_ids"`` and ``"tag_mask"`` and the regions of a lesson; ``special_ids`` are
    [CLS], [SEP] and [MASK]. Five beams and 20 tokens are the official choice.
    """
    cls_id, sep_id, mask_id = special_ids
    tags = batch["tag_ids"]
    prompt = torch.full((len(tags), 1), cls_id, device=tags.device)
    regions = batch["features"], batch["locations"], batch["region_valid"]
    sep_ids = torch.full_like(prompt[:, 0], sep_id)
    labels = tags, batch["tag_mask"].bool()
    writing = OscarWriting(network, *labels, *regions, sep_ids, mask_id, tags_start)
    return beam_search(writing, prompt, sep_id, num_beams, max_length, min_length)
