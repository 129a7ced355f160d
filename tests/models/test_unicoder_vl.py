"""Unicoder-VL: what it has other than UNITER, and a lesson that masks both and mismatches."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import mmlab
from mmlab.analysis import count_parameters
from mmlab.models import unicoder_vl
from mmlab.models.unicoder_vl import UnicoderVL, UnicoderVLPretraining, unicoder_vl_lesson
from mmlab.models.uniter import UNITER, UNITERConfig, pair_features
from mmlab.models.uniter_tasks import UNITERQuestionAnswering, uniter_answerer, uniter_ranker
from mmlab.nn.region_locations import corner_area_locations
from mmlab.objectives.masked_language import IGNORED

TINY = UNITERConfig(
    vocab_size=50,
    context_length=12,
    max_positions=12,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    feature_dim=10,
    num_region_classes=6,
    heads=("words", "classes", "match"),
    dropout=0.0,
    attention_dropout=0.0,
)
MASK, SPECIAL = 4, (0, 1, 2, 3, 4)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = UnicoderVL(replace(TINY, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def raw_pairs(count=60, seed=1):
    """Captions of one image and of another, and the regions of both."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for prefix, text, mask, width in (
        ("", "input_ids", "attention_mask", 9),
        ("other_", "other_ids", "other_mask", 7),
    ):
        lengths = torch.randint(4, width + 1, (count,), generator=generator)
        valid = torch.arange(width) < lengths[:, None]
        ids = torch.randint(5, 50, (count, width), generator=generator).where(valid, 0)
        ids[:, 0] = 2
        ids[torch.arange(count), lengths - 1] = 3
        found = torch.randint(1, 9, (count, 1), generator=generator)
        there = torch.arange(8) < found
        corners = 20 * torch.rand(count, 8, 2, generator=generator)
        boxes = torch.cat([corners, corners + 9], dim=-1) * there[..., None]
        pairs |= {
            text: ids,
            mask: valid,
            f"{prefix}boxes": boxes,
            f"{prefix}image_sizes": torch.tensor([[64.0, 48.0]]).expand(count, -1),
            f"{prefix}region_valid": there,
            f"{prefix}features": torch.randn(count, 8, 10, generator=generator) * there[..., None],
            f"{prefix}classes": torch.randint(6, (count, 8), generator=generator) * there,
        }
    return pairs


def lesson(seed=2, count=60):
    generator = torch.Generator().manual_seed(seed)
    return unicoder_vl_lesson(raw_pairs(count), MASK, 50, SPECIAL, generator)


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# The network


def test_the_region_embedding_is_one_norm_of_a_sum():
    model, batch = build(), lesson()
    part = model.region_embedding
    total = part.feature_projection(batch["features"]) + part.location_projection(
        batch["locations"]
    )
    expected = F.layer_norm(total, (24,), part.norm.weight, part.norm.bias, 1e-12)
    close(model.embed_regions(batch["features"], batch["locations"]), expected)


def test_a_mask_or_a_type_of_regions_is_nothing():
    model, batch = build(), lesson()
    told = pair_features(model, batch).pooled
    close(
        pair_features(model, {k: t for k, t in batch.items() if k != "masked_regions"}).pooled, told
    )
    model.text_embeddings.type_embedding.weight.data[1] += 5.0
    close(pair_features(model, batch).pooled, told)
    types = torch.ones(60, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="region_types must be left out"):
        pair_features(model, batch, region_types=types)


def test_everything_but_the_region_embedding_is_uniters():
    ours, theirs = build().state_dict(), UNITER(TINY).state_dict()
    part = "region_embedding."
    assert {k for k in ours if not k.startswith(part)} == {
        k for k in theirs if not k.startswith(part)
    }
    lacking = theirs.keys() - ours.keys()
    names = ("feature_norm.weight", "location_norm.bias", "mask_embedding.weight")
    assert lacking >= {part + name for name in names}
    assert ours[f"{part}location_projection.weight"].shape == (24, 5)


def test_parameter_counts():
    """BERT-base with its pooler, the region embedding, and three heads."""
    with torch.device("meta"):
        model = UnicoderVL(unicoder_vl.UNICODER_VL_B)
        mini = UnicoderVL(unicoder_vl.UNICODER_VL_MINI)
    bert = 109_482_240
    regions = 768 * (2048 + 1) + 768 * (5 + 1) + 2 * 768
    words = 768 * 769 + 2 * 768 + 30522
    classes = 768 * 769 + 2 * 768 + 1600 * 769
    assert count_parameters(model) == bert + regions + words + classes + 2 * 769
    assert count_parameters(mini) < 2_000_000


def test_without_regions_texts_go_through_bert_alone():
    model, batch = build(), lesson()
    empty = {"features": torch.zeros(60, 0, 10), "locations": torch.zeros(60, 0, 5)}
    features = model(batch["input_ids"], *empty.values(), batch["attention_mask"])
    twin = UNITER(TINY).eval()
    state = {k: t for k, t in model.state_dict().items() if not k.startswith("region_embedding.")}
    twin.load_state_dict(twin.state_dict() | state)
    none = torch.zeros(60, 0, 7)
    close(
        features.pooled,
        twin(batch["input_ids"], empty["features"], none, batch["attention_mask"]).pooled,
    )


def test_attention_is_recorded():
    model, batch = build(), lesson(count=6)
    with mmlab.record_attention(model) as maps:
        pair_features(model, batch)
    assert len(maps) == 2
    for weights in maps.values():
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))


# The lesson


def kinds(batch, pairs):
    """Which rows have another text, and which another image."""
    width = batch["input_ids"].shape[1]
    other = F.pad(pairs["other_mask"], (0, width - pairs["other_mask"].shape[1]))
    text = (batch["attention_mask"] == other).all(1) & (
        batch["input_ids"][:, 1:] == F.pad(pairs["other_ids"], (0, 2))[:, 1:]
    ).float().mean(1).gt(0.5)
    image = torch.tensor(
        [
            torch.equal(a, b)
            for a, b in zip(batch["class_targets"], pairs["other_classes"], strict=True)
        ]
    )
    return text, image


def test_false_pairs_have_another_text_or_another_image():
    pairs, batch = raw_pairs(1200), lesson(count=1200)
    text, image = kinds(batch, pairs)
    matched = batch["matched"]
    assert (text | image)[~matched].float().mean() > 0.99
    assert image[matched].float().mean() < 0.1
    assert matched.float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert image[~matched].float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert (text & image & ~matched).float().mean() < 0.05
    swapped = image & ~matched & ~text
    locations = corner_area_locations(pairs["other_boxes"], pairs["other_image_sizes"])
    assert torch.equal(batch["locations"][swapped], locations[swapped])
    assert torch.equal(batch["region_valid"][swapped], pairs["other_region_valid"][swapped])


def test_false_pairs_are_masked_but_not_asked():
    batch = lesson(count=1200)
    matched = batch["matched"]
    assert (batch["labels"][~matched] == IGNORED).all()
    assert not batch["masked_regions"][~matched].any()
    asked = (batch["labels"] != IGNORED).any(1)
    assert torch.equal(asked, matched)
    assert torch.equal(batch["masked_regions"].any(1), matched)
    # No mask tells which pairs are true.
    hidden = (batch["input_ids"] == MASK).float().sum(1)
    assert hidden[matched].mean().item() == pytest.approx(hidden[~matched].mean().item(), rel=0.15)
    zeroed = (~batch["features"].any(-1) & batch["region_valid"]).float().sum(1)
    assert zeroed[matched].mean().item() == pytest.approx(zeroed[~matched].mean().item(), rel=0.2)


def test_words_and_regions_are_masked_at_once():
    batch = lesson(count=1200)
    both = (batch["labels"] != IGNORED).any(1) & batch["masked_regions"].any(1)
    assert torch.equal(both, batch["matched"])


def test_what_becomes_of_masked_regions():
    pairs, batch = raw_pairs(3000), lesson(count=3000)
    chosen, whole = batch["masked_regions"], pairs["features"]
    zeroed = ~batch["features"][chosen].any(-1)
    stayed = (batch["features"] == whole).all(-1)[chosen]
    assert zeroed.float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert stayed.float().mean().item() == pytest.approx(0.1, abs=0.03)
    swapped = batch["features"][chosen][~zeroed & ~stayed]
    assert len(swapped) > 100
    known = {tuple(f.tolist()) for f in torch.cat([whole, pairs["other_features"]]).flatten(0, 1)}
    assert all(tuple(feature.tolist()) in known for feature in swapped)


def test_the_generator_alone_decides_and_rows_are_the_first_axis():
    before = torch.get_rng_state()
    first, again, other = lesson(), lesson(), lesson(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(len(tensor) == 60 for tensor in first.values())


# Training


def test_the_losses_are_three_and_of_true_pairs():
    model, batch = build(), lesson()
    losses = UnicoderVLPretraining(model).losses(batch)
    assert list(losses) == ["masked_words", "masked_region_classes", "matching"]
    features = pair_features(model, batch)
    chosen = batch["masked_regions"]
    logits = model.region_logits(features.regions)[chosen]
    close(losses["masked_region_classes"], F.cross_entropy(logits, batch["class_targets"][chosen]))
    close(
        losses["matching"],
        F.cross_entropy(model.matching_logits(features), batch["matched"].long()),
    )


def test_it_can_be_learnt():
    torch.manual_seed(0)
    model, batch = UnicoderVLPretraining(UnicoderVL(replace(TINY, init="xavier"))), lesson(count=12)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    curve = []
    for _ in range(60):
        loss = sum(model.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    assert curve[-1] < 0.3 * curve[0]


def test_uniters_tasks_work_with_it():
    model, batch = build(), lesson()
    answerer = uniter_answerer(model, 5)
    assert type(answerer) is UnicoderVL
    scores = {"scores": torch.zeros(60, 5)}
    assert UNITERQuestionAnswering(answerer).losses(batch | scores)["answers"] > 0
    assert type(uniter_ranker(model)) is UnicoderVL
