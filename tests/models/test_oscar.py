import math
from dataclasses import replace

import pytest
import torch

from mmlab import record_attention
from mmlab.analysis import count_parameters
from mmlab.models import oscar
from mmlab.models.oscar import (
    OSCAR_PLUS_POLLUTION,
    OSCAR_POLLUTION,
    Oscar,
    OscarConfig,
    OscarPretraining,
    Pollution,
    append_tags,
    caption_mask,
    oscar_lesson,
    part_mask,
)
from mmlab.objectives.masked_language import IGNORED

TINY = OscarConfig(
    vocab_size=60,
    context_length=24,
    max_positions=30,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    feature_dim=5,
    dropout=0.0,
    attention_dropout=0.0,
)
PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
WORDS, TAGS, OTHER_WORDS, OTHER_TAGS = (5, 20), (20, 30), (30, 45), (45, 55)
QUESTIONS, ANSWERS = (55, 57), (57, 60)
"""The numbers that the tokens of each text are drawn from: a token tells where it comes from."""


def build(seed=0, **changes):
    """Noise on every parameter, so that no zero hides a mistake."""
    torch.manual_seed(seed)
    model = Oscar(replace(TINY, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def left_aligned(lengths):
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def drawn_text(lengths, among, generator, special=True):
    """Texts of these lengths, with [CLS] and [SEP] among them or without."""
    valid = left_aligned(lengths)
    ids = torch.randint(*among, valid.shape, generator=generator).where(valid, PAD)
    if special:
        ids[:, 0] = CLS
        ids[torch.arange(len(ids)), torch.tensor(lengths) - 1] = SEP
    return ids, valid


def raw_pairs(batch=3, seed=0, **entries):
    """What a lesson gets: all texts of other lengths and of other words."""
    generator = torch.Generator().manual_seed(seed)

    def lengths(least, most):
        return torch.randint(least, most, (batch,), generator=generator).tolist()

    pairs = {}
    for name, mask, among, special in (
        ("input_ids", "attention_mask", WORDS, True),
        ("other_ids", "other_mask", OTHER_WORDS, True),
        ("tag_ids", "tag_mask", TAGS, False),
        ("other_tag_ids", "other_tag_mask", OTHER_TAGS, False),
        ("question_ids", "question_mask", QUESTIONS, True),
        ("answer_ids", "answer_mask", ANSWERS, False),
        ("other_question_ids", "other_question_mask", QUESTIONS, True),
        ("other_answer_ids", "other_answer_mask", ANSWERS, False),
    ):
        told = lengths(5, 12) if special else lengths(2, 7)
        pairs[name], pairs[mask] = drawn_text(told, among, generator, special)
    for prefix in ("", "other_"):
        valid = left_aligned(lengths(1, 6))
        corners = torch.rand(*valid.shape, 2, generator=generator) * 50
        boxes = torch.cat([corners, corners + 10], dim=-1) * valid[..., None]
        features = torch.randn(*valid.shape, 5, generator=generator) * valid[..., None]
        pairs |= {f"{prefix}features": features, f"{prefix}boxes": boxes}
        sizes = torch.tensor([[100.0, 80.0]]).expand(batch, 2)
        pairs |= {f"{prefix}region_valid": valid, f"{prefix}image_sizes": sizes}
    return pairs | entries


def lesson(pairs, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return oscar_lesson(pairs, MASK, 60, SPECIAL, generator, **options)


def example(batch=3, seed=0):
    """A batch that nothing is hidden in."""
    pairs = raw_pairs(batch, seed)
    names = ("input_ids", "attention_mask", "tag_ids", "tag_mask")
    return {
        **oscar.text_entries(append_tags(*(pairs[name] for name in names))),
        **oscar.lesson_regions(pairs),
    }


def run(model, given, mask=None):
    return oscar.batch_features(model, given, mask)


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def differ(left, right):
    assert (left - right).abs().max() > 1e-3


# Sizes

COUNTS = [
    ("OSCAR_B", {"heads": ()}, 111_060_480),
    ("OSCAR_B", {}, 111_684_668),
    ("OSCAR_PLUS_B", {"heads": ()}, 111_062_016),
    ("OSCAR_PLUS_B", {"num_contrast_classes": 2}, 111_686_204),
    ("OSCAR_PLUS_B", {}, 111_686_204 + 769),
    ("OSCAR_L", {"heads": ()}, 337_246_208),
    ("OSCAR_L", {}, 338_330_428),
    ("OSCAR_PLUS_L", {"heads": ()}, 337_248_256),
    ("OSCAR_PLUS_L", {"num_contrast_classes": 2}, 338_332_476),
    ("OSCAR_PLUS_L", {}, 338_332_476 + 1025),
    ("OSCAR_B_VQA", {}, 111_060_480 + 769 * 3129),
    ("OSCAR_B_RETRIEVAL", {}, 111_060_480 + 769 * 2),
    ("OSCAR_B_NLVR2", {}, 111_060_480 + 1537 * 2304 + 2305 * 2),
    ("OSCAR_PLUS_L_NLVR2", {}, 337_248_256 + 2049 * 2048 + 2 * 2048 + 2049 * 2),
    ("OSCAR_PLUS_B_CAPTIONING", {}, 111_686_204 - 2 * 769),
    ("OSCAR_B_CAPTIONING", {"tied_words": False}, 111_684_668 - 2 * 769 + 30522 * 768),
]


@pytest.mark.parametrize(("name", "changes", "expected"), COUNTS)
def test_parameter_counts(name, changes, expected):
    with torch.device("meta"):
        assert count_parameters(Oscar(replace(getattr(oscar, name), **changes))) == expected


def test_parameter_counts_of_the_parts():
    with torch.device("meta"):
        model = Oscar(oscar.OSCAR_PLUS_B)
    parts = {
        "embeddings": 30522 * 768 + 512 * 768 + 2 * 768 + 2 * 768,
        "region_embedding": 2055 * 768,
        "image_norm": 1536,
        "trunk": 12 * 7_087_872 + 769 * 768,
    }
    assert {name: count_parameters(getattr(model, name)) for name in parts} == parts


def test_the_mini_model_is_small():
    assert count_parameters(Oscar(oscar.OSCAR_MINI)) < 1_100_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 25}, "dim must be a multiple of num_heads=3, got 25"),
        ({"num_contrast_classes": 4}, "num_contrast_classes must be 2 or 3, got 4"),
        ({"heads": ("answer",)}, "num_classes must be at least 1 with the head 'answer', got 0"),
        ({"context_length": 31}, "context_length must be at most max_positions=30, got 31"),
        ({"heads": ("words", "rank")}, "heads must be a tuple of some of 'words', 'match'"),
        ({"image_norm_eps": 0.0}, "image_norm_eps must be positive"),
    ],
)
def test_wrong_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_wrong_calls():
    model, given = build(heads=("words",)), example()
    with pytest.raises(ValueError, match="features must have feature_dim=5 numbers a region, got"):
        run(model, given | {"features": torch.zeros(3, 5, 4)})
    with pytest.raises(ValueError, match="a text may have 30 tokens, this one has 31"):
        model(torch.zeros(3, 31).long(), given["features"], given["locations"])
    with pytest.raises(ValueError, match="this Oscar has no 'match' head"):
        OscarPretraining(model)


# The text


def test_tags_stand_behind_the_words():
    ids = torch.tensor([[CLS, 5, 6, SEP], [CLS, 7, SEP, PAD], [CLS, 8, SEP, PAD]])
    tags = torch.tensor([[20, 20, 21], [22, PAD, PAD], [PAD] * 3])
    text = append_tags(ids, ids != PAD, tags, tags != PAD)
    assert text.ids.tolist() == [
        [CLS, 5, 6, SEP, 20, 20, 21, SEP],
        [CLS, 7, SEP, 22, SEP, PAD, PAD, PAD],
        [CLS, 8, SEP, PAD, PAD, PAD, PAD, PAD],
    ]
    assert torch.equal(text.valid, text.ids != PAD)
    assert text.types.tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [0] * 8,
    ]


def shortened(words, tags, length):
    """The official ``_truncate_seq_pair``, on lists."""
    words, tags = list(words), list(tags)
    while len(words) + len(tags) > length - 2 - bool(tags):
        (words if len(words) > len(tags) else tags).pop()
    return [CLS, *words, SEP, *([*tags, SEP] if tags else [])]


@pytest.mark.parametrize("length", [5, 8, 9, 14, 40])
def test_long_texts_lose_words_as_the_official_code_takes_them(length):
    generator = torch.Generator().manual_seed(length)
    counts = torch.randint(0, 12, (40, 2), generator=generator)
    ids, valid = drawn_text((counts[:, 0] + 2).tolist(), WORDS, generator)
    tags, tag_valid = drawn_text(counts[:, 1].tolist(), TAGS, generator, special=False)
    text = append_tags(ids, valid, tags, tag_valid, length)
    for row, (num_words, num_tags) in enumerate(counts.tolist()):
        own = ids[row, 1 : 1 + num_words].tolist(), tags[row, :num_tags].tolist()
        assert text.ids[row][text.valid[row]].tolist() == shortened(*own, length)
    assert text.ids.shape[1] <= length


# The sequence


def test_shapes_of_features_and_heads():
    model = build(heads=oscar.HEADS, num_classes=7)
    given = example()
    features = run(model, given)
    assert features.text.shape == (*given["input_ids"].shape, 24)
    assert features.regions.shape == (*given["region_valid"].shape, 24)
    assert model.word_logits(features).shape == (*given["input_ids"].shape, 60)
    assert model.region_word_logits(features).shape == (*given["region_valid"].shape, 60)
    assert model.matching_logits(features).shape == (3, 2)
    assert model.answer_logits(features).shape == (3, 7)
    with pytest.raises(ValueError, match="features must be given for num_images=1 images, got 2"):
        model.answer_logits(features, features)


def test_padding_changes_nothing():
    model, given = build(), example()
    before = run(model, given)
    text, regions = given["attention_mask"], given["region_valid"]
    assert not text.all() and not regions.all()
    noise = torch.randn(*regions.shape, 5)
    after = run(
        model,
        given
        | {
            "input_ids": given["input_ids"].where(text, 9),
            "features": given["features"].where(regions[..., None], noise),
            "locations": given["locations"].where(regions[..., None], 0.3),
        },
    )
    close(after.text[text], before.text[text])
    close(after.regions[regions], before.regions[regions])
    close(after.pooled, before.pooled)


def test_padding_between_text_and_regions_may_be_of_any_length():
    """Regions have no position: it does not matter at which place of the sequence they stand."""
    model, given = build(), example()
    before = run(model, given)
    wider = {
        name: torch.nn.functional.pad(given[name], (0, 4))
        for name in ("input_ids", "attention_mask", "token_types")
    }
    after = run(model, given | wider)
    valid, regions = given["attention_mask"], given["region_valid"]
    close(after.text[:, :-4][valid], before.text[valid])
    close(after.regions[regions], before.regions[regions])


def test_regions_have_no_order():
    model, given = build(), example()
    before = run(model, given)
    order = torch.randperm(given["region_valid"].shape[1], generator=torch.manual_seed(0))
    shuffled = {name: given[name][:, order] for name in ("features", "locations", "region_valid")}
    after = run(model, given | shuffled)
    valid = shuffled["region_valid"]
    close(after.text[given["attention_mask"]], before.text[given["attention_mask"]])
    close(after.regions[valid], before.regions[:, order][valid])


def test_tags_have_an_order():
    model, given = build(), example()
    before = run(model, given)
    moved = given["input_ids"].clone()
    places = (given["token_types"][0] == 1).nonzero().flatten()[:2]
    assert moved[0, places[0]] != moved[0, places[1]]
    moved[0, places] = moved[0, places.flip(0)]
    differ(run(model, given | {"input_ids": moved}).pooled[0], before.pooled[0])


def test_types_tell_words_from_tags_and_locations_count():
    model, given = build(), example()
    before = run(model, given).pooled
    differ(run(model, given | {"token_types": given["token_types"] * 0}).pooled, before)
    differ(run(model, given | {"locations": given["locations"] * 0.5}).pooled, before)


def test_a_region_is_its_feature_and_location_in_a_row():
    model, given = build(), example()
    vector = torch.cat([given["features"], given["locations"]], dim=-1)
    expected = vector @ model.region_embedding.weight.T + model.region_embedding.bias
    close(model.embed_regions(given["features"], given["locations"]), expected)


def test_the_image_norm_takes_the_magnitude_of_features_away():
    given = example()
    regions = given["features"] + 0.1, given["locations"] + 0.1
    scaled = tuple(10 * t for t in regions)
    for normed in (True, False):
        model = build(image_norm=normed)
        model.region_embedding.bias.data.zero_()
        before, after = model.embed_regions(*regions), model.embed_regions(*scaled)
        (close if normed else differ)(after, before)


def test_the_image_norm_has_an_epsilon_of_its_own():
    model = Oscar(replace(TINY, image_norm=True, image_norm_eps=1e-5, norm_eps=1e-7))
    assert model.image_norm.eps == 1e-5 and model.embeddings.norm.eps == 1e-7


def test_one_row_alone_is_the_same_as_in_a_batch():
    model, given = build(), example()
    together = run(model, given).pooled
    for row in range(3):
        text, regions = given["attention_mask"][row].sum(), given["region_valid"][row].sum()
        alone = {name: t[row : row + 1] for name, t in given.items()}
        for name in ("input_ids", "attention_mask", "token_types"):
            alone[name] = alone[name][:, :text]
        for name in ("features", "locations", "region_valid"):
            alone[name] = alone[name][:, :regions]
        close(run(model, alone).pooled[0], together[row])


def test_attention_is_recorded():
    model, given = build(), example()
    with record_attention(model) as maps:
        run(model, given)
    length = given["input_ids"].shape[1] + given["region_valid"].shape[1]
    assert list(maps) == [f"trunk.blocks.{i}.attention" for i in range(2)]
    valid = torch.cat([given["attention_mask"], given["region_valid"]], dim=1)
    for weights in maps.values():
        assert weights.shape == (3, 3, length, length)
        close(weights.sum(-1), torch.ones(3, 3, length))
        assert not weights.permute(0, 3, 1, 2)[~valid].any()


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for wanted in (False, True):
        model = OscarPretraining(build())
        model.network.activation_checkpointing = wanted
        assert model.network.trunk.activation_checkpointing == wanted
        sum(model.losses(lesson(raw_pairs())).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        close(one, other)


# Who sees whom

CAPTION = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
LABELS = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0]]).bool()
REGIONS = torch.tensor([[1, 1], [1, 0]]).bool()


def test_captions_are_written_from_left_to_right_and_seen_by_nobody():
    mask = caption_mask(CAPTION, LABELS, REGIONS)[0, 0].int().tolist()
    context = [0, 0, 0, 1, 1, 0, 1, 1]
    assert mask == [
        [1, 0, 0, 1, 1, 0, 1, 1],
        [1, 1, 0, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1, 0, 1, 1],
        context,
        context,
        [0] * 8,
        context,
        context,
    ]
    second = caption_mask(CAPTION, LABELS, REGIONS)[1, 0]
    assert second[1].int().tolist() == [1, 1, 0, 1, 0, 0, 1, 0] and not second[7].any()


@pytest.mark.parametrize("visible", oscar.VISIBLE)
def test_parts_see_themselves_and_the_visible_ones(visible):
    mask = part_mask(CAPTION, LABELS, REGIONS, visible)
    part = {0: "C", 1: "C", 2: "C", 3: "L", 4: "L", 6: "R", 7: "R"}
    for row, kept in enumerate(({0, 1, 2, 3, 4, 6, 7}, {0, 1, 3, 6})):
        for query in range(8):
            for key in range(8):
                inside = {query, key} <= kept
                seen = inside and {part[query], part[key]} <= {part[query]} | (
                    set(visible) if part[query] in visible else set()
                )
                assert mask[row, 0, query, key] == seen, (visible, row, query, key)


def test_unknown_parts():
    with pytest.raises(ValueError, match="visible must be one of 'CLR', 'CL', 'CR', 'LR', got 'C'"):
        part_mask(CAPTION, LABELS, REGIONS, "C")


# The lesson

MANY = 3000
NO_MASKS = {"mask_id": MASK, "vocab_size": 60, "special_ids": range(60)}


def polluted(pollution, seed=0, pairs=None, **options):
    """A lesson without any masks, of many rows."""
    generator = torch.Generator().manual_seed(seed)
    pairs = raw_pairs(MANY) if pairs is None else pairs
    return oscar_lesson(pairs, generator=generator, pollution=pollution, **NO_MASKS, **options)


def inner(ids, types, kind):
    """The words or the tags of one row, without special tokens."""
    return [i for i, t in zip(ids.tolist(), types.tolist(), strict=True) if t == kind and i > MASK]


def origin(told, row, kind):
    """Which of the texts the words (0) or tags (1) of a row come from."""
    tokens = inner(told["input_ids"][row], told["token_types"][row], kind)
    kinds = {"words": WORDS, "tags": TAGS, "other words": OTHER_WORDS, "other tags": OTHER_TAGS}
    kinds |= {"question": QUESTIONS, "answer": ANSWERS}
    (found,) = (n for n, (low, high) in kinds.items() if all(low <= t < high for t in tokens))
    return found


def shares(told, kind, rows):
    found = [origin(told, row, kind) for row in rows.nonzero().flatten().tolist()]
    return {name: found.count(name) / len(found) for name in set(found)}


PUBLISHED = [
    (OSCAR_POLLUTION, [0.5, 0.5]),
    (OSCAR_PLUS_POLLUTION, [0.5, 0.25, 0.25]),
    (Pollution(texta_false_prob=0.5), [0.5, 0.5]),
    (Pollution(texta_false_prob=0.5, use_tags=False), [0.5, 0.5]),
]


@pytest.mark.parametrize(("pollution", "expected"), PUBLISHED)
def test_half_of_the_triples_stay(pollution, expected):
    assert pollution.num_classes == len(expected)
    kinds = polluted(pollution)["pollution"]
    share = kinds.bincount(minlength=len(expected)) / MANY
    torch.testing.assert_close(share, torch.tensor(expected), rtol=0, atol=0.03)


def test_originals_are_not_changed():
    told, pairs = polluted(OSCAR_PLUS_POLLUTION), raw_pairs(MANY)
    names = ("input_ids", "attention_mask", "tag_ids", "tag_mask")
    clean = append_tags(*(pairs[name] for name in names))
    rows = told["pollution"] == 0
    width = told["input_ids"].shape[1]
    assert torch.equal(told["input_ids"][rows], clean.ids[rows, :width])
    assert torch.equal(told["token_types"][rows], clean.types[rows, :width])
    assert not clean.valid[rows, width:].any()


def test_with_three_classes_tags_or_words_are_wrong():
    told = polluted(OSCAR_PLUS_POLLUTION)
    assert shares(told, 0, told["pollution"] == 1) == {"words": 1}
    assert shares(told, 1, told["pollution"] == 1) == {"other tags": 1}
    assert shares(told, 0, told["pollution"] == 2) == {"other words": 1}
    assert shares(told, 1, told["pollution"] == 2) == {"tags": 1}


def test_in_the_code_of_oscar_half_of_the_wrong_tags_are_captions():
    told = polluted(OSCAR_POLLUTION)
    wrong = told["pollution"] == 1
    assert shares(told, 0, wrong) == {"words": 1}
    found = shares(told, 1, wrong)
    assert found.keys() == {"other words", "other tags"}
    assert found["other words"] == pytest.approx(0.5, abs=0.05)
    pure = polluted(Pollution(textb_sample_mode=1))
    assert shares(pure, 1, pure["pollution"] == 1) == {"other tags": 1}


def test_wrong_tags_may_be_answers():
    told = polluted(Pollution(textb_sample_mode=2, texta_false_prob=0.25))
    assert shares(told, 1, told["pollution"] == 1) == {"answer": 1}
    pairs = {name: t for name, t in raw_pairs().items() if "answer" not in name}
    with pytest.raises(ValueError, match="pairs must have 'other_answer_ids' for this lesson"):
        polluted(Pollution(textb_sample_mode=2), pairs=pairs)


def test_only_words_are_wrong_at_one_half_and_without_tags():
    for tags in (True, False):
        told = polluted(Pollution(texta_false_prob=0.5, use_tags=tags))
        assert shares(told, 0, told["pollution"] == 1) == {"other words": 1}
        assert shares(told, 0, told["pollution"] == 0) == {"words": 1}
        assert told["token_types"].any() == tags


def test_a_share_of_the_documents_are_questions_and_answers():
    told = polluted(OSCAR_PLUS_POLLUTION, question_share=0.3)
    kept = told["pollution"] == 0
    words, tags = shares(told, 0, kept), shares(told, 1, kept)
    assert words.keys() == {"words", "question"} and tags.keys() == {"tags", "answer"}
    assert words["question"] == tags["answer"] == pytest.approx(0.3, abs=0.05)
    wrong = shares(told, 1, told["pollution"] == 1)
    assert wrong["answer"] == pytest.approx(0.3, abs=0.06) and "other tags" in wrong
    with pytest.raises(ValueError, match=r"question_share must be in \[0, 1\), got 1"):
        polluted(OSCAR_PLUS_POLLUTION, question_share=1.0)


def test_words_and_tags_are_masked_alike_and_the_image_never():
    pairs = raw_pairs(MANY)
    told, clean = lesson(pairs), polluted(OSCAR_POLLUTION)
    ids = clean["input_ids"]
    assert torch.equal(told["token_types"], clean["token_types"])
    asked = told["labels"] != IGNORED
    assert torch.equal(told["labels"][asked], ids[asked])
    assert torch.equal(told["input_ids"][~asked], ids[~asked])
    assert not (asked & torch.isin(ids, torch.tensor(SPECIAL))).any()
    for kind in (0, 1):
        own = (told["token_types"] == kind) & (ids > MASK)
        assert asked[own].float().mean().item() == pytest.approx(0.15, abs=0.01)
        hidden = told["input_ids"][own & asked]
        assert (hidden == MASK).float().mean().item() == pytest.approx(0.8, abs=0.03)
        same = (hidden == ids[own & asked]).float().mean().item()
        assert same == pytest.approx(0.1 + 0.1 / 60, abs=0.02)
    assert torch.equal(told["features"], pairs["features"])
    assert torch.equal(told["region_valid"], pairs["region_valid"])


def test_wrong_tags_need_not_be_asked_for():
    pollution = replace(OSCAR_PLUS_POLLUTION, mask_loss_for_unmatched=False)
    for spared, options in ((True, {"pollution": pollution}), (False, {})):
        told = lesson(raw_pairs(MANY), **{"pollution": OSCAR_PLUS_POLLUTION} | options)
        asked = (told["labels"] != IGNORED) & (told["token_types"] == 1)
        by_kind = [asked[told["pollution"] == kind].any().item() for kind in range(3)]
        assert by_kind == [True, not spared, True]
    words = (told["labels"] != IGNORED) & (told["token_types"] == 0)
    assert words[told["pollution"] == 1].any()


def test_locations_are_shares_of_the_image():
    pairs = raw_pairs()
    locations = lesson(pairs)["locations"]
    x1, y1, x2, y2 = pairs["boxes"][0, 0].tolist()
    expected = [x1 / 100, y1 / 80, x2 / 100, y2 / 80, (x2 - x1) / 100, (y2 - y1) / 80]
    assert locations[0, 0].tolist() == pytest.approx(expected)
    assert not locations[~pairs["region_valid"]].any()


def test_the_generator_alone_decides():
    pairs = raw_pairs(50)
    torch.manual_seed(1)
    first = lesson(pairs, pollution=OSCAR_PLUS_POLLUTION)
    torch.manual_seed(2)
    again = lesson(pairs, pollution=OSCAR_PLUS_POLLUTION)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = lesson(pairs, seed=1, pollution=OSCAR_PLUS_POLLUTION)
    assert not torch.equal(first["pollution"], other["pollution"])
    assert all(len(entry) == 50 for entry in first.values())


def test_texts_are_cut_at_the_context_length():
    told = lesson(raw_pairs(50), context_length=12)
    assert told["input_ids"].shape == told["labels"].shape == (50, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"textb_sample_mode": 3}, "textb_sample_mode must be 0, 1 or 2, got 3"),
        ({"texta_false_prob": 0.6}, "texta_false_prob must be from 0 to 0.5, got 0.6"),
        ({"use_tags": False}, "texta_false_prob must be 0.5 without tags, got 0.0"),
    ],
)
def test_wrong_pollution(changes, message):
    with pytest.raises(ValueError, match=message):
        Pollution(**changes)


# Pre-training


@pytest.mark.parametrize("classes", [2, 3])
def test_initial_losses_are_those_of_guessing(classes):
    torch.manual_seed(0)
    model = Oscar(replace(TINY, num_contrast_classes=classes))
    pollution = OSCAR_PLUS_POLLUTION if classes == 3 else OSCAR_POLLUTION
    losses = OscarPretraining(model).losses(lesson(raw_pairs(64), pollution=pollution))
    assert losses.keys() == {"masked_words", "matching"}
    assert losses["masked_words"].item() == pytest.approx(math.log(60), abs=0.2)
    assert losses["matching"].item() == pytest.approx(math.log(classes), abs=0.1)


def test_losses_are_their_naive_means():
    model, told = build(), lesson(raw_pairs(8))
    features = run(model, told)
    losses = OscarPretraining(model).losses(told)
    log_p = model.word_logits(features).log_softmax(-1)
    asked = (told["labels"] != IGNORED).nonzero().tolist()
    each = [-log_p[row, place, told["labels"][row, place]] for row, place in asked]
    close(losses["masked_words"], torch.stack(each).mean())
    kinds = model.matching_logits(features).log_softmax(-1)
    each = [-kinds[row, kind] for row, kind in enumerate(told["pollution"].tolist())]
    close(losses["matching"], torch.stack(each).mean())


def test_nothing_masked_is_no_loss():
    told = polluted(OSCAR_POLLUTION, pairs=raw_pairs())
    losses = OscarPretraining(build()).losses(told)
    assert losses["masked_words"] == 0


def test_a_few_steps_learn_a_batch_by_heart():
    torch.manual_seed(0)
    model = OscarPretraining(Oscar(replace(TINY, init="xavier")))
    told = lesson(raw_pairs(8))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(60):
        losses = model.losses(told)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        history.append(losses)
    assert all(history[-1][name] < 0.3 * history[0][name] for name in history[0])
