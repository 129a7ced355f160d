from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.models.lxmert import LXMERT
from mmlab.models.lxmert_tasks import (
    LXMERTQuestionAnswering,
    LXMERTReasoning,
    lxmert_classifier,
    plain_answer,
    start_answers,
    start_from_lxmert,
)
from tests.models.test_lxmert import TINY, build, close, inputs, randomise

KNOWN = ["2", "gray", "man", "yes", "no", "dog"]


def batch_of(**more):
    given = inputs()
    return {**given, "attention_mask": given["text_valid"], **more}


def trunk(model):
    return {k: t for k, t in model.state_dict().items() if not k.startswith("heads.")}


# From a pretrained model to one for a task


@pytest.mark.parametrize("num_images", [1, 2])
def test_a_classifier_starts_from_the_pretrained_model(num_images):
    pretrained = randomise(build())
    model = lxmert_classifier(pretrained, 4, num_images)
    assert model.config.heads == ("answer",) and model.config.num_classes == 4
    own, theirs = trunk(model), trunk(pretrained)
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    features = [model(**inputs(seed=seed)) for seed in range(num_images)]
    assert model.answer_logits(*features).shape == (3, 4)


def test_an_lxmert_starts_from_another_with_the_heads_that_fit():
    pretrained = randomise(build(heads=("words", "match"), num_classes=0))
    model = build(seed=1, heads=("match", "answer"), num_classes=4)
    fresh = model.heads["answer"].decoder.weight.clone()
    start_from_lxmert(model, pretrained)
    assert all(torch.equal(trunk(model)[key], t) for key, t in trunk(pretrained).items())
    assert torch.equal(model.heads["match"].weight, pretrained.heads["match"].weight)
    assert torch.equal(model.heads["answer"].decoder.weight, fresh)


@pytest.mark.parametrize("changes", [{"mlp_dim": 44}, {"cross_depth": 1}])
def test_an_lxmert_of_another_shape_is_refused(changes):
    with pytest.raises(ValueError, match=r"must have the same shape; they differ in 'cross_blocks"):
        start_from_lxmert(build(), build(**changes))


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("Yes.", "yes"),
        ("a Dog", "dog"),
        ("the an", "an"),
        ("Two", "2"),
        ("grey", "gray"),
        ("an umbrella.", "umbrella"),
        ("animal", "animal"),
        ("theater", "theater"),
        ("", ""),
    ],
)
def test_answers_are_spelt_as_the_table_of_pretraining_has_them(answer, plain):
    assert plain_answer(answer) == plain


def test_answers_start_with_the_rows_of_the_same_words():
    pretrained = randomise(build())
    model = lxmert_classifier(pretrained, 4)
    lacking = start_answers(model, ["no", "a cat", "Two", "grey"], pretrained, KNOWN)
    assert lacking == ["a cat"]
    own, known = model.heads["answer"], pretrained.heads["answer"]
    for name in ("weight", "bias"):
        rows, table = (getattr(head.decoder, name) for head in (own, known))
        assert torch.equal(rows[[0, 2, 3]], table[[4, 0, 1]])
        assert not rows[1].any()
    with torch.no_grad():
        logits = model.answer_logits(model(**inputs()))
        expected = pretrained.answer_logits(pretrained(**inputs()))
    close(logits[:, [0, 2, 3]], expected[:, [4, 0, 1]])


def test_answers_that_do_not_fit_are_refused():
    pretrained = build()
    model = lxmert_classifier(pretrained, 2)
    with pytest.raises(ValueError, match="answers must be the 2 answers of the head, got 3"):
        start_answers(model, ["a", "b", "c"], pretrained, KNOWN)
    with pytest.raises(ValueError, match=r"pretrained_answers must be the 6 answers .* got 1"):
        start_answers(model, ["a", "b"], pretrained, ["a"])
    with pytest.raises(ValueError, match="for equally many images and equally wide"):
        start_answers(lxmert_classifier(pretrained, 2, 2), ["a", "b"], pretrained, KNOWN)


# Training


def test_questions_are_learnt_with_binary_cross_entropy_summed_over_the_answers():
    model = randomise(build())
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    loss = LXMERTQuestionAnswering(model).losses(batch_of(scores=scores))
    p = model.answer_logits(model(**inputs())).sigmoid()
    expected = -(scores * p.log() + (1 - scores) * (1 - p).log()).sum(1).mean()
    assert loss["answers"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_best_answer_may_be_the_only_right_one():
    model = randomise(build())
    scores = torch.tensor([[0, 0.3, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0.2, 0.1]])
    loss = LXMERTQuestionAnswering(model, one_right=True).losses(batch_of(scores=scores))
    logits = model.answer_logits(model(**inputs()))
    expected = 6 * F.cross_entropy(logits, torch.tensor([2, 0, 4]))
    assert loss["answers"].item() == pytest.approx(expected.item(), rel=1e-5)


def two_images():
    first, second = inputs(), inputs(seed=2)
    images = {
        name: torch.stack([first[name], second[name]], dim=1)
        for name in ("features", "locations", "region_valid")
    }
    return first, second, batch_of(**images, labels=torch.tensor([1, 0, 1]))


def test_reasoning_reads_both_images_in_their_order():
    model = randomise(build(heads=("answer",), num_classes=2, num_images=2))
    first, second, batch = two_images()
    second = second | {name: first[name] for name in ("input_ids", "text_valid")}
    pooled = [model(**given).pooled for given in (first, second)]
    logits = model.head("answer")(torch.cat(pooled, dim=1))
    module = LXMERTReasoning(model)
    close(module.logits(batch), logits)
    expected = F.cross_entropy(logits, batch["labels"])
    assert module.losses(batch)["answers"].item() == pytest.approx(expected.item(), rel=1e-5)
    swapped = {k: batch[k].flip(1) for k in ("features", "locations", "region_valid")}
    assert (module.logits(batch | swapped) - logits).abs().max() > 1e-3


def test_tasks_without_an_answer_head_are_refused():
    model = build(heads=(), num_classes=0)
    for task in (LXMERTQuestionAnswering, LXMERTReasoning):
        with pytest.raises(ValueError, match="no 'answer' head"):
            task(model)


def test_answers_and_statements_are_learnt():
    torch.manual_seed(0)
    one = LXMERT(replace(TINY, heads=("answer",), num_classes=3))
    two = LXMERT(replace(TINY, heads=("answer",), num_classes=2, num_images=2))
    lessons = [
        (LXMERTQuestionAnswering(one), batch_of(scores=torch.eye(3))),
        (LXMERTReasoning(two), two_images()[2]),
    ]
    for module, batch in lessons:
        optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
        for _ in range(60):
            optimizer.zero_grad()
            loss = module.losses(batch)["answers"]
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.1
