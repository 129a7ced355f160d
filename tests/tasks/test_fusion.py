import json
from dataclasses import replace

import pytest
import torch

from mmlab import datasets
from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.hub import CheckpointError, save
from mmlab.models.vilt import VILT_MINI, ViLT
from mmlab.tasks.dual_encoder import TOKENIZER
from mmlab.tasks.fusion import (
    ANSWERS,
    FusionModel,
    fusion_retrieval,
    load_fusion,
    matching_accuracy,
    prepared_images,
)
from mmlab.tasks.questions import answer_questions, guess

WORDS = ("is there a red circle", "how many large blue squares are there", "yes no 1 2")
TOKENIZER_OF_WORDS = train_wordpiece(WORDS, 200, min_count=1)
SMALL = replace(
    VILT_MINI,
    image_size=32,
    dim=32,
    depth=1,
    num_heads=2,
    mlp_dim=64,
    vocab_size=TOKENIZER_OF_WORDS.vocab_size,
)


def make(*heads, answers=()):
    torch.manual_seed(0)
    config = replace(SMALL, heads=heads, num_classes=len(answers))
    network = ViLT(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return FusionModel(network, TOKENIZER_OF_WORDS, answers)


@pytest.fixture(scope="module")
def scenes():
    return datasets.scenes(12, "test", 32)


def test_padding_and_company_change_no_score(scenes):
    model = make("words", "match")
    images, texts = prepared_images(scenes), scenes.captions("en", "medium")
    together = model.match(images, texts)
    alone = [model.match(images[i : i + 1], [texts[i]]) for i in range(len(texts))]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_all_pairs_hold_each_pair(scenes):
    model = make("words", "match")
    images, texts = prepared_images(scenes)[:3], scenes.captions()[:4]
    table = model.match_all(images, texts)
    assert table.shape == (3, 4)
    torch.testing.assert_close(table.diagonal(), model.match(images, texts[:3]))
    assert table.std() > 1e-4


def test_a_score_above_zero_is_a_match(scenes):
    model = make("words", "match")
    head = model.network.heads["match"]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 2.0]))
    images, texts = prepared_images(scenes), scenes.captions()
    torch.testing.assert_close(model.match(images, texts), torch.full((12,), 2.0))
    # It says yes to everything, and is right half of the time.
    assert matching_accuracy(model, scenes) == 0.5
    assert fusion_retrieval(model, scenes).figures()["image_to_text"]["r@1"] == 0


def test_the_ranking_head_comes_first(scenes):
    model = make("rank")
    images, texts = prepared_images(scenes), scenes.captions()
    ids = model.tokens(texts)
    expected = model.network.rank_scores(model.network(ids, images, ids != 0))
    torch.testing.assert_close(model.match(images, texts), expected.detach())
    with pytest.raises(ValueError, match="no 'match' head"):
        matching_accuracy(model, scenes)


def test_retrieval_finds_what_is_scored_highest(scenes, monkeypatch):
    model = make("match", "words")
    table = torch.eye(12)
    table[0, 1] = 2.0
    monkeypatch.setattr(FusionModel, "match_all", lambda self, images, texts: table)
    figures = fusion_retrieval(model, scenes).figures()
    assert figures["image_to_text"]["r@1"] == pytest.approx(11 / 12)
    assert figures["text_to_image"]["r@1"] == pytest.approx(11 / 12)
    assert figures["image_to_text"]["r@5"] == 1


# Questions.


def test_answers_are_judged_question_by_question(scenes, monkeypatch):
    asked = [question for own in scenes.questions() for question in own]
    answers = tuple(sorted({question.answer for question in asked}))
    truth = iter([question.answer for question in asked] + ["yes"] * len(asked))

    def answer(self, images, questions):
        said = torch.tensor([answers.index(next(truth)) for _ in questions])
        return torch.nn.functional.one_hot(said, len(answers))

    monkeypatch.setattr(FusionModel, "answer", answer)
    model = make("answer", answers=answers)
    found = answer_questions(model, scenes)
    assert found.accuracy == 1 and set(found.by_kind.values()) == {1.0}
    yes = sum(question.answer == "yes" for question in asked)
    assert found.wrong_image == pytest.approx(yes / len(asked))
    assert (found.num_questions, found.num_images) == (len(asked), 12)


def test_questions_of_a_wrong_image_see_another_picture(scenes, monkeypatch):
    seen = []

    def answer(self, images, questions):
        seen.append(images)
        return torch.zeros(len(questions), 1)

    monkeypatch.setattr(FusionModel, "answer", answer)
    answer_questions(make("answer", answers=("yes",)), scenes)
    own, wrong = seen
    first = len(scenes.questions()[0])
    assert torch.equal(own[0], prepared_images(scenes)[0])
    assert torch.equal(wrong[0], own[first]) and torch.equal(wrong[-1], own[0])


def test_a_guess_needs_no_image_and_beats_one_answer_for_all():
    scenes = datasets.scenes(300, "test", 32)
    asked = [question for own in scenes.questions() for question in own]
    guesses = guess(asked, scenes)
    right = [g == q.answer for g, q in zip(guesses, asked, strict=True)]
    answers = [question.answer for question in asked]
    commonest = max(answers.count(answer) for answer in set(answers))
    assert commonest / len(asked) < sum(right) / len(asked) < 0.5
    # The same words get the same guess, and each kind a possible one.
    assert len(dict.fromkeys(zip((q.text for q in asked), guesses, strict=True))) == len(
        {q.text for q in asked}
    )
    for question, guessed in zip(asked, guesses, strict=True):
        assert guessed.isdigit() == (question.kind == "count")


def test_without_an_answer_head_there_is_no_answer(scenes):
    with pytest.raises(ValueError, match="no 'answer' head"):
        answer_questions(make("words", "match"), scenes)


# Files.


def write(model, path, **metadata):
    own = {TOKENIZER: model.tokenizer.to_json(), ANSWERS: json.dumps(model.answers)}
    save(model.network, path, metadata=own | metadata)
    return path


def test_a_file_brings_words_answers_and_heads(tmp_path, scenes):
    model = make("answer", answers=("no", "yes"))
    again = load_fusion("vilt-mini", write(model, tmp_path / "m.safetensors"))
    assert again.answers == ("no", "yes") and again.network.config == model.network.config
    images, texts = prepared_images(scenes), ["is there a red circle"] * 12
    torch.testing.assert_close(again.answer(images, texts), model.answer(images, texts))


@pytest.mark.parametrize("answers", ["[]", '["yes"]', "no JSON", "7"])
def test_answers_that_do_not_fit_are_refused(answers, tmp_path):
    model = make("answer", answers=("no", "yes"))
    file = write(model, tmp_path / "m.safetensors", **{ANSWERS: answers})
    with pytest.raises(CheckpointError, match=r"names \d answers for 2 classes"):
        load_fusion("vilt-mini", file)


def test_a_file_without_words_is_refused(tmp_path):
    save(make("words", "match").network, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="holds no tokenizer; it was not trained here"):
        load_fusion("vilt-mini", tmp_path / "m.safetensors")
