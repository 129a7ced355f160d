from dataclasses import replace

import pytest
import torch

from mmlab import datasets
from mmlab.datasets.transforms import VIT_MEAN, VIT_STD, denormalize, to_uint8
from mmlab.objectives.masked_language import IGNORED
from mmlab.tasks.paired_scenes import ANSWERS, FALSE_TEXTS, paired_scenes, with_tokens

HEADS = ("words", "match", "answer", "rank")
NUM, SIZE, CONTEXT = 60, 32, 40


@pytest.fixture(scope="module")
def data():
    return paired_scenes(SIZE, CONTEXT, NUM, HEADS)


def draw(data, rows, share=slice(None), seed=0):
    return data.batch(rows, share, torch.Generator().manual_seed(seed))


def texts(data, ids):
    return data.tokenizer.decode(ids)


def own_captions(data, row):
    return set(texts(data, data.captions.input_ids[row]))


@pytest.mark.parametrize("num_processes", [2, 4])
def test_shares_of_a_batch_make_the_whole(data, num_processes):
    rows = torch.arange(3, 27)
    whole = draw(data, rows)
    size = len(rows) // num_processes
    parts = [draw(data, rows, slice(i, i + size)) for i in range(0, len(rows), size)]
    for name in whole.keys() - {"masked_share"}:
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name]), name
    # Means over words of the parts, weighted, are the mean over all words.
    values = torch.rand(whole["labels"].shape, generator=torch.Generator().manual_seed(3))
    asked = whole["labels"] != IGNORED
    means = [v[a].mean() for v, a in zip(values.split(size), asked.split(size), strict=True)]
    weights = [part["masked_share"] for part in parts]
    together = sum(m * w for m, w in zip(means, weights, strict=True)) / num_processes
    torch.testing.assert_close(together, values[asked].mean())
    assert whole["masked_share"] == 1


def test_a_share_without_masked_words_has_no_weight(data):
    for seed in range(40):
        batch = draw(data, torch.arange(4), slice(0, 1), seed)
        if (batch["labels"] == IGNORED).all():
            assert batch["masked_share"] == 0
            return
    raise AssertionError("every share had a masked word")


def test_rows_have_their_own_picture_caption_and_question(data):
    rows = torch.tensor([5, 17, 40, 3])
    batch = draw(data, rows)
    images = to_uint8(denormalize(batch["images"], VIT_MEAN, VIT_STD)).int()
    assert (images - data.dataset.images(rows).int()).abs().max() <= 1
    questions = data.dataset.questions()
    told = zip(
        rows.tolist(),
        texts(data, batch["input_ids"]),
        texts(data, batch["question_ids"]),
        batch["scores"],
        strict=True,
    )
    for row, caption, question, scores in told:
        assert caption in own_captions(data, row)
        ids = data.tokenizer([q.text for q in questions[row]]).input_ids
        place = texts(data, ids).index(question)
        assert scores.sum() == 1
        assert data.answers[scores.argmax()] == questions[row][place].answer


def test_all_questions_and_captions_come_up(data):
    rows = torch.full((300,), 7)
    batch = draw(data, rows)
    assert set(texts(data, batch["input_ids"])) == own_captions(data, 7)
    assert len(set(texts(data, batch["question_ids"]))) == int(data.questions.counts[7])


def test_half_of_the_rows_are_matched_and_false_images_are_others(data):
    rows = torch.arange(25)
    batch = draw(data, rows)
    assert batch["matched"].sum() == 12
    assert not torch.isclose(batch["images"], batch["false_images"]).flatten(1).all(1).any()
    assert not torch.equal(batch["matched"], draw(data, rows, seed=1)["matched"])


def test_words_are_masked_whole_and_nothing_else_changes(data):
    batch = draw(data, torch.arange(NUM))
    asked = batch["labels"] != IGNORED
    assert torch.equal(batch["masked_ids"][~asked], batch["input_ids"][~asked])
    assert torch.equal(batch["labels"][asked], batch["input_ids"][asked])
    special = torch.isin(batch["input_ids"], torch.tensor(data.tokenizer.special_ids))
    assert not (special & asked).any()
    hidden = batch["masked_ids"][asked] == data.tokenizer.mask_id
    assert 0.6 < hidden.float().mean() < 0.95
    words = (batch["attention_mask"] & ~special).sum()
    assert 0.1 < asked.sum() / words < 0.2


def test_the_first_text_to_rank_is_the_own_one(data):
    rows = torch.tensor([2, 30])
    batch = draw(data, rows)
    assert batch["text_ids"].shape[:2] == batch["text_mask"].shape[:2] == (2, 1 + FALSE_TEXTS)
    for row, ids in zip(rows.tolist(), batch["text_ids"], strict=True):
        first, *others = texts(data, ids)
        assert first in own_captions(data, row)
        assert not set(others) <= own_captions(data, row)


@pytest.mark.parametrize(
    ("heads", "entries"),
    [
        (("answer",), {"images", "question_ids", "question_mask", "scores"}),
        (("rank",), {"images", "text_ids", "text_mask"}),
    ],
)
def test_heads_get_what_they_need_and_no_more(heads, entries):
    data = paired_scenes(SIZE, CONTEXT, 8, heads)
    assert draw(data, torch.arange(4)).keys() == entries


def test_no_text_names_a_held_out_combination(data):
    told = [*texts(data, data.captions.input_ids.flatten(0, 1))]
    told += texts(data, data.questions.input_ids.flatten(0, 1))
    pairs = [f"{color} {shape}" for color, shape in data.dataset.config.held_out]
    assert any("red square" in text for text in told)
    assert not [text for text in told for pair in pairs if pair in text]


def test_words_of_others_are_kept(data):
    again = paired_scenes(SIZE, CONTEXT, 8, HEADS, 1, data.tokenizer)
    assert again.tokenizer is data.tokenizer


def test_answers_do_not_depend_on_what_was_drawn(data):
    few = paired_scenes(SIZE, CONTEXT, 2, HEADS)
    assert few.answers == data.answers == ANSWERS
    asked = datasets.scenes(400, "held_out").questions()
    assert {question.answer for own in asked for question in own} == set(ANSWERS)


def test_one_scene_has_no_false_pair():
    with pytest.raises(ValueError, match="num_images must be at least 2, for false pairs, got 1"):
        paired_scenes(SIZE, CONTEXT, 1, HEADS)


def test_captions_alone_are_not_masked_and_texts_alone_have_no_images(data):
    rows = torch.arange(8)
    captions = draw(replace(data, heads=("captions",)), rows)
    assert captions.keys() == {"images", "input_ids", "attention_mask"}
    words = draw(replace(data, heads=("words",)), rows)
    assert words.keys() == {"input_ids", "attention_mask", "masked_ids", "labels", "masked_share"}
    assert torch.equal(words["input_ids"], captions["input_ids"])


def test_without_an_end_every_word_may_be_masked():
    data = paired_scenes(SIZE, CONTEXT, NUM, ("words",), ends=False, whole_words=False)
    asked = set()
    for seed in range(20):
        batch = draw(data, torch.arange(NUM), seed=seed)
        ids, valid = batch["input_ids"], batch["attention_mask"]
        assert data.tokenizer.sep_id not in ids
        last = valid.sum(1) - 1
        asked |= set((batch["labels"].gather(1, last[:, None]) != IGNORED).flatten().tolist())
        assert (batch["labels"][:, 0] == IGNORED).all() and (batch["labels"][~valid] == -100).all()
    assert asked == {True, False}


def test_hidden_patches_are_alike_for_all_processes(data):
    images = replace(data, heads=("patches",), num_patches=50)
    rows = torch.arange(40)
    whole, half = draw(images, rows), draw(images, rows, slice(20, 40))
    assert whole.keys() == {"images", "masked_patches", "masked_share"}
    assert torch.equal(half["masked_patches"], whole["masked_patches"][20:])
    assert whole["masked_patches"].float().mean().item() == pytest.approx(0.4, abs=0.05)
    expected = half["masked_patches"].float().mean() / whole["masked_patches"].float().mean()
    torch.testing.assert_close(half["masked_share"], expected)


def test_answers_to_be_written_are_those_of_the_questions():
    data = paired_scenes(SIZE, CONTEXT, NUM, (), spells_answers=True)
    rows, heads = torch.arange(30), ("answer",)
    asked = draw(replace(data, heads=heads), rows)
    written = draw(replace(data, heads=("answers",)), rows)
    assert torch.equal(written["input_ids"], asked["question_ids"])
    assert torch.equal(written["scores"], asked["scores"])
    answers = [data.answers[place] for place in asked["scores"].argmax(1).tolist()]
    assert texts(data, written["answer_ids"]) == answers
    assert len(data.tokenizer(ANSWERS).input_ids.unique(dim=0)) == len(ANSWERS)
    assert torch.equal(written["question_of"], rows) and (written["weights"] == 1).all()


def test_extra_tokens_come_last_and_once(data):
    more = with_tokens(data.tokenizer, ("[DEC]", "[ENC]"))
    assert more.vocab_size == data.tokenizer.vocab_size + 2
    assert [more.token_id(t) for t in ("[DEC]", "[ENC]")] == [
        more.vocab_size - 2,
        more.vocab_size - 1,
    ]
    assert with_tokens(more, ("[DEC]", "[ENC]")) is more
    assert with_tokens(data.tokenizer, ()) is data.tokenizer
    with pytest.raises(ValueError, match="special tokens must be new"):
        with_tokens(more, ("[DEC]",))
