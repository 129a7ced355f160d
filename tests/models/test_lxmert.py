import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis import count_parameters, record_attention
from mmlab.models import lxmert
from mmlab.models.lxmert import (
    LXMERT,
    LXMERTConfig,
    LXMERTPretraining,
    RegionEmbeddings,
    lxmert_lesson,
)
from mmlab.nn.region_locations import corner_locations
from mmlab.objectives.masked_language import IGNORED
from mmlab.objectives.masked_region import (
    choose_regions,
    smooth_region_feature_loss,
    weighted_region_label_loss,
)

TINY = LXMERTConfig(
    vocab_size=50,
    context_length=12,
    max_positions=12,
    dim=24,
    text_depth=2,
    region_depth=2,
    cross_depth=2,
    num_heads=3,
    mlp_dim=40,
    feature_dim=10,
    num_region_classes=7,
    num_attributes=5,
    num_classes=6,
    dropout=0.0,
    attention_dropout=0.0,
)
NO_HEADS = {"heads": (), "num_classes": 0}
MASK, SPECIAL = 4, (0, 1, 2, 3, 4)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return LXMERT(replace(TINY, **changes)).eval()


def randomise(model, seed=0):
    """Noise on every parameter, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def texts(lengths, generator):
    """Numbers from 5 on between [CLS] (2) and [SEP] (3); padding is 0."""
    valid = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(5, 50, valid.shape, generator=generator).where(valid, 0)
    ids[:, 0] = 2
    ids[torch.arange(len(ids)), lengths - 1] = 3
    return ids, valid


def inputs(batch=3, regions=6, seed=1):
    """What the network takes, with padding on both sides."""
    generator = torch.Generator().manual_seed(seed)
    ids, valid = texts(torch.arange(batch) % 4 + 4, generator)
    region_valid = torch.arange(regions) < (regions - torch.arange(batch) % 3)[:, None]
    return {
        "input_ids": ids,
        "features": torch.randn(batch, regions, 10, generator=generator),
        "locations": torch.rand(batch, regions, 4, generator=generator),
        "text_valid": valid,
        "region_valid": region_valid,
    }


def raw_pairs(batch=3, regions=6, seed=1):
    """As ``mmlab.tasks.region_scenes`` gives them; no feature is zero."""
    generator = torch.Generator().manual_seed(seed)
    ids, valid = texts(torch.arange(batch) % 4 + 4, generator)
    other_ids, other_valid = texts(torch.arange(batch) % 3 + 6, generator)
    question_ids, question_valid = texts(torch.arange(batch) % 2 + 8, generator)
    region_valid = torch.arange(regions) < (regions - torch.arange(batch) % 3)[:, None]
    corners = torch.rand(batch, regions, 2, generator=generator) * 40
    shape, real = (batch, regions), region_valid
    return {
        "input_ids": ids,
        "attention_mask": valid,
        "other_ids": other_ids,
        "other_mask": other_valid,
        "question_ids": question_ids,
        "question_mask": question_valid,
        "answers": torch.arange(batch) % 6,
        "features": (torch.rand(*shape, 10, generator=generator) + 1) * real[..., None],
        "boxes": torch.cat([corners, corners + 20], dim=-1) * real[..., None],
        "image_sizes": torch.tensor([[64.0, 80.0]]).expand(batch, -1),
        "region_valid": region_valid,
        "classes": torch.randint(7, shape, generator=generator) * real,
        "confidences": (0.5 + torch.rand(shape, generator=generator) / 2) * real,
        "attributes": torch.randint(5, (*shape, 2), generator=generator) * real[..., None],
        "attribute_confidences": torch.rand(*shape, 2, generator=generator) * real[..., None],
    }


def lesson(pairs=None, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    pairs = raw_pairs() if pairs is None else pairs
    return lxmert_lesson(pairs, MASK, 50, SPECIAL, generator, **settings)


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot trace the shape checker that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Sizes


def test_parameter_counts_of_the_published_size():
    with torch.device("meta"):
        model = LXMERT(lxmert.LXMERT_B)
    parts = {
        "text_embeddings": 23_837_184,
        "region_embeddings": 1_580_544,
        "text_blocks": 63_790_848,
        "region_blocks": 35_439_360,
        "cross_blocks": 82_698_240,
        "pooler": 590_592,
    }
    heads = {"words": 622_650, "match": 1_538, "regions": 3_705_040, "answer": 15_785_756}
    assert {name: count_parameters(getattr(model, name)) for name in parts} == parts
    assert {name: count_parameters(model.heads[name]) for name in heads} == heads
    assert count_parameters(model.heads["regions"].transform) == 592_128
    assert sum(parts.values()) == 207_936_768
    assert count_parameters(model) == 228_051_752


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (lxmert.LXMERT_B_VQA, 1_181_184 + 3_072 + 3129 * 1537),
        (lxmert.LXMERT_B_GQA, 1_181_184 + 3_072 + 1842 * 1537),
        (lxmert.LXMERT_B_NLVR2, 1536 * 1537 + 3_072 + 2 * 1537),
    ],
)
def test_parameter_counts_of_the_finetuned_sizes(config, head):
    with torch.device("meta"):
        assert count_parameters(LXMERT(config)) == 207_936_768 + head


def test_sharing_the_cross_attention_saves_its_weights():
    with torch.device("meta"):
        apart = LXMERT(replace(lxmert.LXMERT_B, shared_cross_attention=False))
    assert count_parameters(apart) - 228_051_752 == 5 * (4 * 768 * 769 + 2 * 768)


def test_multiplications_of_one_pair():
    """20 words and 36 objects; the paper counts a cross layer as two of the others."""
    with (
        torch.device("meta"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as count,
    ):
        model = LXMERT(replace(lxmert.LXMERT_B, **NO_HEADS)).eval()
        ids = torch.zeros(1, 20, dtype=torch.long)
        model(ids, torch.zeros(1, 36, 2048), torch.zeros(1, 36, 4))
    d, f, words, things = 768, 3072, 20, 36

    def plain(n):
        return n * (4 * d * d + 2 * d * f) + 2 * n * n * d

    both = words + things
    cross = both * (8 * d * d + 2 * d * f) + 2 * d * (2 * words * things + words**2 + things**2)
    parts = (9 * plain(words), 5 * plain(things), 5 * cross, things * (2048 + 4) * d, d * d)
    assert count.get_total_flops() == 2 * sum(parts)
    assert [round(part / 1e9, 2) for part in parts[:4]] == [1.28, 1.28, 2.67, 0.06]


def test_the_mini_model_is_small():
    assert count_parameters(LXMERT(lxmert.LXMERT_MINI)) < 2_500_000


def test_matrices_spread_as_published_or_with_the_width():
    published, narrow = build(), build(init="xavier")
    assert lxmert.LXMERT_B.init == "normal"
    for model, spread in ((published, 0.02), (narrow, math.sqrt(2 / (24 + 40)))):
        for block in (model.text_blocks[0], model.cross_blocks[1].region_block):
            assert block.mlp.fc1.weight.std().item() == pytest.approx(spread, rel=0.1)
        table = model.text_embeddings.word_embedding.weight
        assert table.std().item() == pytest.approx(0.02, rel=0.1)


# Shapes and padding


def test_shapes_of_features_and_heads():
    model = build()
    features = model(**inputs())
    assert features.text.shape == (3, 6, 24)
    assert features.regions.shape == (3, 6, 24)
    assert features.pooled.shape == (3, 24) and features.pooled.abs().max() < 1
    assert model.word_logits(features).shape == (3, 6, 50)
    assert model.matching_logits(features).shape == (3, 2)
    assert [p.shape for p in model.region_predictions(features)] == [
        (3, 6, 7),
        (3, 6, 5),
        (3, 6, 10),
    ]
    assert model.answer_logits(features).shape == (3, 6)


def test_padding_of_texts_and_regions_changes_nothing():
    model, given = randomise(build()), inputs()
    expected = model(**given)
    text, regions = given["text_valid"], given["region_valid"]
    changed = given | {
        "input_ids": given["input_ids"].where(text, 9),
        "features": given["features"].where(regions[..., None], 7.0),
        "locations": given["locations"].where(regions[..., None], 7.0),
    }
    features = model(**changed)
    close(features.text[text], expected.text[text])
    close(features.regions[regions], expected.regions[regions])
    close(features.pooled, expected.pooled)


def test_a_pair_alone_is_the_same_as_in_a_padded_batch():
    model, given = randomise(build()), inputs()
    together = model(**given)
    for row in range(3):
        words, things = (int(given[k][row].sum()) for k in ("text_valid", "region_valid"))
        alone = model(
            given["input_ids"][row : row + 1, :words],
            given["features"][row : row + 1, :things],
            given["locations"][row : row + 1, :things],
        )
        close(together.pooled[row], alone.pooled[0])
        close(together.regions[row, :things], alone.regions[0])


def test_the_order_of_the_regions_does_not_matter():
    model, given = randomise(build()), inputs()
    expected = model(**given)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    names = ("features", "locations", "region_valid")
    features = model(**given | {name: given[name][:, order] for name in names})
    close(features.text, expected.text)
    close(features.pooled, expected.pooled)
    close(features.regions, expected.regions[:, order])


# Embeddings


def test_the_first_position_and_the_first_type_get_no_gradient_and_start_as_noise():
    model = build()
    embeddings = model.text_embeddings
    tables = (embeddings.position_embedding.weight, embeddings.type_embedding.weight)
    assert all(table[0].std() > 0.01 for table in tables)
    module = LXMERTPretraining(model)
    sum(module.losses(lesson()).values()).backward()
    for table in tables:
        assert torch.equal(table.grad[0], torch.zeros(24))
    assert (tables[0].grad[1:6].abs().amax(1) > 0).all()
    assert (embeddings.word_embedding.weight.grad[0].abs() > 0).any(), "tied with the words head"


def test_a_region_is_the_mean_of_two_normalised_vectors():
    torch.manual_seed(0)
    part = RegionEmbeddings(TINY)
    for norm in (part.feature_norm, part.location_norm):
        norm.weight.data.fill_(1.7)
    given = inputs()
    vectors = part(given["features"], given["locations"])
    close(vectors.mean(-1), torch.zeros(3, 6))
    assert (vectors.norm(dim=-1) <= 1.7 * 24**0.5 + 1e-4).all()
    part.feature_projection.bias.data.zero_()
    scaled = part(given["features"], given["locations"])
    close(part(37 * given["features"], given["locations"]), scaled)
    part.location_norm.weight.data.zero_()
    close(
        part(given["features"], given["locations"]).norm(dim=-1), torch.full((3, 6), 0.85 * 24**0.5)
    )


# The two encoders, and the one across


def test_without_cross_blocks_neither_side_knows_of_the_other():
    model, given = randomise(build(cross_depth=0)), inputs()
    expected = model(**given)
    other = given | {"features": given["features"].flip(0), "locations": given["locations"].flip(0)}
    assert torch.equal(model(**other).text, expected.text)
    strange = given | {
        "input_ids": given["input_ids"].flip(0),
        "text_valid": given["text_valid"].flip(0),
    }
    assert torch.equal(model(**strange).regions, expected.regions)


def test_each_encoder_alone_is_a_bert_of_its_own_depth():
    model, given = randomise(build(text_depth=3, region_depth=1, cross_depth=0)), inputs()
    encoders = []
    for depth, heads, name in ((3, 3, "text_blocks"), (1, 3, "region_blocks")):
        layer = torch.nn.TransformerEncoderLayer(
            24, heads, 40, 0.0, "gelu", 1e-12, batch_first=True, norm_first=False
        )
        encoder = torch.nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).eval()
        for theirs, ours in zip(encoder.layers, getattr(model, name), strict=True):
            qkv = [getattr(ours.attention, f"{part}_proj") for part in "qkv"]
            theirs.self_attn.in_proj_weight.data = torch.cat([part.weight for part in qkv])
            theirs.self_attn.in_proj_bias.data = torch.cat([part.bias for part in qkv])
            theirs.self_attn.out_proj = ours.attention.out_proj
            theirs.norm1, theirs.norm2 = ours.norm1, ours.norm2
            theirs.linear1, theirs.linear2 = ours.mlp.fc1, ours.mlp.fc2
        encoders.append(encoder)
    features, (text, regions) = model(**given), encoders
    table = model.text_embeddings
    ids, valid = given["input_ids"], given["text_valid"]
    x = table.word_embedding(ids) + table.position_embedding.weight[: ids.shape[1]]
    x = table.norm(x + table.type_embedding.weight[0])
    close(features.text[valid], text(x, src_key_padding_mask=~valid)[valid])
    vectors, real = (
        model.region_embeddings(given["features"], given["locations"]),
        given["region_valid"],
    )
    close(features.regions[real], regions(vectors, src_key_padding_mask=~real)[real])


def test_a_cross_block_is_what_its_parts_say():
    block = randomise(build()).cross_blocks[0]
    text, regions = torch.randn(2, 5, 24), torch.randn(2, 6, 24)

    def read(x, context):
        shared = block.text_to_regions
        attended = F.scaled_dot_product_attention(
            *(
                part(y).unflatten(-1, (3, 8)).transpose(1, 2)
                for part, y in (
                    (shared.attention.q_proj, x),
                    (shared.attention.k_proj, context),
                    (shared.attention.v_proj, context),
                )
            )
        )
        return shared.norm(x + shared.attention.out_proj(attended.transpose(1, 2).flatten(2)))

    words, things = block(text, regions)
    close(words, block.text_block(read(text, regions)))
    close(things, block.region_block(read(regions, text)))


def test_both_directions_have_one_set_of_weights():
    model, given = randomise(build(cross_depth=1)), inputs()
    block = model.cross_blocks[0]
    expected = model(**given)
    block.text_to_regions.attention.v_proj.weight.data *= 1.5
    changed = model(**given)
    assert (changed.text - expected.text).abs().max() > 1e-3
    assert (changed.regions - expected.regions).abs().max() > 1e-3
    shared = block.regions_to_text.state_dict()
    assert all(torch.equal(shared[k], t) for k, t in block.text_to_regions.state_dict().items())
    out = block.text_to_regions.attention.out_proj
    out.weight.data.zero_()
    disconnected = model(**given)
    other = model(**given | {"features": given["features"].flip(0)})
    strange = model(**given | {"input_ids": given["input_ids"].flip(1)})
    assert torch.equal(disconnected.text, other.text)
    assert torch.equal(disconnected.regions, strange.regions)


def test_directions_may_have_weights_of_their_own():
    model, given = randomise(build(cross_depth=1, shared_cross_attention=False)), inputs()
    expected = model(**given)
    model.cross_blocks[0].regions_to_text.attention.v_proj.weight.data *= 1.5
    changed = model(**given)
    assert torch.equal(changed.text, expected.text)
    assert (changed.regions - expected.regions).abs().max() > 1e-3


def test_attention_is_recorded_in_both_directions_and_not_over_padding():
    model, given = build(), inputs()
    with record_attention(model) as maps:
        model(**given)
    text, regions = given["text_valid"], given["region_valid"]
    directions = {
        "text_blocks.{}.attention": (text, text),
        "region_blocks.{}.attention": (regions, regions),
        "cross_blocks.{}.text_to_regions.attention": (text, regions),
        "cross_blocks.{}.regions_to_text.attention": (regions, text),
        "cross_blocks.{}.text_block.attention": (text, text),
        "cross_blocks.{}.region_block.attention": (regions, regions),
    }
    named = {name.format(i): pair for name, pair in directions.items() for i in range(2)}
    assert maps.keys() == named.keys()
    for name, (queries, keys) in named.items():
        weights = maps[name]
        assert weights.shape == (3, 3, queries.shape[1], keys.shape[1])
        close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        seen = weights.amax((1, 2))
        assert (seen[~keys] == 0).all() and (seen[keys] > 0).all()
    assert isinstance(model.get_submodule(list(named)[4]), lxmert.Attention)


# The lesson


def test_a_lesson_has_all_of_what_the_losses_want():
    batch = lesson()
    assert all(len(tensor) == 3 for tensor in batch.values())
    pairs = raw_pairs()
    assert torch.equal(batch["true_features"], pairs["features"])
    close(batch["locations"], corner_locations(pairs["boxes"], pairs["image_sizes"]))
    assert all(torch.equal(batch[name], lesson()[name]) for name in batch)
    assert any(not torch.equal(batch[name], lesson(seed=1)[name]) for name in batch)


def many(batch=600, **settings):
    pairs = raw_pairs(batch)
    return pairs, lesson(pairs, **settings)


def unmasked(batch):
    return batch["input_ids"].where(batch["labels"] == IGNORED, batch["labels"])


def same_text(batch, ids, valid):
    """In which rows the whole text is that of ``ids``."""
    found, length = unmasked(batch), batch["input_ids"].shape[1]
    return (found == F.pad(ids.where(valid, 0), (0, length - ids.shape[1]))).all(1)


def test_half_of_the_texts_are_replaced_by_one_of_the_same_kind():
    pairs, batch = many(question_share=0.4)
    own = same_text(batch, pairs["input_ids"], pairs["attention_mask"])
    other = same_text(batch, pairs["other_ids"], pairs["other_mask"])
    asked = same_text(batch, pairs["question_ids"], pairs["question_mask"])
    matched = batch["matched"]
    assert matched.float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert torch.equal(own | asked, matched)
    strange = ~(own | other | asked)
    assert asked[matched].float().mean().item() == pytest.approx(0.4, abs=0.09)
    assert strange[~matched].float().mean().item() == pytest.approx(0.4, abs=0.09)
    questions = set(map(tuple, pairs["question_ids"].tolist()))
    length = pairs["question_ids"].shape[1]
    assert {tuple(row[:length]) for row in unmasked(batch)[strange].tolist()} <= questions


def test_only_questions_about_the_own_image_have_an_answer():
    pairs, batch = many(question_share=0.5)
    asked = same_text(batch, pairs["question_ids"], pairs["question_mask"])
    assert torch.equal(batch["answers"] != IGNORED, asked)
    assert torch.equal(batch["answers"][asked], pairs["answers"][asked])
    assert (lesson(question_share=0)["answers"] == IGNORED).all()
    _, batch = many(question_share=1)
    assert torch.equal(batch["answers"] != IGNORED, batch["matched"])


def test_one_of_several_answers_is_drawn_in_proportion_to_its_score():
    scores = torch.tensor([0.0, 0.9, 0.0, 0.3, 0.0, 0.0])
    pairs = raw_pairs(4000, regions=1)
    pairs["region_valid"][:] = True
    pairs["scores"] = scores.expand(4000, -1).clone()
    pairs["scores"][::2] = 0
    answers = lesson(pairs, question_share=1)["answers"]
    assert (answers[::2] == IGNORED).all()
    known = answers[1::2][answers[1::2] != IGNORED]
    assert set(known.tolist()) == {1, 3}
    assert (known == 1).float().mean().item() == pytest.approx(0.75, abs=0.05)


def test_words_are_masked_one_by_one_and_special_ones_never():
    _, batch = many()
    ids, labels = batch["input_ids"], batch["labels"]
    words = batch["attention_mask"] & ~torch.isin(unmasked(batch), torch.tensor(SPECIAL))
    asked = labels != IGNORED
    assert not asked[~words].any()
    assert asked[words].float().mean().item() == pytest.approx(0.15, abs=0.03)
    assert (ids[asked] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.06)


def test_regions_are_zeroed_replaced_or_kept_and_their_boxes_stay():
    pairs, batch = many()
    true, seen, chosen = pairs["features"], batch["features"], batch["chosen"]
    valid = pairs["region_valid"]
    assert not chosen[~valid].any()
    assert chosen[valid].float().mean().item() == pytest.approx(0.15, abs=0.03)
    assert torch.equal(seen[~chosen], true[~chosen])
    zeroed = (seen[chosen] == 0).all(-1)
    kept = (seen[chosen] == true[chosen]).all(-1)
    assert zeroed.float().mean().item() == pytest.approx(0.8, abs=0.06)
    assert kept.float().mean().item() == pytest.approx(0.1, abs=0.05)
    rows = chosen.nonzero()[:, 0]
    owners = {
        tuple(feature.tolist()): row for row in range(600) for feature in true[row][valid[row]]
    }
    replaced = ~zeroed & ~kept
    assert replaced.any()
    for row, feature in zip(rows[replaced].tolist(), seen[chosen][replaced].tolist(), strict=True):
        assert owners[tuple(feature)] != row, "a real region of another image"


def test_a_batch_of_one_row_is_a_lesson_too():
    pairs = {key: tensor[:1] for key, tensor in raw_pairs().items()}
    for seed in range(20):
        batch = lesson(pairs, seed=seed, question_share=1)
        assert batch["matched"].all()
        assert same_text(batch, pairs["question_ids"], pairs["question_mask"]).all()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_wrong_share_of_questions_is_refused(share):
    with pytest.raises(ValueError, match=r"question_share must be in \[0, 1\]"):
        lesson(question_share=share)


# Losses


def losses_of(model, batch, **settings):
    return LXMERTPretraining(model, **settings).losses(batch)


def test_initial_losses_are_those_of_guessing():
    model = build(
        vocab_size=1000, dim=96, num_region_classes=300, num_attributes=200, num_classes=90
    )
    pairs = raw_pairs(64) | {
        "confidences": torch.ones(64, 6),
        "attribute_confidences": torch.ones(64, 6, 2),
    }
    losses = losses_of(model, lesson(pairs, question_share=0.6), region_weight=1)
    guessing = {
        "masked_words": math.log(1000),
        "matching": math.log(2),
        "masked_region_classes": math.log(300),
        "masked_region_attributes": math.log(200),
        "answers": math.log(90),
    }
    assert losses.keys() == guessing.keys() | {"masked_region_features"}
    for name, expected in guessing.items():
        assert losses[name].item() == pytest.approx(expected, abs=0.25), name


def test_the_feature_loss_is_smooth_l1_of_the_chosen_regions_over_all():
    """Regions by hand: the errors 0.5 and 3 give 0.125 and 2.5, over two numbers a feature."""
    predicted, true = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    predicted[0, 0, 0], predicted[0, 1, 1], predicted[0, 2] = 0.5, 3.0, 9.0
    chosen = torch.tensor([[True, True, False, True]])
    valid = torch.tensor([[True, True, True, False]])
    loss = smooth_region_feature_loss(predicted, true, chosen, valid)
    assert loss.item() == pytest.approx((0.125 + 2.5) / 2 / 3)


def test_label_losses_weigh_every_valid_region():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels, weights = torch.tensor([[0, 4, 2], [1, 1, 3]]), torch.rand(2, 3)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    loss = weighted_region_label_loss(logits, labels[..., None], weights[..., None], valid)
    each = F.cross_entropy(logits.mT, labels, reduction="none") * weights
    assert loss.item() == pytest.approx(each[valid].mean().item())
    two = weighted_region_label_loss(
        logits, torch.stack([labels, labels], -1), torch.stack([weights, 0 * weights], -1), valid
    )
    assert two.item() == pytest.approx(loss.item() / 2)


def test_only_the_feature_loss_knows_which_regions_were_masked():
    model, batch = randomise(build()), lesson()
    expected = losses_of(model, batch)
    none = losses_of(model, batch | {"chosen": torch.zeros_like(batch["chosen"])})
    assert none["masked_region_features"] == 0 and expected["masked_region_features"] > 0
    for name in ("masked_region_classes", "masked_region_attributes"):
        assert none[name] == expected[name] > 0


def test_padded_regions_do_not_change_the_losses():
    model, batch = randomise(build()), lesson()
    expected = losses_of(model, batch)
    per_region = ("region_valid", "features", "true_features", "chosen", "classes", "confidences")
    per_region += ("attributes", "attribute_confidences", "locations")
    longer = {
        key: F.pad(t, (0, 0) * (t.ndim - 2) + (0, 3)) if key in per_region else t
        for key, t in batch.items()
    }
    for name, loss in losses_of(model, longer).items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-5), name


def test_the_weight_makes_up_for_the_regions_that_are_not_masked():
    """Masked at rate 0.15 and divided by 0.15, the mean over draws is that over all regions."""
    generator = torch.Generator().manual_seed(0)
    predicted, true = torch.randn(2, 4, 36, 5, generator=generator)
    valid = torch.ones(4, 36, dtype=torch.bool)
    plain = F.smooth_l1_loss(predicted, true).item()
    drawn = [
        smooth_region_feature_loss(
            predicted, true, choose_regions(valid, generator=generator), valid
        )
        for _ in range(1500)
    ]
    assert torch.stack(drawn).mean().item() / 0.15 == pytest.approx(plain, rel=0.03)


def test_false_pairs_are_asked_for_words_and_regions_but_not_for_answers():
    model, pairs = randomise(build()), raw_pairs(16)
    batch = lesson(pairs, question_share=1)
    false = {key: tensor[~batch["matched"]] for key, tensor in batch.items()}
    losses = losses_of(model, false)
    assert losses["answers"] == 0
    assert all(loss > 0 for name, loss in losses.items() if name != "answers")


def test_nothing_asked_costs_nothing():
    model, batch = build(), lesson()
    batch |= {"labels": torch.full_like(batch["labels"], IGNORED)}
    losses = losses_of(model, batch)
    assert losses["masked_words"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_objectives_can_be_left_out():
    batch = lesson()
    words = {"masked_words", "matching"}
    assert losses_of(build(heads=("words", "match"), num_classes=0), batch).keys() == words
    only = losses_of(build(), batch, region_losses=("classes",))
    assert only.keys() == words | {"masked_region_classes", "answers"}


def test_every_loss_goes_down():
    torch.manual_seed(0)
    model = LXMERT(replace(TINY, dim=48, text_depth=1, region_depth=1, cross_depth=1))
    module = LXMERTPretraining(model)
    batches = [lesson(raw_pairs(8), seed=seed, question_share=0.5) for seed in range(2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def total():
        losses = [module.losses(batch) for batch in batches]
        return {name: sum(loss[name] for loss in losses) / 2 for name in losses[0]}

    first = {name: loss.item() for name, loss in total().items()}
    for _ in range(50):
        optimizer.zero_grad()
        sum(total().values()).backward()
        optimizer.step()
    for name, loss in total().items():
        assert loss.item() < 0.75 * first[name], name


# Modes


def gradients(module, batch):
    module.zero_grad()
    sum(module.losses(batch).values()).backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def test_activation_checkpointing_gives_the_same_gradients():
    module, batch = LXMERTPretraining(randomise(build()).train()), lesson(question_share=0.7)
    expected, network, runs = gradients(module, batch), module.network, []
    network.activation_checkpointing = True
    for block in (network.text_blocks[0], network.region_blocks[1]):
        block.norm1.register_forward_hook(lambda *_: runs.append(1))
    network.cross_blocks[1].text_block.norm1.register_forward_hook(lambda *_: runs.append(1))
    for name, gradient in gradients(module, batch).items():
        assert torch.equal(gradient, expected[name]), name
    assert len(runs) == 6  # once forward, and again during backward


def test_bf16_autocast_stays_close():
    module, batch = LXMERTPretraining(build()), lesson(question_share=0.7)
    expected = module.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = module.losses(batch)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        assert loss.item() == pytest.approx(expected[name].item(), rel=2**-5, abs=2**-7), name


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(checkpointing, no_shape_checks):
    model, given = build(text_depth=1, region_depth=1, cross_depth=1), inputs()
    model.activation_checkpointing = checkpointing
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for left, right in zip(compiled(**given), model(**given), strict=True):
        close(left, right)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    module, batch = LXMERTPretraining(build()), lesson(question_share=0.7)
    expected = module.losses(batch)
    losses = module.cuda().losses({key: tensor.cuda() for key, tensor in batch.items()})
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), abs=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 770}, "dim must be a multiple of num_heads=12, got 770"),
        ({"text_depth": 0}, "text_depth must be an integer of at least 1, got 0"),
        ({"cross_depth": -1}, "cross_depth must be an integer of at least 0, got -1"),
        ({"num_images": 0}, "num_images must be an integer of at least 1, got 0"),
        ({"heads": ("sound",)}, "heads must be a tuple of some of 'words', .* got"),
        ({"num_classes": 0}, "num_classes must be at least 1 with the head 'answer', got 0"),
        ({"heads": ()}, "num_classes must be 0 without 'answer', got 9500"),
        ({"activation": "silu"}, "activation must be one of"),
        ({"init": "zeros"}, "init must be one of 'normal', 'xavier', got 'zeros'"),
        ({"norm_eps": 0.0}, "norm_eps must be positive"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\), got 1.0"),
        ({"context_length": 513}, "context_length must be at most max_positions=512, got 513"),
        ({"shared_cross_attention": 1}, "shared_cross_attention must be True or False, got 1"),
    ],
)
def test_wrong_configurations_are_refused(changes, message, no_shape_checks):
    with pytest.raises(ValueError, match=message):
        LXMERTConfig(**changes)


def test_wrong_inputs_are_refused(no_shape_checks):
    model, given = build(), inputs()
    with pytest.raises(ValueError, match="a text may have 12 tokens, this one has 13"):
        model(torch.ones(3, 13, dtype=torch.long), given["features"], given["locations"])
    with pytest.raises(ValueError, match=r"features must have shape \(batch, regions, 10\)"):
        model(given["input_ids"], given["features"][..., :9], given["locations"])
    with pytest.raises(ValueError, match=r"at least one region, got \(3, 0, 10\)"):
        model(given["input_ids"], given["features"][:, :0], given["locations"][:, :0])
    with pytest.raises(ValueError, match=r"locations must have shape \(3, 6, 4\), got \(3, 6, 5\)"):
        model(given["input_ids"], given["features"], torch.zeros(3, 6, 5))


def test_heads_that_are_not_there_are_named():
    model = build(**NO_HEADS)
    features = model(**inputs())
    for call in (model.word_logits, model.matching_logits, model.region_predictions):
        with pytest.raises(ValueError, match=r"this LXMERT has no '\w+' head; it has heads=\(\)"):
            call(features)
    with pytest.raises(ValueError, match="no 'match' head"):
        LXMERTPretraining(build(heads=("words",), num_classes=0))
    with pytest.raises(ValueError, match=r"region_losses must be some of 'features', .* got"):
        LXMERTPretraining(build(), region_losses=("boxes",))
    with pytest.raises(ValueError, match="for num_images=1 images, got 2"):
        build().answer_logits(features, features)
