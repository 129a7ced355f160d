import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlab.analysis import count_parameters, record_attention
from mmlab.hub import create_model
from mmlab.models import albef
from mmlab.models.albef import ALBEF, ALBEFPretraining
from tests.models.tiny import TINY_ALBEF

TINY = replace(TINY_ALBEF, depth=2, text_depth=2, fusion_depth=2)
PAD, CLS, SEP, MASK = 0, 1, 2, 3
SPECIAL = (PAD, CLS, SEP)


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return ALBEF(replace(TINY, **changes)).eval()


def pretraining(seed=0, network=None, **settings):
    network = build(seed) if network is None else network
    settings = {"queue_size": 8, "mask_id": MASK, "special_ids": SPECIAL} | settings
    torch.manual_seed(seed + 1)
    return ALBEFPretraining(network, **settings)


def batch_of(count=4, seed=1):
    """Captions of different lengths that begin with [CLS] and have no [SEP]."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(9) < (5 + torch.arange(count) % 5)[:, None]
    ids = torch.randint(4, 50, (count, 9), generator=generator).where(valid, PAD)
    ids[:, 0] = CLS
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return {"images": images, "input_ids": ids, "attention_mask": valid}


def perturb(module, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# Sizes


COUNTS = [
    (albef.ALBEF_B_16, 209_937_725),
    (albef.ALBEF_B_16_VQA, 290_336_058),
    (albef.ALBEF_B_16_VE, 209_758_467),
    # 18 text blocks of which 12 cross, six pairs with one set of keys and values each.
    (albef.ALBEF_B_16_NLVR2, 259_381_250),
]


@pytest.mark.parametrize(("config", "expected"), COUNTS)
def test_parameter_counts(config, expected):
    with torch.device("meta"):
        assert count_parameters(ALBEF(config)) == expected


def test_the_parts_and_the_twins_have_the_papers_sizes():
    with torch.device("meta"):
        model = ALBEF(albef.ALBEF_B_16)
        module = ALBEFPretraining(model)
    count = count_parameters
    assert count(model.image_encoder) == 85_844_736
    assert count(model.text_encoder) + count(model.heads["words"]) == 123_697_722
    assert sum(map(count, model.text_encoder.blocks[:6])) == 42_527_232
    assert sum(map(count, model.text_encoder.blocks[6:])) == 56_710_656
    assert count(module) == 419_873_911
    assert count(module, trainable_only=True) == 209_937_725
    assert module.queue.images.numel() + module.queue.texts.numel() == 33_554_432


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 250),
        ("text_dim", 25),
        ("text_depth", 0),
        ("num_images", 3),
        ("heads", ("contrast", "rank")),
        ("heads", ("match", "match")),
        ("num_classes", 3),
        ("temperature", 0.0),
        ("dropout", 1.0),
        ("activation", "swish"),
    ],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        replace(albef.ALBEF_B_16, **{name: value})


# The network


def test_only_fusion_blocks_have_a_cross_attention():
    blocks = build().text_encoder.blocks
    assert [block.cross_attention is not None for block in blocks] == [False, False, True, True]


def test_text_features_know_nothing_of_the_image_but_fused_tokens_do():
    model, batch = build(), batch_of()
    given = (batch["input_ids"], batch["images"], batch["attention_mask"])
    before, after = model(*given), model(given[0], given[1] + 1, given[2])
    assert torch.equal(before.text, after.text)
    assert (before.fused - after.fused).abs().amax(-1).min() > 1e-4


def test_padding_changes_nothing_and_is_recognised():
    model, batch = build(), batch_of()
    ids, images, valid = batch["input_ids"], batch["images"], batch["attention_mask"]
    padded = F.pad(ids, (0, 3))
    short, long = model(ids, images, valid), model(padded, images)
    close(short.fused[valid], long.fused[:, : ids.shape[1]][valid])
    close(model.encode_text(ids, valid), model.encode_text(padded))


def test_features_have_length_one():
    model, batch = build(), batch_of()
    ones = torch.ones(4)
    close(model.encode_image(batch["images"]).norm(dim=-1), ones)
    close(model.encode_text(batch["input_ids"]).norm(dim=-1), ones)


def test_missing_heads_are_named():
    model = build(heads=("match",))
    with pytest.raises(ValueError, match="this ALBEF has no 'contrast' head; it has heads="):
        model.encode_text(batch_of()["input_ids"])
    with pytest.raises(ValueError, match="no 'contrast' head"):
        ALBEFPretraining(model)
    with pytest.raises(ValueError, match="mask_id must be from 0 to below vocab_size=50, got 103"):
        ALBEFPretraining(build())


def test_recomputed_blocks_give_the_same_gradients():
    model, batch = build(), batch_of()

    def gradient():
        model.zero_grad()
        model(batch["input_ids"], batch["images"]).fused.square().sum().backward()
        return model.image_encoder.patch_embedding.projection.weight.grad.clone()

    plain = gradient()
    model.activation_checkpointing = True
    assert model.image_encoder.activation_checkpointing
    close(gradient(), plain)


def test_attention_maps_of_all_layers():
    model, batch = build(), batch_of()
    with record_attention(model) as maps:
        model(batch["input_ids"], batch["images"], batch["attention_mask"])
    assert maps["image_encoder.blocks.1.attention"].shape == (4, 2, 5, 5)
    assert maps["text_encoder.blocks.0.attention"].shape == (4, 3, 9, 9)
    assert maps["text_encoder.blocks.3.cross_attention"].shape == (4, 3, 9, 5)
    assert "text_encoder.blocks.1.cross_attention" not in maps


def test_images_may_become_larger():
    model = build()
    images = torch.randn(2, 3, 24, 24)
    with pytest.raises(ValueError, match="16 x 16"):
        model.encode_image(images)
    assert model.resize_positions(24).encode_image(images).shape == (2, 8)
    assert model.config.image_size == 24


# Pre-training


def test_every_loss_has_a_name_and_a_gradient():
    module = pretraining().train()
    losses = module.losses(batch_of())
    assert list(losses) == ["contrastive", "matching", "masked_words"]
    sum(losses.values()).backward()
    without = [n for n, p in module.network.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad is None for p in module.momentum.parameters())
    assert not any(b.requires_grad for b in module.queue.buffers())


def test_what_each_loss_teaches():
    """The matching head learns from matching alone, the temperature from the contrast alone."""
    expected = {"matching": "heads.match.weight", "contrastive": "heads.contrast.temperature"}
    expected["masked_words"] = "heads.words.dense.weight"
    for teaches, of in expected.items():
        module = pretraining()
        for name, loss in module.losses(batch_of()).items():
            module.zero_grad()
            loss.backward(retain_graph=True)
            gradient = module.network.get_parameter(of).grad
            assert (gradient is not None and gradient.abs().max() > 0) == (name == teaches)


def test_without_distillation_it_is_plain_cross_entropy():
    module, batch = pretraining(alpha=0.0), batch_of()
    perturb(module.momentum.network)
    step = module.step(batch)
    places = torch.arange(4)
    tables = (step.contrast.image_to_text, step.contrast.text_to_image)
    plain = sum(F.cross_entropy(table, places) for table in tables) / 2
    close(step.contrast.loss(), plain)
    logits = module.network.word_logits(step.words.fused)
    plain = F.cross_entropy(logits.flatten(0, 1), step.words.masked.labels.flatten())
    close(step.words.loss(), plain)


def test_with_its_own_guesses_as_targets_the_loss_is_an_entropy_with_no_gradient_by_logits():
    module = pretraining(alpha=1.0)
    step = module.step(batch_of())
    contrast, entropy = step.contrast, 0
    for table in (contrast.image_to_text, contrast.text_to_image):
        guess = table.softmax(-1)
        entropy = entropy - (guess * guess.log()).sum(1).mean() / 2
    close(contrast.loss(), entropy)
    for gradient in torch.autograd.grad(
        contrast.loss(), (contrast.image_to_text, contrast.text_to_image), retain_graph=True
    ):
        close(gradient, torch.zeros_like(gradient))
    (gradient,) = torch.autograd.grad(step.words.loss(), step.words.logits)
    close(gradient, torch.zeros_like(gradient))


def test_the_twin_moves_before_it_is_asked_and_the_queue_after():
    module, batch = pretraining(decay=0.5), batch_of()
    before = module.momentum.network.text_encoder.embeddings.norm.weight.clone()
    perturb(module.network)
    queue = module.queue.texts.clone()
    contrast = module.step(batch).contrast
    after = module.momentum.network.text_encoder.embeddings.norm.weight
    close(after, (before + module.network.text_encoder.embeddings.norm.weight) / 2)
    with torch.no_grad():
        twin = module.momentum.network.encode_text(batch["input_ids"], batch["attention_mask"])
        scores = contrast.image_features @ torch.cat([twin.T, queue], 1)
    close(contrast.image_to_text, scores / module.network.temperature)
    close(module.queue.texts[:, :4], twin.T)
    assert torch.equal(module.queue.texts[:, 4:], queue[:, 4:])
    assert module.queue.pointer == 4


def test_measuring_changes_nothing():
    module = pretraining()
    module.network.heads["contrast"].temperature.data.fill_(0.9)
    perturb(module.network)
    before = {key: t.clone() for key, t in module.state_dict().items()}
    module.losses(batch_of(), update=False)
    assert all(torch.equal(t, before[key]) for key, t in module.state_dict().items())


@pytest.mark.parametrize(("start", "kept"), [(0.9, 0.5), (1e-5, 0.001), (0.2, 0.2)])
def test_the_temperature_is_kept_in_its_range_and_still_learns(start, kept):
    module = pretraining()
    temperature = module.network.heads["contrast"].temperature
    temperature.data.fill_(start)
    module.losses(batch_of())["contrastive"].backward()
    assert temperature.item() == pytest.approx(kept) and temperature.grad.abs() > 0


def test_false_pairs_are_in_the_official_order():
    module, batch = pretraining(), batch_of()
    drawn = {
        "negative_images": torch.tensor([2, 3, 0, 1]),
        "negative_texts": torch.tensor([1, 0, 3, 2]),
    }
    step = module.step(batch | drawn)
    network, images, texts = module.network, batch["images"], batch["input_ids"]
    images = torch.cat([images, images[drawn["negative_images"]], images])
    texts = torch.cat([texts, texts, texts[drawn["negative_texts"]]])
    close(step.matching.logits, network.matching_logits(network(texts, images).fused))
    labels = torch.tensor([1] * 4 + [0] * 8)
    close(step.matching.loss(), F.cross_entropy(step.matching.logits, labels))


def test_negatives_are_never_the_own_partner_and_follow_the_similarities():
    module = pretraining(queue_size=4, generator=torch.Generator().manual_seed(0))
    network = module.network
    perturb(network)
    network.heads["contrast"].temperature.data.fill_(0.5)
    contrast = module.step(batch_of()).contrast
    counts = torch.zeros(2, 4, 4)
    for _ in range(300):
        images, texts = module._negatives({}, contrast)
        counts[0, range(4), images] += 1
        counts[1, range(4), texts] += 1
    assert (counts.diagonal(dim1=1, dim2=2) == 0).all()
    for count, table in zip(counts, (contrast.text_to_image, contrast.image_to_text), strict=True):
        weights = table[:, :4].softmax(-1).masked_fill(torch.eye(4).bool(), 0)
        expected = 300 * weights / weights.sum(1, keepdim=True)
        off = ~torch.eye(4).bool()
        chi_square = ((count - expected)[off].square() / expected[off]).sum()
        # 4 rows of 2 degrees of freedom each; 31 is exceeded once in 10,000 tries.
        assert chi_square < 31


def test_a_batch_of_one_has_no_wrong_pair():
    with pytest.raises(ValueError, match="there is no wrong item for query 0"):
        pretraining().losses(batch_of(1))


def test_words_are_masked_but_never_special_tokens():
    module = pretraining(generator=torch.Generator().manual_seed(0))
    ids = torch.randint(4, 50, (200, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, 8], ids[:, 9:] = CLS, SEP, PAD
    masked, labels = module._masked({"input_ids": ids})
    chosen = labels != -100
    assert not chosen[:, 0].any() and not chosen[:, 8:].any()
    assert chosen[:, 1:8].float().mean() == pytest.approx(0.15, abs=0.03)
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    hidden = (masked == MASK)[chosen].float().mean()
    same = (masked == ids)[chosen].float().mean()
    assert hidden == pytest.approx(0.8, abs=0.08) and same == pytest.approx(0.1, abs=0.08)


def test_a_batch_without_masked_words_has_a_loss_of_zero():
    batch = batch_of()
    nothing = {"masked_ids": batch["input_ids"]}
    nothing["labels"] = torch.full_like(batch["input_ids"], -100)
    losses = pretraining().losses(batch | nothing)
    assert losses["masked_words"] == 0
    losses["masked_words"].backward()


def test_a_generator_decides_all_draws():
    first, second = (
        pretraining(generator=torch.Generator().manual_seed(5)).losses(batch_of()) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_run_goes_on_from_its_state_dict():
    """Queue, pointer, twin and the rise of alpha are all in it."""
    torch.manual_seed(0)
    through, batches = pretraining(ramp_steps=6), [batch_of(seed=seed) for seed in range(4)]
    optimizer = torch.optim.SGD(through.network.parameters(), lr=0.1)

    def train(module, optimizer, numbers):
        for number in numbers:
            torch.manual_seed(number)
            losses = module.losses(batches[number])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        return losses

    train(through, optimizer, [0, 1])
    resumed = pretraining(seed=9, ramp_steps=6)
    resumed.load_state_dict(through.state_dict())
    last = train(through, optimizer, [2, 3])
    again = train(resumed, torch.optim.SGD(resumed.network.parameters(), lr=0.1), [2, 3])
    assert all(torch.equal(last[name], again[name]) for name in last)
    assert torch.equal(through.queue.texts, resumed.queue.texts)
    assert resumed.momentum.weight().item() == pytest.approx(0.4 * 3 / 6)


def test_twins_drop_out_where_the_network_does():
    module = pretraining(network=build(dropout=0.5))
    assert module.train().momentum.network.training
    torch.manual_seed(0)
    first = module.step(batch_of(), update=False).contrast.momentum_text_features
    second = module.step(batch_of(), update=False).contrast.momentum_text_features
    assert (first - second).abs().max() > 1e-3


def test_one_step_of_learning_lowers_the_loss():
    module, batch = pretraining(alpha=0.0), batch_of()
    fixed = module.step(batch, update=False)
    batch |= {
        "negative_images": fixed.matching.negative_images,
        "negative_texts": fixed.matching.negative_texts,
        "masked_ids": fixed.words.masked.ids,
        "labels": fixed.words.masked.labels,
    }
    optimizer = torch.optim.Adam(module.network.parameters(), lr=1e-3)
    totals = []
    for _ in range(12):
        total = sum(module.losses(batch, update=False).values())
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert totals[-1] < 0.8 * totals[0] and math.isfinite(totals[-1])


def test_the_mini_is_made_by_name():
    model = create_model("albef-mini", vocab_size=300)
    assert isinstance(model, nn.Module) and model.config.vocab_size == 300
    assert count_parameters(model) < 4_000_000
