import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab import record_attention
from mmlab.models import oscar
from mmlab.models.oscar import Oscar, append_tags, batch_features, caption_mask, lesson_regions
from mmlab.models.oscar_tasks import (
    OscarCaptioning,
    OscarQuestionAnswering,
    OscarReasoning,
    OscarRetrieval,
    OscarWriting,
    caption_with_tags,
    captioning_loss,
    choose_caption_tokens,
    oscar_caption_lesson,
    oscar_retrieval_lesson,
    oscar_with,
    start_from_oscar,
    write_captions,
)
from mmlab.nn import beam_search
from mmlab.objectives.masked_language import IGNORED
from tests.models.test_oscar import (
    CLS,
    MASK,
    OTHER_WORDS,
    PAD,
    SEP,
    TINY,
    build,
    close,
    differ,
    left_aligned,
    raw_pairs,
)

LENGTH = 12
"""Places of a caption in these tests."""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Other heads


def test_a_third_class_of_contrast_starts_fresh_and_keeps_the_rest():
    old = build()
    new = oscar_with(old, num_contrast_classes=3)
    assert new.heads["match"].weight.shape == (3, 24) and not new.training
    own, theirs = new.state_dict(), old.state_dict()
    changed = {key for key in own if key in theirs and own[key].shape != theirs[key].shape}
    assert changed == {"heads.match.weight", "heads.match.bias"}
    assert all(torch.equal(own[key], theirs[key]) for key in own.keys() - changed)
    assert new.heads["match"].weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_heads_for_fine_tuning_start_fresh_once():
    torch.manual_seed(1)
    questions = oscar_with(build(), heads=("words", "answer"), num_classes=7)
    assert set(questions.heads) == {"words", "answer"}
    torch.testing.assert_close(
        questions.heads["words"].transform.bias, build().heads["words"].transform.bias
    )
    again = Oscar(questions.config)
    start_from_oscar(again, questions)
    own = questions.state_dict()
    assert all(torch.equal(t, own[key]) for key, t in again.state_dict().items())


def test_a_trunk_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"differ in 'image_norm\.bias'"):
        oscar_with(build(), image_norm=True)
    with pytest.raises(ValueError, match=r"differ in 'region_embedding\.weight'"):
        oscar_with(build(), feature_dim=6)


def test_half_of_a_head_is_not_taken():
    """Both have a second layer of one shape, but what comes before it differs."""
    changes = {"heads": ("answer",), "num_classes": 2, "classifier_dim": 8}
    old, new = build(**changes), build(1, **changes, num_images=2)
    fresh = new.heads["answer"].fc2.weight.clone()
    start_from_oscar(new, old)
    assert torch.equal(new.heads["answer"].fc2.weight, fresh)


# Questions


def question_batch(batch=3):
    pairs = raw_pairs(batch)
    names = {"input_ids": "question_ids", "attention_mask": "question_mask"}
    names |= {name: name for name in ("tag_ids", "tag_mask")}
    return {ours: pairs[theirs] for ours, theirs in names.items()} | lesson_regions(pairs)


def test_questions_with_scores_and_with_one_right_answer():
    network = build(heads=("answer",), num_classes=4)
    model, batch = OscarQuestionAnswering(network), question_batch()
    logits = network.answer_logits(batch_features(network, batch))
    scores = torch.tensor([[1, 0, 0.3, 0], [0, 0, 0, 0], [0, 1, 1, 0]])
    given = model.losses(batch | {"scores": scores})
    p = logits.sigmoid()
    naive = -(scores * p.log() + (1 - scores) * (1 - p).log()).sum(1).mean()
    close(given["answers"], naive)
    right = torch.tensor([2, 0, 1])
    gqa = model.losses(batch | {"answers": right})["answers"]
    close(gqa, -logits.log_softmax(-1)[range(3), right].mean())


def test_tags_are_put_behind_the_question():
    network, batch = build(heads=("answer",), num_classes=4), question_batch()
    names = ("input_ids", "attention_mask", "tag_ids", "tag_mask")
    joined = oscar.text_entries(append_tags(*(batch[name] for name in names)))
    regions = {name: batch[name] for name in ("features", "locations", "region_valid")}
    pooled = batch_features(network, batch).pooled
    close(batch_features(network, joined | regions).pooled, pooled)
    without = {name: t for name, t in batch.items() if "tag" not in name}
    differ(batch_features(network, without).pooled, pooled)


def test_tags_that_are_put_there_are_cut_at_the_context_length():
    network = build(heads=("answer",), num_classes=4, context_length=9)
    assert batch_features(network, question_batch()).text.shape[1] == 9


def test_dropout_before_the_answers():
    network = build(heads=("answer",), num_classes=4, dropout=0.5)
    features = batch_features(network, question_batch())
    head = network.heads["answer"]
    close(head(features.pooled), head.linear(features.pooled))
    network.train()
    differ(head(features.pooled), head(features.pooled))


# Two images


def reasoning_batch():
    pairs = raw_pairs()
    texts = [pairs["input_ids"], pairs["attention_mask"]]
    images = []
    for prefix in ("", "other_"):
        tags = pairs[f"{prefix}tag_ids"], pairs[f"{prefix}tag_mask"]
        text = oscar.text_entries(append_tags(*texts, *tags, 14))
        width = {"features": 5, "locations": 5, "region_valid": 5}
        regions = lesson_regions(pairs, prefix)
        told = text | regions
        for name in told:
            longest = width.get(name, 14)
            left = longest - told[name].shape[1]
            told[name] = F.pad(told[name], (0, 0) * (told[name].ndim - 2) + (0, left))
        images.append(told)
    return {name: torch.stack([image[name] for image in images], 1) for name in images[0]}


REASONING = {"heads": ("answer",), "num_classes": 2, "num_images": 2, "classifier_dim": 10}


@pytest.mark.parametrize("image_norm", [False, True])
def test_two_images_are_two_passes_and_one_classifier(image_norm):
    network, batch = build(**REASONING, image_norm=image_norm), reasoning_batch()
    head = network.heads["answer"]
    assert (head.norm is not None) == image_norm
    features = [
        batch_features(network, {name: t[:, i] for name, t in batch.items()}) for i in (0, 1)
    ]
    pooled = torch.cat([f.pooled for f in features], dim=-1)
    hidden = F.relu(head.fc1(pooled))
    expected = head.fc2(head.norm(hidden) if image_norm else hidden)
    labels = torch.tensor([0, 1, 1])
    loss = OscarReasoning(network).losses(batch | {"labels": labels})
    close(loss["answers"], F.cross_entropy(expected, labels))
    close(OscarReasoning(network).logits(batch), expected)
    exchanged = {name: t.flip(1) for name, t in batch.items()}
    differ(OscarReasoning(network).logits(exchanged), expected)


def test_a_hidden_layer_for_one_image_has_no_norm():
    one = {"heads": ("answer",), "num_classes": 3, "classifier_dim": 10}
    network = build(**one, image_norm=True)
    assert network.heads["answer"].norm is None
    logits = network.answer_logits(batch_features(network, question_batch()))
    assert logits.shape == (3, 3)


def test_two_images_need_two_features():
    network, batch = build(**REASONING), question_batch()
    with pytest.raises(ValueError, match="features must be given for num_images=2 images, got 1"):
        OscarQuestionAnswering(network).losses(batch | {"answers": torch.zeros(3).long()})


# Retrieval


def test_every_pair_stands_beside_a_false_one():
    pairs = raw_pairs(400)
    told = oscar_retrieval_lesson(pairs, generator())
    assert told["labels"].tolist() == [[1, 0]] * 400
    names = ("input_ids", "attention_mask", "tag_ids", "tag_mask")
    true = append_tags(*(pairs[name] for name in names))
    width = true.ids.shape[1]
    assert torch.equal(told["input_ids"][:, 0, :width], true.ids)
    assert torch.equal(told["features"][:, 0], pairs["features"])
    same_image = (told["features"][:, 0] == told["features"][:, 1]).flatten(1).all(1)
    foreign = (told["input_ids"][:, 1, 1] >= OTHER_WORDS[0]) & (
        told["input_ids"][:, 1, 1] < OTHER_WORDS[1]
    )
    assert torch.equal(same_image, foreign)
    assert same_image.float().mean().item() == pytest.approx(0.5, abs=0.07)
    tags = (told["token_types"] == 1) & (told["input_ids"] != SEP)
    first = tags.int().argmax(-1, keepdim=True)
    tag = told["input_ids"].gather(-1, first)[..., 0]
    assert torch.equal(tag[:, 1] < 30, same_image)
    again = oscar_retrieval_lesson(pairs, generator())
    assert all(torch.equal(told[name], again[name]) for name in told)


@pytest.mark.parametrize("visible", oscar.VISIBLE)
def test_retrieval_with_parts_that_do_not_meet(visible):
    network = build(heads=("answer",), num_classes=2)
    model = OscarRetrieval(network, visible)
    told = oscar_retrieval_lesson(raw_pairs(), generator())
    flat = {name: t.flatten(0, 1) for name, t in told.items()}
    logits = model.logits(flat)
    close(model.losses(told)["matching"], F.cross_entropy(logits, flat["labels"]))
    with record_attention(network) as maps:
        model.logits(flat)
    weights = maps["trunk.blocks.0.attention"].amax((0, 1))
    words = weights[:, : flat["input_ids"].shape[1]]
    assert words.shape[1] < weights.shape[1]
    to_regions = weights[0, flat["input_ids"].shape[1] :].max()
    assert (to_regions > 0) == (visible in ("CLR", "CR"))
    if visible == "CLR":
        close(logits, network.answer_logits(batch_features(network, flat)))


def test_wrong_retrieval():
    with pytest.raises(ValueError, match="num_classes must be 2 for retrieval, got 3"):
        OscarRetrieval(build(heads=("answer",), num_classes=3))
    with pytest.raises(ValueError, match="visible must be one of 'CLR', 'CL', 'CR', 'LR', got 'X'"):
        OscarRetrieval(build(heads=("answer",), num_classes=2), "X")


# Captions: training


def test_tags_begin_at_the_same_place_behind_every_caption():
    ids = torch.tensor([[CLS, 5, 6, SEP], [CLS, 7, SEP, PAD]])
    tags = torch.tensor([[20, 21], [PAD, PAD]])
    text = caption_with_tags(ids, ids != PAD, tags, tags != PAD, 6)
    assert text.ids.tolist() == [
        [CLS, 5, 6, SEP, PAD, PAD, 20, 21, SEP],
        [CLS, 7, SEP, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
    assert torch.equal(text.valid, text.ids != PAD)
    assert text.types[0].tolist() == [0] * 6 + [1] * 3 and not text.types[1].any()
    short = caption_with_tags(ids, ids != PAD, tags, tags != PAD, 3, 5)
    assert short.ids[0].tolist() == [CLS, 5, SEP, 20, SEP]


def test_a_few_caption_tokens_are_chosen_and_the_end_as_any():
    lengths = [3, 6, 10, 14, 40] * 400
    caption = left_aligned(lengths)
    chosen = choose_caption_tokens(caption, generator=generator())
    assert not (chosen & ~caption).any() and not chosen[:, 0].any()
    expected = [min(max(round(0.15 * length), 1), 3) for length in lengths]
    assert chosen.sum(1).tolist() == expected
    share = chosen[1::5, 1:6].float().mean(0)
    torch.testing.assert_close(share, torch.full((5,), 0.2), rtol=0, atol=0.07)


def caption_batch(batch=3, seed=0, **options):
    return oscar_caption_lesson(
        raw_pairs(batch), MASK, 60, generator(seed), caption_length=LENGTH, **options
    )


def test_only_captions_are_masked():
    told = caption_batch(500)
    asked = told["labels"] != IGNORED
    assert not asked[:, LENGTH:].any() and asked.any(1).all()
    assert (told["labels"] == SEP).any() and not (told["labels"] == CLS).any()
    hidden = (told["input_ids"][asked] == MASK).float().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.06)


def test_the_loss_of_captions_is_that_of_the_hidden_words():
    network, told = build(max_positions=40), caption_batch()
    model = OscarCaptioning(network)
    logits, labels = model.logits(told), told["labels"]
    close(
        model.losses(told)["masked_words"],
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED),
    )


def test_smoothing_is_the_divergence_from_the_smoothed_word():
    logits = torch.randn(7, 60, generator=generator())
    targets = torch.randint(60, (7,), generator=generator(1))
    smooth = torch.full((7, 60), 0.1 / 59)
    smooth[range(7), targets] = 0.9
    expected = F.kl_div(logits.log_softmax(-1), smooth, reduction="none").sum(1)
    close(captioning_loss(logits, targets, 0.1), expected.mean())
    close(captioning_loss(logits, targets, 0.1, 0.4), expected.sort().values[:4].mean())
    close(captioning_loss(logits, targets), F.cross_entropy(logits, targets))
    assert captioning_loss(logits[:0], targets[:0], 0.1) == 0
    assert captioning_loss(smooth.log(), targets, 0.1).abs() < 1e-6
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\), got 1.0"):
        OscarCaptioning(build(), 1.0)


def test_a_caption_is_not_seen_from_the_left_nor_by_the_image():
    network, told = build(max_positions=40), caption_batch()
    model = OscarCaptioning(network)

    def features(given):
        text = oscar.tagged_text(given)
        own = text.valid & (text.types == 0), text.valid & (text.types == 1)
        return batch_features(network, given, caption_mask(*own, given["region_valid"]))

    before = features(told)
    for place in range(1, 4):
        changed = told["input_ids"].clone()
        changed[:, place] = 59
        after = features(told | {"input_ids": changed})
        close(after.text[:, :place], before.text[:, :place])
        differ(after.text[:, place], before.text[:, place])
        tags = told["token_types"] == 1
        close(after.text[tags], before.text[tags])
        close(after.regions[told["region_valid"]], before.regions[told["region_valid"]])
    dark = features(told | {"features": told["features"] + 1})
    differ(dark.text[:, 0], before.text[:, 0])
    close(model.logits(told), network.word_logits(before))


# Captions: writing


def writing(network, pairs, rows=slice(None)):
    tags = pairs["tag_ids"][rows], pairs["tag_mask"][rows]
    regions = [lesson_regions(pairs)[name][rows] for name in _REGIONS]
    sep = torch.full_like(tags[0][:, 0], SEP)
    return OscarWriting(network, *tags, *regions, sep, MASK, tags_start=LENGTH)


_REGIONS = ("features", "locations", "region_valid")


def recomputed(network, pairs, written):
    """Scores of the next word, from the whole sequence with a [MASK] at the end of the caption."""
    ids = F.pad(written, (0, 1), value=MASK)
    valid = torch.ones_like(ids, dtype=torch.bool)
    # The text needs an end to be taken apart; it is put in place of the true one afterwards.
    ended = F.pad(ids, (0, 1), value=SEP)
    text = caption_with_tags(
        ended, F.pad(valid, (0, 1), value=True), pairs["tag_ids"], pairs["tag_mask"], LENGTH
    )
    end = ids.shape[1]
    text.ids[:, end], text.valid[:, end] = PAD, False
    given = oscar.text_entries(text) | lesson_regions(pairs)
    own = text.valid & (text.types == 0), text.valid & (text.types == 1)
    mask = caption_mask(*own, given["region_valid"])
    return network.word_logits(batch_features(network, given, mask))[:, end - 1]


@torch.no_grad()
def test_writing_word_by_word_equals_full_recomputation():
    network, pairs = build(max_positions=40), raw_pairs(4)
    state = writing(network, pairs)
    written = torch.full((4, 1), CLS)
    new = written
    for step in range(6):
        logits = state.next(new)
        close(logits, recomputed(network, pairs, written))
        new = torch.randint(5, 60, (4, 1 + step % 2), generator=generator(step))
        written = torch.cat([written, new], dim=1)


@torch.no_grad()
def test_the_cache_equals_the_official_one_of_inputs():
    """There a layer gets its old inputs and projects them anew (``history_state``)."""
    network, pairs = build(max_positions=40), raw_pairs(2)
    inputs = []
    handles = [
        block.attention.k_proj.register_forward_hook(lambda m, given, out: inputs.append(given[0]))
        for block in network.trunk.blocks
    ]
    state = writing(network, pairs)
    for handle in handles:
        handle.remove()
    state.next(torch.full((2, 1), CLS))
    for block, history, (keys, values) in zip(
        network.trunk.blocks, inputs, state.past, strict=True
    ):
        context = history.shape[1]
        expected = block.attention.keys_and_values(history)
        close(keys[:, :, :context], expected[0])
        close(values[:, :, :context], expected[1])
        assert keys.shape[2] == context + 1


@torch.no_grad()
def test_rows_are_repeated_and_selected():
    network, pairs = build(max_positions=40), raw_pairs(3)
    state = writing(network, pairs)
    start = torch.full((3, 1), CLS)
    first = state.next(start)
    state.repeat(2)
    words = torch.tensor([5, 6, 7, 8, 9, 10])[:, None]
    both = state.next(words)
    state.select(torch.tensor([1, 1, 2, 3, 4, 5]))
    again = torch.cat([start.repeat_interleave(2, 0), words[[1, 1, 2, 3, 4, 5]]], dim=1)
    doubled = {name: t.repeat_interleave(2, 0) for name, t in pairs.items()}
    new = torch.full((6, 1), 11)
    close(state.next(new), recomputed(network, doubled, torch.cat([again, new], dim=1)))
    close(first, recomputed(network, pairs, start))
    close(both, recomputed(network, doubled, torch.cat([start.repeat_interleave(2, 0), words], 1)))


@torch.no_grad()
def test_attention_while_writing_is_recorded():
    network, pairs = build(max_positions=40), raw_pairs(2)
    state = writing(network, pairs)
    with record_attention(network) as maps:
        state.next(torch.tensor([[CLS, 5], [CLS, 6]]))
    weights = maps["trunk.blocks.1.attention"]
    # Three queries, the last of them [MASK]; keys are tags and their end, regions, the caption.
    context = pairs["tag_ids"].shape[1] + 1 + pairs["features"].shape[1]
    assert weights.shape == (2, 3, 3, context + 3)
    close(weights.sum(-1), torch.ones(2, 3, 3))
    assert not weights[..., 0, -2:].any() and (weights[..., 2, -1] > 0).all()


def test_beams_write_what_the_greedy_search_writes_alone():
    network, pairs = build(max_positions=40), raw_pairs(3)
    batch = {name: pairs[name] for name in ("tag_ids", "tag_mask")} | lesson_regions(pairs)
    options = {"special_ids": (CLS, SEP, MASK), "tags_start": LENGTH, "max_length": 8}
    texts = write_captions(network, batch, num_beams=1, **options)
    assert (texts[:, 0] == CLS).all() and texts.shape[1] <= 8
    with torch.no_grad():
        for row in range(3):
            own = {name: t[row : row + 1] for name, t in pairs.items()}
            written = torch.tensor([[CLS]])
            while written[0, -1] != SEP and written.shape[1] < 8:
                word = recomputed(network, own, written).argmax(-1, keepdim=True)
                written = torch.cat([written, word], dim=1)
            assert texts[row, : written.shape[1]].tolist() == written[0].tolist()
    wide = write_captions(network, batch, num_beams=4, **options)
    state = writing(network, pairs)
    assert torch.equal(wide, beam_search(state, torch.full((3, 1), CLS), SEP, 4, 8, 1))


def test_images_without_tags_are_described():
    network, pairs = build(max_positions=40), raw_pairs(2)
    pairs["tag_mask"] = pairs["tag_mask"].clone()
    pairs["tag_mask"][1] = False
    with torch.no_grad():
        logits = writing(network, pairs).next(torch.full((2, 1), CLS))
        close(logits, recomputed(network, pairs, torch.full((2, 1), CLS)))
    assert logits.isfinite().all()


def test_a_model_learns_to_write_its_caption():
    """To fill in masks from the left is to write: the lesson and the writing belong together."""
    torch.manual_seed(0)
    network = Oscar(replace(TINY, init="xavier", heads=("words",), max_positions=40))
    pairs, model = raw_pairs(4), OscarCaptioning(network)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    draw = generator()
    for _ in range(250):
        told = oscar_caption_lesson(pairs, MASK, 60, draw, caption_length=LENGTH)
        optimiser.zero_grad()
        sum(model.losses(told).values()).backward()
        optimiser.step()
    batch = {name: pairs[name] for name in ("tag_ids", "tag_mask")} | lesson_regions(pairs)
    texts = write_captions(
        network.eval(), batch, (CLS, SEP, MASK), num_beams=2, max_length=LENGTH, tags_start=LENGTH
    )
    for row in range(4):
        truth = pairs["input_ids"][row][pairs["attention_mask"][row]].tolist()
        assert texts[row, : len(truth)].tolist() == truth
    assert math.isfinite(float(texts.sum()))
