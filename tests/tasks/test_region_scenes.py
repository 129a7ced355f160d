from dataclasses import replace

import pytest
import torch

from mmlab.datasets.regions import ToyDetector
from mmlab.datasets.scenes import SHAPES
from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.objectives.masked_language import IGNORED, mask_tokens
from mmlab.tasks.region_scenes import SHARE, region_entries, region_scenes, tags_of

NUM, SIZE, CONTEXT = 60, 64, 32
DETECTOR = ToyDetector(missed=0.2, wrong_class=0.1, overlapping=0.4, jitter=0.05)


def as_they_are(pairs, mask_id, vocab_size, special_ids, generator):
    return pairs


def masked(pairs, mask_id, vocab_size, special_ids, generator):
    maskable = ~torch.isin(pairs["input_ids"], torch.tensor(special_ids))
    drawn = mask_tokens(pairs["input_ids"], maskable, mask_id, vocab_size, generator=generator)
    return {"input_ids": drawn.ids, "labels": drawn.labels, "region_valid": pairs["region_valid"]}


@pytest.fixture(scope="module")
def data():
    return region_scenes(SIZE, CONTEXT, NUM, DETECTOR, as_they_are, {})


def draw(data, rows, share=slice(None), seed=0):
    return data.batch(rows, share, torch.Generator().manual_seed(seed))


def texts(data, ids):
    return data.tokenizer.decode(ids)


def own_captions(data, row):
    return set(texts(data, data.captions.input_ids[row]))


ROWS = torch.tensor([5, 17, 40, 3, 22, 8])


def test_captions_are_of_the_image_of_the_same_image_and_of_another(data):
    pairs = draw(data, ROWS)
    told = (texts(data, pairs[f"{name}_ids"]) for name in ("input", "second", "other"))
    for row, first, second, other in zip(ROWS.tolist(), *told, strict=True):
        assert {first, second} == own_captions(data, row)
        assert other not in own_captions(data, row)
    for name in ("input", "second", "other", "question", "other_question"):
        mask = pairs["attention_mask" if name == "input" else f"{name}_mask"]
        assert torch.equal(mask, pairs[f"{name}_ids"] != data.tokenizer.pad_id)
        assert (pairs[f"{name}_ids"][:, 0] == data.tokenizer.cls_id).all()
    special = torch.isin(pairs["input_ids"], torch.tensor(data.tokenizer.special_ids))
    assert torch.equal(pairs["word_ids"] == -1, special)


def test_questions_have_their_answers(data):
    pairs = draw(data, ROWS)
    asked = data.dataset.questions()
    told = zip(ROWS.tolist(), texts(data, pairs["question_ids"]), pairs["answers"], strict=True)
    for row, question, answer in told:
        ids = data.tokenizer([q.text for q in asked[row]]).input_ids
        place = texts(data, ids).index(question)
        assert data.answers[answer] == asked[row][place].answer
    for prefix in ("", "other_"):
        written = texts(data, pairs[f"{prefix}answer_ids"])
        assert written == [data.answers[number] for number in pairs[f"{prefix}answers"]]
        there = pairs[f"{prefix}answer_ids"] != data.tokenizer.pad_id
        assert torch.equal(pairs[f"{prefix}answer_mask"], there)
    assert not torch.equal(pairs["question_ids"].sum(1), pairs["other_question_ids"].sum(1))


def test_regions_are_those_of_the_image_and_of_another(data):
    pairs = draw(data, ROWS)
    found = DETECTOR.detect(data.dataset, ROWS)
    for name in ("features", "boxes", "classes", "class_distributions", "attributes"):
        told, longest = getattr(found, name), found.mask.shape[1]
        torch.testing.assert_close(pairs[name][:, :longest], told)
        assert not pairs[name][:, longest:].any()
        assert pairs[f"other_{name}"].shape == pairs[name].shape
    assert torch.equal(pairs["region_valid"].sum(1), found.num_regions)
    assert torch.equal(pairs["image_sizes"], torch.full((len(ROWS), 2), float(SIZE)))
    same = (pairs["features"] - pairs["other_features"]).abs().flatten(1).sum(1) < 1e-6
    assert not same.any()
    longest = torch.maximum(pairs["region_valid"].sum(1), pairs["other_region_valid"].sum(1)).max()
    assert pairs["features"].shape[1] == longest


def test_the_other_caption_tells_of_the_other_regions(data):
    """A lesson may take either to make a false pair, or both for a true one."""
    pairs = draw(data, torch.arange(NUM))
    for i, caption in enumerate(texts(data, pairs["other_ids"])):
        row = next(r for r in range(NUM) if caption in own_captions(data, r))
        found = DETECTOR.detect(data.dataset, [row]).features[0]
        if sum(caption in own_captions(data, r) for r in range(NUM)) == 1:
            torch.testing.assert_close(pairs["other_features"][i, : len(found)], found)


def test_tags_are_the_detected_classes_as_words(data):
    pairs = draw(data, torch.arange(NUM))
    for prefix in ("", "other_"):
        told = texts(data, pairs[f"{prefix}tag_ids"])
        background = pairs[f"{prefix}class_distributions"].argmax(-1) == 0
        there = pairs[f"{prefix}region_valid"] & ~background
        for said, classes, own in zip(told, pairs[f"{prefix}classes"], there, strict=True):
            assert said == " ".join(SHAPES[number] for number in classes[own].tolist())
        assert torch.equal(pairs[f"{prefix}tag_mask"].sum(1), there.sum(1))


def test_where_nothing_was_found_there_is_no_tag(data):
    blind = ToyDetector(missed=1).detect(data.dataset, ROWS)
    ids, valid = tags_of(blind, data.tokenizer)
    assert ids.shape == valid.shape == (len(ROWS), 1) and not valid.any() and not ids.any()
    entries = region_entries(blind, data.tokenizer)
    assert entries["region_valid"].all() and entries["features"].shape[:2] == (len(ROWS), 1)


def test_a_class_of_several_pieces_keeps_them_in_order(data):
    letters = train_wordpiece(SHAPES, 40, min_count=1)
    found = replace(DETECTOR, missed=0).detect(data.dataset, ROWS)
    ids, valid = tags_of(found, letters)
    assert valid.sum() > found.mask.sum()
    for row, said in enumerate(letters.decode(ids)):
        told = found.classes[row][found.mask[row]].tolist()
        assert said == " ".join(SHAPES[number] for number in told)


# Shares of a batch.


@pytest.mark.parametrize("num_processes", [2, 4])
def test_shares_of_a_batch_make_the_whole(data, num_processes):
    asked = {"masked_words": "labels", "masked_regions": "region_valid", "other": "missing"}
    data = replace(data, lesson=masked, asked=asked)
    rows = torch.arange(3, 27)
    whole = draw(data, rows)
    size = len(rows) // num_processes
    parts = [draw(data, rows, slice(i, i + size)) for i in range(0, len(rows), size)]
    share, of_regions = f"{SHARE}masked_words", f"{SHARE}masked_regions"
    for name in whole.keys() - {share, of_regions}:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), name
    values = torch.rand(whole["labels"].shape, generator=torch.Generator().manual_seed(3))
    masks = (whole["labels"] != IGNORED).split(size)
    means = [v[a].mean() for v, a in zip(values.split(size), masks, strict=True)]
    together = sum(m * part[share] for m, part in zip(means, parts, strict=True)) / num_processes
    torch.testing.assert_close(together, values[whole["labels"] != IGNORED].mean())
    assert whole[share] == whole[of_regions] == 1 and f"{SHARE}other" not in whole
    counts = [part["region_valid"].sum() for part in parts]
    told = torch.stack([part[of_regions] for part in parts])
    torch.testing.assert_close(told / num_processes, torch.stack(counts) / sum(counts))


def test_the_generator_decides_and_nothing_else(data):
    first, again, other = (draw(data, ROWS, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["other_ids"], other["other_ids"])


def test_one_scene_has_no_false_pair():
    with pytest.raises(ValueError, match="num_images must be at least 2, for false pairs, got 1"):
        region_scenes(SIZE, CONTEXT, 1, DETECTOR, as_they_are, {})
