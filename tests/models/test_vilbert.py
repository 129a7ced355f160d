from dataclasses import replace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab import record_attention
from mmlab.analysis import count_parameters
from mmlab.models import vilbert
from mmlab.models.vilbert import (
    ViLBERT,
    ViLBERTConfig,
    ViLBERTPretraining,
    comes_from_bert,
    draw_negative_regions,
    mean_feature,
    vilbert_decays,
    vilbert_lesson,
)
from mmlab.objectives.masked_language import IGNORED

TINY = ViLBERTConfig(
    vocab_size=50,
    context_length=12,
    max_positions=14,
    dim=24,
    depth=4,
    num_heads=3,
    mlp_dim=40,
    feature_dim=10,
    num_region_classes=7,
    region_dim=32,
    region_depth=3,
    region_num_heads=2,
    region_mlp_dim=28,
    fusion_dim=20,
    fusion_num_heads=5,
    text_connections=(1, 3),
    region_connections=(0, 2),
    dropout=0.0,
    attention_dropout=0.0,
)
MASK_ID, SPECIAL = 4, (0, 1, 2, 3, 4)


def randomise(model, seed=0):
    """Noise on every parameter, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return randomise(ViLBERT(replace(TINY, **changes)).eval())


def inputs(texts=(7, 4, 5), images=(5, 3, 4), seed=1):
    """Words, regions and which of them are valid, by the names of ``ViLBERT.forward``."""
    generator = torch.Generator().manual_seed(seed)
    text_valid = torch.arange(max(texts)) < torch.tensor(texts)[:, None]
    region_valid = torch.arange(max(images)) < torch.tensor(images)[:, None]
    ids = torch.randint(5, 50, text_valid.shape, generator=generator).where(text_valid, 0)
    shape = region_valid.shape
    return {
        "input_ids": ids,
        "features": torch.randn(*shape, 10, generator=generator) * region_valid[..., None],
        "locations": torch.rand(*shape, 5, generator=generator) * region_valid[..., None],
        "text_valid": text_valid,
        "region_valid": region_valid,
    }


def raw_pairs(batch=3, seed=1, texts=(7, 4, 5), images=(5, 3, 4)):
    """As the data give them; captions of other images are longer."""
    drawn = inputs(texts * (batch // 3), images * (batch // 3), seed)
    others = inputs((9, 6, 3) * (batch // 3), images * (batch // 3), seed + 1)
    ids, mask = drawn["input_ids"], drawn["text_valid"]
    corners = drawn["locations"][..., :2] * 20
    generator = torch.Generator().manual_seed(seed)
    distributions = torch.randn(*drawn["region_valid"].shape, 7, generator=generator).softmax(-1)
    return {
        "input_ids": ids.index_fill(1, torch.tensor([0]), 2),
        "attention_mask": mask,
        "other_ids": others["input_ids"],
        "other_mask": others["text_valid"],
        "features": drawn["features"],
        "boxes": torch.cat([corners, corners + drawn["region_valid"][..., None] * 5], dim=-1),
        "image_sizes": torch.tensor([[40.0, 30.0]]).expand(batch, -1),
        "region_valid": drawn["region_valid"],
        "class_distributions": distributions * drawn["region_valid"][..., None],
    }


def lesson(pairs, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return vilbert_lesson(pairs, MASK_ID, 50, SPECIAL, generator, **options)


def close(left, right, tolerance=1e-5):
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance)


def far(left, right):
    assert (left - right).abs().max() > 1e-3


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot trace the shape checker that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Sizes

# Configuration, all parameters, those of the backbone, those that no computation uses.
COUNTS = [
    (vilbert.VILBERT_B_2, 160_782_973, 157_465_600, 3_673_600),
    (vilbert.VILBERT_B_4, 205_413_501, 202_096_128, 7_347_200),
    (vilbert.VILBERT_B_6, 250_044_029, 246_726_656, 11_020_800),
    (vilbert.VILBERT_B_8, 294_674_557, 291_357_184, 14_694_400),
    (vilbert.VILBERT_L_2, 396_672_381, 392_895_488, 4_198_400),
    (vilbert.VILBERT_L_4, 451_270_013, 447_493_120, 8_396_800),
    (vilbert.VILBERT_L_6, 505_867_645, 502_090_752, 12_595_200),
    (vilbert.VILBERT_ROBERTA_B_6, 265_227_164, 261_890_048, 11_020_800),
]


@pytest.mark.parametrize(("config", "total", "backbone", "unused"), COUNTS)
def test_parameter_counts(config, total, backbone, unused):
    with torch.device("meta"):
        model = ViLBERT(config)
        bare = ViLBERT(replace(config, heads=()))
    assert count_parameters(model) == total
    assert count_parameters(bare) == backbone
    assert total - count_parameters(model, trainable_only=True) == unused
    assert len(config.text_connections) == config.region_depth


def test_parameter_counts_of_the_parts():
    with torch.device("meta"):
        model = ViLBERT(vilbert.VILBERT_B_6)
    parts = {
        "embeddings": 23_837_184,
        "region_embeddings": 2_106_368,
        "text_blocks": 85_054_464,
        "region_blocks": 37_810_176,
        "connections": 96_081_408,
        "text_pooler": 787_456,
        "region_pooler": 1_049_600,
    }
    heads = {"words": 622_650, "regions": 2_692_673, "match": 2_050}
    assert {name: count_parameters(getattr(model, name)) for name in parts} == parts
    assert {name: count_parameters(head) for name, head in model.heads.items()} == heads


def test_twelve_tasks_in_one_model():
    with torch.device("meta"):
        model = ViLBERT(vilbert.VILBERT_12_IN_1)
    assert count_parameters(model) == 268_028_859
    assert model.task_embedding.weight.shape == (20, 768)


def test_multiplications_of_one_pair():
    """36 words, 36 regions and the whole image: the sums of the sheet, in parts."""
    with (
        torch.device("meta"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as count,
    ):
        model = ViLBERT(replace(vilbert.VILBERT_B_6, heads=())).eval()
        features, locations = torch.zeros(1, 36, 2048), torch.zeros(1, 36, 5)
        model(torch.zeros(1, 36, dtype=torch.long), features, locations)
    t, v, dt, dv, b = 36, 37, 768, 1024, 1024

    def plain(n, d, f):
        return n * (4 * d * d + 2 * d * f) + 2 * n * n * d

    text, regions = 12 * plain(t, dt, 3072), 6 * plain(v, dv, 1024)
    attention = 3 * v * dv * b + 3 * t * dt * b + 4 * t * v * b + v * b * dv + t * b * dt
    co = 6 * (attention + 2 * v * dv * 1024 + 2 * t * dt * 3072)
    others = v * (2048 + 5) * dv + dt * b + dv * b
    assert count.get_total_flops() == 2 * (text + regions + co + others)
    gmacs = [round(part / 1e9, 2) for part in (text, regions, co, text + regions + co)]
    assert gmacs == [3.08, 1.41, 3.13, 7.62]


def test_the_mini_model_is_small():
    config = vilbert.VILBERT_MINI
    assert count_parameters(ViLBERT(config)) < 1_600_000
    assert (config.vocab_size, config.context_length, config.feature_dim) == (1000, 32, 64)


def test_matrices_spread_as_published_or_with_the_width():
    torch.manual_seed(0)
    published, narrow = ViLBERT(TINY), ViLBERT(replace(TINY, init="xavier"))
    assert vilbert.VILBERT_B_6.init == "normal"
    weights = [model.region_blocks[0].mlp.fc1.weight for model in (published, narrow)]
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.1)
    assert weights[1].std().item() == pytest.approx((2 / (32 + 28)) ** 0.5, rel=0.1)
    assert not published.embeddings.word_embedding.weight[0].any()


# Order of the blocks


def naive_order(text, regions, depth, region_depth):
    """Block by block: a co-attention comes once both of its blocks are the next ones."""
    order, t, v = [], 0, 0
    for k, (t_k, v_k) in enumerate(zip(text, regions, strict=True)):
        while t < t_k:
            order.append(f"text_blocks.{t}")
            t += 1
        while v < v_k:
            order.append(f"region_blocks.{v}")
            v += 1
        order.append(f"connections.{k}")
    order += [f"region_blocks.{i}" for i in range(v, region_depth)]
    return order + [f"text_blocks.{i}" for i in range(t, depth)]


PATTERNS = [
    ((1, 3), (0, 2)),
    ((0,), (0,)),
    ((3,), (2,)),
    ((0, 0, 3), (1, 2, 2)),
    ((2, 3), (1, 2)),
    ((0, 1, 2, 3), (0, 0, 1, 1)),
]


@pytest.mark.parametrize(("text", "regions"), PATTERNS)
@pytest.mark.parametrize("coattention", [True, False])
def test_blocks_run_in_the_order_that_the_connections_say(text, regions, coattention):
    places = {"text_connections": text, "region_connections": regions}
    model, order = build(**places, coattention=coattention), []
    for name, module in model.named_modules():
        if name.count(".") == 1 and name.split(".")[1].isdigit():
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    model(**inputs())
    expected = naive_order(text, regions, 4, 3)
    assert order == [name for name in expected if coattention or "connections" not in name]


def test_the_published_order_is_that_of_the_paper():
    config = vilbert.VILBERT_B_6
    order = naive_order(config.text_connections, config.region_connections, 12, 6)
    start = [f"text_blocks.{i}" for i in range(6)]
    assert order[:10] == [
        *start,
        "connections.0",
        "text_blocks.6",
        "region_blocks.0",
        "connections.1",
    ]
    assert order[-2:] == ["region_blocks.5", "text_blocks.11"]


def test_text_before_the_first_connection_knows_no_image():
    model, given, seen = build(text_connections=(2, 3)), inputs(), []
    model.text_blocks[1].register_forward_hook(lambda *call: seen.append(call[2]))
    model.text_blocks[2].register_forward_hook(lambda *call: seen.append(call[2]))
    model(**given)
    model(**given | {"features": given["features"].flip(0)})
    assert torch.equal(seen[0], seen[2])
    far(seen[1], seen[3])


def test_both_streams_see_each_other_as_they_came_in():
    layer = build().connections[0]
    text, regions = torch.randn(2, 7, 24), torch.randn(2, 5, 32)
    new_text, new_regions = layer(text, regions)
    close(new_text, layer.text(text, regions))
    close(new_regions, layer.regions(regions, text))


# What depends on what


def test_shapes_of_features_and_heads():
    heads = {"heads": vilbert.HEADS, "num_classes": 6, "num_gqa_classes": 9}
    model, given = build(**heads), inputs((7, 4, 5, 2), (5, 3, 4, 1))
    features = model(**given)
    assert features.text.shape == (4, 7, 24) and features.regions.shape == (4, 6, 32)
    assert features.text_pooled.shape == features.region_pooled.shape == (4, 20)
    assert features.region_valid.sum(1).tolist() == [6, 4, 5, 2]
    assert min(features.text_pooled.min(), features.region_pooled.min()) == 0
    assert model.word_logits(features).shape == (4, 7, 50)
    assert model.region_logits(features).shape == (4, 6, 7)
    assert model.matching_logits(features).shape == (4, 2)
    assert model.answer_logits(features).shape == (4, 6)
    assert model.gqa_logits(features).shape == (4, 9)
    assert model.pair_logits(features).shape == (2, 2)
    assert model.rank_scores(features).shape == (4,)
    assert model.entailment_logits(features).shape == (4, 3)
    assert model.grounding_logits(features).shape == (4, 6)
    assert model.word_scores(features).shape == (4, 7)


def test_without_coattention_the_streams_do_not_meet():
    model, given = build(coattention=False), inputs()
    before = model(**given)
    image = {name: given[name].flip(0) for name in ("features", "locations")}
    assert torch.equal(model(**given | image).text, before.text)
    words = {"input_ids": given["input_ids"].flip(1)}
    assert torch.equal(model(**given | words).regions, before.regions)
    assert not any(p.requires_grad for p in model.connections.parameters())


def test_without_what_they_attend_to_the_streams_do_not_meet():
    model, given = build(), inputs()
    changed = given | {name: given[name].flip(0) for name in ("features", "locations")}
    far(model(**changed).text, model(**given).text)
    for connection in model.connections:
        for stream in (connection.text, connection.regions):
            torch.nn.init.zeros_(stream.attention.out_proj.weight)
            torch.nn.init.zeros_(stream.attention.out_proj.bias)
    assert torch.equal(model(**changed).text, model(**given).text)
    words = given | {"input_ids": given["input_ids"].flip(1)}
    assert torch.equal(model(**words).regions, model(**given).regions)


def test_regions_have_no_order_but_words_have():
    model, given = build(), inputs()
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = {n: given[n][:, order] for n in ("features", "locations", "region_valid")}
    before, after = model(**given), model(**given | moved)
    close(after.text, before.text)
    close(after.regions[:, 1:], before.regions[:, 1:][:, order])
    close(after.region_pooled, before.region_pooled)
    turned = {n: given[n][:1, [0, 2, 1, 3, 4, 5, 6]] for n in ("input_ids", "text_valid")}
    first = {n: t[:1] for n, t in given.items()}
    far(model(**first | turned).text_pooled, before.text_pooled[:1])


def test_padding_changes_nothing():
    model, given = build(), inputs()
    text, regions = given["text_valid"], given["region_valid"]
    changed = {
        "input_ids": given["input_ids"].where(text, 9),
        "features": given["features"].where(regions[..., None], 7.0),
        "locations": given["locations"].where(regions[..., None], 3.0),
    }
    before, after = model(**given), model(**given | changed)
    assert torch.equal(after.text[text], before.text[text])
    assert torch.equal(after.regions[:, 1:][regions], before.regions[:, 1:][regions])
    assert torch.equal(after.text_pooled, before.text_pooled)
    assert torch.equal(after.region_pooled, before.region_pooled)


def test_a_pair_alone_is_the_same_as_in_a_padded_batch():
    model, given = build(), inputs()
    together = model(**given)
    for row in range(3):
        words, places = (int(given[n][row].sum()) for n in ("text_valid", "region_valid"))
        alone = model(
            given["input_ids"][row : row + 1, :words],
            given["features"][row : row + 1, :places],
            given["locations"][row : row + 1, :places],
        )
        close(together.text[row, :words], alone.text[0])
        close(together.regions[row, : places + 1], alone.regions[0])


def test_the_whole_image_is_the_mean_of_its_regions_everywhere():
    model, given = build(), inputs()
    told = {n: given[n] for n in ("features", "region_valid")}
    mean = mean_feature(given["features"], given["region_valid"])
    naive = torch.stack([f[v].mean(0) for f, v in zip(*told.values(), strict=True)])
    close(mean, naive)
    embedded = model.embed_regions(given["features"], given["locations"], given["region_valid"])
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]]).expand(3, -1)
    close(embedded[:, 0], model.region_embeddings(mean[:, None], box[:, None])[:, 0])
    close(embedded[:, 1:], model.region_embeddings(given["features"], given["locations"]))
    same = model(**given, whole_feature=mean)
    close(same.text, model(**given).text)
    far(model(**given, whole_feature=mean + 1).text, same.text)


def test_an_image_without_regions_is_still_there():
    model, given = build(), inputs()
    none = {n: given[n][:, :0] for n in ("features", "locations", "region_valid")}
    features = model(**given | none)
    assert features.regions.shape == (3, 1, 32)
    for tensor in features[:4]:
        assert tensor.isfinite().all()


def test_the_pair_is_a_product_or_a_sum():
    for fusion, vanishes in (("mul", True), ("sum", False)):
        model = build(fusion=fusion)
        features, bias = model(**inputs()), model.heads["match"].bias
        for name in ("text_pooled", "region_pooled"):
            zero = features._replace(**{name: torch.zeros(3, 20)})
            equal = torch.allclose(model.matching_logits(zero), bias.expand(3, -1))
            assert equal == vanishes
        pooled = features.text_pooled, features.region_pooled
        expected = pooled[0] * pooled[1] if vanishes else pooled[0] + pooled[1]
        close(model.fuse(features), expected)


def test_a_score_is_high_where_class_0_is_likely():
    model = build()
    features = model(**inputs())
    logits = model.matching_logits(features)
    assert torch.equal(model.matching_scores(features) > 0, logits.argmax(1) == 0)


# Task tokens


def test_the_task_token_stands_after_the_first_and_moves_no_position():
    model, plain = build(num_tasks=5), build()
    plain.load_state_dict({k: t for k, t in model.state_dict().items() if "task" not in k})
    given = inputs()
    tasks = torch.tensor([1, 4, 1])
    text = model.embed_text(given["input_ids"], task_ids=tasks)
    words = plain.embed_text(given["input_ids"])
    close(torch.cat([text[:, :1], text[:, 2:]], dim=1), words)
    close(text[:, 1], model.embeddings.norm(model.task_embedding(tasks)))
    features = model(**given, task_ids=tasks)
    assert features.text.shape == (3, 8, 24)
    # Seen like a word, and padding still is not.
    far(features.text[:, 0], model(**given, task_ids=tasks + 1 - tasks // 2).text[:, 0])
    padded = {"input_ids": given["input_ids"].where(given["text_valid"], 9)}
    close(model(**given | padded, task_ids=tasks).text_pooled, features.text_pooled)


def test_task_numbers_go_with_task_tokens():
    with pytest.raises(ValueError, match="task_ids must be given for a model with num_tasks=5"):
        build(num_tasks=5)(**inputs())
    with pytest.raises(ValueError, match="task_ids must be None for a model with num_tasks=0"):
        build()(**inputs(), task_ids=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="num_tasks must be 0 in pre-training, got 5"):
        ViLBERTPretraining(build(num_tasks=5))


# The lesson


def test_the_lesson_hides_words_and_regions_at_the_rates_of_the_paper():
    pairs = raw_pairs(600)
    batch = lesson(pairs)
    asked, shown = batch["labels"] != IGNORED, batch["attention_mask"]
    ids = pairs["input_ids"].new_zeros(shown.shape)
    ids[:, : pairs["input_ids"].shape[1]] = pairs["input_ids"]
    longer = pairs["other_ids"]
    ids = torch.where(batch["matched"][:, None], ids, longer)
    assert (batch["labels"][asked] == ids[asked]).all()
    assert (batch["input_ids"][~asked] == ids[~asked]).all()
    maskable = shown & ~torch.isin(ids, torch.tensor(SPECIAL))
    assert not (asked & ~maskable).any()
    assert asked[maskable].float().mean() == pytest.approx(0.15, abs=0.02)
    assert (batch["input_ids"][asked] == MASK_ID).float().mean() == pytest.approx(0.8, abs=0.06)
    regions, chosen = pairs["region_valid"], batch["masked_regions"]
    assert not (chosen & ~regions).any()
    assert chosen[regions].float().mean() == pytest.approx(0.15, abs=0.02)
    zeroed = (batch["features"] == 0).all(-1) & regions
    assert not (zeroed & ~chosen).any()
    assert zeroed[chosen].float().mean() == pytest.approx(0.9, abs=0.04)
    kept = regions & ~zeroed
    assert torch.equal(batch["features"][kept], pairs["features"][kept])
    assert torch.equal(batch["region_features"], pairs["features"])
    assert torch.equal(batch["class_distributions"], pairs["class_distributions"])


def test_locations_are_those_of_the_paper_and_are_never_hidden():
    pairs = raw_pairs()
    x1, y1, x2, y2 = pairs["boxes"].unbind(-1)
    area = (x2 - x1) * (y2 - y1) / 1200
    expected = torch.stack([x1 / 40, y1 / 30, x2 / 40, y2 / 30, area], dim=-1)
    for seed in range(3):
        close(lesson(pairs, seed)["locations"], expected)


def test_half_of_the_captions_are_those_of_other_images():
    pairs = raw_pairs(600)
    batch = lesson(pairs)
    matched = batch["matched"]
    assert matched.float().mean() == pytest.approx(0.5, abs=0.07)
    longest = pairs["other_mask"].shape[1]
    own = F.pad(pairs["attention_mask"], (0, longest - pairs["attention_mask"].shape[1]))
    assert torch.equal(batch["attention_mask"][matched], own[matched])
    assert torch.equal(batch["attention_mask"][~matched], pairs["other_mask"][~matched])


def test_objectives_differ_in_what_false_pairs_are_asked():
    pairs = raw_pairs(600)
    all_pairs, true_pairs, no_false = (lesson(pairs, objective=n) for n in range(3))
    false = ~all_pairs["matched"]
    for name, nothing in (("labels", IGNORED), ("masked_regions", False)):
        assert (all_pairs[name][false] != nothing).any()
        assert (true_pairs[name][false] == nothing).all()
        assert torch.equal(true_pairs[name][~false], all_pairs[name][~false])
    assert torch.equal(true_pairs["input_ids"], all_pairs["input_ids"])
    assert "matched" not in no_false
    assert torch.equal(no_false["attention_mask"], pairs["attention_mask"])
    with pytest.raises(ValueError, match="objective must be 0, 1 or 2, got 3"):
        lesson(pairs, objective=3)


def test_the_generator_decides_everything_and_rows_come_first():
    pairs = raw_pairs()
    first, again, other = (lesson(pairs, seed, num_negatives=4) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(len(tensor) == 3 for tensor in first.values())
    assert torch.equal(pairs["features"], raw_pairs()["features"])


def test_false_features_are_of_other_regions_mostly_of_other_images():
    valid = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    drawn = draw_negative_regions(valid, 200, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 4, 200)
    for row, place in valid.nonzero().tolist():
        numbers = drawn[row, place]
        assert valid.flatten()[numbers].all()
        assert (numbers != row * 4 + place).all()
        near = numbers // 4 == row
        assert near.sum() == (0 if row == 1 else 60)
        others = set(range(row * 4, row * 4 + 4)) & set(valid.flatten().nonzero()[:, 0].tolist())
        assert set(numbers[near].tolist()) == (set() if row == 1 else others - {row * 4 + place})
        far_rows = numbers[~near] // 4
        for other in {0, 1, 2} - {row}:
            share = (far_rows == other).float().mean()
            assert share == pytest.approx(0.5, abs=0.15)
    with pytest.raises(ValueError, match="false features come from other images"):
        draw_negative_regions(valid[:1], 4)


# Losses


def test_the_losses_are_those_of_a_loop():
    model, batch = build(), lesson(raw_pairs(), seed=4)
    losses = ViLBERTPretraining(model).losses(batch)
    names = ("input_ids", "features", "locations", "attention_mask", "region_valid")
    features = model(*(batch[name] for name in names))
    words, regions = model.word_logits(features), model.region_logits(features)
    word_losses, divergences = [], []
    for row in range(3):
        for place, label in enumerate(batch["labels"][row].tolist()):
            if label != IGNORED:
                word_losses.append(-words[row, place].log_softmax(-1)[label])
        for place in batch["masked_regions"][row].nonzero()[:, 0].tolist():
            q = batch["class_distributions"][row, place]
            log_p = regions[row, 1 + place].log_softmax(-1)
            divergences.append((q * (q.log() - log_p)).sum())
    assert len(word_losses) > 1 and len(divergences) > 1
    close(losses["masked_words"], torch.stack(word_losses).mean())
    close(losses["masked_regions"], torch.stack(divergences).mean())
    logits = model.matching_logits(features).log_softmax(-1)
    matched = batch["matched"].tolist()
    assert len(set(matched)) == 2
    # The true pairs are class 0.
    each = [-logits[row, 0 if is_true else 1] for row, is_true in enumerate(matched)]
    close(losses["matching"], torch.stack(each).mean())


def test_features_may_be_the_target():
    model, batch = build(region_target="features"), lesson(raw_pairs(), seed=4)
    loss = ViLBERTPretraining(model).losses(batch)["masked_regions"]
    names = ("input_ids", "features", "locations", "attention_mask", "region_valid")
    predicted = model.region_logits(model(*(batch[name] for name in names)))[:, 1:]
    chosen = batch["masked_regions"]
    close(loss, (predicted - batch["region_features"])[chosen].square().mean())


def test_the_feature_may_have_to_be_found_among_others():
    model = build(region_target="contrast")
    batch = lesson(raw_pairs(), seed=4, num_negatives=6)
    loss = ViLBERTPretraining(model).losses(batch)["masked_regions"]
    names = ("input_ids", "features", "locations", "attention_mask", "region_valid")
    predicted = model.region_logits(model(*(batch[name] for name in names)))
    flat, losses = batch["region_features"].reshape(-1, 10), []
    for row, place in batch["masked_regions"].nonzero().tolist():
        numbers = batch["negative_regions"][row, place].tolist()
        candidates = [batch["region_features"][row, place], *(flat[n] for n in numbers)]
        scores = torch.stack([predicted[row, 1 + place] @ c for c in candidates])
        losses.append(-scores.log_softmax(0)[0])
    close(loss, torch.stack(losses).mean())


def test_nothing_asked_is_nothing_lost():
    """The official code has NaN there, or divides by zero."""
    for target in vilbert.REGION_TARGETS:
        batch = lesson(raw_pairs(), num_negatives=3)
        batch["labels"] = torch.full_like(batch["labels"], IGNORED)
        batch["masked_regions"] = torch.zeros_like(batch["masked_regions"])
        losses = ViLBERTPretraining(build(region_target=target)).losses(batch)
        assert losses["masked_words"] == losses["masked_regions"] == 0


def test_without_false_pairs_there_is_no_matching():
    batch = lesson(raw_pairs(), objective=2)
    losses = ViLBERTPretraining(build()).losses(batch)
    assert losses.keys() == {"masked_words", "masked_regions"}


# Training


def gradients(model, batch):
    model.zero_grad()
    sum(ViLBERTPretraining(model).losses(batch).values()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_every_parameter_but_the_unused_ones_learns():
    model = build(activation="gelu")
    for name, gradient in gradients(model, lesson(raw_pairs(), seed=4)).items():
        if ".unused." in name:
            assert gradient is None
        elif "k_proj.bias" not in name:
            assert gradient.abs().max() > 0, name


def test_activation_checkpointing_gives_the_same_gradients():
    model, batch = build(), lesson(raw_pairs(), seed=4)
    expected = {k: g if g is None else g.clone() for k, g in gradients(model, batch).items()}
    model.activation_checkpointing = True
    runs = []
    blocks = (model.text_blocks[0], model.region_blocks[0], model.connections[0].text)
    for block in blocks:
        block.norm1.register_forward_hook(lambda *_: runs.append(1))
    for name, gradient in gradients(model, batch).items():
        assert gradient is expected[name] is None or torch.equal(gradient, expected[name]), name
    assert len(runs) == 6  # one pass forward, and again during backward


def test_every_loss_goes_down_on_a_handful_of_pairs():
    torch.manual_seed(0)
    places = {"region_depth": 2, "text_connections": (0, 1), "region_connections": (0, 1)}
    sizes = {"depth": 2, "dim": 48, "region_dim": 48, "fusion_dim": 40, "init": "xavier"}
    model = ViLBERT(replace(TINY, **sizes, **places)).train()
    pairs, generator = raw_pairs(6), torch.Generator().manual_seed(0)
    pairs["class_distributions"] = F.one_hot(torch.arange(30).reshape(6, 5) % 7, 7).float()
    pairs = {name: t.repeat(6, *[1] * (t.ndim - 1)) for name, t in pairs.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(110):
        batch = vilbert_lesson(pairs, MASK_ID, 50, SPECIAL, generator)
        losses = ViLBERTPretraining(model).losses(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(torch.stack([*losses.values()]).detach())
    start, end = torch.stack(history[:5]).mean(0), torch.stack(history[-20:]).mean(0)
    assert (end < 0.5 * start).all(), (start, end)


def test_bf16_autocast_stays_close():
    model, batch = build(), lesson(raw_pairs(), seed=4)
    expected = ViLBERTPretraining(model).losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = ViLBERTPretraining(model).losses(batch)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # bfloat16 keeps 8 bits: relative steps of 2^-8.
        assert loss.item() == pytest.approx(expected[name].item(), rel=2**-5, abs=2**-6)


def test_compiles_without_graph_breaks(no_shape_checks):
    sizes = {"depth": 1, "region_depth": 1, "heads": ()}
    model = build(**sizes, text_connections=(0,), region_connections=(0,))
    given = inputs()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for left, right in zip(compiled(**given)[:4], model(**given)[:4], strict=True):
        close(left, right)


def test_attention_is_recorded_in_both_directions_and_not_over_padding():
    model, given = build(), inputs()
    with record_attention(model) as maps:
        features = model(**given)
    assert set(maps) == {
        *(f"text_blocks.{i}.attention" for i in range(4)),
        *(f"region_blocks.{i}.attention" for i in range(3)),
        *(f"connections.{i}.{side}.attention" for i in (0, 1) for side in ("text", "regions")),
    }
    shapes = {"text": (3, 5, 7, 6), "regions": (3, 5, 6, 7)}
    keys = {"text": features.region_valid, "regions": given["text_valid"]}
    for side, shape in shapes.items():
        weights = maps[f"connections.1.{side}.attention"]
        assert weights.shape == shape
        assert (weights.amax((1, 2))[~keys[side]] == 0).all()
    for weights in maps.values():
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_rules_for_the_optimizer():
    model = build(num_tasks=3)
    decayed = {name for name, p in model.named_parameters() if vilbert_decays(name, p)}
    assert {"embeddings.position_embedding.weight", "task_embedding.weight"} <= decayed
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    others = {name for name, _ in model.named_parameters()} - decayed
    assert all(name.endswith("bias") or "norm" in name for name in others)
    slow = {name.split(".")[0] for name, _ in model.named_parameters() if comes_from_bert(name)}
    assert slow == {"embeddings", "text_blocks"}


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    model, batch = build(), lesson(raw_pairs(), seed=4)
    expected = ViLBERTPretraining(model).losses(batch)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        cuda = {key: tensor.cuda() for key, tensor in batch.items()}
        losses = ViLBERTPretraining(model.cuda()).losses(cuda)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), abs=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 770}, "dim must be a multiple of num_heads=12, got 770"),
        ({"region_dim": 1020}, "region_dim must be a multiple of region_num_heads=8, got 1020"),
        ({"fusion_dim": 1020}, "fusion_dim must be a multiple of fusion_num_heads=8, got 1020"),
        ({"region_depth": 0}, "region_depth must be an integer of at least 1, got 0"),
        ({"num_tasks": -1}, "num_tasks must be an integer of at least 0, got -1"),
        ({"fusion": "max"}, "fusion must be one of 'mul', 'sum', got 'max'"),
        ({"region_target": "boxes"}, "region_target must be one of 'classes', .* got 'boxes'"),
        ({"context_length": 600}, "context_length must be at most max_positions=512, got 600"),
        ({"text_connections": (3, 12)}, "text_connections must be .* below depth=12 in rising"),
        ({"text_connections": (4, 3)}, "text_connections must be .* in rising order, got"),
        ({"region_connections": ()}, "region_connections must be a tuple of numbers"),
        ({"text_connections": (3,)}, "text_connections must be as many as region_connections="),
        ({"heads": ("sound",)}, "heads must be a tuple of some of 'words', .* got"),
        ({"heads": ("answer",)}, "num_classes must be at least 1 with the head 'answer', got 0"),
        ({"heads": ("gqa",)}, "num_gqa_classes must be at least 1 with the head 'gqa', got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ViLBERTConfig(**changes)


def test_heads_that_are_not_there_are_named():
    model = build(heads=("words", "match"))
    features = model(**inputs())
    for call in (model.region_logits, model.answer_logits, model.grounding_logits):
        with pytest.raises(ValueError, match=r"no '\w+' head; it has heads=\('words', 'match'\)"):
            call(features)
    with pytest.raises(ValueError, match="no 'regions' head"):
        ViLBERTPretraining(model)


def test_long_texts_are_refused():
    given = inputs(texts=(15, 4, 5))
    with pytest.raises(ValueError, match="a text may have 14 tokens, this one has 15"):
        build()(**given)
