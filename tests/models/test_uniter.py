"""UNITER: sizes, the region embedding, masking one modality at a time, what each task asks."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import mmlab
from mmlab.analysis import count_parameters
from mmlab.models import uniter
from mmlab.models.uniter import (
    ALL_DATA_POOLS,
    IN_DOMAIN_POOLS,
    UNITER,
    UNITERConfig,
    UNITERPretraining,
    draw_data_and_task,
    draw_task,
    pair_features,
    uniter_lesson,
)
from mmlab.nn import JointFeatures
from mmlab.nn.region_locations import corner_size_area_locations
from mmlab.objectives.masked_language import IGNORED
from mmlab.objectives.transport import cosine_cost, ipot, transport_distance

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
MASK, SPECIAL = 4, (0, 1, 2, 3, 4)
TASKS = ("itm", "mlm", "mrfr", "mrc-kl", "mrc")


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = UNITER(replace(TINY, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def raw_pairs(count=6, seed=1):
    """Captions with their images' regions and those of other images, some of them padded."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([9, 5, 7, 4, 8, 6]).repeat(count // 6)
    valid = torch.arange(9) < lengths[:, None]
    ids = torch.randint(5, 50, (count, 9), generator=generator).where(valid, 0)
    ids[:, 0] = 2
    ids[torch.arange(count), lengths - 1] = 3
    pairs = {"input_ids": ids, "attention_mask": valid}
    for prefix, found in (("", (4, 8, 6, 1, 5, 7)), ("other_", (8, 2, 7, 5, 8, 3))):
        pairs |= {f"{prefix}{k}": t for k, t in regions(count, found, generator).items()}
    return pairs


def regions(count, found, generator):
    there = torch.arange(8) < torch.tensor(found).repeat(count // 6)[:, None]
    corners = 20 * torch.rand(count, 8, 2, generator=generator)
    extents = 1 + 20 * torch.rand(count, 8, 2, generator=generator)
    scores = torch.randn(count, 8, 7, generator=generator)
    scores[:, ::2, 0] += 9
    boxes = torch.cat([corners, corners + extents], dim=-1)
    return {
        "features": torch.randn(count, 8, 10, generator=generator) * there[..., None],
        "boxes": boxes * there[..., None],
        "image_sizes": torch.tensor([[64.0, 48.0]]).expand(count, -1),
        "region_valid": there,
        "class_distributions": scores.softmax(-1) * there[..., None],
    }


def lesson(task, seed=2, joint=False, count=6, **changes):
    generator = torch.Generator().manual_seed(seed)
    pairs = raw_pairs(count) | changes
    return uniter_lesson(pairs, MASK, 50, SPECIAL, generator, {task: 1}, joint)


def batch_of():
    """Whole texts and images, nothing masked, nothing asked."""
    batch = lesson("itm")
    return {k: t for k, t in batch.items() if k != "matched"}


# Sizes


def test_parameter_counts():
    with torch.device("meta"):
        base, large = UNITER(uniter.UNITER_B), UNITER(uniter.UNITER_L)
        backbones = [UNITER(replace(m.config, heads=())) for m in (base, large)]
    assert [count_parameters(m) for m in (base, large)] == [112_938_887, 340_524_935]
    assert [count_parameters(m) for m in backbones] == [109_898_752, 335_695_872]
    assert count_parameters(large.trunk.blocks) == 302_309_376


def test_parameter_counts_of_the_parts():
    with torch.device("meta"):
        model = UNITER(uniter.UNITER_B)
    parts = {
        "text_embeddings": 22_665_216,
        "region_embedding": 1_588_480,
        "trunk.blocks": 85_054_464,
        "trunk.pooler": 590_592,
        "heads.words": 621_124,
        "heads.features": 592_128 + 2_048,
        "heads.classes": 1_823_297,
        "heads.match": 1_538,
    }
    assert {name: count_parameters(model.get_submodule(name)) for name in parts} == parts
    assert count_parameters(model) == sum(parts.values())


@pytest.mark.parametrize(
    ("size", "tokens", "gmacs"),
    [("b", 56, 4.81), ("b", 96, 8.32), ("b", 120, 10.46), ("l", 56, 17.07), ("l", 120, 36.95)],
)
def test_multiplications_of_the_blocks(size, tokens, gmacs):
    config = {"b": uniter.UNITER_B, "l": uniter.UNITER_L}[size]
    with (
        torch.device("meta"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as count,
    ):
        trunk = UNITER(replace(config, heads=())).eval().trunk
        trunk(torch.zeros(1, 20, config.dim), torch.zeros(1, tokens - 20, config.dim))
    n, d = tokens, config.dim
    expected = config.depth * (n * (4 * d**2 + 2 * d * config.mlp_dim) + 2 * n**2 * d)
    assert count.get_total_flops() == 2 * (expected + d**2)
    assert expected / 1e9 == pytest.approx(gmacs, abs=0.01)


def test_the_mini_model_is_small():
    assert count_parameters(UNITER(uniter.UNITER_MINI)) < 2_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 25}, "dim must be a multiple of num_heads=3, got 25"),
        ({"context_length": 13}, "context_length must be at most max_positions=12, got 13"),
        ({"num_types": 1}, "num_types must be an integer of at least 2, got 1"),
        ({"refer_layers": 3}, "refer_layers must be 1 or 2, got 3"),
        ({"heads": ("answer",)}, "num_classes must be at least 1 with the head 'answer', got 0"),
        ({"heads": ("wrong",)}, "heads must be a tuple of some of 'words'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"init": "zeros"}, "init must be one of 'normal', 'xavier', got 'zeros'"),
    ],
)
def test_wrong_configurations_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_a_head_that_is_not_there_is_named():
    model = build(heads=("match",))
    with pytest.raises(ValueError, match="this UNITER has no 'words' head; it has heads="):
        model.word_logits(pair_features(model, batch_of()))


# Regions


def test_the_region_embedding_is_three_norms_of_what_where_and_type():
    model, batch = build(), batch_of()
    part, masked = model.region_embedding, torch.zeros(6, 8, dtype=torch.bool)
    masked[0, 2] = masked[3, 0] = True

    def normed(x, norm):
        x = x - x.mean(-1, keepdim=True)
        return x / x.square().mean(-1, keepdim=True).sqrt() * norm.weight + norm.bias

    features = batch["features"].clone()
    features[masked] += part.mask_embedding.weight[1]
    what = normed(part.feature_projection(features), part.feature_norm)
    where = normed(part.location_projection(batch["locations"]), part.location_norm)
    expected = normed(what + where + model.text_embeddings.type_embedding.weight[1], part.norm)
    close(model.embed_regions(batch["features"], batch["locations"], masked), expected)


def test_words_and_regions_share_the_table_of_types():
    model, batch = build(), batch_of()
    features = pair_features(model, batch)
    rows = model.text_embeddings.type_embedding.weight
    types = torch.full((6, 8), 1)
    close(pair_features(model, batch, region_types=types).pooled, features.pooled)
    others = pair_features(model, batch, region_types=0 * types).pooled
    assert (others - features.pooled).abs().max() > 1e-3
    # Texts of type 1 have the row of the regions.
    rows.data[0], old = rows.data[1].clone(), rows.data[0].clone()
    same = pair_features(model, batch).text
    rows.data[0] = old
    close(pair_features(model, batch, text_types=torch.ones_like(batch["input_ids"])).text, same)


def test_the_unused_row_of_the_mask_embedding_stays_zero():
    model = build()
    table = model.region_embedding.mask_embedding.weight
    before = pair_features(model, lesson("mrfr")).pooled
    table.data[0] = 7.0
    close(pair_features(model, lesson("mrfr")).pooled, before)
    fresh = UNITER(TINY)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    for task in ("mrfr", "mlm", "mrc"):
        sum(UNITERPretraining(fresh).losses(lesson(task)).values()).backward()
        optimizer.step()
    assert not fresh.region_embedding.mask_embedding.weight[0].any()


@pytest.mark.parametrize("task", TASKS)
def test_the_mask_embedding_learns_from_masked_regions_alone(task):
    model = build()
    sum(UNITERPretraining(model).losses(lesson(task)).values()).backward()
    gradient = model.region_embedding.mask_embedding.weight.grad
    touched = gradient is not None and bool(gradient[1].any())
    assert touched == task.startswith("mr")


# The sequence


def test_padding_changes_nothing():
    model, batch = build(), batch_of()
    before = pair_features(model, batch)
    words, found = batch["attention_mask"], batch["region_valid"]
    batch["input_ids"] = batch["input_ids"].where(words, 9)
    for name in ("features", "locations"):
        batch[name] = torch.where(found[..., None], batch[name], 7.0)
    after = pair_features(model, batch)
    close(after.text[words], before.text[words])
    close(after.regions[found], before.regions[found])
    close(after.pooled, before.pooled)


def test_texts_padded_apart_are_the_same_as_the_gathered_sequence():
    """[text][regions] without padding between them, which is what the official code gathers."""
    model, batch = build(), batch_of()
    together = pair_features(model, batch)
    lengths = batch["attention_mask"].sum(1).tolist(), batch["region_valid"].sum(1).tolist()
    for row, (words, found) in enumerate(zip(*lengths, strict=True)):
        alone = model(
            batch["input_ids"][row : row + 1, :words],
            batch["features"][row : row + 1, :found],
            batch["locations"][row : row + 1, :found],
        )
        close(together.text[row, :words], alone.text[0])
        close(together.regions[row, :found], alone.regions[0])
        close(together.pooled[row], alone.pooled[0])


def test_the_order_of_regions_is_nothing():
    model, batch = build(), batch_of()
    before, order = pair_features(model, batch), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    for name in ("features", "locations", "region_valid"):
        batch[name] = batch[name][:, order]
    after = pair_features(model, batch)
    close(after.pooled, before.pooled)
    valid = batch["region_valid"]
    close(after.regions[valid], before.regions[:, order][valid])
    batch["locations"] = batch["locations"].flip(1)
    assert (pair_features(model, batch).pooled - before.pooled).abs().max() > 1e-3


def test_checkpointed_blocks_give_the_same_gradient():
    model, batch = build(), lesson("mlm")

    def gradient():
        model.zero_grad()
        UNITERPretraining(model).losses(batch)["masked_words"].backward()
        return model.region_embedding.feature_projection.weight.grad.clone()

    plain = gradient()
    model.activation_checkpointing = True
    assert model.trunk.activation_checkpointing
    close(gradient(), plain)


def test_attention_is_recorded_over_words_and_regions():
    model, batch = build(), batch_of()
    with mmlab.record_attention(model) as maps:
        pair_features(model, batch)
    assert list(maps) == ["trunk.blocks.0.attention", "trunk.blocks.1.attention"]
    hidden = ~torch.cat([batch["attention_mask"], batch["region_valid"]], dim=1)
    for weights in maps.values():
        assert weights.shape == (6, 3, 17, 17)
        close(weights.sum(-1), torch.ones(6, 3, 17))
        assert not weights.permute(0, 3, 1, 2)[hidden].any()


# Tied weights


def test_the_regression_head_is_the_way_features_come_in_turned_round():
    model = build()
    features = pair_features(model, lesson("mrfr"))
    hidden = model.heads["features"].transform(features.regions)
    matrix = model.region_embedding.feature_projection.weight
    assert matrix.shape == (24, 10)
    close(model.region_features(features.regions), hidden @ matrix + model.heads["features"].bias)
    shapes = {tuple(tensor.shape) for tensor in model.heads["features"].state_dict().values()}
    assert shapes == {(24, 24), (24,), (10,)}


def test_the_tied_matrix_learns_from_both_ends():
    def gradient(**frozen):
        """That of the tied matrix when one of its two uses is of a copy."""
        model = build()
        matrix = model.region_embedding.feature_projection.weight
        copy = matrix.detach().clone()
        if frozen.get("out"):
            head = model.heads["features"]
            model.heads["features"].forward = lambda x, _: torch.nn.functional.linear(
                head.transform(x), copy.T, head.bias
            )
        if frozen.get("into"):
            embed = model.region_embedding.feature_projection
            embed.forward = lambda x: torch.nn.functional.linear(x, copy, embed.bias)
        UNITERPretraining(model).losses(lesson("mrfr"))["masked_region_features"].backward()
        return matrix.grad

    into, out = gradient(out=True), gradient(into=True)
    assert into.abs().max() > 1e-4 and out.abs().max() > 1e-4
    close(gradient(), into + out)


def test_the_words_head_is_the_table_of_words():
    model = build()
    features = pair_features(model, batch_of())
    before = model.word_logits(features)
    model.text_embeddings.word_embedding.weight.data[11] *= 2
    changed = (model.word_logits(features) - before).abs().amax((0, 1)) > 0
    assert changed.nonzero().flatten().tolist() == [11]


# The lesson


def test_masked_words_come_with_whole_images():
    pairs = raw_pairs(600)
    batch = lesson("mlm", count=600)
    assert "masked_regions" not in batch
    assert torch.equal(batch["features"], pairs["features"])
    asked = batch["labels"] != IGNORED
    inner = pairs["attention_mask"] & ~torch.isin(pairs["input_ids"], torch.tensor(SPECIAL))
    assert asked.any(1).all() and not asked[~inner].any()
    assert torch.equal(batch["labels"][asked], pairs["input_ids"][asked])
    assert torch.equal(batch["input_ids"][~asked], pairs["input_ids"][~asked])
    replaced = batch["input_ids"][asked & (batch["input_ids"] != MASK)]
    assert not torch.isin(replaced, torch.tensor(SPECIAL)).any()
    # 15 %, and the first word wherever none was chosen.
    alone = inner.sum(1)
    expected = (0.15 * alone + 0.85**alone).sum() / alone.sum()
    assert asked[inner].float().mean().item() == pytest.approx(expected.item(), abs=0.02)


@pytest.mark.parametrize("task", ["mrfr", "mrc-kl", "mrc"])
def test_masked_regions_come_with_whole_texts(task):
    pairs, batch = raw_pairs(600), lesson(task, count=600)
    assert torch.equal(batch["input_ids"], pairs["input_ids"])
    assert not (batch["input_ids"] == MASK).any() and "labels" not in batch
    chosen, valid = batch["masked_regions"], pairs["region_valid"]
    assert chosen.any(1).all() and not chosen[~valid].any()
    assert not batch["features"][chosen].any()
    assert torch.equal(batch["features"][~chosen], pairs["features"][~chosen])
    assert torch.equal(batch["locations"], lesson("mlm", count=600)["locations"])
    found = valid.sum(1)
    expected = (0.15 * found + 0.85**found).sum() / found.sum()
    assert chosen[valid].float().mean().item() == pytest.approx(expected.item(), abs=0.02)


def test_targets_of_regions():
    pairs = raw_pairs()
    assert torch.equal(lesson("mrfr")["feature_targets"], pairs["features"])
    distributions = pairs["class_distributions"]
    assert torch.equal(lesson("mrc-kl")["distribution_targets"], distributions)
    classes = lesson("mrc")["class_targets"]
    assert (distributions.argmax(-1) == 0)[pairs["region_valid"]].float().mean() > 0.4
    assert classes.min() >= 1 and classes.max() <= 6
    named = distributions.argmax(-1) > 0
    assert torch.equal(classes[named], distributions.argmax(-1)[named])


def test_false_pairs_have_another_image_and_nothing_is_masked():
    pairs, batch = raw_pairs(600), lesson("itm", count=600)
    matched = batch["matched"]
    assert matched.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert torch.equal(batch["input_ids"], pairs["input_ids"])
    assert "labels" not in batch and "masked_regions" not in batch
    for name in ("features", "region_valid"):
        expected = torch.where(
            matched.view(-1, *(1,) * (pairs[name].ndim - 1)), pairs[name], pairs[f"other_{name}"]
        )
        assert torch.equal(batch[name], expected)
    others = corner_size_area_locations(pairs["other_boxes"], pairs["other_image_sizes"])
    assert torch.equal(batch["locations"][~matched], others[~matched])


def test_another_image_may_have_more_or_fewer_regions():
    pairs = raw_pairs()
    for longest in (5, 8):
        others = {k: t[:, :longest] for k, t in pairs.items() if k.startswith("other_")}
        others["other_image_sizes"] = pairs["other_image_sizes"]
        for own in (4, 8):
            mine = {k: pairs[k][:, :own] for k in ("features", "boxes", "region_valid")}
            batch = lesson("itm", **others, **mine)
            assert batch["features"].shape[1] == max(own, longest)
            assert not batch["features"][~batch["region_valid"]].any()


@pytest.mark.parametrize("task", TASKS)
def test_joint_masking_hides_both_and_asks_for_one(task):
    batch, alone = lesson(task, joint=True), lesson(task)
    asks = {"labels", "matched", "feature_targets", "distribution_targets", "class_targets"}
    assert batch.keys() & asks == alone.keys() & asks
    assert "masked_regions" in batch or task == "itm"
    assert (batch["input_ids"] == MASK).any() == (task != "itm")
    losses = UNITERPretraining(build()).losses(batch)
    assert losses.keys() == UNITERPretraining(build()).losses(alone).keys()


@pytest.mark.parametrize("task", TASKS)
def test_the_generator_alone_decides_and_pairs_stay_as_they_are(task):
    before, pairs = torch.get_rng_state(), raw_pairs()
    first, again, other = lesson(task), lesson(task), lesson(task, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(t, raw_pairs()[name]) for name, t in pairs.items())
    assert all(len(tensor) == 6 for tensor in first.values())


def test_locations_are_seven_numbers():
    pairs, batch = raw_pairs(), lesson("mlm")
    x1, y1, x2, y2 = pairs["boxes"].unbind(-1)
    width, height = (x2 - x1) / 64, (y2 - y1) / 48
    expected = torch.stack([x1 / 64, y1 / 48, x2 / 64, y2 / 48, width, height, width * height], -1)
    close(batch["locations"], expected)


# The pool of tasks


def test_pools_are_those_of_the_config_files():
    assert [sum(pool.values()) for pool in ALL_DATA_POOLS.values()] == [22, 33, 33, 22]
    tasks = Counter()
    for pool in ALL_DATA_POOLS.values():
        tasks.update(pool)
    assert tasks == {"itm": 30, "mlm": 40, "mrfr": 20, "mrc-kl": 20}
    assert IN_DOMAIN_POOLS["coco"] == IN_DOMAIN_POOLS["vg"]


def test_tasks_come_as_often_as_they_have_lots():
    generator = torch.Generator().manual_seed(0)
    count = 6000
    drawn = [draw_data_and_task(ALL_DATA_POOLS, generator) for _ in range(count)]
    data, tasks = (Counter(names) for names in zip(*drawn, strict=True))
    for name, lots in (("coco", 22), ("vg", 33), ("cc", 33), ("sbu", 22)):
        assert data[name] / count == pytest.approx(lots / 110, abs=0.02)
    for name, lots in (("itm", 30), ("mlm", 40), ("mrfr", 20), ("mrc-kl", 20)):
        assert tasks[name] / count == pytest.approx(lots / 110, abs=0.02)


def test_the_lesson_draws_its_task():
    generator = torch.Generator().manual_seed(0)
    pairs, seen = raw_pairs(), Counter()
    for _ in range(300):
        batch = uniter_lesson(pairs, MASK, 50, SPECIAL, generator)
        kinds = {"labels", "matched", "feature_targets", "distribution_targets"} & batch.keys()
        (kind,) = kinds
        seen[kind] += 1
    assert seen["labels"] / 300 == pytest.approx(1 / 3, abs=0.08)
    assert seen["matched"] / 300 == pytest.approx(1 / 3, abs=0.08)
    assert seen["feature_targets"] / 300 == pytest.approx(1 / 6, abs=0.07)


@pytest.mark.parametrize(
    ("pool", "allowed"),
    [
        ({"mlm": 1, "wrong": 1}, "pool must be of 'itm', 'mlm', 'mrfr', 'mrc-kl', 'mrc'"),
        ({"mlm": 2, "itm": -1}, "pool must be of whole numbers of at least 0"),
        ({"mlm": 0}, "pool must be not empty"),
    ],
)
def test_a_wrong_pool_is_named(pool, allowed):
    with pytest.raises(ValueError, match=allowed):
        draw_task(pool)


# Pre-training


def test_initial_losses_are_those_of_guessing():
    torch.manual_seed(0)
    model = UNITERPretraining(
        UNITER(replace(TINY, vocab_size=500, dim=96, num_region_classes=40)).eval()
    )
    pairs = raw_pairs(600)
    told = torch.rand(600, 8, 40, generator=torch.Generator().manual_seed(3))
    told = {"class_distributions": told / told.sum(-1, keepdim=True)}
    assert model.losses(lesson("mlm", count=600))["masked_words"].item() == pytest.approx(
        math.log(500), abs=0.2
    )
    kinds = {"mrc": ("masked_region_classes", math.log(40)), "itm": ("matching", math.log(2))}
    for task, (name, expected) in kinds.items():
        loss = model.losses(lesson(task, count=600, **told))[name].item()
        assert loss == pytest.approx(expected, abs=0.2)
    kl = model.losses(lesson("mrc-kl", count=600, **told))["masked_region_distributions"]
    assert 0 <= kl.item() < 0.5 * math.log(40) / 40
    regression = model.losses(lesson("mrfr", count=600))["masked_region_features"]
    power = pairs["features"][pairs["region_valid"]].square().mean()
    assert regression.item() == pytest.approx(power.item(), abs=0.2)


def test_region_losses_are_means_over_all_numbers():
    model, batch = build(), lesson("mrfr")
    chosen = batch["masked_regions"]
    predicted = model.region_features(pair_features(model, batch).regions)[chosen]
    expected = (predicted - raw_pairs()["features"][chosen]).square().mean()
    losses = UNITERPretraining(model).losses(batch)
    assert losses.keys() == {"masked_region_features"}
    close(losses["masked_region_features"], expected)
    batch = lesson("mrc-kl")
    p = model.region_logits(pair_features(model, batch).regions)[chosen].log_softmax(-1)
    q = raw_pairs()["class_distributions"][chosen]
    expected = (q * (q.log() - p)).mean()
    close(UNITERPretraining(model).losses(batch)["masked_region_distributions"], expected)


def test_only_chosen_tokens_are_asked():
    model, batch = build(), lesson("mlm")
    labels = batch["labels"]
    logits = model.word_logits(pair_features(model, batch))[labels != IGNORED]
    expected = torch.nn.functional.cross_entropy(logits, labels[labels != IGNORED])
    close(UNITERPretraining(model).losses(batch)["masked_words"], expected)


def test_alignment_pulls_true_pairs_and_pushes_false_ones():
    model, batch = build(), lesson("itm")
    assert 0 < batch["matched"].sum() < 6
    features = pair_features(model, batch)
    total = 0.0
    for row, matched in enumerate(batch["matched"]):
        words = features.text[row][batch["attention_mask"][row]][None]
        found = features.regions[row][batch["region_valid"][row]][None]
        cost = cosine_cost(words, found)
        distance = transport_distance(ipot(cost), cost)
        total += distance if matched else -distance
    losses = UNITERPretraining(model).losses(batch)
    close(losses["alignment"], 0.1 * total.squeeze() / 6)
    assert losses["alignment"].abs() > 1e-4
    assert UNITERPretraining(model, alignment_weight=0).losses(batch).keys() == {"matching"}
    doubled = UNITERPretraining(model, alignment_weight=0.2).losses(batch)["alignment"]
    close(doubled, 2 * losses["alignment"])


def test_what_cannot_be_trained_is_named():
    with pytest.raises(ValueError, match="the batch must ask for something"):
        UNITERPretraining(build()).losses(batch_of())
    with pytest.raises(ValueError, match="no 'features' head"):
        UNITERPretraining(build(heads=("words",))).losses(lesson("mrfr"))
    with pytest.raises(ValueError, match="alignment_weight must be a number of at least 0, got -1"):
        UNITERPretraining(build(), alignment_weight=-1)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_learnt(task):
    torch.manual_seed(0)
    model = UNITERPretraining(UNITER(replace(TINY, init="xavier")), alignment_weight=0)
    optimizer, batch = torch.optim.Adam(model.parameters(), lr=5e-3), lesson(task)
    curve = []
    for _ in range(60):
        loss = sum(model.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    assert curve[-1] < 0.5 * curve[0]


def test_features_are_named():
    features = pair_features(build(), batch_of())
    assert isinstance(features, JointFeatures)
    assert features.text.shape == (6, 9, 24) and features.regions.shape == (6, 8, 24)
