import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.analysis import count_parameters, record_attention
from mmlab.datasets.regions import ToyDetector
from mmlab.datasets.scenes import SHAPES
from mmlab.hub import create_model, list_models, save
from mmlab.models import vlbert
from mmlab.models.vlbert import (
    VLBERT,
    VLBERTConfig,
    VLBERTPretraining,
    VLBERTQuestionAnswering,
    ask,
    vlbert_lesson,
    with_whole_image,
)
from mmlab.nn.masks import padding_mask
from mmlab.nn.region_locations import sinusoidal_locations
from mmlab.objectives.masked_language import IGNORED
from tests.models.test_visualbert import CLS, MASK, SEP, SPECIAL, close, texts

TINY = VLBERTConfig(
    vocab_size=50,
    context_length=16,
    max_positions=20,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    feature_dim=10,
    location_dim=16,
    num_region_classes=6,
    dropout=0.0,
    attention_dropout=0.0,
)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    model = VLBERT(replace(TINY, **changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def detected(counts=(4, 2, 3), seed=2):
    """Regions of images that are 20 pixels wide and 10 high, without the whole image."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    shape = valid.shape
    corner = torch.rand(*shape, 2, generator=generator) * 5
    extent = 1 + torch.rand(*shape, 2, generator=generator) * 3
    given = {
        "features": torch.randn(*shape, 10, generator=generator),
        "boxes": torch.cat([corner, corner + extent], dim=-1),
        "class_distributions": torch.rand(*shape, 6, generator=generator).softmax(-1),
    }
    regions = {name: t * valid[..., None] for name, t in given.items()}
    sizes = torch.tensor([[20.0, 10.0]]).expand(len(counts), 2)
    return regions | {"region_valid": valid, "image_sizes": sizes}


def raw_pairs(count=3, seed=1):
    ids, valid = texts((7, 4, 5) * (count // 3), seed)
    return {"input_ids": ids, "attention_mask": valid} | detected((4, 2, 3) * (count // 3))


def located(regions):
    names = ("features", "boxes", "image_sizes", "region_valid")
    return with_whole_image(*(regions[name] for name in names))


def inputs():
    """Arguments of the network for three pairs."""
    (ids, valid), (features, locations, found) = texts(), located(detected())
    return [ids, features, locations, valid, found]


# Sizes


def from_the_code(dim, depth, mlp_dim, vocab=30522, classes=1601):
    """Parameters of the released pre-training on given features, layer by layer, and a pooler.

    Read in common/visual_linguistic_bert.py, common/fast_rcnn.py and
    pretrain/modules/resnet_vlbert_for_pretraining_multitask.py; no official figure is known to us.
    """
    norm, dense = 2 * dim, dim * (dim + 1)
    tables = (vocab + 512 + 3 + 1) * dim + 3 * norm
    block = 4 * dense + 2 * norm + dim * mlp_dim + mlp_dim + mlp_dim * dim + dim
    words = dense + norm + vocab
    regions = dense + (dim + 1) * classes
    downsample = (2048 + 2048 + 1) * dim
    learned = 3 * dim + 2048
    return tables + depth * block + words + regions + downsample + learned + dense


@pytest.mark.parametrize(
    ("config", "sizes", "count"),
    [
        (vlbert.VLBERT_B, (768, 12, 3072), 115_082_107),
        (vlbert.VLBERT_L, (1024, 24, 4096), 343_121_275),
    ],
)
def test_parameter_counts(config, sizes, count):
    with torch.device("meta"):
        model = VLBERT(config)
    assert count_parameters(model) == count == from_the_code(*sizes)
    assert count_parameters(model.trunk.pooler) == sizes[0] * (sizes[0] + 1)


def test_the_mini_model_is_small_and_fits_the_toy_detector():
    assert count_parameters(VLBERT(vlbert.VLBERT_MINI)) < 1_500_000
    assert vlbert.VLBERT_MINI.num_region_classes == len(SHAPES) + 1
    assert vlbert.VLBERT_MINI.feature_dim == ToyDetector().feature_dim


def test_models_are_made_by_name_and_saved(tmp_path):
    assert list_models("vlbert*") == (
        "vlbert-b",
        "vlbert-l",
        "vlbert-b-vqa",
        "vlbert-l-vqa",
        "vlbert-mini",
    )
    model = create_model("vlbert-mini", depth=1, norm_eps=1e-6)
    save(model, tmp_path / "a.safetensors")
    loaded = create_model("vlbert-mini", pretrained=tmp_path / "a.safetensors", depth=1)
    assert loaded.config == model.config
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location_dim": 12}, "location_dim must be a multiple of 8, got 12"),
        ({"context_length": 19}, "context_length must be at most max_positions=20 less 2, got 19"),
        ({"heads": ("match",)}, "heads must be a tuple of some of 'words', 'regions', 'answer'"),
        ({"num_region_classes": 0}, "num_region_classes must be an integer of at least 1, got 0"),
        ({"num_classes": 3}, "num_classes must be 0 without 'answer', got 3"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


# The sequence


def entered(model, *given, **more):
    """What enters the trunk before the norm: words, regions, [END]."""
    found = []
    handle = model.embeddings.norm.register_forward_pre_hook(lambda _, x: found.append(x[0]))
    model(*given, **more)
    handle.remove()
    return found[0]


def test_every_element_has_a_visual_part_and_the_words_that_of_the_image():
    model, (ids, features, locations, valid, found) = build(), inputs()
    x = entered(model, ids, features, locations, valid, found)
    sizes = torch.ones(3, 2)
    sines = sinusoidal_locations(locations, sizes, 16)
    visual = model.visual_embedding.projection(torch.cat([sines, features], dim=-1)).relu()
    positions = model.embeddings.position_embedding.weight
    types = model.embeddings.type_embedding.weight
    words = model.embeddings.word_embedding.weight
    for row, length in enumerate((7, 4, 5)):
        for place in range(length):
            expected = words[ids[row, place]] + positions[place] + types[0]
            close(x[row, place], expected + model.word_visual_norm(visual[row, 0]))
        for region in range(int(found[row].sum())):
            expected = model.region_token + positions[length] + types[2]
            expected = expected + model.region_visual_norm(visual[row, region])
            close(x[row, 7 + region], expected)
        close(x[row, -1], model.end_token + positions[length + 1] + types[2])


def test_a_fresh_model_begins_as_a_bert():
    """With gains of 0 no word sees what its visual part is."""
    torch.manual_seed(0)
    model, given = VLBERT(TINY).eval(), inputs()
    for norm in (model.word_visual_norm, model.region_visual_norm):
        assert norm.weight.abs().max() == norm.bias.abs().max() == 0
    first = model(*given)
    given[1] = given[1] + 3
    second = model(*given)
    close(first.text, second.text)
    close(first.pooled, second.pooled)
    other = VLBERT(replace(TINY, visual_gain=1)).eval()
    before = other(*given).pooled
    given[1] = given[1].flip(1)
    assert (other(*given).pooled - before).abs().max() > 1e-3


def test_text_alone_has_a_learned_visual_part_and_an_end():
    model, (ids, valid) = build(), texts()
    features = model(ids, text_valid=valid)
    assert features.regions.shape == (3, 0, 24) and features.end.shape == (3, 24)
    positions = model.embeddings.position_embedding.weight
    x = model.embeddings.sum(ids) + model.word_visual_norm(model.no_image)
    end = model.end_token + positions[torch.tensor([8, 5, 6])]
    end = end + model.embeddings.type_embedding.weight[2]
    x = model.embeddings.norm(torch.cat([x, end[:, None]], dim=1))
    for block in model.trunk.blocks:
        x = block(x, padding_mask(F.pad(valid, (0, 1), value=True)))
    close(features.text[valid], x[:, :7][valid])
    close(features.end, x[:, 7])
    no_regions = model(ids, torch.zeros(3, 0, 10), torch.zeros(3, 0, 4), valid)
    close(no_regions.pooled, features.pooled)


def test_padding_changes_nothing():
    model, given = build(), inputs()
    before = model(*given)
    ids, features, locations, valid, found = given
    noise = (ids.where(valid, 9), features.masked_fill(~found[..., None], 5.0))
    after = model(*noise, locations.masked_fill(~found[..., None], 0.3), valid, found)
    close(after.text[valid], before.text[valid])
    close(after.regions[found], before.regions[found])
    for name in ("end", "pooled", "answer"):
        close(getattr(after, name), getattr(before, name))
    for row, (length, count) in enumerate([(7, 5), (4, 3), (5, 4)]):
        one = slice(row, row + 1)
        alone = model(ids[one, :length], features[one, :count], locations[one, :count])
        close(alone.pooled[0], before.pooled[row])
        close(alone.end[0], before.end[row])


def test_regions_have_no_order_after_the_whole_image():
    model, given = build(), inputs()
    before = model(*given)
    order = torch.tensor([0, 3, 1, 4, 2])
    for index in (1, 2, 4):
        given[index] = given[index][:, order]
    after = model(*given)
    close(after.pooled, before.pooled)
    close(after.regions[given[4]], before.regions[:, order][given[4]])


def test_the_box_matters():
    model, given = build(), inputs()
    before = model(*given).pooled
    given[2] = given[2].flip(1)
    assert (model(*given).pooled - before).abs().max() > 1e-3


def test_hidden_regions_show_nothing_but_their_box():
    model, given = build(), inputs()
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[:, 2] = True
    before = model(*given, hidden_regions=hidden)
    unhidden = model(*given)
    assert (unhidden.regions - before.regions).abs().max() > 1e-3
    features, locations = given[1].clone(), given[2].clone()
    features[:, 2] = 7
    after = model(given[0], features, *given[2:], hidden_regions=hidden)
    close(after.regions[given[4]], before.regions[given[4]])
    locations[:, 2] = torch.tensor([0.1, 0.2, 0.8, 0.9])
    moved = model(given[0], given[1], locations, *given[3:], hidden_regions=hidden)
    assert (moved.regions - before.regions).abs().max() > 1e-3


def test_wrong_inputs_are_named():
    model, (ids, features, locations, *_) = build(), inputs()
    with pytest.raises(ValueError, match="features and locations must be given together"):
        model(ids, features)
    with pytest.raises(ValueError, match="feature_dim=10 numbers wide, got 9"):
        model(ids, features[..., :9], locations)
    with pytest.raises(ValueError, match="a text may have 18 tokens, this one has 19"):
        model(torch.ones(2, 19, dtype=torch.long))
    with pytest.raises(ValueError, match=r"no 'answer' head; it has heads=\('words', 'regions'\)"):
        VLBERTQuestionAnswering(model)
    with pytest.raises(ValueError, match="no 'regions' head"):
        VLBERTPretraining(build(heads=("words",)))


def test_attention_is_recorded():
    model, given = build(), inputs()
    with record_attention(model) as maps:
        model(*given)
    assert list(maps) == [f"trunk.blocks.{i}.attention" for i in range(2)]
    valid = torch.cat([given[3], given[4], torch.ones(3, 1, dtype=torch.bool)], dim=1)
    for weights in maps.values():
        assert weights.shape == (3, 3, 13, 13)
        close(weights.sum(-1), torch.ones(3, 3, 13))
        assert weights[~valid[:, None, None].expand_as(weights)].abs().max() == 0


def test_checkpointing_changes_no_gradient():
    gradients = []
    for wanted in (False, True):
        model = build()
        model.activation_checkpointing = wanted
        model(*inputs()).pooled.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


# The whole image


def test_the_whole_image_is_the_mean_of_what_is_not_hidden():
    regions = detected()
    hidden = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    names = ("features", "boxes", "image_sizes", "region_valid")
    features, locations, valid = with_whole_image(*(regions[n] for n in names), hidden)
    given = regions["features"]
    close(features[0, 0], given[0, 1:4].mean(0))
    close(features[1, 0], torch.zeros(10))
    close(features[2, 0], given[2, :3].mean(0))
    close(features[:, 1:], given)
    # The last pixel of 20 by 10.
    close(locations[:, 0], torch.tensor([0, 0, 19 / 20, 9 / 10]).expand(3, -1))
    close(locations[0, 1], regions["boxes"][0, 0] / torch.tensor([20, 10, 20, 10]))
    assert valid.sum(1).tolist() == [5, 3, 4]


def test_boxes_in_shares_of_the_image_are_taken_as_such():
    regions = detected()
    shares = regions["boxes"] / torch.tensor([20.0, 10, 20, 10])
    ones = torch.ones(3, 2)
    _, locations, _ = with_whole_image(regions["features"], shares, ones, regions["region_valid"])
    close(locations[:, 0], torch.tensor([0.0, 0, 1, 1]).expand(3, -1))
    close(locations[:, 1:], shares)


# The lesson and the losses


def lesson(pairs, seed=0):
    return vlbert_lesson(pairs, MASK, 50, SPECIAL, torch.Generator().manual_seed(seed))


def test_regions_are_asked_for_and_mostly_hidden():
    pairs = raw_pairs(3000)
    batch = lesson(pairs)
    asked, hidden, valid = (batch[f"{n}_regions"] for n in ("asked", "hidden")), None, None
    asked, hidden = asked
    valid = batch["region_valid"]
    assert not asked[:, 0].any() and not (asked & ~valid).any() and not (hidden & ~asked).any()
    assert asked.sum() / pairs["region_valid"].sum() == pytest.approx(0.15, abs=0.01)
    assert hidden.sum() / asked.sum() == pytest.approx(0.9, abs=0.02)
    close(batch["region_targets"][:, 1:], pairs["class_distributions"])
    close(batch["features"][:, 1:], pairs["features"])
    seen = (pairs["region_valid"] & ~hidden[:, 1:])[..., None]
    mean = (pairs["features"] * seen).sum(1) / seen.sum(1).clamp_min(1)
    close(batch["features"][:, 0], mean)


def test_whole_words_are_masked():
    pairs = raw_pairs(3000)
    inner = pairs["attention_mask"] & ~torch.isin(pairs["input_ids"], torch.tensor(SPECIAL))
    # Tokens 1 and 2 are one word, 3 and 4 another, and so on.
    pairs["word_ids"] = ((torch.arange(7) - 1) // 2).expand_as(inner).masked_fill(~inner, -1)
    batch = lesson(pairs)
    asked = batch["labels"] != IGNORED
    both = inner[:, 1] & inner[:, 2]
    assert torch.equal(asked[both, 1], asked[both, 2])
    assert asked.sum() / inner.sum() == pytest.approx(0.15, abs=0.01)
    assert not (asked & ~inner).any()


def test_a_lesson_draws_from_its_generator_only():
    pairs, state = raw_pairs(300), torch.get_rng_state()
    first, again, other = lesson(pairs), lesson(pairs), lesson(pairs, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["asked_regions"], other["asked_regions"])
    assert all(len(t) == 300 for t in first.values())


def test_losses_by_hand():
    model, batch = build(), lesson(raw_pairs(30))
    losses = VLBERTPretraining(model).losses(batch)
    assert list(losses) == ["masked_words", "masked_regions"]
    names = ("features", "locations", "attention_mask", "region_valid")
    features = model(
        batch["input_ids"],
        *(batch[name] for name in names),
        hidden_regions=batch["hidden_regions"],
    )
    words = model.word_logits(features).flatten(0, 1)
    close(losses["masked_words"], F.cross_entropy(words, batch["labels"].flatten()))
    asked = batch["asked_regions"]
    logits = model.region_logits(features)[asked].log_softmax(-1)
    close(losses["masked_regions"], -(batch["region_targets"][asked] * logits).sum(-1).mean())
    batch["asked_regions"] = torch.zeros_like(asked)
    assert VLBERTPretraining(model).losses(batch)["masked_regions"] == 0


def test_initial_losses_are_those_of_guessing():
    torch.manual_seed(0)
    model = VLBERT(replace(TINY, vocab_size=1000, dim=96)).eval()
    losses = VLBERTPretraining(model).losses(lesson(raw_pairs(300)))
    assert losses["masked_words"].item() == pytest.approx(math.log(1000), abs=0.2)
    assert losses["masked_regions"].item() == pytest.approx(math.log(6), abs=0.05)


def test_text_without_images_is_learned_from_beside():
    model, pairs = build(), raw_pairs(30)
    ids, valid = texts((9, 8, 8) * 10, seed=4)
    batch = lesson(pairs | {"corpus_ids": ids, "corpus_mask": valid})
    losses = VLBERTPretraining(model).losses(batch)
    assert list(losses) == ["masked_words", "masked_regions", "masked_corpus_words"]
    features = model(batch["corpus_ids"], text_valid=valid)
    words = model.word_logits(features).flatten(0, 1)
    expected = F.cross_entropy(words, batch["corpus_labels"].flatten())
    close(losses["masked_corpus_words"], expected)


def test_a_region_is_told_by_its_caption():
    """Its feature is hidden; the caption names the class, and the gain of 0 is no obstacle."""
    torch.manual_seed(0)
    model = VLBERT(replace(TINY, dim=48, num_heads=4, mlp_dim=96, init="xavier"))
    module = VLBERTPretraining(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        classes = torch.randint(6, (32,), generator=generator)
        ids = torch.tensor([CLS, 0, SEP]).repeat(32, 1)
        ids[:, 1] = 10 + classes
        one = torch.tensor([[False, True]]).expand(32, -1)
        batch = {
            "input_ids": ids,
            "labels": torch.full_like(ids, IGNORED),
            "features": torch.zeros(32, 2, 10),
            "locations": torch.tensor([0.0, 0, 1, 1]).expand(32, 2, 4),
            "hidden_regions": one,
            "asked_regions": one,
            "region_targets": F.one_hot(classes, 6).float()[:, None].expand(-1, 2, -1),
        }
        loss = sum(module.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3


# Questions


def test_a_question_asks_for_a_masked_word():
    question = torch.tensor([[CLS, 7, 8, SEP], [CLS, 9, SEP, 0]])
    text = ask(question, question > 0, MASK, SEP)
    assert text["input_ids"].tolist() == [
        [CLS, 7, 8, SEP, MASK, SEP],
        [CLS, 9, SEP, MASK, SEP, 0],
    ]
    assert text["types"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert text["attention_mask"].sum(1).tolist() == [6, 5]
    model = build()
    features = model(text["input_ids"], text_valid=text["attention_mask"], types=text["types"])
    close(features.answer, features.text[torch.arange(2), torch.tensor([4, 3])])


def test_answers_are_scored_one_by_one():
    model = build(heads=("answer",), num_classes=4)
    (ids, valid), (features, locations, found) = texts(), located(detected())
    batch = ask(ids, valid, MASK, SEP)
    batch |= {"features": features, "locations": locations, "region_valid": found}
    scores = torch.tensor([[1.0, 0.3, 0, 0], [0, 0, 0.6, 0], [0, 0, 0, 0]])
    loss = VLBERTQuestionAnswering(model).losses(batch | {"scores": scores})["answers"]
    given = model(
        batch["input_ids"], features, locations, batch["attention_mask"], found, batch["types"]
    )
    p = model.answer_logits(given).sigmoid()
    by_hand = -(scores * p.log() + (1 - scores) * (1 - p).log()).sum() / 3
    close(loss, by_hand)
