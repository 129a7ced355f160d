"""UNITER's tasks: where each head starts, and what its loss is."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.models.uniter import UNITER, UNITERConfig, pair_features
from mmlab.models.uniter_tasks import (
    UNITERChoice,
    UNITEREntailment,
    UNITERQuestionAnswering,
    UNITERReasoning,
    UNITERReferring,
    UNITERRetrieval,
    choice_text,
    uniter_answerer,
    uniter_chooser,
    uniter_ranker,
    uniter_reasoner,
    uniter_referrer,
)

TINY = UNITERConfig(
    vocab_size=50,
    context_length=12,
    max_positions=12,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    feature_dim=10,
    num_region_classes=7,
    dropout=0.0,
    attention_dropout=0.0,
)


def randomised(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def build(**changes):
    return randomised(UNITER(replace(TINY, **changes)))


def texts(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 8, shape, generator=generator)
    lengths.view(-1)[0] = 7
    valid = torch.arange(7) < lengths[..., None]
    ids = torch.randint(5, 50, (*shape, 7), generator=generator).where(valid, 0)
    return {"input_ids": ids, "attention_mask": valid}


def images(*shape, seed=2):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(1, 6, shape, generator=generator)
    found.view(-1)[0] = 5
    return {
        "features": torch.randn(*shape, 5, 10, generator=generator),
        "locations": torch.rand(*shape, 5, 7, generator=generator),
        "region_valid": torch.arange(5) < found[..., None],
    }


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# Questions and entailment


def test_a_network_for_a_task_goes_on_from_the_pretrained_one():
    model, batch = build(), texts(3) | images(3)
    expected = pair_features(model, batch).pooled
    for network, heads in (
        (uniter_answerer(model, 9), ["answer"]),
        (uniter_ranker(model), ["match", "rank"]),
        (uniter_reasoner(model), ["pair"]),
        (uniter_chooser(model), ["choice"]),
        (uniter_referrer(model, 2), ["refer"]),
    ):
        assert list(network.heads) == heads
        close(pair_features(network.eval(), batch).pooled, expected)


def test_a_second_fine_tuning_has_a_fresh_head():
    model = build(heads=("answer",), num_classes=5)
    assert uniter_answerer(model, 3).heads["answer"].decoder.weight.shape == (3, 48)


def test_answers_are_yes_or_no_each():
    model, batch = build(heads=("answer",), num_classes=9), texts(3) | images(3)
    batch["scores"] = torch.rand(3, 9, generator=torch.Generator().manual_seed(0))
    logits = model.answer_logits(pair_features(model, batch))
    each = -(batch["scores"] * F.logsigmoid(logits) + (1 - batch["scores"]) * F.logsigmoid(-logits))
    close(UNITERQuestionAnswering(model).losses(batch)["answers"], each.sum(1).mean())


def test_the_answer_head_activates_before_it_normalises():
    model, batch = build(heads=("answer",), num_classes=9), texts(3) | images(3)
    head, pooled = model.heads["answer"], pair_features(model, batch).pooled
    assert head.transform.dense.weight.shape == (48, 24)
    hidden = F.gelu(head.transform.dense(pooled))
    norm = head.transform.norm
    hidden = F.layer_norm(hidden, (48,), norm.weight, norm.bias, 1e-12)
    close(model.answer_logits(pair_features(model, batch)), head.decoder(hidden))


def test_entailment_is_three_answers():
    model, batch = build(heads=("answer",), num_classes=3), texts(3) | images(3)
    labels = torch.tensor([2, 0, 1])
    scores = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    expected = UNITERQuestionAnswering(model).losses(batch | {"scores": scores})["answers"]
    close(UNITEREntailment(model).losses(batch | {"labels": labels})["answers"], expected)


# Retrieval


def test_a_ranker_starts_as_the_logit_for_a_match():
    model, batch = build(), texts(3) | images(3)
    ranker = uniter_ranker(model).eval()
    logits = model.matching_logits(pair_features(model, batch))
    close(ranker.rank_scores(pair_features(ranker, batch)), logits[:, 1])
    with pytest.raises(ValueError, match="no 'match' head"):
        uniter_ranker(build(heads=("words",)))


def test_the_score_of_a_ranker_is_no_view_of_the_matching_head():
    ranker = uniter_ranker(build())
    before = ranker.heads["rank"].weight.clone()
    ranker.heads["match"].weight.data.zero_()
    assert torch.equal(ranker.heads["rank"].weight, before)


def pair_scores(model, batch, index):
    """The score of pair number ``index`` of each row, each pair by itself."""
    one = {name: tensor[:, min(index, tensor.shape[1] - 1)] for name, tensor in batch.items()}
    return model.rank_scores(pair_features(model, one)).sigmoid()


def test_false_pairs_must_stay_behind_by_the_margin():
    model, batch = build(heads=("rank",)), texts(2, 4) | images(2, 4)
    true, *false = [pair_scores(model, batch, index) for index in range(4)]
    for margin in (0.2, 0.9):
        expected = torch.stack([(margin + other - true).clamp_min(0) for other in false]).mean()
        loss = UNITERRetrieval(model, margin).losses(batch)["ranking"]
        close(loss, expected)
        assert loss > 0


@pytest.mark.parametrize("shared", ["text", "image"])
def test_pairs_may_share_a_text_or_an_image(shared):
    model = build(heads=("rank",))
    batch = texts(2, 1) | images(2, 4) if shared == "text" else texts(2, 4) | images(2, 1)
    expected = torch.stack([pair_scores(model, batch, index) for index in range(4)], dim=1)
    close(UNITERRetrieval(model).scores(batch).sigmoid(), expected)


def test_the_hardest_false_pairs_are_learnt_from():
    model, batch = build(heads=("rank",)), texts(1, 1) | images(1, 12)
    scores = torch.stack([pair_scores(model, batch, index) for index in range(12)], dim=1)
    hard = scores[:, 1:].sort(descending=True).values[:, :3]
    expected = (0.2 + hard - scores[:, :1]).clamp_min(0).mean()
    close(UNITERRetrieval(model, hardest=3).losses(batch)["ranking"], expected)
    every = UNITERRetrieval(model).losses(batch)["ranking"]
    close(UNITERRetrieval(model, hardest=40).losses(batch)["ranking"], every)
    assert (every - expected).abs() > 1e-4


def test_hard_pairs_are_looked_for_without_dropout_and_gradient():
    model = build(heads=("rank",), dropout=0.3)
    module = UNITERRetrieval(model, hardest=2).train()
    calls = []
    model.register_forward_hook(
        lambda network, _, out: calls.append((network.training, out.pooled.requires_grad))
    )
    module.losses(texts(1, 1) | images(1, 6))["ranking"].backward()
    assert calls == [(False, False), (True, True)]
    assert model.training and model.heads["rank"].weight.grad is not None


# Two images


def test_a_second_image_is_of_a_third_type():
    model = build()
    reasoner = uniter_reasoner(model)
    rows = model.text_embeddings.type_embedding.weight
    assert torch.equal(reasoner.text_embeddings.type_embedding.weight, rows[[0, 1, 1]])


def test_reasoning_reads_both_images():
    model, labels = build(heads=("pair",), num_types=3), torch.tensor([1, 0, 1])
    batch = texts(3) | images(3, 2) | {"labels": labels}
    sides, masks = [], []
    for image in (0, 1):
        one = {name: batch[name][:, image] for name in ("features", "locations", "region_valid")}
        types = torch.full((3, 5), 1 + image)
        sides.append(pair_features(model, batch | one, region_types=types))
        masks.append(torch.cat([batch["attention_mask"], one["region_valid"]], dim=1))
    logits = model.pair_logits(*sides, *masks)
    module = UNITERReasoning(model)
    close(module.logits(batch), logits)
    close(module.losses(batch)["answers"], F.cross_entropy(logits, labels))
    swapped = batch | {name: batch[name].flip(1) for name in images(3, 2)}
    assert (module.logits(swapped) - logits).abs().max() > 1e-3


def test_padding_changes_no_verdict():
    model, batch = build(heads=("pair",), num_types=3), texts(3) | images(3, 2)
    before = UNITERReasoning(model).logits(batch)
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"], 9)
    valid = batch["region_valid"][..., None]
    batch["features"] = torch.where(valid, batch["features"], 7.0)
    close(UNITERReasoning(model).logits(batch), before)


# Choices


def test_a_chooser_has_types_and_words_for_vcr():
    model = build()
    chooser = uniter_chooser(model, extra_words=4)
    old, new = (m.text_embeddings for m in (model, chooser))
    assert torch.equal(new.type_embedding.weight, old.type_embedding.weight[[0, 1, 0, 0]])
    assert torch.equal(new.word_embedding.weight[:50], old.word_embedding.weight)
    assert new.word_embedding.weight.shape == (54, 24)
    assert 0.001 < new.word_embedding.weight[50:].std() < 0.06
    with pytest.raises(ValueError, match="extra_words must be a number of at least 0, got -1"):
        uniter_chooser(model, -1)


def test_texts_of_choices():
    ids, types = choice_text([11, 12], [21], cls_id=2, sep_id=3)
    assert ids.tolist() == [2, 11, 12, 3, 21, 3]
    assert types.tolist() == [0, 0, 0, 2, 2, 2]
    ids, types = choice_text([11, 12], [31, 32], cls_id=2, sep_id=3, answer=[21])
    assert ids.tolist() == [2, 11, 12, 3, 21, 3, 31, 32, 3]
    assert types.tolist() == [0, 0, 0, 2, 2, 3, 3, 3, 3]


def test_choices_are_right_or_wrong_each():
    model = build(heads=("choice",), num_types=4)
    batch = texts(2, 4) | images(2) | {"labels": torch.tensor([3, 0])}
    types = torch.where(torch.arange(7) < 3, 0, 2).expand(2, 4, -1)
    module = UNITERChoice(model)
    loss, each = module.losses(batch | {"text_types": types})["choices"], []
    for index in range(4):
        one = batch | {name: batch[name][:, index] for name in ("input_ids", "attention_mask")}
        logits = model.choice_logits(pair_features(model, one, text_types=types[:, index]))
        right = (batch["labels"] == index).long()
        each.append(F.cross_entropy(logits, right, reduction="none"))
        scores = module.scores(batch | {"text_types": types})
        close(scores[:, index], logits[:, 1])
    close(loss, torch.stack(each).mean())
    plain = module.scores(batch | {"text_types": 0 * types})
    assert (plain - scores).abs().max() > 1e-3


def test_the_choice_head_has_a_relu():
    assert isinstance(build(heads=("choice",)).heads["choice"].transform.activation, torch.nn.ReLU)


# Referring expressions


@pytest.mark.parametrize("layers", [1, 2])
def test_an_expression_means_one_of_the_regions(layers):
    model = randomised(uniter_referrer(build(), layers))
    batch = texts(3) | images(3) | {"labels": torch.tensor([4, 0, 0])}
    features = pair_features(model, batch)
    module = UNITERReferring(model)
    scores = module.scores(batch)
    assert (scores[~batch["region_valid"]] == -1e4).all()
    close(
        scores[batch["region_valid"]],
        model.heads["refer"](features.regions)[..., 0][batch["region_valid"]],
    )
    close(module.losses(batch)["regions"], F.cross_entropy(scores, batch["labels"]))
    short = F.cross_entropy(scores[1][batch["region_valid"][1]][None], batch["labels"][1:2])
    close(F.cross_entropy(scores[1:2], batch["labels"][1:2]), short)


@pytest.mark.parametrize(
    ("module", "head"),
    [
        (UNITERQuestionAnswering, "answer"),
        (UNITEREntailment, "answer"),
        (UNITERRetrieval, "rank"),
        (UNITERReasoning, "pair"),
        (UNITERChoice, "choice"),
        (UNITERReferring, "refer"),
    ],
)
def test_a_missing_head_is_named(module, head):
    with pytest.raises(ValueError, match=f"this UNITER has no {head!r} head"):
        module(build())


def test_a_wrong_number_of_hard_pairs_is_named():
    with pytest.raises(ValueError, match="hardest must be an integer of at least 1, got 0"):
        UNITERRetrieval(build(heads=("rank",)), hardest=0)
