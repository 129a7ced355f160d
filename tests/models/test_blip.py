import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mmlab.analysis import count_parameters, record_attention
from mmlab.hub import create_model
from mmlab.models import blip
from mmlab.models.blip import BLIP, BLIPPretraining
from tests.models.tiny import TINY_BLIP

PAD, CLS, SEP, DEC, ENC = 0, 1, 2, 48, 49


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return BLIP(replace(TINY_BLIP, **changes)).eval()


def perturb(module, seed=3):
    """Every parameter another: no zero bias, no two equal tensors."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def pretraining(seed=0, network=None, **settings):
    network = build(seed) if network is None else network
    torch.manual_seed(seed + 1)
    return BLIPPretraining(network, **({"queue_size": 8} | settings))


def batch_of(count=4, seed=1):
    """Captions of different lengths from [CLS] to [SEP]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 5 + torch.arange(count) % 5
    valid = torch.arange(9) < lengths[:, None]
    ids = torch.randint(4, 48, (count, 9), generator=generator).where(valid, PAD)
    ids[:, 0], ids[torch.arange(count), lengths - 1] = CLS, SEP
    images = torch.randn(count, 3, 16, 16, generator=generator)
    return {"images": images, "input_ids": ids, "attention_mask": valid}


def close(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


# Sizes

COUNTS = {
    "BLIP_B_16": 252_441_919,
    "BLIP_L_16": 474_729_023,
    "BLIP_B_16_CAPTIONING": 223_971_644,
    "BLIP_L_16_CAPTIONING": 446_290_492,
    # Without the temperature, which the sheet of the official model leaves out.
    "BLIP_B_16_RETRIEVAL": 223_744_258 + 1,
    "BLIP_L_16_RETRIEVAL": 446_128_642 + 1,
    "BLIP_B_16_VQA": 361_478_972,
    "BLIP_L_16_VQA": 583_880_764,
    "BLIP_B_16_NLVR2": 259_620_866,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    with torch.device("meta"):
        assert count_parameters(BLIP(getattr(blip, name))) == COUNTS[name]


def test_a_model_without_temperature_has_a_number_less():
    with torch.device("meta"):
        model = BLIP(replace(blip.BLIP_B_16_RETRIEVAL, temperature=None))
    assert count_parameters(model) == 223_744_258
    with pytest.raises(ValueError, match="no temperature"):
        _ = model.temperature


@pytest.mark.parametrize(
    ("size", "image", "encoder", "decoder", "shared", "twins"),
    [
        ("BLIP_B_16", 85_798_656, 137_258_496, 137_881_148, 108_891_648, 223_450_880),
        ("BLIP_L_16", 303_301_632, 141_977_088, 142_599_740, 113_610_240, 445_737_984),
    ],
)
def test_the_parts_and_the_twins_have_the_papers_sizes(
    size, image, encoder, decoder, shared, twins
):
    with torch.device("meta"):
        model = BLIP(getattr(blip, size))
        module = BLIPPretraining(model)
    count = count_parameters
    assert count(model.image_encoder) == image
    assert (count(model.text_encoder), count(model.text_decoder)) == (encoder, decoder)
    both = {id(p) for p in model.text_encoder.parameters()}
    common = [p for p in model.text_decoder.parameters() if id(p) in both]
    assert sum(p.numel() for p in common) == shared
    assert encoder - shared == 28_366_848 and decoder - shared == 28_989_500
    assert count(module) - count(module, trainable_only=True) == twins
    assert module.queue.images.shape == module.queue.texts.shape == (256, 57600)


@pytest.mark.parametrize(
    ("sharing", "millions"),
    [
        ("all", 224),
        ("all_but_self_attention", 252),
        ("all_but_cross_attention", 252),
        ("none", 361),
    ],
)
def test_the_sharing_schemes_of_the_ablation(sharing, millions):
    """BLIP, table 3."""
    with torch.device("meta"):
        model = BLIP(replace(blip.BLIP_B_16, sharing=sharing))
    assert int(count_parameters(model) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 250),
        ("text_dim", 25),
        ("vocab_size", 2),
        ("num_images", 2),
        ("heads", ("contrast", "rank")),
        ("heads", ("words", "answers")),
        ("num_classes", 3),
        ("temperature", 0.0),
        ("dropout", 1.0),
        ("drop_path", -0.1),
        ("activation", "swish"),
        ("sharing", "some"),
    ],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        replace(blip.BLIP_B_16, **{name: value})


# Sharing


def shared_names(model):
    """Parameters of the decoder that are the encoder's, by name."""
    theirs = {name: p.data_ptr() for name, p in model.text_encoder.named_parameters()}
    ours = model.text_decoder.named_parameters(remove_duplicate=False)
    return {name for name, p in ours if theirs.get(name) == p.data_ptr()}


PARTS = ("attention", "norm1", "cross_attention", "cross_norm", "mlp", "norm2", "embeddings")


@pytest.mark.parametrize(
    ("sharing", "apart"),
    [
        ("all", ()),
        ("all_but_self_attention", ("attention", "norm1")),
        ("all_but_cross_attention", ("cross_attention", "cross_norm")),
        ("none", PARTS),
    ],
)
def test_encoder_and_decoder_share_what_the_scheme_says(sharing, apart):
    model = build(sharing=sharing)
    found = shared_names(model)
    for name, _ in model.text_encoder.named_parameters():
        is_apart = bool(set(apart) & set(name.split(".")))
        assert (name in found) != is_apart, name


@pytest.mark.parametrize(
    ("loss", "without", "with_gradient"),
    [
        (
            "language_modeling",
            ("text_encoder.blocks.0.attention", "text_encoder.blocks.1.norm1"),
            ("text_encoder.blocks.0.cross_attention", "text_encoder.blocks.1.mlp"),
        ),
        (
            "matching",
            (
                "text_decoder.blocks.0.attention",
                "text_decoder.words",
                "text_decoder.blocks.1.norm1",
            ),
            ("text_encoder.blocks.0.attention", "text_encoder.blocks.1.cross_attention"),
        ),
        (
            "contrastive",
            ("text_encoder.blocks.0.cross_attention", "text_decoder.blocks.0.attention"),
            ("text_encoder.blocks.0.attention", "text_encoder.blocks.1.mlp"),
        ),
    ],
)
def test_what_each_loss_teaches(loss, without, with_gradient):
    module = pretraining(network=perturb(build()))
    module.losses(batch_of())[loss].backward()

    def size(path):
        gradients = [p.grad for p in module.network.get_submodule(path).parameters()]
        return sum(0.0 if g is None else g.abs().sum().item() for g in gradients)

    assert all(size(path) == 0 for path in without)
    assert all(size(path) > 0 for path in with_gradient)
    heads = {"matching": "heads.match", "contrastive": "heads.contrast"}
    for name, path in heads.items():
        assert (size(path) > 0) == (name == loss)


# The network


def test_the_text_encoder_knows_nothing_of_the_image_but_grounded_tokens_do():
    model, batch = build(), batch_of()
    given = (batch["input_ids"], batch["images"], batch["attention_mask"])
    before, after = model(*given), model(given[0], given[1] + 1, given[2])
    assert torch.equal(before.text, after.text)
    assert (before.grounded - after.grounded).abs().amax(-1).min() > 1e-4


def test_padding_changes_nothing_and_is_recognised():
    model, batch = build(), batch_of()
    ids, images, valid = batch["input_ids"], batch["images"], batch["attention_mask"]
    padded = F.pad(ids, (0, 3))
    short, long = model(ids, images, valid), model(padded, images)
    close(short.grounded[valid], long.grounded[:, : ids.shape[1]][valid])
    close(model.encode_text(ids, valid), model.encode_text(padded))
    tokens = model.image_tokens(images)
    words = model.word_logits(ids, tokens, valid), model.word_logits(padded, tokens)
    close(words[0][valid], words[1][:, : ids.shape[1]][valid])


def test_roles_differ_in_the_first_token_alone():
    model, batch = perturb(build()), batch_of()
    ids, valid, seen = batch["input_ids"], batch["attention_mask"], []
    table = model.text_encoder.embeddings.word_embedding
    assert table is model.text_decoder.embeddings.word_embedding
    handle = table.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    tokens = model.image_tokens(batch["images"])
    model.text_tokens(ids, valid)
    model.ground(ids, (tokens,), valid)
    model.word_logits(ids, tokens, valid)
    handle.remove()
    for found, first in zip(seen, (CLS, ENC, DEC), strict=True):
        assert (found[:, 0] == first).all() and torch.equal(found[:, 1:], ids[:, 1:])
    assert (ids[:, 0] == CLS).all()


def test_the_decoder_is_causal_the_encoder_is_not():
    model, batch = perturb(build()), batch_of()
    ids, images = batch["input_ids"].clamp(min=4), batch["images"]
    tokens, later = model.image_tokens(images), ids.clone()
    later[:, 5] = 3
    before, after = model.word_logits(ids, tokens), model.word_logits(later, tokens)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax((1, 2)).min() > 1e-4
    read = model.ground(ids, (tokens,)) - model.ground(later, (tokens,))
    assert read[:, :5].abs().amax((1, 2)).min() > 1e-4


def test_features_have_length_one():
    model, batch = build(), batch_of()
    close(model.encode_image(batch["images"]).norm(dim=-1), torch.ones(4))
    close(model.encode_text(batch["input_ids"]).norm(dim=-1), torch.ones(4))


def test_missing_parts_are_named():
    ids, images = batch_of()["input_ids"], batch_of()["images"]
    model = build(heads=("match",))
    with pytest.raises(ValueError, match="this BLIP has no 'contrast' head; it has heads="):
        model.encode_text(ids)
    with pytest.raises(ValueError, match="has no decoder"):
        model.start_writing(model.image_tokens(images))
    with pytest.raises(ValueError, match="no 'contrast' head"):
        BLIPPretraining(model)
    with pytest.raises(ValueError, match="no temperature"):
        BLIPPretraining(build(temperature=None))
    captioner = build(heads=("words",))
    assert captioner.text_encoder is None
    with pytest.raises(ValueError, match="has no text encoder; it has heads="):
        captioner(ids, images)


def test_recomputed_blocks_give_the_same_gradients():
    module, batch = pretraining(network=perturb(build())), batch_of()
    batch |= {"negative_images": torch.tensor([1, 0, 3, 2])}
    batch |= {"negative_texts": torch.tensor([2, 3, 0, 1])}

    def gradients():
        module.zero_grad()
        sum(module.losses(batch, update=False).values()).backward()
        return [p.grad.clone() for p in module.network.parameters()]

    plain = gradients()
    module.network.activation_checkpointing = True
    assert module.network.text_decoder.activation_checkpointing
    for left, right in zip(gradients(), plain, strict=True):
        close(left, right)
    captioner = build(heads=("words",))
    captioner.activation_checkpointing = True
    assert captioner.image_encoder.activation_checkpointing


def test_attention_maps_of_all_layers_and_roles():
    model, batch = build(), batch_of()
    ids, valid = batch["input_ids"], batch["attention_mask"]
    with record_attention(model) as maps:
        images = model(ids, batch["images"], valid).images
        read = maps["text_encoder.blocks.1.cross_attention"]
        model.word_logits(ids, images[0], valid)
    assert maps["image_encoder.blocks.0.attention"].shape == (4, 2, 5, 5)
    assert maps["text_encoder.blocks.0.attention"].shape == (4, 3, 9, 9)
    assert read.shape == (4, 3, 9, 5)
    assert torch.equal(maps["text_encoder.blocks.1.cross_attention"], read)
    assert maps["text_decoder.blocks.1.cross_attention"].shape == (4, 3, 9, 5)
    causal = maps["text_decoder.blocks.0.attention"]
    assert (causal.triu(1) == 0).all() and (causal[..., 0] > 0).all()


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
    assert list(losses) == ["contrastive", "matching", "language_modeling"]
    sum(losses.values()).backward()
    without = [n for n, p in module.network.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad is None for p in module.momentum.parameters())
    assert not any(b.requires_grad for b in module.queue.buffers())


def test_without_distillation_the_contrast_is_plain_cross_entropy():
    module = pretraining(alpha=0.0)
    perturb(module.momentum.network)
    contrast, places = module.step(batch_of()).contrast, torch.arange(4)
    tables = (contrast.image_to_text, contrast.text_to_image)
    close(contrast.loss(), sum(F.cross_entropy(table, places) for table in tables) / 2)


def test_targets_are_the_twins_guess_and_the_truth():
    module = pretraining(network=perturb(build()), alpha=0.4)
    perturb(module.momentum.network, seed=5)
    queue = module.queue.texts.clone()
    contrast = module.step(batch_of()).contrast
    texts = torch.cat([contrast.momentum_text_features.T, queue], 1)
    guess = contrast.momentum_image_features @ texts / module.network.temperature
    expected = 0.4 * guess.softmax(-1) + 0.6 * torch.eye(4, 12)
    close(contrast.image_targets, expected)
    close(contrast.image_targets.sum(1), torch.ones(4))
    assert not contrast.image_targets.requires_grad


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
    module.step(batch_of(seed=2))
    assert module.queue.pointer == 0  # 8 of 8


def test_the_twin_is_a_moving_average_of_all_it_has():
    module = pretraining(decay=0.9)
    start = {k: t.clone() for k, t in module.momentum.network.state_dict().items()}
    perturb(module.network)
    online = module.network.state_dict()
    for _ in range(3):
        module.momentum.update(module.network)
    assert not any(key.startswith(("text_decoder", "heads.match")) for key in start)
    assert "heads.contrast.temperature" not in start
    for key, tensor in module.momentum.network.state_dict().items():
        close(tensor, 0.9**3 * start[key] + (1 - 0.9**3) * online[key])


def test_captioning_teaches_the_momentum_text_encoder_too():
    """The average is taken of shared weights, which the words move."""
    module, batch = pretraining(decay=0.5), batch_of()
    optimizer = torch.optim.SGD(module.network.parameters(), lr=1.0)
    module.losses(batch)["language_modeling"].backward()
    optimizer.step()
    moved = module.momentum.network.text_encoder.blocks[0].mlp.fc1.weight.clone()
    module.momentum.update(module.network)
    assert (module.momentum.network.text_encoder.blocks[0].mlp.fc1.weight != moved).any()


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
    module, batch = pretraining(network=perturb(build())), batch_of()
    drawn = {
        "negative_images": torch.tensor([2, 3, 0, 1]),
        "negative_texts": torch.tensor([1, 0, 3, 2]),
    }
    step = module.step(batch | drawn)
    network, images, texts = module.network, batch["images"], batch["input_ids"]
    images = torch.cat([images, images[drawn["negative_images"]], images])
    texts = torch.cat([texts, texts, texts[drawn["negative_texts"]]])
    close(step.matching.logits, network.matching_logits(network(texts, images).grounded))
    labels = torch.tensor([1] * 4 + [0] * 8)
    close(step.matching.loss(), F.cross_entropy(step.matching.logits, labels))


def test_negatives_are_never_the_own_partner_and_follow_the_similarities():
    module = pretraining(queue_size=4, generator=torch.Generator().manual_seed(0))
    perturb(module.network)
    module.network.heads["contrast"].temperature.data.fill_(0.5)
    batch = batch_of()
    items = module.candidates(batch, module.step(batch).contrast)
    counts = torch.zeros(2, 4, 4)
    for _ in range(300):
        images, texts = module._negatives({}, items)
        counts[0, range(4), images] += 1
        counts[1, range(4), texts] += 1
    assert (counts.diagonal(dim1=1, dim2=2) == 0).all()
    off = ~torch.eye(4).bool()
    for count, table in zip(counts, (items.text_to_image, items.image_to_text), strict=True):
        weights = (table.softmax(-1) + 1e-4).masked_fill(~off, 0)
        expected = 300 * weights / weights.sum(1, keepdim=True)
        chi_square = ((count - expected)[off].square() / expected[off]).sum()
        # 4 rows of 2 degrees of freedom each; 31 is exceeded once in 10,000 tries.
        assert chi_square < 31


def test_a_hopeless_negative_still_comes_up_now_and_then():
    """The floor of 1e-4 is added to the probability, not to its logarithm."""
    module = pretraining(generator=torch.Generator().manual_seed(0))
    table = torch.tensor([[0.0, 0.0, -100.0]]).expand(20_000, 3)
    belongs = torch.tensor([[True, False, False]]).expand(20_000, 3)
    batch = batch_of(1)
    items = blip.Candidates(
        torch.zeros(3, 1, 20), batch["input_ids"], batch["attention_mask"], table, table, belongs
    )
    images, _ = module._negatives({}, items)
    # 1e-4 beside 0.5: 4 in 20,000.
    assert 0 < (images == 2).sum() < 15


def test_a_batch_of_one_has_no_wrong_pair():
    with pytest.raises(ValueError, match="there is no wrong item for query 0"):
        pretraining().losses(batch_of(1))


def test_smoothed_labels_are_spread_over_all_words():
    module, batch = pretraining(network=perturb(build())), batch_of()
    words = module.step(batch).words
    valid = batch["attention_mask"][:, 1:]
    log_probs = words.logits[:, :-1].log_softmax(-1)[valid]
    right = log_probs.gather(1, batch["input_ids"][:, 1:][valid][:, None])
    close(words.loss(), -(0.9 * right.mean() + 0.1 * log_probs.mean()))
    assert words.logits.shape == (4, 9, 50)
    plain = pretraining(network=perturb(build()), label_smoothing=0.0).step(batch).words
    close(plain.loss(), -right.mean())


def test_a_generator_decides_all_draws():
    first, second = (
        pretraining(generator=torch.Generator().manual_seed(5)).losses(batch_of()) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_alpha_rises_over_two_epochs():
    module = pretraining(ramp_steps=2 * 10)
    weights = []
    for _ in range(22):
        module.momentum.update(module.network)
        weights.append(module.momentum.weight().item())
    assert weights == pytest.approx([0.4 * min(1, i / 20) for i in range(22)])


def test_a_killed_run_goes_on_from_its_state_dict():
    """Queue, pointer, twin and the rise of alpha are all in it."""
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
    assert shared_names(resumed.network) == shared_names(through.network)


def test_twins_drop_out_where_the_network_does():
    module = pretraining(network=build(dropout=0.5))
    assert module.train().momentum.network.training
    torch.manual_seed(0)
    first = module.step(batch_of(), update=False).contrast.momentum_text_features
    second = module.step(batch_of(), update=False).contrast.momentum_text_features
    assert (first - second).abs().max() > 1e-3


def test_learning_lowers_the_loss():
    module, batch = pretraining(alpha=0.0), batch_of()
    fixed = module.step(batch, update=False).matching
    batch |= {"negative_images": fixed.negative_images, "negative_texts": fixed.negative_texts}
    optimizer = torch.optim.Adam(module.network.parameters(), lr=2e-3)
    totals = []
    for _ in range(15):
        total = sum(module.losses(batch, update=False).values())
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert totals[-1] < 0.8 * totals[0] and math.isfinite(totals[-1])


def test_the_mini_is_made_by_name():
    model = create_model("blip-mini", vocab_size=300)
    assert isinstance(model, BLIP) and model.config.encoder_id == 299
    assert count_parameters(model) < 4_000_000
