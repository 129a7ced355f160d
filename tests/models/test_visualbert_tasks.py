from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.models.visualbert import VisualBERT, features_of
from mmlab.models.visualbert_tasks import (
    VisualBERTChoices,
    VisualBERTGrounding,
    VisualBERTQuestionAnswering,
    VisualBERTReasoning,
    choice_scores,
    grounding_recall,
    in_one_sequence,
    visualbert_classifier,
    visualbert_grounder,
)
from tests.models.test_visualbert import TINY, batch_of, build, close, regions, texts


def two_images(seed=7):
    features, found = regions((3, 4, 2), seed=seed)
    batch = batch_of()
    return batch | {
        "features": torch.stack([batch["features"], features], dim=1),
        "region_valid": torch.stack([batch["region_valid"], found], dim=1),
    }


def pooled(num_classes, seed=0):
    return build(seed, heads=("answer",), num_classes=num_classes, answer_from="pooled")


# From a pretrained model to one for a task


def test_a_classifier_keeps_all_but_the_heads():
    model = build()
    for fresh in (visualbert_classifier(model, 7), visualbert_classifier(model, 2, "pooled")):
        state = model.state_dict()
        for key, tensor in fresh.state_dict().items():
            assert key.startswith("heads.answer.") or torch.equal(tensor, state[key]), key
        assert fresh.config.heads == ("answer",)
    assert fresh.config.answer_from == "pooled"
    assert fresh.heads["answer"].weight.shape == (2, 24)


def test_a_classifier_of_a_classifier_has_a_fresh_head():
    torch.manual_seed(3)
    old = build(heads=("answer",), num_classes=7)
    fresh = visualbert_classifier(old, 7)
    assert not torch.equal(fresh.heads["answer"].weight, old.heads["answer"].weight)


def test_a_grounder_keeps_the_heads():
    model = build()
    fresh = visualbert_grounder(model)
    assert list(fresh.heads) == ["words", "match", "grounding"]
    assert torch.equal(fresh.heads["match"].weight, model.heads["match"].weight)
    assert fresh.heads["grounding"].query.weight.shape == (8, 24)


# Questions


def test_answers_compete():
    model, batch = build(heads=("answer",), num_classes=4), batch_of()
    scores = torch.tensor([[1.0, 0.3, 0, 0], [0, 0, 0.6, 0], [0, 0, 0, 0]])
    loss = VisualBERTQuestionAnswering(model).losses(batch | {"scores": scores})["answers"]
    logits = model.answer_logits(features_of(model, batch)).log_softmax(-1)
    by_hand = 0.0
    for row in range(3):
        for answer in range(4):
            score = scores[row, answer]
            if score > 0:
                by_hand += score * (score.log() - logits[row, answer])
    close(loss, by_hand / 3)


def test_dropout_falls_on_what_answers_are_read_from():
    torch.manual_seed(0)
    model = VisualBERT(replace(TINY, heads=("answer",), num_classes=4, dropout=0.5))
    features = features_of(model.eval(), batch_of())
    first = model.answer_logits(features)
    assert torch.equal(first, model.answer_logits(features))
    assert not torch.equal(model.train().answer_logits(features), first)


# Two images


def test_two_images_make_one_sequence():
    batch = two_images()
    joined = in_one_sequence(batch)
    assert joined["features"].shape == (3, 8, 10)
    assert joined["region_types"].tolist() == [[0] * 4 + [1] * 4] * 3
    close(joined["features"][:, 4:], batch["features"][:, 1])
    assert torch.equal(joined["region_valid"][:, :4], batch["region_valid"][:, 0])
    model = pooled(2)
    labels = torch.tensor([0, 1, 1])
    loss = VisualBERTReasoning(model).losses(batch | {"labels": labels})["answers"]
    logits = model.answer_logits(features_of(model, joined))
    close(loss, F.cross_entropy(logits, labels))


def test_the_order_of_the_images_matters_only_through_types():
    model, batch = pooled(2), two_images()
    turned = {name: batch[name].flip(1) for name in ("features", "region_valid")}

    def logits(batch):
        return model.answer_logits(features_of(model, in_one_sequence(batch)))

    assert (logits(batch) - logits(batch | turned)).abs().max() > 1e-3
    table = model.region_embeddings.type_embedding.weight.data
    table[1] = table[0]
    close(logits(batch), logits(batch | turned))


def test_masks_may_be_missing():
    model, batch = pooled(2), two_images()
    batch |= {"labels": torch.tensor([0, 1, 1]), "features": batch["features"][:, :, :2]}
    full = batch | {"region_valid": torch.ones(3, 2, 2, dtype=torch.bool)}
    del batch["region_valid"]
    losses = [VisualBERTReasoning(model).losses(given)["answers"] for given in (batch, full)]
    close(*losses)


# Choices


def choices():
    (ids, valid), batch = texts(), batch_of()
    batch["input_ids"] = torch.stack([ids, ids.flip(0), ids.roll(1, 0), ids], dim=1)
    batch["attention_mask"] = torch.stack([valid, valid.flip(0), valid.roll(1, 0), valid], dim=1)
    generator = torch.Generator().manual_seed(4)
    batch["alignment"] = torch.randint(-1, 7, (3, 4, 4, 2), generator=generator)
    return batch


def test_each_choice_is_scored_alone_with_the_same_regions():
    model, batch = pooled(1), choices()
    scores = choice_scores(model, batch)
    assert scores.shape == (3, 4)
    for choice in range(4):
        alone = {
            name: t[:, choice] if name in ("input_ids", "attention_mask", "alignment") else t
            for name, t in batch.items()
        }
        close(scores[:, choice], model.answer_logits(features_of(model, alone))[:, 0])
    labels = torch.tensor([3, 0, 1])
    loss = VisualBERTChoices(model).losses(batch | {"labels": labels})["choices"]
    close(loss, F.cross_entropy(scores, labels))


# Grounding


def test_grounding_is_a_sum_over_phrases():
    model, batch = build(heads=("grounding",)), batch_of()
    places = torch.tensor([[1, 3], [2, -1], [1, 2]])
    targets = torch.zeros(3, 2, 4)
    targets[0, 0, 1] = targets[0, 1, 3] = targets[1, 0, 0] = 1
    targets[2, 0, :2] = 0.5
    given = batch | {"places": places, "targets": targets}
    loss = VisualBERTGrounding(model).losses(given)["grounding"]
    features, head = features_of(model, batch), model.heads["grounding"]
    by_hand = 0.0
    for row in range(3):
        found = int(batch["region_valid"][row].sum())
        for phrase in range(2):
            target = targets[row, phrase, :found]
            query = head.query(features.text[row, places[row, phrase]])
            scores = head.key(features.regions[row, :found]) @ query / 8**0.5
            right = target > 0
            terms = target * (target.clamp_min(1e-30).log() - scores.log_softmax(-1))
            by_hand += terms[right].sum()
    close(loss, by_hand / 3)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    # The matrix of values is there for the files only.
    assert head.value.weight.grad is None


def test_phrases_that_only_fill_up_cost_nothing():
    model, batch = build(heads=("grounding",)), batch_of()
    given = batch | {"places": torch.tensor([[1], [2], [1]]), "targets": torch.zeros(3, 1, 4)}
    given["targets"][..., 0] = 1
    filled = given | {
        "places": F.pad(given["places"], (0, 1), value=-1),
        "targets": F.pad(given["targets"], (0, 0, 0, 1)),
    }
    losses = [VisualBERTGrounding(model).losses(which)["grounding"] for which in (given, filled)]
    close(*losses)


def test_recall_by_hand():
    scores = torch.tensor([[[3.0, 2, 1], [1, 2, 3]], [[1, 3, 2], [9, 1, 1]]])
    right = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[1, 0, 0], [0, 0, 0]]]).bool()
    assert grounding_recall(scores, right).item() == pytest.approx(1 / 3)
    assert grounding_recall(scores, right, k=2).item() == pytest.approx(2 / 3)
    assert grounding_recall(scores, right, k=9).item() == 1


@pytest.mark.parametrize(
    ("module", "head"),
    [
        (VisualBERTQuestionAnswering, "answer"),
        (VisualBERTReasoning, "answer"),
        (VisualBERTChoices, "answer"),
        (VisualBERTGrounding, "grounding"),
    ],
)
def test_missing_heads_are_named(module, head):
    with pytest.raises(ValueError, match=f"no '{head}' head"):
        module(build())
