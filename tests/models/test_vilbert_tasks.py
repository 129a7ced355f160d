from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.models.vilbert import HEADS, ViLBERT, ViLBERTConfig
from mmlab.models.vilbert_tasks import (
    TASKS,
    ViLBERTChoice,
    ViLBERTEntailment,
    ViLBERTGrounding,
    ViLBERTQuestionAnswering,
    ViLBERTReasoning,
    four_way_choice,
    grounded,
    grounding_targets,
    similar_images,
    vilbert_for,
)

TINY = ViLBERTConfig(
    vocab_size=50,
    context_length=8,
    max_positions=12,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    feature_dim=10,
    num_region_classes=7,
    region_dim=32,
    region_depth=1,
    region_num_heads=2,
    region_mlp_dim=28,
    fusion_dim=20,
    fusion_num_heads=5,
    text_connections=(1,),
    region_connections=(0,),
    dropout=0.0,
    attention_dropout=0.0,
    heads=HEADS,
    num_classes=6,
    num_gqa_classes=4,
)


def build(**changes):
    torch.manual_seed(0)
    model = ViLBERT(replace(TINY, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def texts(*shape, seed=1):
    """Token numbers and which are valid; the last row has two fewer."""
    ids = torch.randint(5, 50, shape, generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(shape, dtype=torch.bool)
    valid[-1, ..., -2:] = False
    return {"input_ids": ids.where(valid, 0), "attention_mask": valid}


def regions(*shape, seed=2):
    """The last row has one fewer."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.ones(shape, dtype=torch.bool)
    valid[-1, ..., -1:] = False
    return {
        "features": torch.randn(*shape, 10, generator=generator) * valid[..., None],
        "locations": torch.rand(*shape, 5, generator=generator) * valid[..., None],
        "region_valid": valid,
    }


def row(model, batch, index, **changes):
    """The features of one pair, computed alone and without padding."""
    one = {name: tensor[index] for name, tensor in batch.items()}
    words, places = one["attention_mask"], one["region_valid"]
    return model(
        one["input_ids"][words][None],
        one["features"][places][None],
        one["locations"][places][None],
        **changes,
    )


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# Questions


@pytest.mark.parametrize(("head", "classes"), [("answer", 6), ("gqa", 4)])
def test_questions_are_yes_or_no_for_each_answer(head, classes):
    model, batch = build(), texts(3, 6) | regions(3, 4)
    scores = torch.rand(3, classes)
    module = ViLBERTQuestionAnswering(model, head)
    loss = module.losses(batch | {"scores": scores})["answers"]
    read = model.gqa_logits if head == "gqa" else model.answer_logits
    total = 0.0
    for i in range(3):
        p = read(row(model, batch, i))[0].sigmoid()
        total -= (scores[i] * p.log() + (1 - scores[i]) * (1 - p).log()).sum()
    close(loss, total / 3)


def test_the_head_that_is_asked_for_must_be_there():
    with pytest.raises(ValueError, match="no 'gqa' head"):
        ViLBERTQuestionAnswering(build(heads=("answer",), num_gqa_classes=0), "gqa")
    with pytest.raises(ValueError, match="no 'grounding' head"):
        ViLBERTGrounding(build(heads=("answer",), num_gqa_classes=0))


# Task tokens


def test_each_task_has_its_number():
    model, batch = build(num_tasks=20), texts(3, 6) | regions(3, 4)
    asked = batch | {"scores": torch.rand(3, 6)}
    losses = {}
    for task in ("vqa", "genome_qa"):
        module = ViLBERTQuestionAnswering(model, task=task)
        losses[task] = module.losses(asked)["answers"]
        features = row(model, batch, 0, task_ids=torch.tensor([TASKS[task]]))
        close(module.features(asked).text_pooled[:1], features.text_pooled)
    assert (losses["vqa"] - losses["genome_qa"]).abs() > 1e-4
    assert sorted(TASKS.values()) == list(range(1, 19)) and TASKS["refcoco+"] == 10
    with pytest.raises(ValueError, match=r"task must be one of 'vqa', .*, got 'sound'"):
        ViLBERTQuestionAnswering(model, task="sound")


def test_without_task_tokens_the_name_is_not_asked():
    assert ViLBERTQuestionAnswering(build(), task="sound").task_id is None


# Choices


@pytest.mark.parametrize("own_regions", [True, False])
def test_a_choice_is_a_softmax_over_the_pairs(own_regions):
    model = build()
    shape = (3, 4, 5) if own_regions else (3, 5)
    batch = texts(3, 4, 6) | regions(*shape)
    batch["types"] = torch.zeros(3, 4, 6, dtype=torch.long)
    batch["types"][..., 3:] = 1
    labels = torch.tensor([2, 0, 3])
    expected = 0.0
    for i, label in enumerate(labels.tolist()):
        scores = []
        for option in range(4):
            pair = {name: batch[name][i : i + 1, option] for name in ("input_ids", "types")}
            told = regions_of(batch, i, option, own_regions)
            valid = batch["attention_mask"][i : i + 1, option]
            features = model(**pair, **told, text_valid=valid)
            scores.append(model.rank_scores(features)[0])
        expected = expected - torch.stack(scores).log_softmax(0)[label] / 3
    module = ViLBERTChoice(model, "vcr_answer")
    close(module.losses(batch | {"labels": labels})["choices"], expected)
    first = module.losses(batch | {"labels": torch.zeros(3, dtype=torch.long)})
    assert torch.equal(module.losses(batch)["choices"], first["choices"])


def regions_of(batch, image, option, own):
    names = ("features", "locations", "region_valid")
    told = {name: batch[name][image : image + 1] for name in names}
    return {name: tensor[:, option] for name, tensor in told.items()} if own else told


def pairs_of(batch=3):
    told = regions(batch, 4)
    others = regions(batch, 5, seed=7)
    corners = told["locations"][..., :2] * 10
    strangers = others["locations"][..., :2] * 10
    false = texts(batch, 7, seed=5)
    return texts(batch, 6) | {
        "other_ids": false["input_ids"],
        "other_mask": false["attention_mask"],
        "features": told["features"],
        "region_valid": told["region_valid"],
        "boxes": torch.cat([corners, corners + 3], dim=-1),
        "image_sizes": torch.tensor([[20.0, 10.0]] * batch),
        "other_features": others["features"],
        "other_region_valid": others["region_valid"],
        "other_boxes": torch.cat([strangers, strangers + 2], dim=-1),
        "other_image_sizes": torch.tensor([[10.0, 20.0]] * batch),
    }


def test_the_four_pairs_of_flickr30k():
    pairs, hard = pairs_of(), torch.tensor([2, 0, 1])
    batch = four_way_choice(pairs, hard)
    own, false = F.pad(pairs["input_ids"], (0, 1)), pairs["other_ids"]
    for option, ids in enumerate((own, false, own, own[hard])):
        assert torch.equal(batch["input_ids"][:, option], ids)
        assert torch.equal(batch["attention_mask"][:, option], ids != 0)
    own, other = F.pad(pairs["features"], (0, 0, 0, 1)), pairs["other_features"]
    for option, features in enumerate((own, own, other, own)):
        assert torch.equal(batch["features"][:, option], features)
    x, y = pairs["boxes"][0, 0, :2].tolist()
    expected = torch.tensor([x / 20, y / 10, (x + 3) / 20, (y + 3) / 10, 9 / 200])
    close(batch["locations"][0, 0, 0], expected)
    assert batch["locations"].shape == (3, 4, 5, 5)
    assert batch["region_valid"][0].sum(-1).tolist() == [4, 4, 5, 4]
    loss = ViLBERTChoice(build()).losses(batch)["choices"]
    assert loss.isfinite()


def test_hard_captions_are_of_images_that_look_alike():
    features = torch.zeros(6, 3, 10)
    features[:3, :, 0], features[3:, :, 1] = 1.0, 1.0
    features += 0.01 * torch.randn(6, 3, 10, generator=torch.Generator().manual_seed(0))
    draws = torch.stack(
        [
            similar_images(features, None, 2, torch.Generator().manual_seed(seed))
            for seed in range(30)
        ]
    )
    for image in range(6):
        alike = {0, 1, 2} if image < 3 else {3, 4, 5}
        assert set(draws[:, image].tolist()) == alike - {image}
    everyone = [
        similar_images(features, generator=torch.Generator().manual_seed(s)) for s in (0, 1)
    ]
    assert all((drawn != torch.arange(6)).all() for drawn in everyone)
    with pytest.raises(ValueError, match="a single image has no image like it"):
        similar_images(features[:1])


# Statements


def test_a_statement_is_about_both_images():
    model, batch = build(), texts(3, 6) | regions(3, 2, 4)
    labels = torch.tensor([1, 0, 1])
    loss = ViLBERTReasoning(model).losses(batch | {"labels": labels})["answers"]
    logits = []
    for i in range(3):
        images = ("features", "locations", "region_valid")
        told = {n: (batch[n][i] if n in images else batch[n][[i, i]]) for n in batch}
        fused = torch.cat([model.fuse(row(model, told, j))[0] for j in (0, 1)])
        logits.append(model.heads["pair"](fused))
    expected = F.binary_cross_entropy(torch.stack(logits).sigmoid(), F.one_hot(labels, 2).float())
    close(loss, expected)


def test_an_odd_number_of_images_is_refused():
    model, batch = build(), texts(3, 6) | regions(3, 4)
    module = ViLBERTQuestionAnswering(model)
    with pytest.raises(ValueError, match="features must be of pairs of images, got 3 rows"):
        model.pair_logits(module.features(batch))


def test_entailment_is_three_questions():
    model, batch = build(), texts(3, 6) | regions(3, 4)
    labels = torch.tensor([2, 0, 1])
    loss = ViLBERTEntailment(model).losses(batch | {"labels": labels})["answers"]
    logits = torch.cat([model.entailment_logits(row(model, batch, i)) for i in range(3)])
    close(loss, F.binary_cross_entropy(logits.sigmoid(), F.one_hot(labels, 3).float()))


# Referring phrases


def test_targets_are_overlaps_of_at_least_a_half():
    boxes = torch.tensor([[[0, 0, 9, 9], [0, 0, 9, 3], [2, 0, 11, 9], [0.0, 0, 0, 0]]])
    sizes, true = torch.tensor([[20.0, 10.0]]), torch.tensor([[0.0, 0, 9, 9]])
    valid = torch.tensor([[True, True, True, False]])
    targets = grounding_targets(boxes, sizes, true, valid)
    # Pixels are counted: 10 x 10 and, of the whole image, 21 x 11; 4 of 10 rows; 80 of 120.
    assert targets.shape == (1, 5)
    close(targets, torch.tensor([[0.0, 1.0, 0.0, 80 / 120, 0.0]]))
    whole = grounding_targets(boxes, sizes, torch.tensor([[0.0, 0, 19, 9]]), valid)
    close(whole[0, 0], torch.tensor(200 / 231))
    padded = grounding_targets(boxes, sizes, torch.zeros(1, 4), valid)
    assert not padded[0, 4]


def test_grounding_asks_every_region_and_the_whole_image():
    model, batch = build(), texts(3, 6) | regions(3, 4)
    targets = torch.rand(3, 5) * F.pad(batch["region_valid"], (1, 0), value=True)
    loss = ViLBERTGrounding(model).losses(batch | {"targets": targets})["grounding"]
    total = 0.0
    for i in range(3):
        p = model.grounding_logits(row(model, batch, i))[0].sigmoid()
        q = targets[i, : len(p)]
        total -= (q * p.log() + (1 - q) * (1 - p).log()).sum()
    close(loss, total / 3)


def test_padding_is_never_the_best_region():
    model, batch = build(), texts(3, 6) | regions(3, 4)
    logits = model.grounding_logits(ViLBERTGrounding(model).features(batch))
    assert logits[2, 4] < -9000 and (logits[:2] > -100).all()
    targets = torch.tensor([[0.0, 0.6, 0.0], [0.0, 0.5, 0.9]])
    scores = torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    assert grounded(scores, targets).tolist() == [True, False]


# From one model to the next


def test_a_pretrained_model_goes_on_with_fresh_heads():
    old = build(heads=("words", "regions", "match"), num_classes=0, num_gqa_classes=0)
    new = vilbert_for(old, ("match", "answer", "rank"), num_classes=9, num_tasks=20).eval()
    assert new.config == replace(
        old.config, heads=("match", "answer", "rank"), num_classes=9, num_tasks=20
    )
    own = old.state_dict()
    shared = [key for key in new.state_dict() if key in own]
    assert all(torch.equal(new.state_dict()[key], own[key]) for key in shared)
    fresh = {key.split(".")[0] for key in new.state_dict() if key not in own}
    assert fresh == {"heads", "task_embedding"}
    # A head of another size starts fresh as well.
    again = vilbert_for(new, ("answer",), num_classes=3)
    assert again.heads["answer"].decoder.weight.shape == (3, 40)
    kept = "heads.answer.transform.dense.weight"
    assert torch.equal(again.state_dict()[kept], new.state_dict()[kept])
