import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis import count_parameters, record_attention
from mmlab.models import visualbert
from mmlab.models.visualbert import (
    VisualBERT,
    VisualBERTConfig,
    VisualBERTPretraining,
    append_locations,
    features_of,
    join_texts,
    last_words,
    mean_positions,
    special_visual_initialize,
    visualbert_lesson,
)
from mmlab.nn.masks import padding_mask
from mmlab.objectives.masked_language import IGNORED

TINY = VisualBERTConfig(
    vocab_size=50,
    context_length=16,
    max_positions=20,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    feature_dim=10,
    dropout=0.0,
    attention_dropout=0.0,
)
CLS, SEP, MASK = 2, 3, 4
SPECIAL = (0, 1, CLS, SEP, MASK)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = VisualBERT(replace(TINY, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def texts(lengths=(7, 4, 5), seed=1):
    """[CLS], words from 5 on, [SEP], padding."""
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, valid.shape, generator=generator).where(valid, 0)
    ids[:, 0] = CLS
    ids[torch.arange(len(ids)), valid.sum(1) - 1] = SEP
    return ids, valid


def regions(counts=(4, 2, 3), seed=2):
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    features = torch.randn(*valid.shape, 10, generator=torch.Generator().manual_seed(seed))
    return features * valid[..., None], valid


def batch_of(**extra):
    (ids, valid), (features, found) = texts(), regions()
    batch = {"input_ids": ids, "attention_mask": valid, "features": features}
    return batch | {"region_valid": found} | extra


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# Sizes


COUNTS = {
    "vqa": (visualbert.VISUALBERT_B_VQA_COCO, 2048, 111_450_624, 112_074_812),
    "nlvr2": (visualbert.VISUALBERT_B_NLVR2_COCO, 1024, 110_664_192, 111_288_380),
    "vcr": (visualbert.VISUALBERT_B_VCR_COCO, 512, 110_270_976, 110_895_164),
    "flickr": (visualbert.VISUALBERT_B_FLICKR_COCO, 2054, 111_455_232, 112_079_420),
}


@pytest.mark.parametrize("task", COUNTS)
def test_parameter_counts(task):
    config, width, backbone, pretraining = COUNTS[task]
    assert config.feature_dim == width
    with torch.device("meta"):
        assert count_parameters(VisualBERT(config)) == pretraining
        assert count_parameters(VisualBERT(replace(config, heads=()))) == backbone


def test_parameter_counts_of_fine_tuned_models():
    heads = {
        visualbert.VISUALBERT_B_VQA: (111_450_624, 3129 * 769),
        visualbert.VISUALBERT_B_NLVR2: (110_664_192, 2 * 769),
        visualbert.VISUALBERT_B_VCR: (110_270_976, 769),
        visualbert.VISUALBERT_B_FLICKR: (112_079_420, 3 * 64 * 769),
    }
    with torch.device("meta"):
        counts = {config: count_parameters(VisualBERT(config)) for config in heads}
    assert counts == {config: sum(parts) for config, parts in heads.items()}


def test_late_fusion_costs_one_block_more():
    with torch.device("meta"):
        late = VisualBERT(replace(TINY, late_fusion=True))
        early = VisualBERT(TINY)
    block = count_parameters(early.trunk.blocks[0])
    assert count_parameters(late) - count_parameters(early) == block


@pytest.mark.parametrize(("tokens", "found"), [(20, 100), (128, 0)])
def test_multiplications_of_one_pair(tokens, found):
    """12 blocks over all tokens, the regions' projection and the pooler; nothing else."""
    with (
        torch.device("meta"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as count,
    ):
        model = VisualBERT(replace(visualbert.VISUALBERT_B_VQA_COCO, heads=())).eval()
        model(torch.zeros(1, tokens, dtype=torch.long), torch.zeros(1, found, 2048))
    n, d, f = tokens + found, 768, 3072
    blocks = 12 * (n * (4 * d**2 + 2 * d * f) + 2 * n**2 * d)
    assert count.get_total_flops() == 2 * (blocks + found * 2048 * d + d**2)


def test_the_mini_model_is_small_and_wide_enough_for_two_captions():
    mini = visualbert.VISUALBERT_MINI
    assert count_parameters(VisualBERT(mini)) < 1_500_000
    assert mini.context_length == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dim": 0}, "feature_dim must be an integer of at least 1, got 0"),
        ({"context_length": 21}, "context_length must be at most max_positions=20, got 21"),
        ({"heads": ("answer",)}, "num_classes must be at least 1 with the head 'answer'"),
        ({"heads": ("regions",)}, "heads must be a tuple of some of 'words', 'match'"),
        ({"answer_from": "first_word"}, "answer_from must be one of 'last_word', 'pooled'"),
        ({"dim": 25}, "dim must be a multiple of num_heads=3, got 25"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


# New weights


def test_tables_of_regions_start_as_copies():
    torch.manual_seed(0)
    model = VisualBERT(TINY)
    for name in ("type_embedding", "position_embedding"):
        text, image = (getattr(p, name).weight for p in (model.embeddings, model.region_embeddings))
        assert torch.equal(text, image) and text is not image
        assert text.std().item() == pytest.approx(0.02, rel=0.3)
        with torch.no_grad():
            text.add_(1)
        assert not torch.equal(text, image)
    special_visual_initialize(model)
    table = model.region_embeddings.position_embedding.weight
    assert torch.equal(table, model.embeddings.position_embedding.weight)


def test_matrices_spread_as_published_or_with_the_width():
    torch.manual_seed(0)
    published, narrow = VisualBERT(TINY), VisualBERT(replace(TINY, init="xavier"))
    for model, spread in ((published, 0.02), (narrow, math.sqrt(2 / (24 + 40)))):
        weight = model.trunk.blocks[0].mlp.fc1.weight
        assert weight.std().item() == pytest.approx(spread, rel=0.1)
    assert torch.equal(
        narrow.region_embeddings.type_embedding.weight, narrow.embeddings.type_embedding.weight
    )


# The sequence


def test_shapes_of_features_and_heads():
    heads = {"heads": visualbert.HEADS, "num_classes": 7}
    model, batch = build(**heads), batch_of()
    features = features_of(model, batch)
    assert features.text.shape == (3, 7, 24) and features.regions.shape == (3, 4, 24)
    assert features.pooled.shape == features.last_word.shape == (3, 24)
    assert model.word_logits(features).shape == (3, 7, 50)
    assert model.matching_logits(features).shape == (3, 2)
    assert model.answer_logits(features).shape == (3, 7)
    places = torch.tensor([[1, 2], [1, -1], [3, 1]])
    assert model.grounding_logits(features, places).shape == (3, 2, 4)


@pytest.mark.parametrize("late_fusion", [False, True])
def test_without_regions_it_is_a_bert(late_fusion):
    model, (ids, valid) = build(late_fusion=late_fusion), texts()
    x = model.embeddings(ids)
    for block in model.trunk.blocks:
        x = block(x, padding_mask(valid))
    for nothing in (None, torch.zeros(3, 0, 10)):
        features = model(ids, nothing, valid)
        close(features.text[valid], x[valid])
        close(features.pooled, torch.tanh(model.trunk.pooler.dense(x[:, 0])))
        assert features.regions.shape == (3, 0, 24)


@pytest.mark.parametrize("late_fusion", [False, True])
def test_regions_have_no_order(late_fusion):
    model, batch = build(late_fusion=late_fusion), batch_of()
    before = features_of(model, batch)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {name: batch[name][:, order] for name in ("features", "region_valid")}
    after = features_of(model, batch | shuffled)
    valid = batch["attention_mask"]
    close(after.text[valid], before.text[valid])
    close(after.pooled, before.pooled)
    kept = shuffled["region_valid"]
    close(after.regions[kept], before.regions[:, order][kept])


def test_words_have_an_order():
    model, batch = build(), batch_of()
    before = features_of(model, batch).pooled
    ids = batch["input_ids"].clone()
    ids[:, [1, 2]] = ids[:, [2, 1]]
    assert (features_of(model, batch | {"input_ids": ids}).pooled - before).abs().max() > 1e-3


@pytest.mark.parametrize("late_fusion", [False, True])
def test_padding_changes_nothing(late_fusion):
    model, batch = build(late_fusion=late_fusion), batch_of()
    before = features_of(model, batch)
    valid, found = batch["attention_mask"], batch["region_valid"]
    changed = {
        "input_ids": batch["input_ids"].where(valid, 9),
        "features": batch["features"].masked_fill(~found[..., None], 5.0),
    }
    after = features_of(model, batch | changed)
    close(after.text[valid], before.text[valid])
    close(after.regions[found], before.regions[found])
    for name in ("pooled", "last_word"):
        close(getattr(after, name), getattr(before, name))
    for row, (length, count) in enumerate([(7, 4), (4, 2), (5, 3)]):
        one = slice(row, row + 1)
        alone = model(batch["input_ids"][one, :length], batch["features"][one, :count])
        close(alone.pooled[0], before.pooled[row])
        close(alone.last_word[0], before.last_word[row])


def test_text_and_regions_share_one_norm():
    """Of the vectors that enter the trunk, all have the norm's statistics."""
    model, batch = build(), batch_of()
    entered = []
    model.trunk.register_forward_pre_hook(lambda _, given: entered.extend(given[:2]))
    norm = model.embeddings.norm
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(1.0)
    features_of(model, batch)
    for part in entered:
        close(part.mean(-1), torch.ones(part.shape[:2]))
        close(part.std(-1, unbiased=False), torch.full(part.shape[:2], 2.0))
    names = [name for name, _ in model.region_embeddings.named_parameters()]
    assert not any("norm" in name for name in names)


def test_only_row_0_of_the_regions_positions_is_read():
    model = build()
    features_of(model, batch_of()).pooled.square().sum().backward()
    gradient = model.region_embeddings.position_embedding.weight.grad
    assert gradient[0].abs().max() > 0 and gradient[1:].abs().max() == 0


def test_regions_are_of_type_0_unless_told_otherwise():
    model, batch = build(), batch_of()
    zeros = torch.zeros(3, 4, dtype=torch.long)
    expected = features_of(model, batch).pooled
    close(features_of(model, batch | {"region_types": zeros}).pooled, expected)
    other = features_of(model, batch | {"region_types": zeros + 1}).pooled
    assert (other - expected).abs().max() > 1e-3
    text_types = {"types": torch.zeros(3, 7, dtype=torch.long)}
    close(features_of(model, batch | text_types).pooled, expected)


def test_text_types_and_region_types_have_tables_of_their_own():
    model = build()
    batch = batch_of(region_types=torch.ones(3, 4, dtype=torch.long))
    features_of(model, batch).pooled.square().sum().backward()
    tables = [p.type_embedding.weight.grad for p in (model.embeddings, model.region_embeddings)]
    assert tables[0][0].abs().max() > 0 and tables[0][1].abs().max() == 0
    assert tables[1][1].abs().max() > 0 and tables[1][0].abs().max() == 0


# Alignment


def test_a_region_gets_the_mean_position_of_its_words():
    table = torch.randn(6, 4)
    alignment = torch.tensor([[[1, 3], [2, -1], [-1, -1], [-1, 4], [5, 5]]])
    expected = [(table[1] + table[3]) / 2, table[2], torch.zeros(4), table[4], table[5]]
    close(mean_positions(table, alignment), torch.stack(expected)[None])


def test_alignment_adds_to_row_0():
    model, batch = build(), batch_of()
    entered = []
    model.embeddings.norm.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    features_of(model, batch)
    alignment = torch.tensor([[1, 3], [2, -1], [-1, -1], [-1, -1]]).expand(3, -1, -1)
    features_of(model, batch | {"alignment": alignment})
    added = entered[1] - entered[0]
    table = model.embeddings.position_embedding.weight
    close(added[0, 7], (table[1] + table[3]) / 2)
    close(added[1, 8], table[2])
    assert added[:, :7].abs().max() == added[:, 9:].abs().max() == 0


# Late fusion


def test_without_early_fusion_the_text_does_not_see_the_image():
    model, batch = build(late_fusion=True), batch_of()
    alone = []
    model.trunk.register_forward_hook(lambda _, given, result: alone.append(result.text))
    before = features_of(model, batch)
    after = features_of(model, batch | {"features": batch["features"] + 1})
    assert torch.equal(*alone)
    assert (after.pooled - before.pooled).abs().max() > 1e-3
    early, seen = build(), []
    early.trunk.register_forward_hook(lambda _, given, result: seen.append(result.text))
    features_of(early, batch)
    features_of(early, batch | {"features": batch["features"] + 1})
    assert (seen[0] - seen[1]).abs().max() > 1e-3


# Heads


def test_answers_are_read_before_the_last_separator():
    text = torch.arange(24.0).reshape(2, 4, 3)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    assert torch.equal(last_words(text, valid), text[[0, 1], [2, 1]])
    assert torch.equal(last_words(text), text[:, 2])
    nearly_empty = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]).bool()
    assert torch.equal(last_words(text, nearly_empty), text[:, 0])
    model = build(heads=("answer",), num_classes=5)
    features = features_of(model, batch_of())
    expected = features.text[torch.arange(3), torch.tensor([5, 2, 3])]
    close(features.last_word, expected)
    close(model.answer_logits(features), model.heads["answer"](expected))
    pooled = build(heads=("answer",), num_classes=5, answer_from="pooled")
    features = features_of(pooled, batch_of())
    close(pooled.answer_logits(features), pooled.heads["answer"](features.pooled))


def test_hidden_regions_get_no_share_of_grounding():
    model, batch = build(heads=("grounding",)), batch_of()
    places, found = torch.tensor([[1, 2], [1, -1], [3, 1]]), batch["region_valid"]
    scores = model.grounding_logits(features_of(model, batch), places, found)
    shares = scores.softmax(-1)
    close(shares.sum(-1), torch.ones(3, 2))
    assert shares[~found[:, None].expand_as(shares)].abs().max() == 0
    assert scores.isfinite().all()


def test_missing_heads_and_wrong_inputs_are_named():
    model, batch = build(heads=("match",)), batch_of()
    features = features_of(model, batch)
    with pytest.raises(ValueError, match=r"no 'words' head; it has heads=\('match',\)"):
        model.word_logits(features)
    with pytest.raises(ValueError, match="no 'words' head"):
        VisualBERTPretraining(model)
    with pytest.raises(ValueError, match="feature_dim=10 numbers wide, got 9"):
        model(batch["input_ids"], batch["features"][..., :9])
    with pytest.raises(ValueError, match="a text may have 20 tokens, this one has 21"):
        model(torch.ones(2, 21, dtype=torch.long))


# What the engine relies on


@pytest.mark.parametrize("late_fusion", [False, True])
def test_attention_is_recorded(late_fusion):
    model, batch = build(late_fusion=late_fusion), batch_of()
    with record_attention(model) as maps:
        recorded = features_of(model, batch).pooled
    assert torch.equal(recorded, features_of(model, batch).pooled)
    names = [f"trunk.blocks.{i}.attention" for i in range(2)]
    assert list(maps) == names + (["late_block.attention"] if late_fusion else [])
    last = list(maps.values())[-1]
    assert last.shape == (3, 3, 11, 11)
    valid = torch.cat([batch["attention_mask"], batch["region_valid"]], dim=1)
    for weights in maps.values():
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert last[~valid[:, None, None].expand_as(last)].abs().max() == 0


@pytest.mark.parametrize("late_fusion", [False, True])
def test_checkpointing_changes_no_gradient(late_fusion):
    gradients = []
    for wanted in (False, True):
        model = build(late_fusion=late_fusion)
        model.activation_checkpointing = wanted
        assert model.trunk.activation_checkpointing == wanted
        features_of(model, batch_of()).pooled.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot trace the shape checker that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("late_fusion", [False, True])
def test_it_compiles_without_graph_breaks(late_fusion, no_shape_checks):
    model = build(late_fusion=late_fusion)
    batch = batch_of(alignment=torch.randint(-1, 7, (3, 4, 2)))
    expected = features_of(model, batch)
    compiled = features_of(torch.compile(model, backend="eager", fullgraph=True), batch)
    close(compiled.pooled, expected.pooled)
    close(compiled.last_word, expected.last_word)


# The lesson


def raw_pairs(count=400, seed=5):
    """Words tell whose a caption is: first ones have 10-19, second ones 20-29, others 30-39."""
    generator = torch.Generator().manual_seed(seed)

    def captions(first, longest):
        lengths = torch.randint(4, longest + 1, (count, 1), generator=generator)
        place = torch.arange(longest)
        ids = torch.randint(first, first + 10, (count, longest), generator=generator)
        ids = ids.masked_fill(place == lengths - 1, SEP).masked_fill(place >= lengths, 0)
        ids[:, 0] = CLS
        return ids, place < lengths

    pairs = {}
    for which, first, longest in (("", 10, 8), ("second_", 20, 6), ("other_", 30, 9)):
        ids, mask = captions(first, longest)
        names = ("input_ids", "attention_mask") if not which else (f"{which}ids", f"{which}mask")
        pairs |= dict(zip(names, (ids, mask), strict=True))
    features, valid = regions((4, 2) * (count // 2))
    boxes = torch.tensor([1.0, 2.0, 5.0, 8.0]).expand(count, 4, 4) * valid[..., None]
    sizes = torch.tensor([[10.0, 16.0]]).expand(count, 2)
    region = {"features": features, "region_valid": valid, "boxes": boxes, "image_sizes": sizes}
    return pairs | region


def lesson(pairs, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return visualbert_lesson(pairs, MASK, 50, SPECIAL, generator, **options)


def original(batch):
    """The text before words were masked."""
    return torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])


def test_a_text_is_two_captions_the_first_of_them_right():
    pairs = raw_pairs()
    batch = lesson(pairs)
    ids, valid, types = original(batch), batch["attention_mask"], batch["types"]
    assert 0.4 < batch["matched"].float().mean() < 0.6
    for row in range(len(ids)):
        which = "second" if batch["matched"][row] else "other"
        first = pairs["input_ids"][row][pairs["attention_mask"][row]]
        second = pairs[f"{which}_ids"][row][pairs[f"{which}_mask"][row]][1:]
        assert ids[row, valid[row]].tolist() == [*first.tolist(), *second.tolist()]
        assert types[row, valid[row]].tolist() == [0] * len(first) + [1] * len(second)
    # Padding is at the end, and no longer than needed.
    assert (valid.long().diff(dim=1) <= 0).all() and valid.sum(1).max() == valid.shape[1]
    assert (ids[~valid] == 0).all() and (types[~valid] == 0).all()


def test_words_of_both_captions_are_masked_as_in_bert():
    batch = lesson(raw_pairs(2000))
    asked, ids = batch["labels"] != IGNORED, batch["input_ids"]
    words = original(batch)
    special = torch.isin(words, torch.tensor(SPECIAL))
    assert not (asked & (special | ~batch["attention_mask"])).any()
    inner = batch["attention_mask"] & ~special
    for kind in (0, 1):
        of_kind = inner & (batch["types"] == kind)
        assert (asked & of_kind).sum() / of_kind.sum() == pytest.approx(0.15, abs=0.02)
    assert (ids[asked] == MASK).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (ids[asked] == words[asked]).float().mean() == pytest.approx(0.1, abs=0.03)


def test_regions_are_never_masked():
    pairs = raw_pairs()
    batch = lesson(pairs)
    assert torch.equal(batch["features"], pairs["features"])
    assert torch.equal(batch["region_valid"], pairs["region_valid"])


def test_a_lesson_draws_from_its_generator_only():
    pairs, state = raw_pairs(), torch.get_rng_state()
    copies = {name: t.clone() for name, t in pairs.items()}
    first, again, other = lesson(pairs), lesson(pairs), lesson(pairs, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["matched"], other["matched"])
    assert all(len(t) == 400 for t in first.values())
    assert all(torch.equal(pairs[name], copies[name]) for name in pairs)


def test_boxes_are_appended_where_wanted():
    pairs = raw_pairs(4)
    batch = lesson(pairs, locations=True)
    assert batch["features"].shape == (4, 4, 16)
    close(batch["features"][..., :10], pairs["features"])
    expected = torch.tensor([0.1, 0.125, 0.5, 0.5, 0.4, 0.375])
    close(batch["features"][0, 0, 10:], expected)
    again = append_locations(pairs["features"], pairs["boxes"], pairs["image_sizes"])
    assert torch.equal(batch["features"], again)
    assert visualbert.VISUALBERT_B_FLICKR.feature_dim == 2048 + 6


def test_joined_texts_by_hand():
    first, second = torch.tensor([[2, 7, 3, 0], [2, 8, 9, 3]]), torch.tensor([[2, 5, 3], [2, 3, 0]])
    ids, valid, types = join_texts(first, first > 0, second, second > 0)
    assert ids.tolist() == [[2, 7, 3, 5, 3], [2, 8, 9, 3, 3]]
    assert types.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert valid.all()


# Pre-training


def test_initial_losses_are_those_of_guessing():
    torch.manual_seed(0)
    network = VisualBERT(replace(TINY, vocab_size=1000, dim=96))
    batch = lesson(raw_pairs(64))
    losses = VisualBERTPretraining(network.eval()).losses(batch)
    assert list(losses) == ["masked_words", "matching"]
    assert losses["masked_words"].item() == pytest.approx(math.log(1000), abs=0.2)
    assert losses["matching"].item() == pytest.approx(math.log(2), abs=0.05)


def test_losses_are_those_of_all_logits():
    model, batch = build(), lesson(raw_pairs(8))
    losses = VisualBERTPretraining(model).losses(batch)
    features = features_of(model, batch)
    words = F.cross_entropy(
        model.word_logits(features).flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED
    )
    close(losses["masked_words"], words)
    pairs = F.cross_entropy(model.matching_logits(features), batch["matched"].long())
    close(losses["matching"], pairs)


def test_a_batch_without_masked_words_costs_nothing():
    model, batch = build(), lesson(raw_pairs(8))
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    assert VisualBERTPretraining(model).losses(batch)["masked_words"] == 0


def test_the_text_of_a_task_has_no_second_caption():
    batch = batch_of(labels=torch.where(texts()[0] > 20, texts()[0], IGNORED))
    assert list(VisualBERTPretraining(build(heads=("words",))).losses(batch)) == ["masked_words"]
    with pytest.raises(ValueError, match="no 'match' head"):
        matched = {"matched": torch.tensor([True, False, True])}
        VisualBERTPretraining(build(heads=("words",))).losses(batch | matched)


def test_it_learns_what_only_the_image_tells():
    """The masked word is the index of the region's largest number."""
    torch.manual_seed(0)
    network = VisualBERT(replace(TINY, dim=48, num_heads=4, mlp_dim=96, init="xavier"))
    module = VisualBERTPretraining(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        colors = torch.randint(10, (32,), generator=generator)
        ids = torch.tensor([CLS, 40, MASK, SEP]).repeat(32, 1)
        labels = torch.full_like(ids, IGNORED)
        labels[:, 2] = 5 + colors
        features = 3 * F.one_hot(colors, 10).float()[:, None]
        batch = {"input_ids": ids, "labels": labels, "features": features}
        loss = sum(module.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3
    without = sum(module.losses(batch | {"features": torch.zeros_like(features)}).values())
    assert without > 1
